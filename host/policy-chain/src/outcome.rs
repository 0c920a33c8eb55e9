//! A request that every policy has passed.

use interlock_policy_api::Admitted;

use crate::{DecisionRecord, PolicySession};

/// A request that was admitted, and what its policies have said of it.
#[derive(Debug)]
pub struct AdmissionOutcome {
    /// For the engine.
    pub admitted: Admitted,
    /// For whoever drives the request: what its policies have to say from here on.
    pub session: PolicySession,
    /// Headers of the answer.
    pub headers: Vec<(String, String)>,
    /// The decisions of all policies so far.
    pub decisions: Vec<DecisionRecord>,
}
