//! What policies remember from one call to the next, outside of any WASM instance.
//!
//! A [`State`] is opened once; each policy gets its own [`Space`] of it, where it takes from token
//! buckets, reserves from budgets and settles later, counts concurrent requests, and keeps small
//! values. In the memory of this process, or in Redis for hosts that share their limits: the same
//! rules, and one suite of tests for both.
//!
//! ```text
//! Space::take ──► checked ──► PolicyStore ──┬─► memory: a mutex per shard, no I/O
//!                 numbers, sizes            └─► redis: one Lua script, one round trip
//! ```
//!
//! # Invariants
//!
//! - An operation happens whole or not at all, whoever else asks at the same time, on this host or
//!   on another one with the same Redis.
//! - A policy sees what itself has written and nothing else: names and reservations are looked up
//!   under the policy's name, so a number that one policy hands to another is worth nothing there.
//! - What one policy can fill is bounded in keys and bytes. What has ended is swept before anything
//!   is refused, and nothing that still counts is dropped to make room.
//! - Nothing is kept for longer than [`LIFE_MAX`] after it was last written.
//! - What a request holds, a slot or a reservation, is held as long as its host lives and has not ended
//!   it; of a host that has died nothing is held for longer than `state.lease`. What could not be
//!   ended because the store did not answer is ended when it does.
//! - Memory answers in microseconds, and [`State::waits`] says so. Redis answers within
//!   `state.timeout`, or the fault is [`StateFault::Unavailable`]; then it is left alone until it
//!   answers again, and until then each call fails at once. It need not be there at the start.
//!
//! # Not here
//!
//! No wasmtime, no request and no tokio: calls are synchronous and made inline. Which reservations and
//! slots belong to which request is the caller's bookkeeping, since the caller is who knows when a
//! request ends; what it has to [`Space::abandon`], [`Space::charge`] or [`Space::vacate`] then are
//! numbers. Hosts that each have their own Redis, and a Redis that loses what it was told (a failover
//! to a replica that is behind), are limits of Redis that nothing here repairs.

mod clock;
mod config;
mod memory;
mod metrics;
mod redis;
mod redis_url;
mod space;
mod store;

use std::sync::Arc;

pub use clock::StateClock;
pub use config::{BadStoreUrl, StateConfig, StoreUrl};
pub use metrics::StateMetrics;
pub use redis_url::{BadRedisUrl, RedisUrl};
pub use space::Space;
pub use store::{Bucket, BudgetWindow, Entered, NEVER, Reservation, Reserved, StateFault, Taken};

use clock::Monotonic;
use store::Quota;

use std::time::Duration;

/// The longest that anything is kept after it was last written: a month, and so the longest window
/// and the longest time that a bucket may take to fill.
pub const LIFE_MAX: Duration = Duration::from_secs(31 * 24 * 60 * 60);

/// How long a reservation is remembered after it was made or last extended. One that is settled
/// later than this changes nothing: what was reserved stays charged.
pub const RESERVATION_LIFE: Duration = Duration::from_secs(24 * 60 * 60);

/// The state of all policies of this host. Cheap to clone.
#[derive(Clone)]
pub struct State {
    store: Arc<dyn Store>,
    quota: Quota,
    metrics: Option<StateMetrics>,
}

/// Why the state cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum StateFailed {
    /// There is no room for the threads that keep the connections.
    #[error("cannot start the threads that keep state.store {store}: {why}")]
    NoThread {
        /// The URL of the store, without the login.
        store: String,
        /// The system's error.
        why: std::io::Error,
    },
    /// Nobody answers there, or not as Redis does.
    #[error("state.store {store} cannot be used: {why}")]
    Unusable {
        /// The URL of the store, without the login.
        store: String,
        /// The error of the client or the server.
        why: String,
    },
}

/// A store of state, in this process or in Redis.
trait Store: Send + Sync {
    /// May a call wait for another process?
    fn waits(&self) -> bool;

    /// Counts what fails, from now on. What cannot fail counts nothing.
    fn count_in(&self, metrics: &StateMetrics);

    /// Waits until what was ended is, or for so long; whether it is.
    fn flush(&self, wait_max: Duration) -> bool;

    /// The store of a policy; the same one for the same name.
    fn policy_store(&self, policy: &str) -> Arc<dyn store::PolicyStore>;
}

impl State {
    /// Opens what the configuration names.
    ///
    /// # Errors
    ///
    /// When there is no room for a thread. A Redis that does not answer, or refuses, is none: it is
    /// said in the log, calls fail until it answers, and policies decide without their state.
    pub fn open(config: &StateConfig) -> Result<Self, StateFailed> {
        Self::open_with(config, Arc::new(Monotonic::new()))
    }

    /// The same, with another clock. Redis has its own clock, which no host can replace.
    ///
    /// # Errors
    ///
    /// As [`State::open`].
    pub fn open_with(
        config: &StateConfig,
        clock: Arc<dyn StateClock>,
    ) -> Result<Self, StateFailed> {
        let quota = config.quota();
        let store: Arc<dyn Store> = match &config.store {
            StoreUrl::Memory => Arc::new(memory::MemoryStore::new(clock, quota)),
            StoreUrl::Redis(url) => {
                Arc::new(redis::Redis::open(url, config, quota).map_err(|why| {
                    StateFailed::NoThread { store: config.store.to_string(), why }
                })?)
            }
        };
        Ok(Self { store, quota, metrics: None })
    }

    /// Asks whether what the configuration names can be used now, for whoever checks it: within a few
    /// seconds, however the network fares.
    ///
    /// # Errors
    ///
    /// When it does not answer, or refuses.
    pub fn probe(config: &StateConfig) -> Result<(), StateFailed> {
        let StoreUrl::Redis(url) = &config.store else { return Ok(()) };
        let store = config.store.to_string();
        match redis::Redis::probe(url, config, config.quota()) {
            Ok(None) => Ok(()),
            Ok(Some(why)) => Err(StateFailed::Unusable { store, why }),
            Err(why) => Err(StateFailed::NoThread { store, why }),
        }
    }

    /// State in the memory of this process, within the default quota.
    pub fn memory() -> Self {
        Self::memory_with(Arc::new(Monotonic::new()))
    }

    /// The same on another clock: the simulator's runs as fast as it likes.
    pub fn memory_with(clock: Arc<dyn StateClock>) -> Self {
        let quota = StateConfig::default().quota();
        Self { store: Arc::new(memory::MemoryStore::new(clock, quota)), quota, metrics: None }
    }

    /// May a call wait for another process, up to `state.timeout`? Then none is made on a thread
    /// that others need meanwhile.
    pub fn waits(&self) -> bool {
        self.store.waits()
    }

    /// Counts what the spaces are asked, from now on.
    #[must_use]
    pub fn with_metrics(self, metrics: StateMetrics) -> Self {
        self.store.count_in(&metrics);
        Self { metrics: Some(metrics), ..self }
    }

    /// Waits until the store has heard of all that was ended, or for so long; whether it has.
    pub fn flush(&self, wait_max: Duration) -> bool {
        self.store.flush(wait_max)
    }

    /// A policy's own namespace, with its own quota of keys and bytes. Asked twice, it is the same.
    pub fn space(&self, policy: &str) -> Space {
        let counts = self.metrics.as_ref().map(|metrics| Arc::new(metrics.counts(policy)));
        Space::new(self.store.policy_store(policy), self.quota, counts)
    }
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("quota", &self.quota).finish_non_exhaustive()
    }
}
