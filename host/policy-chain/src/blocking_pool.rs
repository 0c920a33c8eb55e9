//! Threads for what must not run on those that serve: calls of policies that compute for long or
//! wait for others, and what is called beside requests.
//!
//! # Invariants
//!
//! - At most as many jobs run at once as there are threads.
//! - A job that was handed over runs to its end, whether or not anyone still waits for it: a
//!   call into WebAssembly is never cancelled in the middle.
//! - The line of jobs has an end; who gives a job hears when there is no room for it. No job ever
//!   runs on the thread of whoever gives it.
//! - A job that panics costs no thread, and no thread that ends keeps its place.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use interlock_metrics::IntGauge;

use crate::panics::survive;

/// A thread that had nothing to do for so long ends; the next job that finds none begins another.
const IDLE_MAX: Duration = Duration::from_secs(30);

pub(crate) type BlockingJob = Box<dyn FnOnce() + Send>;

/// The threads, and what waits for them. Cheap to clone.
#[derive(Clone)]
pub(crate) struct BlockingPool(Option<Arc<PoolThreads>>);

/// The last handle lets the threads go.
struct PoolThreads(Arc<BlockingPoolState>);

struct BlockingPoolState {
    name: &'static str,
    threads_max: usize,
    jobs_max: usize,
    queue: Mutex<PoolQueue>,
    came: Condvar,
    /// Nothing waits, and no thread has work.
    rest: Condvar,
    running: IntGauge,
}

#[derive(Default)]
struct PoolQueue {
    jobs: VecDeque<CountedJob>,
    threads: usize,
    idle: usize,
    over: bool,
}

/// A job, counted in the gauge until it is done or dropped.
struct CountedJob {
    job: BlockingJob,
    _counted: GaugeCount,
}

/// One more in a gauge, for as long as it lives.
pub(crate) struct GaugeCount(IntGauge);

impl GaugeCount {
    pub(crate) fn in_gauge(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for GaugeCount {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl PoolQueue {
    /// What waits and what runs.
    fn unfinished(&self) -> usize {
        self.jobs.len() + self.threads - self.idle
    }
}

impl Drop for PoolThreads {
    fn drop(&mut self) {
        self.0.lock().over = true;
        self.0.came.notify_all();
    }
}

/// A thread's place among those of its pool. It is given up however the thread ends.
struct Worker<'a>(&'a BlockingPoolState);

impl Worker<'_> {
    /// Under the lock under which it found nothing to do: a job that comes later finds it gone.
    fn leave(self, queue: &mut PoolQueue) {
        queue.threads -= 1;
        std::mem::forget(self);
    }
}

impl Drop for Worker<'_> {
    fn drop(&mut self) {
        let mut queue = self.0.lock();
        queue.threads -= 1;
        if queue.unfinished() == 0 {
            self.0.rest.notify_all();
        }
    }
}

impl BlockingPoolState {
    fn lock(&self) -> MutexGuard<'_, PoolQueue> {
        // No job runs under it, so nothing can have left it half done.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let worker = Worker(self);
        let mut rested = false;
        let mut queue = self.lock();
        loop {
            if let Some(CountedJob { job, _counted }) = queue.jobs.pop_front() {
                drop(queue);
                survive(self.name, job);
                drop(_counted);
                rested = false;
                queue = self.lock();
            } else if queue.over || rested {
                return worker.leave(&mut queue);
            } else {
                queue.idle += 1;
                if queue.unfinished() == 0 {
                    self.rest.notify_all();
                }
                let (woken, waited) =
                    self.came.wait_timeout(queue, IDLE_MAX).unwrap_or_else(PoisonError::into_inner);
                queue = woken;
                rested = waited.timed_out();
                queue.idle -= 1;
            }
        }
    }
}

impl BlockingPool {
    /// Without a thread yet: most hosts have no such policy. At most `jobs_max` jobs wait for one.
    pub(crate) fn new(
        name: &'static str,
        threads_max: usize,
        jobs_max: usize,
        running: IntGauge,
    ) -> Self {
        let (queue, came, rest) = (Mutex::default(), Condvar::new(), Condvar::new());
        let shared = BlockingPoolState { name, threads_max, jobs_max, queue, came, rest, running };
        Self(Some(Arc::new(PoolThreads(Arc::new(shared)))))
    }

    /// Without threads at all: everything runs where it is asked for.
    pub(crate) fn in_line() -> Self {
        Self(None)
    }

    /// Runs it there when a thread is free. Nobody waits for it. False: there was no room, and it
    /// never runs.
    #[must_use]
    pub(crate) fn run(&self, job: impl FnOnce() + Send + 'static) -> bool {
        let Some(PoolThreads(shared)) = self.0.as_deref() else {
            job();
            return true;
        };
        let mut queue = shared.lock();
        if queue.jobs.len() >= shared.jobs_max {
            return false;
        }
        if queue.idle <= queue.jobs.len() && queue.threads < shared.threads_max {
            let worker = Arc::clone(shared);
            let thread = thread::Builder::new().name(shared.name.into());
            match thread.spawn(move || worker.work()) {
                Ok(_) => queue.threads += 1,
                // Not here instead: whoever brings it may be serving everyone.
                Err(error) if queue.threads == 0 => {
                    drop(queue);
                    tracing::error!(%error, threads = shared.name, "no thread for a policy");
                    return false;
                }
                Err(_) => {}
            }
        }
        let counted = GaugeCount::in_gauge(&shared.running);
        queue.jobs.push_back(CountedJob { job: Box::new(job), _counted: counted });
        drop(queue);
        shared.came.notify_one();
        true
    }

    /// Waits until all is done, but not beyond this; how many jobs are not. Blocks.
    pub(crate) fn drain(&self, until: Instant) -> usize {
        let Some(PoolThreads(shared)) = self.0.as_deref() else { return 0 };
        let left = until.saturating_duration_since(Instant::now());
        let busy = |queue: &mut PoolQueue| queue.unfinished() > 0;
        let waited = shared.rest.wait_timeout_while(shared.lock(), left, busy);
        waited.unwrap_or_else(PoisonError::into_inner).0.unfinished()
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::mpsc;

    use super::*;

    const THREADS: usize = 4;

    fn pool() -> (BlockingPool, IntGauge) {
        let running = interlock_metrics::Registry::new().gauge("running", "Running.");
        (BlockingPool::new("test", THREADS, 2 * THREADS, running.clone()), running)
    }

    fn far() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    /// Takes every thread until the sender is dropped.
    fn occupied(pool: &BlockingPool) -> mpsc::SyncSender<()> {
        let (go, gone) = mpsc::sync_channel::<()>(1);
        let gone = Arc::new(Mutex::new(gone));
        let (began, begun) = mpsc::sync_channel(THREADS);
        for _ in 0..THREADS {
            let (gone, began) = (Arc::clone(&gone), began.clone());
            assert!(pool.run(move || {
                began.send(()).expect("the test listens");
                // Each in turn holds the receiver, and the rest wait for that.
                let _ = gone.lock().unwrap().recv();
            }));
        }
        begun.iter().take(THREADS).for_each(drop);
        go
    }

    #[test]
    fn no_more_run_at_once_than_there_are_threads() {
        let (pool, running) = pool();
        let go = occupied(&pool);
        let (begun, begins) = mpsc::sync_channel(64);
        assert!(pool.run(move || begun.send(()).expect("the test listens")));
        assert_eq!(running.get(), 1 + THREADS as i64);
        assert!(begins.try_recv().is_err(), "it runs beside as many as may");
        drop(go);
        begins.recv().expect("it runs when there is a thread");
        assert_eq!(pool.drain(far()), 0);
        assert_eq!(running.get(), 0);
    }

    #[test]
    fn the_line_has_an_end_and_can_be_waited_for() {
        let (pool, _) = pool();
        let go = occupied(&pool);
        let done = Arc::new(Mutex::new(0));
        let count = || {
            let done = Arc::clone(&done);
            pool.run(move || *done.lock().unwrap() += 1)
        };
        assert!((0..2 * THREADS).all(|_| count()));
        assert!(!count(), "there is no room");
        assert_eq!(pool.drain(Instant::now()), 3 * THREADS);
        drop(go);
        assert_eq!(pool.drain(far()), 0);
        assert_eq!(*done.lock().unwrap(), 2 * THREADS);
    }

    #[test]
    fn a_job_that_panics_costs_no_thread_and_is_counted_no_longer() {
        let (pool, running) = pool();
        for _ in 0..2 * THREADS {
            assert!(pool.run(|| std::panic::resume_unwind(Box::new("oh"))));
            assert_eq!(pool.drain(far()), 0);
        }
        assert_eq!(running.get(), 0);
        let (done, is_done) = mpsc::sync_channel(64);
        assert!(pool.run(move || done.send(1).expect("the test listens")));
        assert_eq!(is_done.recv(), Ok(1));
    }

    /// Not even a panic outside of any job, which nobody knows of: the place is free for another.
    #[test]
    fn a_thread_that_ends_gives_up_its_place() {
        let (pool, _) = pool();
        let Some(PoolThreads(shared)) = pool.0.as_deref() else { panic!("it has threads") };
        shared.lock().threads = THREADS;
        for _ in 0..THREADS {
            let place = || {
                let _worker = Worker(shared);
                std::panic::resume_unwind(Box::new("oh"))
            };
            let ended: Result<(), _> = catch_unwind(AssertUnwindSafe(place));
            assert!(ended.is_err());
        }
        let (done, is_done) = mpsc::sync_channel(64);
        assert!(pool.run(move || done.send(1).expect("the test listens")));
        assert_eq!(is_done.recv(), Ok(1));
    }
}
