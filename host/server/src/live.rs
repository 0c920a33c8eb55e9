//! Which requests are in flight, so that they can be asked to stop and waited for.
//!
//! A request is live from the moment its id is known until it has been accounted for, whatever
//! it does meanwhile: its body arrives, its prompt is tokenized, it waits, it runs.
//!
//! # Invariants
//!
//! - An id is claimed by one request at a time, and given back when that one's [`Claim`] drops.
//! - Asking is a message with a place of its own: it never waits, and asking again is harmless.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use interlock_request::{CancelCause, RequestId};
use tokio::sync::{oneshot, watch};

/// All requests in flight.
#[derive(Debug)]
pub(crate) struct Live {
    // Every connection claims here and every driver gives back: there is no single owner. The
    // lock is held for one map operation and never across an await.
    asks: Mutex<HashMap<RequestId, Option<oneshot::Sender<CancelCause>>>>,
    count: watch::Sender<usize>,
}

/// The right to an id, and where the one who has it learns that it should stop.
#[derive(Debug)]
pub(crate) struct Claim {
    live: Arc<Live>,
    id: RequestId,
    asked: Option<oneshot::Receiver<CancelCause>>,
}

impl Live {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { asks: Mutex::default(), count: watch::Sender::new(0) })
    }

    /// Claims an id; `None` when a live request has it.
    pub(crate) fn claim(self: &Arc<Self>, id: &RequestId) -> Option<Claim> {
        let (ask, asked) = oneshot::channel();
        let mut asks = self.asks();
        if asks.contains_key(id) {
            return None;
        }
        asks.insert(id.clone(), Some(ask));
        self.count.send_replace(asks.len());
        Some(Claim { live: Arc::clone(self), id: id.clone(), asked: Some(asked) })
    }

    /// Asks a request to stop. False when there is none of this id; asking twice is harmless.
    pub(crate) fn cancel(&self, id: &RequestId, cause: CancelCause) -> bool {
        match self.asks().get_mut(id) {
            Some(ask) => {
                ask.take().map(|ask| ask.send(cause));
                true
            }
            None => false,
        }
    }

    /// Asks all of them; how many there were.
    pub(crate) fn cancel_all(&self, cause: CancelCause) -> usize {
        let mut asks = self.asks();
        for ask in asks.values_mut() {
            ask.take().map(|ask| ask.send(cause));
        }
        asks.len()
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        *self.count.borrow()
    }

    /// Returns once none is live.
    pub(crate) async fn empty(&self) {
        let mut count = self.count.subscribe();
        // The sender is `self`, so this cannot fail.
        let _ = count.wait_for(|&count| count == 0).await;
    }

    fn asks(&self) -> MutexGuard<'_, HashMap<RequestId, Option<oneshot::Sender<CancelCause>>>> {
        self.asks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Claim {
    /// Returns when someone asks to stop, with the cause; once.
    pub(crate) async fn asked(&mut self) -> CancelCause {
        if let Some(asked) = &mut self.asked {
            let cause = asked.await;
            self.asked = None;
            if let Ok(cause) = cause {
                return cause;
            }
        }
        std::future::pending().await
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut asks = self.live.asks();
        asks.remove(&self.id);
        self.live.count.send_replace(asks.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_to_ask_is_heard_and_asking_again_is_harmless() {
        let live = Live::new();
        let id = RequestId::generate();
        let mut claim = live.claim(&id).expect("a new id");
        assert!(live.cancel(&id, CancelCause::Operator));
        assert!(live.cancel(&id, CancelCause::Shutdown));
        assert_eq!(claim.asked().await, CancelCause::Operator);
        drop(claim);
        assert!(!live.cancel(&id, CancelCause::Operator));
    }

    #[tokio::test]
    async fn an_id_is_free_again_once_its_request_is_gone() {
        let live = Live::new();
        let id = RequestId::generate();
        let claim = live.claim(&id).expect("a new id");
        assert!(live.claim(&id).is_none());
        drop(claim);
        live.empty().await;
        assert!(live.claim(&id).is_some());
    }
}
