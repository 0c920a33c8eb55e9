//! The policies that new requests get, and those that were there before.
//!
//! # Invariants
//!
//! - A request keeps the chain that it began with; a swap concerns those that come after it.
//! - Reading the current chain takes no lock.
//! - Numbers of generations only grow; a chain that is restored comes back under its own.
//! - The generation that the process began with can be gone back to whatever was swapped since.
//!
//! # Not here
//!
//! Nothing is loaded or compiled: what comes here is ready, so a swap cannot fail.

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;

use crate::{ChainEntry, ChainShared, PolicyChain};
use interlock_policy_api::Ceilings;

/// Chains that are kept for a rollback beside the first, which is always kept. What they hold in
/// memory, they hold for good.
const KEPT: usize = 3;

/// The generations of a host's policies.
pub struct Policies {
    current: ArcSwap<PolicyChain>,
    past: Mutex<PastChains>,
    ceilings: Ceilings,
    shared: ChainShared,
}

struct PastChains {
    /// The one that the process began with first, the latest last.
    chains: Vec<Arc<PolicyChain>>,
    last_number: u64,
}

/// Which generation to go back to. Written `previous`, `start`, or as its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RollbackTarget {
    /// The one before the current.
    Previous,
    /// The one that the process began with: what the configuration names.
    Start,
    /// The one with this number.
    Number(u64),
}

/// A generation to go back to that cannot be one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a generation to go back to is previous, start or a number, got {0:?}")]
pub struct BadRollbackTarget(String);

/// Why nothing was gone back to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GenerationNotKept {
    /// The current generation is the first.
    #[error("there is no earlier generation to go back to")]
    NothingEarlier,
    /// That one is not there, or not any more.
    #[error("generation {asked} is not kept; those that are: {}", listed(.kept))]
    Number {
        /// The number that was asked for.
        asked: u64,
        /// The numbers that can be gone back to, the current one last.
        kept: Vec<u64>,
    },
}

fn listed(numbers: &[u64]) -> String {
    numbers.iter().map(u64::to_string).collect::<Vec<_>>().join(", ")
}

impl fmt::Display for RollbackTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Previous => f.write_str("previous"),
            Self::Start => f.write_str("start"),
            Self::Number(number) => number.fmt(f),
        }
    }
}

impl FromStr for RollbackTarget {
    type Err = BadRollbackTarget;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "previous" => Ok(Self::Previous),
            "start" => Ok(Self::Start),
            // Digits alone: `+1` is a number to Rust, and to an operator one generation on.
            _ if text.bytes().all(|byte| byte.is_ascii_digit()) => {
                text.parse().map(Self::Number).map_err(|_| BadRollbackTarget(text.to_owned()))
            }
            _ => Err(BadRollbackTarget(text.to_owned())),
        }
    }
}

impl fmt::Debug for Policies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let chain = self.current();
        f.debug_struct("Policies")
            .field("generation", &chain.generation())
            .field("chain", &chain)
            .finish_non_exhaustive()
    }
}

impl From<PolicyChain> for Policies {
    /// A host that begins with this chain.
    fn from(chain: PolicyChain) -> Self {
        let (ceilings, shared) = (chain.ceilings, chain.shared.clone());
        let past = PastChains { chains: Vec::new(), last_number: chain.generation() };
        let policies = Self {
            current: ArcSwap::from_pointee(chain),
            past: Mutex::new(past),
            ceilings,
            shared,
        };
        policies.publish(&policies.current());
        policies
    }
}

impl Policies {
    /// Begins with a chain of these entries.
    pub fn new(
        entries: Vec<ChainEntry>,
        ceilings: Ceilings,
        shared: impl Into<ChainShared>,
    ) -> Self {
        PolicyChain::new(entries, ceilings, shared).into()
    }

    /// What a request that comes now is to stay with.
    pub fn current(&self) -> Arc<PolicyChain> {
        self.current.load_full()
    }

    /// New requests get a chain of these entries; returns the number of its generation. What they
    /// had is kept.
    pub fn swap(&self, entries: Vec<ChainEntry>) -> u64 {
        let mut past = self.past();
        past.last_number += 1;
        let number = past.last_number;
        let shared = self.shared.clone();
        let chain = Arc::new(PolicyChain::of_generation(number, entries, self.ceilings, shared));
        self.publish(&chain);
        past.chains.push(self.current.swap(chain));
        if past.chains.len() > KEPT + 1 {
            past.chains.remove(1);
        }
        self.shared.metrics.swap("swapped");
        tracing::debug!(generation = number, "policies were swapped");
        number
    }

    /// New requests get again what they had in an earlier generation; its number. Those that came
    /// after it are gone. To go back to the current generation changes nothing.
    ///
    /// # Errors
    ///
    /// When that generation is not kept.
    pub fn rollback(&self, to: RollbackTarget) -> Result<u64, GenerationNotKept> {
        let mut past = self.past();
        let current = self.current().generation();
        let at = match to {
            RollbackTarget::Previous => {
                past.chains.len().checked_sub(1).ok_or(GenerationNotKept::NothingEarlier)?
            }
            RollbackTarget::Start if past.chains.is_empty() => return Ok(current),
            RollbackTarget::Start => 0,
            RollbackTarget::Number(asked) if asked == current => return Ok(current),
            RollbackTarget::Number(asked) => {
                let at = past.chains.iter().position(|chain| chain.generation() == asked);
                at.ok_or_else(|| GenerationNotKept::Number { asked, kept: self.numbers(&past) })?
            }
        };
        Ok(self.go_back(&mut past, at, "rolled_back"))
    }

    /// New requests get again what they had before the last swap, if the current generation is
    /// still this one: for whoever finds that it was a mistake and may be late.
    pub fn restore_before(&self, generation: u64) -> Option<u64> {
        let mut past = self.past();
        if self.current().generation() != generation {
            return None;
        }
        let at = past.chains.len().checked_sub(1)?;
        Some(self.go_back(&mut past, at, "restored"))
    }

    /// The numbers of the generations that are kept, the current one last.
    pub fn kept(&self) -> Vec<u64> {
        self.numbers(&self.past())
    }

    /// An attempt to swap came to nothing; it is counted.
    pub fn swap_failed(&self) {
        self.shared.metrics.swap("failed");
    }

    /// What all generations share.
    pub fn shared(&self) -> &ChainShared {
        &self.shared
    }

    fn go_back(&self, past: &mut PastChains, at: usize, result: &'static str) -> u64 {
        let chain = Arc::clone(&past.chains[at]);
        past.chains.truncate(at);
        let (from, number) = (self.current().generation(), chain.generation());
        self.publish(&chain);
        self.current.store(chain);
        self.shared.metrics.swap(result);
        tracing::debug!(from, generation = number, result, "an earlier generation is back");
        number
    }

    fn numbers(&self, past: &PastChains) -> Vec<u64> {
        let current = self.current().generation();
        past.chains.iter().map(|chain| chain.generation()).chain([current]).collect()
    }

    fn past(&self) -> MutexGuard<'_, PastChains> {
        // Held by whoever changes the generation, of whom there is rarely one; never by a request.
        self.past.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, chain: &PolicyChain) {
        let names: Vec<&str> = chain.names().collect();
        self.shared.metrics.serves(&names, chain.generation());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Fake, admit, facts};
    use crate::{LimitsConfig, PolicyMetrics};
    use interlock_policy_api::{Admission, Decision};

    fn entries(version: &'static str) -> Vec<ChainEntry> {
        let fake = Fake::admitting("p", Ok(Decision::Admit(Admission::default())));
        vec![Fake { version, ..fake }.entry()]
    }

    fn policies() -> (Policies, interlock_metrics::Registry) {
        let registry = interlock_metrics::Registry::new();
        let metrics = PolicyMetrics::register(&registry);
        (Policies::new(entries("1"), LimitsConfig::default().ceilings(), metrics), registry)
    }

    fn serves(policies: &Policies) -> String {
        let outcome = admit(&policies.current(), facts()).expect("it admits");
        outcome.decisions[0].version.to_string()
    }

    #[test]
    fn a_request_keeps_the_policies_that_it_began_with() {
        let (policies, _) = policies();
        let before = policies.current();
        assert_eq!(policies.swap(entries("2")), 2);
        assert_eq!(serves(&policies), "2");
        assert_eq!(admit(&before, facts()).expect("it admits").decisions[0].version.as_ref(), "1");
        assert_eq!(before.generation(), 1);
    }

    #[test]
    fn a_rollback_brings_back_what_was_there_and_numbers_only_grow() {
        let (policies, registry) = policies();
        policies.swap(entries("2"));
        assert_eq!(policies.rollback(RollbackTarget::Previous), Ok(1));
        assert_eq!(serves(&policies), "1");
        assert_eq!(
            policies.rollback(RollbackTarget::Previous),
            Err(GenerationNotKept::NothingEarlier)
        );
        assert_eq!(policies.swap(entries("3")), 3);
        assert_eq!(policies.restore_before(2), None, "it is not the current one");
        assert_eq!(policies.restore_before(3), Some(1));
        let text = registry.expose().unwrap();
        for line in [
            r#"policy_generation{policy="p"} 1"#,
            r#"policy_swaps_total{result="swapped"} 2"#,
            r#"policy_swaps_total{result="rolled_back"} 1"#,
            r#"policy_swaps_total{result="restored"} 1"#,
            r#"policy_swaps_total{result="failed"} 0"#,
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
    }

    #[test]
    fn only_a_few_generations_are_kept_and_the_first() {
        let (policies, _) = policies();
        for _ in 0..9 {
            policies.swap(entries("n"));
        }
        assert_eq!(policies.kept(), [1, 7, 8, 9, 10]);
        let back = || policies.rollback(RollbackTarget::Previous).ok();
        assert_eq!(std::iter::from_fn(back).collect::<Vec<_>>(), [9, 8, 7, 1]);
    }

    #[test]
    fn the_start_can_be_gone_back_to_whatever_was_swapped_since() {
        let (policies, _) = policies();
        for _ in 0..9 {
            policies.swap(entries("n"));
        }
        assert_eq!(policies.rollback(RollbackTarget::Start), Ok(1));
        assert_eq!((serves(&policies), policies.kept()), ("1".into(), vec![1]));
        assert_eq!(policies.rollback(RollbackTarget::Start), Ok(1), "it is there already");
        assert_eq!(policies.swap(entries("2")), 11);
        assert_eq!(policies.rollback(RollbackTarget::Start), Ok(1));
    }

    #[test]
    fn a_generation_can_be_gone_back_to_by_its_number() {
        let (policies, _) = policies();
        for _ in 0..3 {
            policies.swap(entries("n"));
        }
        assert_eq!(policies.rollback(RollbackTarget::Number(3)), Ok(3));
        let gone = policies.rollback(RollbackTarget::Number(4)).expect_err("it was taken back");
        assert_eq!(gone.to_string(), "generation 4 is not kept; those that are: 1, 2, 3");
    }

    #[test]
    fn a_generation_to_go_back_to_is_a_word_or_digits() {
        for (text, read) in [
            ("previous", Some(RollbackTarget::Previous)),
            ("start", Some(RollbackTarget::Start)),
            ("12", Some(RollbackTarget::Number(12))),
            ("", None),
            ("+1", None),
            ("-1", None),
            ("Start", None),
            ("99999999999999999999", None),
        ] {
            assert_eq!(text.parse().ok(), read, "{text:?}");
        }
    }

    #[test]
    fn swaps_under_load_lose_no_request_and_account_for_each() {
        let (policies, _) = policies();
        let told = std::thread::scope(|scope| {
            let load = scope.spawn(|| {
                (0..2000).filter(|_| admit(&policies.current(), facts()).is_ok()).count()
            });
            for _ in 0..200 {
                policies.swap(entries("n"));
            }
            load.join().expect("no panic")
        });
        assert_eq!(told, 2000);
        assert_eq!(policies.shared().tenants.count("acme"), None, "a request was never settled");
    }
}
