//! Puts the first-party policies where `include_bytes!` finds them.
//!
//! They are built beforehand, by `make guests` (part of `make setup`), not from here: that needs
//! another target's standard library, and a build script that starts a second cargo waits for
//! locks that the first one holds.

use std::env;
use std::fs;
use std::path::PathBuf;

const BUILTINS: [&str; 4] = ["guard", "quota", "router", "stream-guard"];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let from_cargo = |key: &str| PathBuf::from(env::var_os(key).expect("cargo sets it"));
    for name in BUILTINS {
        let file = format!("{name}.wasm");
        let built = from_cargo("CARGO_MANIFEST_DIR").join("../../target/guests").join(&file);
        println!("cargo::rerun-if-changed={}", built.display());
        if let Err(why) = fs::copy(&built, from_cargo("OUT_DIR").join(file)) {
            let built = built.display();
            println!("cargo::error=the policy {built} is not there ({why}): run `make setup`");
        }
    }
}
