//! Threads for policies that ask others and may take a while.
//!
//! # Invariants
//!
//! - At most as many calls run at once as there are threads; a call that somebody waits for stands
//!   in line before its job is made, so giving up costs nothing, and for [`PATIENCE`] at most.
//! - A job that was handed over runs to its end, whether or not anyone still waits for it: a
//!   call into WebAssembly is never cancelled in the middle.
//! - The line of jobs has an end; who gives a job hears when there is no room for it.
//! - A job that panics costs no thread.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use interlock_metrics::IntGauge;

/// Longest wait for a thread. All are busy for this long only when the machine that policies ask
/// is slow or gone; then it is for the operator's `on_failure` to say what happens, and not for
/// the line to grow.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);

pub(crate) type Job = Box<dyn FnOnce() + Send>;

/// The threads, and what waits for them. Cheap to clone.
#[derive(Clone)]
pub(crate) struct SlowPool(Option<Arc<Threads>>);

/// Why nothing came of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unasked {
    /// No thread was free in time.
    Busy,
    /// The job panicked.
    Gone,
}

/// The last handle lets the threads go.
struct Threads {
    waits: Arc<Semaphore>,
    shared: Arc<Shared>,
}

struct Shared {
    name: &'static str,
    threads_max: usize,
    jobs_max: usize,
    queue: Mutex<Queue>,
    came: Condvar,
    /// Nothing waits, and no thread has work.
    rest: Condvar,
    running: IntGauge,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
    over: bool,
}

impl Queue {
    /// What waits and what runs.
    fn unfinished(&self) -> usize {
        self.jobs.len() + self.threads - self.idle
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.shared.lock().over = true;
        self.shared.came.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        // No job runs under it, so nothing can have left it half done.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        let mut queue = self.lock();
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                drop(queue);
                self.do_it(job);
                queue = self.lock();
            } else if queue.over {
                queue.threads -= 1;
                return;
            } else {
                queue.idle += 1;
                if queue.unfinished() == 0 {
                    self.rest.notify_all();
                }
                queue = self.came.wait(queue).unwrap_or_else(PoisonError::into_inner);
                queue.idle -= 1;
            }
        }
    }

    fn do_it(&self, job: Job) {
        // Policies' own panics are caught before; this is one of ours, and the thread is still
        // counted on.
        if catch_unwind(AssertUnwindSafe(job)).is_err() {
            tracing::error!(threads = self.name, "a job panicked");
        }
        self.running.dec();
    }
}

impl SlowPool {
    /// Without a thread yet: most hosts have no such policy. At most `jobs_max` jobs wait for one.
    pub(crate) fn new(
        name: &'static str,
        threads_max: usize,
        jobs_max: usize,
        running: IntGauge,
    ) -> Self {
        let (queue, came, rest) = (Mutex::default(), Condvar::new(), Condvar::new());
        let shared = Arc::new(Shared { name, threads_max, jobs_max, queue, came, rest, running });
        let waits = Arc::new(Semaphore::new(threads_max));
        Self(Some(Arc::new(Threads { waits, shared })))
    }

    /// Without threads at all: everything runs where it is asked for.
    pub(crate) fn in_line() -> Self {
        Self(None)
    }

    /// Runs it there and waits for what comes of it. When nobody waits any more, `abandoned` is
    /// called on the thread instead.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
        abandoned: impl FnOnce() + Send + 'static,
    ) -> Result<T, Unasked> {
        let Some(threads) = &self.0 else { return Ok(job()) };
        let permit = threads.permit().await.ok_or(Unasked::Busy)?;
        let (answer, answered) = oneshot::channel();
        let taken = self.run(move || {
            let result = job();
            drop(permit);
            if answer.send(result).is_err() {
                abandoned();
            }
        });
        if !taken {
            return Err(Unasked::Busy);
        }
        answered.await.map_err(|_| Unasked::Gone)
    }

    /// Runs it there when a thread is free. Nobody waits for it. False: there was no room, and it
    /// never runs.
    #[must_use]
    pub(crate) fn run(&self, job: impl FnOnce() + Send + 'static) -> bool {
        let Some(threads) = &self.0 else {
            job();
            return true;
        };
        let shared = &threads.shared;
        let mut queue = shared.lock();
        if queue.jobs.len() >= shared.jobs_max {
            return false;
        }
        queue.jobs.push_back(Box::new(job));
        shared.running.inc();
        if queue.idle < queue.jobs.len() && queue.threads < shared.threads_max {
            let worker = Arc::clone(shared);
            let thread = thread::Builder::new().name(shared.name.into());
            match thread.spawn(move || worker.work()) {
                Ok(_) => queue.threads += 1,
                Err(error) if queue.threads == 0 => {
                    // Better late than never: an account must not be lost.
                    tracing::error!(%error, "no thread for policies; one is called in line");
                    if let Some(job) = queue.jobs.pop_back() {
                        drop(queue);
                        shared.do_it(job);
                    }
                    return true;
                }
                Err(_) => {}
            }
        }
        drop(queue);
        shared.came.notify_one();
        true
    }

    /// Waits until all is done, but not beyond this; how many jobs are not. Blocks.
    pub(crate) fn drain(&self, until: Instant) -> usize {
        let Some(threads) = &self.0 else { return 0 };
        let shared = &threads.shared;
        let left = until.saturating_duration_since(Instant::now());
        let busy = |queue: &mut Queue| queue.unfinished() > 0;
        let waited = shared.rest.wait_timeout_while(shared.lock(), left, busy);
        waited.unwrap_or_else(PoisonError::into_inner).0.unfinished()
    }
}

impl Threads {
    /// A place in which nobody else can be; `None` when there is none for so long.
    async fn permit(&self) -> Option<OwnedSemaphorePermit> {
        // At once if it can be had, which takes no timer.
        if let Ok(permit) = Arc::clone(&self.waits).try_acquire_owned() {
            return Some(permit);
        }
        let waits = Arc::clone(&self.waits).acquire_owned();
        tokio::time::timeout(PATIENCE, waits).await.ok()?.ok()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const THREADS: usize = 4;

    fn pool() -> SlowPool {
        let registry = interlock_metrics::Registry::new();
        SlowPool::new("test", THREADS, 2 * THREADS, registry.gauge("running", "Running."))
    }

    #[tokio::test]
    async fn what_was_handed_over_runs_to_its_end_though_nobody_waits() {
        let pool = pool();
        let (go, gone) = mpsc::sync_channel::<()>(1);
        let (done, is_done) = mpsc::sync_channel(2);
        let told = done.clone();
        let ask = pool.ask(
            move || {
                gone.recv().expect("the test lets it go");
                done.send("done").expect("the test listens");
            },
            move || told.send("abandoned").expect("the test listens"),
        );
        let waited = tokio::time::timeout(std::time::Duration::from_millis(20), ask).await;
        assert!(waited.is_err());
        go.send(()).expect("it waits");
        assert_eq!(is_done.recv(), Ok("done"));
        assert_eq!(is_done.recv(), Ok("abandoned"));
    }

    #[tokio::test]
    async fn no_more_run_at_once_than_there_are_threads() {
        let pool = pool();
        let (most, now) = (Arc::new(Mutex::new(0)), Arc::new(Mutex::new(0)));
        let asks: Vec<_> = (0..4 * THREADS)
            .map(|_| {
                let (pool, most, now) = (pool.clone(), Arc::clone(&most), Arc::clone(&now));
                tokio::spawn(async move {
                    let job = move || {
                        let running = {
                            let mut now = now.lock().unwrap();
                            *now += 1;
                            *now
                        };
                        let mut most = most.lock().unwrap();
                        *most = running.max(*most);
                        drop(most);
                        thread::yield_now();
                        *now.lock().unwrap() -= 1;
                    };
                    pool.ask(job, || ()).await
                })
            })
            .collect();
        for ask in asks {
            assert_eq!(ask.await.expect("no panic"), Ok(()));
        }
        assert!(*most.lock().unwrap() <= THREADS);
    }

    /// Takes every thread until the sender is dropped.
    fn occupied(pool: &SlowPool) -> mpsc::SyncSender<()> {
        let (go, gone) = mpsc::sync_channel::<()>(1);
        let gone = Arc::new(Mutex::new(gone));
        let (began, begun) = mpsc::sync_channel(THREADS);
        for _ in 0..THREADS {
            let (pool, gone, began) = (pool.clone(), Arc::clone(&gone), began.clone());
            let wait = move || {
                began.send(()).expect("the test listens");
                let _ = gone.lock().unwrap().recv();
            };
            tokio::spawn(async move { pool.ask(wait, || ()).await });
        }
        // Each in turn holds the receiver, and the rest wait for that.
        drop(began);
        tokio::task::block_in_place(|| begun.iter().take(THREADS).for_each(drop));
        go
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn who_gets_no_thread_in_time_is_told_so_and_the_next_one_is_served() {
        let pool = pool();
        let go = occupied(&pool);
        let asked_at = Instant::now();
        assert_eq!(pool.ask(|| (), || ()).await, Err(Unasked::Busy));
        assert!(asked_at.elapsed() >= PATIENCE);
        drop(go);
        assert_eq!(pool.ask(|| (), || ()).await, Ok(()));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_line_has_an_end_and_can_be_waited_for() {
        let pool = pool();
        let go = occupied(&pool);
        let done = Arc::new(Mutex::new(0));
        let count = || {
            let done = Arc::clone(&done);
            pool.run(move || *done.lock().unwrap() += 1)
        };
        assert!((0..2 * THREADS).all(|_| count()));
        assert!(!count(), "there is no room");
        let unfinished = pool.drain(Instant::now() + Duration::from_millis(10));
        assert_eq!(unfinished, 3 * THREADS);
        drop(go);
        assert_eq!(pool.drain(Instant::now() + Duration::from_secs(60)), 0);
        assert_eq!(*done.lock().unwrap(), 2 * THREADS);
    }

    #[tokio::test]
    async fn a_job_that_panics_costs_no_thread() {
        let pool = pool();
        for _ in 0..2 * THREADS {
            let oh = || std::panic::resume_unwind(Box::new("oh"));
            assert_eq!(pool.ask(oh, || ()).await, Err::<(), _>(Unasked::Gone));
        }
        assert_eq!(pool.ask(|| 1, || ()).await, Ok(1));
        assert_eq!(pool.drain(Instant::now() + Duration::from_secs(60)), 0);
    }
}
