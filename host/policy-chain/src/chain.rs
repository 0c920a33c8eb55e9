//! The policies of one generation, in the operator's order.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use interlock_policy_api::{CallTime, Ceilings, Phase, Policy};

use crate::policy_set::{PolicyMember, PolicySet};
use crate::{ChainEntry, ChainShared, PolicyMode};

/// The members that one entry of the chain gives to requests.
struct EntryMembers {
    mode: PolicyMode,
    now: PolicyMember,
    previous: Option<PolicyMember>,
}

/// The policies, in the operator's order.
pub struct PolicyChain {
    generation: u64,
    entries: Vec<ChainEntry>,
    members: Vec<EntryMembers>,
    /// Everyone's, when no canary makes a difference.
    policy_set: Option<PolicySet>,
    headers_seen: BTreeSet<String>,
    takes: [bool; Phase::ALL.len()],
    pub(crate) ceilings: Ceilings,
    pub(crate) shared: ChainShared,
}

impl fmt::Debug for PolicyChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.entries).finish()
    }
}

impl PolicyChain {
    /// A chain of these entries. An empty chain admits everything under the ceilings.
    pub fn new(
        entries: Vec<ChainEntry>,
        ceilings: Ceilings,
        shared: impl Into<ChainShared>,
    ) -> Self {
        Self::of_generation(1, entries, ceilings, shared.into())
    }

    pub(crate) fn of_generation(
        generation: u64,
        entries: Vec<ChainEntry>,
        ceilings: Ceilings,
        shared: ChainShared,
    ) -> Self {
        let member = |entry: &ChainEntry, policy: &Arc<dyn Policy>, shadow| PolicyMember {
            policy: Arc::clone(policy),
            name: policy.name().into(),
            version: policy.version().into(),
            on_failure: entry.on_failure,
            weight: entry.weight,
            shadow,
            call_time: policy.call_time(),
            threads: (policy.call_time() != CallTime::AtOnce || policy.wants_content())
                .then(|| shared.threads.of(policy, &shared.metrics)),
            meters: Arc::new(shared.metrics.of(policy.as_ref(), entry.soft_deadline)),
        };
        let members: Vec<EntryMembers> = entries
            .iter()
            .map(|entry| EntryMembers {
                mode: entry.mode,
                now: member(entry, &entry.policy, entry.mode == PolicyMode::Shadow),
                previous: entry.previous.as_ref().map(|policy| member(entry, policy, false)),
            })
            .collect();
        let policies = || entries.iter().flat_map(ChainEntry::policies);
        let takes = Phase::ALL.map(|phase| policies().any(|policy| policy.takes(phase)));
        let headers_seen = policies().flat_map(|policy| policy.headers()).cloned().collect();
        let mut chain = Self {
            generation,
            entries,
            members,
            policy_set: None,
            headers_seen,
            takes,
            ceilings,
            shared,
        };
        if !chain.entries.iter().any(|entry| matches!(entry.mode, PolicyMode::Canary(_))) {
            chain.policy_set = Some(chain.policy_set(0));
        }
        chain
    }

    /// Counts the chains that a host has had; the first is 1.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The entries of the chain, as they were given.
    pub fn entries(&self) -> &[ChainEntry] {
        &self.entries
    }

    /// The policies' names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|entry| entry.policy.name())
    }

    /// Does any policy take part in this phase?
    pub fn takes(&self, phase: Phase) -> bool {
        self.takes[phase as usize]
    }

    /// Could a policy want to read a body? If not, an empty one will do.
    pub fn wants_content(&self) -> bool {
        self.entries.iter().flat_map(ChainEntry::policies).any(|policy| policy.wants_content())
    }

    /// The most that any of them may grant.
    pub fn ceilings(&self) -> &Ceilings {
        &self.ceilings
    }

    /// Names, in lower case, of the headers that some policy is shown.
    pub fn headers_seen(&self) -> &BTreeSet<String> {
        &self.headers_seen
    }

    /// The policies that are asked about the request of this serial.
    pub(crate) fn policy_set(&self, serial: u64) -> PolicySet {
        if let Some(policy_set) = &self.policy_set {
            return Arc::clone(policy_set);
        }
        let asked = |entry: &EntryMembers| -> [Option<PolicyMember>; 2] {
            match entry.mode {
                PolicyMode::Enforce => [Some(entry.now.clone()), None],
                // The policy in shadow mode comes second, so that it sees what the other made of
                // the request.
                PolicyMode::Shadow => [entry.previous.clone(), Some(entry.now.clone())],
                PolicyMode::Canary(percent) if chosen(serial, percent) => {
                    [Some(entry.now.clone()), None]
                }
                PolicyMode::Canary(_) => [entry.previous.clone(), None],
            }
        };
        self.members.iter().flat_map(asked).flatten().collect()
    }
}

/// Is it one of the so many of a hundred? Serials count up, so they are mixed first (the
/// finalizer of SplitMix64): a client that sends every tenth request must not get it always.
fn chosen(serial: u64, percent: u8) -> bool {
    let mut mixed = serial.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (mixed ^ (mixed >> 31)) % 100 < u64::from(percent)
}

#[cfg(test)]
mod tests;
