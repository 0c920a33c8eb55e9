//! The metric inventory equals what is declared. A difference is a change that users see: their
//! dashboards and alerts read these names. `UPDATE=1` rewrites the file.

use std::fmt::Write;
use std::path::Path;

use interlock_engine::EngineMetrics;
use interlock_log::LogMetrics;
use interlock_metrics::Registry;
use interlock_policy_chain::PolicyMetrics;
use interlock_policy_wasm::{PolicyHost, Services};
use interlock_server::{ServerMetrics, WorkMetrics};
use interlock_state::{State, StateConfig, StateMetrics};

#[test]
fn the_inventory_lists_every_family_as_it_is_declared() {
    let registry = Registry::new();
    EngineMetrics::register(&registry);
    LogMetrics::register(&registry);
    PolicyMetrics::register(&registry);
    ServerMetrics::register(&registry);
    WorkMetrics::register(&registry);
    StateMetrics::register(&registry);
    let state = State::open(&StateConfig::default()).expect("in memory");
    // Those of the host of policies are its own, and come with it.
    PolicyHost::with(Services { state, registry: &registry, cache: None }).expect("a host");
    let mut inventory = String::new();
    for family in registry.families() {
        let theirs = family.name.starts_with("interlock_plugin_");
        assert!(!theirs, "{}: what begins so is a policy's own", family.name);
        let labels = family.labels.join(",");
        writeln!(inventory, "{}{{{labels}}} {}", family.name, family.kind).expect("a string");
        writeln!(inventory, "    {}", family.help).expect("a string");
    }
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("agreement/metrics.txt");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&file, &inventory).expect("writes");
    }
    let written = std::fs::read_to_string(&file).expect("tests/agreement/metrics.txt");
    assert_eq!(written, inventory, "run `UPDATE=1 cargo test -p interlock-tests` and review");
}
