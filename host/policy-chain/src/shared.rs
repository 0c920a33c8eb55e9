//! What all generations of the chain share.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::blocking_pool::BlockingPool;
use crate::last_good::LastGood;
use crate::policy_threads::{BACKGROUND_MAX, ThreadsByPolicy};
use crate::tenants::Tenants;
use crate::{PolicyMetrics, RecordSink};

/// Streams that are looked at side by side. A look takes microseconds and must not take the
/// cores from what the client waits for.
const BACKGROUND_THREADS: usize = 2;

/// What all generations of the chain share. Cheap to clone.
#[derive(Clone)]
pub struct ChainShared {
    pub(crate) metrics: PolicyMetrics,
    pub(crate) tenants: Tenants,
    pub(crate) last_good: LastGood,
    /// For policies that observe a stream and take no time for it.
    pub(crate) background: BlockingPool,
    /// For those whose calls may take long.
    pub(crate) threads: ThreadsByPolicy,
    pub(crate) records: Option<Arc<dyn RecordSink>>,
}

impl ChainShared {
    /// For one host.
    pub fn new(metrics: PolicyMetrics) -> Self {
        let background = metrics.observing_running.clone();
        Self {
            background: BlockingPool::new(
                "observing-policy",
                BACKGROUND_THREADS,
                BACKGROUND_MAX,
                background,
            ),
            threads: ThreadsByPolicy::new(),
            ..Self::in_line(metrics)
        }
    }

    /// The same with records of what policies decide.
    #[must_use]
    pub fn recording(self, sink: Arc<dyn RecordSink>) -> Self {
        Self { records: Some(sink), ..self }
    }

    /// The same without threads of its own: every policy is called in line, on the thread of
    /// whoever asks. For simulations, which must come out the same each time.
    pub fn in_line(metrics: PolicyMetrics) -> Self {
        Self {
            metrics,
            tenants: Tenants::default(),
            last_good: LastGood::default(),
            background: BlockingPool::in_line(),
            threads: ThreadsByPolicy::in_line(),
            records: None,
        }
    }

    /// Waits, at most this long, until policies have heard of the end of every request that has
    /// ended; how many calls are not over. For a host that stops. Blocks.
    pub fn drain(&self, most: Duration) -> usize {
        self.threads.drain(&self.background, Instant::now() + most)
    }
}

impl From<PolicyMetrics> for ChainShared {
    fn from(metrics: PolicyMetrics) -> Self {
        Self::new(metrics)
    }
}
