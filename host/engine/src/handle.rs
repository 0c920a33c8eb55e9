//! How other threads reach the engine.

use std::sync::Arc;

use interlock_policy_api::Admitted;
use interlock_request::{CancelCause, Fault, FaultKind, Outcome, Usage};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};

use crate::events::{EventSender, channel};
use crate::metrics::{EngineMetrics, GaugeGuard};
use crate::wakeup::Wakeup;
use crate::{Control, EngineExit, EngineState, Events};

/// A way to submit requests to one engine. It is cheap to clone, can be sent between threads and owns
/// nothing: the engine stops when its [`crate::EngineThread`] says so, however many handles there are.
#[derive(Debug, Clone)]
pub struct EngineHandle {
    pub(crate) inbox: mpsc::WeakSender<QueuedRequest>,
    pub(crate) wakeup: Wakeup,
    pub(crate) queue_permits: Arc<Semaphore>,
    pub(crate) queue_max: usize,
    pub(crate) running_max: u32,
    pub(crate) state: watch::Receiver<EngineState>,
    pub(crate) metrics: EngineMetrics,
}

/// Why the engine did not take a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotStarted {
    /// The queue is full. Retrying later may work.
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
    /// Places of the queue that are taken.
    pub waiting: u32,
    /// Places that the queue has.
    pub waiting_max: u32,
    /// Requests that have begun and not ended.
    pub running: u32,
    /// Requests that may run at once.
    pub running_max: u32,
}

/// A reserved place in the engine's queue. It is taken before the policies are asked, so that no
/// request is admitted and then refused because the queue is full. Dropping it frees the place.
#[derive(Debug)]
pub struct QueuePermit {
    inbox: mpsc::WeakSender<QueuedRequest>,
    wakeup: Wakeup,
    slot: QueueSlot,
    state: watch::Receiver<EngineState>,
}

/// The place in the queue that a request holds until its first forward pass.
#[derive(Debug)]
pub(crate) struct QueueSlot {
    _permit: OwnedSemaphorePermit,
    _counted: GaugeGuard,
}

/// A request on its way to the engine thread. It is plain data and senders.
#[derive(Debug)]
pub(crate) struct QueuedRequest {
    pub(crate) admitted: Admitted,
    pub(crate) slot: QueueSlot,
    pub(crate) events: EventSender,
}

/// A submitted request, as its submitter holds it.
#[derive(Debug)]
pub struct RequestHandle {
    /// What happens to the request.
    pub events: Events,
    /// Stops the request.
    pub control: Control,
}

impl EngineHandle {
    /// Reserves a place in the queue.
    ///
    /// # Errors
    ///
    /// When the queue is full, or the engine is still loading or has stopped.
    pub fn queue_permit(&self) -> Result<QueuePermit, NotStarted> {
        match &*self.state.borrow() {
            EngineState::Starting => return Err(NotStarted::Loading),
            EngineState::Exited(exit) => return Err(NotStarted::Stopped(exit.clone())),
            EngineState::Ready(_) => {}
        }
        let permits = Arc::clone(&self.queue_permits);
        let permit = permits.try_acquire_owned().map_err(|_| NotStarted::Full {
            waiting: self.queue_max - self.queue_permits.available_permits(),
            limit: self.queue_max,
        })?;
        let counted = GaugeGuard::new(&self.metrics.waiting);
        let slot = QueueSlot { _permit: permit, _counted: counted };
        let (inbox, wakeup, state) = (self.inbox.clone(), self.wakeup.clone(), self.state.clone());
        Ok(QueuePermit { inbox, wakeup, slot, state })
    }

    /// The engine's state at this moment.
    pub fn state(&self) -> EngineState {
        self.state.borrow().clone()
    }

    /// Waits until the engine's state changes and returns the new one. It never returns when the
    /// thread is gone and the state cannot change any more.
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
            waiting: count(self.queue_max.saturating_sub(self.queue_permits.available_permits())),
            waiting_max: count(self.queue_max),
            running: u32::try_from(self.metrics.running_here()).unwrap_or(0),
            running_max: self.running_max,
        }
    }
}

impl QueuePermit {
    /// Submits the request. If the engine has stopped meanwhile, the request's events end at once,
    /// without an [`crate::Event::Ended`] unless the device has failed.
    pub fn submit(self, admitted: Admitted) -> RequestHandle {
        self.hand_over(admitted, Control::new())
    }

    /// Submits a request that is cancelled already. It ends like any other, and no forward pass
    /// computes for it.
    pub fn submit_cancelled(self, admitted: Admitted, cause: CancelCause) -> RequestHandle {
        let control = Control::new();
        control.cancel(cause);
        self.hand_over(admitted, control)
    }

    fn hand_over(self, admitted: Admitted, control: Control) -> RequestHandle {
        let (sender, events) = channel(events_max(&admitted), &control);
        let request = QueuedRequest { admitted, slot: self.slot, events: sender };
        let mut refused = None;
        if let Some(inbox) = self.inbox.upgrade() {
            match inbox.try_send(request) {
                Ok(()) => {}
                // The receiver is gone. Dropping the request closes its events.
                Err(mpsc::error::TrySendError::Closed(request)) => refused = Some(request),
                Err(mpsc::error::TrySendError::Full(_)) => {
                    unreachable!("the inbox has as many places as there are queue permits")
                }
            }
        }
        if let Some(QueuedRequest { events, slot, .. }) = refused
            && let EngineState::Exited(exit @ EngineExit::DeviceFailed(_)) = &*self.state.borrow()
        {
            let fault = Fault { kind: FaultKind::DeviceFailed, why: exit.to_string() };
            drop(slot);
            events.end(Outcome::Failed(fault), Usage::default(), |_| {});
        }
        // After our sender is gone again: the engine may just have been told to stop, and must not
        // find the inbox still open and fall asleep.
        self.wakeup.wake();
        RequestHandle { events, control }
    }
}

/// Every token, the start, the end, and one preemption that was not received yet: the most events of
/// this request that can lie in its channel.
fn events_max(admitted: &Admitted) -> usize {
    const BESIDE_TOKENS: usize = 3;
    let tokens_max = usize::try_from(admitted.tokens_max()).unwrap_or(usize::MAX);
    tokens_max.saturating_add(BESIDE_TOKENS).min(Semaphore::MAX_PERMITS)
}
