//! The threads of one policy whose calls may take long. Every such policy has its own, so that
//! those of one that hangs are all that it can take.
//!
//! ```text
//! a request waits ─► permit (bounded, in order, for PATIENCE at most) ─► its queue ─► calls
//! nobody waits    ─► the queue of one request                         ─► accounts, background
//! ```
//!
//! # Invariants
//!
//! - A call that somebody waits for gets its permit before its job is made, so giving up costs
//!   nothing; there are as many permits as threads, so with a permit there is a thread.
//! - No policy's calls wait for another policy's, nor for those of another generation of itself:
//!   who replaces one because it hangs is not to wait for what hangs.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::PolicyMetrics;
use crate::blocking_pool::{BlockingPool, GaugeCount};
use interlock_policy_api::CallTime;
use interlock_policy_api::Policy;

/// Calls that run at once of a policy that waits for others. Each mostly waits; sixteen keep the
/// policy of a busy host going, and what is slower than that should not be asked about every
/// request. A policy that only computes gets as many as there are cores.
const CALLS_MAX: usize = 16;
/// Requests that wait for a thread of one policy. The next one fails as `busy` at once.
pub(crate) const CALLS_WAITING_MAX: usize = 1024;
/// Longest wait for a thread. All of a policy's are busy for this long only when what it asks is
/// slow or gone, or it computes more than the machine can; then it is for the operator's
/// `on_failure` to say what happens, and not for the line to grow.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);
/// Accounts of one policy that are made at once, on threads of their own: nobody waits for them,
/// so they must not take the threads from what somebody waits for.
pub(crate) const ACCOUNT_THREADS: usize = 4;
/// Accounts of one policy that wait for a thread. One is made for each request that ends, so this
/// many wait only when the other machine is slow or gone; what comes beyond is dropped, logged and
/// counted.
pub(crate) const ACCOUNTS_MAX: usize = 1024;
/// Calls in the background that run at once; nobody waits for them either.
const BACKGROUND_THREADS: usize = 4;
/// Calls that wait for such a thread; what comes beyond is dropped and counted.
pub(crate) const BACKGROUND_MAX: usize = 4096;

/// Threads and places in line for one policy.
pub(crate) struct PolicyThreads {
    pub(crate) calls: BlockingPool,
    permits: Option<Permits>,
    pub(crate) accounts: BlockingPool,
    pub(crate) background: BlockingPool,
}

struct Permits {
    calls: Arc<Semaphore>,
    room: Semaphore,
    waiting: interlock_metrics::IntGauge,
}

/// A thread for one call: nobody else's meanwhile. Of a policy without threads, nothing.
pub(crate) struct CallPermit(#[expect(dead_code, reason = "is held")] Option<OwnedSemaphorePermit>);

impl PolicyThreads {
    fn new(policy: &dyn Policy, metrics: &PolicyMetrics) -> Self {
        let calls_max = match policy.call_time() {
            CallTime::Waits => CALLS_MAX,
            CallTime::AtOnce | CallTime::Computes => {
                thread::available_parallelism().map_or(2, usize::from)
            }
        };
        let name = [policy.name()];
        let running = metrics.slow_running.with_label_values(&name);
        let waiting = metrics.slow_waiting.with_label_values(&name);
        let permits = Permits {
            calls: Arc::new(Semaphore::new(calls_max)),
            room: Semaphore::new(CALLS_WAITING_MAX),
            waiting,
        };
        let observing = &metrics.observing_running;
        Self {
            // A request's queue stands in line once more for what comes behind a call.
            calls: BlockingPool::new("slow-policy", calls_max, 2 * calls_max, running.clone()),
            permits: Some(permits),
            accounts: BlockingPool::new("slow-account", ACCOUNT_THREADS, ACCOUNTS_MAX, running),
            background: BlockingPool::new(
                "slow-observing",
                BACKGROUND_THREADS,
                BACKGROUND_MAX,
                observing.clone(),
            ),
        }
    }

    fn in_line() -> Self {
        let pool = BlockingPool::in_line;
        Self { calls: pool(), permits: None, accounts: pool(), background: pool() }
    }

    /// A thread in which no other call can be; `None`: there is none for so long, or too many wait.
    pub(crate) async fn permit(&self) -> Option<CallPermit> {
        let Some(Permits { calls, room, waiting }) = &self.permits else {
            return Some(CallPermit(None));
        };
        // At once if it can be had, which takes no timer. Those who wait are not overtaken.
        if let Ok(permit) = Arc::clone(calls).try_acquire_owned() {
            return Some(CallPermit(Some(permit)));
        }
        let _place = room.try_acquire().ok()?;
        let _counted = GaugeCount::in_gauge(waiting);
        let permit = tokio::time::timeout(PATIENCE, Arc::clone(calls).acquire_owned()).await;
        Some(CallPermit(Some(permit.ok()?.ok()?)))
    }
}

/// The threads of all policies that need some, over all generations.
#[derive(Clone)]
pub(crate) struct ThreadsByPolicy(Option<Arc<Mutex<Vec<ThreadsRow>>>>);

/// Lives as long as one of the policy's chains, or what is still to be done for it.
struct ThreadsRow {
    policy: Weak<dyn Policy>,
    threads: Weak<PolicyThreads>,
}

impl ThreadsByPolicy {
    pub(crate) fn new() -> Self {
        Self(Some(Arc::default()))
    }

    /// No policy has threads: each is called where it is asked.
    pub(crate) fn in_line() -> Self {
        Self(None)
    }

    /// Those of this policy: the same ones in every chain that it is in.
    pub(crate) fn of(
        &self,
        policy: &Arc<dyn Policy>,
        metrics: &PolicyMetrics,
    ) -> Arc<PolicyThreads> {
        let Some(rows) = &self.0 else { return Arc::new(PolicyThreads::in_line()) };
        // Taken by whoever makes or drains a chain, never by a request.
        let mut rows = rows.lock().unwrap_or_else(PoisonError::into_inner);
        rows.retain(|row| row.threads.strong_count() > 0);
        // A row keeps the policy's memory, if not the policy, so no two have one address.
        let known = rows
            .iter()
            .find(|row| std::ptr::addr_eq(row.policy.as_ptr(), Arc::as_ptr(policy)))
            .and_then(|row| row.threads.upgrade());
        known.unwrap_or_else(|| {
            let threads = Arc::new(PolicyThreads::new(policy.as_ref(), metrics));
            rows.push(ThreadsRow {
                policy: Arc::downgrade(policy),
                threads: Arc::downgrade(&threads),
            });
            threads
        })
    }

    /// Those that are there now.
    fn all(&self) -> Vec<Arc<PolicyThreads>> {
        let Some(rows) = &self.0 else { return Vec::new() };
        let rows = rows.lock().unwrap_or_else(PoisonError::into_inner);
        rows.iter().filter_map(|row| row.threads.upgrade()).collect()
    }

    /// Waits until all that was handed over is done, the `background` pool too, but not beyond
    /// this; how many jobs are not. Blocks.
    pub(crate) fn drain(&self, background: &BlockingPool, until: Instant) -> usize {
        let all = self.all();
        // In the order in which one gives to the next: an account waits for calls that nobody waits
        // for any more, and for what was to be seen before.
        let calls: usize = all.iter().map(|threads| threads.calls.drain(until)).sum();
        let seen: usize = all.iter().map(|threads| threads.background.drain(until)).sum();
        let seen = seen + background.drain(until);
        calls + seen + all.iter().map(|threads| threads.accounts.drain(until)).sum::<usize>()
    }
}

#[cfg(test)]
mod tests;
