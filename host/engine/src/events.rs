//! What the engine tells the one who submitted a request.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use interlock_request::{CancelCause, Drawn, Outcome, Usage};
use tokio::sync::mpsc;

use crate::Control;

/// Something that happened to a request. The order is: `Started` at most once, then tokens, then
/// `Ended` once. Between `Started` and `Ended` there may be any number of `Preempted`.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The request's first forward pass begins.
    Started,
    /// The model drew this token. Stop tokens are counted in the usage but not sent.
    Token(Drawn),
    /// The request gave its pages to one of higher rank and waits for others. It goes on by itself:
    /// its next token says that it has. One event stands for all preemptions since the last one that
    /// was received.
    Preempted,
    /// The request has ended. Nothing follows.
    Ended(Ended),
}

/// How a request ended, and what it used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Why the request ended.
    pub outcome: Outcome,
    /// Exactly what the model saw and generated; zero for a request that never began.
    pub usage: Usage,
}

/// The receiving end of one request's events. Dropping it before the end cancels the request, as a
/// disconnect.
#[derive(Debug)]
pub struct Events {
    receiver: mpsc::Receiver<Event>,
    control: Control,
    preempted: PreemptedFlag,
}

/// The engine's end of one request's events. Ending the request consumes it, so a request ends once.
#[derive(Debug)]
pub(crate) struct EventSender {
    out: mpsc::Sender<Event>,
    control: Control,
    preempted: PreemptedFlag,
}

/// Whether an [`Event::Preempted`] lies in the channel. How often a request is preempted has no bound,
/// so its channel has room for one such event, and this flag says whether it is taken.
#[derive(Debug, Clone, Default)]
struct PreemptedFlag(Arc<AtomicBool>);

/// A channel for a request of which at most `events_max` events can lie there at once.
pub(crate) fn channel(events_max: usize, control: &Control) -> (EventSender, Events) {
    let (out, receiver) = mpsc::channel(events_max);
    let preempted = PreemptedFlag::default();
    let events = Events { receiver, control: control.clone(), preempted: preempted.clone() };
    (EventSender { out, control: control.clone(), preempted }, events)
}

impl EventSender {
    pub(crate) fn control(&self) -> &Control {
        &self.control
    }

    /// Sends an event. The channel has room for every event that a request can cause, so this fails
    /// only when the receiver is gone, which [`Control`] says too.
    pub(crate) fn send(&self, event: Event) {
        let _gone = self.out.try_send(event);
    }

    /// Sends [`Event::Preempted`], unless one lies in the channel already.
    pub(crate) fn send_preempted(&self) {
        if !self.preempted.0.swap(true, Ordering::AcqRel) {
            self.send(Event::Preempted);
        }
    }

    /// Ends the request. It came to `natural` by itself; a cancellation before that decides instead.
    /// `count` is called with the outcome before the receiver can see it.
    pub(crate) fn end(self, natural: Outcome, usage: Usage, count: impl FnOnce(&Outcome)) {
        let outcome = self.control.close(natural);
        count(&outcome);
        self.send(Event::Ended(Ended { outcome, usage }));
    }
}

impl Events {
    /// The next event; `None` after the end, or without one when the engine thread is gone.
    pub async fn next(&mut self) -> Option<Event> {
        let event = self.receiver.recv().await;
        if event == Some(Event::Preempted) {
            self.preempted.0.store(false, Ordering::Release);
        }
        event
    }

    /// Whether an event has arrived that was not taken yet.
    pub fn are_waiting(&self) -> bool {
        !self.receiver.is_empty()
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        // Has no effect when the request has ended or was cancelled for another reason.
        self.control.cancel(CancelCause::Disconnect);
    }
}
