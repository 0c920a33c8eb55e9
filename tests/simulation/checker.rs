//! Checks the engine: it keeps its own record of where each request must be after each step, by the rules
//! as they are written down, and compares it with what the engine did.
//!
//! The rules that are checked, in the order of the code:
//!
//! - a request that was asked to stop before a step began gets no row in it;
//! - requests start in the order of rank, and those that give way for them are the last in rank;
//! - no request reads pages that another tenant's request computed, unless all share
//!   ([`crate::sharing`]);
//! - a pass computes each request once, every stream, prompts in the order of rank within the chunk,
//!   and an isolated row alone; only streams make a prompt wait, and not for ever;
//! - a pass that fails ends only the request whose fault it was, and those without a retry left; one that
//!   was too large makes the next smaller, and one that loses the caches for good ends all;
//! - a pass is never larger than the learnt limits, which grow twofold at most, after a pass that was as
//!   large as allowed; a trial that fails changes nothing;
//! - requests end exactly when their tokens say so, and their usage is what was computed;
//! - what the engine says of itself adds up.

use std::collections::BTreeMap;
use std::rc::Rc;

use interlock_engine::{
    Audit, CacheConfig, Caches, EngineConfig, EngineView, Event, Mode, ModelShape, PassFailed,
    PassFault, PrefixSharing, RETRIES_MAX, StepOutcome, TOKENS_PER_RETRY,
};
use interlock_request::{CancelCause, Fault, FaultKind, Finish, Outcome, Priority, Usage};
use interlock_scheduler::OVERTAKEN_MAX;

use crate::device::{ModelCall, OVERSIZED, RowOf};
use crate::outside::{ClientFate, ClientRecord, Outside};
use crate::scenario::SimRequest;
use crate::sharing::shares;
use crate::world::StepRecord;

/// Good passes before more is tried than is known to fit.
const TRIAL_AFTER: usize = 32;

/// What each request must have come to, and how large a pass may be.
pub(crate) struct Checker {
    requests: Rc<[SimRequest]>,
    shape: ModelShape,
    sharing: PrefixSharing,
    running_max: usize,
    displace: bool,
    chunk: usize,
    /// How large a pass might be in the last step, and in this one.
    size: ExpectedSize,
    failures: usize,
    /// What was known to fit, after the step before.
    safe: ExpectedSize,
    /// Failures that took nobody's retry, and retries that were given back.
    tries: usize,
    restored: usize,
    /// Did a pass fail, and nobody knows why, with one in it that had run well alone?
    cleared_failed: bool,
    expected: Vec<ExpectedRequest>,
    arrived: u64,
    closed: bool,
    /// Passes in a row that computed no prompt because of streams.
    held_up: usize,
    pub counts: EventCounts,
}

/// Passes after which a prompt has been held up by streams for long enough: what a prompt's least
/// piece takes is here no more than so many streams' passes lend.
const HELD_UP_MAX: usize = 2000;

/// How large a pass is, or may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ExpectedSize {
    rows: usize,
    tokens: usize,
}

impl ExpectedSize {
    fn of(rows: &[RowOf]) -> Self {
        Self { rows: rows.len(), tokens: rows.iter().map(|row| row.tokens).sum() }
    }
}

/// How often things happened, so that a test can tell that it saw what it is about.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct EventCounts(BTreeMap<&'static str, usize>);

impl EventCounts {
    pub(crate) fn of(&self, what: &str) -> usize {
        self.0.get(what).copied().unwrap_or(0)
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (what, count) in &other.0 {
            self.happened(what, *count);
        }
    }

    fn happened(&mut self, what: &'static str, times: usize) {
        *self.0.entry(what).or_default() += times;
    }
}

#[derive(Debug, Clone, Default)]
struct ExpectedRequest {
    at: ExpectedStage,
    priority: Option<Priority>,
    arrival: u64,
    overtaken: u32,
    /// How many had arrived when it became overdue, or last gave way.
    overdue_at: u64,
    isolation: ExpectedIsolation,
    /// Retries that were taken, and that it has earned back.
    retries: usize,
    earned: usize,
    /// Of its tokens, how many its passes have brought into the cache, and how many of those have
    /// earned what they could.
    reached: usize,
    counted: usize,
    /// Was it asked to stop before this step began?
    asked: bool,
    started: bool,
    drawn: usize,
    /// Most of its tokens that were ever in the cache.
    served: usize,
    /// What the prefix cache had for it when it first started; known once it had a row then.
    cached: Option<usize>,
    lives: usize,
    /// Has it had no row since it last started? Then what it found in the cache is not known here.
    rowless: bool,
    /// Was that ever so when it gave way?
    unseen: bool,
    /// Why it may end as failed.
    reason: Option<Fault>,
    /// Did it give way in this step?
    gave_way: bool,
    /// The natural end that its tokens have come to.
    ended: Option<Outcome>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum ExpectedIsolation {
    #[default]
    None,
    Isolated,
    Cleared,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum ExpectedStage {
    #[default]
    Nowhere,
    Inbox,
    Waiting,
    Running {
        /// Tokens in the cache, once its first row has told.
        computed: Option<usize>,
        /// Has it drawn a token since it got its row?
        drew: bool,
    },
    Gone,
}

type ExpectedRank = (bool, Priority, u64);

impl ExpectedRequest {
    fn rank(&self) -> ExpectedRank {
        let priority = self.priority.expect("admitted");
        (self.overtaken < OVERTAKEN_MAX, priority, self.arrival)
    }

    fn runs(&self) -> bool {
        matches!(self.at, ExpectedStage::Running { .. })
    }

    /// Its pass failed through no fault of its own. May it be tried again?
    fn try_again(&mut self) -> bool {
        let earned = (self.reached - self.counted) / TOKENS_PER_RETRY;
        self.counted += earned * TOKENS_PER_RETRY;
        self.earned += earned.min(self.retries - self.earned);
        let again = self.retries - self.earned < RETRIES_MAX as usize;
        self.retries += usize::from(again);
        again
    }

    /// It was told that this is what it used.
    fn used(&self, usage: Usage, prompt: usize) {
        assert_eq!(usage.generated_tokens as usize, self.drawn, "{self:?}");
        if !self.started {
            assert_eq!(usage, Usage::default(), "{self:?} never began");
            return;
        }
        let told = (usage.prompt_tokens as usize, usage.cached_tokens as usize);
        // What it finds in the cache when it starts shows here with its first row.
        let cached = self.cached.unwrap_or(told.1);
        let served = self.served.max(cached).min(prompt);
        let unknown = (self.rowless || self.unseen) && told.0 > served && told.0 <= prompt;
        assert!(told.0 == served || unknown, "{usage:?}, not {served} of {prompt}: {self:?}");
        assert!(told.1 == cached && cached <= served, "{usage:?}, not {cached}: {self:?}");
    }
}

impl Checker {
    pub(crate) fn new(
        requests: Rc<[SimRequest]>,
        shape: ModelShape,
        config: &EngineConfig,
        cache: &CacheConfig,
    ) -> Self {
        let batched = config.mode == Mode::Batched;
        Self {
            expected: vec![ExpectedRequest::default(); requests.len()],
            requests,
            shape,
            sharing: cache.prefix_sharing,
            running_max: if batched { config.running_max.get() as usize } else { 1 },
            displace: batched,
            chunk: config.prefill_chunk.get() as usize,
            size: ExpectedSize { rows: 0, tokens: 0 },
            failures: 0,
            safe: ExpectedSize { rows: usize::MAX, tokens: usize::MAX },
            tries: 0,
            restored: 0,
            cleared_failed: false,
            arrived: 0,
            closed: false,
            held_up: 0,
            counts: EventCounts::default(),
        }
        .unbound()
    }

    fn unbound(mut self) -> Self {
        self.size = self.largest();
        self
    }

    /// As large as the configuration lets a pass be.
    fn largest(&self) -> ExpectedSize {
        ExpectedSize { rows: self.running_max, tokens: self.running_max + self.chunk }
    }

    /// Before a step: what has been submitted, and what was asked.
    pub(crate) fn before(&mut self, outside: &Outside) {
        self.closed = !outside.is_open();
        self.submissions(outside);
        for (entry, client) in self.expected.iter_mut().zip(&outside.clients) {
            if entry.at == ExpectedStage::Inbox {
                entry.at = ExpectedStage::Waiting;
            }
            entry.asked = client.asked.is_some() || self.closed;
            entry.gave_way = false;
        }
    }

    fn submissions(&mut self, outside: &Outside) {
        for (entry, client) in self.expected.iter_mut().zip(&outside.clients) {
            let submitted = matches!(client.fate, ClientFate::Submitted | ClientFate::Left);
            if submitted && entry.at == ExpectedStage::Nowhere {
                // Arrivals are delivered in the order of their numbers.
                entry.at = ExpectedStage::Inbox;
                entry.priority = client.priority;
                entry.arrival = self.arrived;
                self.arrived += 1;
            }
        }
    }

    /// After a step: what the model saw, and what the engine says.
    pub(crate) fn after(
        &mut self,
        step: &StepRecord,
        audit: Audit,
        view: EngineView,
        outside: &Outside,
    ) {
        let StepRecord { step, seen, heard, .. } = step;
        let step = *step;
        self.counts.happened("steps", 1);
        self.submissions(outside);
        for entry in self.expected.iter_mut().filter(|entry| entry.asked) {
            if matches!(entry.at, ExpectedStage::Waiting | ExpectedStage::Running { .. }) {
                entry.at = ExpectedStage::Gone;
            }
        }
        for row in seen.iter().filter_map(ModelCall::rows).flatten() {
            let (client, asked) = (&outside.clients[row.who], self.expected[row.who].asked);
            self.counts.happened("in_flight", usize::from(client.asked.is_some() && !asked));
        }
        let pass = seen.iter().position(|seen| matches!(seen, ModelCall::Pass { .. }));
        let (before, after) = seen.split_at(pass.unwrap_or(seen.len()));
        self.starts(before);
        let was = self.size;
        match (step, after) {
            (StepOutcome::Ran, [ModelCall::Pass { rows, failed }, closed @ ..]) => {
                self.planned(rows);
                match failed {
                    None => self.succeeded(rows),
                    Some(failed) => self.failed(rows, failed),
                }
                self.learnt(rows, failed.as_ref(), audit);
                self.closed_after(closed);
                if closed.is_empty() {
                    self.nobody_waits_for_nothing(was, audit);
                }
            }
            (StepOutcome::Idle | StepOutcome::Closed, []) => {}
            _ => panic!("{step:?}, and in the device: {after:?}"),
        }
        self.heard(heard, outside);
        self.adds_up(step, was, audit, view);
        self.safe = audit.safe.map_or(self.largest(), |safe| ExpectedSize {
            rows: safe.rows.get() as usize,
            tokens: safe.tokens.get() as usize,
        });
    }

    /// How large a pass may be follows from how large this one was.
    fn learnt(&mut self, rows: &[RowOf], failed: Option<&PassFailed>, audit: Audit) {
        let (size, was) = (ExpectedSize::of(rows), self.size);
        let within = size.rows <= was.rows && size.tokens <= was.tokens;
        assert!(within, "{size:?}, and a pass may be {was:?}");
        let now = audit.bounds.map_or(self.largest(), |bounds| ExpectedSize {
            rows: bounds.rows.get() as usize,
            tokens: bounds.tokens.get() as usize,
        });
        self.size = now;
        if self.was_too_large(rows, failed) {
            if self.was_tried(size) {
                self.counts.happened("tried", 1);
                let back =
                    |size: usize, safe: usize, was: usize| if size > safe { safe } else { was };
                let rows = back(size.rows, self.safe.rows, was.rows);
                let tokens = back(size.tokens, self.safe.tokens, was.tokens);
                assert_eq!(now, ExpectedSize { rows, tokens }, "after {size:?} was tried in vain");
                return;
            }
            self.counts.happened("shrunk", 1);
            let least = |half: usize| half.max(1);
            let rows_max = if size.rows > 1 { least(size.rows / 2) } else { was.rows };
            let more = size.tokens > size.rows;
            let tokens_max = if more { least(size.tokens / 2) } else { was.tokens };
            let halved = ExpectedSize { rows: rows_max, tokens: tokens_max };
            assert_eq!(now, halved, "after a pass of {size:?} that was too large, {was:?} before");
            return;
        }
        let grew = |was: usize, now: usize, size: usize| {
            // Twofold to what is known to fit, by an eighth beyond.
            let step = 2 * was;
            let may = failed.is_none() && size >= was;
            assert!(now == was || may && now > was && now <= step, "{was}, {now}: {size}");
            now > was
        };
        let rows = grew(was.rows, now.rows, size.rows);
        let tokens = grew(was.tokens, now.tokens, size.tokens);
        self.counts.happened("grown", usize::from(rows || tokens));
    }

    /// Was it larger than what was known to fit?
    fn was_tried(&self, size: ExpectedSize) -> bool {
        size.rows > self.safe.rows || size.tokens > self.safe.tokens
    }

    /// Is this pass one after which less is tried? [`Checker::failed`] has seen it.
    fn was_too_large(&self, rows: &[RowOf], failed: Option<&PassFailed>) -> bool {
        let Some(failed) = failed.filter(|failed| failed.caches != Caches::Gone) else {
            return false;
        };
        let ExpectedSize { rows: count, tokens } = ExpectedSize::of(rows);
        match failed.kind {
            PassFault::TooLarge => count > 1 || tokens > 1,
            PassFault::Row(row) if row < count => false,
            PassFault::Row(_) | PassFault::Broken => count > 1 && self.cleared_failed,
        }
    }

    fn starts(&mut self, seen: &[ModelCall]) {
        let mut victims = vec![];
        let mut started = false;
        for seen in seen {
            match *seen {
                ModelCall::Closed { who } if self.expected[who].at == ExpectedStage::Gone => {}
                ModelCall::Closed { who } => victims.push(who),
                ModelCall::Opened { who, .. }
                | ModelCall::Refused { who }
                | ModelCall::Oversized { who } => {
                    self.give_way(&mut victims, started.then_some(who));
                    self.is_first(who);
                    started = true;
                    match seen {
                        ModelCall::Opened { .. } => self.start(who),
                        ModelCall::Oversized { .. } => self.oversized(who),
                        _ => {
                            self.expected[who].at = ExpectedStage::Gone;
                            self.expected[who].reason = Some("unwelcome".into());
                        }
                    }
                }
                ModelCall::Pass { .. } => unreachable!("what comes before a pass"),
            }
        }
        self.give_way(&mut victims, None);
    }

    /// There was no memory for it: it waits for one of those who run to end, if there are any, and
    /// not for ever.
    fn oversized(&mut self, who: usize) {
        let running = self.expected.iter().filter(|entry| entry.runs()).count();
        let entry = &mut self.expected[who];
        let why = if running == 0 {
            OVERSIZED.to_owned()
        } else if entry.try_again() {
            self.size.rows = self.size.rows.min(running);
            self.safe.rows = self.safe.rows.min(running);
            self.counts.happened("postponed", 1);
            return;
        } else {
            self.counts.happened("retries_spent", 1);
            format!("tried again {} times, and failed again: {OVERSIZED}", entry.retries)
        };
        entry.at = ExpectedStage::Gone;
        entry.reason = Some(Fault { kind: FaultKind::OutOfMemory, why });
    }

    /// These gave back their pages: the last in rank of those that run. If it is known that they
    /// did so for one who started, they were of a lower priority.
    fn give_way(&mut self, victims: &mut Vec<usize>, displaced_by: Option<usize>) {
        let mut ranks: Vec<ExpectedRank> =
            self.expected.iter().filter(|entry| entry.runs()).map(ExpectedRequest::rank).collect();
        ranks.sort_unstable();
        let last = &ranks[ranks.len() - victims.len()..];
        let mut of_victims: Vec<ExpectedRank> =
            victims.iter().map(|&who| self.expected[who].rank()).collect();
        of_victims.sort_unstable();
        assert_eq!(of_victims, last, "{victims:?} gave way, and were not the last in rank");
        assert!(
            self.displace || victims.is_empty(),
            "{victims:?} gave way, and one runs at a time"
        );
        for who in victims.drain(..) {
            let victim = &mut self.expected[who];
            assert!(victim.runs(), "{who} gave way, and did not run");
            victim.at = ExpectedStage::Waiting;
            victim.gave_way = true;
            victim.overdue_at = self.arrived;
            self.counts.happened("preempted", 1);
            if let Some(candidate) = displaced_by {
                self.counts.happened("displaced", 1);
                let outranks = |a: ExpectedRank, b: ExpectedRank| (a.0, a.1) < (b.0, b.1);
                let (of_candidate, of_victim) =
                    (self.expected[candidate].rank(), self.expected[who].rank());
                assert!(outranks(of_candidate, of_victim), "{who} had to give way");
            }
        }
    }

    /// Nobody who waits and fits goes before it.
    fn is_first(&self, who: usize) {
        let candidate = &self.expected[who];
        assert_eq!(candidate.at, ExpectedStage::Waiting, "{who} started");
        let capacity = (self.shape.pages * self.shape.page_tokens) as usize;
        for (other, entry) in self.expected.iter().enumerate() {
            if entry.at == ExpectedStage::Waiting && entry.rank() < candidate.rank() {
                let too_large = self.requests[other].prompt.len() > capacity;
                assert!(too_large, "{who} started before {other}: {candidate:?} {entry:?}");
            }
        }
    }

    fn start(&mut self, who: usize) {
        let arrival = self.expected[who].arrival;
        for entry in &mut self.expected {
            let waits = match entry.at {
                ExpectedStage::Waiting => true,
                ExpectedStage::Running { drew, .. } => !drew,
                ExpectedStage::Nowhere | ExpectedStage::Inbox | ExpectedStage::Gone => false,
            };
            if !waits || entry.arrival >= arrival {
                continue;
            }
            entry.overtaken += 1;
            if entry.overtaken == OVERTAKEN_MAX {
                entry.overdue_at = self.arrived;
                self.counts.happened("overdue", 1);
            }
            // Whoever still goes before one that is overdue was here when it became so.
            let overdue = entry.overtaken > OVERTAKEN_MAX && entry.at == ExpectedStage::Waiting;
            assert!(
                !overdue || arrival < entry.overdue_at,
                "{who} came after {entry:?} was overdue"
            );
        }
        let entry = &mut self.expected[who];
        entry.at = ExpectedStage::Running { computed: None, drew: false };
        entry.started = true;
        entry.lives += 1;
        entry.unseen |= entry.rowless;
        entry.rowless = true;
    }

    /// Tokens that a running request lacks before its next, if that is known.
    fn left(&self, who: usize) -> Option<usize> {
        let entry = &self.expected[who];
        let ExpectedStage::Running { computed, .. } = entry.at else { return None };
        Some(self.requests[who].prompt.len() + entry.drawn - computed?)
    }

    fn planned(&mut self, rows: &[RowOf]) {
        for (nth, row) in rows.iter().enumerate() {
            let twice = rows[..nth].iter().any(|other| other.who == row.who);
            assert!(!twice, "{} is in the pass twice", row.who);
            let entry = &mut self.expected[row.who];
            assert!(entry.runs(), "{} is in the pass: {entry:?}", row.who);
            let ExpectedStage::Running { computed, .. } = &mut entry.at else { unreachable!() };
            assert_eq!(*computed.get_or_insert(row.from), row.from, "of {}", row.who);
            if entry.lives == 1 && entry.cached.is_none() {
                entry.cached = Some(row.from);
                self.counts.happened("prefix_hits", usize::from(row.from > 0));
            }
            entry.rowless = false;
            entry.served = entry.served.max(row.from);
            let (own, across) = shares(self.sharing, &self.requests, row.who, &row.read);
            self.counts.happened("read_of_its_tenants", usize::from(own > 0));
            self.counts.happened("read_of_others", usize::from(across > 0));
            let left = self.left(row.who).expect("it runs");
            assert_eq!(row.draw, row.tokens == left, "{} draws from its last token", row.who);
        }
        match self.first_isolated() {
            Some(isolated) => {
                let alone: Vec<_> = rows.iter().map(|row| row.who).collect();
                assert_eq!(alone, [isolated], "an isolated row runs alone");
                assert!(rows[0].tokens <= self.chunk, "{} tokens in a pass", rows[0].tokens);
            }
            None => self.shared(rows),
        }
    }

    fn first_isolated(&self) -> Option<usize> {
        let isolated =
            self.expected.iter().enumerate().filter(|(_, entry)| {
                entry.runs() && entry.isolation == ExpectedIsolation::Isolated
            });
        isolated.min_by_key(|(_, entry)| entry.rank()).map(|(who, _)| who)
    }

    /// Who lacks one token is in the pass, and prompts are in the order of rank: all but the last
    /// of them whole, within the chunk.
    fn shared(&mut self, rows: &[RowOf]) {
        let streams =
            |row: &RowOf| self.left(row.who) == Some(1) && self.expected[row.who].drawn > 0;
        let held_up = rows.iter().any(streams)
            && rows.iter().all(|row| self.left(row.who) == Some(1))
            && rows.len() < self.expected.iter().filter(|entry| entry.runs()).count();
        self.held_up = if held_up { self.held_up + 1 } else { 0 };
        assert!(self.held_up <= HELD_UP_MAX, "prompts wait for {} passes", self.held_up);
        self.counts.happened("held_up", usize::from(held_up));
        self.in_order(rows);
    }

    fn in_order(&self, rows: &[RowOf]) {
        let rank = |who: usize| self.expected[who].rank();
        let is_prompt = |row: &&RowOf| self.left(row.who) != Some(1);
        let prompts: Vec<_> = rows.iter().filter(is_prompt).collect();
        let tokens: usize = prompts.iter().map(|row| row.tokens).sum();
        assert!(tokens <= self.chunk, "{tokens} tokens of prompts in a pass");
        let is_out =
            |who: &usize| self.expected[*who].runs() && !rows.iter().any(|row| row.who == *who);
        for out in (0..self.expected.len()).filter(is_out) {
            assert_ne!(self.left(out), Some(1), "{out} was left out, and lacks but one token");
            let before = prompts.iter().all(|row| rank(row.who) < rank(out));
            let waits = self.held_up > 0 || !prompts.is_empty();
            assert!(before && waits, "{out} was left out of {prompts:?}");
        }
        let last = prompts.iter().map(|row| rank(row.who)).max();
        for part in prompts.iter().filter(|row| !row.draw) {
            assert_eq!(Some(rank(part.who)), last, "{part:?} got only a part: {prompts:?}");
        }
    }

    fn succeeded(&mut self, rows: &[RowOf]) {
        let alone = rows.len() == 1;
        for row in rows {
            let entry = &mut self.expected[row.who];
            let request = &self.requests[row.who];
            entry.isolation = match entry.isolation {
                ExpectedIsolation::Isolated | ExpectedIsolation::Cleared if alone => {
                    ExpectedIsolation::Cleared
                }
                _ => ExpectedIsolation::None,
            };
            let until = row.from + row.tokens;
            entry.reached = entry.reached.max(until);
            entry.served = entry.served.max(until);
            entry.at = ExpectedStage::Running { computed: Some(until), drew: row.draw };
            let Some(token) = row.drawn else { continue };
            entry.drawn += 1;
            let generation = &request.generation;
            let finish = if generation.stop_tokens.contains(&token) {
                assert!(entry.drawn > generation.tokens_min as usize, "it stopped too early");
                Finish::Stop
            } else if entry.drawn >= generation.tokens_max as usize
                || request.prompt.len() + entry.drawn >= self.shape.context as usize
            {
                Finish::Length
            } else {
                continue;
            };
            entry.ended = Some(Outcome::Completed(finish));
            entry.at = ExpectedStage::Gone;
        }
    }

    fn failed(&mut self, rows: &[RowOf], failed: &PassFailed) {
        self.failures += 1;
        self.counts.happened(failed.kind.as_str(), 1);
        if failed.caches == Caches::Gone {
            return self.device_failed(failed);
        }
        let ExpectedSize { rows: count, tokens } = ExpectedSize::of(rows);
        let too_large = failed.kind == PassFault::TooLarge;
        let culprit = match failed.kind {
            PassFault::TooLarge => (count == 1 && tokens == 1).then_some(0),
            PassFault::Row(row) if row < count => Some(row),
            PassFault::Row(_) | PassFault::Broken => (count == 1).then_some(0),
        };
        let isolated = culprit.is_none() && !too_large;
        let cleared = |row: &RowOf| self.expected[row.who].isolation == ExpectedIsolation::Cleared;
        self.cleared_failed = isolated && rows.iter().any(cleared);
        let tried = too_large && culprit.is_none() && self.was_tried(ExpectedSize::of(rows));
        let free = tried || matches!(failed.kind, PassFault::Row(row) if row < count);
        let kind = if too_large { FaultKind::OutOfMemory } else { FaultKind::Internal };
        for (nth, row) in rows.iter().enumerate() {
            let entry = &mut self.expected[row.who];
            let why = if culprit == Some(nth) {
                Some(if too_large {
                    format!("one token of it alone was too much for the device's memory: {failed}")
                } else {
                    failed.why.clone()
                })
            } else if free || entry.try_again() {
                None
            } else {
                self.counts.happened("retries_spent", 1);
                let times = entry.retries;
                Some(format!("tried again {times} times, and its pass failed again: {failed}"))
            };
            match why {
                Some(why) => {
                    entry.ended = Some(Outcome::Failed(Fault { kind, why }));
                    entry.at = ExpectedStage::Gone;
                }
                None if isolated => {
                    entry.isolation = ExpectedIsolation::Isolated;
                    self.counts.happened("isolated", 1);
                }
                None => {}
            }
        }
        if culprit.is_some() {
            for entry in &mut self.expected {
                self.restored += entry.retries - entry.earned;
                entry.earned = entry.retries;
            }
        } else if free {
            self.tries += 1;
        }
        if failed.caches == Caches::Emptied {
            self.counts.happened("caches_lost", 1);
            for entry in self.expected.iter_mut().filter(|entry| entry.runs()) {
                entry.at = ExpectedStage::Waiting;
                entry.gave_way = true;
            }
        }
    }

    /// Everyone ends who is there, and who comes later is refused.
    fn device_failed(&mut self, failed: &PassFailed) {
        self.counts.happened("device_failed", 1);
        let why = format!("the device has failed: {failed}");
        for entry in &mut self.expected {
            let there = matches!(
                entry.at,
                ExpectedStage::Inbox | ExpectedStage::Waiting | ExpectedStage::Running { .. }
            );
            if there {
                let fault = Fault { kind: FaultKind::DeviceFailed, why: why.clone() };
                entry.ended = Some(Outcome::Failed(fault));
                entry.at = ExpectedStage::Gone;
            }
        }
    }

    /// Only who has ended, or lost the cache, gave it back.
    fn closed_after(&self, closed: &[ModelCall]) {
        for seen in closed {
            let ModelCall::Closed { who } = seen else { panic!("after the pass: {seen:?}") };
            assert!(!self.expected[*who].runs(), "{who} should still run");
        }
    }

    /// Clients heard of what happened, and of nothing else.
    fn heard(&mut self, heard: &[(usize, Event)], outside: &Outside) {
        for (who, event) in heard {
            let client = &outside.clients[*who];
            let entry = &mut self.expected[*who];
            let Event::Ended(ended) = event else { continue };
            let capacity = (self.shape.pages * self.shape.page_tokens) as usize;
            let length = self.requests[*who].prompt.len() + entry.drawn;
            if entry.at == ExpectedStage::Waiting && length > capacity {
                entry.at = ExpectedStage::Gone;
                self.counts.happened("too_long", 1);
                let Outcome::Failed(why) = &ended.outcome else { panic!("{ended:?}") };
                assert!(why.why.contains("do not fit"), "{why}");
                entry.reason = Some(why.clone());
            }
            assert_eq!(entry.at, ExpectedStage::Gone, "{who} was told of its end: {ended:?}");
            let natural = || entry.reason.clone().map(Outcome::Failed);
            let shutdown = || self.closed.then_some(Outcome::Cancelled(CancelCause::Shutdown));
            let expected = client.asked.clone().or_else(|| entry.ended.clone()).or_else(natural);
            assert_eq!(Some(&ended.outcome), expected.or_else(shutdown).as_ref(), "of {who}");
            entry.used(ended.usage, self.requests[*who].prompt.len());
            let stop_token = usize::from(entry.ended == Some(Outcome::Completed(Finish::Stop)));
            assert_eq!(client.tokens.len() + stop_token, entry.drawn, "tokens told to {who}");
            match &ended.outcome {
                Outcome::Completed(_) => self.counts.happened("completed", 1),
                Outcome::Cancelled(_) => self.counts.happened("cancelled", 1),
                Outcome::Failed(_) => self.counts.happened("failed", 1),
            }
        }
        for (who, client) in outside.clients.iter().enumerate() {
            let entry = &self.expected[who];
            let told = heard.iter().filter(|heard| **heard == (who, Event::Preempted)).count();
            let listens = client.fate == ClientFate::Submitted;
            assert!(!listens || told == usize::from(entry.gave_way), "{told} preemptions of {who}");
            let gone = entry.at == ExpectedStage::Gone;
            let told = |client: &ClientRecord| {
                client.ended.is_some() || client.fate != ClientFate::Submitted
            };
            assert!(!gone || told(client), "{who} has ended, and was not told: {entry:?}");
        }
    }

    /// What the engine says of itself.
    fn adds_up(&self, step: StepOutcome, was: ExpectedSize, audit: Audit, view: EngineView) {
        let count = |wanted: fn(&ExpectedRequest) -> bool| {
            self.expected.iter().filter(|&entry| wanted(entry)).count()
        };
        let running = count(ExpectedRequest::runs);
        let waiting = count(|entry| entry.at == ExpectedStage::Waiting);
        assert_eq!((audit.waiting, audit.running), (waiting, running), "who waits and runs");
        assert!(running <= was.rows.min(was.tokens), "{running} run, and a pass may be {was:?}");
        let pages = audit.pages;
        assert_eq!(pages.leased + pages.idle + pages.free, self.shape.pages, "{pages:?}");
        assert_eq!(running == 0, pages.leased == 0, "{running} run, with {pages:?}");
        let seated = count(|entry| {
            entry.at == ExpectedStage::Inbox || entry.at == ExpectedStage::Waiting && !entry.started
        });
        let begun =
            count(|entry| entry.runs() || entry.at == ExpectedStage::Waiting && entry.started);
        assert_eq!((view.waiting as usize, view.running as usize), (seated, begun), "{view:?}");
        if step == StepOutcome::Idle {
            assert_eq!(waiting + running, 0, "idle, and there is somebody to compute for");
        }
    }

    /// Whoever is next has no room: with what is free after a pass that freed nothing, it could not
    /// have started before it.
    fn nobody_waits_for_nothing(&self, was: ExpectedSize, audit: Audit) {
        let waiting = self.expected.iter().enumerate();
        let waiting =
            waiting.filter(|(_, entry)| entry.at == ExpectedStage::Waiting && !entry.asked);
        let Some((who, next)) = waiting.min_by_key(|(_, entry)| entry.rank()) else { return };
        let tokens = self.requests[who].prompt.len() + next.drawn;
        let pages = tokens.div_ceil(self.shape.page_tokens as usize) + audit.running;
        let free = audit.pages.available() as usize;
        let room = audit.running < was.rows.min(was.tokens) && pages <= free;
        assert!(!room, "{who} waits, and there is room: {next:?} {audit:?}");
    }

    /// When nobody is left.
    pub(crate) fn at_the_end(&mut self, outside: &Outside) {
        self.failures_are_few();
        for (who, (entry, client)) in self.expected.iter().zip(&outside.clients).enumerate() {
            let over = matches!(entry.at, ExpectedStage::Nowhere | ExpectedStage::Gone);
            assert!(over, "{who} is left: {entry:?}");
            match client.fate {
                ClientFate::ToCome => panic!("{who} never came"),
                ClientFate::Submitted => assert!(client.ended.is_some(), "{who} never ended"),
                ClientFate::Left => self.counts.happened("left", 1),
                ClientFate::Full => self.counts.happened("full", 1),
                ClientFate::Refused => self.counts.happened("refused", 1),
                ClientFate::Rejected | ClientFate::TooLate => {}
            }
        }
    }

    /// Every pass that fails takes a retry of a request, or ends one, or was a trial, of which there is
    /// one in so many good passes. So there are no more than these, whatever fails and for how long.
    fn failures_are_few(&self) {
        let of_one = |entry: &ExpectedRequest| match entry.at {
            ExpectedStage::Nowhere => 0,
            _ => RETRIES_MAX as usize + entry.reached / TOKENS_PER_RETRY + 1,
        };
        let most: usize = self.expected.iter().map(of_one).sum();
        let most = most + self.restored + self.tries;
        assert!(self.failures <= most, "{} passes failed, not {most}", self.failures);
        let tries_max = self.counts.of("steps") / TRIAL_AFTER;
        assert!(self.tries <= tries_max, "{} tries, not {tries_max}", self.tries);
    }
}
