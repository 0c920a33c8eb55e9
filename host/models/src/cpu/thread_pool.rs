//! Threads that share out one piece of work at a time.
//!
//! A token takes some two hundred matrix products of 20 to 200 microseconds each, so what counts
//! is the time until workers join and the time until all are done. The caller works too; a worker that
//! wakes up late finds the work done, and the caller did not wait for it. That is what a general pool does
//! not do: its scope ends when every task it spawned has run, so on a busy machine each product
//! would wait for the scheduler.
//!
//! # Invariants
//!
//! - `run` returns when every chunk is done and no worker holds a reference into the caller's
//!   stack any more.
//! - One piece of work at a time: a caller that comes while another's work runs does its own alone.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::{hint, thread};

/// How often an idle worker looks for work before it sleeps: some half a millisecond, which bridges
/// every gap between two products of one token, and the sampling between two tokens, and no more,
/// because the cores are not only ours. Waking a sleeper costs tens of microseconds some hundred
/// times a token on a virtual machine: at 256 looks a token took half as long again (RESULTS.md).
const LOOKS_BEFORE_SLEEP: u32 = 8192;

static POOL: OnceLock<ThreadPool> = OnceLock::new();

/// Makes the pool, of `threads` including the caller, unless it exists. Returns its size.
pub(super) fn start(threads: NonZeroUsize) -> usize {
    POOL.get_or_init(|| ThreadPool::new(threads)).size()
}

/// The pool of this process; of all physical cores, unless [`start`] was called before.
pub(super) fn pool() -> &'static ThreadPool {
    POOL.get_or_init(|| ThreadPool::new(physical_cores()))
}

/// Cores that this process may use, counting a core with two hardware threads once: the second
/// adds nothing to a product that already fills the vector units.
pub(super) fn physical_cores() -> NonZeroUsize {
    let logical = thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let mut cores = std::collections::BTreeSet::new();
    for cpu in 0.. {
        let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
        match std::fs::read_to_string(path) {
            Ok(siblings) => cores.insert(siblings),
            Err(_) => break,
        };
    }
    NonZeroUsize::new(cores.len()).map_or(logical, |physical| physical.min(logical))
}

pub(super) struct ThreadPool {
    shared: Arc<PoolState>,
    workers: usize,
}

struct PoolState {
    posted: Mutex<JobSlot>,
    wake: Condvar,
    /// Counts the pieces of work posted, so that a spinning worker need not take the lock.
    round: AtomicU64,
}

struct JobSlot {
    work: Option<JobPointer>,
    sleeping: usize,
}

/// One piece of work, on its caller's stack.
struct ChunkedTask<'a> {
    chunks: usize,
    next: AtomicUsize,
    running: AtomicUsize,
    task: &'a (dyn Fn(usize) + Sync),
}

#[derive(Clone, Copy)]
struct JobPointer(*const ChunkedTask<'static>);

// SAFETY: `ChunkedTask` is Sync (atomics and a Sync closure), and `ThreadPool::run` keeps it alive for as long
// as any worker may follow the pointer; see there.
unsafe impl Send for JobPointer {}

impl ThreadPool {
    pub(super) fn new(threads: NonZeroUsize) -> Self {
        let shared = Arc::new(PoolState {
            posted: Mutex::new(JobSlot { work: None, sleeping: 0 }),
            wake: Condvar::new(),
            round: AtomicU64::new(0),
        });
        let started = (1..threads.get()).filter(|number| {
            let shared = Arc::clone(&shared);
            // Without a worker the work is slower, not wrong.
            thread::Builder::new()
                .name(format!("compute-{number}"))
                .spawn(move || shared.run_worker())
                .is_ok()
        });
        let workers = started.count();
        Self { shared, workers }
    }

    /// Threads that work on one piece, the caller's included.
    pub(super) fn size(&self) -> usize {
        self.workers + 1
    }

    /// Calls `task` once with each number below `chunks`, on as many threads as come in time.
    pub(super) fn run(&self, chunks: usize, task: &(dyn Fn(usize) + Sync)) {
        let work =
            ChunkedTask { chunks, next: AtomicUsize::new(0), running: AtomicUsize::new(0), task };
        if chunks <= 1 || self.workers == 0 || !self.shared.post(&work) {
            return work.take_part();
        }
        // From here on workers may hold the pointer: whatever happens, withdraw before returning.
        let withdraw = WithdrawOnDrop { shared: &self.shared, work: &work };
        work.take_part();
        drop(withdraw);
    }
}

struct WithdrawOnDrop<'a, 'b> {
    shared: &'a PoolState,
    work: &'a ChunkedTask<'b>,
}

impl Drop for WithdrawOnDrop<'_, '_> {
    fn drop(&mut self) {
        self.shared.lock().work = None;
        // No worker can join now. Those that did are in their last chunk.
        let mut looks = 0_u32;
        while self.work.running.load(Ordering::Acquire) > 0 {
            looks += 1;
            if looks < LOOKS_BEFORE_SLEEP { hint::spin_loop() } else { thread::yield_now() }
        }
    }
}

impl ChunkedTask<'_> {
    fn take_part(&self) {
        loop {
            let chunk = self.next.fetch_add(1, Ordering::Relaxed);
            if chunk >= self.chunks {
                return;
            }
            (self.task)(chunk);
        }
    }
}

impl PoolState {
    fn lock(&self) -> MutexGuard<'_, JobSlot> {
        // Nothing panics while it is held.
        self.posted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Offers `work` to the workers; false if there is other work already.
    fn post(&self, work: &ChunkedTask<'_>) -> bool {
        let mut posted = self.lock();
        if posted.work.is_some() {
            return false;
        }
        posted.work = Some(JobPointer(std::ptr::from_ref(work).cast()));
        let sleeping = posted.sleeping;
        drop(posted);
        self.round.fetch_add(1, Ordering::Release);
        if sleeping > 0 {
            self.wake.notify_all();
        }
        true
    }

    fn run_worker(&self) {
        let mut seen = 0;
        loop {
            seen = self.wait_for_round_after(seen);
            let joined = {
                let posted = self.lock();
                posted.work.inspect(|work| {
                    // SAFETY: the pointer is in `posted`, so the caller has not withdrawn it; it
                    // cannot while we hold the lock.
                    unsafe { &*work.0 }.running.fetch_add(1, Ordering::Relaxed);
                })
            };
            if let Some(JobPointer(work)) = joined {
                // SAFETY: we are counted in `running`, and the caller keeps the work alive until
                // that count is zero again.
                let work = unsafe { &*work };
                let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    work.take_part();
                }));
                // A chunk that was not computed would be a wrong number in someone's answer.
                if done.is_err() {
                    std::process::abort();
                }
                work.running.fetch_sub(1, Ordering::Release);
            }
        }
    }

    fn wait_for_round_after(&self, seen: u64) -> u64 {
        for _ in 0..LOOKS_BEFORE_SLEEP {
            let round = self.round.load(Ordering::Acquire);
            if round != seen {
                return round;
            }
            hint::spin_loop();
        }
        let mut posted = self.lock();
        posted.sleeping += 1;
        // Work posted but its round not yet counted also ends the sleep: looking at both under the
        // lock is what makes a lost wake-up impossible.
        while posted.work.is_none() && self.round.load(Ordering::Acquire) == seen {
            posted = self.wake.wait(posted).unwrap_or_else(PoisonError::into_inner);
        }
        posted.sleeping -= 1;
        self.round.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_chunk_is_done_once_whoever_does_it() {
        let pool = ThreadPool::new(NonZeroUsize::new(4).unwrap());
        for chunks in [0, 1, 2, 3, 7, 64] {
            for _ in 0..200 {
                let done: Vec<AtomicUsize> = (0..chunks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(chunks, &|chunk| {
                    done[chunk].fetch_add(1, Ordering::Relaxed);
                });
                assert!(done.iter().all(|count| count.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn two_callers_at_once_both_get_all_their_work_done() {
        let pool = ThreadPool::new(NonZeroUsize::new(3).unwrap());
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let sum = AtomicUsize::new(0);
                        pool.run(10, &|chunk| {
                            sum.fetch_add(chunk, Ordering::Relaxed);
                        });
                        assert_eq!(sum.into_inner(), 45);
                    }
                });
            }
        });
    }
}
