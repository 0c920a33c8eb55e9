//! What a request is on the engine thread: [`Waiting`], then [`Running`].
//!
//! Each holds just what it needs and becomes the other, so a waiting request has no cache to leak.
//! Prefilling and decoding are one type: a row of the batch knows how many of its tokens are not in
//! the cache yet, and one that lacks only the last draws its next with every pass. Each gives back
//! all that it holds before its submitter hears of the end: who reads `Ended` finds the seat and
//! the pages free.

use std::num::NonZeroU32;

use interlock_policy_api::Work;
use interlock_request::{
    CancelCause, Drawn, Fault, Finish, Generation, Outcome, RequestId, Stage, TokenId, Usage,
};
use interlock_scheduler::{Grower, Rank, Step};
use tokio::sync::mpsc;

use crate::control::Asked;
use crate::events::Preempted;
use crate::handle::{Place, Submission};
use crate::metrics::{Begun, EngineMetrics};
use crate::pages::{Found, Lease, Pages, Prospect};
use crate::retries::Retries;
use crate::{Control, Ended, Event, Opening, PrefixSharing, Row};

/// A request's way to its submitter. Consumed by its end, so there is only one.
#[derive(Debug)]
struct Ticket {
    id: RequestId,
    out: mpsc::Sender<Event>,
    control: Control,
    preempted: Preempted,
}

impl Ticket {
    /// Tells an event. The channel has room for all that a request can cause, so this fails only
    /// when nobody listens any more, which [`Control`] says too.
    fn tell(&self, event: Event) {
        let _gone = self.out.try_send(event);
    }

    fn end(self, natural: Outcome, usage: Usage, stage: Stage, metrics: &EngineMetrics) {
        let outcome = self.control.close(natural);
        match &outcome {
            Outcome::Completed(_) => {}
            Outcome::Cancelled(cause) => metrics.cancelled(*cause, stage),
            Outcome::Failed(fault) => metrics.request_failed(fault.kind),
        }
        self.tell(Event::Ended(Ended { outcome, usage }));
    }
}

/// What stays the same of a request, however often it starts.
#[derive(Debug)]
struct Request {
    ticket: Ticket,
    /// The prompt, then what was generated.
    tokens: Vec<TokenId>,
    prompt_tokens: usize,
    /// Of the prompt, those that the prefix cache had when it first started.
    cached_tokens: usize,
    /// Most of its tokens that have been in the cache. Preemption takes them out again, but the
    /// model has seen them.
    served: usize,
    generation: Generation,
    fresh_seed: u64,
    /// Its place in the order of arrival.
    arrival: u64,
    /// How many later ones have started while it had no row, or had drawn nothing with it.
    overtaken: u32,
    standing: Standing,
    retries: Retries,
}

/// What is thought of a request after a pass that failed through nobody's known fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// Nothing.
    Clear,
    /// It was in that pass: it may be its fault, and it runs alone.
    Suspect,
    /// Alone it ran well, and it has not run with others since.
    Acquitted,
}

impl Request {
    fn rank(&self) -> Rank {
        Rank::new(self.generation.priority, self.arrival, self.overtaken)
    }

    fn generated(&self) -> &[TokenId] {
        &self.tokens[self.prompt_tokens..]
    }

    /// How far it is, once it has begun.
    fn stage(&self) -> Stage {
        if self.generated().is_empty() { Stage::Prefilling } else { Stage::Decoding }
    }

    /// Was it asked to stop? With what comes of it.
    fn asked(&self) -> Option<Outcome> {
        self.ticket.control.asked().map(|asked| match asked {
            Asked::Cancel(cause) => Outcome::Cancelled(cause),
            Asked::Finish => Outcome::Completed(Finish::Stop),
        })
    }

    /// One has started. If that arrived later, it has overtaken this one.
    fn overtaken_by(&mut self, arrival: u64) {
        if self.arrival < arrival {
            self.overtaken = self.overtaken.saturating_add(1);
        }
    }

    fn opening(&self) -> Opening<'_> {
        let (prompt, generated) = self.tokens.split_at(self.prompt_tokens);
        Opening { prompt, generated, generation: &self.generation, fresh_seed: self.fresh_seed }
    }

    fn usage(&self) -> Usage {
        Usage {
            prompt_tokens: count(self.served.min(self.prompt_tokens)),
            cached_tokens: count(self.cached_tokens),
            generated_tokens: count(self.generated().len()),
        }
    }
}

/// It has no pages: it has not begun, or was preempted.
#[derive(Debug)]
pub(crate) struct Waiting {
    request: Request,
    since: Since,
    found: Found,
}

/// What a waiting request holds.
#[derive(Debug)]
enum Since {
    /// A place in the waiting room.
    Arrival(Place),
    /// Nothing but its place among those that have begun.
    Preemption(Begun),
}

impl Waiting {
    pub(crate) fn new(
        submission: Submission,
        sharing: PrefixSharing,
        arrival: u64,
        fresh_seed: u64,
    ) -> Self {
        let Submission { admitted, place, out, control, preempted } = submission;
        let Work { id, tenant, prompt, generation } = admitted.into_work();
        let tokens = prompt.into_tokens();
        let request = Request {
            ticket: Ticket { id, out, control, preempted },
            prompt_tokens: tokens.len(),
            tokens,
            cached_tokens: 0,
            served: 0,
            generation,
            fresh_seed,
            arrival,
            overtaken: 0,
            standing: Standing::Clear,
            retries: Retries::new(),
        };
        let found = Found::nothing(sharing.scope(&tenant));
        Self { request, since: Since::Arrival(place), found }
    }

    pub(crate) fn rank(&self) -> Rank {
        self.request.rank()
    }

    pub(crate) fn arrival(&self) -> u64 {
        self.request.arrival
    }

    pub(crate) fn overtaken_by(&mut self, arrival: u64) {
        self.request.overtaken_by(arrival);
    }

    /// All that must be in the cache before its next token.
    pub(crate) fn history(&self) -> &[TokenId] {
        &self.request.tokens
    }

    pub(crate) fn opening(&self) -> Opening<'_> {
        self.request.opening()
    }

    /// What it would find in the cache.
    pub(crate) fn look(&mut self, pages: &Pages) -> Prospect {
        pages.look(&self.request.tokens, &mut self.found)
    }

    /// Takes what it finds.
    pub(crate) fn lease(&mut self, pages: &Pages) -> Lease {
        pages.lease(&self.request.tokens, &mut self.found)
    }

    pub(crate) fn asked(&self) -> Option<Outcome> {
        self.request.asked()
    }

    pub(crate) fn control(&self) -> &Control {
        &self.request.ticket.control
    }

    pub(crate) fn end(self, outcome: Outcome, metrics: &EngineMetrics) {
        let Self { request, since, .. } = self;
        let stage = match since {
            Since::Arrival(_) => Stage::Waiting,
            Since::Preemption(_) => request.stage(),
        };
        drop(since);
        let usage = request.usage();
        request.ticket.end(outcome, usage, stage, metrics);
    }

    /// It could not start: the model would not have it, or there is not enough memory for it.
    pub(crate) fn refuse(self, fault: Fault, metrics: &EngineMetrics) {
        let id = &self.request.ticket.id;
        tracing::error!(request = %id, error = %fault, "the model could not take the request");
        self.end(Outcome::Failed(fault), metrics);
    }

    /// Another was to blame for what failed.
    pub(crate) fn restore_retries(&mut self) {
        self.request.retries.restore();
    }

    /// It could not start this time. How often it was tried before, if that was often enough.
    pub(crate) fn try_again(&mut self) -> Result<(), u32> {
        self.request.retries.take()
    }

    /// Gives up its place in the waiting room for pages and a sequence.
    pub(crate) fn start<S>(self, sequence: S, lease: Lease, metrics: &EngineMetrics) -> Running<S> {
        let Self { mut request, since, .. } = self;
        let computed = lease.cached_tokens();
        let running = match since {
            Since::Arrival(place) => {
                drop(place);
                request.cached_tokens = computed;
                request.ticket.tell(Event::Started);
                metrics.begun()
            }
            Since::Preemption(running) => running,
        };
        request.served = request.served.max(computed);
        Running { request, sequence, lease, computed, drew: false, running }
    }
}

/// It has a row in the batch.
#[derive(Debug)]
pub(crate) struct Running<S> {
    request: Request,
    sequence: S,
    lease: Lease,
    /// How many of its tokens are in the cache; at least one is not.
    computed: usize,
    /// Has it drawn a token since it got its row?
    drew: bool,
    running: Begun,
}

impl<S> Running<S> {
    /// Tokens to compute before its next one can be drawn.
    fn left(&self) -> NonZeroU32 {
        NonZeroU32::new(count(self.request.tokens.len() - self.computed))
            .expect("a token that was drawn is not in the cache before it is computed")
    }

    /// One has started, which does not matter to a stream that flows.
    pub(crate) fn overtaken_by(&mut self, arrival: u64) {
        if !self.drew {
            self.request.overtaken_by(arrival);
        }
    }

    pub(crate) fn rank(&self) -> Rank {
        self.request.rank()
    }

    /// Pages that come free if it gives way.
    pub(crate) fn frees(&self) -> u32 {
        self.lease.alone()
    }

    pub(crate) fn as_grower(&self) -> Grower {
        let needs = self.lease.lacks(self.request.tokens.len());
        Grower { rank: self.request.rank(), needs }
    }

    pub(crate) fn as_step(&self) -> Step {
        let left = self.left();
        let flows = left == NonZeroU32::MIN && !self.request.generated().is_empty();
        let suspect = self.request.standing == Standing::Suspect;
        Step { rank: self.request.rank(), left, flows, suspect }
    }

    /// Makes sure of pages for its next tokens. They were counted before the pass was planned.
    #[must_use]
    pub(crate) fn make_room(&mut self, tokens: NonZeroU32) -> bool {
        self.lease.extend(self.computed + tokens.get() as usize)
    }

    /// Its part in a pass over its next `tokens` tokens.
    pub(crate) fn row(&mut self, tokens: NonZeroU32) -> Row<'_, S> {
        let until = self.computed + tokens.get() as usize;
        Row {
            sequence: &mut self.sequence,
            tokens: &self.request.tokens[self.computed..until],
            from: count(self.computed),
            pages: self.lease.pages(),
            draw: until == self.request.tokens.len(),
        }
    }

    pub(crate) fn asked(&self) -> Option<Outcome> {
        self.request.asked()
    }

    /// Who cancelled it, if someone did.
    pub(crate) fn cancelled(&self) -> Option<CancelCause> {
        match self.asked() {
            Some(Outcome::Cancelled(cause)) => Some(cause),
            _ => None,
        }
    }

    pub(crate) fn id(&self) -> &RequestId {
        &self.request.ticket.id
    }

    pub(crate) fn control(&self) -> &Control {
        &self.request.ticket.control
    }

    pub(crate) fn end(self, outcome: Outcome, metrics: &EngineMetrics) {
        let Self { request, sequence, lease, running, .. } = self;
        drop((sequence, lease, running));
        let (usage, stage) = (request.usage(), request.stage());
        request.ticket.end(outcome, usage, stage, metrics);
    }

    /// Its next pass it runs alone.
    pub(crate) fn suspect(&mut self) {
        self.request.standing = Standing::Suspect;
    }

    /// Did it run well alone, and not with others since?
    pub(crate) fn is_acquitted(&self) -> bool {
        self.request.standing == Standing::Acquitted
    }

    /// Another was to blame for what failed.
    pub(crate) fn restore_retries(&mut self) {
        self.request.retries.restore();
    }

    /// The pass over it failed, and not through its own fault. How often it was tried again before,
    /// if that was often enough.
    pub(crate) fn try_again(&mut self) -> Result<(), u32> {
        self.request.retries.take()
    }

    /// Do its next `tokens` tokens bring it further than it ever was? Not if they are computed again
    /// because its cache was lost.
    pub(crate) fn is_fresh(&self, tokens: NonZeroU32) -> bool {
        self.computed + tokens.get() as usize > self.request.served
    }

    /// Gives back its pages, and waits for others. What it has drawn it keeps.
    pub(crate) fn preempt(self) -> Waiting {
        let Self { request, sequence, lease, running, .. } = self;
        let found = Found::nothing(lease.scope().clone());
        drop((sequence, lease));
        if request.ticket.preempted.to_be_told() {
            request.ticket.tell(Event::Preempted);
        }
        Waiting { request, since: Since::Preemption(running), found }
    }

    /// Its next `tokens` tokens are in the cache, and a token may have come of it. `None`: with
    /// that it has ended.
    pub(crate) fn advance(
        mut self,
        tokens: NonZeroU32,
        alone: bool,
        drawn: Option<Drawn>,
        context: u32,
        metrics: &EngineMetrics,
    ) -> Option<Self> {
        self.computed += tokens.get() as usize;
        self.request.served = self.request.served.max(self.computed);
        self.request.retries.reached(self.computed);
        self.lease.computed(&self.request.tokens[..self.computed]);
        self.request.standing = match self.request.standing {
            Standing::Suspect | Standing::Acquitted if alone => Standing::Acquitted,
            _ => Standing::Clear,
        };
        let Some(drawn) = drawn else { return Some(self) };
        self.drew = true;
        self.request.tokens.push(drawn.token);
        let generation = &self.request.generation;
        if generation.stop_tokens.contains(&drawn.token) {
            self.end(Outcome::Completed(Finish::Stop), metrics);
            return None;
        }
        // The model's context ends the generation where the request's own limit would not.
        let over = self.request.generated().len() >= generation.tokens_max as usize
            || self.request.tokens.len() >= context as usize;
        self.request.ticket.tell(Event::Token(drawn));
        if over {
            self.end(Outcome::Completed(Finish::Length), metrics);
            return None;
        }
        Some(self)
    }
}

fn count(tokens: usize) -> u32 {
    u32::try_from(tokens).unwrap_or(u32::MAX)
}
