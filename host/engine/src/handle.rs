//! How everyone else reaches the engine.

use std::sync::Arc;

use interlock_policy_api::Admitted;
use interlock_request::{CancelCause, Fault, FaultKind, Outcome, Usage};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};

use crate::bell::Bell;
use crate::events::Preempted;
use crate::metrics::{Counted, EngineMetrics};
use crate::{Control, Ended, EngineExit, EngineState, Event, Events};

/// A way to ask the engine for work. Cheap to clone, safe to send, owns nothing: the engine stops
/// when its [`crate::EngineThread`] says so, however many handles are around.
#[derive(Debug, Clone)]
pub struct EngineHandle {
    pub(crate) inbox: mpsc::WeakSender<Submission>,
    pub(crate) bell: Bell,
    pub(crate) seats: Arc<Semaphore>,
    pub(crate) seats_max: usize,
    pub(crate) running_max: u32,
    pub(crate) state: watch::Receiver<EngineState>,
    pub(crate) metrics: EngineMetrics,
}

/// Why the engine did not take a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotStarted {
    /// The waiting room is full. Retrying later may work.
    #[error("{waiting} requests already wait (limit {limit})")]
    Full {
        /// Requests that wait.
        waiting: usize,
        /// Requests that may wait.
        limit: usize,
    },
    /// The model is still loading. Retrying later will work.
    #[error("the model is still loading")]
    Loading,
    /// The engine has stopped. Retrying here will not work.
    #[error("the engine has stopped: {0}")]
    Stopped(EngineExit),
}

/// How busy the engine is, read without touching its thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EngineView {
    /// Places taken in the waiting room.
    pub waiting: u32,
    /// Places there are.
    pub waiting_max: u32,
    /// Requests that have begun and not ended.
    pub running: u32,
    /// Requests that may run at once.
    pub running_max: u32,
}

/// A place in the waiting room. Taken before the policies are asked, so that no request is
/// admitted and then refused for want of room; given back when dropped.
#[derive(Debug)]
pub struct Seat {
    inbox: mpsc::WeakSender<Submission>,
    bell: Bell,
    place: Place,
    state: watch::Receiver<EngineState>,
}

/// What a waiting request holds until its first pass.
#[derive(Debug)]
pub(crate) struct Place {
    _permit: OwnedSemaphorePermit,
    _counted: Counted,
}

/// A request on its way to the engine thread. Plain data and senders.
#[derive(Debug)]
pub(crate) struct Submission {
    pub(crate) admitted: Admitted,
    pub(crate) place: Place,
    pub(crate) out: mpsc::Sender<crate::Event>,
    pub(crate) control: Control,
    pub(crate) preempted: Preempted,
}

/// A submitted request.
#[derive(Debug)]
pub struct Running {
    /// What happens to it.
    pub events: Events,
    /// How to stop it.
    pub control: Control,
}

impl EngineHandle {
    /// Takes a place in the waiting room.
    ///
    /// # Errors
    ///
    /// When there is none, or the engine is not (or no longer) there to serve it.
    pub fn seat(&self) -> Result<Seat, NotStarted> {
        match &*self.state.borrow() {
            EngineState::Starting => return Err(NotStarted::Loading),
            EngineState::Exited(exit) => return Err(NotStarted::Stopped(exit.clone())),
            EngineState::Ready(_) => {}
        }
        let permit = Arc::clone(&self.seats).try_acquire_owned().map_err(|_| NotStarted::Full {
            waiting: self.seats_max - self.seats.available_permits(),
            limit: self.seats_max,
        })?;
        let counted = Counted::new(&self.metrics.waiting);
        let place = Place { _permit: permit, _counted: counted };
        let (inbox, bell, state) = (self.inbox.clone(), self.bell.clone(), self.state.clone());
        Ok(Seat { inbox, bell, place, state })
    }

    /// What the engine is at this moment.
    pub fn state(&self) -> EngineState {
        self.state.borrow().clone()
    }

    /// Waits until the engine's state changes and returns the new one. When the thread is gone
    /// and nothing will change any more, it never returns.
    pub async fn state_changed(&mut self) -> EngineState {
        if self.state.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        self.state.borrow_and_update().clone()
    }

    /// How busy the engine is.
    pub fn view(&self) -> EngineView {
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        EngineView {
            waiting: count(self.seats_max.saturating_sub(self.seats.available_permits())),
            waiting_max: count(self.seats_max),
            running: u32::try_from(self.metrics.running_here()).unwrap_or(0),
            running_max: self.running_max,
        }
    }
}

impl Seat {
    /// Hands the request over. If the engine has stopped meanwhile, its events end at once: without
    /// an [`crate::Event::Ended`], unless its device has failed.
    pub fn submit(self, admitted: Admitted) -> Running {
        self.hand_over(admitted, Control::new())
    }

    /// Hands over a request that is cancelled already: it ends like any other, and no pass computes
    /// for it.
    pub fn submit_cancelled(self, admitted: Admitted, cause: CancelCause) -> Running {
        let control = Control::new();
        control.cancel(cause);
        self.hand_over(admitted, control)
    }

    fn hand_over(self, admitted: Admitted, control: Control) -> Running {
        let (out, receiver) = mpsc::channel(events_max(&admitted));
        let preempted = Preempted::default();
        let events = Events::new(receiver, control.clone(), preempted.clone());
        let running = Running { events, control: control.clone() };
        let submission = Submission { admitted, place: self.place, out, control, preempted };
        let mut refused = None;
        if let Some(inbox) = self.inbox.upgrade() {
            match inbox.try_send(submission) {
                Ok(()) => {}
                // The receiver is gone, and dropping the submission tells the events so.
                Err(mpsc::error::TrySendError::Closed(submission)) => refused = Some(submission),
                Err(mpsc::error::TrySendError::Full(_)) => {
                    unreachable!("the inbox has as many places as there are seats")
                }
            }
        }
        if let Some(Submission { out, control, place, .. }) = refused
            && let EngineState::Exited(exit @ EngineExit::DeviceFailed(_)) = &*self.state.borrow()
        {
            let fault = Fault { kind: FaultKind::DeviceFailed, why: exit.to_string() };
            let outcome = control.close(Outcome::Failed(fault));
            drop(place);
            // There is room: nothing was told yet.
            let _ = out.try_send(Event::Ended(Ended { outcome, usage: Usage::default() }));
        }
        // Rung when our sender is gone again: the engine may just have been told to stop, and must
        // not find the inbox still open and fall asleep.
        self.bell.ring();
        running
    }
}

/// Every token, the start, the end, and one preemption that was not heard of yet: the most events
/// of this request that can lie there.
fn events_max(admitted: &Admitted) -> usize {
    const BESIDE_TOKENS: usize = 3;
    let tokens_max = usize::try_from(admitted.tokens_max()).unwrap_or(usize::MAX);
    tokens_max.saturating_add(BESIDE_TOKENS).min(Semaphore::MAX_PERMITS)
}
