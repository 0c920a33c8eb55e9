//! How long the parts of a request may take, and nothing else. README.md says which settings it has.
//!
//! # Not here
//!
//! No rules: those are `guard-rules`, which this shares with `guard`. No defaults: what is not set
//! is left to other policies and to the operator's `[limits]`.

use guard_rules::Deadlines;
use interlock_policy_sdk as sdk;
use sdk::{
    Admit, Decision, Event, Events, Load, Plan, Policy, Progress, Reaction, RequestFacts, Watch,
};

sdk::reasons! {
    /// Why timeouts decides.
    enum Reason {
        /// It lets everyone in, under its deadlines.
        Planned,
        /// A deadline struck, and the request goes on.
        Extended,
    }
}

struct Timeouts {
    deadlines: Deadlines,
}

impl Policy for Timeouts {
    type Settings = Deadlines;
    type Reason = Reason;

    fn new(deadlines: Deadlines) -> Result<Self, String> {
        match deadlines.problems() {
            problems if problems.is_empty() => Ok(Self { deadlines }),
            problems => Err(problems.join("; ")),
        }
    }

    fn watch(&self) -> Watch {
        self.deadlines.watch()
    }
}

impl Admit for Timeouts {
    fn admit(&self, request: &RequestFacts, _: &Load) -> Decision {
        sdk::admit(Reason::Planned).plan(plan(self.deadlines.timeouts(request))).into()
    }
}

impl Events for Timeouts {
    fn on_event(&self, request: &RequestFacts, event: &Event, progress: &Progress) -> Reaction {
        let Event::TimedOut(timeout) = event else { return Reaction::Keep };
        match self.deadlines.extended(request, *timeout, progress) {
            Some(timeouts) => sdk::amend(plan(timeouts), Reason::Extended),
            None => Reaction::Keep,
        }
    }
}

fn plan(timeouts: sdk::Timeouts) -> Plan {
    Plan { timeouts, ..Plan::default() }
}

sdk::export!(Timeouts: admit, events; schema "settings.schema.json");

#[cfg(test)]
mod tests {
    use sdk::testing::{Host, idle};
    use sdk::{EventSet, Span, Timeout};
    use serde_json::json;

    use super::*;

    fn admitted(policy: &Timeouts) -> Plan {
        let Decision::Admit(admission) = policy.admit(&Host::new().request(), &idle()) else {
            panic!("it lets everyone in")
        };
        admission.plan
    }

    #[test]
    fn it_says_the_deadlines_that_are_set_and_nothing_else() {
        let settings = json!({"queue": {"base": "5s"}, "total": {}});
        let policy = Host::new().begin::<Timeouts>(settings).expect("these are settings");
        let timeouts = sdk::Timeouts { queue: Some(5_000_000), ..sdk::Timeouts::default() };
        assert_eq!(admitted(&policy), plan(timeouts));
        let policy = Host::new().begin::<Timeouts>(json!({})).expect("nothing must be set");
        assert_eq!(admitted(&policy), Plan::default());
    }

    #[test]
    fn a_deadline_that_it_extends_it_watches() {
        let extend = json!({"total": {"by": "30s", "since_token": "2s"}});
        let settings = json!({"total": {"base": "60s"}, "extend": extend});
        let policy = Host::new().begin::<Timeouts>(settings).expect("these are settings");
        assert_eq!(policy.watch().events, EventSet::TIMED_OUT);
        let progress = Progress {
            since_token: Some(1_000_000),
            ..Host::new().progress(Span::from_secs(60), 40)
        };
        let struck = Event::TimedOut(Timeout::Total);
        let total = Some(90_000_000);
        assert_eq!(
            policy.on_event(&Host::new().request(), &struck, &progress),
            sdk::amend(plan(sdk::Timeouts { total, ..sdk::Timeouts::default() }), Reason::Extended)
        );
        let hard = Host::new().begin::<Timeouts>(json!({"total": {"base": "60s"}}));
        assert_eq!(hard.expect("these are settings").watch().events, EventSet::empty());
    }

    #[test]
    fn settings_that_make_no_sense_are_refused_by_key() {
        let settings = json!({"total": {"base": "0s"}, "extend": {"first_token": {"by": "1s", "until": "9s"}}});
        let why = Host::new().begin::<Timeouts>(settings).err().expect("two are wrong");
        assert!(why.contains("total.base") && why.contains("extend.first_token"), "{why}");
    }
}
