//! What a request is on the engine thread: `Waiting`, then `Prefilling`, then `Decoding`.
//!
//! Each holds just what it needs and becomes the next, so a waiting request has no cache to leak
//! and a decoding one no prompt to compute again. Each gives back all that it holds before its
//! submitter hears of the end: who reads `Ended` finds the seat and the memory free.

use std::num::NonZeroU32;

use interlock_admission::Prompt;
use interlock_request::{Finish, Generation, Outcome, RequestId, Stage, TokenId, Usage};
use tokio::sync::mpsc;

use crate::control::Asked;
use crate::handle::{Place, Submission};
use crate::metrics::{Counted, EngineMetrics};
use crate::passes::PassKind;
use crate::{Control, Ended, Event, Forward, PassFailed};

/// A request's way to its submitter. Consumed by its end, so there is only one.
#[derive(Debug)]
struct Ticket {
    id: RequestId,
    out: mpsc::Sender<Event>,
    control: Control,
}

impl Ticket {
    /// Tells an event. The channel has room for all that a request can cause, so this fails only
    /// when nobody listens any more, which [`Control`] says too.
    fn tell(&self, event: Event) {
        let _gone = self.out.try_send(event);
    }

    fn end(self, natural: Outcome, usage: Usage, stage: Stage, metrics: &EngineMetrics) {
        let outcome = self.control.close(natural);
        if let Outcome::Cancelled(cause) = outcome {
            metrics.cancelled(cause, stage);
        }
        self.tell(Event::Ended(Ended { outcome, usage }));
    }

    /// Was it asked to stop? With what comes of it.
    fn asked(&self) -> Option<Outcome> {
        self.control.asked().map(|asked| match asked {
            Asked::Cancel(cause) => Outcome::Cancelled(cause),
            Asked::Finish => Outcome::Completed(Finish::Stop),
        })
    }

    /// Runs one pass for this request and accounts for it, whoever still waits for its result.
    fn pass<T>(
        &self,
        kind: PassKind,
        metrics: &EngineMetrics,
        pass: impl FnOnce() -> Result<T, PassFailed>,
    ) -> Result<T, Outcome> {
        let in_flight = metrics.passes.begin(kind);
        let result = pass();
        drop(in_flight);
        if let Some(Outcome::Cancelled(cause)) = self.asked() {
            metrics.cancelled_pass_ended(&self.id, cause, &result);
        } else if let Err(error) = &result {
            tracing::error!(request = %self.id, %error, "pass failed");
        }
        result.map_err(|error| Outcome::Failed(error.to_string()))
    }
}

/// No pass has begun for it.
#[derive(Debug)]
pub(crate) struct Waiting {
    ticket: Ticket,
    place: Place,
    prompt: Prompt,
    generation: Generation,
    /// Its place in the order of arrival.
    pub(crate) arrival: u64,
}

impl Waiting {
    pub(crate) fn new(submission: Submission, arrival: u64) -> Self {
        let Submission { admitted, place, out, control } = submission;
        let (id, prompt, generation) = admitted.into_work();
        Self { ticket: Ticket { id, out, control }, place, prompt, generation, arrival }
    }

    pub(crate) fn as_scheduled(&self) -> interlock_scheduler::Waiting {
        interlock_scheduler::Waiting { priority: self.generation.priority, arrival: self.arrival }
    }

    pub(crate) fn asked(&self) -> Option<Outcome> {
        self.ticket.asked()
    }

    pub(crate) fn control(&self) -> &Control {
        &self.ticket.control
    }

    pub(crate) fn end(self, outcome: Outcome, metrics: &EngineMetrics) {
        let Self { ticket, place, .. } = self;
        drop(place);
        ticket.end(outcome, Usage::default(), Stage::Waiting, metrics);
    }

    /// Gives up its place in the waiting room for a sequence in the model. `None` when the model
    /// would not have it; the request has then ended.
    pub(crate) fn start<F: Forward>(
        self,
        forward: &mut F,
        metrics: &EngineMetrics,
    ) -> Option<Prefilling<F::Sequence>> {
        let Self { ticket, place, prompt, generation, arrival: _ } = self;
        drop(place);
        match forward.open(prompt.tokens(), &generation.sampling) {
            Ok(sequence) => {
                ticket.tell(Event::Started);
                let running = Counted::new(&metrics.running);
                Some(Prefilling { ticket, sequence, prompt, computed: 0, generation, running })
            }
            Err(error) => {
                tracing::error!(request = %ticket.id, %error, "the model could not take the request");
                let failed = Outcome::Failed(error.to_string());
                ticket.end(failed, Usage::default(), Stage::Waiting, metrics);
                None
            }
        }
    }
}

/// Its prompt is being computed.
#[derive(Debug)]
pub(crate) struct Prefilling<S> {
    ticket: Ticket,
    sequence: S,
    prompt: Prompt,
    computed: usize,
    generation: Generation,
    running: Counted,
}

/// What became of a prompt after a chunk.
pub(crate) enum Advanced<S> {
    /// There is more of it.
    More(Prefilling<S>),
    /// It is spent, and its first token is out.
    Ready(Decoding<S>),
    /// The request has ended.
    Ended,
}

impl<S> Prefilling<S> {
    /// Tokens still to compute; at least one, or this would be a [`Decoding`].
    pub(crate) fn left(&self) -> NonZeroU32 {
        let left = self.prompt.tokens().len() - self.computed;
        u32::try_from(left)
            .ok()
            .and_then(NonZeroU32::new)
            .expect("a prompt is computed up to its last token and no further")
    }

    pub(crate) fn asked(&self) -> Option<Outcome> {
        self.ticket.asked()
    }

    pub(crate) fn control(&self) -> &Control {
        &self.ticket.control
    }

    pub(crate) fn end(self, outcome: Outcome, metrics: &EngineMetrics) {
        let usage = Usage { prompt_tokens: count(self.computed), ..Usage::default() };
        let Self { ticket, sequence, running, .. } = self;
        drop((sequence, running));
        ticket.end(outcome, usage, Stage::Prefilling, metrics);
    }

    /// One pass over the next `chunk` tokens.
    pub(crate) fn advance<F: Forward<Sequence = S>>(
        mut self,
        forward: &mut F,
        chunk: NonZeroU32,
        metrics: &EngineMetrics,
    ) -> Advanced<S> {
        let until = self.computed + chunk.get() as usize;
        let tokens = &self.prompt.tokens()[self.computed..until];
        let last = until == self.prompt.tokens().len();
        let sequence = &mut self.sequence;
        let passed = self.ticket.pass(PassKind::Prefill, metrics, || {
            if last {
                forward.prefill_last(sequence, tokens).map(Some)
            } else {
                forward.prefill(sequence, tokens).map(|()| None)
            }
        });
        match passed {
            Err(failed) => {
                self.end(failed, metrics);
                Advanced::Ended
            }
            Ok(None) => {
                self.computed = until;
                Advanced::More(self)
            }
            Ok(Some(token)) => {
                let context = forward.shape().context;
                match self.into_decoding(context).take(token, metrics) {
                    Some(decoding) => Advanced::Ready(decoding),
                    None => Advanced::Ended,
                }
            }
        }
    }

    fn into_decoding(self, context: u32) -> Decoding<S> {
        let Self { ticket, sequence, prompt, computed: _, generation, running } = self;
        let prompt_tokens = count(prompt.tokens().len());
        Decoding {
            ticket,
            sequence,
            prompt_tokens,
            generated: 0,
            // The model's context ends the generation where the request's own limit would not.
            tokens_max: generation.tokens_max.min(context.saturating_sub(prompt_tokens)),
            stop_tokens: generation.stop_tokens,
            running,
        }
    }
}

/// It produces tokens.
#[derive(Debug)]
pub(crate) struct Decoding<S> {
    ticket: Ticket,
    sequence: S,
    prompt_tokens: u32,
    generated: u32,
    tokens_max: u32,
    stop_tokens: Vec<TokenId>,
    running: Counted,
}

impl<S> Decoding<S> {
    pub(crate) fn asked(&self) -> Option<Outcome> {
        self.ticket.asked()
    }

    pub(crate) fn control(&self) -> &Control {
        &self.ticket.control
    }

    pub(crate) fn end(self, outcome: Outcome, metrics: &EngineMetrics) {
        let usage = Usage {
            prompt_tokens: self.prompt_tokens,
            cached_tokens: 0,
            generated_tokens: self.generated,
        };
        let Self { ticket, sequence, running, .. } = self;
        drop((sequence, running));
        ticket.end(outcome, usage, Stage::Decoding, metrics);
    }

    /// One pass for its next token. `None`: the request has ended.
    pub(crate) fn advance<F: Forward<Sequence = S>>(
        mut self,
        forward: &mut F,
        metrics: &EngineMetrics,
    ) -> Option<Self> {
        let sequence = &mut self.sequence;
        let passed = self.ticket.pass(PassKind::Decode, metrics, || {
            let tokens = forward.decode(&mut [sequence])?;
            let [token] = tokens[..] else {
                return Err(PassFailed(format!(
                    "a batch of 1 sequence must yield 1 token, got {}",
                    tokens.len()
                )));
            };
            Ok(token)
        });
        match passed {
            Ok(token) => self.take(token, metrics),
            Err(failed) => {
                self.end(failed, metrics);
                None
            }
        }
    }

    /// Hands out a new token, or ends the request with it.
    fn take(mut self, token: TokenId, metrics: &EngineMetrics) -> Option<Self> {
        self.generated += 1;
        if self.stop_tokens.contains(&token) {
            self.end(Outcome::Completed(Finish::Stop), metrics);
            return None;
        }
        self.ticket.tell(Event::Token(token.into()));
        if self.generated >= self.tokens_max {
            self.end(Outcome::Completed(Finish::Length), metrics);
            return None;
        }
        Some(self)
    }
}

fn count(tokens: usize) -> u32 {
    u32::try_from(tokens).unwrap_or(u32::MAX)
}
