//! The loop of the engine thread. All that runs there is called from here.

use std::hash::{BuildHasher, Hasher};
use std::marker::PhantomData;
use std::num::NonZeroU32;

use interlock_request::{CancelCause, Drawn, Fault, FaultKind, Outcome};
use interlock_scheduler::{
    Capacity, PassBounds, Placement, PlannedRow, StartCandidate, most_urgent,
    pick_victim_for_pages, pick_victim_for_rows, place, plan_rows,
};
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{mpsc, watch};

use crate::company::{Company, Member};
use crate::fit::{Fell, Fit, Size};
use crate::handle::Submission;
use crate::metrics::{CacheShare, EngineMetrics, FitShare};
use crate::pace::Pace;
use crate::pages::{Lease, PageAudit, Pages, Prospect};
use crate::passes::PassKind;
use crate::stages::{Running, Waiting};
use crate::{
    CacheConfig, Caches, Clock, EngineConfig, EngineExit, EngineState, Forward, Mode, PassFailed,
    PassFault, PrefixSharing,
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
    inbox: mpsc::Receiver<Submission>,
    pages: Pages,
    waiting: Vec<Waiting>,
    running: Vec<Running<F::Sequence>>,
    arrived: u64,
    sharing: PrefixSharing,
    displace: bool,
    pace: Pace,
    company: Member,
    fit: Fit,
    failures: Failures,
    /// Has its device failed for good? Then nobody is left, and nobody can come.
    closed: bool,
    state: watch::Sender<EngineState>,
    cache: CacheShare,
    fit_share: FitShare,
    metrics: EngineMetrics,
    clock: Box<dyn Clock>,
    seeds: std::hash::RandomState,
    stay_here: PhantomData<*mut ()>,
}

/// What a step found to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepOutcome {
    /// One pass.
    Ran,
    /// Nothing: there is nobody to compute for.
    Idle,
    /// Nobody can submit any more, and whoever was left has been cancelled, or told that the device
    /// has failed.
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
    /// How large a pass may be, as far as is known; none if as large as is configured.
    pub bounds: Option<PassBounds>,
    /// The same, without what is only being tried.
    pub safe: Option<PassBounds>,
}

/// Is there anyone left who could submit?
#[derive(PartialEq, Eq)]
enum Inbox {
    Open,
    Closed,
}

/// Passes that failed of late, so that a device that fails all the time does not fill the log.
#[derive(Debug, Default)]
struct Failures {
    failed: u64,
    well: u32,
}

impl Failures {
    /// So many good passes in a row, and a failure is news again.
    const WELL: u32 = 100;

    fn passed(&mut self) {
        self.well = self.well.saturating_add(1);
        if self.well >= Self::WELL {
            self.failed = 0;
        }
    }

    /// One more. Is it to be told? The first, the second, the fourth and so on.
    fn failed(&mut self) -> bool {
        self.well = 0;
        self.failed += 1;
        self.failed.is_power_of_two()
    }
}

/// How the rows of a pass that failed are tried again.
struct Again {
    /// All but this one.
    culprit: Option<usize>,
    /// Each alone.
    suspects: bool,
    /// Without taking a retry of anyone's: whose fault it was ends, or it was a try of ours.
    free: bool,
}

impl<F: Forward> Engine<F> {
    pub(crate) fn new(
        forward: F,
        (inbox, state): (mpsc::Receiver<Submission>, watch::Sender<EngineState>),
        config: &EngineConfig,
        cache: &CacheConfig,
        metrics: EngineMetrics,
        clock: Box<dyn Clock>,
        company: &Company,
    ) -> Self {
        let shape = forward.shape();
        let (running_max, displace) = match config.mode {
            Mode::Simple => (1, false),
            Mode::Batched => (config.running_max.get(), true),
        };
        let fit = Fit::new(config, running_max);
        Self {
            cache: metrics.cache(shape.pages),
            fit_share: metrics.fit(fit.bounds()),
            pages: Pages::new(shape.pages, shape.page_tokens, cache.prefix),
            forward,
            inbox,
            waiting: vec![],
            running: vec![],
            arrived: 0,
            sharing: cache.prefix_sharing,
            displace,
            pace: Pace::new(config),
            company: company.join(),
            fit,
            failures: Failures::default(),
            closed: false,
            state,
            metrics,
            clock,
            seeds: std::hash::RandomState::new(),
            stay_here: PhantomData,
        }
    }

    /// One step: take arrivals, drop the cancelled, decide, run at most one pass, hand out tokens.
    /// It never waits but for the device.
    ///
    /// Cancellations come before the decision, so that a client that left costs no further pass.
    pub fn step(&mut self) -> StepOutcome {
        if self.closed {
            return StepOutcome::Closed;
        }
        let inbox = self.accept();
        if inbox == Inbox::Closed {
            self.cancel_all();
        }
        self.drop_cancelled();
        if inbox == Inbox::Closed {
            return StepOutcome::Closed;
        }
        self.make_room();
        self.start();
        let table = self.plan();
        let step = if table.is_empty() { StepOutcome::Idle } else { StepOutcome::Ran };
        if step == StepOutcome::Ran {
            self.pass(&table);
        }
        self.cache.available(self.pages.available(), self.pages.idle());
        step
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
            bounds: self.fit.is_bound().then(|| self.fit.bounds()),
            safe: self.fit.is_bound().then(|| self.fit.safe()),
        }
    }

    /// Is there nobody to compute for, as far as it has looked into its inbox?
    pub(crate) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty() && !self.closed
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
        self.waiting.push(Waiting::new(submission, self.sharing, self.arrived, seed.finish()));
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
    /// the cancelled are gone, and who came to its end did so within the step that drew its last
    /// token.
    fn make_room(&mut self) {
        while let Some(last) =
            pick_victim_for_rows(self.fit.running_max(), self.running.iter().map(Running::rank))
        {
            self.preempt(vec![last]);
        }
        while let Some(last) = pick_victim_for_pages(
            self.pages.available(),
            self.running.iter().map(Running::as_growing),
        ) {
            self.preempt(vec![last]);
        }
    }

    /// Starts who may start, in the order of rank. Who may not holds up those behind it: or a
    /// large request would wait for ever while small ones pass it.
    fn start(&mut self) {
        while let Some(next) = most_urgent(self.waiting.iter().map(Waiting::rank))
            && !self.closed
        {
            let waiting = &self.waiting[next];
            if !self.pages.could_hold(waiting.history().len()) {
                self.refuse_too_large(next);
                continue;
            }
            if !self.might_start(next) {
                return;
            }
            // Leased before it is asked who would give way for it: what it shares with those does
            // not come free with them, and must not be counted twice.
            let waiting = &mut self.waiting[next];
            let lease = waiting.lease(&self.pages);
            let needs = lease.lacks(waiting.history().len());
            let candidate = StartCandidate { rank: waiting.rank(), needs };
            let ranks = self.running.iter().map(Running::rank);
            let frees = |index: usize| self.running[index].frees();
            let Placement::Now(leaving) = place(&self.capacity(), ranks, frees, &candidate) else {
                return;
            };
            // Out of the list before others come into it, so that `next` still means the same.
            let waiting = self.waiting.remove(next);
            self.preempt(leaving);
            self.start_one(waiting, lease);
        }
    }

    /// Is there room for it, or somebody who might have to give way? Asked in every step of one that
    /// waits, so nothing is leased for the answer, nor looked up again that is known.
    fn might_start(&mut self, index: usize) -> bool {
        let waiting = &mut self.waiting[index];
        let Prospect { lacks: needs, available } = waiting.look(&self.pages);
        let candidate = StartCandidate { rank: waiting.rank(), needs };
        let ranks = self.running.iter().map(Running::rank);
        if self.displace && ranks.clone().any(|rank| candidate.rank.outranks(&rank)) {
            return true;
        }
        let capacity = Capacity { pages_free: available, displace: false, ..self.capacity() };
        place(&capacity, ranks, |_| 0, &candidate) != Placement::Later
    }

    /// Before anyone gives way for it, and before it holds up those behind it.
    fn refuse_too_large(&mut self, index: usize) {
        let waiting = self.waiting.remove(index);
        let (tokens, pages) = (waiting.history().len(), self.forward.shape().pages);
        let why = format!("{tokens} tokens do not fit {pages} pages of cache");
        waiting.refuse(why.into(), &self.metrics);
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
            Err(failed) => {
                drop(lease);
                self.not_opened(waiting, &failed);
            }
        }
    }

    /// It ends, but for one for whom there is no memory beside those who run: that one waits.
    fn not_opened(&mut self, mut waiting: Waiting, failed: &PassFailed) {
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
            Some(why) => waiting.refuse(fault(failed.kind, why), &self.metrics),
            None => {
                self.fit.no_more_than(beside);
                self.fit_share.is(self.fit.bounds());
                tracing::warn!(error = %failed, running = beside, "no memory for one request more");
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
            running_max: self.fit.running_max(),
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
    /// next step, in which [`Engine::make_room`] sees what it lacks.
    fn plan(&mut self) -> Vec<PlannedRow> {
        let runnable: Vec<_> = self.running.iter().map(Running::as_runnable).collect();
        self.say_who_flows();
        let mut table = plan_rows(&runnable, &self.pace.budget(&self.company), &self.fit.bounds());
        table.retain(|row| self.running[row.index].make_room(row.tokens));
        table.sort_unstable_by_key(|row| row.index);
        table
    }

    /// Runs one pass, and accounts for it whoever still waits for its results.
    fn pass(&mut self, table: &[PlannedRow]) {
        let flows = |row: &&PlannedRow| self.running[row.index].as_runnable().streaming;
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
            let why = if got != wanted {
                format!("a pass of {wanted} rows gave {got} results")
            } else if let Some(row) =
                batch.iter().zip(&drawn).position(|(row, drawn)| row.draw != drawn.is_some())
            {
                format!("a pass drew for row {row} what it was not to draw, or drew nothing")
            } else {
                return Ok(drawn);
            };
            // It takes its sequences to have drawn what nobody gets: they are opened anew.
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
                // The last token of a prompt costs what a stream's next one does, and asks nobody.
                let single = |row: &&PlannedRow| {
                    self.running[row.index].as_runnable().left == NonZeroU32::MIN
                };
                let singles = table.iter().filter(single).count();
                let rest = tokens - u32::try_from(singles).unwrap_or(u32::MAX).min(tokens);
                let lent = self.pace.passed(singles, rest, took);
                self.company.settle(&self.pace, lent);
                self.fits(table);
                self.hand_out(table, drawn);
                self.say_who_flows();
            }
            Err(failed) => self.failed(table, &failed),
        }
    }

    /// So that another model's prompt does not hold up a stream that is about to begin.
    fn say_who_flows(&mut self) {
        let flows = self.running.iter().any(|running| running.as_runnable().streaming);
        if !flows {
            self.pace.nobody_flows();
        }
        self.company.flows(flows, self.pace.decode());
    }

    /// A pass of this size went well.
    fn fits(&mut self, table: &[PlannedRow]) {
        self.failures.passed();
        let was = self.fit.bounds();
        let fresh = |row: &PlannedRow| self.running[row.index].is_fresh(row.tokens);
        self.fit.passed(size(table), table.iter().all(fresh));
        let PassBounds { rows, tokens } = self.fit.bounds();
        if was == self.fit.bounds() {
            return;
        }
        self.fit_share.is(self.fit.bounds());
        if self.fit.is_bound() {
            tracing::debug!(rows, tokens, "a pass may be larger again");
        } else {
            tracing::info!(rows, tokens, "a pass may be as large as is configured again");
        }
    }

    fn hand_out(&mut self, table: &[PlannedRow], drawn: Vec<Option<Drawn>>) {
        let context = self.forward.shape().context;
        let alone = table.len() == 1;
        let mut results = table.iter().zip(drawn).peekable();
        let metrics = &self.metrics;
        self.running = std::mem::take(&mut self.running)
            .into_iter()
            .enumerate()
            .filter_map(|(index, running)| match results.next_if(|(row, _)| row.index == index) {
                Some((row, drawn)) => running.advance(row.tokens, alone, drawn, context, metrics),
                None => Some(running),
            })
            .collect();
    }

    /// Ends whom it must, and lets the others try again, as often as they may: in the next pass if it
    /// is known whose fault it was; fewer at a time if it was too large; or else each alone, so that
    /// whose pass then fails has failed by itself.
    fn failed(&mut self, table: &[PlannedRow], failed: &PassFailed) {
        self.metrics.pass_failed(failed.kind);
        if failed.caches == Caches::Gone {
            return self.close(failed);
        }
        let tell = self.failures.failed();
        let alone = table.len() == 1;
        let (culprit, mut free) = match failed.kind {
            PassFault::TooLarge => match self.shrink(table, failed) {
                Fell::Half => (None, false),
                Fell::Back => (None, true),
                Fell::Least => (Some(0), false),
            },
            PassFault::Row(row) if row < table.len() => (Some(row), true),
            // A row that there is not is nobody's; and who ran alone failed alone, whatever was said.
            PassFault::Row(_) | PassFault::Broken => (alone.then_some(0), false),
        };
        let suspects = culprit.is_none() && failed.kind != PassFault::TooLarge;
        if suspects && table.iter().any(|row| self.running[row.index].is_acquitted()) {
            // Alone they ran well, together they fail: it is their company.
            free = self.shrink(table, failed) == Fell::Back;
        }
        let again = Again { culprit, suspects, free };
        let retried = self.try_again(table, failed, &again);
        if culprit.is_some() {
            self.running.iter_mut().for_each(Running::restore_retries);
            self.waiting.iter_mut().for_each(Waiting::restore_retries);
        }
        if tell && retried > 0 && failed.kind != PassFault::TooLarge {
            let failures = self.failures.failed;
            let kind = failed.kind.as_str();
            tracing::error!(error = %failed, kind, requests = retried, failures,
                "pass failed; trying again without whom it failed for");
        }
        if failed.caches == Caches::Emptied {
            if tell {
                let requests = self.running.len();
                tracing::warn!(requests, "the cache is lost; computing it again");
            }
            self.lose_caches();
        }
    }

    /// The next pass is smaller, if it can be.
    fn shrink(&mut self, table: &[PlannedRow], failed: &PassFailed) -> Fell {
        let size = size(table);
        let fell = self.fit.too_large(size);
        let PassBounds { rows, tokens } = self.fit.bounds();
        self.fit_share.is(self.fit.bounds());
        let Size { rows: had_rows, tokens: had_tokens } = size;
        match fell {
            Fell::Half => tracing::warn!(error = %failed, had_rows, had_tokens, rows, tokens,
                "a pass was too large for the device; the next may have so many rows and tokens"),
            Fell::Back => tracing::info!(error = %failed, had_rows, had_tokens, rows, tokens,
                "more rows or tokens than were known to fit were tried, and do not fit"),
            Fell::Least => {}
        }
        fell
    }

    /// The rows of a pass that failed are tried again, but for the culprit's, and for those that were
    /// tried often enough. How many are.
    fn try_again(&mut self, table: &[PlannedRow], failed: &PassFailed, how: &Again) -> usize {
        let mut rows = table.iter().enumerate().peekable();
        let mut retried = 0;
        let metrics = &self.metrics;
        let again = |(index, mut running): (usize, Running<_>)| {
            let Some((row, _)) = rows.next_if(|(_, row)| row.index == index) else {
                return Some(running);
            };
            let ends = if how.culprit == Some(row) {
                Some(its_fault(failed))
            } else if how.free {
                None
            } else {
                running.try_again().err().map(|times| {
                    format!("tried again {times} times, and its pass failed again: {failed}")
                })
            };
            let Some(why) = ends else {
                retried += 1;
                if how.suspects {
                    running.suspect();
                }
                return Some(running);
            };
            if running.cancelled().is_none() {
                tracing::error!(request = %running.id(), error = why, "pass failed");
            }
            running.end(Outcome::Failed(fault(failed.kind, why)), metrics);
            None
        };
        self.running =
            std::mem::take(&mut self.running).into_iter().enumerate().filter_map(again).collect();
        self.metrics.retried(retried);
        retried
    }

    fn lose_caches(&mut self) {
        self.preempt((0..self.running.len()).collect());
        self.pages.forget();
    }

    /// No pass can succeed any more: everyone is told so, and nobody can come.
    fn close(&mut self, failed: &PassFailed) {
        self.closed = true;
        // Before anyone hears of it: who asks again at once is to be refused by this name.
        self.state.send_replace(EngineState::Exited(EngineExit::DeviceFailed(failed.why.clone())));
        self.inbox.close();
        self.accept();
        let (running, waiting) = (self.running.len(), self.waiting.len());
        tracing::error!(error = %failed, running, waiting,
            "the device has failed: its caches are lost and cannot be made anew; all requests end");
        let ended = || {
            let why = format!("the device has failed: {failed}");
            Outcome::Failed(Fault { kind: FaultKind::DeviceFailed, why })
        };
        for running in std::mem::take(&mut self.running) {
            running.end(ended(), &self.metrics);
        }
        for waiting in std::mem::take(&mut self.waiting) {
            waiting.end(ended(), &self.metrics);
        }
        self.pages.forget();
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

fn size(table: &[PlannedRow]) -> Size {
    Size {
        rows: u32::try_from(table.len()).unwrap_or(u32::MAX),
        tokens: table.iter().fold(0, |sum, row| sum.saturating_add(row.tokens.get())),
    }
}

/// Why the request ends for which a pass failed.
fn its_fault(failed: &PassFailed) -> String {
    match failed.kind {
        PassFault::TooLarge => {
            format!("one token of it alone was too much for the device's memory: {failed}")
        }
        PassFault::Row(_) | PassFault::Broken => failed.to_string(),
    }
}

fn fault(kind: PassFault, why: String) -> Fault {
    let kind = match kind {
        PassFault::TooLarge => FaultKind::OutOfMemory,
        PassFault::Row(_) | PassFault::Broken => FaultKind::Internal,
    };
    Fault { kind, why }
}
