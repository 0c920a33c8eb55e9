//! The host's own computing for requests: reading bodies, rendering chats, tokenizing, writing out
//! long answers. It has threads of its own, so that the runtime's threads only ever wait.
//!
//! ```text
//!   request ── memory ──► queue ──► thread ──► result
//!              (lease)    small first, tenants in turn
//! ```
//!
//! # Invariants
//!
//! - Everything has a bound: how many wait ([`WorkConfig::requests_max`]), what they hold
//!   ([`WorkConfig::memory_max`]), how many threads there are. What finds no room is refused at
//!   once, and counted.
//! - One thread at least never takes heavy work: a small request waits for small ones at most.
//! - What one tenant queues holds up no other: tenants take turns (see [`queue`]).
//! - Whoever gives up waiting frees its place at once, and its work is not begun.
//! - Work on behalf of a model that takes longer than [`WorkConfig::time_max`] has its request
//!   answered. A thread cannot be stopped, so it is counted as stuck and replaced: the pool keeps
//!   its size. After [`STUCK_MAX`] of them the same kind of work for that model is refused.
//! - Threads are never joined: a stuck one cannot hold up the end of the process.
//!
//! # Not here
//!
//! What the work is. Nothing here waits for a client, a policy or the engine.

mod config;
mod memory;
mod metrics;
mod queue;
mod threads;

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use interlock_request::{Deadline, ModelId};
use tokio::sync::oneshot;
use tokio::time::Instant;

pub use config::WorkConfig;
use memory::MemoryBudget;
pub(crate) use memory::MemoryLease;
pub use metrics::WorkMetrics;
use queue::QueueTicket;
use threads::WorkerThreads;

/// So many threads may be stuck in the same kind of work for the same model; then it is refused.
/// Threads that were at that work by then may get stuck as well.
pub const STUCK_MAX: usize = 4;

/// How much a piece of work is, as far as that can be told before it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// A usual request: some milliseconds at most.
    Small,
    /// A long one.
    Medium,
    /// A very long one.
    Large,
}

impl Class {
    /// All of them, smallest first.
    pub const ALL: [Self; 3] = [Self::Small, Self::Medium, Self::Large];

    /// The label in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Small => "small",
            Self::Medium => "medium",
            Self::Large => "large",
        }
    }

    /// Work on so many bytes in so many parts: JSON values, or messages. Both count, because what
    /// it costs depends on what it says: a byte may be a token, and two bytes a value.
    pub fn of(bytes: usize, parts: usize) -> Self {
        match (bytes, parts) {
            (..=0x4000, ..=0x400) => Self::Small,
            (..=0x4_0000, ..=0x4000) => Self::Medium,
            _ => Self::Large,
        }
    }

    /// Must a thread be left for others while it is done?
    fn is_heavy(self) -> bool {
        self > Self::Small
    }
}

/// The part of a model that work runs, where it may never end by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ModelPart {
    /// The chat template, and then the tokenizer.
    ChatTemplate,
    /// The tokenizer alone.
    Tokenizer,
}

impl ModelPart {
    /// The name in metrics, logs and errors.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ChatTemplate => "chat_template",
            Self::Tokenizer => "tokenizer",
        }
    }

    /// The name in a sentence.
    pub(crate) const fn spoken(self) -> &'static str {
        match self {
            Self::ChatTemplate => "chat template",
            Self::Tokenizer => "tokenizer",
        }
    }
}

/// A model, and the part of it that is at work.
pub type WorkOwner = (ModelId, ModelPart);

/// A piece of work and whose it is.
#[derive(Debug, Clone)]
pub struct WorkJob<'a> {
    /// How much it is.
    pub class: Class,
    /// Work of different tenants takes turns.
    pub tenant: &'a str,
    /// What is counted as stuck when the work does not end; `None` for work that always does.
    pub owner: Option<WorkOwner>,
    /// When its request's time is up, and by which deadline.
    pub due: Option<(Instant, Deadline)>,
    /// Work that is never refused, because what it finishes has been computed already.
    pub must: bool,
}

impl<'a> WorkJob<'a> {
    /// Work that always ends, for a request without deadlines.
    pub fn new(class: Class, tenant: &'a str) -> Self {
        Self { class, tenant, owner: None, due: None, must: false }
    }
}

/// Why the pool did not do a piece of work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WorkError {
    /// As many requests wait as may.
    Full {
        /// `work.requests_max`.
        limit: usize,
    },
    /// The request would take more memory than one may.
    TooMuch {
        /// About what the request would take.
        bytes: usize,
        /// What one request may take.
        limit: usize,
    },
    /// A deadline of the request passed first.
    Late(Deadline),
    /// The work did not end in time.
    Endless {
        /// The model and its part.
        owner: WorkOwner,
        /// `work.time_max`.
        limit: Duration,
    },
    /// [`STUCK_MAX`] threads are stuck in the same work already.
    Stuck {
        /// The model and its part.
        owner: WorkOwner,
    },
    /// The work panicked, which is a bug.
    Panicked,
}

/// The threads, the queue before them and the memory. Cheap to clone.
#[derive(Clone)]
pub struct WorkPool {
    memory: Arc<MemoryBudget>,
    /// `None`: whoever asks does it.
    threads: Option<Arc<PoolHandle>>,
}

/// Ends the threads that are not at work when the last handle is dropped.
struct PoolHandle(Arc<WorkerThreads>);

impl Drop for PoolHandle {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl std::fmt::Debug for WorkPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WorkPool").finish_non_exhaustive()
    }
}

impl WorkPool {
    /// Starts the threads.
    ///
    /// # Errors
    ///
    /// When the operating system gives none.
    pub fn start(config: &WorkConfig, metrics: WorkMetrics) -> io::Result<Self> {
        let memory = Self::memory(config, &metrics);
        let threads = WorkerThreads::start(config, metrics)?;
        Ok(Self { memory, threads: Some(Arc::new(PoolHandle(threads))) })
    }

    /// A pool without threads: whoever asks does the work. For simulations, which must come out
    /// the same each time.
    pub fn in_line(config: &WorkConfig, metrics: WorkMetrics) -> Self {
        Self { memory: Self::memory(config, &metrics), threads: None }
    }

    fn memory(config: &WorkConfig, metrics: &WorkMetrics) -> Arc<MemoryBudget> {
        let (bytes, waiting_max) = (config.memory_max.in_memory(), config.requests_max.get());
        MemoryBudget::new(
            bytes,
            waiting_max,
            metrics.memory.clone(),
            metrics.memory_waiting.clone(),
        )
    }

    /// What a request of this tenant's will hold; nothing yet.
    pub(crate) fn lease(&self, tenant: &str) -> MemoryLease {
        self.memory.lease(tenant)
    }

    /// Does this work on one of the threads, when its turn comes.
    ///
    /// # Errors
    ///
    /// When there is no room to wait, its time is up, it does not end or it panics.
    pub async fn run<T: Send + 'static>(
        &self,
        job: WorkJob<'_>,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, WorkError> {
        let Some(pool) = &self.threads else {
            return catch_unwind(AssertUnwindSafe(work)).map_err(|_| WorkError::Panicked);
        };
        let threads = &pool.0;
        let due = job.due;
        let (answer, told) = oneshot::channel();
        let task = Arc::new(PendingWork {
            work: Mutex::new(Some(work)),
            answer: Mutex::new(Some(answer)),
        });
        let ticket = threads.join(job, task)?;
        // Whoever stops waiting here gives its place up.
        let waiting = Waiting { threads, ticket };
        tokio::select! {
            biased;
            // A task that is let go of without a word has panicked while it was.
            done = told => done.unwrap_or(Err(WorkError::Panicked)),
            deadline = struck(due) => {
                threads.was_late(&waiting.ticket);
                Err(WorkError::Late(deadline))
            }
        }
    }

    /// Lets go of something large, which takes long when it has many parts. On a thread of ours,
    /// unless too much lies there already.
    pub(crate) fn discard(&self, value: impl Send + 'static) {
        match &self.threads {
            Some(pool) => pool.0.discard(Box::new(value)),
            None => drop(value),
        }
    }

    /// Gives up what has not ended in time, as if it were so much later: for tests, which depend on
    /// no clock. Otherwise a thread of the pool's looks when it is time.
    pub fn look(&self, later: Duration) {
        if let Some(pool) = &self.threads {
            pool.0.look_later(later);
        }
    }
}

/// Returns when the time of a request that was not admitted is up, with the deadline that struck.
pub(crate) async fn struck(due: Option<(Instant, Deadline)>) -> Deadline {
    let Some((at, deadline)) = due else { return std::future::pending().await };
    tokio::time::sleep_until(at).await;
    deadline
}

/// Someone who waits for work to be done.
struct Waiting<'a> {
    threads: &'a WorkerThreads,
    ticket: QueueTicket,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.threads.leave(&self.ticket);
    }
}

/// Something large that is let go of on a thread of the pool's, wherever its owner lets go of it.
pub(crate) struct DroppedInPool<T: Send + 'static> {
    value: Option<T>,
    pool: WorkPool,
}

impl<T: Send + 'static> DroppedInPool<T> {
    pub(crate) fn new(value: T, pool: WorkPool) -> Self {
        Self { value: Some(value), pool }
    }

    /// The value, which is the caller's to let go of from now on.
    pub(crate) fn into_inner(mut self) -> T {
        self.value.take().expect("it is taken once")
    }
}

impl<T: Send + 'static> std::ops::Deref for DroppedInPool<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.value.as_ref().expect("it is taken by value")
    }
}

impl<T: Send + 'static> std::ops::DerefMut for DroppedInPool<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.value.as_mut().expect("it is taken by value")
    }
}

impl<T: Send + 'static> Drop for DroppedInPool<T> {
    fn drop(&mut self) {
        if let Some(value) = self.value.take() {
            self.pool.discard(value);
        }
    }
}

/// Work in the queue, whatever it makes.
trait Task: Send + Sync {
    /// Does it, on this thread; what is returned answers.
    fn run(&self) -> Box<dyn FnOnce() + '_>;

    /// Answers without having done it. Who has an answer gets no other.
    fn refuse(&self, why: WorkError);
}

struct PendingWork<T, F> {
    work: Mutex<Option<F>>,
    answer: Mutex<Option<oneshot::Sender<Result<T, WorkError>>>>,
}

impl<T, F> PendingWork<T, F> {
    fn answer(&self, answer: Result<T, WorkError>) {
        let sender = lock(&self.answer).take();
        if let Some(sender) = sender {
            // Who does not wait any more does not want it.
            let _ = sender.send(answer);
        }
    }
}

impl<T: Send, F: FnOnce() -> T + Send> Task for PendingWork<T, F> {
    fn run(&self) -> Box<dyn FnOnce() + '_> {
        let Some(work) = lock(&self.work).take() else { return Box::new(|| {}) };
        let done = catch_unwind(AssertUnwindSafe(work)).map_err(|_| WorkError::Panicked);
        if done.is_err() {
            tracing::error!("work for a request panicked");
        }
        Box::new(|| self.answer(done))
    }

    fn refuse(&self, why: WorkError) {
        self.answer(Err(why));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
