//! What happens to a request whose client leaves, and nothing else. README.md says what leaving is
//! and which settings it has.
//!
//! # Not here
//!
//! No rules: those are `guard-rules`, which this shares with `guard`. No defaults: what is not set
//! is left to other policies, and to the host where none says anything.

use guard_rules::Departures;
use interlock_policy_sdk as sdk;
use sdk::{Admit, Decision, Load, Plan, Policy, RequestFacts};

sdk::reasons! {
    /// Why disconnect-guard decides.
    enum Reason {
        /// It lets everyone in, and says what happens when the client leaves.
        Planned,
    }
}

struct DisconnectGuard {
    departures: Departures,
}

impl Policy for DisconnectGuard {
    type Settings = Departures;
    type Reason = Reason;

    fn new(departures: Departures) -> Result<Self, String> {
        match departures.problems() {
            problems if problems.is_empty() => Ok(Self { departures }),
            problems => Err(problems.join("; ")),
        }
    }
}

impl Admit for DisconnectGuard {
    fn admit(&self, request: &RequestFacts, _: &Load) -> Decision {
        let on_disconnect = self.departures.action(request);
        sdk::admit(Reason::Planned).plan(Plan { on_disconnect, ..Plan::default() }).into()
    }
}

sdk::export!(DisconnectGuard: admit; schema "settings.schema.json");

#[cfg(test)]
mod tests {
    use sdk::testing::{Host, idle};
    use sdk::{DisconnectAction, Span};
    use serde_json::{Value, json};

    use super::*;

    fn plan(settings: Value) -> Plan {
        let host = Host::new();
        let policy = host.begin::<DisconnectGuard>(settings).expect("these are settings");
        let request = RequestFacts { streaming: true, ..host.request() };
        let Decision::Admit(admission) = policy.admit(&request, &idle()) else {
            panic!("it lets everyone in")
        };
        admission.plan
    }

    #[test]
    fn it_says_what_follows_a_disconnect_and_nothing_else() {
        let drain = json!({"drain": {"max_time": "5s", "max_tokens": 64}});
        let on_disconnect = Some(DisconnectAction::drain(Span::from_secs(5), 64));
        assert_eq!(
            plan(json!({"streaming": {"on_disconnect": drain}})),
            Plan { on_disconnect, ..Plan::default() }
        );
        assert_eq!(plan(json!({"whole": {"on_disconnect": "cancel"}})), Plan::default());
        assert_eq!(plan(json!({})), Plan::default());
    }

    #[test]
    fn settings_that_make_no_sense_are_refused_by_key() {
        let drain = json!({"drain": {"max_time": "5s", "max_tokens": 0}});
        let settings = json!({"whole": {"on_disconnect": drain}});
        let why = Host::new().begin::<DisconnectGuard>(settings).err().expect("it is 0");
        assert_eq!(why, "whole.on_disconnect.drain.max_tokens must exceed 0, got 0");
    }
}
