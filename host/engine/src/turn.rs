//! The loop of the engine thread. All that runs there is called from here.

use std::marker::PhantomData;
use std::num::NonZeroU32;

use interlock_request::{CancelCause, Outcome};
use interlock_scheduler::{Load, Next, schedule};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TryRecvError;

use crate::handle::Submission;
use crate::metrics::EngineMetrics;
use crate::stages::{Advanced, Decoding, Prefilling, Waiting};
use crate::{Control, EngineConfig, Forward};

/// Everything that touches the device: the model and the sequences it holds.
///
/// Built on the thread that runs it and never leaves: `Engine` is `!Send`, so the compiler, not a
/// lock, keeps device state on one thread. No field is behind a mutex.
pub(crate) struct Engine<F: Forward> {
    forward: F,
    inbox: mpsc::Receiver<Submission>,
    waiting: Vec<Waiting>,
    running: Option<Active<F::Sequence>>,
    arrived: u64,
    chunk_max: NonZeroU32,
    metrics: EngineMetrics,
    stay_here: PhantomData<*mut ()>,
}

/// The request that has begun.
enum Active<S> {
    Prefilling(Prefilling<S>),
    Decoding(Decoding<S>),
}

impl<S> Active<S> {
    fn asked(&self) -> Option<Outcome> {
        match self {
            Self::Prefilling(request) => request.asked(),
            Self::Decoding(request) => request.asked(),
        }
    }

    fn control(&self) -> &Control {
        match self {
            Self::Prefilling(request) => request.control(),
            Self::Decoding(request) => request.control(),
        }
    }

    fn end(self, outcome: Outcome, metrics: &EngineMetrics) {
        match self {
            Self::Prefilling(request) => request.end(outcome, metrics),
            Self::Decoding(request) => request.end(outcome, metrics),
        }
    }
}

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
        metrics: EngineMetrics,
    ) -> Self {
        Self {
            forward,
            inbox,
            waiting: vec![],
            running: None,
            arrived: 0,
            chunk_max: config.prefill_chunk,
            metrics,
            stay_here: PhantomData,
        }
    }

    /// Turns until the inbox is closed; whoever is left is then cancelled.
    pub(crate) fn run(mut self) {
        while self.accept() == Inbox::Open {
            self.turn();
        }
        self.cancel_all();
        self.drop_cancelled();
    }

    /// One turn after the arrivals are in. Cancellations come first, so that a client that left
    /// costs no further pass; then one decision, and at most one pass.
    fn turn(&mut self) {
        self.drop_cancelled();
        let next = self.decide();
        self.execute(next);
    }

    /// Takes what has arrived; waits for it only when there is nothing else to do.
    fn accept(&mut self) -> Inbox {
        if self.waiting.is_empty() && self.running.is_none() {
            match self.inbox.blocking_recv() {
                Some(submission) => self.arrive(submission),
                None => return Inbox::Closed,
            }
        }
        loop {
            match self.inbox.try_recv() {
                Ok(submission) => self.arrive(submission),
                Err(TryRecvError::Empty) => return Inbox::Open,
                Err(TryRecvError::Disconnected) => return Inbox::Closed,
            }
        }
    }

    fn arrive(&mut self, submission: Submission) {
        self.waiting.push(Waiting::new(submission, self.arrived));
        self.arrived += 1;
    }

    fn drop_cancelled(&mut self) {
        for waiting in self.waiting.extract_if(.., |waiting| waiting.asked().is_some()) {
            if let Some(outcome) = waiting.asked() {
                waiting.end(outcome, &self.metrics);
            }
        }
        if let Some(outcome) = self.running.as_ref().and_then(Active::asked)
            && let Some(active) = self.running.take()
        {
            active.end(outcome, &self.metrics);
        }
    }

    fn decide(&self) -> Next {
        let waiting: Vec<_> = self.waiting.iter().map(Waiting::as_scheduled).collect();
        let running = self.running.as_ref().map(|active| match active {
            Active::Prefilling(request) => {
                interlock_scheduler::Running::Prefilling { left: request.left() }
            }
            Active::Decoding(_) => interlock_scheduler::Running::Decoding,
        });
        schedule(&Load { running, waiting: &waiting }, self.chunk_max)
    }

    fn execute(&mut self, next: Next) {
        let (forward, metrics) = (&mut self.forward, &self.metrics);
        self.running = match (next, self.running.take()) {
            (Next::Start(index), None) => {
                self.waiting.swap_remove(index).start(forward, metrics).map(Active::Prefilling)
            }
            (Next::Prefill(chunk), Some(Active::Prefilling(request))) => {
                match request.advance(forward, chunk, metrics) {
                    Advanced::More(request) => Some(Active::Prefilling(request)),
                    Advanced::Ready(request) => Some(Active::Decoding(request)),
                    Advanced::Ended => None,
                }
            }
            (Next::Decode, Some(Active::Decoding(request))) => {
                request.advance(forward, metrics).map(Active::Decoding)
            }
            (Next::Wait, None) => None,
            (next, _) => unreachable!("the scheduler decided {next:?} for a load it was not given"),
        };
    }

    fn cancel_all(&mut self) {
        let shutdown = CancelCause::Shutdown;
        for waiting in &self.waiting {
            waiting.control().cancel(shutdown);
        }
        if let Some(active) = &self.running {
            active.control().cancel(shutdown);
        }
    }
}
