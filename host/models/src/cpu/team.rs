//! Threads that share out one piece of work at a time.
//!
//! A token takes some two hundred matrix products of 20 to 200 microseconds each, so what counts
//! is the time to get help and the time to be done with it. The caller works too; a helper that
//! wakes up late finds the work gone, and nobody waited for it. That is what a general pool does
//! not do: its scope ends when every task it spawned has run, so on a busy machine each product
//! would wait for the scheduler.
//!
//! # Invariants
//!
//! - `run` returns when every chunk is done and no helper holds a reference into the caller's
//!   stack any more.
//! - One piece of work at a time: whoever comes second does its own alone.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::{hint, thread};

/// How often an idle helper looks for work before it sleeps: some half a millisecond, which bridges
/// every gap between two products of one token, and the sampling between two tokens, and no more,
/// because the cores are not only ours. Waking a sleeper costs tens of microseconds some hundred
/// times a token on a virtual machine: at 256 looks a token took half as long again (RESULTS.md).
const LOOKS_BEFORE_SLEEP: u32 = 8192;

static TEAM: OnceLock<Team> = OnceLock::new();

/// Makes the team, of `threads` including the caller, unless it exists. Returns its size.
pub(super) fn assemble(threads: NonZeroUsize) -> usize {
    TEAM.get_or_init(|| Team::new(threads)).size()
}

/// The team; made of all physical cores if nobody chose.
pub(super) fn team() -> &'static Team {
    TEAM.get_or_init(|| Team::new(physical_cores()))
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

pub(super) struct Team {
    shared: Arc<Shared>,
    helpers: usize,
}

struct Shared {
    posted: Mutex<Posted>,
    wake: Condvar,
    /// Counts the pieces of work posted, so that a spinning helper need not take the lock.
    round: AtomicU64,
}

struct Posted {
    work: Option<WorkPointer>,
    sleeping: usize,
}

/// One piece of work, on its caller's stack.
struct Work<'a> {
    chunks: usize,
    next: AtomicUsize,
    helping: AtomicUsize,
    task: &'a (dyn Fn(usize) + Sync),
}

#[derive(Clone, Copy)]
struct WorkPointer(*const Work<'static>);

// SAFETY: `Work` is Sync (atomics and a Sync closure), and `Team::run` keeps it alive for as long
// as any helper may follow the pointer; see there.
unsafe impl Send for WorkPointer {}

impl Team {
    pub(super) fn new(threads: NonZeroUsize) -> Self {
        let shared = Arc::new(Shared {
            posted: Mutex::new(Posted { work: None, sleeping: 0 }),
            wake: Condvar::new(),
            round: AtomicU64::new(0),
        });
        let started = (1..threads.get()).filter(|number| {
            let shared = Arc::clone(&shared);
            // Without a helper the work is slower, not wrong.
            thread::Builder::new()
                .name(format!("compute-{number}"))
                .spawn(move || shared.help_forever())
                .is_ok()
        });
        let helpers = started.count();
        Self { shared, helpers }
    }

    /// Threads that work on one piece, the caller's included.
    pub(super) fn size(&self) -> usize {
        self.helpers + 1
    }

    /// Calls `task` once with each number below `chunks`, on as many threads as come in time.
    pub(super) fn run(&self, chunks: usize, task: &(dyn Fn(usize) + Sync)) {
        let work = Work { chunks, next: AtomicUsize::new(0), helping: AtomicUsize::new(0), task };
        if chunks <= 1 || self.helpers == 0 || !self.shared.post(&work) {
            return work.take_part();
        }
        // From here on helpers may hold the pointer: whatever happens, withdraw before returning.
        let withdraw = Withdraw { shared: &self.shared, work: &work };
        work.take_part();
        drop(withdraw);
    }
}

struct Withdraw<'a, 'b> {
    shared: &'a Shared,
    work: &'a Work<'b>,
}

impl Drop for Withdraw<'_, '_> {
    fn drop(&mut self) {
        self.shared.lock().work = None;
        // No helper can join now. Those that did are in their last chunk.
        let mut looks = 0_u32;
        while self.work.helping.load(Ordering::Acquire) > 0 {
            looks += 1;
            if looks < LOOKS_BEFORE_SLEEP { hint::spin_loop() } else { thread::yield_now() }
        }
    }
}

impl Work<'_> {
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

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Posted> {
        // Nothing panics while it is held.
        self.posted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Offers `work` to the helpers; false if there is other work already.
    fn post(&self, work: &Work<'_>) -> bool {
        let mut posted = self.lock();
        if posted.work.is_some() {
            return false;
        }
        posted.work = Some(WorkPointer(std::ptr::from_ref(work).cast()));
        let sleeping = posted.sleeping;
        drop(posted);
        self.round.fetch_add(1, Ordering::Release);
        if sleeping > 0 {
            self.wake.notify_all();
        }
        true
    }

    fn help_forever(&self) {
        let mut seen = 0;
        loop {
            seen = self.wait_for_round_after(seen);
            let joined = {
                let posted = self.lock();
                posted.work.inspect(|work| {
                    // SAFETY: the pointer is in `posted`, so the caller has not withdrawn it; it
                    // cannot while we hold the lock.
                    unsafe { &*work.0 }.helping.fetch_add(1, Ordering::Relaxed);
                })
            };
            if let Some(WorkPointer(work)) = joined {
                // SAFETY: we are counted in `helping`, and the caller keeps the work alive until
                // that count is zero again.
                let work = unsafe { &*work };
                let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    work.take_part();
                }));
                // A chunk that was not computed would be a wrong number in someone's answer.
                if done.is_err() {
                    std::process::abort();
                }
                work.helping.fetch_sub(1, Ordering::Release);
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
        let team = Team::new(NonZeroUsize::new(4).unwrap());
        for chunks in [0, 1, 2, 3, 7, 64] {
            for _ in 0..200 {
                let done: Vec<AtomicUsize> = (0..chunks).map(|_| AtomicUsize::new(0)).collect();
                team.run(chunks, &|chunk| {
                    done[chunk].fetch_add(1, Ordering::Relaxed);
                });
                assert!(done.iter().all(|count| count.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn two_callers_at_once_both_get_all_their_work_done() {
        let team = Team::new(NonZeroUsize::new(3).unwrap());
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let sum = AtomicUsize::new(0);
                        team.run(10, &|chunk| {
                            sum.fetch_add(chunk, Ordering::Relaxed);
                        });
                        assert_eq!(sum.into_inner(), 45);
                    }
                });
            }
        });
    }
}
