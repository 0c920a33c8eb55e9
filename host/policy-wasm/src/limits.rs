//! What a bad policy may cost us: every bound on a component, in one place.
//!
//! Three are the operator's, per policy: the deadline of a call, its calls of the host and the
//! memory of an instance. The others are constants, since nobody could say when to turn them up.

use std::time::Duration;

use wasmtime::ResourceLimiter;

/// How often the clock that deadlines count ticks. A deadline strikes up to two ticks late.
pub const TICK: Duration = Duration::from_millis(1);

/// Longest deadline of a policy that is called on the threads that serve everyone: the default one.
/// A policy that may take longer is called on threads of its own, however little it takes.
pub const IN_LINE_TIME_MAX: Duration = Duration::from_millis(2);

/// Longest time, with a core, that making an instance of such a policy may take. One is made there
/// in some ten thousand calls, or when one has failed.
pub const IN_LINE_INIT_TIME_MAX: Duration = Duration::from_millis(20);

/// Longest time that a policy's first instance may take to begin.
pub const INIT_TIME_MAX: Duration = Duration::from_secs(1);

/// Largest component file. A Rust policy has tens of KiB, one with a Python in it 18 MiB.
pub const COMPONENT_BYTES_MAX: u64 = 64 << 20;

/// Largest memory that an operator may grant an instance.
pub const MEMORY_MAX: u64 = 64 << 20;

/// Instances of all policies together. A policy keeps as many as there are cores
/// ([`SLOW_CALLS_MAX`] if it waits for others), since a thread uses one at a time, and each of the
/// three earlier generations that can come back keeps one: on a machine of two dozen cores that is
/// room for eighteen policies that were all replaced thrice. A call beyond that fails as
/// `instantiate`.
pub const INSTANCES_MAX: u32 = 512;

/// Calls after which an instance is replaced, give or take a quarter. Whatever a policy
/// remembers is a cache, and one that relies on it is to find out early.
pub const CALLS_MAX: u32 = 10_000;

/// Bytes that a policy may hand the host in one call: its answer, or one line for the log.
pub const TRANSFER_BYTES_MAX: usize = 256 << 10;

/// Stack of a call. Calls run on tokio's workers and on threads of policies, which have 2 MiB.
pub const STACK_BYTES_MAX: usize = 512 << 10;

/// Core instances in one component. A Rust policy has three, one in Python 38.
pub(crate) const CORES_MAX: u32 = 64;

/// Tables and memories in one component. A Rust policy has two and one; components around an
/// interpreter have some more.
pub(crate) const PARTS_MAX: u32 = 16;

/// Elements in all tables of a component together.
pub(crate) const TABLE_ELEMENTS_MAX: usize = 20_000;

/// Resource handles alive in one instance. Our interfaces have no resources, so no guest can hold
/// a handle of the host's and there is nothing to count; but a component can make its own, and
/// their tables are our memory.
pub(crate) const HANDLES_MAX: usize = 64;

/// Most calls of the host in one call of a policy that an operator may allow. Lines for the log do
/// not count: their rate is bounded otherwise.
pub const HOST_CALLS_MAX: u32 = 100_000;

/// Longest name of a reason, in bytes.
pub const REASON_CODE_BYTES_MAX: usize = 64;

/// Reasons that a policy may declare.
pub const REASONS_MAX: usize = 64;

/// Metrics that a policy may declare.
pub const METRICS_MAX: usize = 32;

/// Labels that one of them may have.
pub const METRIC_LABELS_MAX: usize = 4;

/// Sets of label values that one of them may have; what comes after is counted as `__other__`.
pub const METRIC_SERIES_MAX: usize = 100;

/// Longest value of such a label, in bytes; the rest is cut.
pub const METRIC_LABEL_BYTES_MAX: usize = 128;

/// Needs that a policy may declare.
pub const NEEDS_MAX: usize = 64;

/// Longest JSON Schema of a policy's settings, in bytes.
pub const SCHEMA_BYTES_MAX: usize = 128 << 10;

/// Longest tenant that an `identify` may name, in bytes.
pub const TENANT_BYTES_MAX: usize = 128;

/// Attributes that an `identify` may give.
pub const ATTRIBUTES_MAX: usize = 16;

/// Longest name or value of an attribute, in bytes.
pub const ATTRIBUTE_BYTES_MAX: usize = 256;

/// Headers that a `transform` may set and remove, together.
pub const HEADERS_MAX: usize = 16;

/// Longest name of a header that it sets or removes, in bytes.
pub const HEADER_BYTES_MAX: usize = 256;

/// Longest name of a model that it asks for, in bytes.
pub const MODEL_BYTES_MAX: usize = 256;

/// Longest note of an admission, in bytes.
pub const NOTE_BYTES_MAX: usize = 1 << 10;

/// Longest JSON text that a policy may read from a body or write into it, in bytes.
pub const CONTENT_BYTES_MAX: usize = 256 << 10;

/// Longest key of `state`, in bytes.
pub const STATE_KEY_BYTES_MAX: usize = 256;

/// Longest value of `state`, in bytes.
pub const STATE_VALUE_BYTES_MAX: usize = 64 << 10;

/// Largest response of a request of a policy's own, in bytes.
pub const HTTP_RESPONSE_BYTES_MAX: u64 = 1 << 20;

/// Longest time of such a request.
pub const HTTP_TIME_MAX: Duration = Duration::from_secs(10);

/// Longest time of all requests of one call of a policy: so long can it keep one of its threads.
pub const HTTP_TIME_MAX_OF_ALL: Duration = Duration::from_secs(30);

/// Threads on which a policy that waits for others is called, and so warm instances that it keeps.
pub const SLOW_CALLS_MAX: usize = 16;

/// Longest sentence of a rejection, in bytes.
pub const REASON_DETAIL_BYTES_MAX: usize = 512;

/// Longest time that a rejection may tell a client to wait.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// Longest time that a plan can speak of. The operator's ceilings are far below; this one keeps
/// sums with the clock from overflowing wherever a plan goes.
pub const PLAN_TIME_MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Longest line that a policy may write into the log, in bytes; the rest is cut.
pub const LOG_LINE_BYTES_MAX: usize = 1 << 10;

/// Lines that a policy may write at once.
pub const LOG_BURST: u32 = 64;

/// Lines that a policy may write per second in the long run.
pub const LOG_LINES_PER_SECOND: u32 = 16;

/// A policy asked for more memory than it may have.
#[derive(Debug, thiserror::Error)]
#[error("it asked for {asked} bytes of memory, {max} are allowed")]
pub(crate) struct MemoryExceeded {
    asked: usize,
    max: usize,
}

/// A policy's tables would grow beyond all reason.
#[derive(Debug, thiserror::Error)]
#[error("it asked for a table of {asked} elements, {TABLE_ELEMENTS_MAX} are allowed")]
pub(crate) struct TableExceeded {
    asked: usize,
}

/// Counts what one store takes.
///
/// Refusing with an error of our own, rather than letting `memory.grow` fail, turns the
/// allocation failure that the guest would die of in some way of its own into a failure that
/// says so.
#[derive(Debug)]
pub(crate) struct Limiter {
    pub(crate) memory_max: usize,
    // All memories of a component count together: the limit is what an instance costs us.
    pub(crate) memory: usize,
    pub(crate) table_elements: usize,
}

impl ResourceLimiter for Limiter {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        declared_max: Option<usize>,
    ) -> wasmtime::Result<bool> {
        // It set this bound itself: it gets no memory, and nothing is counted.
        if declared_max.is_some_and(|max| desired > max) {
            return Ok(false);
        }
        let asked = self.memory - current.min(self.memory) + desired;
        if asked > self.memory_max {
            return Err(MemoryExceeded { asked, max: self.memory_max }.into());
        }
        self.memory = asked;
        Ok(true)
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        declared_max: Option<usize>,
    ) -> wasmtime::Result<bool> {
        if declared_max.is_some_and(|max| desired > max) {
            return Ok(false);
        }
        let asked = self.table_elements - current.min(self.table_elements) + desired;
        if asked > TABLE_ELEMENTS_MAX {
            return Err(TableExceeded { asked }.into());
        }
        self.table_elements = asked;
        Ok(true)
    }

    fn instances(&self) -> usize {
        CORES_MAX as usize
    }

    fn tables(&self) -> usize {
        PARTS_MAX as usize
    }

    fn memories(&self) -> usize {
        PARTS_MAX as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_did_not_grow_is_not_counted() {
        let mut limiter = Limiter { memory_max: 1000, memory: 0, table_elements: 0 };
        assert!(limiter.memory_growing(0, 400, Some(500)).unwrap());
        for _ in 0..9 {
            assert!(!limiter.memory_growing(400, 600, Some(500)).unwrap());
        }
        assert_eq!(limiter.memory, 400);
        assert!(limiter.memory_growing(0, 601, None).is_err());
        assert!(!limiter.table_growing(0, 20, Some(10)).unwrap());
        assert_eq!(limiter.table_elements, 0);
    }
}
