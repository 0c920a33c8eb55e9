//! Takes back a policy that fails right after it was replaced.

use std::sync::Arc;
use std::time::Instant;

use interlock_policy_api::Policy as _;

use super::PolicyManager;
use super::change::{ChangeOrigin, ChangeReport};
use super::entries::{ManagedPolicy, stamp};
use super::files::TRIES;
use super::state::{Probation, RejectedFile};
use crate::WasmPolicy;

impl PolicyManager {
    /// Takes back what failed while it was on probation.
    pub(super) fn check_probation(&self) {
        let failed = {
            let (mut state, now) = (self.state(), Instant::now());
            state.probation.retain(|trial| trial.failed() || now <= trial.until);
            state.probation.iter().any(Probation::failed)
        };
        if failed {
            self.roll_back_failed();
        }
    }

    pub(super) fn roll_back_failed(&self) {
        let _changing = self.changing();
        // Looked for again: whoever changed something while this waited may have put it right, and
        // what is in place now did nothing.
        let trial = {
            let mut state = self.state();
            let at = state.probation.iter().position(Probation::failed);
            at.map(|at| state.probation.swap_remove(at))
        };
        let Some(trial) = trial else { return };
        let from = self.policies.current().generation();
        let back = if trial.generation == from {
            let back = self.policies.restore_before(from);
            back.inspect(|&generation| {
                let policies = self.went_back(generation);
                ChangeReport { generation, from, policies }.log_rollback();
            })
        } else {
            // What was swapped since is not its doing, and stays.
            trial.before.and_then(|before| self.put_back(&trial.policy, before))
        };
        let Some(generation) = back else { return };
        let digest = trial.policy.describe().digest.clone();
        tracing::error!(
            policy = trial.policy.name(), %digest, from, generation,
            "a policy was quarantined right after it was replaced: the one before is back"
        );
        let refusal = RejectedFile { digest, tries: TRIES };
        self.state().refused.insert(trial.policy.name().to_owned(), refusal);
    }

    /// Puts an earlier policy into the place of this one, in a generation of its own.
    pub(super) fn put_back(
        &self,
        failed: &Arc<WasmPolicy>,
        mut before: ManagedPolicy,
    ) -> Option<u64> {
        let mut entries = self.state().now.entries.clone();
        let place = entries.iter_mut().find(|entry| Arc::ptr_eq(&entry.policy, failed))?;
        // What the file has now is what is taken back: only a further change counts.
        before.stamp = stamp(&before.config.source);
        let policy = Arc::clone(&before.policy);
        *place = before;
        let generation = self.swap(entries, ChangeOrigin::Quarantine).generation;
        // It has proved itself; and what it could be replaced by has not.
        self.state().probation.retain(|trial| !Arc::ptr_eq(&trial.policy, &policy));
        Some(generation)
    }
}
