//! The loop of the engine thread. All that runs there is called from here.

use std::hash::{BuildHasher, Hasher};
use std::marker::PhantomData;

use interlock_request::{CancelCause, Drawn, Outcome};
use interlock_scheduler::{Newcomer, Place, Room, first, overdrawn, place, rows};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TryRecvError;

use crate::handle::Submission;
use crate::metrics::{CacheShare, EngineMetrics};
use crate::pace::Pace;
use crate::pages::{Lease, PageAudit, Pages};
use crate::passes::PassKind;
use crate::stages::{Running, Waiting};
use crate::{CacheConfig, Clock, EngineConfig, Forward, Mode, PassFailed};

/// Everything that touches the device: the model and the sequences it holds.
///
/// Built on the thread that runs it and never leaves: `Engine` is `!Send`, so the compiler, not a
/// lock, keeps device state on one thread. No field is behind a mutex.
///
/// The batch is a table, `running`. Joining and leaving are edits of it: nobody else's row, pages
/// or keys and values are touched. `simple` mode is a table of one row.
pub struct Engine<F: Forward> {
    forward: F,
    inbox: mpsc::Receiver<Submission>,
    pages: Pages,
    waiting: Vec<Waiting>,
    running: Vec<Running<F::Sequence>>,
    arrived: u64,
    running_max: u32,
    displace: bool,
    pace: Pace,
    cache: CacheShare,
    metrics: EngineMetrics,
    clock: Box<dyn Clock>,
    seeds: std::hash::RandomState,
    stay_here: PhantomData<*mut ()>,
}

/// What a turn found to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// One pass.
    Ran,
    /// Nothing: there is nobody to compute for.
    Idle,
    /// Nobody can submit any more, and whoever was left has been cancelled.
    Closed,
}

/// Who is where, for tests and simulations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Audit {
    /// Requests without pages.
    pub waiting: usize,
    /// Requests with a row in the batch.
    pub running: usize,
    /// How many pages are what.
    pub pages: PageAudit,
}

/// One row of a planned pass.
type Planned = interlock_scheduler::Row;

/// Is there anyone left who could submit?
#[derive(PartialEq, Eq)]
enum Inbox {
    Open,
    Closed,
}

impl<F: Forward> Engine<F> {
    pub(crate) fn new(
        forward: F,
        inbox: mpsc::Receiver<Submission>,
        config: &EngineConfig,
        cache: &CacheConfig,
        metrics: EngineMetrics,
        clock: Box<dyn Clock>,
    ) -> Self {
        let shape = forward.shape();
        let (running_max, displace, pace) = match config.mode {
            Mode::Simple => (1, false, Pace::alone(config)),
            Mode::Batched => (config.running_max.get(), true, Pace::shared(config)),
        };
        Self {
            cache: metrics.cache(shape.pages),
            pages: Pages::new(shape.pages, shape.page_tokens, cache.prefix),
            forward,
            inbox,
            waiting: vec![],
            running: vec![],
            arrived: 0,
            running_max,
            displace,
            pace,
            metrics,
            clock,
            seeds: std::hash::RandomState::new(),
            stay_here: PhantomData,
        }
    }

    /// One turn: take arrivals, drop the cancelled, decide, run at most one pass, hand out tokens.
    /// It never waits but for the device.
    ///
    /// Cancellations come before the decision, so that a client that left costs no further pass.
    pub fn turn(&mut self) -> Turn {
        let inbox = self.accept();
        if inbox == Inbox::Closed {
            self.cancel_all();
        }
        self.drop_cancelled();
        if inbox == Inbox::Closed {
            return Turn::Closed;
        }
        self.make_room();
        self.start();
        let table = self.plan();
        let turn = if table.is_empty() { Turn::Idle } else { Turn::Ran };
        if turn == Turn::Ran {
            self.pass(&table);
        }
        self.cache.available(self.pages.available(), self.pages.idle());
        turn
    }

    /// Who is where.
    ///
    /// # Panics
    ///
    /// When the books of the cache do not add up.
    pub fn audit(&self) -> Audit {
        Audit {
            waiting: self.waiting.len(),
            running: self.running.len(),
            pages: self.pages.audit(),
        }
    }

    /// Is there nobody to compute for, as far as it has looked into its inbox?
    pub(crate) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    fn accept(&mut self) -> Inbox {
        loop {
            match self.inbox.try_recv() {
                Ok(submission) => self.arrive(submission),
                Err(TryRecvError::Empty) => return Inbox::Open,
                Err(TryRecvError::Disconnected) => return Inbox::Closed,
            }
        }
    }

    fn arrive(&mut self, submission: Submission) {
        let mut seed = self.seeds.build_hasher();
        seed.write_u64(self.arrived);
        self.waiting.push(Waiting::new(submission, self.arrived, seed.finish()));
        self.arrived += 1;
    }

    fn drop_cancelled(&mut self) {
        for waiting in self.waiting.extract_if(.., |waiting| waiting.asked().is_some()) {
            if let Some(outcome) = waiting.asked() {
                waiting.end(outcome, &self.metrics);
            }
        }
        for running in self.running.extract_if(.., |running| running.asked().is_some()) {
            if let Some(outcome) = running.asked() {
                running.end(outcome, &self.metrics);
            }
        }
    }

    /// Preempts, so that those who stay can take their next step. No end is due for anyone here:
    /// the cancelled are gone, and who came to its end did so within the turn that drew its last
    /// token.
    fn make_room(&mut self) {
        while let Some(last) =
            overdrawn(self.pages.available(), self.running.iter().map(Running::as_grower))
        {
            self.preempt(vec![last]);
        }
    }

    /// Starts who may start, in the order of rank. Who may not holds up those behind it: or a
    /// large request would wait for ever while small ones pass it.
    fn start(&mut self) {
        while let Some(next) = first(self.waiting.iter().map(Waiting::rank)) {
            let waiting = &self.waiting[next];
            if !self.pages.could_hold(waiting.history().len()) {
                self.refuse_too_large(next);
                continue;
            }
            // Leased before it is asked who would give way for it: what it shares with those does
            // not come free with them, and must not be counted twice.
            let lease = self.pages.lease(waiting.history());
            let needs = lease.lacks(waiting.history().len());
            let newcomer = Newcomer { rank: waiting.rank(), needs };
            let ranks = self.running.iter().map(Running::rank);
            let frees = |index: usize| self.running[index].frees();
            let Place::Now(leaving) = place(&self.room(), ranks, frees, &newcomer) else { return };
            // Out of the list before others come into it, so that `next` still means the same.
            let waiting = self.waiting.remove(next);
            self.preempt(leaving);
            self.start_one(waiting, lease);
        }
    }

    /// Before anyone gives way for it, and before it holds up those behind it.
    fn refuse_too_large(&mut self, index: usize) {
        let waiting = self.waiting.remove(index);
        let (tokens, pages) = (waiting.history().len(), self.forward.shape().pages);
        let why = format!("{tokens} tokens do not fit {pages} pages of cache");
        waiting.refuse(&PassFailed::new(why), &self.metrics);
    }

    fn start_one(&mut self, waiting: Waiting, mut lease: Lease) {
        let arrival = waiting.arrival();
        assert!(lease.extend(waiting.history().len()), "who may start has its pages");
        match self.forward.open(&waiting.opening()) {
            Ok(sequence) => {
                self.waiting.iter_mut().for_each(|other| other.overtaken_by(arrival));
                self.running.iter_mut().for_each(|other| other.overtaken_by(arrival));
                self.running.push(waiting.start(sequence, lease, &self.metrics));
            }
            Err(error) => {
                drop(lease);
                waiting.refuse(&error, &self.metrics);
            }
        }
    }

    fn room(&self) -> Room {
        Room {
            pages_free: self.pages.available(),
            running_max: self.running_max,
            displace: self.displace,
        }
    }

    fn preempt(&mut self, mut leaving: Vec<usize>) {
        // From the end, so that removing one does not move those still to go.
        leaving.sort_unstable_by(|a, b| b.cmp(a));
        for index in leaving {
            let running = self.running.remove(index);
            self.metrics.preempted(running.id());
            self.waiting.push(running.preempt());
        }
    }

    /// The table of the next pass. A row whose pages cannot be had is left out: it waits for the
    /// next turn, in which [`Engine::make_room`] sees what it lacks.
    fn plan(&mut self) -> Vec<Planned> {
        let steps: Vec<_> = self.running.iter().map(Running::as_step).collect();
        let mut table = rows(&steps, &self.pace.budget());
        table.retain(|row| self.running[row.index].make_room(row.tokens));
        table.sort_unstable_by_key(|row| row.index);
        table
    }

    /// Runs one pass, and accounts for it whoever still waits for its results.
    fn pass(&mut self, table: &[Planned]) {
        let flows = |row: &&Planned| self.running[row.index].as_step().flows;
        let decoding = table.iter().filter(flows).count();
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
            let wrong = || PassFailed::new(format!("a pass of {wanted} rows gave {got} results"));
            if got == wanted { Ok(drawn) } else { Err(wrong()) }
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
                self.pace.passed(decoding, prompt_tokens, took);
                self.hand_out(table, drawn);
            }
            Err(failed) => self.failed(table, &failed),
        }
    }

    fn hand_out(&mut self, table: &[Planned], drawn: Vec<Option<Drawn>>) {
        let context = self.forward.shape().context;
        let mut results = table.iter().zip(drawn).peekable();
        let metrics = &self.metrics;
        self.running = std::mem::take(&mut self.running)
            .into_iter()
            .enumerate()
            .filter_map(|(index, running)| match results.next_if(|(row, _)| row.index == index) {
                Some((row, drawn)) => running.advance(row.tokens, drawn, context, metrics),
                None => Some(running),
            })
            .collect();
    }

    /// Ends whom it must, and lets the others try again: in the next pass if it is known whose
    /// fault it was, or else each alone, so that whose pass then fails has failed by itself.
    fn failed(&mut self, table: &[Planned], failed: &PassFailed) {
        // A row that there is not is nobody's; and who ran alone failed alone, whatever was said.
        let named = failed.row.and_then(|row| table.get(row));
        let culprit = named.or(if let [only] = table { Some(only) } else { None });
        match culprit {
            Some(row) => {
                let running = self.running.remove(row.index);
                if running.cancelled().is_none() {
                    tracing::error!(request = %running.id(), error = %failed, "pass failed");
                }
                running.end(Outcome::Failed(failed.to_string()), &self.metrics);
            }
            None => {
                for row in table {
                    self.running[row.index].suspect();
                }
            }
        }
        let again = table.len() - usize::from(culprit.is_some());
        if again > 0 {
            self.metrics.retried(again);
            tracing::error!(error = %failed, requests = again, "pass failed; trying again without whom it failed for");
        }
        if failed.caches_lost {
            tracing::warn!(requests = self.running.len(), "the cache is lost; computing it again");
            self.preempt((0..self.running.len()).collect());
            self.pages.forget();
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
