use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::{counts, failing, rejection, review, shadow, successor};
use crate::testing::{Fake, caller, chain, failure};
use crate::{ChainEntry, FailureAction, PolicyRefusal, at_once};
use interlock_policy_api::{Answer, Caller, Code, FailureKind, Headers, Identified, Identity};

fn identifying(name: &'static str, answer: Answer<Identified>) -> Fake {
    Fake { identify: Some(Box::new(move |_| answer.clone())), ..Fake::named(name) }
}

fn known(tenant: &str) -> Answer<Identified> {
    let identity = Identity { tenant: tenant.into(), ..Identity::default() };
    Ok(Identified::Known(identity, Code::from("known")))
}

fn ask(entries: Vec<ChainEntry>) -> Result<String, PolicyRefusal> {
    at_once(review(&chain(entries).0).identify(&caller())).map(|identity| identity.tenant)
}

#[test]
fn the_first_that_knows_the_caller_ends_the_matter() {
    let entries = vec![
        identifying("a", Ok(Identified::Unknown)).entry(),
        identifying("b", known("acme")).entry(),
        identifying("c", known("other")).entry(),
    ];
    assert_eq!(ask(entries).expect("b knows it"), "acme");
}

#[test]
fn a_caller_that_nobody_knows_is_turned_away() {
    let refused = ask(vec![identifying("a", Ok(Identified::Unknown)).entry()]).expect_err("nobody");
    assert_eq!((refused.rejection.status, &*refused.policy), (401, PolicyRefusal::HOST));
    assert_eq!(&*refused.rejection.reason.code.0, "unidentified");
    assert_eq!(ask(vec![]).expect("nobody was asked"), "");
}

#[test]
fn who_is_turned_away_hears_why_and_nothing_that_could_harm() {
    let reject = Ok(Identified::Reject(rejection(200)));
    let refused = ask(vec![identifying("a", reject).entry()]).expect_err("a rejects");
    assert_eq!(refused.rejection.status, 400, "not an error");
    assert_eq!(refused.rejection.headers, [("x-why".to_owned(), "so".to_owned())]);
}

#[test]
fn it_fails_closed_unless_the_operator_says_otherwise() {
    let trap = || identifying("a", Err(failure(FailureKind::Trap)));
    let refused = ask(vec![trap().entry()]).expect_err("closed by default");
    assert_eq!(refused.rejection.status, 503);
    assert!(refused.failure.is_some());
    let open = failing(trap(), FailureAction::Open);
    assert_eq!(ask(vec![open.clone()]).expect("as if it were not there"), "");
    let unknown = identifying("b", Ok(Identified::Unknown)).entry();
    assert_eq!(ask(vec![open, unknown]).expect_err("b does not know").rejection.status, 401);
    assert_eq!(ask(vec![failing(trap(), FailureAction::Builtin)]).expect("nobody"), "");
}

#[test]
fn what_cannot_be_an_identity_is_none() {
    for tenant in ["", "a\nb", "ü"] {
        let refused = ask(vec![identifying("a", known(tenant)).entry()]).expect_err("closed");
        let failure = refused.failure.expect("it failed");
        assert_eq!(failure.kind, FailureKind::BadOutput, "{tenant:?}: {failure}");
    }
}

#[test]
fn a_shadow_that_would_have_decided_otherwise_is_counted() {
    let entries = || {
        vec![
            shadow(identifying("s", known("wrong"))),
            shadow(identifying("t", known("acme"))),
            identifying("a", known("acme")).entry(),
        ]
    };
    let (chain, registry) = chain(entries());
    let identity = at_once(review(&chain).identify(&caller())).expect("a knows it");
    assert_eq!(identity.tenant, "acme");
    counts(&registry, r#"policy_shadow_disagreements_total{phase="identify",policy="s"} 1"#);
    counts(&registry, r#"policy_shadow_disagreements_total{phase="identify",policy="t"} 0"#);
}

/// Behind a gateway all callers may have one credential and one address, and a header that says
/// who it is.
#[test]
fn what_was_decided_about_one_caller_is_not_repeated_for_another() {
    let broken = std::sync::Arc::new(AtomicBool::new(false));
    let breaks = std::sync::Arc::clone(&broken);
    let identify = move |caller: Caller| {
        let user = caller.headers.0.iter().find(|(name, _)| name == "x-user");
        match user {
            _ if breaks.load(Ordering::Relaxed) => Err(failure(FailureKind::Trap)),
            Some((_, user)) => known(user),
            None => known("nobody"),
        }
    };
    let fake = Fake { identify: Some(Box::new(identify)), ..Fake::named("a") };
    let fake = Fake { headers: vec!["x-user".into()], ..fake };
    let last_good = FailureAction::LastGood(Duration::from_secs(60));
    let (chain, _) = chain(vec![failing(fake, last_good)]);
    let ask = |credential: &str, user: &str, other: &str| {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let headers = Headers(vec![pair("x-user", user), pair("x-other", other)]);
        let caller = Caller { credential: credential.into(), headers, ..caller() };
        at_once(review(&chain).identify(&caller))
            .map_or_else(|refused| refused.rejection.status.to_string(), |identity| identity.tenant)
    };
    assert_eq!([ask("c", "ann", "1"), ask("", "bob", "1")], ["ann", "bob"]);
    broken.store(true, Ordering::Relaxed);
    assert_eq!(ask("c", "ann", "2"), "ann", "it never saw the other header");
    assert_eq!(ask("c", "eve", "1"), "503");
    assert_eq!(ask("d", "ann", "1"), "503");
    assert_eq!(ask("", "bob", "1"), "503", "nothing tells one without a credential from another");
}

#[test]
fn the_shadow_of_whoever_ends_the_matter_is_asked_and_nobody_else() {
    let reject = || Ok(Identified::Reject(rejection(403)));
    let last = || identifying("b", known("other")).entry();
    for (old, new, count) in [
        (known("acme"), known("wrong"), 1),
        (known("acme"), known("acme"), 0),
        (reject(), known("acme"), 1),
        (reject(), reject(), 0),
    ] {
        let entry = successor(identifying("p", old), identifying("p", new));
        let (chain, registry) = chain(vec![entry, last()]);
        let _ = at_once(review(&chain).identify(&caller()));
        let line =
            format!(r#"policy_shadow_disagreements_total{{phase="identify",policy="p"}} {count}"#);
        counts(&registry, &line);
        counts(&registry, r#"policy_calls_total{decision="known",phase="identify",policy="b"} 0"#);
    }
}
