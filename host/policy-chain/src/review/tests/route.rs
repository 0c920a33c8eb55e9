use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use interlock_request::ModelId;
use proptest::prelude::*;

use super::{counts, failing, rejection, review, shadow, successor};
use crate::testing::{Fake, body, chain, facts, failure};
use crate::{ChainEntry, FailureAction, PolicyRefusal, at_once};
use interlock_policy_api::{Answer, Candidate, Choice, Code, Facts, FailureKind, Identity, Load};

fn routing(name: &'static str, answer: Answer<Choice>) -> Fake {
    Fake { route: Some(Box::new(move |_| answer.clone())), ..Fake::named(name) }
}

fn scores(name: &'static str, scores: &[(u32, f32)]) -> ChainEntry {
    routing(name, Ok(Choice::Scores(scores.to_vec(), Code::default()))).entry()
}

fn pick(id: u32) -> Answer<Choice> {
    Ok(Choice::Pick(id, Code::from("known")))
}

/// One that is asked for, ready, and has so many of 10 places taken.
fn candidate(id: u32, running: u32) -> Candidate {
    Candidate {
        id,
        model: ModelId::new(format!("m{id}")),
        asked: true,
        ready: true,
        context: 100,
        load: Load { waiting: 0, waiting_max: 5, running, running_max: 5 },
        prefix_seen: false,
        first_token: None,
        inter_token: None,
    }
}

fn not_asked(candidate: Candidate) -> Candidate {
    Candidate { asked: false, ..candidate }
}

fn not_ready(candidate: Candidate) -> Candidate {
    Candidate { ready: false, ..candidate }
}

fn ask(entries: Vec<ChainEntry>, candidates: &[Candidate]) -> Result<Option<u32>, PolicyRefusal> {
    at_once(review(&chain(entries).0).route(&facts(), candidates, &body()))
}

#[test]
fn without_a_word_the_least_busy_of_those_asked_for_takes_it() {
    let candidates = [candidate(0, 3), candidate(1, 1), not_asked(candidate(2, 0))];
    assert_eq!(ask(vec![], &candidates), Ok(Some(1)));
    let abstains = routing("a", Ok(Choice::Abstain)).entry();
    assert_eq!(ask(vec![abstains], &candidates), Ok(Some(1)));
    assert_eq!(ask(vec![scores("a", &[(2, 0.0)])], &candidates), Ok(Some(1)));
    assert_eq!(ask(vec![], &[not_asked(candidate(2, 0))]), Ok(None));
    assert_eq!(
        ask(vec![], &[candidate(0, 2), candidate(1, 2)]),
        Ok(Some(0)),
        "the first of equals"
    );
}

#[test]
fn weighted_scores_are_added_up_and_nonsense_counts_as_nothing() {
    let candidates = [candidate(0, 0), candidate(1, 4)];
    let (a, b) = (scores("a", &[(0, 1.0), (1, 0.9)]), scores("b", &[(1, 0.2)]));
    assert_eq!(ask(vec![a.clone(), b.clone()], &candidates), Ok(Some(1)));
    let heavy = ChainEntry { weight: 3.0, ..a };
    assert_eq!(ask(vec![heavy, b], &candidates), Ok(Some(0)));
    let nan = scores("a", &[(0, f32::NAN), (1, 0.1)]);
    assert_eq!(ask(vec![nan], &candidates), Ok(Some(1)));
    let absurd = scores("a", &[(0, -9.0), (1, f32::INFINITY)]);
    assert_eq!(ask(vec![absurd, scores("b", &[(0, 1.0), (1, 0.9)])], &candidates), Ok(Some(1)));
}

#[test]
fn of_equal_scores_the_least_busy_wins() {
    let candidates = [candidate(0, 4), candidate(1, 2), candidate(2, 2)];
    let all = scores("a", &[(0, 0.5), (1, 0.5), (2, 0.5)]);
    assert_eq!(ask(vec![all], &candidates), Ok(Some(1)));
}

#[test]
fn one_that_is_not_ready_wins_only_when_none_is() {
    let (cold, warm) = (not_ready(candidate(0, 0)), candidate(1, 4));
    let favours = || scores("a", &[(0, 1.0), (1, 0.1)]);
    assert_eq!(ask(vec![favours()], &[cold.clone(), warm.clone()]), Ok(Some(1)));
    let picks = || routing("a", pick(0)).entry();
    assert_eq!(ask(vec![picks()], &[cold.clone(), warm.clone()]), Ok(Some(1)));
    assert_eq!(ask(vec![], &[cold.clone(), warm]), Ok(Some(1)));
    assert_eq!(ask(vec![picks()], std::slice::from_ref(&cold)), Ok(Some(0)));
    assert_eq!(ask(vec![], &[cold]), Ok(Some(0)));
}

#[test]
fn the_first_to_pick_ends_the_matter() {
    let candidates = [candidate(0, 0), not_asked(candidate(1, 4))];
    let entries = vec![scores("a", &[(0, 1.0)]), routing("b", pick(1)).entry()];
    assert_eq!(ask(entries, &candidates), Ok(Some(1)));
    let reject = routing("a", Ok(Choice::Reject(rejection(429)))).entry();
    let refused = ask(vec![reject], &candidates).expect_err("a rejects");
    assert_eq!(refused.rejection.status, 429);
}

#[test]
fn to_name_what_is_not_there_is_no_answer() {
    let candidates = [candidate(3, 0), candidate(7, 1)];
    for answer in [
        pick(0),
        Ok(Choice::Scores(vec![(3, 0.1), (9, 1.0)], Code::default())),
        Ok(Choice::Scores(vec![(7, 1.0), (7, 1.0)], Code::default())),
    ] {
        let closed = failing(routing("a", answer), FailureAction::Closed(502));
        let refused = ask(vec![closed], &candidates).expect_err("it is closed");
        assert_eq!(refused.rejection.status, 502);
        assert_eq!(refused.failure.expect("it failed").kind, FailureKind::BadOutput);
    }
    assert_eq!(ask(vec![routing("a", pick(7)).entry()], &candidates), Ok(Some(7)));
}

#[test]
fn in_place_of_a_policy_that_fails_the_host_prefers_the_least_busy() {
    let candidates = [candidate(0, 4), candidate(1, 1)];
    let trap = routing("a", Err(failure(FailureKind::Deadline))).entry();
    let (chain, registry) = chain(vec![trap]);
    let taken = at_once(review(&chain).route(&facts(), &candidates, &body()));
    assert_eq!(taken, Ok(Some(1)));
    counts(&registry, r#"policy_fallbacks_total{action="builtin",phase="route",policy="a"} 1"#);
    counts(&registry, r#"policy_failures_total{kind="deadline",phase="route",policy="a"} 1"#);
}

#[test]
fn the_last_good_decision_is_repeated_for_the_same_tenant_and_model_only() {
    let broken = Arc::new(AtomicBool::new(false));
    let breaks = Arc::clone(&broken);
    let fake = Fake {
        route: Some(Box::new(move |_| match breaks.load(Ordering::Relaxed) {
            false => pick(1),
            true => Err(failure(FailureKind::Trap)),
        })),
        ..Fake::named("a")
    };
    let action = FailureAction::LastGood(std::time::Duration::from_secs(60));
    let (chain, registry) = chain(vec![failing(fake, action)]);
    let candidates = [candidate(0, 0), candidate(1, 4)];
    let ask = |facts: &Facts| at_once(review(&chain).route(facts, &candidates, &body()));
    assert_eq!(ask(&facts()), Ok(Some(1)));
    broken.store(true, Ordering::Relaxed);
    assert_eq!(ask(&facts()), Ok(Some(1)));
    let other =
        Facts { identity: Identity { tenant: "other".into(), ..Identity::default() }, ..facts() };
    assert_eq!(ask(&other).expect_err("nothing is known").rejection.status, 503);
    counts(&registry, r#"policy_fallbacks_total{action="last_good",phase="route",policy="a"} 1"#);
    counts(&registry, r#"policy_fallbacks_total{action="closed",phase="route",policy="a"} 1"#);
}

#[test]
fn a_shadow_that_would_have_sent_it_elsewhere_is_counted() {
    let entries = vec![
        shadow(routing("s", pick(0))),
        shadow(routing("t", Ok(Choice::Scores(vec![(1, 0.3)], Code::default())))),
        routing("a", pick(1)).entry(),
    ];
    let (chain, registry) = chain(entries);
    let candidates = [candidate(0, 0), candidate(1, 4)];
    let taken = at_once(review(&chain).route(&facts(), &candidates, &body()));
    assert_eq!(taken, Ok(Some(1)));
    counts(&registry, r#"policy_shadow_disagreements_total{phase="route",policy="s"} 1"#);
    counts(&registry, r#"policy_shadow_disagreements_total{phase="route",policy="t"} 0"#);
    counts(&registry, r#"policy_reasons_total{code="known",phase="route",policy="a"} 1"#);
}

proptest! {
    #[test]
    fn whatever_policies_answer_the_winner_is_one_of_the_candidates_and_ready_if_any_is(
        given in prop::collection::vec((any::<bool>(), any::<bool>(), 0_u32..9), 1..9),
        answers in prop::collection::vec(
            prop::collection::vec((0_u32..9, any::<f32>()), 0..9), 0..4),
    ) {
        let candidates: Vec<_> = given.iter().zip(0..).map(|((ready, asked, running), id)| {
            Candidate { ready: *ready, asked: *asked, ..candidate(id, *running) }
        }).collect();
        let entries = answers.iter().zip(["a", "b", "c", "d"]).map(|(answer, name)| scores(name, answer));
        let taken = ask(entries.collect(), &candidates).expect("nobody is closed");
        match taken {
            Some(id) => {
                let taken = &candidates[id as usize];
                let fit = |one: &Candidate| one.ready && (one.asked || !taken.asked);
                prop_assert!(taken.ready || !candidates.iter().any(fit));
            }
            None => prop_assert!(candidates.iter().all(|one| !one.asked)),
        }
    }
}

#[test]
fn the_shadow_of_one_that_picks_or_rejects_is_compared_with_it() {
    let reject = || Ok(Choice::Reject(rejection(429)));
    for (old, new, count) in [
        (pick(0), pick(1), 1),
        (pick(1), pick(1), 0),
        (reject(), pick(1), 1),
        (reject(), reject(), 0),
    ] {
        let entry = successor(routing("p", old), routing("p", new));
        let (chain, registry) = chain(vec![entry, routing("q", pick(0)).entry()]);
        let candidates = [candidate(0, 0), candidate(1, 0)];
        let _ = at_once(review(&chain).route(&facts(), &candidates, &body()));
        let line =
            format!(r#"policy_shadow_disagreements_total{{phase="route",policy="p"}} {count}"#);
        counts(&registry, &line);
        counts(&registry, r#"policy_calls_total{decision="pick",phase="route",policy="q"} 0"#);
    }
}
