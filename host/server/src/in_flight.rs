//! Which requests are in flight, so that they can be asked to stop and waited for.
//!
//! A request is in flight from the moment its id is known until it has been accounted for, whatever
//! it does meanwhile: its body arrives, its prompt is tokenized, it waits, it runs.
//!
//! # Invariants
//!
//! - A request is here for as long as its [`Registration`] lives. Ids are the clients' own, so
//!   several requests may have the same; who cancels that id cancels all those of one tenant.
//! - Until it is known whose a request is, no client can ask it to stop.
//! - Asking is a message with a place of its own: it never waits, and asking again is harmless.
//! - Whoever asks learns how the request ended, once its driver knows; a registration that is
//!   dropped before that was for a request that failed.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use interlock_request::{CancelCause, Endpoint, RequestId};
use tokio::sync::{oneshot, watch};

use crate::activity::{Activity, ActivitySnapshot};
use crate::chunks::EndKind;

#[derive(Debug, Default)]
struct InFlightTable {
    // Every connection registers here and every driver ends it: there is no single owner. The
    // lock is held for one map operation and never across an await.
    entries: Mutex<Entries>,
    count: watch::Sender<usize>,
}

#[derive(Debug, Default)]
struct Entries {
    // By an id and a number of ours: requests of the same id stand side by side.
    by_name: BTreeMap<RequestKey, InFlightEntry>,
    registered: u64,
}

type RequestKey = (RequestId, u64);

#[derive(Debug)]
struct InFlightEntry {
    /// The request's tenant, once the policies have said it.
    tenant: Option<String>,
    /// Taken by the first who cancels.
    cancel: Option<oneshot::Sender<CancelCause>>,
    end: watch::Receiver<Option<EndKind>>,
    activity: Activity,
}

/// A request in flight, as an operator lists it.
#[derive(Debug)]
pub(crate) struct ListedRequest {
    pub(crate) id: RequestId,
    /// The request's tenant, once the policies have said it.
    pub(crate) tenant: Option<String>,
    pub(crate) snapshot: ActivitySnapshot,
}

/// The requests that a server has in flight, for whoever lists or cancels them from outside.
///
/// Made before the server, which is given one, and so is the operator's listener. Clones share one
/// table.
#[derive(Debug, Clone, Default)]
pub struct InFlight(Arc<InFlightTable>);

/// A place among the requests in flight, and where its request learns that it should stop.
#[derive(Debug)]
pub(crate) struct Registration {
    in_flight: InFlight,
    name: RequestKey,
    cancelled: Option<oneshot::Receiver<CancelCause>>,
    end: watch::Sender<Option<EndKind>>,
    activity: Activity,
}

/// Waits for the end of a request that was cancelled.
#[derive(Debug)]
pub(crate) struct EndWaiter(watch::Receiver<Option<EndKind>>);

/// A way to cancel one request, and no other of its id.
#[derive(Debug)]
pub(crate) struct Canceller {
    in_flight: InFlight,
    name: RequestKey,
}

impl InFlight {
    /// Takes in one more request.
    pub(crate) fn register(&self, id: &RequestId, endpoint: Endpoint) -> Registration {
        let (cancel, cancelled) = oneshot::channel();
        let (end_in, end) = watch::channel(None);
        let mut entries = self.entries();
        entries.registered += 1;
        let name = (id.clone(), entries.registered);
        let activity = Activity::new(endpoint);
        let entry =
            InFlightEntry { tenant: None, cancel: Some(cancel), end, activity: activity.clone() };
        entries.by_name.insert(name.clone(), entry);
        self.0.count.send_replace(entries.by_name.len());
        Registration {
            in_flight: self.clone(),
            name,
            cancelled: Some(cancelled),
            end: end_in,
            activity,
        }
    }

    /// Asks requests of an id to stop: all of this tenant, or of any, then also those of which it is
    /// not known yet whose they are. Asking twice is harmless.
    pub(crate) fn cancel(
        &self,
        id: &RequestId,
        tenant: Option<&str>,
        cause: CancelCause,
    ) -> Vec<EndWaiter> {
        let mut entries = self.entries();
        let all = entries.by_name.range_mut(named(id));
        let theirs = all.filter(|(_, entry)| tenant.is_none() || entry.tenant.as_deref() == tenant);
        theirs.map(|(_, entry)| entry.cancel(cause)).collect()
    }

    /// The endpoint that the latest request of this id came through, whosever it is.
    pub(crate) fn endpoint(&self, id: &RequestId) -> Option<Endpoint> {
        let latest = self.entries().by_name.range(named(id)).next_back()?.1.activity.clone();
        Some(latest.snapshot().endpoint)
    }

    /// Has this tenant a request of this id whose end is not certain, through one of these
    /// endpoints?
    pub(crate) fn has(
        &self,
        id: &RequestId,
        tenant: &str,
        through: impl Fn(Endpoint) -> bool,
    ) -> bool {
        let entries = self.entries();
        let theirs = |entry: &InFlightEntry| {
            entry.tenant.as_deref() == Some(tenant) && entry.end.borrow().is_none()
        };
        let mut all = entries.by_name.range(named(id));
        all.any(|(_, entry)| theirs(entry) && through(entry.activity.snapshot().endpoint))
    }

    /// How many requests are wanted in all, and the oldest `most` of these.
    pub(crate) fn list(
        &self,
        most: usize,
        wanted: impl Fn(&ListedRequest) -> bool,
    ) -> (usize, Vec<ListedRequest>) {
        let listed = |((id, number), entry): (&RequestKey, &InFlightEntry)| {
            let (tenant, snapshot) = (entry.tenant.clone(), entry.activity.snapshot());
            (*number, ListedRequest { id: id.clone(), tenant, snapshot })
        };
        let mut all: Vec<_> = self.entries().by_name.iter().map(listed).collect();
        all.retain(|(_, request)| wanted(request));
        all.sort_by_key(|(number, _)| *number);
        let total = all.len();
        (total, all.into_iter().take(most).map(|(_, request)| request).collect())
    }

    /// Asks all of them; how many there were.
    pub(crate) fn cancel_all(&self, cause: CancelCause) -> usize {
        let mut entries = self.entries();
        entries.by_name.values_mut().map(|entry| entry.cancel(cause)).count()
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        *self.0.count.borrow()
    }

    /// Returns once none is live.
    pub(crate) async fn empty(&self) {
        let mut count = self.0.count.subscribe();
        // The sender is `self`, so this cannot fail.
        let _ = count.wait_for(|&count| count == 0).await;
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.0.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The keys that requests of this id may have.
fn named(id: &RequestId) -> RangeInclusive<RequestKey> {
    (id.clone(), 0)..=(id.clone(), u64::MAX)
}

impl InFlightEntry {
    fn cancel(&mut self, cause: CancelCause) -> EndWaiter {
        if let Some(cancel) = self.cancel.take() {
            // A request that does not listen any more has ended.
            let _ = cancel.send(cause);
        }
        EndWaiter(self.end.clone())
    }
}

impl EndWaiter {
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
    pub(crate) fn cancel(&self, cause: CancelCause) -> Option<EndWaiter> {
        self.in_flight.entries().by_name.get_mut(&self.name).map(|entry| entry.cancel(cause))
    }
}

/// A way to say which tenant a registered request belongs to.
#[derive(Debug)]
pub(crate) struct TenantSetter {
    in_flight: InFlight,
    name: RequestKey,
}

impl TenantSetter {
    pub(crate) fn set(&self, tenant: &str) {
        if let Some(entry) = self.in_flight.entries().by_name.get_mut(&self.name) {
            entry.tenant = Some(tenant.to_owned());
        }
    }
}

impl Registration {
    /// A way to say whose request it is.
    pub(crate) fn tenant_setter(&self) -> TenantSetter {
        TenantSetter { in_flight: self.in_flight.clone(), name: self.name.clone() }
    }

    /// A way to ask this very request to stop.
    pub(crate) fn canceller(&self) -> Canceller {
        Canceller { in_flight: self.in_flight.clone(), name: self.name.clone() }
    }

    /// It is certain how the request ends. A second call changes nothing.
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

    /// Returns when someone cancels the request, with the cause; once.
    pub(crate) async fn cancel_requested(&mut self) -> CancelCause {
        if let Some(cancelled) = &mut self.cancelled {
            let cause = cancelled.await;
            self.cancelled = None;
            if let Ok(cause) = cause {
                return cause;
            }
        }
        std::future::pending().await
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut entries = self.in_flight.entries();
        entries.by_name.remove(&self.name);
        self.in_flight.0.count.send_replace(entries.by_name.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENDPOINT: Endpoint = Endpoint::Completions;

    fn registration(in_flight: &InFlight, id: &RequestId, tenant: &str) -> Registration {
        let registration = in_flight.register(id, ENDPOINT);
        registration.tenant_setter().set(tenant);
        registration
    }

    #[tokio::test]
    async fn the_first_to_ask_is_heard_and_asking_again_is_harmless() {
        let in_flight = InFlight::default();
        let id = RequestId::generate();
        let mut registration = registration(&in_flight, &id, "acme");
        assert_eq!(in_flight.cancel(&id, Some("acme"), CancelCause::Operator).len(), 1);
        assert_eq!(in_flight.cancel(&id, Some("acme"), CancelCause::Shutdown).len(), 1);
        assert_eq!(registration.cancel_requested().await, CancelCause::Operator);
        drop(registration);
        assert_eq!(in_flight.cancel(&id, Some("acme"), CancelCause::Operator).len(), 0);
    }

    #[tokio::test]
    async fn whoever_asks_learns_the_end_that_was_certain_first() {
        let in_flight = InFlight::default();
        let id = RequestId::generate();
        let registration = registration(&in_flight, &id, "acme");
        let ask = || {
            in_flight.cancel(&id, Some("acme"), CancelCause::Operator).pop().expect("it is live")
        };
        let before = ask();
        registration.ends(EndKind::Completed);
        registration.ends(EndKind::Cancelled);
        let after = ask();
        drop(registration);
        assert_eq!(
            (before.end().await, after.end().await),
            (EndKind::Completed, EndKind::Completed)
        );
    }

    #[tokio::test]
    async fn a_request_that_goes_without_a_word_has_failed() {
        let in_flight = InFlight::default();
        let id = RequestId::generate();
        let registration = registration(&in_flight, &id, "acme");
        let asked = registration.canceller().cancel(CancelCause::Operator).expect("it is live");
        let canceller = registration.canceller();
        drop(registration);
        assert_eq!(asked.end().await, EndKind::Failed);
        assert!(canceller.cancel(CancelCause::Operator).is_none());
    }

    #[tokio::test]
    async fn all_of_a_tenants_id_are_asked_and_nobody_else() {
        let in_flight = InFlight::default();
        let [ours, before, after] = ["b", "a", "c"].map(|id| RequestId::parse(id).expect("an id"));
        let mut two =
            [registration(&in_flight, &ours, "acme"), registration(&in_flight, &ours, "acme")];
        let others = [
            registration(&in_flight, &before, "acme"),
            registration(&in_flight, &after, "acme"),
            registration(&in_flight, &ours, "globex"),
            in_flight.register(&ours, ENDPOINT),
        ];
        assert_eq!(in_flight.cancel(&ours, Some("acme"), CancelCause::Operator).len(), 2);
        for registration in &mut two {
            assert_eq!(registration.cancel_requested().await, CancelCause::Operator);
        }
        drop(two);
        assert_eq!(
            (in_flight.cancel(&ours, Some("acme"), CancelCause::Operator).len(), in_flight.count()),
            (0, 4)
        );
        assert_eq!(in_flight.cancel_all(CancelCause::Shutdown), 4);
        drop(others);
        in_flight.empty().await;
    }
}
