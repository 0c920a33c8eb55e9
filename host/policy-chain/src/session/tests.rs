use std::sync::Mutex;

use interlock_request::{Deadline, Deadlines, DisconnectAction, DrainLimits, Priority, Usage};

use super::*;
use crate::testing::{Fake, admit, chain, facts, failure, let_in, outcome_of};
use crate::{ChainEntry, FailureAction, LimitsConfig, OnFailure};
use interlock_policy_api::{Admission, Answer, FailureKind, Identity};

const ALL: EventSet = EventSet {
    queued: true,
    dispatched: true,
    first_token: true,
    stalled: true,
    timed_out: true,
    disconnected: true,
    preempted: true,
};

const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn total(n: u64) -> PlanProposal {
    let deadlines = Deadlines { total: Some(seconds(n)), ..Deadlines::default() };
    PlanProposal { deadlines, ..PlanProposal::default() }
}

fn progress(generated_tokens: u32) -> Progress {
    Progress {
        at_micros: 0,
        elapsed: Duration::ZERO,
        since_token: None,
        usage: Usage { generated_tokens, ..Usage::default() },
    }
}

/// Proposes this and answers each event like this.
fn reacting(
    name: &'static str,
    proposal: PlanProposal,
    react: impl Fn(Event) -> Answer<Reaction> + Send + Sync + 'static,
) -> Fake {
    Fake {
        watch: Watch { events: ALL, ..Watch::default() },
        event: Some(Box::new(move |(event, _)| react(event))),
        ..Fake::admitting(name, let_in(Admission { proposal, ..Admission::default() }))
    }
}

fn happens(session: &mut PolicySession, event: Event) -> EventOutcome {
    crate::at_once(session.event(event, progress(0)))
}

#[test]
fn an_amendment_replaces_only_what_the_same_policy_had_said() {
    let extend = |event| match event {
        Event::TimedOut(_) => Ok(Reaction::Amend(total(100), Code::default())),
        _ => Ok(Reaction::Keep),
    };
    let guard = reacting("guard", total(10), extend);
    let other = reacting("other", total(60), |_| Ok(Reaction::Keep));
    let mut session = outcome_of(vec![guard.entry(), other.entry()]).session;
    assert_eq!(session.plan().deadlines.total, Some(seconds(10)));
    let result = happens(&mut session, Event::TimedOut(Deadline::Total));
    assert!(result.plan_changed && result.cancel.is_none());
    assert_eq!(session.plan().deadlines.total, Some(seconds(60)), "the other's word holds");
    assert!(!happens(&mut session, Event::TimedOut(Deadline::Total)).plan_changed);
}

#[test]
fn no_amendment_exceeds_the_ceilings_or_the_callers_bound() {
    let most = LimitsConfig::default();
    let wish = move |_| {
        let plan = PlanProposal {
            priority: Some(Priority::Critical),
            on_disconnect: Some(DisconnectAction::Detach(DrainLimits {
                time_max: Duration::MAX,
                tokens_max: u32::MAX,
            })),
            ..total(1 << 40)
        };
        Ok(Reaction::Amend(plan, Code::default()))
    };
    let (chain, _) = chain(vec![reacting("p", total(1), wish).entry()]);
    let identity = Identity { priority: Some(Priority::Batch), ..Identity::default() };
    let outcome = admit(&chain, Facts { identity, ..facts() }).expect("it admits");
    let mut session = outcome.session;
    happens(&mut session, Event::FirstToken);
    assert_eq!(session.plan().deadlines.total, Some(most.total_max));
    assert_eq!(session.plan().priority, Priority::Batch);
    let limits = DrainLimits { time_max: most.detach_time_max, tokens_max: most.detach_tokens_max };
    assert_eq!(session.plan().on_disconnect, DisconnectAction::Detach(limits));
}

#[test]
fn another_disconnect_action_leaves_the_rest_of_the_plan_alone() {
    let drain = DrainLimits { time_max: seconds(1), tokens_max: 5 };
    let react = move |_| Ok(Reaction::Disconnect(DisconnectAction::Drain(drain), Code::default()));
    let mut session = outcome_of(vec![reacting("p", total(10), react).entry()]).session;
    assert_eq!(session.plan().on_disconnect, DisconnectAction::Cancel);
    assert!(happens(&mut session, Event::Disconnected).plan_changed);
    assert_eq!(session.plan().on_disconnect, DisconnectAction::Drain(drain));
    assert_eq!(session.plan().deadlines.total, Some(seconds(10)));
}

#[test]
fn the_first_to_cancel_ends_the_matter() {
    let reason = Reason { code: Code::from("too_long"), detail: None };
    let cancel = {
        let reason = reason.clone();
        move |_| Ok(Reaction::Cancel(reason.clone()))
    };
    let second = reacting("b", total(1), |_| unreachable!("a had cancelled"));
    let entries = vec![reacting("a", total(1), cancel).entry(), second.entry()];
    let mut session = outcome_of(entries).session;
    let result = happens(&mut session, Event::FirstToken);
    assert_eq!(result.cancel, Some(CancelledByPolicy { policy: "a".into(), reason, failed: None }));
    assert_eq!(result.decisions.len(), 1);
}

#[test]
fn who_fails_is_passed_over_unless_the_operator_wants_the_request_to_end() {
    let trap = || reacting("p", total(1), |_| Err(failure(FailureKind::Deadline)));
    let mut open = outcome_of(vec![trap().entry()]).session;
    assert_eq!(happens(&mut open, Event::FirstToken).cancel, None);
    let closed = OnFailure { events: FailureAction::UNAVAILABLE, ..OnFailure::default() };
    let mut closed = outcome_of(vec![ChainEntry::new(Arc::new(trap()), closed)]).session;
    let cancel = happens(&mut closed, Event::FirstToken).cancel.expect("closed");
    assert_eq!(&*cancel.reason.code.0, "policy_failed");
}

#[test]
fn only_what_is_watched_is_told_and_the_note_comes_back() {
    let told = Arc::new(Mutex::new(vec![]));
    let tells = Arc::clone(&told);
    let watch =
        Watch { events: EventSet { first_token: true, ..EventSet::default() }, ..Watch::default() };
    let admission = Admission { watch: Some(watch), note: "noted".into(), ..Admission::default() };
    let fake = Fake {
        event: Some(Box::new(move |outcome| {
            tells.lock().unwrap().push(outcome);
            Ok(Reaction::Keep)
        })),
        ..Fake::admitting("p", let_in(admission))
    };
    let mut session = outcome_of(vec![fake.entry()]).session;
    assert_eq!(session.watch(), watch);
    happens(&mut session, Event::Dispatched);
    happens(&mut session, Event::FirstToken);
    assert_eq!(*told.lock().unwrap(), [(Event::FirstToken, "noted".to_owned())]);
}

#[test]
fn each_policy_hears_of_a_silence_once_when_it_is_long_enough_for_it() {
    let told = Arc::new(Mutex::new(vec![]));
    let watching = |name: &'static str, after| {
        let told = Arc::clone(&told);
        let events = EventSet { stalled: true, ..EventSet::default() };
        Fake {
            watch: Watch { events, stalled_after: Some(seconds(after)), ..Watch::default() },
            event: Some(Box::new(move |_| {
                told.lock().unwrap().push(name);
                Ok(Reaction::Keep)
            })),
            ..Fake::named(name)
        }
    };
    let entries = vec![watching("patient", 5).entry(), watching("hasty", 2).entry()];
    let mut session = outcome_of(entries).session;
    let stall = |session: &mut PolicySession, tokens, pause: f64| {
        let pause = Duration::from_secs_f64(pause);
        crate::at_once(session.event(Event::Stalled(pause), progress(tokens)));
        std::mem::take(&mut *told.lock().unwrap())
    };
    assert_eq!(session.watch().stalled_after, Some(seconds(2)));
    assert_eq!(session.stalled_after(0), Some(seconds(2)));
    assert_eq!(stall(&mut session, 0, 2.1), ["hasty"]);
    assert_eq!(session.stalled_after(0), Some(seconds(5)));
    assert_eq!(stall(&mut session, 0, 5.1), ["patient"]);
    assert_eq!(session.stalled_after(0), None);
    // A token came; this is another silence.
    assert_eq!(session.stalled_after(1), Some(seconds(2)));
    assert_eq!(stall(&mut session, 1, 6.0), ["patient", "hasty"]);
}

#[test]
fn a_shadow_hears_and_changes_nothing() {
    let cancel = |_| Ok(Reaction::Cancel(Reason { code: Code::from("no"), detail: None }));
    let mut entry = reacting("p", total(1), cancel).entry();
    entry.mode = crate::PolicyMode::Shadow;
    let (chain, registry) = chain(vec![entry]);
    let mut session = admit(&chain, facts()).expect("a shadow").session;
    let before = *session.plan();
    assert_eq!(before.deadlines.total, Some(LimitsConfig::default().total_max));
    let result = happens(&mut session, Event::FirstToken);
    assert_eq!((result.cancel, *session.plan()), (None, before));
    let text = registry.expose().unwrap();
    for phase in ["admit", "events"] {
        let line = format!(r#"policy_shadow_disagreements_total{{phase="{phase}",policy="p"}} 1"#);
        assert!(text.contains(&line), "{line} in\n{text}");
    }
}
