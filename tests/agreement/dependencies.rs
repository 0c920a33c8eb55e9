//! What each crate may know. The dependency graph is the proof that policies cannot reach the
//! engine or the device, and that HTTP, WebAssembly and MLX are each known in one place.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

/// Every package of the workspace's build, with all that it depends on, directly or not. Only
/// normal and build dependencies: a test may know more.
fn reachable() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--offline"])
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let text = |value: &serde_json::Value| value.as_str().expect("a string").to_owned();
    let list = |value: &serde_json::Value| value.as_array().expect("a list").clone();

    let names: BTreeMap<String, String> =
        list(&metadata["packages"]).iter().map(|p| (text(&p["id"]), text(&p["name"]))).collect();
    let direct: BTreeMap<String, Vec<String>> = list(&metadata["resolve"]["nodes"])
        .iter()
        .map(|node| {
            let needed = list(&node["deps"])
                .iter()
                .filter(|dep| list(&dep["dep_kinds"]).iter().any(|kind| kind["kind"] != "dev"))
                .map(|dep| text(&dep["pkg"]))
                .collect();
            (text(&node["id"]), needed)
        })
        .collect();
    names
        .iter()
        .filter(|(_, name)| name.starts_with("interlock-"))
        .map(|(id, name)| {
            let (mut seen, mut todo) = (BTreeSet::new(), vec![id]);
            while let Some(id) = todo.pop() {
                for needed in &direct[id] {
                    if seen.insert(names[needed].clone()) {
                        todo.push(needed);
                    }
                }
            }
            (name.clone(), seen)
        })
        .collect()
}

fn who_reaches(target: &str) -> Vec<String> {
    let graph = reachable();
    assert!(graph.len() > 10, "the graph has our crates in it: {:?}", graph.keys());
    graph.into_iter().filter(|(_, all)| all.contains(target)).map(|(name, _)| name).collect()
}

#[test]
fn policies_reach_neither_the_engine_nor_the_models() {
    let graph = reachable();
    for of in ["interlock-policy", "interlock-admission"] {
        for never in ["interlock-engine", "interlock-models", "mlx-rs", "mlx-sys"] {
            assert!(!graph[of].contains(never), "{of} can reach {never}");
        }
    }
}

#[test]
fn only_models_and_the_binary_that_links_them_know_mlx() {
    assert_eq!(who_reaches("mlx-sys"), ["interlock-cli", "interlock-models"]);
}

#[test]
fn only_policy_and_those_who_configure_it_know_webassembly() {
    assert_eq!(who_reaches("wasmtime"), ["interlock-cli", "interlock-config", "interlock-policy"]);
}

#[test]
fn only_server_and_those_who_configure_it_know_http() {
    assert_eq!(who_reaches("axum"), ["interlock-cli", "interlock-config", "interlock-server"]);
}

#[test]
fn the_server_does_not_know_how_policies_run_and_the_engine_not_what_a_model_is() {
    let graph = reachable();
    assert!(!graph["interlock-server"].contains("interlock-policy"));
    assert!(!graph["interlock-server"].contains("interlock-models"));
    assert!(!graph["interlock-engine"].contains("interlock-models"));
}
