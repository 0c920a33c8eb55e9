//! What the engine tells the one who submitted a request.

use interlock_request::{CancelCause, Drawn, Outcome, Usage};
use tokio::sync::mpsc;

use crate::Control;

/// Something happened to a request. In order: `Started` at most once, tokens, `Ended` once.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Its first pass begins.
    Started,
    /// The model drew this token. Stop tokens are counted in the usage but not told.
    Token(Drawn),
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
}

impl Events {
    pub(crate) fn new(receiver: mpsc::Receiver<Event>, control: Control) -> Self {
        Self { receiver, control }
    }

    /// The next event; `None` after the end, or without one when the engine thread is gone.
    pub async fn next(&mut self) -> Option<Event> {
        self.receiver.recv().await
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        // Harmless when it has ended or was cancelled for another reason.
        self.control.cancel(CancelCause::Disconnect);
    }
}
