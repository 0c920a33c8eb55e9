//! What policies there are and were, for people and programs.

use interlock_policy_api::Policy as _;
use serde_json::{Value, json};

use super::PolicyManager;
use super::entries::ManagedPolicy;
use super::state::PolicyGeneration;
use crate::interfaces::interface_of;

impl PolicyManager {
    /// The policies that are in place, and the generations that can be gone back to, as JSON.
    pub fn list(&self) -> Value {
        let state = self.state();
        let generations = state.past.iter().chain([&state.now]).map(generation);
        json!({
            "generation": state.now.number,
            "policies": state.now.entries.iter().map(policy).collect::<Vec<_>>(),
            "generations": generations.collect::<Vec<_>>(),
        })
    }

    /// The policies that are in place, in a line.
    pub(super) fn versions(&self) -> String {
        let state = self.state();
        let version = |entry: &ManagedPolicy| format!("{} {}", entry.config.name, entry.version());
        state.now.entries.iter().map(version).collect::<Vec<_>>().join(", ")
    }
}

fn policy(entry: &ManagedPolicy) -> Value {
    let description = entry.policy.describe();
    let phases: Vec<_> = description.phases.iter().map(|p| interface_of(*p)).collect();
    json!({
        "name": entry.config.name,
        "source": entry.config.source.to_string(),
        "posted": entry.posted,
        "sha256": description.digest.as_str(),
        "itself": description.says.as_ref().map(|says| &says.name),
        "version": entry.policy.version(),
        "wit": description.wit,
        "phases": phases,
        "mode": entry.config.mode.to_string(),
        "grants": entry.config.grants,
        "quarantines": entry.policy.quarantines(),
        "loaded_at": humantime::format_rfc3339_seconds(entry.loaded_at).to_string(),
        "instead": entry.previous.as_ref().map(|p| p.describe().digest.as_str()),
    })
}

fn generation(generation: &PolicyGeneration) -> Value {
    let policy = |entry: &ManagedPolicy| {
        let version = entry.version();
        json!({
            "name": entry.config.name,
            "version": version.version,
            "sha256": version.sha256,
            "mode": version.mode,
            "posted": version.posted,
        })
    };
    json!({
        "generation": generation.number,
        "origin": generation.origin,
        "at": humantime::format_rfc3339_seconds(generation.at).to_string(),
        "policies": generation.entries.iter().map(policy).collect::<Vec<_>>(),
    })
}
