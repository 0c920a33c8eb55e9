//! Two policies that mean different things by one metric are not loaded side by side, neither at
//! the start nor later.

use std::fs;

use interlock_policy_chain::{LimitsConfig, PolicyMetrics};
use interlock_policy_wasm::{PolicyConfig, PolicyManager, PolicySource, PolicyUpdate};

mod common;
use common::{config, grants, guest, host, settings};

/// The stream guard, with another name for its one metric. Both names are of one length, so nothing
/// else of the component changes.
fn stream_guard_that_counts(name: &str, file: &str) -> PolicyConfig {
    const ITS: &[u8] = b"matches_total";
    assert_eq!(name.len(), ITS.len());
    let mut bytes = fs::read(guest("stream-guard")).expect("it was built");
    let places: Vec<_> = bytes
        .windows(ITS.len())
        .enumerate()
        .filter(|(_, it)| *it == ITS)
        .map(|(at, _)| at)
        .collect();
    assert!(!places.is_empty(), "it declares its metric");
    for at in places {
        bytes[at..at + ITS.len()].copy_from_slice(name.as_bytes());
    }
    let path = std::env::temp_dir().join(format!("interlock-{}-{file}.wasm", std::process::id()));
    fs::write(&path, bytes).expect("there is room for a file");
    PolicyConfig {
        grants: grants(&["metrics"]),
        settings: settings(r#"{"patterns": [{"text": "Project Blue"}]}"#),
        ..config("watchman", path)
    }
}

fn quota() -> PolicyConfig {
    PolicyConfig {
        grants: grants(&["state", "metrics"]),
        settings: settings(r#"{"anonymous": "nobody"}"#),
        ..config("quota", guest("quota"))
    }
}

const SAYS: &str = "its metric \"refused_total\" has the labels pattern, action, and that of the \
                    policy \"quota\" has the labels tenant, limit; both would be shown as \
                    interlock_plugin_refused_total: make them alike, or rename one of them";

fn manager(configs: &[PolicyConfig]) -> Result<std::sync::Arc<PolicyManager>, String> {
    let (host, registry) = host();
    let ceilings = LimitsConfig::default().ceilings();
    let manager = PolicyManager::new(host, configs, ceilings, PolicyMetrics::register(&registry));
    manager.map_err(|failed| failed.iter().map(ToString::to_string).collect())
}

#[test]
fn a_metric_with_other_labels_stops_the_start_and_names_both_policies() {
    let other = stream_guard_that_counts("refused_total", "at-start");
    let why = manager(&[quota(), other]).expect_err("they contradict each other");
    assert!(why.starts_with("policy \"watchman\"") && why.contains(SAYS), "{why}");
}

#[test]
fn a_swap_to_a_metric_with_other_labels_changes_nothing() {
    let fine = stream_guard_that_counts("matches_total", "before");
    let manager = manager(&[quota(), fine]).expect("each has metrics of its own");
    let generation = manager.policies().current().generation();
    let PolicySource::File(other) = stream_guard_that_counts("refused_total", "after").source
    else {
        unreachable!("it is a file")
    };
    let change =
        PolicyUpdate { source: Some(PolicySource::File(other)), ..PolicyUpdate::default() };
    let why = manager.replace("watchman", change).expect_err("they contradict each other");
    assert!(why.to_string().contains(SAYS), "{why}");
    assert_eq!(manager.policies().current().generation(), generation);
}
