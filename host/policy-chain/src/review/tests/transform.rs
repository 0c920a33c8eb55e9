use super::{failing, rejection, review, shadow};
use crate::testing::{Fake, chain, facts, failure};
use crate::{ChainEntry, FailureAction, PolicyRefusal, at_once};
use interlock_policy_api::{Answer, Body, Code, Edits, Facts, FailureKind, Headers, Transformed};
use std::sync::Arc;

fn changing(
    name: &'static str,
    change: impl Fn(&Facts, &Body) -> Answer<Transformed> + Send + Sync + 'static,
) -> Fake {
    Fake { transform: Some(Box::new(change)), ..Fake::named(name) }
}

fn edits() -> Edits {
    Edits {
        set_headers: vec![],
        remove_headers: vec![],
        answer_headers: vec![],
        model: None,
        code: Code::default(),
    }
}

fn pair(name: &str, value: &str) -> (String, String) {
    (name.into(), value.into())
}

fn ask(entries: Vec<ChainEntry>) -> Result<(Facts, Option<String>), PolicyRefusal> {
    let body = Arc::new(Body::new(br#"{"n":1}"#.to_vec()));
    let mut facts = Facts { headers: Headers(vec![pair("x-a", "1"), pair("x-b", "2")]), ..facts() };
    at_once(review(&chain(entries).0).transform(&mut facts, &body))?;
    let changed = body.changed().map(|bytes| String::from_utf8(bytes).expect("JSON"));
    Ok((facts, changed))
}

#[test]
fn each_policy_sees_what_the_one_before_it_made() {
    let first = changing("a", |_, body| {
        body.set("/n", "2").expect("it is there");
        Ok(Transformed::Edit(Edits {
            set_headers: vec![pair("X-A", "9")],
            remove_headers: vec!["x-b".into()],
            model: Some("better".into()),
            ..edits()
        }))
    });
    let second = changing("b", |facts, body| {
        assert_eq!(facts.model.as_str(), "better");
        assert_eq!(facts.headers.0, [pair("x-a", "9")]);
        assert_eq!(body.get("/n", 99), Ok(Some("2".into())));
        Ok(Transformed::Keep)
    });
    let (facts, changed) = ask(vec![first.entry(), second.entry()]).expect("nobody objects");
    assert_eq!(facts.model.as_str(), "better");
    assert_eq!(changed.as_deref(), Some(r#"{"n":2}"#));
}

#[test]
fn headers_of_the_answer_are_kept_for_whatever_answer_comes() {
    let first = changing("a", |_, _| {
        Ok(Transformed::Edit(Edits { answer_headers: vec![pair("x-seen", "a")], ..edits() }))
    });
    let second = changing("b", |_, _| Ok(Transformed::Reject(rejection(403))));
    let refused = ask(vec![first.entry(), second.entry()]).expect_err("b rejects");
    assert_eq!(refused.rejection.headers, [pair("x-why", "so"), pair("x-seen", "a")]);
}

#[test]
fn what_a_policy_that_failed_left_half_changed_is_as_it_was() {
    let half = || {
        changing("a", |_, body| {
            body.set("/n", "666").expect("it is there");
            Err(failure(FailureKind::Trap))
        })
    };
    let refused = ask(vec![half().entry()]).expect_err("closed by default");
    assert_eq!(refused.rejection.status, 500);
    let (_, changed) = ask(vec![failing(half(), FailureAction::Open)]).expect("open");
    assert_eq!(changed, None);
}

#[test]
fn a_shadow_changes_nothing() {
    let eager = changing("s", |_, body| {
        body.set("/n", "2").expect("it is there");
        Ok(Transformed::Edit(Edits { model: Some("other".into()), ..edits() }))
    });
    let (facts, changed) = ask(vec![shadow(eager)]).expect("a shadow");
    assert_eq!((facts.model.as_str(), changed), ("m", None));
}
