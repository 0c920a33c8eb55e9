//! What a policy may know. No prompt, no body, no secrets.

use interlock_request::{Endpoint, ModelId, RequestId};

/// What the host parsed of a request, once. Small and bounded.
#[derive(Debug, Clone, PartialEq)]
pub struct Facts {
    /// Names the request in logs.
    pub request_id: RequestId,
    /// When the request's head was read, in microseconds since the Unix epoch.
    pub arrived_at_micros: u64,
    /// The endpoint it came through.
    pub endpoint: Endpoint,
    /// The model it will run on.
    pub model: ModelId,
    /// Does the client want tokens as they come?
    pub streaming: bool,
    /// Length of the rendered prompt, exact.
    pub prompt_tokens: u32,
    /// Most tokens it may generate: what the client asked for, or what is left of the context.
    pub tokens_max: u32,
    /// Did the client ask for that number itself?
    pub tokens_max_asked: bool,
    /// Size of the request's body.
    pub body_bytes: u64,
    /// Headers on the policies' allow-list, names in lower case.
    pub headers: Vec<(String, String)>,
}

/// How busy the host is at the moment of the decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Load {
    /// Requests that wait for their first pass, this one excluded.
    pub waiting: u32,
    /// Requests that may wait.
    pub waiting_max: u32,
    /// Requests that have begun and not ended.
    pub running: u32,
}
