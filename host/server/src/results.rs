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
use std::time::Duration;

use interlock_request::{Endpoint, RequestId};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::DetachedConfig;
use crate::ask::Shape;
use crate::failure::Failure;
use crate::pieces::{Done, Said};
use crate::voice::Head;

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
    by_id: BTreeMap<RequestId, Kept>,
    /// Those that have ended, oldest first, by id and number.
    ended: VecDeque<(Instant, RequestId, u64)>,
    bytes: usize,
    numbers: u64,
}

/// A result, or one to come.
#[derive(Debug, Clone)]
struct Kept {
    /// Ids are the clients' own, so another of the same id may have taken this one's place.
    number: u64,
    title: Title,
    state: State,
}

/// Whose result it is, and in whose language it is told.
#[derive(Debug, Clone)]
pub(crate) struct Title {
    pub(crate) tenant: String,
    pub(crate) endpoint: Endpoint,
    pub(crate) shape: Shape,
    pub(crate) head: Head,
}

/// How far it is.
#[derive(Debug, Clone)]
pub(crate) enum State {
    /// No pass has begun for it.
    Queued,
    /// It runs.
    Running,
    /// It has ended; what was said, and how.
    Ended(Arc<(Said, Result<Done, Failure>)>),
}

/// The duty to say what became of a request whose result is to be kept. Dropping it says that it
/// failed.
#[derive(Debug)]
pub(crate) struct Keeping {
    results: Arc<Results>,
    id: RequestId,
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
    pub(crate) fn keep(self: &Arc<Self>, title: Title, state: State) -> Keeping {
        let id = title.head.request.clone();
        let mut shelf = self.shelf();
        shelf.numbers += 1;
        let number = shelf.numbers;
        if let Some(before) = shelf.by_id.insert(id.clone(), Kept { number, title, state }) {
            shelf.bytes -= before.bytes();
        }
        Keeping { results: Arc::clone(self), id, number, ended: false }
    }

    /// What is kept under this id for this tenant.
    pub(crate) fn get(&self, id: &RequestId, tenant: &str) -> Option<(Title, State)> {
        let mut shelf = self.shelf();
        shelf.forget(&self.config, Instant::now());
        let kept = shelf.by_id.get(id).filter(|kept| kept.title.tenant == tenant)?;
        Some((kept.title.clone(), kept.state.clone()))
    }

    /// Forgets it. What still runs is not touched, and is kept until it ends.
    pub(crate) fn remove(&self, id: &RequestId, tenant: &str) -> bool {
        let mut shelf = self.shelf();
        let Some(kept) = shelf.by_id.get(id) else { return false };
        let ended = matches!(kept.state, State::Ended(_));
        if !ended || kept.title.tenant != tenant {
            return false;
        }
        shelf.remove(id);
        true
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shelf {
    fn remove(&mut self, id: &RequestId) {
        if let Some(kept) = self.by_id.remove(id) {
            self.bytes -= kept.bytes();
        }
    }

    /// Lets go of what is too old, or too much.
    fn forget(&mut self, config: &DetachedConfig, now: Instant) {
        let (most, bytes) = (config.results_max, config.memory_max.in_memory());
        while let Some((at, id, number)) = self.ended.front() {
            let old = now.saturating_duration_since(*at) >= config.keep;
            if !old && self.ended.len() <= most && self.bytes <= bytes {
                return;
            }
            let (id, number) = (id.clone(), *number);
            self.ended.pop_front();
            if self.by_id.get(&id).is_some_and(|kept| kept.number == number) {
                self.remove(&id);
            }
        }
    }
}

impl Kept {
    fn bytes(&self) -> usize {
        match &self.state {
            State::Queued | State::Running => 0,
            State::Ended(result) => result.0.bytes(),
        }
    }
}

impl Keeping {
    /// Its first pass begins.
    pub(crate) fn started(&self) {
        if let Some(kept) = self.results.shelf().by_id.get_mut(&self.id)
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
        let Some(kept) = shelf.by_id.get_mut(&self.id).filter(|kept| kept.number == self.number)
        else {
            return;
        };
        kept.state = State::Ended(Arc::new((said, how)));
        let (now, bytes) = (Instant::now(), kept.bytes());
        shelf.bytes += bytes;
        shelf.ended.push_back((now, self.id.clone(), self.number));
        shelf.forget(&self.results.config, now);
    }
}

impl Drop for Keeping {
    fn drop(&mut self) {
        self.write(Said::default(), Err(Failure::Failed));
    }
}

/// How long a result may be kept at most: they lie in memory.
pub(crate) const KEEP_MAX: Duration = Duration::from_secs(24 * 3600);

#[cfg(test)]
mod tests {
    use interlock_request::{Finish, ModelId, Usage};
    use interlock_text::{TextModel, TextParts, TokenizerSource};

    use super::*;

    fn title(id: &str, tenant: &str) -> Title {
        let parts = TextParts {
            tokenizer: TokenizerSource::Sim,
            chat_template: None,
            bos: None,
            eos: vec![],
        };
        let head = Head {
            request: RequestId::parse(id).expect("an id"),
            model: ModelId::new("m"),
            created: 0,
            temperature: 1.0,
            top_p: 1.0,
            logprobs: false,
            text: Arc::new(TextModel::new(parts).expect("a text model")),
        };
        let shape = Shape::Completions { include_usage: false };
        Title { tenant: tenant.into(), endpoint: Endpoint::Completions, shape, head }
    }

    fn text(bytes: usize) -> Said {
        Said { text: "x".repeat(bytes), tokens: vec![] }
    }

    const DONE: Done = Done {
        finish: Finish::Stop,
        usage: Usage { prompt_tokens: 1, cached_tokens: 0, generated_tokens: 1 },
    };

    fn id(id: &str) -> RequestId {
        RequestId::parse(id).expect("an id")
    }

    #[test]
    fn a_result_is_its_tenants_alone() {
        let results = Results::new(DetachedConfig::default());
        let keeping = results.keep(title("a", "acme"), State::Queued);
        assert!(matches!(results.get(&id("a"), "acme"), Some((_, State::Queued))));
        keeping.started();
        assert!(matches!(results.get(&id("a"), "acme"), Some((_, State::Running))));
        assert!(results.get(&id("a"), "").is_none());
        keeping.end(text(3), Ok(DONE));
        let Some((_, State::Ended(result))) = results.get(&id("a"), "acme") else {
            panic!("it has ended")
        };
        assert_eq!(*result, (text(3), Ok(DONE)));
        assert!(!results.remove(&id("a"), "other") && results.remove(&id("a"), "acme"));
        assert!(results.get(&id("a"), "acme").is_none());
    }

    #[test]
    fn who_was_forgotten_by_its_driver_has_failed() {
        let results = Results::new(DetachedConfig::default());
        drop(results.keep(title("a", ""), State::Queued));
        let Some((_, State::Ended(result))) = results.get(&id("a"), "") else { panic!("ended") };
        assert_eq!(result.1, Err(Failure::Failed));
    }

    #[test]
    fn the_oldest_go_when_there_are_too_many_or_too_much() {
        let config = DetachedConfig {
            results_max: 2,
            memory_max: interlock_request::ByteSize(100),
            ..DetachedConfig::default()
        };
        let results = Results::new(config);
        let end = |name: &str, bytes| {
            results.keep(title(name, ""), State::Running).end(text(bytes), Ok(DONE));
        };
        let kept = || ["a", "b", "c", "d"].map(|name| results.get(&id(name), "").is_some());
        end("a", 10);
        end("b", 10);
        end("c", 10);
        assert_eq!(kept(), [false, true, true, false]);
        end("d", 95);
        assert_eq!(kept(), [false, false, false, true]);
        end("d", 5);
        assert_eq!((kept(), results.shelf().bytes), ([false, false, false, true], 5));
    }

    #[test]
    fn what_is_too_old_is_gone() {
        let config = DetachedConfig { keep: Duration::ZERO, ..DetachedConfig::default() };
        let results = Results::new(config);
        results.keep(title("a", ""), State::Running).end(text(1), Ok(DONE));
        assert!(results.get(&id("a"), "").is_none());
        assert_eq!(results.shelf().bytes, 0);
    }

    #[test]
    fn so_many_go_on_without_a_client() {
        let results = Results::new(DetachedConfig { requests_max: 1, ..Default::default() });
        let place = results.place();
        assert!(place.is_some() && results.place().is_none());
        drop(place);
        assert!(results.place().is_some());
    }
}
