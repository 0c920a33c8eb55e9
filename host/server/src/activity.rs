//! What an operator may see of a request in flight: where it is, never what it says.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use interlock_request::{Endpoint, ModelId, Priority};
use tokio::time::Instant;

/// Where a request is on its way through the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ActivityState {
    /// The body arrives, the prompt is tokenized, policies are asked.
    Admission,
    /// The request waits for a step, for the first time or since it gave its pages to another.
    Queued,
    /// The prompt is computed.
    Prefill,
    /// Tokens are generated.
    Decode,
}

impl ActivityState {
    /// The name in answers.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Admission => "admission",
            Self::Queued => "queued",
            Self::Prefill => "prefill",
            Self::Decode => "decode",
        }
    }
}

/// A request as it was at one moment.
#[derive(Debug, Clone)]
pub(crate) struct ActivitySnapshot {
    pub(crate) arrived_at: Instant,
    pub(crate) endpoint: Endpoint,
    pub(crate) model: Option<ModelId>,
    pub(crate) priority: Option<Priority>,
    pub(crate) state: ActivityState,
    /// Does it go on without a client?
    pub(crate) detached: bool,
    /// Tokens that were generated.
    pub(crate) tokens: u32,
    admitted_at: Option<Instant>,
    started_at: Option<Instant>,
}

impl ActivitySnapshot {
    /// The model's name, once it is known.
    pub(crate) fn model(&self) -> Option<&str> {
        self.model.as_ref().map(ModelId::as_str)
    }

    /// How long it waited for its first pass, or waits until now.
    pub(crate) fn queue_time(&self, now: Instant) -> Option<Duration> {
        Some(self.started_at.unwrap_or(now) - self.admitted_at?)
    }
}

/// Where a request is, written by whoever moves it on and read by whoever lists it.
///
/// Clones are the same. The lock is the request's own and held for a few stores, so that no request
/// waits for another one's, nor for a long list.
#[derive(Debug, Clone)]
pub(crate) struct Activity(Arc<Mutex<ActivitySnapshot>>);

impl Activity {
    /// Of a request that comes now, there.
    pub(crate) fn new(endpoint: Endpoint) -> Self {
        Self(Arc::new(Mutex::new(ActivitySnapshot {
            arrived_at: Instant::now(),
            endpoint,
            model: None,
            priority: None,
            state: ActivityState::Admission,
            detached: false,
            tokens: 0,
            admitted_at: None,
            started_at: None,
        })))
    }

    /// As it is now.
    pub(crate) fn snapshot(&self) -> ActivitySnapshot {
        self.lock().clone()
    }

    /// The request was admitted at this moment, for this model.
    pub(crate) fn admitted(&self, at: Instant, model: &ModelId, priority: Priority) {
        let mut snapshot = self.lock();
        (snapshot.admitted_at, snapshot.state) = (Some(at), ActivityState::Queued);
        (snapshot.model, snapshot.priority) = (Some(model.clone()), Some(priority));
    }

    /// The first step begins.
    pub(crate) fn started(&self) {
        let mut snapshot = self.lock();
        (snapshot.started_at, snapshot.state) = (Some(Instant::now()), ActivityState::Prefill);
    }

    /// A token came.
    pub(crate) fn token(&self) {
        let mut snapshot = self.lock();
        (snapshot.tokens, snapshot.state) =
            (snapshot.tokens.saturating_add(1), ActivityState::Decode);
    }

    /// The request gave its pages to another.
    pub(crate) fn preempted(&self) {
        self.lock().state = ActivityState::Queued;
    }

    /// The request goes on without a client.
    pub(crate) fn detached(&self) {
        self.lock().detached = true;
    }

    fn lock(&self) -> MutexGuard<'_, ActivitySnapshot> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
