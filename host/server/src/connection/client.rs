//! What a request and the connection that it came over tell each other: what is being done for the
//! client, and whether it has left.
//!
//! A client that closed its sending side may still read. What is answered at once is answered all
//! the same; a generation is something else, since nearly all who close their sending side during
//! one have closed the other as well, and the network does not tell these apart. So the connection
//! has to know which of the two its client waits for.
//!
//! # Invariants
//!
//! - A client whose end lies in its socket when its request is admitted is known to have left
//!   before the engine hears of the request: see [`ActiveGeneration::admitted`]. Not so where
//!   clients that half-close are waited for, nor behind more than a megabyte that it sent on.
//! - Whoever drops an [`ActiveGeneration`] says that the rest is answered at once.
//!
//! # Not here
//!
//! How the end is seen: `socket`. What follows from it: the connection is dropped, and with it the
//! client's side of the answer (`answer_channel`); the plan says what then becomes of the request.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};

/// What is being done for a client.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum ClientStage {
    /// The client is answered at once, or asks nothing.
    #[default]
    Answering,
    /// The client asks for a generation, which may still be refused.
    Preparing,
    /// The engine has its request, or will.
    Generating,
}

/// A connection that can be looked at: has its client left?
pub(crate) trait Liveness: Send + Sync {
    /// Looks at the socket now; whether a client of a generation has left.
    fn has_left(&self) -> bool;
}

/// The client of a connection. By default one that nothing is known of: it leaves by dropping the
/// answer.
#[derive(Clone, Default)]
pub(crate) struct Client {
    state: Arc<Mutex<ClientState>>,
    socket: Option<Arc<dyn Liveness>>,
}

#[derive(Debug, Default)]
struct ClientState {
    stage: ClientStage,
    /// Wakes the connection's task when the stage changes.
    watch: Option<Waker>,
}

/// A generation that a client waits for.
#[derive(Debug)]
pub(crate) struct ActiveGeneration(Client);

impl Client {
    pub(crate) fn of(socket: Arc<dyn Liveness>) -> Self {
        Self { state: Arc::default(), socket: Some(socket) }
    }

    /// A generation is asked for.
    pub(crate) fn generation(&self) -> ActiveGeneration {
        self.enter(ClientStage::Preparing);
        ActiveGeneration(self.clone())
    }

    /// What is being done. The task is woken when that changes.
    pub(crate) fn stage(&self, cx: &mut Context<'_>) -> ClientStage {
        let mut state = self.state();
        match &mut state.watch {
            Some(watch) => watch.clone_from(cx.waker()),
            None => state.watch = Some(cx.waker().clone()),
        }
        state.stage
    }

    pub(crate) fn enter(&self, stage: ClientStage) {
        let watch = {
            let mut state = self.state();
            state.stage = stage;
            state.watch.take()
        };
        if let Some(watch) = watch {
            watch.wake();
        }
    }

    fn state(&self) -> MutexGuard<'_, ClientState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ActiveGeneration {
    /// Nothing refuses it any more: from here on a client that closes has left. True if it has
    /// left already; its connection is closed then, whatever is answered.
    pub(crate) fn admitted(&self) -> bool {
        self.0.enter(ClientStage::Generating);
        self.0.socket.as_ref().is_some_and(|socket| socket.has_left())
    }
}

impl Drop for ActiveGeneration {
    fn drop(&mut self) {
        self.0.enter(ClientStage::Answering);
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("state", &self.state).finish_non_exhaustive()
    }
}
