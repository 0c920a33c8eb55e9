//! What an operator may set, and what holds when nobody did.

use interlock_policy_sdk::{DisconnectAction, DrainLimits, Endpoint, Priority, Span};
use serde::Deserialize;

/// `[policy.settings]`.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Settings {
    /// From admission to the first pass.
    pub(crate) queue: Growing,
    /// From admission to the first token, the queue included.
    pub(crate) first_token: Growing,
    /// From one token to the next.
    pub(crate) inter_token: Growing,
    /// From admission to the end.
    pub(crate) total: Growing,
    /// Requests whose client wants tokens as they come.
    pub(crate) streaming: Class,
    /// Requests whose client waits for the whole answer.
    pub(crate) whole: Class,
    /// How urgent the requests of an endpoint are, whatever their class says.
    pub(crate) priority: ByEndpoint,
}

/// A time that grows with the request.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Growing {
    /// For every request.
    pub(crate) base: Span,
    /// On top, for each token of the prompt.
    #[serde(default)]
    pub(crate) per_prompt_token: Span,
    /// On top, for each token that it may generate.
    #[serde(default)]
    pub(crate) per_output_token: Span,
}

/// What holds for a class of requests.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Class {
    /// How urgent they are; not set leaves it to others.
    pub(crate) priority: Option<Urgency>,
    /// What happens when the client leaves.
    pub(crate) on_disconnect: OnDisconnect,
}

/// Priorities of endpoints; not set leaves it to the class.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ByEndpoint {
    chat: Option<Urgency>,
    completions: Option<Urgency>,
    responses: Option<Urgency>,
}

/// `"cancel"`, or `{ drain = { max_time = "10s", max_tokens = 256 } }`.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OnDisconnect {
    /// Stop at once: nobody will read the rest.
    #[default]
    Cancel,
    /// Go on within limits, so that usage is whole.
    Drain(Drain),
}

/// Whichever is met first.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Drain {
    pub(crate) max_time: Span,
    pub(crate) max_tokens: u32,
}

// So generous that they end nothing healthy on the slowest machine that we know of: a model of
// 135M parameters on two CPU cores prefills 200 tokens per second and generates 10 to 30, alone.
// Ten times that is what a token gets; a batch of eight is among the reasons.
impl Default for Settings {
    fn default() -> Self {
        let seconds = |base| Growing {
            base: Span::from_secs(base),
            per_prompt_token: Span::ZERO,
            per_output_token: Span::ZERO,
        };
        let per_prompt_token = Span::from_millis(50);
        Self {
            // How long a queue takes depends on the others in it, not on this request.
            queue: seconds(300),
            first_token: Growing { per_prompt_token, ..seconds(360) },
            // Not the time of a token but of a stall: a pass over someone else's prompt may lie
            // between two of ours.
            inter_token: seconds(60),
            total: Growing {
                per_prompt_token,
                per_output_token: Span::from_secs(1),
                ..seconds(420)
            },
            streaming: Class::default(),
            whole: Class::default(),
            priority: ByEndpoint::default(),
        }
    }
}

impl Settings {
    /// Every problem, as key, relation, value.
    pub(crate) fn problems(&self) -> Vec<String> {
        let times = [
            ("queue", self.queue),
            ("first_token", self.first_token),
            ("inter_token", self.inter_token),
            ("total", self.total),
        ];
        let mut problems: Vec<String> = times
            .iter()
            .filter(|(_, time)| time.base == Span::ZERO)
            .map(|(key, _)| format!("{key}.base must exceed 0s, got 0s"))
            .collect();
        for (key, class) in [("streaming", self.streaming), ("whole", self.whole)] {
            if let OnDisconnect::Drain(drain) = class.on_disconnect {
                if drain.max_time == Span::ZERO {
                    problems
                        .push(format!("{key}.on_disconnect.drain.max_time must exceed 0s, got 0s"));
                }
                if drain.max_tokens == 0 {
                    problems
                        .push(format!("{key}.on_disconnect.drain.max_tokens must exceed 0, got 0"));
                }
            }
        }
        problems
    }
}

impl ByEndpoint {
    pub(crate) fn of(&self, endpoint: Endpoint) -> Option<Urgency> {
        match endpoint {
            Endpoint::Chat => self.chat,
            Endpoint::Completions => self.completions,
            Endpoint::Responses => self.responses,
        }
    }
}

impl OnDisconnect {
    pub(crate) fn action(self) -> DisconnectAction {
        match self {
            Self::Cancel => DisconnectAction::Cancel,
            Self::Drain(drain) => DisconnectAction::Drain(DrainLimits {
                max_time: drain.max_time.micros,
                max_tokens: drain.max_tokens,
            }),
        }
    }
}

/// How a priority is written.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Urgency {
    Critical,
    Interactive,
    Standard,
    Batch,
    Sheddable,
}

impl From<Urgency> for Priority {
    fn from(urgency: Urgency) -> Self {
        match urgency {
            Urgency::Critical => Self::Critical,
            Urgency::Interactive => Self::Interactive,
            Urgency::Standard => Self::Standard,
            Urgency::Batch => Self::Batch,
            Urgency::Sheddable => Self::Sheddable,
        }
    }
}
