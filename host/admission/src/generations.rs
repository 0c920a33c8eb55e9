//! The policies that new requests get, and those that were there before.
//!
//! # Invariants
//!
//! - A request keeps the chain that it began with; a swap concerns those that come after it.
//! - Reading the current chain takes no lock.
//! - Numbers of generations only grow; a chain that is restored comes back under its own.
//!
//! # Not here
//!
//! Nothing is loaded or compiled: what comes here is ready, so a swap cannot fail.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;

use crate::{Ceilings, Commons, Link, PolicyChain};

/// Chains that are kept for a rollback. What they hold in memory, they hold for good.
const KEPT: usize = 3;

/// The generations of a host's policies.
pub struct Policies {
    current: ArcSwap<PolicyChain>,
    past: Mutex<Past>,
    ceilings: Ceilings,
    commons: Commons,
}

struct Past {
    /// The latest last.
    chains: VecDeque<Arc<PolicyChain>>,
    last_number: u64,
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
        let (ceilings, commons) = (chain.ceilings, chain.commons.clone());
        let past = Past { chains: VecDeque::new(), last_number: chain.generation() };
        let policies = Self {
            current: ArcSwap::from_pointee(chain),
            past: Mutex::new(past),
            ceilings,
            commons,
        };
        policies.publish(&policies.current());
        policies
    }
}

impl Policies {
    /// Begins with these links.
    pub fn new(links: Vec<Link>, ceilings: Ceilings, commons: impl Into<Commons>) -> Self {
        PolicyChain::new(links, ceilings, commons).into()
    }

    /// What a request that comes now is to stay with.
    pub fn current(&self) -> Arc<PolicyChain> {
        self.current.load_full()
    }

    /// New requests get these links; the number of their generation. What they had is kept.
    pub fn swap(&self, links: Vec<Link>) -> u64 {
        // Held by whoever changes the generation, of whom there is rarely one; never by a request.
        let mut past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        past.last_number += 1;
        let number = past.last_number;
        let commons = self.commons.clone();
        let chain = Arc::new(PolicyChain::of_generation(number, links, self.ceilings, commons));
        self.publish(&chain);
        past.chains.push_back(self.current.swap(chain));
        if past.chains.len() > KEPT {
            past.chains.pop_front();
        }
        self.commons.metrics.swap("swapped");
        tracing::info!(generation = number, "policies were swapped");
        number
    }

    /// New requests get again what they had before the last swap; the number of that generation.
    /// `None`: nothing is kept.
    pub fn rollback(&self) -> Option<u64> {
        self.go_back(None, "rolled_back")
    }

    /// The same, if the current generation is still this one: for whoever finds that it was a
    /// mistake and may be late.
    pub fn restore_before(&self, generation: u64) -> Option<u64> {
        self.go_back(Some(generation), "restored")
    }

    /// An attempt to swap came to nothing; it is counted.
    pub fn swap_failed(&self) {
        self.commons.metrics.swap("failed");
    }

    /// What all generations share.
    pub fn commons(&self) -> &Commons {
        &self.commons
    }

    fn go_back(&self, only_from: Option<u64>, result: &'static str) -> Option<u64> {
        let mut past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        let from = self.current().generation();
        if only_from.is_some_and(|only| only != from) {
            return None;
        }
        let chain = past.chains.pop_back()?;
        let number = chain.generation();
        self.publish(&chain);
        self.current.store(chain);
        self.commons.metrics.swap(result);
        tracing::warn!(
            from,
            generation = number,
            result,
            "an earlier generation of policies is back"
        );
        Some(number)
    }

    fn publish(&self, chain: &PolicyChain) {
        let names: Vec<&str> = chain.names().collect();
        self.commons.metrics.serves(&names, chain.generation());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Fake, admit, facts};
    use crate::{Admission, Decision, LimitsConfig, PolicyMetrics};

    fn links(version: &'static str) -> Vec<Link> {
        let fake = Fake::admitting("p", Ok(Decision::Admit(Admission::default())));
        vec![Fake { version, ..fake }.link()]
    }

    fn policies() -> (Policies, interlock_metrics::Registry) {
        let registry = interlock_metrics::Registry::new();
        let metrics = PolicyMetrics::register(&registry);
        (Policies::new(links("1"), LimitsConfig::default().ceilings(), metrics), registry)
    }

    fn serves(policies: &Policies) -> String {
        let consent = admit(&policies.current(), facts()).expect("it admits");
        consent.said[0].version.to_string()
    }

    #[test]
    fn a_request_keeps_the_policies_that_it_began_with() {
        let (policies, _) = policies();
        let before = policies.current();
        assert_eq!(policies.swap(links("2")), 2);
        assert_eq!(serves(&policies), "2");
        assert_eq!(admit(&before, facts()).expect("it admits").said[0].version.as_ref(), "1");
        assert_eq!(before.generation(), 1);
    }

    #[test]
    fn a_rollback_brings_back_what_was_there_and_numbers_only_grow() {
        let (policies, registry) = policies();
        policies.swap(links("2"));
        assert_eq!(policies.rollback(), Some(1));
        assert_eq!(serves(&policies), "1");
        assert_eq!(policies.rollback(), None);
        assert_eq!(policies.swap(links("3")), 3);
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
    fn only_a_few_generations_are_kept() {
        let (policies, _) = policies();
        for _ in 0..9 {
            policies.swap(links("n"));
        }
        assert_eq!(std::iter::from_fn(|| policies.rollback()).collect::<Vec<_>>(), [9, 8, 7]);
    }

    #[test]
    fn swaps_under_load_lose_no_request_and_account_for_each() {
        let (policies, _) = policies();
        let told = std::thread::scope(|scope| {
            let load = scope.spawn(|| {
                (0..2000).filter(|_| admit(&policies.current(), facts()).is_ok()).count()
            });
            for _ in 0..200 {
                policies.swap(links("n"));
            }
            load.join().expect("no panic")
        });
        assert_eq!(told, 2000);
        assert_eq!(policies.commons().tenants.count("acme"), None, "a request was never settled");
    }
}
