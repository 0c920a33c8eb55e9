//! What each crate may know. The dependency graph is the proof that policies cannot reach the
//! engine or the device, and that HTTP, WebAssembly and MLX are each known in one place.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Names of the packages that `cargo tree` lists with these arguments, for this platform. Normal
/// and build dependencies only: a test may know more.
fn tree(arguments: &[&str]) -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--edges", "no-dev", "--prefix", "none"])
        .args(arguments)
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect()
}

/// All that a crate of ours depends on, directly or not.
fn reached_by(package: &str) -> BTreeSet<String> {
    tree(&["--package", package])
}

/// Our crates that depend on a package, directly or not.
fn who_reaches(package: &str) -> Vec<String> {
    let all = tree(&["--workspace", "--invert", package]);
    assert!(all.contains(package), "{package} is in the graph: {all:?}");
    let ours = |name: &String| name.starts_with("interlock-") && name != "interlock-tests";
    all.into_iter().filter(ours).collect()
}

#[test]
fn policies_reach_neither_the_engine_nor_the_models() {
    for of in ["interlock-policy-api", "interlock-policy-chain", "interlock-policy-wasm"] {
        let reached = reached_by(of);
        assert!(reached.contains("interlock-request"), "{of} is in the graph: {reached:?}");
        for never in ["interlock-engine", "interlock-models", "mlx-rs", "mlx-sys"] {
            assert!(!reached.contains(never), "{of} can reach {never}");
        }
    }
}

#[test]
fn only_models_and_the_binary_that_links_them_know_mlx() {
    assert_eq!(who_reaches("mlx-sys"), ["interlock-cli", "interlock-models"]);
}

#[test]
fn only_policy_and_those_who_configure_it_know_webassembly() {
    assert_eq!(
        who_reaches("wasmtime"),
        ["interlock-cli", "interlock-config", "interlock-policy-wasm"]
    );
}

#[test]
fn only_server_and_those_who_configure_it_know_http() {
    let known = who_reaches("axum");
    // The policy tools' simulation asks the routes of the server without sockets.
    let expected =
        ["interlock-cli", "interlock-config", "interlock-policy-tools", "interlock-server"];
    assert_eq!(known, expected);
}

#[test]
fn the_server_does_not_know_how_policies_run_and_the_engine_not_what_a_model_is() {
    let server = reached_by("interlock-server");
    assert!(server.contains("interlock-engine") && !server.contains("interlock-policy-wasm"));
    assert!(!server.contains("interlock-models"));
    let engine = reached_by("interlock-engine");
    assert!(engine.contains("interlock-policy-api") && !engine.contains("interlock-models"));
    // Of policies the engine knows what one that every policy has passed is, and not how it came so.
    assert!(!engine.contains("interlock-policy-chain"));
}

/// Rust has no way to let one other crate alone call something.
#[test]
fn only_the_policy_chain_admits_a_request() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut callers = BTreeSet::new();
    let mut folders = vec![root.join("host"), root.join("tests")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("it is there").flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|kind| kind == "rs")
                && fs::read_to_string(&path).expect("it is text").contains("Admitted::by_policies(")
            {
                let name = path.strip_prefix(&root).expect("it is inside");
                callers.insert(name.display().to_string());
            }
        }
    }
    // The second name is this file, which asks.
    let expected = ["host/policy-chain/src/review/admit.rs", "tests/agreement/dependencies.rs"];
    assert_eq!(callers, expected.map(str::to_owned).into());
}

#[test]
fn the_benchmark_knows_no_more_of_the_host_than_any_client() {
    let ours: Vec<String> = reached_by("interlock-bench")
        .into_iter()
        .filter(|name| name.starts_with("interlock-"))
        .collect();
    assert_eq!(ours, ["interlock-bench"]);
    assert_eq!(who_reaches("interlock-bench"), ["interlock-bench", "interlock-cli"]);
}

/// The code map of ARCHITECTURE.md has every crate of the host once, below all that it depends on.
#[test]
fn the_code_map_has_each_crate_below_those_that_it_depends_on() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let page = fs::read_to_string(root.join("ARCHITECTURE.md")).expect("it is there");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `host/"));
    let listed: Vec<&str> = rows.filter_map(|row| row.split('`').next()).collect();
    let folders = fs::read_dir(root.join("host")).expect("it is there").flatten();
    let crates: BTreeSet<String> = folders
        .filter(|folder| folder.path().join("Cargo.toml").exists())
        .map(|folder| folder.file_name().to_string_lossy().into_owned())
        .collect();
    assert_eq!(listed.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>(), crates);
    assert_eq!(listed.len(), crates.len(), "one is listed twice");
    for (at, name) in listed.iter().enumerate() {
        let manifest = root.join("host").join(name).join("Cargo.toml");
        let manifest = fs::read_to_string(manifest).expect("it is text");
        let (_, rest) = manifest.split_once("[dependencies]").unwrap_or_default();
        let needs = rest.split("\n[").next().unwrap_or_default().lines();
        for needed in needs.filter_map(|line| line.strip_prefix("interlock-")) {
            let needed = needed.split(['.', ' ', '=']).next().unwrap_or_default();
            assert!(listed[..at].contains(&needed), "{name} stands above {needed}, which it needs");
        }
    }
}
