//! What an operator may set, and what holds when nobody did.

use guard_rules::{Deadlines, Departure, Departures, Extend, Growing, OnDisconnect};
use interlock_policy_sdk::{Endpoint, Plan, Priority, RequestFacts, Span, Timeouts};
use schemars::JsonSchema;
use serde::Deserialize;

/// `[policy.settings]`.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Settings {
    /// From the request's head to the first pass.
    queue: Growing,
    /// From the request's head to the first token, the queue included.
    first_token: Growing,
    /// From one token to the next.
    inter_token: Growing,
    /// From the request's head to the end.
    total: Growing,
    /// When a deadline that struck is not the end.
    extend: Extend,
    /// Requests whose client wants tokens as they come.
    streaming: Class,
    /// Requests whose client waits for the whole answer.
    whole: Class,
    /// Requests that nobody waits for, `background` of the Responses API.
    background: Background,
    /// How urgent the requests of an endpoint are, whatever their class says.
    priority: ByEndpoint,
}

/// What holds for a class of requests.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Class {
    /// How urgent they are; not set leaves it to others.
    priority: Option<Priority>,
    /// What happens when the client leaves.
    on_disconnect: OnDisconnect,
}

impl Default for Class {
    fn default() -> Self {
        Self { priority: None, on_disconnect: OnDisconnect::Cancel }
    }
}

/// What holds for requests in the background, which have no client that could leave.
#[derive(Debug, Clone, Copy, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Background {
    /// How urgent they are; not set leaves it to others.
    priority: Option<Priority>,
}

/// Priorities of endpoints; not set leaves it to the class.
#[derive(Debug, Clone, Copy, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct ByEndpoint {
    chat: Option<Priority>,
    completions: Option<Priority>,
    responses: Option<Priority>,
}

// So generous that they end nothing healthy on the slowest machine that we know of: a model of
// 135M parameters on two CPU cores prefills 200 tokens per second and generates 10 to 30, alone.
// Ten times that is what a token gets; a batch of eight is among the reasons.
impl Default for Settings {
    fn default() -> Self {
        let seconds = |base| Growing::fixed(Span::from_secs(base));
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
            extend: Extend::default(),
            streaming: Class::default(),
            whole: Class::default(),
            background: Background::default(),
            priority: ByEndpoint::default(),
        }
    }
}

impl Settings {
    pub(crate) fn deadlines(&self) -> Deadlines {
        let Self { queue, first_token, inter_token, total, extend, .. } = *self;
        Deadlines { queue, first_token, inter_token, total, extend }
    }

    fn departures(&self) -> Departures {
        let of = |class: Class| Departure { on_disconnect: class.on_disconnect };
        Departures { streaming: of(self.streaming), whole: of(self.whole) }
    }

    fn priority(&self, request: &RequestFacts) -> Option<Priority> {
        let class = match request {
            RequestFacts { background: true, .. } => self.background.priority,
            RequestFacts { streaming: true, .. } => self.streaming.priority,
            _ => self.whole.priority,
        };
        let endpoint = match request.endpoint {
            Endpoint::Chat => self.priority.chat,
            Endpoint::Completions => self.priority.completions,
            Endpoint::Responses => self.priority.responses,
        };
        endpoint.or(class)
    }

    /// The plan for a request that may take so long.
    pub(crate) fn plan(&self, request: &RequestFacts, timeouts: Timeouts) -> Plan {
        Plan {
            priority: self.priority(request),
            timeouts,
            on_disconnect: self.departures().action(request),
            max_tokens: None,
        }
    }

    /// Every problem, as key, relation, value.
    pub(crate) fn problems(&self) -> Vec<String> {
        [self.deadlines().problems(), self.departures().problems()].concat()
    }
}
