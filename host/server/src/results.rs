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
    by_name: BTreeMap<Name, Kept>,
    /// Those that have ended, oldest first.
    ended: VecDeque<(Instant, Name, u64)>,
    bytes: usize,
    numbers: u64,
}

/// A tenant and an id. Ids are the clients' own, so nobody's may be in the way of another tenant's.
type Name = (String, RequestId);

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

impl State {
    /// About as much memory as what was said takes.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Queued | Self::Running => 0,
            Self::Ended(result) => result.0.bytes(),
        }
    }
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
        let name = (title.tenant.clone(), title.head.request.clone());
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
        let kept = shelf.by_name.get(&(tenant.to_owned(), id.clone()))?;
        Some((Arc::clone(&kept.title), kept.state.clone()))
    }

    /// Forgets it. What still runs is not touched, and is kept until it ends.
    pub(crate) fn remove(&self, id: &RequestId, tenant: &str) -> bool {
        let name = (tenant.to_owned(), id.clone());
        let mut shelf = self.shelf();
        let ended = |kept: &Kept| matches!(kept.state, State::Ended(_));
        shelf.by_name.get(&name).is_some_and(ended) && shelf.remove(&name)
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shelf {
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

/// How long a result may be kept at most: they lie in memory.
pub(crate) const KEEP_MAX: Duration = Duration::from_secs(24 * 3600);

#[cfg(test)]
mod tests {
    use interlock_request::{Finish, ModelId, Usage};
    use interlock_text::{TextModel, TextParts, TokenizerSource};

    use super::*;

    fn title(id: &str, tenant: &str) -> Arc<Title> {
        titled(id, tenant, Shape::Completions { include_usage: false })
    }

    fn titled(id: &str, tenant: &str, shape: Shape) -> Arc<Title> {
        let parts = TextParts {
            tokenizer: TokenizerSource::Sim,
            chat_template: None,
            special_tokens: Default::default(),
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
        let endpoint = Endpoint::Completions;
        Arc::new(Title { tenant: tenant.into(), endpoint, shape, head })
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
    fn an_id_of_one_tenant_is_not_in_the_way_of_anothers() {
        let results = Results::new(DetachedConfig::default());
        let end = |tenant: &str, bytes| {
            results.keep(title("a", tenant), State::Running).end(text(bytes), Ok(DONE));
        };
        end("acme", 3);
        end("globex", 5);
        let bytes = |tenant: &str| match results.get(&id("a"), tenant) {
            Some((_, State::Ended(result))) => result.0.text.len(),
            _ => 0,
        };
        assert_eq!((bytes("acme"), bytes("globex")), (3, 5));
        assert!(results.remove(&id("a"), "globex"));
        assert_eq!((bytes("acme"), bytes("globex")), (3, 0));
    }

    #[test]
    fn what_is_let_go_of_is_written_nowhere() {
        let results = Results::new(DetachedConfig::default());
        for _ in 0..3 {
            results.keep(title("a", "acme"), State::Running).end(text(3), Ok(DONE));
            assert!(results.remove(&id("a"), "acme"));
            // Another of the same id takes its place, before it is over or after.
            results.keep(title("b", "acme"), State::Running).end(text(3), Ok(DONE));
        }
        let shelf = results.shelf();
        assert_eq!((shelf.by_name.len(), shelf.ended.len(), shelf.bytes), (1, 1, 3 + 4));
    }

    #[test]
    fn what_a_response_repeats_of_its_request_takes_memory_too() {
        let memory_max = interlock_request::ByteSize(100);
        let results = Results::new(DetachedConfig { memory_max, ..DetachedConfig::default() });
        let echo = |instructions: usize, metadata: usize| {
            let metadata = serde_json::value::to_raw_value(&"x".repeat(metadata)).expect("text");
            Shape::Responses(Box::new(crate::ask::Echo {
                instructions: Some("x".repeat(instructions)),
                metadata: Some(metadata),
                max_output_tokens: None,
                top_logprobs: 0,
                background: true,
            }))
        };
        let is_kept = |shape| {
            results.keep(titled("a", "", shape), State::Running).end(text(1), Ok(DONE));
            results.get(&id("a"), "").is_some()
        };
        assert_eq!(
            [is_kept(echo(40, 40)), is_kept(echo(200, 0)), is_kept(echo(0, 200))],
            [true, false, false]
        );
    }

    #[test]
    fn who_was_forgotten_by_its_driver_has_failed() {
        let results = Results::new(DetachedConfig::default());
        drop(results.keep(title("a", ""), State::Queued));
        let Some((_, State::Ended(result))) = results.get(&id("a"), "") else { panic!("ended") };
        assert_eq!(result.1, Err(Failure::INTERNAL));
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
