//! What becomes of a request whose client leaves.

use interlock_policy_sdk::{DisconnectAction, RequestFacts, Span};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::zeros;

/// What becomes of a request whose client leaves, by class of requests.
///
/// Requests in the background are of neither class: they have no client that could leave.
#[derive(Debug, Clone, Copy, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Departures {
    /// Requests whose client wants tokens as they come.
    pub streaming: Departure,
    /// Requests whose client waits for the whole answer.
    pub whole: Departure,
}

/// What becomes of a request of this class whose client leaves.
#[derive(Debug, Clone, Copy, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Departure {
    /// What happens when the client leaves; not set leaves it to other policies.
    pub on_disconnect: OnDisconnect,
}

/// `"cancel"`, `{ drain = { max_time = "10s", max_tokens = 256 } }`, the same with `detach`, or
/// `"abstain"`.
#[derive(Debug, Clone, Copy, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnDisconnect {
    /// Other policies may decide. If none does, the host cancels.
    #[default]
    Abstain,
    /// Stop at once: nobody will read the rest.
    Cancel,
    /// Go on within limits, so that usage is whole.
    Drain(Within),
    /// Go on within limits and keep the answer for whoever asks for it.
    Detach(Within),
}

/// Whichever is met first.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Within {
    /// The longest time after the client left.
    pub max_time: Span,
    /// The most tokens after the client left.
    pub max_tokens: u32,
}

impl Departures {
    /// What becomes of this request when its client leaves; `None`: it is left to others.
    pub fn action(&self, request: &RequestFacts) -> Option<DisconnectAction> {
        let class = match request {
            RequestFacts { background: true, .. } => return None,
            RequestFacts { streaming: true, .. } => self.streaming,
            _ => self.whole,
        };
        match class.on_disconnect {
            OnDisconnect::Abstain => None,
            OnDisconnect::Cancel => Some(DisconnectAction::Cancel),
            OnDisconnect::Drain(Within { max_time, max_tokens }) => {
                Some(DisconnectAction::drain(max_time, max_tokens))
            }
            OnDisconnect::Detach(Within { max_time, max_tokens }) => {
                Some(DisconnectAction::detach(max_time, max_tokens))
            }
        }
    }

    /// Every problem, as key, relation, value.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = vec![];
        for (class, it) in [("streaming", self.streaming), ("whole", self.whole)] {
            let (action, Within { max_time, max_tokens }) = match it.on_disconnect {
                OnDisconnect::Abstain | OnDisconnect::Cancel => continue,
                OnDisconnect::Drain(within) => ("drain", within),
                OnDisconnect::Detach(within) => ("detach", within),
            };
            let key = format!("{class}.on_disconnect.{action}");
            if max_tokens == 0 {
                problems.push(format!("{key}.max_tokens must exceed 0, got 0"));
            }
            problems.extend(zeros([(&*format!("{key}.max_time"), max_time)]));
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use interlock_policy_sdk::testing::Host;

    use super::*;

    fn departures(json: &str) -> Departures {
        serde_json::from_str(json).expect("these are departures")
    }

    fn streaming() -> RequestFacts {
        RequestFacts { streaming: true, ..Host::new().request() }
    }

    fn whole() -> RequestFacts {
        RequestFacts { streaming: false, ..Host::new().request() }
    }

    #[test]
    fn what_a_disconnect_does_depends_on_the_class() {
        let json = r#"{
            "streaming": {"on_disconnect": {"drain": {"max_time": "5s", "max_tokens": 64}}},
            "whole": {"on_disconnect": {"detach": {"max_time": "1m", "max_tokens": 9}}}
        }"#;
        let drain = DisconnectAction::drain(Span::from_secs(5), 64);
        assert_eq!(departures(json).action(&streaming()), Some(drain));
        let detach = DisconnectAction::detach(Span::from_secs(60), 9);
        assert_eq!(departures(json).action(&whole()), Some(detach));
    }

    #[test]
    fn what_is_not_set_or_abstains_is_left_to_others() {
        let json = r#"{"streaming": {"on_disconnect": "abstain"}, "whole": {}}"#;
        assert_eq!(departures(json).action(&streaming()), None);
        assert_eq!(departures(json).action(&whole()), None);
        assert_eq!(departures("{}").action(&streaming()), None);
        let json = r#"{"whole": {"on_disconnect": "cancel"}}"#;
        assert_eq!(departures(json).action(&streaming()), None);
        assert_eq!(departures(json).action(&whole()), Some(DisconnectAction::Cancel));
    }

    #[test]
    fn of_a_request_in_the_background_nothing_is_said() {
        let json = r#"{"whole": {"on_disconnect": "cancel"}}"#;
        let background = RequestFacts { background: true, ..whole() };
        assert_eq!(departures(json).action(&background), None);
    }

    #[test]
    fn limits_that_end_a_request_at_once_are_refused_by_key() {
        let bad = departures(
            r#"{
                "streaming": {"on_disconnect": {"detach": {"max_time": "0s", "max_tokens": 1}}},
                "whole": {"on_disconnect": {"drain": {"max_time": "1s", "max_tokens": 0}}}
            }"#,
        );
        assert_eq!(
            bad.problems(),
            [
                "streaming.on_disconnect.detach.max_time must exceed 0s, got 0s",
                "whole.on_disconnect.drain.max_tokens must exceed 0, got 0",
            ]
        );
        assert!(departures("{}").problems().is_empty());
    }
}
