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
use crate::answer_state::AnswerState;
use crate::chunks::{Done, TextChunk};
use crate::endpoints::{ResponseFormat, ResponseHead};
use crate::failure::Failure;
use crate::in_flight::Canceller;

/// Results by request id and tenant.
#[derive(Debug)]
pub(crate) struct ResultStore {
    // Drivers put here and clients take: there is no single owner. The lock is held for map
    // operations and never across an await.
    stored_results: Mutex<StoredResults>,
    detached: Arc<Semaphore>,
    config: DetachedConfig,
}

#[derive(Debug, Default)]
struct StoredResults {
    by_name: BTreeMap<ResultKey, StoredResult>,
    /// Results of requests that have ended, oldest first.
    ended: VecDeque<(Instant, ResultKey, u64)>,
    bytes: usize,
    numbers: u64,
}

/// An id and a tenant. Ids are the clients' own, so nobody's may be in the way of another tenant's.
type ResultKey = (RequestId, String);

/// A result, or the place of one to come.
#[derive(Debug)]
struct StoredResult {
    /// Tells it from a later one of the same key, which takes its place.
    number: u64,
    stored: Arc<StoredRequest>,
    state: AnswerState,
}

/// The request that a result belongs to, and how its answer is written.
#[derive(Debug)]
pub(crate) struct StoredRequest {
    pub(crate) format: ResponseFormat,
    pub(crate) head: ResponseHead,
    /// Cancels it.
    pub(crate) canceller: Canceller,
}

/// The duty to say what became of a request whose result is to be kept. Dropping it says that it
/// failed.
#[derive(Debug)]
pub(crate) struct PendingResult {
    results: Arc<ResultStore>,
    name: ResultKey,
    number: u64,
    ended: bool,
}

impl ResultStore {
    pub(crate) fn new(config: DetachedConfig) -> Arc<Self> {
        let places = config.requests_max.min(Semaphore::MAX_PERMITS);
        let detached = Arc::new(Semaphore::new(places));
        Arc::new(Self { stored_results: Mutex::default(), detached, config })
    }

    /// A permit for a request that begins without a client.
    ///
    /// # Errors
    ///
    /// When as many go on without one as may.
    pub(crate) fn place_in_background(&self) -> Result<OwnedSemaphorePermit, Failure> {
        self.place().ok_or(Failure::Detached { limit: self.config.requests_max })
    }

    /// A permit for a request that goes on without a client, if one is left.
    pub(crate) fn place(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.detached).try_acquire_owned().ok()
    }

    /// Begins to keep a result.
    pub(crate) fn keep(
        self: &Arc<Self>,
        stored: Arc<StoredRequest>,
        state: AnswerState,
    ) -> PendingResult {
        let name = stored.name();
        let mut stored_results = self.stored_results();
        // It takes the place of one of the same name.
        stored_results.remove(&name);
        stored_results.numbers += 1;
        let number = stored_results.numbers;
        stored_results.by_name.insert(name.clone(), StoredResult { number, stored, state });
        PendingResult { results: Arc::clone(self), name, number, ended: false }
    }

    /// What is kept under this id for this tenant.
    pub(crate) fn get(
        &self,
        id: &RequestId,
        tenant: &str,
    ) -> Option<(Arc<StoredRequest>, AnswerState)> {
        let mut stored_results = self.stored_results();
        stored_results.forget(&self.config, Instant::now());
        let kept = stored_results.by_name.get(&(id.clone(), tenant.to_owned()))?;
        Some((Arc::clone(&kept.stored), kept.state.clone()))
    }

    /// How far the answer to this very request is, if it is still kept.
    pub(crate) fn state_of(&self, stored: &Arc<StoredRequest>) -> Option<AnswerState> {
        let stored_results = self.stored_results();
        stored_results.by_request(stored).map(|kept| kept.state.clone())
    }

    /// The endpoint that the latest kept request of this id came through, whosever it is.
    pub(crate) fn endpoint(&self, id: &RequestId) -> Option<Endpoint> {
        let stored_results = self.stored_results();
        let all = stored_results.by_name.range((id.clone(), String::new())..);
        let of_id = all.take_while(|((kept, _), _)| kept == id);
        of_id.max_by_key(|(_, kept)| kept.number).map(|(_, kept)| kept.stored.head.info.endpoint)
    }

    /// Forgets it, also if it still runs: then nothing will be kept of it. False: somebody else has.
    pub(crate) fn remove(&self, stored: &Arc<StoredRequest>) -> bool {
        let mut stored_results = self.stored_results();
        stored_results.by_request(stored).is_some() && stored_results.remove(&stored.name())
    }

    fn stored_results(&self) -> MutexGuard<'_, StoredResults> {
        self.stored_results.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StoredResults {
    /// The result of this very request, and no other of its name.
    fn by_request(&self, stored: &Arc<StoredRequest>) -> Option<&StoredResult> {
        self.by_name.get(&stored.name()).filter(|kept| Arc::ptr_eq(&kept.stored, stored))
    }

    /// Lets go of it, wherever it is written.
    fn remove(&mut self, name: &ResultKey) -> bool {
        let Some(kept) = self.by_name.remove(name) else { return false };
        self.bytes -= kept.bytes();
        if let AnswerState::Ended(_) = kept.state {
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

impl StoredResult {
    fn bytes(&self) -> usize {
        match &self.state {
            AnswerState::Queued | AnswerState::Running => 0,
            AnswerState::Ended(result) => result.0.bytes() + self.stored.bytes(),
        }
    }
}

impl StoredRequest {
    fn name(&self) -> ResultKey {
        (self.head.info.id.clone(), self.head.info.tenant.clone())
    }

    /// About as much memory as the client's own words in it take.
    fn bytes(&self) -> usize {
        self.head.info.tenant.len() + self.format.bytes()
    }
}

impl PendingResult {
    /// The request's first step begins.
    pub(crate) fn started(&self) {
        if let Some(kept) = self.results.stored_results().by_name.get_mut(&self.name)
            && kept.number == self.number
        {
            kept.state = AnswerState::Running;
        }
    }

    /// The request has ended.
    pub(crate) fn end(mut self, chunk: TextChunk, how: Result<Done, Failure>) {
        self.write(chunk, how);
    }

    fn write(&mut self, chunk: TextChunk, how: Result<Done, Failure>) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let mut stored_results = self.results.stored_results();
        let Some(kept) =
            stored_results.by_name.get_mut(&self.name).filter(|kept| kept.number == self.number)
        else {
            return;
        };
        kept.state = AnswerState::Ended(Arc::new((chunk, how)));
        let (now, bytes) = (Instant::now(), kept.bytes());
        stored_results.bytes += bytes;
        stored_results.ended.push_back((now, self.name.clone(), self.number));
        stored_results.forget(&self.results.config, now);
    }
}

impl Drop for PendingResult {
    fn drop(&mut self) {
        self.write(TextChunk::default(), Err(Failure::INTERNAL));
    }
}

#[cfg(test)]
mod tests;
