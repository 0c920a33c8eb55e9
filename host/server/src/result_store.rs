//! Answers that are kept for whoever asks for them later: of requests that were sent to the
//! background, and of those whose client left while a policy wanted the rest.
//!
//! # Invariants
//!
//! - What is kept is bounded three ways: how many go on without a client at a time, how much is
//!   kept of those that have ended, and for how long.
//! - A result is shown only to the tenant whose request it was.
//! - A request that was to be kept has an end here, whatever becomes of its driver.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use interlock_request::{Endpoint, RequestId};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::DetachedConfig;
use crate::answer_state::State;
use crate::chunks::{Done, Said};
use crate::endpoints::{Head, Shape};
use crate::failure::Failure;
use crate::in_flight::Canceller;

/// Where results are kept.
#[derive(Debug)]
pub(crate) struct Results {
    // Drivers put here and clients take: there is no single owner. The lock is held for map
    // operations and never across an await.
    shelf: Mutex<Shelf>,
    alone: Arc<Semaphore>,
    config: DetachedConfig,
}

#[derive(Debug, Default)]
struct Shelf {
    by_name: BTreeMap<Name, Kept>,
    /// Those that have ended, oldest first.
    ended: VecDeque<(Instant, Name, u64)>,
    bytes: usize,
    numbers: u64,
}

/// An id and a tenant. Ids are the clients' own, so nobody's may be in the way of another tenant's.
type Name = (RequestId, String);

/// A result, or one to come.
#[derive(Debug)]
struct Kept {
    /// Another of the same name may have taken this one's place.
    number: u64,
    title: Arc<Title>,
    state: State,
}

/// Whose result it is, and in whose language it is told.
#[derive(Debug)]
pub(crate) struct Title {
    pub(crate) tenant: String,
    pub(crate) endpoint: Endpoint,
    pub(crate) shape: Shape,
    pub(crate) head: Head,
    /// Asks it to stop.
    pub(crate) canceller: Canceller,
}

/// The duty to say what became of a request whose result is to be kept. Dropping it says that it
/// failed.
#[derive(Debug)]
pub(crate) struct Keeping {
    results: Arc<Results>,
    name: Name,
    number: u64,
    ended: bool,
}

impl Results {
    pub(crate) fn new(config: DetachedConfig) -> Arc<Self> {
        let places = config.requests_max.min(Semaphore::MAX_PERMITS);
        let alone = Arc::new(Semaphore::new(places));
        Arc::new(Self { shelf: Mutex::default(), alone, config })
    }

    /// A place for a request that begins without a client.
    ///
    /// # Errors
    ///
    /// When as many go on without one as may.
    pub(crate) fn place_in_background(&self) -> Result<OwnedSemaphorePermit, Failure> {
        self.place().ok_or(Failure::Detached { limit: self.config.requests_max })
    }

    /// A place among the requests that go on without a client, if there is one.
    pub(crate) fn place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.alone).try_acquire_owned().ok()
    }

    /// Begins to keep a result.
    pub(crate) fn keep(self: &Arc<Self>, title: Arc<Title>, state: State) -> Keeping {
        let name = title.name();
        let mut shelf = self.shelf();
        // It takes the place of one of the same name.
        shelf.remove(&name);
        shelf.numbers += 1;
        let number = shelf.numbers;
        shelf.by_name.insert(name.clone(), Kept { number, title, state });
        Keeping { results: Arc::clone(self), name, number, ended: false }
    }

    /// What is kept under this id for this tenant.
    pub(crate) fn get(&self, id: &RequestId, tenant: &str) -> Option<(Arc<Title>, State)> {
        let mut shelf = self.shelf();
        shelf.forget(&self.config, Instant::now());
        let kept = shelf.by_name.get(&(id.clone(), tenant.to_owned()))?;
        Some((Arc::clone(&kept.title), kept.state.clone()))
    }

    /// How far the one of this title is, if it is still kept.
    pub(crate) fn state_of(&self, title: &Arc<Title>) -> Option<State> {
        let shelf = self.shelf();
        shelf.by_title(title).map(|kept| kept.state.clone())
    }

    /// The endpoint that the latest kept request of this id came through, whosever it is.
    pub(crate) fn endpoint(&self, id: &RequestId) -> Option<Endpoint> {
        let shelf = self.shelf();
        let all = shelf.by_name.range((id.clone(), String::new())..);
        let of_id = all.take_while(|((kept, _), _)| kept == id);
        of_id.max_by_key(|(_, kept)| kept.number).map(|(_, kept)| kept.title.endpoint)
    }

    /// Forgets it, also if it still runs: then nothing will be kept of it. False: somebody else has.
    pub(crate) fn remove(&self, title: &Arc<Title>) -> bool {
        let mut shelf = self.shelf();
        shelf.by_title(title).is_some() && shelf.remove(&title.name())
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shelf {
    /// The one of this title, and no other of its name.
    fn by_title(&self, title: &Arc<Title>) -> Option<&Kept> {
        self.by_name.get(&title.name()).filter(|kept| Arc::ptr_eq(&kept.title, title))
    }

    /// Lets go of it, wherever it is written.
    fn remove(&mut self, name: &Name) -> bool {
        let Some(kept) = self.by_name.remove(name) else { return false };
        self.bytes -= kept.bytes();
        if let State::Ended(_) = kept.state {
            self.ended.retain(|(_, _, number)| *number != kept.number);
        }
        true
    }

    /// Lets go of what is too old, or too much.
    fn forget(&mut self, config: &DetachedConfig, now: Instant) {
        let (most, bytes) = (config.results_max, config.memory_max.in_memory());
        while let Some((at, name, _)) = self.ended.front() {
            let old = now.saturating_duration_since(*at) >= config.keep;
            if !old && self.ended.len() <= most && self.bytes <= bytes {
                return;
            }
            let name = name.clone();
            let was_there = self.remove(&name);
            assert!(was_there, "what has ended and was let go of is on no list");
        }
    }
}

impl Kept {
    fn bytes(&self) -> usize {
        match &self.state {
            State::Queued | State::Running => 0,
            State::Ended(result) => result.0.bytes() + self.title.bytes(),
        }
    }
}

impl Title {
    fn name(&self) -> Name {
        (self.head.request.clone(), self.tenant.clone())
    }

    /// About as much memory as the client's own words in it take.
    fn bytes(&self) -> usize {
        self.tenant.len() + self.shape.bytes()
    }
}

impl Keeping {
    /// Its first pass begins.
    pub(crate) fn started(&self) {
        if let Some(kept) = self.results.shelf().by_name.get_mut(&self.name)
            && kept.number == self.number
        {
            kept.state = State::Running;
        }
    }

    /// It has ended.
    pub(crate) fn end(mut self, said: Said, how: Result<Done, Failure>) {
        self.write(said, how);
    }

    fn write(&mut self, said: Said, how: Result<Done, Failure>) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let mut shelf = self.results.shelf();
        let Some(kept) =
            shelf.by_name.get_mut(&self.name).filter(|kept| kept.number == self.number)
        else {
            return;
        };
        kept.state = State::Ended(Arc::new((said, how)));
        let (now, bytes) = (Instant::now(), kept.bytes());
        shelf.bytes += bytes;
        shelf.ended.push_back((now, self.name.clone(), self.number));
        shelf.forget(&self.results.config, now);
    }
}

impl Drop for Keeping {
    fn drop(&mut self) {
        self.write(Said::default(), Err(Failure::INTERNAL));
    }
}

#[cfg(test)]
mod tests;
