//! Changes that meet each other.

use std::sync::atomic::Ordering;
use std::thread;

use interlock_metrics::Registry;
use interlock_policy_chain::{LimitsConfig, PolicyMetrics};

use super::*;

fn guest(name: &str) -> PolicySource {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/guests");
    PolicySource::File(folder.join(format!("{name}.wasm")))
}

fn manager() -> Arc<PolicyManager> {
    let first = PolicyConfig { crash_budget: 1, ..PolicyConfig::new("p", guest("guest-mute")) };
    let registry = Registry::new();
    let metrics = PolicyMetrics::register(&registry);
    let host = PolicyHost::new().expect("WebAssembly works here");
    let ceilings = LimitsConfig::default().ceilings();
    PolicyManager::new(host, &[first], ceilings, metrics).expect("it is fine")
}

/// SIGHUP comes while a swap is under way that has changed nothing yet.
#[test]
fn a_reload_that_waits_for_a_swap_keeps_what_it_changed() {
    let manager = manager();
    let swapping = manager.changing();
    let asked = || manager.asked.load(Ordering::SeqCst);
    thread::scope(|scope| {
        let reload = scope.spawn(|| manager.reload());
        // What it reads before its turn, it has read now.
        while asked() < 2 {
            thread::yield_now();
        }
        let shadow = PolicyUpdate { mode: Some(PolicyMode::Shadow), ..PolicyUpdate::default() };
        let entry = manager.changed(&swapping.entries[0], shadow, None).expect("it is fine");
        manager.swap(vec![entry], ChangeOrigin::Admin);
        drop(swapping);
        let reloaded = reload.join().expect("no panic").expect("it is fine");
        assert!(reloaded.policies.is_empty(), "{reloaded:?}");
    });
    assert_eq!(manager.state().now.entries[0].config.mode, PolicyMode::Shadow);
}

/// The manager saw that a policy had failed, and waited for the operator, who was replacing it.
#[test]
fn what_put_it_right_is_not_taken_back() {
    let manager = manager();
    let replace = |settings: &str| {
        let source = Some(guest("guest-misbehaves"));
        let settings = serde_json::from_str(settings).expect("it is JSON");
        let change = PolicyUpdate { source, settings: Some(settings), ..PolicyUpdate::default() };
        manager.replace("p", change).expect("it is fine so far").generation
    };
    replace("{}");
    let fail = || {
        let policy = Arc::clone(&manager.state().now.entries[0].policy);
        policy.fail();
        assert!(manager.state().probation[0].failed());
    };
    fail();
    let fixed = replace(r#"{"init": "still fine"}"#);
    // It was here that it waited.
    manager.roll_back_failed();
    assert_eq!(manager.policies.current().generation(), fixed);
    fail();
    manager.roll_back_failed();
    assert_eq!(manager.policies.current().generation(), fixed - 1);
}
