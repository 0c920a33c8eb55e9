//! A request on the engine thread: a [`WaitingRequest`], which becomes a [`RunningRequest`], which
//! may become waiting again.
//!
//! Each type holds just what its stage needs, so a waiting request has no cache to leak. Prefilling
//! and decoding are one type: a running request knows how many of its tokens are not in the cache yet,
//! and one that lacks only the last draws its next token with every forward pass. A request gives back
//! all that it holds before its submitter learns of the end: whoever reads `Ended` finds the place in
//! the queue and the pages free.

use std::num::NonZeroU32;

use interlock_policy_api::Work;
use interlock_request::{
    CancelCause, Drawn, Fault, Finish, Generation, Outcome, RequestId, Stage, TokenId, Usage,
};
use interlock_scheduler::{GrowingRequest, Rank, Runnable};

use crate::control::StopRequest;
use crate::events::EventSender;
use crate::handle::{QueueSlot, QueuedRequest};
use crate::metrics::{EngineMetrics, RunningGuard};
use crate::pages::{Lease, PageDemand, Pages, PrefixMatch};
use crate::retries::Retries;
use crate::{Control, Event, Opening, PrefixSharing, Row};

/// What stays with a request in every stage.
#[derive(Debug)]
struct RequestState {
    id: RequestId,
    events: EventSender,
    /// The prompt, then what was generated.
    tokens: Vec<TokenId>,
    prompt_tokens: usize,
    /// Prompt tokens that the prefix cache had when the request first started.
    cached_tokens: usize,
    /// Most of the request's tokens that have been in the cache. Preemption takes them out again, but
    /// the model has seen them.
    served: usize,
    generation: Generation,
    fresh_seed: u64,
    /// The request's place in the order of arrival.
    arrival: u64,
    /// How many later requests have started while this one had no row, or had drawn nothing with it.
    overtaken: u32,
    isolation: Isolation,
    retries: Retries,
}

/// Whether a request must run alone, because a forward pass with it failed and nobody knows why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Isolation {
    /// No such pass has failed.
    None,
    /// The request's last pass failed: the next one has no other row, to show whether the request is at fault.
    Isolated,
    /// The request's last pass had no other row, and succeeded.
    Cleared,
}

impl RequestState {
    fn rank(&self) -> Rank {
        Rank::new(self.generation.priority, self.arrival, self.overtaken)
    }

    fn generated(&self) -> &[TokenId] {
        &self.tokens[self.prompt_tokens..]
    }

    /// The stage of a request that has begun.
    fn stage(&self) -> Stage {
        if self.generated().is_empty() { Stage::Prefilling } else { Stage::Decoding }
    }

    /// The outcome that somebody asked for, if the request was asked to stop.
    fn stop_outcome(&self) -> Option<Outcome> {
        self.events.control().stop_request().map(|stop| match stop {
            StopRequest::Cancel(cause) => Outcome::Cancelled(cause),
            StopRequest::Finish => Outcome::Completed(Finish::Stop),
        })
    }

    /// Counts a request that has started, if it arrived later than this one.
    fn overtaken_by(&mut self, arrival: u64) {
        if self.arrival < arrival {
            self.overtaken = self.overtaken.saturating_add(1);
        }
    }

    fn opening(&self) -> Opening<'_> {
        let (prompt, generated) = self.tokens.split_at(self.prompt_tokens);
        Opening { prompt, generated, generation: &self.generation, fresh_seed: self.fresh_seed }
    }

    fn end(self, natural: Outcome, stage: Stage, metrics: &EngineMetrics) {
        let usage = Usage {
            prompt_tokens: count(self.served.min(self.prompt_tokens)),
            cached_tokens: count(self.cached_tokens),
            generated_tokens: count(self.generated().len()),
        };
        self.events.end(natural, usage, |outcome| match outcome {
            Outcome::Completed(_) => {}
            Outcome::Cancelled(cause) => metrics.cancelled(*cause, stage),
            Outcome::Failed(fault) => metrics.request_failed(fault.kind),
        });
    }
}

/// A request without pages: it has not begun, or was preempted.
#[derive(Debug)]
pub(crate) struct WaitingRequest {
    request: RequestState,
    origin: WaitReason,
    prefix: PrefixMatch,
}

/// Why a request waits, with what it holds meanwhile.
#[derive(Debug)]
enum WaitReason {
    /// The request has arrived, and holds a place in the queue.
    Arrived(QueueSlot),
    /// The request was preempted, and is still counted as running.
    Preempted(RunningGuard),
}

impl WaitingRequest {
    pub(crate) fn new(
        queued: QueuedRequest,
        sharing: PrefixSharing,
        arrival: u64,
        fresh_seed: u64,
    ) -> Self {
        let QueuedRequest { admitted, slot, events } = queued;
        let Work { id, tenant, prompt, generation } = admitted.into_work();
        let tokens = prompt.into_tokens();
        let request = RequestState {
            id,
            events,
            prompt_tokens: tokens.len(),
            tokens,
            cached_tokens: 0,
            served: 0,
            generation,
            fresh_seed,
            arrival,
            overtaken: 0,
            isolation: Isolation::None,
            retries: Retries::new(),
        };
        let prefix = PrefixMatch::nothing(sharing.scope(&tenant));
        Self { request, origin: WaitReason::Arrived(slot), prefix }
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

    /// All tokens that must be in the cache before the next one is drawn.
    pub(crate) fn history(&self) -> &[TokenId] {
        &self.request.tokens
    }

    pub(crate) fn opening(&self) -> Opening<'_> {
        self.request.opening()
    }

    /// The pages that it would need if it started now.
    pub(crate) fn page_demand(&mut self, pages: &Pages) -> PageDemand {
        pages.demand(&self.request.tokens, &mut self.prefix)
    }

    /// Leases the pages that already hold the beginning of its history.
    pub(crate) fn lease(&mut self, pages: &Pages) -> Lease {
        pages.lease(&self.request.tokens, &mut self.prefix)
    }

    pub(crate) fn stop_outcome(&self) -> Option<Outcome> {
        self.request.stop_outcome()
    }

    pub(crate) fn control(&self) -> &Control {
        self.request.events.control()
    }

    pub(crate) fn end(self, outcome: Outcome, metrics: &EngineMetrics) {
        let Self { request, origin, .. } = self;
        let stage = match origin {
            WaitReason::Arrived(_) => Stage::Waiting,
            WaitReason::Preempted(_) => request.stage(),
        };
        drop(origin);
        request.end(outcome, stage, metrics);
    }

    /// Ends it because it cannot start: the model refuses it, or there is not enough memory for it.
    pub(crate) fn refuse(self, fault: Fault, metrics: &EngineMetrics) {
        let id = &self.request.id;
        tracing::error!(request = %id, error = %fault, "the model could not take the request");
        self.end(Outcome::Failed(fault), metrics);
    }

    /// Gives back all retries: the failures were another request's fault.
    pub(crate) fn restore_retries(&mut self) {
        self.request.retries.restore();
    }

    /// Takes a retry, since the request could not start this time.
    ///
    /// # Errors
    ///
    /// How many times it was tried again, when it has no retry left.
    pub(crate) fn try_again(&mut self) -> Result<(), u32> {
        self.request.retries.take()
    }

    /// Gives up its place in the queue for pages and a sequence of the model.
    pub(crate) fn start<S>(
        self,
        sequence: S,
        lease: Lease,
        metrics: &EngineMetrics,
    ) -> RunningRequest<S> {
        let Self { mut request, origin, .. } = self;
        let computed = lease.cached_tokens();
        let running = match origin {
            WaitReason::Arrived(slot) => {
                drop(slot);
                request.cached_tokens = computed;
                request.events.send(Event::Started);
                metrics.begun()
            }
            WaitReason::Preempted(running) => running,
        };
        request.served = request.served.max(computed);
        RunningRequest { request, sequence, lease, computed, drew: false, running }
    }
}

/// A request with a row in the batch.
#[derive(Debug)]
pub(crate) struct RunningRequest<S> {
    request: RequestState,
    sequence: S,
    lease: Lease,
    /// How many of the request's tokens are in the cache; at least one is not.
    computed: usize,
    /// Whether the request has drawn a token since it got its row.
    drew: bool,
    running: RunningGuard,
}

impl<S> RunningRequest<S> {
    /// Tokens to compute before the request's next token can be drawn.
    fn left(&self) -> NonZeroU32 {
        NonZeroU32::new(count(self.request.tokens.len() - self.computed))
            .expect("a token that was drawn is not in the cache before it is computed")
    }

    /// Counts a request that has started. A stream that already decodes does not mind.
    pub(crate) fn overtaken_by(&mut self, arrival: u64) {
        if !self.drew {
            self.request.overtaken_by(arrival);
        }
    }

    pub(crate) fn rank(&self) -> Rank {
        self.request.rank()
    }

    /// Pages that come free if it is preempted: those that it shares with nobody.
    pub(crate) fn exclusive_pages(&self) -> u32 {
        self.lease.exclusive_pages()
    }

    pub(crate) fn as_growing(&self) -> GrowingRequest {
        let needs = self.lease.lacks(self.request.tokens.len());
        GrowingRequest { rank: self.request.rank(), needs }
    }

    pub(crate) fn as_runnable(&self) -> Runnable {
        let left = self.left();
        let streaming = left == NonZeroU32::MIN && !self.request.generated().is_empty();
        let isolated = self.request.isolation == Isolation::Isolated;
        Runnable { rank: self.request.rank(), left, streaming, isolated }
    }

    /// Leases pages for its next tokens. False if there are too few, though they were counted before
    /// the pass was planned.
    #[must_use]
    pub(crate) fn reserve(&mut self, tokens: NonZeroU32) -> bool {
        self.lease.extend(self.computed + tokens.get() as usize)
    }

    /// The request's row of a forward pass over its next `tokens` tokens.
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

    pub(crate) fn stop_outcome(&self) -> Option<Outcome> {
        self.request.stop_outcome()
    }

    /// The cause of its cancellation, if it was cancelled.
    pub(crate) fn cancelled(&self) -> Option<CancelCause> {
        match self.stop_outcome() {
            Some(Outcome::Cancelled(cause)) => Some(cause),
            _ => None,
        }
    }

    pub(crate) fn id(&self) -> &RequestId {
        &self.request.id
    }

    pub(crate) fn control(&self) -> &Control {
        self.request.events.control()
    }

    pub(crate) fn end(self, outcome: Outcome, metrics: &EngineMetrics) {
        let Self { request, sequence, lease, running, .. } = self;
        drop((sequence, lease, running));
        let stage = request.stage();
        request.end(outcome, stage, metrics);
    }

    /// Lets its next forward pass have no other row.
    pub(crate) fn isolate(&mut self) {
        self.request.isolation = Isolation::Isolated;
    }

    /// Whether its last forward pass was well and had no other row.
    pub(crate) fn was_cleared(&self) -> bool {
        self.request.isolation == Isolation::Cleared
    }

    /// Gives back all retries: the failures were another request's fault.
    pub(crate) fn restore_retries(&mut self) {
        self.request.retries.restore();
    }

    /// Takes a retry, since a forward pass with it failed and the fault is not known to be its own.
    ///
    /// # Errors
    ///
    /// How many times it was tried again, when it has no retry left.
    pub(crate) fn try_again(&mut self) -> Result<(), u32> {
        self.request.retries.take()
    }

    /// Whether its next `tokens` tokens include one that was never in the cache. They do not when they
    /// are computed again because its pages were lost.
    pub(crate) fn is_fresh(&self, tokens: NonZeroU32) -> bool {
        self.computed + tokens.get() as usize > self.request.served
    }

    /// Gives back its pages and waits for others. It keeps what it has drawn.
    pub(crate) fn preempt(self) -> WaitingRequest {
        let Self { request, sequence, lease, running, .. } = self;
        let prefix = PrefixMatch::nothing(lease.scope().clone());
        drop((sequence, lease));
        request.events.send_preempted();
        WaitingRequest { request, origin: WaitReason::Preempted(running), prefix }
    }

    /// Accounts for a forward pass: its next `tokens` tokens are in the cache, and `drawn` came of
    /// them. Returns how the request has ended with that, if it has.
    #[must_use]
    pub(crate) fn advance(
        &mut self,
        tokens: NonZeroU32,
        alone: bool,
        drawn: Option<Drawn>,
        context: u32,
    ) -> Option<Finish> {
        self.computed += tokens.get() as usize;
        self.request.served = self.request.served.max(self.computed);
        self.request.retries.reached(self.computed);
        self.lease.mark_computed(&self.request.tokens[..self.computed]);
        self.request.isolation = match self.request.isolation {
            Isolation::Isolated | Isolation::Cleared if alone => Isolation::Cleared,
            _ => Isolation::None,
        };
        let drawn = drawn?;
        self.drew = true;
        self.request.tokens.push(drawn.token);
        let generation = &self.request.generation;
        if generation.stop_tokens.contains(&drawn.token) {
            return Some(Finish::Stop);
        }
        // The model's context ends the generation where the request's own limit would not.
        let over = self.request.generated().len() >= generation.tokens_max as usize
            || self.request.tokens.len() >= context as usize;
        self.request.events.send(Event::Token(drawn));
        over.then_some(Finish::Length)
    }
}

fn count(tokens: usize) -> u32 {
    u32::try_from(tokens).unwrap_or(u32::MAX)
}
