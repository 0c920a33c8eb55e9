//! How long a connection waits for its client's next request.
//!
//! A head that has begun has `server.header_timeout`; between two requests there is
//! `server.idle_timeout`, counted from when the last byte of the answer has left.
//!
//! # Invariants
//!
//! - While a request is answered nothing strikes: from its head on ([`RequestClock::answering`]) to
//!   the end of its answer's body.
//!
//! # Not here
//!
//! How long a body may take to arrive (`body`), and an answer to be taken (`write_timeout`).

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::Instant;

/// How long a client may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RequestLimits {
    /// For a head, from its first byte on, and before the first.
    pub(crate) header_timeout: Duration,
    /// From an answer to the next request.
    pub(crate) idle_timeout: Duration,
}

/// What a connection waits for. Its reader and its service share it, in one task.
#[derive(Debug, Clone)]
pub(crate) struct RequestClock {
    limits: RequestLimits,
    // Held for one operation.
    state: Arc<Mutex<WaitState>>,
}

#[derive(Debug, Clone, Copy)]
struct WaitState {
    awaited: Awaited,
    since: Instant,
}

/// What is to come from the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Awaited {
    /// The client's first request.
    First,
    /// Another request, of which nothing is here.
    Next,
    /// The rest of a head.
    RestOfHead,
    /// Nothing: it is being answered.
    Nothing,
}

impl RequestClock {
    pub(crate) fn new(limits: RequestLimits) -> Self {
        let state = WaitState { awaited: Awaited::First, since: Instant::now() };
        Self { limits, state: Arc::new(Mutex::new(state)) }
    }

    /// How long a head may take.
    pub(crate) fn header_timeout(&self) -> Duration {
        self.limits.header_timeout
    }

    /// A head is here, and is answered for as long as this lives.
    pub(crate) fn answering(&self) -> AnsweringGuard {
        self.enter(Awaited::Nothing);
        AnsweringGuard(self.clone())
    }

    /// Bytes have come.
    pub(crate) fn has_read(&self) {
        if matches!(self.awaited(), Awaited::Next | Awaited::First) {
            self.enter(Awaited::RestOfHead);
        }
    }

    /// Bytes have left.
    pub(crate) fn has_written(&self) {
        let mut state = self.state();
        if state.awaited == Awaited::Next {
            state.since = Instant::now();
        }
    }

    pub(crate) fn awaited(&self) -> Awaited {
        self.state().awaited
    }

    /// When the client has taken too long; `None`: it is not waited for, or for ever.
    pub(crate) fn due(&self) -> Option<Instant> {
        let WaitState { awaited, since } = *self.state();
        let limit = match awaited {
            Awaited::First | Awaited::RestOfHead => self.limits.header_timeout,
            Awaited::Next => self.limits.idle_timeout,
            Awaited::Nothing => return None,
        };
        since.checked_add(limit)
    }

    fn enter(&self, awaited: Awaited) {
        *self.state() = WaitState { awaited, since: Instant::now() };
    }

    fn state(&self) -> MutexGuard<'_, WaitState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request that is being answered.
#[derive(Debug)]
pub(crate) struct AnsweringGuard(RequestClock);

impl Drop for AnsweringGuard {
    fn drop(&mut self) {
        self.0.enter(Awaited::Next);
    }
}

/// The body of an answer, which is being given until its end.
#[derive(Debug)]
pub(crate) struct AnswerBody {
    pub(crate) body: axum::body::Body,
    pub(crate) _answering: AnsweringGuard,
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
