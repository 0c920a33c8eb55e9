//! What policies there are and were, for people and programs.

use interlock_policy_api::Policy as _;
use serde_json::{Value, json};

use super::{Entry, Generation, Keeper};
use crate::fit::interface_of;

impl Keeper {
    /// The policies that are in place, and the generations that can be gone back to, as JSON.
    pub fn list(&self) -> Value {
        let book = self.book();
        let generations = book.past.iter().chain([&book.now]).map(generation);
        json!({
            "generation": book.now.number,
            "policies": book.now.entries.iter().map(policy).collect::<Vec<_>>(),
            "generations": generations.collect::<Vec<_>>(),
        })
    }

    /// The policies that are in place, in a line.
    pub(super) fn versions(&self) -> String {
        let book = self.book();
        let version = |entry: &Entry| format!("{} {}", entry.config.name, entry.version());
        book.now.entries.iter().map(version).collect::<Vec<_>>().join(", ")
    }
}

fn policy(entry: &Entry) -> Value {
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

fn generation(generation: &Generation) -> Value {
    let policy = |entry: &Entry| {
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
