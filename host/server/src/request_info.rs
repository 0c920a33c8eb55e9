//! What is known of an admitted request and does not change any more.

use interlock_request::{Endpoint, ModelId, RequestId};
use tokio::time::Instant;

/// Shared by all that answer, account for or store one admitted request.
#[derive(Debug)]
pub(crate) struct RequestInfo {
    pub(crate) id: RequestId,
    pub(crate) endpoint: Endpoint,
    /// The tenant for whom it counts; empty where no policy tells clients apart.
    pub(crate) tenant: String,
    /// The model that answers.
    pub(crate) model: ModelId,
    /// Microseconds since the Unix epoch at which its head had arrived.
    pub(crate) arrived_at_micros: u64,
    /// The same moment, from which its deadlines count.
    pub(crate) arrived_at: Instant,
    /// Whether its client wants text as it comes.
    pub(crate) streaming: bool,
    pub(crate) prompt_tokens: u32,
}

#[cfg(test)]
impl RequestInfo {
    /// A request of no tenant, for the model `m`, that arrived at the epoch.
    pub(crate) fn for_test(id: &str, endpoint: Endpoint) -> Self {
        Self {
            id: RequestId::parse(id).expect("an id"),
            endpoint,
            tenant: String::new(),
            model: ModelId::new("m"),
            arrived_at_micros: 0,
            arrived_at: Instant::now(),
            streaming: false,
            prompt_tokens: 2,
        }
    }
}
