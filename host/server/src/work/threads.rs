//! The pool's threads: they take from the queue, and one more looks after those that do not come
//! back.

use std::any::Any;
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::metrics::How;
use super::queue::{Enqueued, QueueTicket, WorkQueue};
use super::{Class, STUCK_MAX, Task, WorkConfig, WorkError, WorkJob, WorkMetrics, WorkOwner, lock};

/// Everything that the threads share.
pub(super) struct WorkerThreads {
    // Every request joins here and every thread takes from here: there is no single owner. The lock
    // is held for operations on the queue and never while something is done.
    state: Mutex<WorkerState>,
    /// There is work, or the end.
    work: Condvar,
    /// There is something to look after, or the end.
    watch: Condvar,
    size: usize,
    time_max: Duration,
    waste_max: usize,
    metrics: WorkMetrics,
}

struct WorkerState {
    queue: WorkQueue<QueuedTask>,
    /// What is only to be let go of.
    waste: Vec<Box<dyn Any + Send>>,
    running: BTreeMap<u64, RunningTask>,
    /// Threads that may take work; stuck ones are not among them.
    threads: usize,
    heavy: usize,
    stuck: BTreeMap<WorkOwner, usize>,
    begun: u64,
    /// Will the watch look again by itself before anything that begins now is due?
    watched: bool,
    /// Was something large done since memory was last given back?
    grown: bool,
    closed: bool,
}

struct QueuedTask {
    task: Arc<dyn Task>,
    owner: Option<WorkOwner>,
    since: Instant,
}

struct RunningTask {
    task: Arc<dyn Task>,
    class: Class,
    owner: Option<WorkOwner>,
    since: Instant,
    stuck: bool,
}

impl WorkerThreads {
    pub(super) fn start(config: &WorkConfig, metrics: WorkMetrics) -> io::Result<Arc<Self>> {
        let threads = Arc::new(Self {
            state: Mutex::new(WorkerState {
                queue: WorkQueue::new(config.requests_max.get()),
                waste: Vec::new(),
                running: BTreeMap::new(),
                threads: 0,
                heavy: 0,
                stuck: BTreeMap::new(),
                begun: 0,
                watched: false,
                grown: false,
                closed: false,
            }),
            work: Condvar::new(),
            watch: Condvar::new(),
            size: config.threads(),
            time_max: config.time_max,
            waste_max: config.requests_max.get(),
            metrics,
        });
        let watching = Arc::clone(&threads);
        std::thread::Builder::new().name("work-watch".into()).spawn(move || watching.watch())?;
        threads.fill_up(&mut threads.state())?;
        Ok(threads)
    }

    /// Puts work into the queue.
    pub(super) fn join(
        &self,
        job: WorkJob<'_>,
        task: Arc<dyn Task>,
    ) -> Result<QueueTicket, WorkError> {
        let WorkJob { class, tenant, owner, must, .. } = job;
        let mut state = self.state();
        if let Some(owner) = state.refused(owner.as_ref()) {
            self.metrics.ended(class, How::Refused);
            return Err(WorkError::Stuck { owner });
        }
        let queued = QueuedTask { task, owner, since: Instant::now() };
        let limit = self.waste_max;
        // What there is no room for is let go of here, but not under the lock.
        let mut kept = None;
        let ticket = match state.queue.join(class, tenant, must, queued) {
            Enqueued::Waits(ticket) => ticket,
            Enqueued::Displaced(ticket, theirs, other) => {
                self.metrics.ended(theirs, How::Refused);
                self.metrics.queued(theirs, state.queue.waiting(theirs));
                other.task.refuse(WorkError::Full { limit });
                kept = state.throw_away(Box::new(other.task), limit);
                ticket
            }
            Enqueued::Full(refused) => {
                self.metrics.ended(class, How::Refused);
                kept = state.throw_away(Box::new(refused.task), limit);
                drop(state);
                drop(kept);
                return Err(WorkError::Full { limit });
            }
        };
        self.metrics.queued(class, state.queue.waiting(class));
        drop(state);
        drop(kept);
        self.work.notify_one();
        Ok(ticket)
    }

    /// Nobody waits for it any more. What has begun goes on.
    pub(super) fn leave(&self, ticket: &QueueTicket) {
        self.give_up(ticket, How::Abandoned);
    }

    /// A deadline of the request has passed. Work that has begun goes on.
    pub(super) fn was_late(&self, ticket: &QueueTicket) {
        self.give_up(ticket, How::TimedOut);
    }

    fn give_up(&self, ticket: &QueueTicket, how: How) {
        let mut state = self.state();
        let Some(left) = state.queue.leave(ticket) else { return };
        self.metrics.ended(ticket.class(), how);
        self.metrics.queued(ticket.class(), state.queue.waiting(ticket.class()));
        // What it would have worked on may be large.
        let kept = state.throw_away(Box::new(left.task), self.waste_max);
        drop(state);
        drop(kept);
        self.work.notify_one();
    }

    /// Lets go of it on one of the threads.
    pub(super) fn discard(&self, value: Box<dyn Any + Send>) {
        let kept = self.state().throw_away(value, self.waste_max);
        // Too much lies there already: it is let go of here, outside of the lock.
        drop(kept);
        self.work.notify_one();
    }

    /// Lets the threads go that have nothing to do; the others when they have done it.
    pub(super) fn close(&self) {
        self.state().closed = true;
        self.work.notify_all();
        self.watch.notify_all();
    }

    /// Looks as if it were so much later.
    pub(super) fn look_later(self: &Arc<Self>, later: Duration) {
        let mut state = self.state();
        self.look(&mut state, Instant::now() + later);
    }

    fn state(&self) -> MutexGuard<'_, WorkerState> {
        lock(&self.state)
    }

    /// Starts as many threads as are missing.
    fn fill_up(self: &Arc<Self>, state: &mut WorkerState) -> io::Result<()> {
        while state.threads < self.size {
            let this = Arc::clone(self);
            // Named, so that whoever looks at a busy process sees what it is busy with.
            let thread = std::thread::Builder::new()
                .name("work".into())
                .stack_size(interlock_text::STACK_BYTES);
            thread.spawn(move || this.serve())?;
            state.threads += 1;
        }
        Ok(())
    }

    /// What each thread does, until the end or until it has been stuck.
    fn serve(self: Arc<Self>) {
        loop {
            let Some((number, task)) = self.next() else { return };
            let answer = task.run();
            // Whoever has its answer finds that it runs no more.
            let given_up = self.came_back(number);
            answer();
            if given_up {
                return;
            }
        }
    }

    /// Waits for work; `None` at the end.
    fn next(&self) -> Option<(u64, Arc<dyn Task>)> {
        let mut state = self.state();
        loop {
            if state.closed {
                return None;
            }
            // One thread is left for what is small.
            let heavy = state.heavy + 1 < self.size;
            if heavy && let Some(waste) = state.waste.pop() {
                state.heavy += 1;
                drop(state);
                drop(waste);
                state = self.state();
                state.heavy -= 1;
                continue;
            }
            let Some((class, queued)) = state.queue.take(heavy) else {
                if state.grown && state.running.is_empty() {
                    state.grown = false;
                    drop(state);
                    give_memory_back();
                    state = self.state();
                    continue;
                }
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            self.metrics.queued(class, state.queue.waiting(class));
            let QueuedTask { task, owner, since } = queued;
            if let Some(owner) = state.refused(owner.as_ref()) {
                self.metrics.ended(class, How::Refused);
                task.refuse(WorkError::Stuck { owner });
                state.waste.push(Box::new(task));
                continue;
            }
            let now = Instant::now();
            self.metrics.began(class, now - since);
            state.begun += 1;
            let number = state.begun;
            state.heavy += usize::from(class.is_heavy());
            state.grown |= class == Class::Large;
            let watched = owner.is_none() || std::mem::replace(&mut state.watched, true);
            let running =
                RunningTask { task: Arc::clone(&task), class, owner, since: now, stuck: false };
            state.running.insert(number, running);
            if !watched {
                self.watch.notify_one();
            }
            return Some((number, task));
        }
    }

    /// Something was done. Was its thread given up meanwhile, and replaced?
    fn came_back(&self, number: u64) -> bool {
        let mut state = self.state();
        let running = state.running.remove(&number).expect("what comes back had begun");
        if !running.stuck {
            self.metrics.over(running.class);
            self.metrics.ended(running.class, How::Done);
            if running.class.is_heavy() {
                state.heavy -= 1;
                // Others may have left heavy work lying because of this one.
                self.work.notify_one();
            }
            return false;
        }
        if let Some(owner) = &running.owner {
            let left = state.stuck.get(owner).map_or(0, |stuck| stuck - 1);
            state.stuck.insert(owner.clone(), left);
            self.metrics.stuck(owner, left);
            let (model, part) = (owner.0.as_str(), owner.1.as_str());
            let took = running.since.elapsed();
            tracing::warn!(
                model,
                part,
                ?took,
                stuck = left,
                "a stuck thread has finished its prompt"
            );
        }
        true
    }

    /// Looks after what does not end, until the end.
    fn watch(self: Arc<Self>) {
        let mut state = self.state();
        while !state.closed {
            let now = Instant::now();
            let next = self.look(&mut state, now);
            state.watched = next.is_some();
            state = match next {
                Some(at) => {
                    let wait = at.saturating_duration_since(now);
                    self.watch.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.watch.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Gives up what should have ended by now. When to look again.
    fn look(self: &Arc<Self>, state: &mut WorkerState, now: Instant) -> Option<Instant> {
        let WorkerState { running, stuck, heavy, threads, .. } = state;
        let mut next = None;
        for running in running.values_mut().filter(|running| !running.stuck) {
            let Some(owner) = &running.owner else { continue };
            // A limit too far away to be a moment is none.
            let Some(due) = running.since.checked_add(self.time_max) else { continue };
            if due > now {
                next = Some(next.map_or(due, |next: Instant| next.min(due)));
                continue;
            }
            running.stuck = true;
            *threads -= 1;
            *heavy -= usize::from(running.class.is_heavy());
            let count = stuck.entry(owner.clone()).or_default();
            *count += 1;
            self.metrics.over(running.class);
            self.metrics.ended(running.class, How::Stuck);
            self.metrics.stuck(owner, *count);
            let (model, part) = (owner.0.as_str(), owner.1.as_str());
            tracing::error!(
                model, part, limit = ?self.time_max, stuck = *count, stuck_max = STUCK_MAX,
                "making a prompt took longer than work.time_max; its thread is stuck and was replaced"
            );
            let limit = self.time_max;
            running.task.refuse(WorkError::Endless { owner: owner.clone(), limit });
        }
        if let Err(error) = self.fill_up(state) {
            /// Until there may be a thread to be had.
            const AGAIN: Duration = Duration::from_secs(1);

            tracing::error!(%error, missing = self.size - state.threads, "the work pool cannot start a thread");
            next = [next, now.checked_add(AGAIN)].into_iter().flatten().min();
        }
        // What is heavy may go on, and a new thread may have found nothing before.
        self.work.notify_all();
        next
    }
}

impl WorkerState {
    /// Has too much of this owner's not ended already?
    fn refused(&self, owner: Option<&WorkOwner>) -> Option<WorkOwner> {
        let owner = owner?;
        (self.stuck.get(owner).is_some_and(|stuck| *stuck >= STUCK_MAX)).then(|| owner.clone())
    }

    /// Leaves it to one of the threads to let go of, if not too much lies there already.
    fn throw_away(
        &mut self,
        value: Box<dyn Any + Send>,
        most: usize,
    ) -> Option<Box<dyn Any + Send>> {
        if self.waste.len() >= most {
            return Some(value);
        }
        self.waste.push(value);
        None
    }
}

/// Gives what was freed back to the operating system: glibc keeps it, for each thread, in case that
/// it is needed again, and one burst of very long prompts would be held for good.
fn give_memory_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: frees what nobody uses; it takes the allocator's own locks and no others.
    unsafe {
        libc::malloc_trim(0);
    }
}
