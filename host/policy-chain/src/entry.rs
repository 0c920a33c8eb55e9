//! A policy and the operator's settings of its place in the chain.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use interlock_policy_api::Policy;

use crate::{OnFailure, PolicyMode};

/// A policy in its place in the chain.
#[derive(Clone)]
pub struct ChainEntry {
    /// The policy that is asked.
    pub policy: Arc<dyn Policy>,
    /// What the host does when the policy gives no answer.
    pub on_failure: OnFailure,
    /// Whether the policy decides.
    pub mode: PolicyMode,
    /// While it is in shadow, or in canary for others: who decides in its place.
    pub previous: Option<Arc<dyn Policy>>,
    /// The weight of its scores in `route`.
    pub weight: f32,
    /// A call that takes longer is counted; nothing else happens.
    pub soft_deadline: Option<Duration>,
}

impl ChainEntry {
    /// One that decides, with everything else at its default.
    pub fn new(policy: Arc<dyn Policy>, on_failure: OnFailure) -> Self {
        let mode = PolicyMode::Enforce;
        Self { policy, on_failure, mode, previous: None, weight: 1.0, soft_deadline: None }
    }

    pub(crate) fn policies(&self) -> impl Iterator<Item = &Arc<dyn Policy>> {
        std::iter::once(&self.policy).chain(&self.previous)
    }
}

impl fmt::Debug for ChainEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChainEntry")
            .field("policy", &self.policy.name())
            .field("version", &self.policy.version())
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
}
