//! What is known of a request once its head is read.

use std::net::IpAddr;

use interlock_request::RequestId;
use tokio::time::Instant;

use crate::connection::Client;

/// What is known of a request once its head is read.
#[derive(Debug, Clone)]
pub(crate) struct RequestHead {
    pub(crate) id: RequestId,
    /// Microseconds since the Unix epoch.
    pub(crate) at_micros: u64,
    /// The same moment, from which deadlines count.
    pub(crate) arrived_at: Instant,
    /// The other side's address.
    pub(crate) address: Option<IpAddr>,
    pub(crate) client: Client,
}
