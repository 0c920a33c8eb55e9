//! What an operator may set, and what holds when nobody did.

use interlock_policy_sdk::{DisconnectAction, Endpoint, Priority, RequestFacts, Span};
use schemars::JsonSchema;
use serde::Deserialize;

/// `[policy.settings]`.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Settings {
    /// From the request's head to the first pass.
    pub(crate) queue: Growing,
    /// From the request's head to the first token, the queue included.
    pub(crate) first_token: Growing,
    /// From one token to the next.
    pub(crate) inter_token: Growing,
    /// From the request's head to the end.
    pub(crate) total: Growing,
    /// When a time that struck is no end.
    pub(crate) extend: Extend,
    /// Requests whose client wants tokens as they come.
    pub(crate) streaming: Class,
    /// Requests whose client waits for the whole answer.
    pub(crate) whole: Class,
    /// Requests that nobody waits for, `background` of the Responses API.
    pub(crate) background: Class,
    /// How urgent the requests of an endpoint are, whatever their class says.
    pub(crate) priority: ByEndpoint,
}

/// A time that grows with the request.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
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

/// When a time that struck is no end; the operator's `[limits]` are one in any case.
#[derive(Debug, Clone, Copy, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Extend {
    /// More of `total` while tokens flow; not set: the time is hard.
    pub(crate) total: Option<WhileTokensFlow>,
    /// More of `first_token` while the prompt is at work; not set: the time is hard.
    pub(crate) first_token: Option<WhilePrefilling>,
}

/// More time for a request whose tokens flow.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct WhileTokensFlow {
    /// So much more, each time.
    pub(crate) by: Span,
    /// If its last token is not older than this.
    pub(crate) since_token: Span,
}

/// More time for a request whose prompt is being computed, which has no tokens to show for it.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct WhilePrefilling {
    /// So much more, each time.
    pub(crate) by: Span,
    /// Until so long after its admission.
    pub(crate) until: Span,
}

/// What holds for a class of requests.
#[derive(Debug, Clone, Copy, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Class {
    /// How urgent they are; not set leaves it to others.
    pub(crate) priority: Option<Priority>,
    /// What happens when the client leaves.
    pub(crate) on_disconnect: OnDisconnect,
}

/// Priorities of endpoints; not set leaves it to the class.
#[derive(Debug, Clone, Copy, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ByEndpoint {
    chat: Option<Priority>,
    completions: Option<Priority>,
    responses: Option<Priority>,
}

/// `"cancel"`, `{ drain = { max_time = "10s", max_tokens = 256 } }`, or the same with `detach`.
#[derive(Debug, Clone, Copy, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OnDisconnect {
    /// Stop at once: nobody will read the rest.
    #[default]
    Cancel,
    /// Go on within limits, so that usage is whole.
    Drain(Within),
    /// Go on within limits and keep the answer for whoever asks for it.
    Detach(Within),
}

/// Whichever is met first.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Within {
    /// The longest time after the client left.
    pub(crate) max_time: Span,
    /// The most tokens after the client left.
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
            // Its client left on purpose, and will ask for the answer.
            background: Class {
                priority: None,
                on_disconnect: OnDisconnect::Detach(Within {
                    max_time: Span::from_secs(3600),
                    max_tokens: 65_536,
                }),
            },
            extend: Extend::default(),
            priority: ByEndpoint::default(),
        }
    }
}

impl Settings {
    /// What holds for the class that a request is of.
    pub(crate) fn class(&self, request: &RequestFacts) -> Class {
        match request {
            RequestFacts { background: true, .. } => self.background,
            RequestFacts { streaming: true, .. } => self.streaming,
            _ => self.whole,
        }
    }

    /// Every problem, as key, relation, value.
    pub(crate) fn problems(&self) -> Vec<String> {
        let mut spans = vec![
            ("queue.base".to_owned(), self.queue.base),
            ("first_token.base".to_owned(), self.first_token.base),
            ("inter_token.base".to_owned(), self.inter_token.base),
            ("total.base".to_owned(), self.total.base),
        ];
        if let Some(total) = self.extend.total {
            spans.push(("extend.total.by".to_owned(), total.by));
            spans.push(("extend.total.since_token".to_owned(), total.since_token));
        }
        if let Some(first_token) = self.extend.first_token {
            spans.push(("extend.first_token.by".to_owned(), first_token.by));
        }
        let mut problems = vec![];
        let classes =
            [("streaming", self.streaming), ("whole", self.whole), ("background", self.background)];
        for (class, Class { on_disconnect, .. }) in classes {
            let (action, within) = match on_disconnect {
                OnDisconnect::Cancel => continue,
                OnDisconnect::Drain(within) => ("drain", within),
                OnDisconnect::Detach(within) => ("detach", within),
            };
            let key = format!("{class}.on_disconnect.{action}");
            spans.push((format!("{key}.max_time"), within.max_time));
            if within.max_tokens == 0 {
                problems.push(format!("{key}.max_tokens must exceed 0, got 0"));
            }
        }
        let zeros = spans.into_iter().filter(|(_, span)| *span == Span::ZERO);
        problems.extend(zeros.map(|(key, _)| format!("{key} must exceed 0s, got 0s")));
        problems
    }
}

impl ByEndpoint {
    pub(crate) fn of(&self, endpoint: Endpoint) -> Option<Priority> {
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
            Self::Drain(within) => DisconnectAction::drain(within.max_time, within.max_tokens),
            Self::Detach(within) => DisconnectAction::detach(within.max_time, within.max_tokens),
        }
    }
}
