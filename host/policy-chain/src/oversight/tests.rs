use std::sync::Mutex;

use interlock_request::{Deadline, Deadlines, DisconnectAction, DrainLimits, Priority, Usage};

use super::*;
use crate::testing::{Fake, admit, chain, consent_of, facts, failure, let_in};
use crate::{FailureAction, LimitsConfig, Link, OnFailure};
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
fn hearing(
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

fn happens(oversight: &mut Oversight, event: Event) -> Reacted {
    crate::at_once(oversight.event(event, progress(0)))
}

#[test]
fn an_amendment_replaces_only_what_the_same_policy_had_said() {
    let extend = |event| match event {
        Event::TimedOut(_) => Ok(Reaction::Amend(total(100), Code::default())),
        _ => Ok(Reaction::Keep),
    };
    let guard = hearing("guard", total(10), extend);
    let other = hearing("other", total(60), |_| Ok(Reaction::Keep));
    let mut oversight = consent_of(vec![guard.link(), other.link()]).oversight;
    assert_eq!(oversight.plan().deadlines.total, Some(seconds(10)));
    let reacted = happens(&mut oversight, Event::TimedOut(Deadline::Total));
    assert!(reacted.plan_changed && reacted.cancel.is_none());
    assert_eq!(oversight.plan().deadlines.total, Some(seconds(60)), "the other's word holds");
    assert!(!happens(&mut oversight, Event::TimedOut(Deadline::Total)).plan_changed);
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
    let (chain, _) = chain(vec![hearing("p", total(1), wish).link()]);
    let identity = Identity { priority: Some(Priority::Batch), ..Identity::default() };
    let consent = admit(&chain, Facts { identity, ..facts() }).expect("it admits");
    let mut oversight = consent.oversight;
    happens(&mut oversight, Event::FirstToken);
    assert_eq!(oversight.plan().deadlines.total, Some(most.total_max));
    assert_eq!(oversight.plan().priority, Priority::Batch);
    let limits = DrainLimits { time_max: most.detach_time_max, tokens_max: most.detach_tokens_max };
    assert_eq!(oversight.plan().on_disconnect, DisconnectAction::Detach(limits));
}

#[test]
fn another_disconnect_action_leaves_the_rest_of_the_plan_alone() {
    let drain = DrainLimits { time_max: seconds(1), tokens_max: 5 };
    let react = move |_| Ok(Reaction::Disconnect(DisconnectAction::Drain(drain), Code::default()));
    let mut oversight = consent_of(vec![hearing("p", total(10), react).link()]).oversight;
    assert_eq!(oversight.plan().on_disconnect, DisconnectAction::Cancel);
    assert!(happens(&mut oversight, Event::Disconnected).plan_changed);
    assert_eq!(oversight.plan().on_disconnect, DisconnectAction::Drain(drain));
    assert_eq!(oversight.plan().deadlines.total, Some(seconds(10)));
}

#[test]
fn the_first_to_cancel_ends_the_matter() {
    let reason = Reason { code: Code::from("too_long"), detail: None };
    let cancel = {
        let reason = reason.clone();
        move |_| Ok(Reaction::Cancel(reason.clone()))
    };
    let second = hearing("b", total(1), |_| unreachable!("a had cancelled"));
    let links = vec![hearing("a", total(1), cancel).link(), second.link()];
    let mut oversight = consent_of(links).oversight;
    let reacted = happens(&mut oversight, Event::FirstToken);
    assert_eq!(reacted.cancel, Some(Cancelled { policy: "a".into(), reason, failed: None }));
    assert_eq!(reacted.said.len(), 1);
}

#[test]
fn who_fails_is_passed_over_unless_the_operator_wants_the_request_to_end() {
    let trap = || hearing("p", total(1), |_| Err(failure(FailureKind::Deadline)));
    let mut open = consent_of(vec![trap().link()]).oversight;
    assert_eq!(happens(&mut open, Event::FirstToken).cancel, None);
    let closed = OnFailure { events: FailureAction::UNAVAILABLE, ..OnFailure::default() };
    let mut closed = consent_of(vec![Link::new(Arc::new(trap()), closed)]).oversight;
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
        event: Some(Box::new(move |heard| {
            tells.lock().unwrap().push(heard);
            Ok(Reaction::Keep)
        })),
        ..Fake::admitting("p", let_in(admission))
    };
    let mut oversight = consent_of(vec![fake.link()]).oversight;
    assert_eq!(oversight.watch(), watch);
    happens(&mut oversight, Event::Dispatched);
    happens(&mut oversight, Event::FirstToken);
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
    let links = vec![watching("patient", 5).link(), watching("hasty", 2).link()];
    let mut oversight = consent_of(links).oversight;
    let stall = |oversight: &mut Oversight, tokens, pause: f64| {
        let pause = Duration::from_secs_f64(pause);
        crate::at_once(oversight.event(Event::Stalled(pause), progress(tokens)));
        std::mem::take(&mut *told.lock().unwrap())
    };
    assert_eq!(oversight.watch().stalled_after, Some(seconds(2)));
    assert_eq!(oversight.stalled_after(0), Some(seconds(2)));
    assert_eq!(stall(&mut oversight, 0, 2.1), ["hasty"]);
    assert_eq!(oversight.stalled_after(0), Some(seconds(5)));
    assert_eq!(stall(&mut oversight, 0, 5.1), ["patient"]);
    assert_eq!(oversight.stalled_after(0), None);
    // A token came; this is another silence.
    assert_eq!(oversight.stalled_after(1), Some(seconds(2)));
    assert_eq!(stall(&mut oversight, 1, 6.0), ["patient", "hasty"]);
}

#[test]
fn a_shadow_hears_and_changes_nothing() {
    let cancel = |_| Ok(Reaction::Cancel(Reason { code: Code::from("no"), detail: None }));
    let mut link = hearing("p", total(1), cancel).link();
    link.mode = crate::PolicyMode::Shadow;
    let (chain, registry) = chain(vec![link]);
    let mut oversight = admit(&chain, facts()).expect("a shadow").oversight;
    let before = *oversight.plan();
    assert_eq!(before.deadlines.total, Some(LimitsConfig::default().total_max));
    let reacted = happens(&mut oversight, Event::FirstToken);
    assert_eq!((reacted.cancel, *oversight.plan()), (None, before));
    let text = registry.expose().unwrap();
    for phase in ["admit", "events"] {
        let line = format!(r#"policy_shadow_disagreements_total{{phase="{phase}",policy="p"}} 1"#);
        assert!(text.contains(&line), "{line} in\n{text}");
    }
}
