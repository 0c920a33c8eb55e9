//! One step of an engine: take arrivals, drop the cancelled, decide, run one forward pass, hand out tokens.
//!
//! Everything that runs on the engine thread is called from here. What follows a pass that failed is in
//! [`recovery`].

mod recovery;

use std::hash::{BuildHasher, Hasher};
use std::marker::PhantomData;
use std::num::NonZeroU32;

use interlock_request::{CancelCause, Drawn, Outcome};
use interlock_scheduler::{
    Capacity, PassBounds, Placement, PlannedRow, StartCandidate, most_urgent,
    pick_victim_for_pages, pick_victim_for_rows, place, plan_rows,
};
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{mpsc, watch};

use crate::failures::FailureLog;
use crate::group::{EngineGroup, GroupMember};
use crate::handle::QueuedRequest;
use crate::limits::{PassLimits, PassSize};
use crate::metrics::{BoundsGauges, EngineMetrics, PageGauges};
use crate::pacer::PrefillPacer;
use crate::pages::{Lease, PageAudit, PageDemand, Pages};
use crate::passes::PassKind;
use crate::stages::{RunningRequest, WaitingRequest};
use crate::{
    CacheConfig, Caches, Clock, EngineConfig, EngineState, Forward, Mode, PassFailed, PassFault,
    PrefixSharing,
};

/// Everything that touches the device: the model and the sequences it holds.
///
/// Built on the thread that runs it and never leaves: `Engine` is `!Send`, so the compiler, not a
/// lock, keeps device state on one thread. No field is behind a mutex.
///
/// The batch is a table, `running`. Joining and leaving are edits of it: nobody else's row, pages
/// or keys and values are touched. `simple` mode is a table of one row.
pub struct Engine<F: Forward> {
    forward: F,
    inbox: mpsc::Receiver<QueuedRequest>,
    pages: Pages,
    waiting: Vec<WaitingRequest>,
    running: Vec<RunningRequest<F::Sequence>>,
    arrived: u64,
    sharing: PrefixSharing,
    displace: bool,
    pacer: PrefillPacer,
    group: GroupMember,
    limits: PassLimits,
    failures: FailureLog,
    /// Whether the device has failed for good. No request is left then, and none can arrive.
    closed: bool,
    state: watch::Sender<EngineState>,
    cache: PageGauges,
    bounds_gauges: BoundsGauges,
    metrics: EngineMetrics,
    clock: Box<dyn Clock>,
    seeds: std::hash::RandomState,
    stay_here: PhantomData<*mut ()>,
}

/// What a step did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepOutcome {
    /// The step ran one forward pass.
    Ran,
    /// The step computed nothing: no request can be computed now.
    Idle,
    /// The inbox is closed. The requests that were left have been cancelled, or told that the device
    /// has failed.
    Closed,
}

/// The engine's own counts, for tests and simulations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Audit {
    /// Requests without pages.
    pub waiting: usize,
    /// Requests with a row in the batch.
    pub running: usize,
    /// Pages of the cache, by state.
    pub pages: PageAudit,
    /// How large a pass may be after passes that were too large; `None` if as large as is configured.
    pub bounds: Option<PassBounds>,
    /// The same, without an increase that is only being tried.
    pub safe: Option<PassBounds>,
}

/// Whether anyone is left who could submit a request.
#[derive(PartialEq, Eq)]
enum InboxState {
    Open,
    Closed,
}

impl<F: Forward> Engine<F> {
    pub(crate) fn new(
        forward: F,
        (inbox, state): (mpsc::Receiver<QueuedRequest>, watch::Sender<EngineState>),
        config: &EngineConfig,
        cache: &CacheConfig,
        metrics: EngineMetrics,
        clock: Box<dyn Clock>,
        group: &EngineGroup,
    ) -> Self {
        let shape = forward.shape();
        let (running_max, displace) = match config.mode {
            Mode::Simple => (1, false),
            Mode::Batched => (config.running_max.get(), true),
        };
        let limits = PassLimits::new(config, running_max);
        Self {
            cache: metrics.cache(shape.pages),
            bounds_gauges: metrics.bounds(limits.bounds()),
            pages: Pages::new(shape.pages, shape.page_tokens, cache.prefix),
            forward,
            inbox,
            waiting: vec![],
            running: vec![],
            arrived: 0,
            sharing: cache.prefix_sharing,
            displace,
            pacer: PrefillPacer::new(config),
            group: group.join(),
            limits,
            failures: FailureLog::default(),
            closed: false,
            state,
            metrics,
            clock,
            seeds: std::hash::RandomState::new(),
            stay_here: PhantomData,
        }
    }

    /// Runs one step: take arrivals, drop the cancelled, decide, run at most one forward pass, hand out
    /// tokens. A step waits only for the device.
    ///
    /// Cancellations come before the decision, so that a client that left costs no further pass.
    pub fn step(&mut self) -> StepOutcome {
        if self.closed {
            return StepOutcome::Closed;
        }
        let inbox = self.accept();
        if inbox == InboxState::Closed {
            self.cancel_all();
        }
        self.drop_cancelled();
        if inbox == InboxState::Closed {
            return StepOutcome::Closed;
        }
        self.make_room();
        self.start();
        let table = self.plan();
        let outcome = if table.is_empty() { StepOutcome::Idle } else { StepOutcome::Ran };
        if outcome == StepOutcome::Ran {
            self.run_pass(&table);
        }
        self.cache.available(self.pages.available(), self.pages.idle());
        outcome
    }

    /// The engine's own counts.
    ///
    /// # Panics
    ///
    /// When a page of the cache is in two states or in none.
    pub fn audit(&self) -> Audit {
        Audit {
            waiting: self.waiting.len(),
            running: self.running.len(),
            pages: self.pages.audit(),
            bounds: self.limits.is_bound().then(|| self.limits.bounds()),
            safe: self.limits.is_bound().then(|| self.limits.safe()),
        }
    }

    /// Whether no request waits or runs. The inbox is not looked into.
    pub(crate) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty() && !self.closed
    }

    fn accept(&mut self) -> InboxState {
        loop {
            match self.inbox.try_recv() {
                Ok(queued) => self.arrive(queued),
                Err(TryRecvError::Empty) => return InboxState::Open,
                Err(TryRecvError::Disconnected) => return InboxState::Closed,
            }
        }
    }

    fn arrive(&mut self, queued: QueuedRequest) {
        let mut seed = self.seeds.build_hasher();
        seed.write_u64(self.arrived);
        self.waiting.push(WaitingRequest::new(queued, self.sharing, self.arrived, seed.finish()));
        self.arrived += 1;
    }

    fn drop_cancelled(&mut self) {
        for waiting in self.waiting.extract_if(.., |waiting| waiting.stop_outcome().is_some()) {
            if let Some(outcome) = waiting.stop_outcome() {
                waiting.end(outcome, &self.metrics);
            }
        }
        for running in self.running.extract_if(.., |running| running.stop_outcome().is_some()) {
            if let Some(outcome) = running.stop_outcome() {
                running.end(outcome, &self.metrics);
            }
        }
    }

    /// Preempts requests until the rest can take their next step. Nothing ends here: cancelled requests
    /// are gone already, and a request that is complete ended in the step that drew its last token.
    fn make_room(&mut self) {
        while let Some(last) = pick_victim_for_rows(
            self.limits.running_max(),
            self.running.iter().map(RunningRequest::rank),
        ) {
            self.preempt(vec![last]);
        }
        while let Some(last) = pick_victim_for_pages(
            self.pages.available(),
            self.running.iter().map(RunningRequest::as_growing),
        ) {
            self.preempt(vec![last]);
        }
    }

    /// Starts waiting requests in the order of rank. One that cannot start holds up those behind it, or
    /// a large request would wait for ever while small ones pass it.
    fn start(&mut self) {
        while let Some(next) = most_urgent(self.waiting.iter().map(WaitingRequest::rank))
            && !self.closed
        {
            let waiting = &self.waiting[next];
            if !self.pages.could_hold(waiting.history().len()) {
                self.refuse_too_large(next);
                continue;
            }
            if !self.may_fit(next) {
                return;
            }
            // Its shared pages are leased before victims are picked: a page that it shares with a victim
            // does not come free with the victim, and must not be counted twice.
            let waiting = &mut self.waiting[next];
            let lease = waiting.lease(&self.pages);
            let needs = lease.lacks(waiting.history().len());
            let candidate = StartCandidate { rank: waiting.rank(), needs };
            let ranks = self.running.iter().map(RunningRequest::rank);
            let frees = |index: usize| self.running[index].exclusive_pages();
            let Placement::Now(victims) = place(&self.capacity(), ranks, frees, &candidate) else {
                return;
            };
            // Removed before the victims are added to the list, while the index `next` is still valid.
            let waiting = self.waiting.remove(next);
            self.preempt(victims);
            self.start_one(waiting, lease);
        }
    }

    /// Whether a waiting request could start: it fits, or others might have to give way for it. This runs
    /// in every step while a request waits, so it leases nothing and looks up nothing twice.
    fn may_fit(&mut self, index: usize) -> bool {
        let waiting = &mut self.waiting[index];
        let PageDemand { lacks: needs, available } = waiting.page_demand(&self.pages);
        let candidate = StartCandidate { rank: waiting.rank(), needs };
        let ranks = self.running.iter().map(RunningRequest::rank);
        if self.displace && ranks.clone().any(|rank| candidate.rank.outranks(&rank)) {
            return true;
        }
        let capacity = Capacity { pages_free: available, displace: false, ..self.capacity() };
        place(&capacity, ranks, |_| 0, &candidate) != Placement::Later
    }

    /// Ends a request that is larger than the cache, before others give way for it or wait behind it.
    fn refuse_too_large(&mut self, index: usize) {
        let waiting = self.waiting.remove(index);
        let (tokens, pages) = (waiting.history().len(), self.forward.shape().pages);
        let why = format!("{tokens} tokens do not fit {pages} pages of cache");
        waiting.refuse(why.into(), &self.metrics);
    }

    fn start_one(&mut self, waiting: WaitingRequest, mut lease: Lease) {
        let arrival = waiting.arrival();
        assert!(lease.extend(waiting.history().len()), "a request that may start has its pages");
        match self.forward.open(&waiting.opening()) {
            Ok(sequence) => {
                self.waiting.iter_mut().for_each(|other| other.overtaken_by(arrival));
                self.running.iter_mut().for_each(|other| other.overtaken_by(arrival));
                self.running.push(waiting.start(sequence, lease, &self.metrics));
            }
            Err(failed) => {
                drop(lease);
                self.not_opened(waiting, &failed);
            }
        }
    }

    /// Ends a request that the model could not open. If there was no memory beside those that run, it
    /// waits instead.
    fn not_opened(&mut self, mut waiting: WaitingRequest, failed: &PassFailed) {
        if failed.caches == Caches::Gone {
            self.waiting.push(waiting);
            return self.close(failed);
        }
        let beside = u32::try_from(self.running.len()).unwrap_or(u32::MAX);
        let ends = if failed.kind != PassFault::TooLarge || beside == 0 {
            Some(failed.to_string())
        } else {
            let again = waiting.try_again();
            again
                .err()
                .map(|times| format!("tried again {times} times, and failed again: {failed}"))
        };
        match ends {
            Some(why) => waiting.refuse(failed.fault(why), &self.metrics),
            None => {
                self.limits.cap_rows(beside);
                self.bounds_gauges.set(self.limits.bounds());
                tracing::warn!(error = %failed, running = beside, "there is no memory for another request");
                self.waiting.push(waiting);
            }
        }
        if failed.caches == Caches::Emptied {
            self.lose_caches();
        }
    }

    fn capacity(&self) -> Capacity {
        Capacity {
            pages_free: self.pages.available(),
            running_max: self.limits.running_max(),
            displace: self.displace,
        }
    }

    fn preempt(&mut self, mut victims: Vec<usize>) {
        // From the end, so that removing one does not move those still to go.
        victims.sort_unstable_by(|a, b| b.cmp(a));
        for index in victims {
            let running = self.running.remove(index);
            self.metrics.preempted(running.id());
            self.waiting.push(running.preempt());
        }
    }

    /// Plans the rows of the next pass. A row is left out if there are no pages for it. The next step's
    /// [`Engine::make_room`] sees what it lacks.
    fn plan(&mut self) -> Vec<PlannedRow> {
        let runnable: Vec<_> = self.running.iter().map(RunningRequest::as_runnable).collect();
        self.publish_streaming();
        let mut table =
            plan_rows(&runnable, &self.group.budget(&self.pacer), &self.limits.bounds());
        table.retain(|row| self.running[row.index].reserve(row.tokens));
        table.sort_unstable_by_key(|row| row.index);
        table
    }

    /// Runs one forward pass. Its result is logged and counted also for rows that were cancelled
    /// meanwhile, since nobody else waits for those.
    fn run_pass(&mut self, table: &[PlannedRow]) {
        let streams = |row: &&PlannedRow| self.running[row.index].as_runnable().streaming;
        let decoding = table.iter().filter(streams).count();
        let tokens: u32 = table.iter().map(|row| row.tokens.get()).sum();
        let prompt_tokens = tokens - u32::try_from(decoding).unwrap_or(u32::MAX).min(tokens);
        let kind = match (decoding, prompt_tokens) {
            (0, _) => PassKind::Prefill,
            (_, 0) => PassKind::Decode,
            (_, _) => PassKind::Mixed,
        };
        // The table is in the order of `running`, so one walk along both finds each row's request.
        let mut planned = table.iter().peekable();
        let mut batch: Vec<_> = self
            .running
            .iter_mut()
            .enumerate()
            .filter_map(|(index, running)| {
                planned.next_if(|row| row.index == index).map(|row| running.row(row.tokens))
            })
            .collect();
        let in_flight = self.metrics.passes.begin(kind, &*self.clock);
        let result = self.forward.pass(&mut batch).and_then(|drawn| {
            let (got, wanted) = (drawn.len(), batch.len());
            let why = if got != wanted {
                format!("a pass of {wanted} rows gave {got} results")
            } else if let Some(row) =
                batch.iter().zip(&drawn).position(|(row, drawn)| row.draw != drawn.is_some())
            {
                format!("a pass drew for row {row} what it was not to draw, or drew nothing")
            } else {
                return Ok(drawn);
            };
            // The model's sequences count tokens that no request gets, so they are opened anew.
            Err(PassFailed::new(why).losing_caches())
        });
        drop(batch);
        let took = in_flight.end();
        self.metrics.passed(table.len(), decoding, prompt_tokens);
        for row in table {
            let running = &self.running[row.index];
            if let Some(cause) = running.cancelled() {
                self.metrics.cancelled_pass_ended(running.id(), cause, &result);
            }
        }
        match result {
            Ok(drawn) => {
                // The last token of a prompt costs what a stream's next token does, and needs no budget.
                let single = |row: &&PlannedRow| {
                    self.running[row.index].as_runnable().left == NonZeroU32::MIN
                };
                let singles = table.iter().filter(single).count();
                let rest = tokens - u32::try_from(singles).unwrap_or(u32::MAX).min(tokens);
                let times = self.pacer.passed(singles, rest, took);
                self.group.settle(&self.pacer, times);
                self.pass_succeeded(table);
                self.hand_out(table, drawn);
                self.publish_streaming();
            }
            Err(failed) => self.pass_failed(table, &failed),
        }
    }

    /// Tells the other engines whether this one has streams, so that another model's prompt does not
    /// hold up a stream that is about to begin.
    fn publish_streaming(&mut self) {
        let streaming = self.running.iter().any(|running| running.as_runnable().streaming);
        if !streaming {
            self.pacer.no_streams();
        }
        self.group.set_streaming(streaming, self.pacer.decode());
    }

    /// Learns that a pass of this size went well.
    fn pass_succeeded(&mut self, table: &[PlannedRow]) {
        self.failures.passed();
        let was = self.limits.bounds();
        let fresh = |row: &PlannedRow| self.running[row.index].is_fresh(row.tokens);
        self.limits.passed(pass_size(table), table.iter().all(fresh));
        let PassBounds { rows, tokens } = self.limits.bounds();
        if was == self.limits.bounds() {
            return;
        }
        self.bounds_gauges.set(self.limits.bounds());
        if self.limits.is_bound() {
            tracing::debug!(rows, tokens, "a pass may be larger again");
        } else {
            tracing::info!(rows, tokens, "a pass may be as large as is configured again");
        }
    }

    fn hand_out(&mut self, table: &[PlannedRow], drawn: Vec<Option<Drawn>>) {
        let context = self.forward.shape().context;
        let alone = table.len() == 1;
        let mut ended = 0;
        for (row, drawn) in table.iter().zip(drawn) {
            // The table is in the order of `running`, and those before it that have ended are gone.
            let index = row.index - ended;
            let finish = self.running[index].advance(row.tokens, alone, drawn, context);
            if let Some(finish) = finish {
                self.running.remove(index).end(Outcome::Completed(finish), &self.metrics);
                ended += 1;
            }
        }
    }

    fn cancel_all(&mut self) {
        let shutdown = CancelCause::Shutdown;
        for waiting in &self.waiting {
            waiting.control().cancel(shutdown);
        }
        for running in &self.running {
            running.control().cancel(shutdown);
        }
    }
}

fn pass_size(table: &[PlannedRow]) -> PassSize {
    PassSize {
        rows: u32::try_from(table.len()).unwrap_or(u32::MAX),
        tokens: table.iter().fold(0, |sum, row| sum.saturating_add(row.tokens.get())),
    }
}
