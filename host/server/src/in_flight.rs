//! Which requests are in flight, so that they can be asked to stop and waited for.
//!
//! A request is live from the moment its id is known until it has been accounted for, whatever
//! it does meanwhile: its body arrives, its prompt is tokenized, it waits, it runs.
//!
//! # Invariants
//!
//! - A request is here for as long as its [`Claim`] lives. Ids are the clients' own, so several
//!   requests may go by the same; who asks that id to stop asks all those of one tenant.
//! - Until it is known whose a request is, no client can ask it to stop.
//! - Asking is a message with a place of its own: it never waits, and asking again is harmless.
//! - Whoever asks learns how the request ended, once its driver knows; a claim that is given back
//!   without a word about that was for a request that failed.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use interlock_request::{CancelCause, Endpoint, RequestId};
use tokio::sync::{oneshot, watch};

use crate::activity::{Activity, Seen};
use crate::chunks::EndKind;

/// All requests in flight.
#[derive(Debug)]
pub(crate) struct Live {
    // Every connection claims here and every driver gives back: there is no single owner. The
    // lock is held for one map operation and never across an await.
    asks: Mutex<Asks>,
    count: watch::Sender<usize>,
}

/// Where each is asked to stop; taken by the first who asks.
#[derive(Debug, Default)]
struct Asks {
    // An id and a number of ours: requests of the same id stand side by side.
    by_name: BTreeMap<Name, Place>,
    claimed: u64,
}

type Name = (RequestId, u64);

#[derive(Debug)]
struct Place {
    /// Whose request it is, once that is known.
    tenant: Option<String>,
    ask: Option<oneshot::Sender<CancelCause>>,
    end: watch::Receiver<Option<EndKind>>,
    activity: Activity,
}

/// A request of a list.
#[derive(Debug)]
pub(crate) struct Listed {
    pub(crate) id: RequestId,
    /// Whose it is, once that is known.
    pub(crate) tenant: Option<String>,
    pub(crate) seen: Seen,
}

/// The requests that a server has in flight, for whoever lists or cancels them from outside.
///
/// Made before the server, which is given one, and so is who looks on. Clones are the same.
#[derive(Debug, Clone)]
pub struct InFlight(pub(crate) Arc<Live>);

impl Default for InFlight {
    fn default() -> Self {
        Self(Live::new())
    }
}

impl InFlight {
    /// As [`Live::list`].
    pub(crate) fn list(
        &self,
        most: usize,
        wanted: impl Fn(&Listed) -> bool,
    ) -> (usize, Vec<Listed>) {
        self.0.list(most, wanted)
    }

    /// As [`Live::cancel`].
    pub(crate) fn cancel(
        &self,
        id: &RequestId,
        tenant: Option<&str>,
        cause: CancelCause,
    ) -> Vec<Stopping> {
        self.0.cancel(id, tenant, cause)
    }
}

/// A place among the requests in flight, and where its request learns that it should stop.
#[derive(Debug)]
pub(crate) struct Claim {
    live: Arc<Live>,
    name: Name,
    asked: Option<oneshot::Receiver<CancelCause>>,
    end: watch::Sender<Option<EndKind>>,
    activity: Activity,
}

/// A request that was asked to stop.
#[derive(Debug)]
pub(crate) struct Stopping(watch::Receiver<Option<EndKind>>);

/// A way to ask one request to stop, and no other of its id.
#[derive(Debug)]
pub(crate) struct Canceller {
    live: Arc<Live>,
    name: Name,
}

impl Live {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { asks: Mutex::default(), count: watch::Sender::new(0) })
    }

    /// Takes in one more request.
    pub(crate) fn claim(self: &Arc<Self>, id: &RequestId, endpoint: Endpoint) -> Claim {
        let (ask, asked) = oneshot::channel();
        let (end_in, end) = watch::channel(None);
        let mut asks = self.asks();
        asks.claimed += 1;
        let name = (id.clone(), asks.claimed);
        let activity = Activity::new(endpoint);
        let place = Place { tenant: None, ask: Some(ask), end, activity: activity.clone() };
        asks.by_name.insert(name.clone(), place);
        self.count.send_replace(asks.by_name.len());
        Claim { live: Arc::clone(self), name, asked: Some(asked), end: end_in, activity }
    }

    /// Asks requests of an id to stop: all of this tenant, or of any, then also those of which it is
    /// not known yet whose they are. Asking twice is harmless.
    pub(crate) fn cancel(
        &self,
        id: &RequestId,
        tenant: Option<&str>,
        cause: CancelCause,
    ) -> Vec<Stopping> {
        let mut asks = self.asks();
        let all = asks.by_name.range_mut(named(id));
        let theirs = all.filter(|(_, place)| tenant.is_none() || place.tenant.as_deref() == tenant);
        theirs.map(|(_, place)| place.ask(cause)).collect()
    }

    /// The endpoint that the latest request of this id came through, whosever it is.
    pub(crate) fn endpoint(&self, id: &RequestId) -> Option<Endpoint> {
        let latest = self.asks().by_name.range(named(id)).next_back()?.1.activity.clone();
        Some(latest.seen().endpoint)
    }

    /// Has this tenant a request of this id whose end is not certain, through one of these endpoints?
    pub(crate) fn has(
        &self,
        id: &RequestId,
        tenant: &str,
        through: impl Fn(Endpoint) -> bool,
    ) -> bool {
        let asks = self.asks();
        let theirs =
            |place: &Place| place.tenant.as_deref() == Some(tenant) && place.end.borrow().is_none();
        let mut all = asks.by_name.range(named(id));
        all.any(|(_, place)| theirs(place) && through(place.activity.seen().endpoint))
    }

    /// Those that are wanted, at most so many, the oldest first; and how many are wanted in all.
    pub(crate) fn list(
        &self,
        most: usize,
        wanted: impl Fn(&Listed) -> bool,
    ) -> (usize, Vec<Listed>) {
        let listed = |((id, number), place): (&Name, &Place)| {
            let (tenant, seen) = (place.tenant.clone(), place.activity.seen());
            (*number, Listed { id: id.clone(), tenant, seen })
        };
        let mut all: Vec<_> = self.asks().by_name.iter().map(listed).collect();
        all.retain(|(_, request)| wanted(request));
        all.sort_by_key(|(number, _)| *number);
        let total = all.len();
        (total, all.into_iter().take(most).map(|(_, request)| request).collect())
    }

    /// Asks all of them; how many there were.
    pub(crate) fn cancel_all(&self, cause: CancelCause) -> usize {
        let mut asks = self.asks();
        asks.by_name.values_mut().map(|place| place.ask(cause)).count()
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

    fn asks(&self) -> MutexGuard<'_, Asks> {
        self.asks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Under which names requests of this id stand.
fn named(id: &RequestId) -> RangeInclusive<Name> {
    (id.clone(), 0)..=(id.clone(), u64::MAX)
}

impl Place {
    fn ask(&mut self, cause: CancelCause) -> Stopping {
        if let Some(ask) = self.ask.take() {
            // Who is not listening any more has ended.
            let _ = ask.send(cause);
        }
        Stopping(self.end.clone())
    }
}

impl Stopping {
    /// How it ended; returns as soon as that is certain.
    pub(crate) async fn end(mut self) -> EndKind {
        match self.0.wait_for(Option::is_some).await {
            Ok(end) => end.unwrap_or(EndKind::Failed),
            Err(_) => EndKind::Failed,
        }
    }
}

impl Canceller {
    /// Asks it to stop; `None`: it has ended.
    pub(crate) fn cancel(&self, cause: CancelCause) -> Option<Stopping> {
        self.live.asks().by_name.get_mut(&self.name).map(|place| place.ask(cause))
    }
}

/// Where to say whose request a claim is for.
#[derive(Debug)]
pub(crate) struct Owner {
    live: Arc<Live>,
    name: Name,
}

impl Owner {
    pub(crate) fn is(&self, tenant: &str) {
        if let Some(place) = self.live.asks().by_name.get_mut(&self.name) {
            place.tenant = Some(tenant.to_owned());
        }
    }
}

impl Claim {
    /// Where to say whose request it is.
    pub(crate) fn owner(&self) -> Owner {
        Owner { live: Arc::clone(&self.live), name: self.name.clone() }
    }

    /// A way to ask this very request to stop.
    pub(crate) fn canceller(&self) -> Canceller {
        Canceller { live: Arc::clone(&self.live), name: self.name.clone() }
    }

    /// It is certain how its request ends. Again, nothing happens.
    pub(crate) fn ends(&self, end: EndKind) {
        self.end.send_if_modified(|known| {
            let first = known.is_none();
            known.get_or_insert(end);
            first
        });
    }

    /// Where to say how far it is.
    pub(crate) fn activity(&self) -> &Activity {
        &self.activity
    }

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
        asks.by_name.remove(&self.name);
        self.live.count.send_replace(asks.by_name.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENDPOINT: Endpoint = Endpoint::Completions;

    fn claim(live: &Arc<Live>, id: &RequestId, tenant: &str) -> Claim {
        let claim = live.claim(id, ENDPOINT);
        claim.owner().is(tenant);
        claim
    }

    #[tokio::test]
    async fn the_first_to_ask_is_heard_and_asking_again_is_harmless() {
        let live = Live::new();
        let id = RequestId::generate();
        let mut claim = claim(&live, &id, "acme");
        assert_eq!(live.cancel(&id, Some("acme"), CancelCause::Operator).len(), 1);
        assert_eq!(live.cancel(&id, Some("acme"), CancelCause::Shutdown).len(), 1);
        assert_eq!(claim.asked().await, CancelCause::Operator);
        drop(claim);
        assert_eq!(live.cancel(&id, Some("acme"), CancelCause::Operator).len(), 0);
    }

    #[tokio::test]
    async fn whoever_asks_learns_the_end_that_was_certain_first() {
        let live = Live::new();
        let id = RequestId::generate();
        let claim = claim(&live, &id, "acme");
        let ask =
            || live.cancel(&id, Some("acme"), CancelCause::Operator).pop().expect("it is live");
        let before = ask();
        claim.ends(EndKind::Completed);
        claim.ends(EndKind::Cancelled);
        let after = ask();
        drop(claim);
        assert_eq!(
            (before.end().await, after.end().await),
            (EndKind::Completed, EndKind::Completed)
        );
    }

    #[tokio::test]
    async fn a_request_that_goes_without_a_word_has_failed() {
        let live = Live::new();
        let id = RequestId::generate();
        let claim = claim(&live, &id, "acme");
        let asked = claim.canceller().cancel(CancelCause::Operator).expect("it is live");
        let canceller = claim.canceller();
        drop(claim);
        assert_eq!(asked.end().await, EndKind::Failed);
        assert!(canceller.cancel(CancelCause::Operator).is_none());
    }

    #[tokio::test]
    async fn all_of_a_tenants_id_are_asked_and_nobody_else() {
        let live = Live::new();
        let [ours, before, after] = ["b", "a", "c"].map(|id| RequestId::parse(id).expect("an id"));
        let mut two = [claim(&live, &ours, "acme"), claim(&live, &ours, "acme")];
        let others = [
            claim(&live, &before, "acme"),
            claim(&live, &after, "acme"),
            claim(&live, &ours, "globex"),
            live.claim(&ours, ENDPOINT),
        ];
        assert_eq!(live.cancel(&ours, Some("acme"), CancelCause::Operator).len(), 2);
        for claim in &mut two {
            assert_eq!(claim.asked().await, CancelCause::Operator);
        }
        drop(two);
        assert_eq!(
            (live.cancel(&ours, Some("acme"), CancelCause::Operator).len(), live.count()),
            (0, 4)
        );
        assert_eq!(live.cancel_all(CancelCause::Shutdown), 4);
        drop(others);
        live.empty().await;
    }
}
