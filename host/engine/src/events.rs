//! What the engine tells the one who submitted a request.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use interlock_request::{CancelCause, Drawn, Outcome, Usage};
use tokio::sync::mpsc;

use crate::Control;

/// Something happened to a request. In order: `Started` at most once, tokens, `Ended` once; and
/// between `Started` and `Ended` any number of times `Preempted`.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Its first pass begins.
    Started,
    /// The model drew this token. Stop tokens are counted in the usage but not told.
    Token(Drawn),
    /// It gave its pages to someone of higher rank, and waits for others. It goes on by itself: the
    /// next token says that it has. Told once for all the times that nobody had heard of yet.
    Preempted,
    /// It has ended; nothing follows.
    Ended(Ended),
}

/// How a request ended, and what it used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// How.
    pub outcome: Outcome,
    /// Exactly what the model saw and generated. A request that never began saw nothing.
    pub usage: Usage,
}

/// The events of one request. Dropping it before the end cancels the request, as a disconnect.
#[derive(Debug)]
pub struct Events {
    receiver: mpsc::Receiver<Event>,
    control: Control,
    preempted: Preempted,
}

/// Lies there an [`Event::Preempted`] that nobody has heard of? How often a request is preempted
/// has no bound, so its event channel has room for one, and this says whether that is taken.
#[derive(Debug, Clone, Default)]
pub(crate) struct Preempted(Arc<AtomicBool>);

impl Preempted {
    /// Is there room to tell it? It is taken then.
    pub(crate) fn to_be_told(&self) -> bool {
        !self.0.swap(true, Ordering::AcqRel)
    }

    fn heard(&self) {
        self.0.store(false, Ordering::Release);
    }
}

impl Events {
    pub(crate) fn new(
        receiver: mpsc::Receiver<Event>,
        control: Control,
        preempted: Preempted,
    ) -> Self {
        Self { receiver, control, preempted }
    }

    /// The next event; `None` after the end, or without one when the engine thread is gone.
    pub async fn next(&mut self) -> Option<Event> {
        let event = self.receiver.recv().await;
        if event == Some(Event::Preempted) {
            self.preempted.heard();
        }
        event
    }

    /// Is there one already that was not taken?
    pub fn are_waiting(&self) -> bool {
        !self.receiver.is_empty()
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        // Harmless when it has ended or was cancelled for another reason.
        self.control.cancel(CancelCause::Disconnect);
    }
}
