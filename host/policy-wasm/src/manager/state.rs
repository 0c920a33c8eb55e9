//! What the manager knows of the policies that are in place, and of those that were.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use super::change::ChangeOrigin;
use super::entries::ManagedPolicy;
use crate::{Digest, WasmPolicy};

/// What there is and what there was.
pub(super) struct ManagerState {
    pub(super) now: PolicyGeneration,
    /// Those that `Policies` keeps, the start first.
    pub(super) past: Vec<PolicyGeneration>,
    pub(super) probation: Vec<Probation>,
    /// Files that were found not to do, so that each is complained about once, by policy.
    pub(super) refused: HashMap<String, RejectedFile>,
}

/// One state of all policies, and where it came from.
pub(super) struct PolicyGeneration {
    pub(super) number: u64,
    pub(super) origin: ChangeOrigin,
    pub(super) at: SystemTime,
    pub(super) entries: Vec<ManagedPolicy>,
}

/// A policy that has to prove itself.
pub(super) struct Probation {
    pub(super) policy: Arc<WasmPolicy>,
    /// The one that it came with.
    pub(super) generation: u64,
    pub(super) until: Instant,
    /// How often it was quarantined when it came.
    pub(super) quarantines: u64,
    /// What was in its place.
    pub(super) before: Option<ManagedPolicy>,
}

impl Probation {
    pub(super) fn failed(&self) -> bool {
        self.policy.quarantines() > self.quarantines
    }
}

/// A file that was tried in vain.
pub(super) struct RejectedFile {
    pub(super) digest: Digest,
    pub(super) tries: u32,
}
