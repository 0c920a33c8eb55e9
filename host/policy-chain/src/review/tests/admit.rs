use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use interlock_request::{Deadlines, Priority, Usage};

use super::{counts, failing, rejection, shadow, successor};
use crate::testing::{Fake, SERIAL, admit, chain, facts, failure, let_in, outcome_with};
use crate::{ChainShared, FailureAction, LimitsConfig, PolicyMetrics};
use interlock_policy_api::{
    Admission, Answer, Code, Decision, Event, EventSet, Facts, FailureKind, Identity, PlanProposal,
    Progress, Reaction, Watch,
};

fn wish(priority: Priority) -> Answer<Decision> {
    let proposal = PlanProposal { priority: Some(priority), ..PlanProposal::default() };
    let_in(Admission { proposal, ..Admission::default() })
}

fn tokens(tokens_max: u32) -> Answer<Decision> {
    let proposal = PlanProposal { tokens_max: Some(tokens_max), ..PlanProposal::default() };
    let_in(Admission { proposal, ..Admission::default() })
}

fn bounded(priority: Priority) -> Facts {
    Facts { identity: Identity { priority: Some(priority), ..Identity::default() }, ..facts() }
}

#[test]
fn the_first_rejection_ends_the_chain() {
    let reject = |status| Ok(Decision::Reject(rejection(status)));
    let entries =
        vec![Fake::admitting("a", reject(403)).entry(), Fake::admitting("b", reject(401)).entry()];
    let (chain, registry) = chain(entries);
    let refused = admit(&chain, facts()).expect_err("a rejects");
    assert_eq!((&*refused.policy, refused.rejection.status), ("a", 403));
    counts(&registry, r#"policy_calls_total{decision="reject",phase="admit",policy="a"} 1"#);
    for decision in ["admit", "reject", "failed"] {
        let line =
            format!(r#"policy_calls_total{{decision="{decision}",phase="admit",policy="b"}} 0"#);
        counts(&registry, &line);
    }
}

#[test]
fn the_engine_is_told_the_merged_priority() {
    let entries = vec![
        Fake::admitting("a", wish(Priority::Critical)).entry(),
        Fake::admitting("b", wish(Priority::Batch)).entry(),
    ];
    let outcome = admit(&chain(entries).0, facts()).expect("both admit");
    assert_eq!(outcome.admitted.plan().priority, Priority::Batch);
    assert_eq!(outcome.decisions.len(), 2);
    assert_eq!(outcome.admitted.into_work().generation.priority, Priority::Batch);
}

#[test]
fn who_the_caller_is_bounds_the_priority_and_urges_nothing() {
    let (chain, _) = chain(vec![Fake::admitting("a", wish(Priority::Critical)).entry()]);
    let priority = |facts| admit(&chain, facts).expect("it admits").admitted.plan().priority;
    assert_eq!(priority(bounded(Priority::Batch)), Priority::Batch);
    assert_eq!(priority(facts()), Priority::Critical);
    let (nobody, _) = crate::testing::chain(vec![]);
    let priority = |facts| admit(&nobody, facts).expect("it admits").admitted.plan().priority;
    assert_eq!(priority(bounded(Priority::Critical)), Priority::Standard);
}

#[test]
fn the_smallest_bound_on_tokens_holds_and_nothing_asks_for_more_than_it() {
    let entries =
        vec![Fake::admitting("a", tokens(40)).entry(), Fake::admitting("b", tokens(1000)).entry()];
    let admitted = admit(&chain(entries).0, facts()).expect("both admit").admitted;
    let generation = admitted.into_work().generation;
    assert_eq!((generation.tokens_max, generation.tokens_min), (40, 40));
    let refused = admit(&chain(vec![Fake::admitting("a", tokens(0)).entry()]).0, facts());
    assert_eq!(
        refused.expect_err("no token").failure.expect("nonsense").kind,
        FailureKind::BadOutput
    );
}

#[test]
fn a_failing_policy_does_what_its_setting_says() {
    let trap = || Fake::admitting("a", Err(failure(FailureKind::Trap)));
    for action in [FailureAction::Open, FailureAction::Builtin] {
        let (chain, registry) = chain(vec![failing(trap(), action)]);
        let outcome = admit(&chain, facts()).expect("it goes on");
        assert!(outcome.decisions[0].decision.is_err());
        counts(&registry, r#"policy_failures_total{kind="trap",phase="admit",policy="a"} 1"#);
        let action = action.as_str();
        let line =
            format!(r#"policy_fallbacks_total{{action="{action}",phase="admit",policy="a"}} 1"#);
        counts(&registry, &line);
    }
    let refused = admit(&chain(vec![trap().entry()]).0, facts()).expect_err("closed");
    assert_eq!(refused.rejection.status, 503);
    assert!(refused.failure.is_some());
}

#[test]
fn a_panic_is_the_policys_failure() {
    let panics = Fake {
        admit: Some(Box::new(|_| std::panic::resume_unwind(Box::new("oh")))),
        ..Fake::named("a")
    };
    let refused = admit(&chain(vec![panics.entry()]).0, facts()).expect_err("closed");
    let failure = refused.failure.expect("it failed");
    assert_eq!((failure.kind, failure.message.as_str()), (FailureKind::Trap, "it panicked: oh"));
}

#[test]
fn a_repeated_admission_comes_without_the_note_of_another_request() {
    let broken = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let breaks = Arc::clone(&broken);
    let answer = move |_| match breaks.load(std::sync::atomic::Ordering::Relaxed) {
        false => let_in(Admission {
            note: "reservation 1".into(),
            proposal: PlanProposal { tokens_max: Some(5), ..PlanProposal::default() },
            ..Admission::default()
        }),
        true => Err(failure(FailureKind::Trap)),
    };
    let fake = Fake { admit: Some(Box::new(answer)), ..Fake::named("a") };
    let told = Arc::clone(&fake.told);
    let action = FailureAction::LastGood(std::time::Duration::from_secs(60));
    let (chain, _) = chain(vec![failing(fake, action)]);
    drop(admit(&chain, facts()).expect("it admits"));
    broken.store(true, std::sync::atomic::Ordering::Relaxed);
    let again = admit(&chain, Facts { serial: 8, ..facts() }).expect("as before");
    assert_eq!(again.admitted.tokens_max(), 5);
    drop(again);
    let notes: Vec<_> = told.accounts.lock().unwrap().iter().map(|line| line.1.clone()).collect();
    assert_eq!(notes, ["reservation 1", ""]);
}

#[test]
fn a_reason_that_was_not_declared_makes_no_series_of_its_own() {
    let odd = |code: &str| let_in(Admission { code: Code::from(code), ..Admission::default() });
    let entries = vec![
        Fake::admitting("a", odd("known")).entry(),
        Fake::admitting("b", odd("user_12345")).entry(),
    ];
    let (chain, registry) = chain(entries);
    let outcome = admit(&chain, facts()).expect("both admit");
    let codes: Vec<_> =
        outcome.decisions.iter().map(|decision| decision.code().unwrap().0.as_ref()).collect();
    assert_eq!(codes, ["known", "user_12345"], "the log has it");
    counts(&registry, r#"policy_reasons_total{code="known",phase="admit",policy="a"} 1"#);
    counts(&registry, r#"policy_reasons_total{code="__other__",phase="admit",policy="b"} 1"#);
    assert!(!registry.expose().unwrap().contains("user_12345"));
}

#[test]
fn a_shadow_that_would_have_changed_the_plan_or_said_no_is_counted() {
    let entries = vec![
        shadow(Fake::admitting("no", Ok(Decision::Reject(rejection(429))))),
        shadow(Fake::admitting("tighter", wish(Priority::Sheddable))),
        shadow(Fake::admitting("same", wish(Priority::Interactive))),
        Fake::admitting("a", wish(Priority::Standard)).entry(),
    ];
    let (chain, registry) = chain(entries);
    let outcome = admit(&chain, facts()).expect("shadows decide nothing");
    assert_eq!(outcome.admitted.plan().priority, Priority::Standard);
    for (policy, count) in [("no", 1), ("tighter", 1), ("same", 0)] {
        let line = format!(
            r#"policy_shadow_disagreements_total{{phase="admit",policy="{policy}"}} {count}"#
        );
        counts(&registry, &line);
    }
}

#[test]
fn a_new_generation_in_the_shadow_of_the_old_is_compared_with_that() {
    let old = || Fake::admitting("p", wish(Priority::Batch));
    let (looser, same) = (
        Fake::admitting("p", wish(Priority::Standard)),
        Fake::admitting("p", wish(Priority::Batch)),
    );
    for (new, count) in [(looser, 1), (same, 0)] {
        let entry = successor(old(), new);
        let (chain, registry) = chain(vec![entry]);
        let outcome = admit(&chain, facts()).expect("both admit");
        assert_eq!(outcome.admitted.plan().priority, Priority::Batch, "the old one decides");
        let line =
            format!(r#"policy_shadow_disagreements_total{{phase="admit",policy="p"}} {count}"#);
        counts(&registry, &line);
    }
}

#[test]
fn without_policies_the_ceilings_are_the_plan() {
    let outcome = admit(&chain(vec![]).0, facts()).expect("nobody objects");
    let limits = LimitsConfig::default();
    assert_eq!(
        outcome.admitted.plan().deadlines,
        Deadlines {
            queue: Some(limits.queue_max),
            first_token: Some(limits.first_token_max),
            inter_token: Some(limits.inter_token_max),
            total: Some(limits.total_max),
        }
    );
}

#[test]
fn the_shadow_of_one_that_rejects_is_asked_too() {
    let no = || Fake::admitting("p", Ok(Decision::Reject(rejection(429))));
    for (new, count) in [(Fake::admitting("p", wish(Priority::Batch)), 1), (no(), 0)] {
        let (chain, registry) = chain(vec![successor(no(), new)]);
        let refused = admit(&chain, facts()).expect_err("the old one decides");
        assert_eq!(refused.rejection.status, 429);
        let line =
            format!(r#"policy_shadow_disagreements_total{{phase="admit",policy="p"}} {count}"#);
        counts(&registry, &line);
    }
}

/// It hangs, and the request neither notices nor ends before it has heard of everything, in order.
#[test]
fn nothing_waits_for_a_slow_policy_in_shadow() {
    let registry = interlock_metrics::Registry::new();
    let shared = ChainShared::new(PolicyMetrics::register(&registry));
    let (go, gone) = mpsc::sync_channel::<()>(1);
    let (gone, notes) = (Mutex::new(gone), Arc::new(Mutex::new(vec![])));
    let told_of = Arc::clone(&notes);
    let new = Fake {
        slow: true,
        admit: Some(Box::new(move |_| {
            let _ = gone.lock().unwrap().recv();
            let_in(Admission { note: "mine".into(), ..Admission::default() })
        })),
        watch: Watch {
            events: EventSet { first_token: true, ..EventSet::default() },
            ..Watch::default()
        },
        event: Some(Box::new(move |(_, note)| {
            told_of.lock().unwrap().push(note);
            Ok(Reaction::Cancel(rejection(429).reason))
        })),
        ..Fake::named("p")
    };
    let told = Arc::clone(&new.told);
    let entries = vec![successor(Fake::admitting("p", wish(Priority::Batch)), new)];
    let mut outcome = outcome_with(entries, shared.clone());
    assert_eq!(outcome.decisions.len(), 1, "only the old one's word is waited for");
    let progress = Progress {
        at_micros: 0,
        elapsed: Duration::ZERO,
        since_token: None,
        usage: Usage::default(),
    };
    let result = crate::at_once(outcome.session.event(Event::FirstToken, progress));
    assert_eq!(result, crate::EventOutcome::default());
    drop(outcome);
    assert_eq!(told.closings(), [""; 0]);
    drop(go);
    assert_eq!(shared.drain(Duration::from_secs(60)), 0);
    assert_eq!(*notes.lock().unwrap(), ["mine"]);
    let accounts = told.accounts.lock().unwrap().clone();
    assert_eq!(accounts.iter().map(|(_, note, _)| note.as_str()).collect::<Vec<_>>(), ["mine"]);
    assert_eq!(told.forgotten(), [SERIAL]);
    for phase in ["admit", "events"] {
        let line = format!(r#"policy_shadow_disagreements_total{{phase="{phase}",policy="p"}} 1"#);
        counts(&registry, &line);
    }
}
