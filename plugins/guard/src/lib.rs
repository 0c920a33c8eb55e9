//! The policy that every host starts with: deadlines that grow with the work, and what to do
//! when a client leaves. README.md says what it decides and which settings it has.
//!
//! # Not here
//!
//! No rules of its own but priorities: those are `guard-rules`, which it shares with `timeouts` and
//! `disconnect-guard`. No rejections: what does not fit is the host's own affair (a full house, a context that is
//! too short). No memory of requests, so nothing to account for.

mod settings;

use interlock_policy_sdk as sdk;
use sdk::{Admit, Decision, Event, Events, Load, Policy, Progress, Reaction, RequestFacts, Watch};

use crate::settings::Settings;

sdk::reasons! {
    /// Why guard decides.
    enum Reason {
        /// It lets everyone in, under a plan.
        Planned,
        /// Its time was up and it goes on: tokens still flow.
        Extended,
    }
}

struct Guard {
    settings: Settings,
}

impl Policy for Guard {
    type Settings = Settings;
    type Reason = Reason;

    fn new(settings: Settings) -> Result<Self, String> {
        match settings.problems() {
            problems if problems.is_empty() => Ok(Self { settings }),
            problems => Err(problems.join("; ")),
        }
    }

    fn watch(&self) -> Watch {
        self.settings.deadlines().watch()
    }
}

impl Admit for Guard {
    fn admit(&self, request: &RequestFacts, _: &Load) -> Decision {
        let timeouts = self.settings.deadlines().timeouts(request);
        sdk::admit(Reason::Planned).plan(self.settings.plan(request, timeouts)).into()
    }
}

impl Events for Guard {
    fn on_event(&self, request: &RequestFacts, event: &Event, progress: &Progress) -> Reaction {
        let Event::TimedOut(timeout) = event else { return Reaction::Keep };
        match self.settings.deadlines().extended(request, *timeout, progress) {
            Some(timeouts) => sdk::amend(self.settings.plan(request, timeouts), Reason::Extended),
            None => Reaction::Keep,
        }
    }
}

sdk::export!(Guard: admit, events; schema "settings.schema.json");

#[cfg(test)]
mod tests {
    use sdk::testing::{Host, idle};
    use sdk::{DisconnectAction, Endpoint, Plan, Priority, Span, Timeouts};
    use serde_json::{Value, json};

    use super::*;

    fn plan(settings: Value, request: &RequestFacts) -> Plan {
        let policy = Host::new().begin::<Guard>(settings).expect("these are settings");
        let Decision::Admit(admission) = policy.admit(request, &idle()) else {
            panic!("it lets everyone in")
        };
        admission.plan
    }

    fn chat() -> RequestFacts {
        RequestFacts {
            endpoint: Endpoint::Chat,
            streaming: true,
            prompt_tokens: 100,
            max_tokens: 50,
            ..Host::new().request()
        }
    }

    const SECOND: u64 = 1_000_000;

    /// Without settings, for [`chat`].
    const TIMEOUTS: Timeouts = Timeouts {
        queue: Some(300 * SECOND),
        first_token: Some(365 * SECOND),
        inter_token: Some(60 * SECOND),
        total: Some(475 * SECOND),
    };

    #[test]
    fn without_settings_it_sets_all_deadlines_and_cancels_what_nobody_reads() {
        let expected = Plan {
            timeouts: TIMEOUTS,
            on_disconnect: Some(DisconnectAction::Cancel),
            ..Plan::default()
        };
        assert_eq!(plan(json!({}), &chat()), expected);
        assert_eq!(plan(json!({}), &RequestFacts { streaming: false, ..chat() }), expected);
    }

    #[test]
    fn a_setting_replaces_its_default_and_leaves_the_others() {
        let settings = json!({
            "total": {"base": "1s", "per_output_token": "20ms"},
            "streaming": {"priority": "interactive"},
        });
        let expected = Plan {
            priority: Some(Priority::Interactive),
            timeouts: Timeouts { total: Some(2 * SECOND), ..TIMEOUTS },
            on_disconnect: Some(DisconnectAction::Cancel),
            max_tokens: None,
        };
        assert_eq!(plan(settings, &chat()), expected);
    }

    #[test]
    fn each_setting_can_be_left_to_others() {
        let settings = json!({
            "queue": {}, "first_token": {}, "inter_token": {}, "total": {},
            "streaming": {"on_disconnect": "abstain"},
        });
        assert_eq!(plan(settings, &chat()), Plan::default());
        let settings = json!({"total": {}});
        let timeouts = Timeouts { total: None, ..TIMEOUTS };
        assert_eq!(plan(settings, &chat()).timeouts, timeouts);
    }

    #[test]
    fn an_endpoint_has_the_last_word_on_priority() {
        let settings = json!({
            "streaming": {"priority": "interactive"},
            "priority": {"completions": "batch"},
        });
        let priority = |request| plan(settings.clone(), &request).priority;
        assert_eq!(priority(chat()), Some(Priority::Interactive));
        let completions = RequestFacts { endpoint: Endpoint::Completions, ..chat() };
        assert_eq!(priority(completions), Some(Priority::Batch));
        assert_eq!(priority(RequestFacts { streaming: false, ..chat() }), None);
    }

    #[test]
    fn a_request_in_the_background_has_a_class_and_no_client_that_could_leave() {
        let background = RequestFacts { background: true, streaming: false, ..chat() };
        let settings = json!({"background": {"priority": "batch"}});
        let expected =
            Plan { priority: Some(Priority::Batch), timeouts: TIMEOUTS, ..Plan::default() };
        assert_eq!(plan(settings, &background), expected);
        let settings = json!({"background": {"on_disconnect": "cancel"}});
        let why = Host::new().begin::<Guard>(settings).err().expect("it has no such key");
        let said = "background: unknown field `on_disconnect`, expected `priority`";
        assert_eq!(why, said);
    }

    #[test]
    fn more_time_comes_with_the_rest_of_the_plan() {
        let settings = json!({
            "extend": {"total": {"by": "30s", "since_token": "2s"}},
            "streaming": {"on_disconnect": {"drain": {"max_time": "5s", "max_tokens": 64}}},
        });
        let policy = Host::new().begin::<Guard>(settings).expect("these are settings");
        let progress = Progress {
            since_token: Some(SECOND),
            ..Host::new().progress(Span::from_secs(475), 40)
        };
        let struck = Event::TimedOut(sdk::Timeout::Total);
        let expected = Plan {
            timeouts: Timeouts { total: Some(505 * SECOND), ..TIMEOUTS },
            on_disconnect: Some(DisconnectAction::drain(Span::from_secs(5), 64)),
            ..Plan::default()
        };
        let reaction = policy.on_event(&chat(), &struck, &progress);
        assert_eq!(reaction, sdk::amend(expected, Reason::Extended));
    }

    #[test]
    fn settings_that_make_no_sense_are_refused_by_key_and_together() {
        let drain = json!({"drain": {"max_time": "1s", "max_tokens": 0}});
        let settings = json!({"queue": {"base": "0s"}, "whole": {"on_disconnect": drain}});
        let why = Host::new().begin::<Guard>(settings).err().expect("two are wrong");
        assert_eq!(
            why,
            "queue.base must exceed 0s, got 0s; queue = {} leaves it to other policies and to \
             [limits]; whole.on_disconnect.drain.max_tokens must exceed 0, got 0"
        );
        assert!(Settings::default().problems().is_empty());
    }
}
