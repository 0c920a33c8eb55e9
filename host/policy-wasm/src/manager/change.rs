//! What a change of policies came to, for the log and for whoever asked for it.

use interlock_policy_chain::PolicyMode;
use serde::Serialize;

use crate::{Digest, LoadFailed};

/// Where a generation of policies came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeOrigin {
    /// The configuration, when the process started.
    Start,
    /// A policy's file changed.
    File,
    /// An operator posted it to the admin listener.
    Admin,
    /// SIGHUP, at which all files are read again.
    Sighup,
    /// A policy failed right after it was replaced, and the host put the one before back.
    Quarantine,
}

impl ChangeOrigin {
    /// Its name in logs and answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::File => "file",
            Self::Admin => "admin",
            Self::Sighup => "sighup",
            Self::Quarantine => "quarantine",
        }
    }
}

/// A policy as it stands in a generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PolicyVersion {
    /// What it says of itself.
    pub version: String,
    /// Of the component.
    pub sha256: Digest,
    /// Whether it decides.
    pub mode: PolicyMode,
    /// Where the configuration says that it is.
    pub source: String,
    /// Was the component posted? Then it is not the one that the source holds.
    pub posted: bool,
}

impl std::fmt::Display for PolicyVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (sha256 {}, {})", self.version, self.sha256, self.mode)
    }
}

/// What changed of one policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PolicyChange {
    /// The operator's name for it.
    pub policy: String,
    /// As it was; nothing for one that is new.
    pub from: Option<PolicyVersion>,
    /// As it is now; nothing for one that is gone.
    pub to: Option<PolicyVersion>,
    /// Does it read other settings than before?
    pub settings_changed: bool,
}

/// What a change of policies came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ChangeReport {
    /// The generation that requests get from now on.
    pub generation: u64,
    /// The one that they got before. The same: nothing has changed.
    #[serde(rename = "from_generation")]
    pub from: u64,
    /// What differs, policy by policy.
    #[serde(rename = "changed")]
    pub policies: Vec<PolicyChange>,
}

impl ChangeReport {
    /// Do requests get what they got before?
    pub fn is_nothing(&self) -> bool {
        self.generation == self.from
    }

    /// One line for each policy that changed, or one that says that none did.
    pub(super) fn log(&self, origin: ChangeOrigin, in_place: &str) {
        let (origin, generation) = (origin.as_str(), self.generation);
        if self.is_nothing() {
            tracing::info!(origin, generation, policies = in_place, "no policy has changed");
        }
        for PolicyChange { policy, from, to, settings_changed } in &self.policies {
            let from = from.as_ref().map(tracing::field::display);
            let to = to.as_ref().map(tracing::field::display);
            tracing::info!(
                policy,
                origin,
                generation,
                from,
                to,
                settings_changed,
                "a policy was swapped"
            );
        }
    }

    /// The same of one that takes changes back.
    pub(super) fn log_rollback(&self) {
        let (generation, from_generation) = (self.generation, self.from);
        if self.is_nothing() {
            tracing::info!(generation, "this generation of policies is in place already");
        }
        for PolicyChange { policy, from, to, settings_changed } in &self.policies {
            let from = from.as_ref().map(tracing::field::display);
            let to = to.as_ref().map(tracing::field::display);
            tracing::warn!(
                policy,
                from_generation,
                generation,
                from,
                to,
                settings_changed,
                "a policy was rolled back"
            );
        }
    }
}

/// A policy does not load, and another one stays in its place.
pub(super) fn refused(failed: &LoadFailed, stays: Option<&PolicyVersion>, origin: ChangeOrigin) {
    let stays = stays.map(tracing::field::display);
    tracing::error!(
        policy = failed.policy, origin = origin.as_str(), %failed, stays,
        "a policy was not replaced: the one that was there stays"
    );
}
