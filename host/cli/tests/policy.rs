//! An author's afternoon: a policy is made, built, checked, tested, simulated and measured, by
//! nothing but the commands that the template names.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

struct Desk(PathBuf);

impl Desk {
    fn new() -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("afternoon");
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).expect("there is room");
        Self(folder)
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Output {
        let mut command = common::program(program);
        // An author's settings for other builds are not ours either.
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy();
            let build =
                ["RUSTFLAGS", "RUSTDOCFLAGS", "CARGO_TARGET_DIR", "CARGO_ENCODED_RUSTFLAGS"];
            if name.starts_with("CARGO_BUILD_") || build.contains(&&*name) {
                command.env_remove(&*name);
            }
        }
        command
            .args(arguments)
            .current_dir(&self.0)
            .env("INTERLOCK", env!("CARGO_BIN_EXE_interlock"))
            .env("CARGO_NET_OFFLINE", "true")
            .output()
            .expect(program)
    }

    fn interlock(&self, arguments: &[&str]) -> (i32, String) {
        let output = self.run(env!("CARGO_BIN_EXE_interlock"), arguments);
        let both = [output.stdout, output.stderr].concat();
        let text = String::from_utf8(both).expect("it speaks UTF-8");
        (output.status.code().expect("it ends by itself"), text)
    }
}

#[test]
fn an_afternoon() {
    let mut desk = Desk::new();
    let clone = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let clone = clone.to_str().expect("a path in UTF-8");
    let (status, said) = desk.interlock(&["policy", "new", "night-shift", "--clone", clone]);
    assert_eq!(status, 0, "{said}");
    desk.0.push("night-shift");

    let built = desk.run("make", &[]);
    let said = String::from_utf8_lossy(&built.stderr).into_owned();
    assert!(built.status.success(), "{}{said}", String::from_utf8_lossy(&built.stdout));

    let (status, said) = desk.interlock(&["policy", "check", "night-shift.wasm"]);
    assert_eq!(status, 1, "{said}");
    assert!(said.contains("grants = [\"state\", \"headers:x-tenant\"]"), "{said}");
    let with_config = ["policy", "check", "night-shift.wasm", "--config", "interlock.toml"];
    let (status, said) = desk.interlock(&with_config);
    assert_eq!(status, 0, "{said}");

    let (status, said) = desk.interlock(&["policy", "test", "night-shift.wasm", "cases.toml"]);
    assert_eq!(status, 0, "{said}");
    assert!(said.contains("4 cases, all as expected"), "{said}");

    // A rule that no longer holds is found, and shown.
    let cases = fs::read_to_string(desk.0.join("cases.toml")).expect("it is there");
    fs::write(desk.0.join("other.toml"), cases.replace("413", "429")).expect("it can be written");
    let (status, said) = desk.interlock(&["policy", "test", "night-shift.wasm", "other.toml"]);
    assert_eq!(status, 1, "{said}");
    assert!(said.contains("- 429") && said.contains("+ 413"), "{said}");

    let sim = ["policy", "sim", "--config", "interlock.toml", "workload.toml", "--json"];
    let (status, said) = desk.interlock(&sim);
    assert_eq!(status, 0, "{said}");
    assert_eq!(desk.interlock(&sim).1, said, "the same seed is the same day");
    let report: serde_json::Value = serde_json::from_str(&said).expect("it is JSON");
    let refused = |report: &serde_json::Value| report["tenants"][0]["refused"].as_u64();
    assert!(refused(&report) > Some(50), "{said}");

    let (status, said) = desk.interlock(&["policy", "inspect", "night-shift.wasm", "--json"]);
    assert_eq!(status, 0, "{said}");
    let facts: serde_json::Value = serde_json::from_str(&said).expect("it is JSON");
    assert_eq!(facts["reasons"][1], "too_many_requests");

    let bench = ["policy", "bench", "night-shift.wasm", "--calls", "100", "--json"];
    let (status, said) = desk.interlock(&bench);
    assert_eq!(status, 0, "{said}");
}

/// A file of cases with settings of its own.
fn cases(name: &str) -> String {
    let cases = r#"
        settings = { tenants = {}, anonymous = "all", limits = { requests_per_minute = 1 } }
        [[case]]
        name = "one a minute"
        step = [{ expect = { decision = "admit" } }, { expect = { decision = "reject" } }]
    "#;
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::write(&path, cases).expect("there is room");
    path.to_str().expect("a path in UTF-8").to_owned()
}

#[test]
fn settings_of_the_command_line_go_before_those_of_the_cases_and_it_says_so() {
    let (desk, cases) = (Desk(std::env::temp_dir()), cases("wins.toml"));
    let (status, said) = desk.interlock(&["policy", "test", "builtin:quota", &cases]);
    assert_eq!(status, 0, "{said}");
    let more = r#"{"limits": {"requests_per_minute": 2}}"#;
    let with = ["policy", "test", "builtin:quota", &cases, "--settings", more];
    let (status, said) = desk.interlock(&with);
    assert_eq!(status, 1, "two a minute now: {said}");
    assert!(said.contains("wins.toml sets limits too; --settings wins"), "{said}");
}

#[test]
fn a_component_that_is_not_there_is_no_failed_case() {
    let (desk, cases) = (Desk(std::env::temp_dir()), cases("absent.toml"));
    for (component, part) in
        [("no-such.wasm", "no-such.wasm"), ("/dev/null", "/dev/null"), ("builtin:no", "builtin:no")]
    {
        let (status, said) = desk.interlock(&["policy", "test", component, &cases]);
        assert_eq!(status, 2, "{component}: {said}");
        assert!(said.contains(part) && !said.contains("FAILED"), "{component}: {said}");
    }
}

#[test]
fn what_makes_no_sense_is_said_in_a_sentence() {
    let desk = Desk(std::env::temp_dir());
    for (arguments, status, part) in [
        (vec!["policy", "new", "Night"], 2, "a policy's name begins with a lower-case letter"),
        (vec!["policy", "check", "no-such.wasm"], 1, "no-such.wasm"),
        (vec!["policy", "check", "builtin:nobody"], 1, "nobody"),
        (vec!["policy", "test", "builtin:guard", "no-such.toml"], 2, "cannot read no-such.toml"),
        (vec!["policy", "check", "a.wasm", "--grant", "stat"], 2, "a grant is"),
    ] {
        let (ended, said) = desk.interlock(&arguments);
        assert_eq!(ended, status, "{arguments:?}: {said}");
        assert!(said.contains(part), "{arguments:?}: {said}");
    }
}
