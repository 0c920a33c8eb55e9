use interlock_request::{Generation, Usage};

use super::*;
use crate::testing::{Fake, admit, chain, facts};
use crate::{AdmissionReview, OnFailure, PolicySession, StreamFilters};
use interlock_policy_api::{
    Answer, Body, Caller, Candidate, Decision, Event, Facts, Load, Progress, Prompt,
};

/// Compiles, and is not called: a server's tasks go from thread to thread.
#[expect(dead_code, reason = "that it compiles is the test")]
fn every_future_of_a_request_can_go_to_another_thread(
    (mut review, mut session, mut stream_filters): (AdmissionReview, PolicySession, StreamFilters),
    (caller, mut facts, body): (Caller, Facts, Arc<Body>),
    (candidates, progress): (Vec<Candidate>, Progress),
    (prompt, generation): (Prompt, Generation),
) {
    fn sent<T: Send>(_: &T) {}
    let now = std::time::Instant::now();
    sent(&review.identify(&caller));
    sent(&review.transform(&mut facts, &body));
    sent(&review.route(&facts, &candidates, &body));
    sent(&review.admit(facts, &Load::default(), prompt, generation, &body));
    sent(&session.event(Event::Queued(0), progress));
    sent(&stream_filters.push("", Usage::default(), now));
}

fn version(name: &'static str, version: &'static str, answer: Answer<Decision>) -> Arc<Fake> {
    Arc::new(Fake { version, ..Fake::admitting(name, answer) })
}

fn admitting() -> Answer<Decision> {
    Ok(Decision::Admit(interlock_policy_api::Admission::default()))
}

#[test]
fn a_canary_gets_its_share_and_the_others_get_what_was_there_before() {
    let (old, new) = (version("p", "1", admitting()), version("p", "2", admitting()));
    let entry = ChainEntry {
        mode: PolicyMode::Canary(10),
        previous: Some(old),
        ..ChainEntry::new(new, OnFailure::default())
    };
    let (chain, _) = chain(vec![entry]);
    let asked = |serial| {
        let outcome = admit(&chain, Facts { serial, ..facts() }).expect("both admit");
        outcome.decisions[0].version.to_string()
    };
    let new = (0..2000).filter(|serial| asked(*serial) == "2").count();
    assert!((140..260).contains(&new), "{new} of 2000 are not 10 %");
    assert!((0..50).all(|serial| asked(serial) == asked(serial)), "one request met two versions");
}

#[test]
fn without_a_version_before_it_a_canary_leaves_the_others_alone() {
    let entry = ChainEntry {
        mode: PolicyMode::Canary(1),
        ..ChainEntry::new(version("p", "2", admitting()), OnFailure::default())
    };
    let (chain, _) = chain(vec![entry]);
    let asked = (0..100).filter(|serial| !chain.policy_set(*serial).is_empty()).count();
    assert!(asked < 10, "{asked} of 100");
}

#[test]
fn a_chain_says_what_its_policies_need() {
    let (empty, _) = chain(vec![]);
    assert!(Phase::ALL.iter().all(|phase| !empty.takes(*phase)));
    let (one, _) = chain(vec![Fake::admitting("a", admitting()).entry()]);
    assert!(one.takes(Phase::Admit) && one.takes(Phase::Account) && !one.takes(Phase::Route));
    assert!(!one.wants_content());
}
