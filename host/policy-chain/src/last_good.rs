//! The last decision of a policy for a tenant and a model, for when it gives none.
//!
//! # Invariants
//!
//! - At most [`ROWS_MAX`] are kept; beyond them the oldest go first. Nothing is kept for
//!   policies whose `on_failure` does not ask for it.
//! - A rejection is a decision too: repeating what was good for it must not open a door.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::clock;
use crate::decision_record::{AnyAnswer, PhaseAnswer};
use interlock_policy_api::{Caller, Phase};

const ROWS_MAX: usize = 4096;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct LastGoodKey {
    policy: Arc<str>,
    phase: Phase,
    tenant: String,
    model: String,
}

impl LastGoodKey {
    pub(crate) fn new(policy: &Arc<str>, phase: Phase, about: (&str, &str)) -> Self {
        let (tenant, model) = (about.0.to_owned(), about.1.to_owned());
        Self { policy: Arc::clone(policy), phase, tenant, model }
    }
}

/// The memory, over all generations.
#[derive(Debug, Clone, Default)]
pub(crate) struct LastGood {
    rows: Arc<Mutex<HashMap<LastGoodKey, (Instant, AnyAnswer)>>>,
    hashes: RandomState,
}

impl LastGood {
    /// What a policy that is shown these headers sees of a caller, but for the credential. Hashed
    /// with a key that nobody knows, since headers may be secrets and long, and callers must not
    /// find two that hash alike.
    pub(crate) fn digest(&self, caller: &Caller, headers: &[String]) -> String {
        let seen = caller.headers.0.iter().filter(|(name, _)| headers.contains(name));
        let seen: Vec<&(String, String)> = seen.collect();
        let endpoint = caller.endpoint.as_str();
        format!("{} {:x}", caller.address, self.hashes.hash_one((endpoint, seen)))
    }

    /// Keeps the answer for [`LastGood::recall`].
    pub(crate) fn keep(&self, key: LastGoodKey, answer: AnyAnswer) {
        let mut rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        if rows.len() >= ROWS_MAX && !rows.contains_key(&key) {
            // A full look, once in a thousand: half of them go, so that it is rare.
            let mut times: Vec<Instant> = rows.values().map(|(at, _)| *at).collect();
            let (_, middle, _) = times.select_nth_unstable(ROWS_MAX / 2);
            let middle = *middle;
            rows.retain(|_, (at, _)| *at > middle);
        }
        rows.insert(key, (clock::now(), answer));
    }

    /// The last answer, unless it is older than this.
    pub(crate) fn recall<T: PhaseAnswer>(&self, key: &LastGoodKey, age_max: Duration) -> Option<T> {
        let rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, answer) = rows.get(key)?;
        if clock::now().saturating_duration_since(*at) > age_max {
            return None;
        }
        T::of(answer).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use interlock_policy_api::{Choice, Code};

    fn key(number: usize) -> LastGoodKey {
        LastGoodKey::new(&"p".into(), Phase::Route, ("tenant", &number.to_string()))
    }

    #[test]
    fn what_is_too_old_or_of_someone_else_is_not_recalled() {
        let memory = LastGood::default();
        let pick = Choice::Pick(1, Code::from("best"));
        memory.keep(key(1), pick.clone().into_any());
        assert_eq!(memory.recall(&key(1), Duration::from_secs(60)), Some(pick));
        assert_eq!(memory.recall::<Choice>(&key(2), Duration::from_secs(60)), None);
        assert_eq!(memory.recall::<Choice>(&key(1), Duration::ZERO), None);
    }

    #[test]
    fn the_memory_has_an_end() {
        let memory = LastGood::default();
        for number in 0..3 * ROWS_MAX {
            memory.keep(key(number), Choice::Abstain.into_any());
        }
        assert!(memory.rows.lock().unwrap().len() <= ROWS_MAX);
        let last = memory.recall::<Choice>(&key(3 * ROWS_MAX - 1), Duration::from_secs(60));
        assert_eq!(last, Some(Choice::Abstain));
    }
}
