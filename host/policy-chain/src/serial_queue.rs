//! The calls of one policy about one request on other threads: one after the other.
//!
//! # Invariants
//!
//! - In order and one at a time, also behind a call that nobody waits for any more; the last job
//!   comes after all others, and nothing comes after it.
//! - One turn on a thread is one job: a queue with more to do waits for a thread again, so that
//!   long streams do not keep the threads from the others.
//! - The line has an end; what finds no room is given back to whoever brought it.
//! - A job that panics passes the turn on like any other.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::sync::oneshot;

use crate::blocking_pool::{BlockingJob, BlockingPool};
use crate::panics::survive;
use crate::policy_threads::PolicyThreads;

/// Jobs that wait in one queue: the windows of an observer and the events of a request, and rarely
/// more than one of either.
const JOBS_MAX: usize = 32;

/// The calls of one policy about one request.
pub(crate) struct SerialQueue {
    pool: BlockingPool,
    /// What the policy noted, if it was asked to admit here: also when nobody waited for its
    /// answer.
    pub(crate) note: OnceLock<Arc<str>>,
    state: Mutex<QueueState>,
}

#[derive(Default)]
struct QueueState {
    jobs: VecDeque<BlockingJob>,
    last: Option<BlockingJob>,
    running: bool,
    closed: bool,
}

/// Why nothing came of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotAnswered {
    /// No thread was free in time, or too many wait for one.
    Busy,
    /// The job panicked.
    Gone,
}

impl fmt::Debug for SerialQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SerialQueue").finish_non_exhaustive()
    }
}

impl SerialQueue {
    pub(crate) fn new(pool: BlockingPool) -> Arc<Self> {
        Arc::new(Self { pool, note: OnceLock::new(), state: Mutex::default() })
    }

    /// Puts it in line. False: there is no room, or the last has come; it never runs.
    #[must_use]
    pub(crate) fn push(self: &Arc<Self>, job: impl FnOnce() + Send + 'static) -> bool {
        let mut state = self.state();
        if state.closed || state.jobs.len() >= JOBS_MAX {
            return false;
        }
        state.jobs.push_back(Box::new(job));
        let started = std::mem::replace(&mut state.running, true);
        drop(state);
        if started || self.stand_in_line() {
            return true;
        }
        // Nothing was before it, and nobody else can have come: a request is driven by one task.
        let mut state = self.state();
        state.running = false;
        state.jobs.clear();
        false
    }

    /// Runs it in its turn, on a thread of the policy's own, and waits for what comes of it. Once
    /// the turn was given it runs to its end, whether or not anybody waits.
    pub(crate) async fn ask<T: Send + 'static>(
        self: &Arc<Self>,
        threads: &PolicyThreads,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, NotAnswered> {
        let permit = threads.permit().await.ok_or(NotAnswered::Busy)?;
        let (answer, into_any) = oneshot::channel();
        let taken = self.push(move || {
            let result = job();
            // First, so that whoever has its answer finds the thread free.
            drop(permit);
            // Nobody waits any more: what had to be kept of it the job has kept.
            let _ = answer.send(result);
        });
        if !taken {
            return Err(NotAnswered::Busy);
        }
        into_any.await.map_err(|_| NotAnswered::Gone)
    }

    /// What comes after everything else, or that again when there is nothing else: then it may
    /// run now.
    pub(crate) fn close<J: FnOnce() + Send + 'static>(&self, last: J) -> Option<J> {
        let mut state = self.state();
        state.closed = true;
        if !state.running {
            return Some(last);
        }
        state.last = Some(Box::new(last));
        None
    }

    fn state(&self) -> MutexGuard<'_, QueueState> {
        // No job runs under it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stand_in_line(self: &Arc<Self>) -> bool {
        let queue = Arc::clone(self);
        self.pool.run(move || queue.work())
    }

    fn work(self: &Arc<Self>) {
        loop {
            let mut state = self.state();
            let Some(job) = state.jobs.pop_front().or_else(|| state.last.take()) else {
                state.running = false;
                return;
            };
            drop(state);
            survive("the queue of a request", job);
            let mut state = self.state();
            if state.jobs.is_empty() && state.last.is_none() {
                state.running = false;
                return;
            }
            drop(state);
            // Where there is no room to stand, it goes on here rather than lose what it has.
            if self.stand_in_line() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::{Duration, Instant};

    use super::*;

    fn pool(threads: usize) -> BlockingPool {
        let registry = interlock_metrics::Registry::new();
        BlockingPool::new("test", threads, 64, registry.gauge("running", "Running."))
    }

    #[test]
    fn a_queue_with_much_to_do_lets_the_others_have_their_turn() {
        let pool = pool(1);
        let (one, other) = (SerialQueue::new(pool.clone()), SerialQueue::new(pool.clone()));
        let (go, gone) = mpsc::sync_channel::<()>(1);
        let seen = Arc::new(Mutex::new(String::new()));
        assert!(one.push(move || gone.recv().expect("the test lets it go")));
        let tell = |queue: &Arc<SerialQueue>, what| {
            let seen = Arc::clone(&seen);
            assert!(queue.push(move || seen.lock().unwrap().push_str(what)));
        };
        for what in ["a", "b", "c"] {
            tell(&one, what);
        }
        for what in ["1", "2", "3"] {
            tell(&other, what);
        }
        go.send(()).expect("it waits");
        assert_eq!(pool.drain(Instant::now() + Duration::from_secs(60)), 0);
        assert_eq!(*seen.lock().unwrap(), "1a2b3c");
    }

    #[test]
    fn the_last_comes_after_all_others_and_nothing_after_it() {
        let pool = pool(4);
        let queue = SerialQueue::new(pool.clone());
        let (go, gone) = mpsc::sync_channel::<()>(1);
        let seen = Arc::new(Mutex::new(String::new()));
        let tell = |what| {
            let seen = Arc::clone(&seen);
            move || seen.lock().unwrap().push_str(what)
        };
        assert!(queue.push(move || gone.recv().expect("the test lets it go")));
        assert!(queue.push(tell("a")));
        assert!(queue.close(tell("z")).is_none());
        assert!(!queue.push(tell("b")));
        go.send(()).expect("it waits");
        assert_eq!(pool.drain(Instant::now() + Duration::from_secs(60)), 0);
        assert_eq!(*seen.lock().unwrap(), "az");
        assert!(SerialQueue::new(pool).close(|| ()).is_some(), "nothing is before it");
    }

    /// It used to keep the turn for good: what came later waited for ever, and so did the account.
    #[test]
    fn a_job_that_panics_passes_the_turn_on() {
        let pool = pool(1);
        let queue = SerialQueue::new(pool.clone());
        let seen = Arc::new(Mutex::new(String::new()));
        let tell = |what| {
            let seen = Arc::clone(&seen);
            move || seen.lock().unwrap().push_str(what)
        };
        let (go, gone) = mpsc::sync_channel::<()>(1);
        assert!(queue.push(move || {
            let _ = gone.recv();
            std::panic::resume_unwind(Box::new("oh"))
        }));
        assert!(queue.push(tell("a")));
        drop(go);
        assert_eq!(pool.drain(Instant::now() + Duration::from_secs(60)), 0);
        assert_eq!(*seen.lock().unwrap(), "a");
        assert!(queue.push(tell("b")));
        assert!(queue.push(|| std::panic::resume_unwind(Box::new("oh"))));
        let rest = queue.close(tell("z"));
        assert_eq!(pool.drain(Instant::now() + Duration::from_secs(60)), 0);
        rest.into_iter().for_each(|last| last());
        assert_eq!(*seen.lock().unwrap(), "abz");
        // Also where everything runs in line.
        let queue = SerialQueue::new(BlockingPool::in_line());
        assert!(queue.push(|| std::panic::resume_unwind(Box::new("oh"))));
        assert!(queue.push(tell("!")));
        assert_eq!(*seen.lock().unwrap(), "abz!");
        assert!(queue.close(|| ()).is_some(), "nothing is before it");
    }

    #[test]
    fn what_finds_no_room_is_given_back() {
        let queue = SerialQueue::new(pool(1));
        let (go, gone) = mpsc::sync_channel::<()>(1);
        let (began, begun) = mpsc::sync_channel::<()>(1);
        assert!(queue.push(move || {
            began.send(()).expect("the test listens");
            let _ = gone.recv();
        }));
        begun.recv().expect("it begins");
        assert!((0..JOBS_MAX).all(|_| queue.push(|| ())));
        assert!(!queue.push(|| ()));
        drop(go);
    }
}
