//! What a policy may know. No body and no secrets, and of the prompt its length and a keyed hash.

use std::fmt;
use std::time::Duration;

use interlock_request::{Endpoint, ModelId, Priority, RequestId};

/// What the host parsed of a request, once. Small and bounded.
#[derive(Debug, Clone, PartialEq, serde::Deserialize, serde::Serialize)]
pub struct Facts {
    /// Tells requests apart within this process: ids are the clients' and may repeat.
    pub serial: u64,
    /// Names the request in logs.
    pub request_id: RequestId,
    /// When the request's head was read, in microseconds since the Unix epoch.
    pub arrived_at_micros: u64,
    /// The endpoint it came through.
    pub endpoint: Endpoint,
    /// Up to `route` the model as the client wrote it; then the name of the one it runs on.
    pub model: ModelId,
    /// Does the client want tokens as they come?
    pub streaming: bool,
    /// Will nobody wait for the answer?
    pub background: bool,
    /// Length of the prompt: an estimate before `admit`, then exact.
    pub prompt_tokens: u32,
    /// Most tokens it may generate: what the client asked for, or what is left of the context.
    /// Before `admit`, if the client asked for nothing, 0.
    pub tokens_max: u32,
    /// Did the client ask for that number itself?
    pub tokens_max_asked: bool,
    /// Size of the request's body.
    pub body_bytes: u64,
    /// A hash of how its prompt begins, with a secret of this process; 0 when that is not text.
    /// Equal beginnings have equal keys where what is computed for them may be shared, and nowhere
    /// else.
    pub prefix_key: u64,
    /// Who the caller is, as `identify` said.
    pub identity: Identity,
    /// Headers that some policy sees (the chain's `headers_seen`); each policy is shown
    /// those that it was granted.
    pub headers: Headers,
}

/// What is known of a request before its body.
#[derive(Debug, Clone, PartialEq, serde::Deserialize, serde::Serialize)]
pub struct Caller {
    /// As in [`Facts::serial`].
    pub serial: u64,
    /// Names the request in logs.
    pub request_id: RequestId,
    /// When the request's head was read, in microseconds since the Unix epoch.
    pub arrived_at_micros: u64,
    /// The endpoint it came through; of a call that looks a request up or cancels it, the one that
    /// the request came through.
    pub endpoint: Endpoint,
    /// SHA-256 of the bearer token or of `x-api-key`, in hex; empty when there is none.
    pub credential: String,
    /// The other side's address, without port.
    pub address: String,
    /// As in [`Facts::headers`].
    pub headers: Headers,
    /// Does it only look something up, or cancel it? Such a call asks for no work, and takes
    /// nothing from the buckets of a policy's state.
    #[serde(default)]
    pub looks_up: bool,
}

/// Who asks, as an `identify` said. The default is nobody in particular.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Deserialize, serde::Serialize)]
pub struct Identity {
    /// Whom the request counts for; empty when nobody said.
    pub tenant: String,
    /// How urgent its requests are at most.
    pub priority: Option<Priority>,
    /// What else policies should know, names and values.
    pub attributes: Vec<(String, String)>,
}

/// Names, in lower case, and values, in the order in which they came. Values may be secrets, so
/// they are not for logs.
#[derive(Clone, PartialEq, Eq, Default, serde::Deserialize, serde::Serialize)]
#[serde(transparent)]
pub struct Headers(pub Vec<(String, String)>);

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

/// How busy a model is at the moment of the decision, the request in question not counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize, serde::Serialize)]
pub struct Load {
    /// Requests that wait for their first pass.
    pub waiting: u32,
    /// Requests that may wait.
    pub waiting_max: u32,
    /// Requests that have begun and not ended.
    pub running: u32,
    /// Requests that may run at once.
    pub running_max: u32,
}

/// A model on an engine that could take a request.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
pub struct Candidate {
    /// Its place in the host's table of models.
    pub id: u32,
    /// The name it is served under.
    pub model: ModelId,
    /// Is it what the client asked for, by name or by alias?
    pub asked: bool,
    /// Is it loaded and at work?
    pub ready: bool,
    /// Tokens of prompt and output together that it takes.
    pub context: u32,
    /// How busy it is.
    pub load: Load,
    /// Did a request with the same [`Facts::prefix_key`] run there lately?
    pub prefix_seen: bool,
    /// Median time to first token of its last requests.
    pub first_token: Option<Duration>,
    /// Median time between tokens of its last requests.
    pub inter_token: Option<Duration>,
}
