//! Threads for policies that ask others and may take a while.
//!
//! # Invariants
//!
//! - At most as many calls run at once as there are threads; a call that somebody waits for stands in line before
//!   its job is made, so giving up costs nothing.
//! - A job that was handed over runs to its end, whether or not anyone still waits for it: a
//!   call into WebAssembly is never cancelled in the middle.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use tokio::sync::{Semaphore, oneshot};

use interlock_metrics::IntGauge;

type Job = Box<dyn FnOnce() + Send>;

/// The threads, and what waits for them. Cheap to clone.
#[derive(Clone)]
pub(crate) struct SlowPool(Option<Arc<Threads>>);

/// The last handle lets the threads go.
struct Threads {
    waits: Arc<Semaphore>,
    shared: Arc<Shared>,
}

struct Shared {
    name: &'static str,
    threads_max: usize,
    queue: Mutex<Queue>,
    came: Condvar,
    running: IntGauge,
}

#[derive(Default)]
struct Queue {
    // Not bounded by itself: those who wait for an answer are at most one for each thread by their permits,
    // and the rest are accounts, of which there is one for each request that ended.
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
    over: bool,
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
                job();
                self.running.dec();
                queue = self.lock();
            } else if queue.over {
                queue.threads -= 1;
                return;
            } else {
                queue.idle += 1;
                queue = self.came.wait(queue).unwrap_or_else(PoisonError::into_inner);
                queue.idle -= 1;
            }
        }
    }
}

impl SlowPool {
    /// Without a thread yet: most hosts have no such policy.
    pub(crate) fn new(name: &'static str, threads_max: usize, running: IntGauge) -> Self {
        let (queue, came) = (Mutex::default(), Condvar::new());
        let shared = Arc::new(Shared { name, threads_max, queue, came, running });
        let waits = Arc::new(Semaphore::new(threads_max));
        Self(Some(Arc::new(Threads { waits, shared })))
    }

    /// Without threads at all: everything runs where it is asked for.
    pub(crate) fn in_line() -> Self {
        Self(None)
    }

    /// Runs it there and waits for what comes of it; `None` when no thread could be had or the
    /// job panicked. When nobody waits any more, `abandoned` is called on the thread instead.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
        abandoned: impl FnOnce() + Send + 'static,
    ) -> Option<T> {
        let Some(threads) = &self.0 else { return Some(job()) };
        let permit = Arc::clone(&threads.waits).acquire_owned().await.ok()?;
        let (answer, answered) = oneshot::channel();
        self.run(move || {
            let result = job();
            drop(permit);
            if answer.send(result).is_err() {
                abandoned();
            }
        });
        answered.await.ok()
    }

    /// Runs it there when a thread is free. Nobody waits for it.
    pub(crate) fn run(&self, job: impl FnOnce() + Send + 'static) {
        let Some(threads) = &self.0 else { return job() };
        let shared = &threads.shared;
        let mut queue = shared.lock();
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
                        job();
                        shared.running.dec();
                    }
                    return;
                }
                Err(_) => {}
            }
        }
        drop(queue);
        shared.came.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const THREADS: usize = 4;

    fn pool() -> SlowPool {
        let registry = interlock_metrics::Registry::new();
        SlowPool::new("test", THREADS, registry.gauge("running", "Running."))
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
            assert_eq!(ask.await.expect("no panic"), Some(()));
        }
        assert!(*most.lock().unwrap() <= THREADS);
    }
}
