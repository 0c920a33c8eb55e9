//! A bad component stops the boot, in a sentence that says which one and why.
//!
//! What a toolchain would build is a guest; what none would is a text here.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use expect_test::{Expect, expect};
use interlock_policy_api::{Phase, Policy as _};
use interlock_policy_wasm::PolicyConfig;

mod common;
use common::{config, guest, load, misbehaves, settings};

/// A file that is gone when the test is.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str, bytes: &[u8]) -> Self {
        let path = env::temp_dir().join(format!("interlock-{}-{name}", std::process::id()));
        fs::write(&path, bytes).expect("there is room for a file");
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn check(config: &PolicyConfig, expected: Expect) {
    let failed = load(config).expect_err("it was loaded all the same").to_string();
    let file = config.source.to_string();
    let shown = Path::new(&file).file_name().map_or(file.clone(), |f| f.to_string_lossy().into());
    let shown = shown.replace(&format!("interlock-{}-", std::process::id()), "");
    expected.assert_eq(&failed.replace(&file, &shown));
}

fn check_bytes(name: &str, bytes: &[u8], expected: Expect) {
    let file = Scratch::new(name, bytes);
    check(&config("p", file.0.clone()), expected);
}

fn check_text(name: &str, text: &str, expected: Expect) {
    check_bytes(name, &wat::parse_str(text).expect("this is WebAssembly text"), expected);
}

#[test]
fn a_file_that_is_not_there() {
    check(
        &config("p", "nowhere.wasm".into()),
        expect![[
            r#"policy "p" (nowhere.wasm): cannot read the file: No such file or directory (os error 2)"#
        ]],
    );
}

#[test]
fn a_file_that_is_something_else() {
    check_bytes(
        "readme",
        b"# Policies\n",
        expect![[
            r#"policy "p" (readme): not a WebAssembly component: it is not WebAssembly at all"#
        ]],
    );
    check_bytes(
        "empty",
        b"",
        expect![[
            r#"policy "p" (empty): not a WebAssembly component: it is not WebAssembly at all"#
        ]],
    );
}

#[test]
fn a_core_module() {
    check_text(
        "core",
        "(module)",
        expect![[
            r#"policy "p" (core): not a WebAssembly component: it is a core module, as a compiler makes without wasm-component-ld; wit/README.md says how to build one"#
        ]],
    );
}

#[test]
fn half_a_component() {
    let whole = fs::read(guest("guest-mute")).unwrap();
    let half = Scratch::new("half", &whole[..whole.len() / 2]);
    let failed = load(&config("p", half.0.clone())).expect_err("half of it is missing");
    assert!(failed.to_string().contains("not a valid component: "), "{failed}");
}

#[test]
fn no_lifecycle() {
    let text = r#"(component (instance $i) (export "interlock:policy/admit@0.1.0" (instance $i)))"#;
    check_text(
        "no-lifecycle",
        text,
        expect![[
            r#"policy "p" (no-lifecycle): it does not export interlock:policy/lifecycle@0.1.0"#
        ]],
    );
}

#[test]
fn a_version_that_this_host_does_not_speak() {
    let exports =
        r#"(component (instance $i) (export "interlock:policy/lifecycle@0.3.0" (instance $i)))"#;
    check_text(
        "exports",
        exports,
        expect![[
            r#"policy "p" (exports): it exports interlock:policy/lifecycle@0.3.0; this host speaks interlock:policy@0.2.0 and 0.1.0: build it against one of them, or use the host that it was made for"#
        ]],
    );
    let imports = r#"(component (import "interlock:policy/log@1.0.0" (instance)))"#;
    check_text(
        "imports",
        imports,
        expect![[
            r#"policy "p" (imports): it imports interlock:policy/log@1.0.0; this host speaks interlock:policy@0.2.0 and 0.1.0: build it against one of them, or use the host that it was made for"#
        ]],
    );
}

#[test]
fn a_later_release_of_its_version_is_taken_for_what_it_is() {
    let text =
        r#"(component (instance $i) (export "interlock:policy/lifecycle@0.1.9" (instance $i)))"#;
    check_text(
        "patch",
        text,
        expect![[
            r#"policy "p" (patch): an interface is not what interlock:policy@0.1.0 says: instance export `interlock:policy/lifecycle@0.1.0` does not have export `init`"#
        ]],
    );
}

#[test]
fn a_phase_that_this_host_does_not_have() {
    let text = r#"(component (instance $i) (export "interlock:policy/route@0.1.0" (instance $i)))"#;
    check_text(
        "route",
        text,
        expect![[
            r#"policy "p" (route): it exports interlock:policy/route@0.1.0, a phase that this host does not have; those of 0.2 are lifecycle, identify, transform, route, admit, stream-guard, events and account, those of 0.1 lifecycle, admit and account"#
        ]],
    );
}

#[test]
fn an_interface_with_other_functions() {
    let empty =
        r#"(component (instance $i) (export "interlock:policy/lifecycle@0.1.0" (instance $i)))"#;
    check_text(
        "empty",
        empty,
        expect![[
            r#"policy "p" (empty): an interface is not what interlock:policy@0.1.0 says: instance export `interlock:policy/lifecycle@0.1.0` does not have export `init`"#
        ]],
    );
    let import = r#"(component
        (import "interlock:policy/log@0.1.0" (instance (export "shout" (func))))
        (instance $i) (export "interlock:policy/lifecycle@0.1.0" (instance $i)))"#;
    check_text(
        "import",
        import,
        expect![[
            r#"policy "p" (import): an interface is not what interlock:policy@0.1.0 says: component imports instance `interlock:policy/log@0.1.0`, but a matching implementation was not found in the linker: instance export `shout` has the wrong type: function implementation is missing"#
        ]],
    );
}

#[test]
fn imports_that_are_not_offered() {
    let text = r#"(component
        (import "interlock:policy/clock@0.2.0" (instance))
        (import "wasi:cli/environment@0.2.6" (instance (export "get" (func)))))"#;
    check_text(
        "curious",
        text,
        expect![[
            r#"policy "p" (curious): it imports interlock:policy/clock@0.2.0 and wasi:cli/environment@0.2.6, which this host does not offer; a policy of interlock:policy@0.2.0 can import log, metrics, state, content and http, and nothing of WASI: build it for wasm32-unknown-unknown, or stub WASI out"#
        ]],
    );
    let old = r#"(component (import "interlock:policy/state@0.1.0" (instance)))"#;
    check_text(
        "old",
        old,
        expect![[
            r#"policy "p" (old): it imports interlock:policy/state@0.1.0, which this host does not offer; a policy of interlock:policy@0.2.0 can import log, metrics, state, content and http, and nothing of WASI: build it for wasm32-unknown-unknown, or stub WASI out"#
        ]],
    );
}

#[test]
fn two_versions_at_once() {
    let text = r#"(component
        (import "interlock:policy/log@0.1.0" (instance))
        (instance $i) (export "interlock:policy/lifecycle@0.2.0" (instance $i)))"#;
    check_text(
        "both",
        text,
        expect![[
            r#"policy "p" (both): it speaks two versions of interlock:policy, interlock:policy/log@0.1.0 and interlock:policy/lifecycle@0.2.0: build it against one"#
        ]],
    );
}

#[test]
fn functions_of_other_types() {
    let text = r#"(component
        (core module $m (func (export "init") (result i32) i32.const 0))
        (core instance $m (instantiate $m))
        (func $init (result u32) (canon lift (core func $m "init")))
        (instance $i (export "init" (func $init)))
        (export "interlock:policy/lifecycle@0.2.0" (instance $i)))"#;
    check_text(
        "types",
        text,
        expect![[
            r#"policy "p" (types): an interface is not what interlock:policy@0.2.0 says: failed to convert function to given type: type mismatch with parameters: expected 1-tuple, found 0-tuple"#
        ]],
    );
}

#[test]
fn settings_that_it_does_not_accept() {
    let mut policy = misbehaves();
    policy.settings = settings(r#"{"init": "refuse"}"#);
    check(
        &policy,
        expect![[
            r#"policy "p" (guest-misbehaves.wasm): it does not accept its settings: init must be anything but "refuse""#
        ]],
    );
    policy.settings = settings(r#"{"intt": "fine"}"#);
    check(
        &policy,
        expect![[
            r#"policy "p" (guest-misbehaves.wasm): it does not accept its settings: unknown field `intt`, expected `init`"#
        ]],
    );
    let mut guard = interlock_policy_wasm::default_policies().remove(0);
    guard.settings = settings(r#"{"queue": {"base": "soon"}}"#);
    check(
        &guard,
        expect![[
            r#"policy "guard" (builtin:guard): it does not accept its settings: a time is written like 250ms, 30s or 1m 30s, got "soon""#
        ]],
    );
}

#[test]
fn a_panic_while_it_starts() {
    let mut policy = misbehaves();
    policy.settings = settings(r#"{"init": "panic"}"#);
    let failed = load(&policy).expect_err("it panicked").to_string();
    assert!(failed.contains("it failed to start: trap: wasm trap: wasm `unreachable`"), "{failed}");
    assert!(failed.contains(r"this policy panics\nover two lines"), "{failed}");
}

#[test]
fn a_loop_while_it_starts() {
    let mut policy = misbehaves();
    policy.settings = settings(r#"{"init": "spin"}"#);
    let failed = load(&policy).expect_err("it never ends").to_string();
    assert!(failed.contains("it failed to start: deadline: stopped after"), "{failed}");
}

#[test]
fn more_memory_than_it_may_have_from_the_start() {
    let mut policy = misbehaves();
    policy.memory_max = "512KiB".parse().unwrap();
    check(
        &policy,
        expect![[
            r#"policy "p" (guest-misbehaves.wasm): it failed to start: memory: it asked for 1114112 bytes of memory, 524288 are allowed"#
        ]],
    );
}

#[test]
fn a_configuration_with_problems() {
    let mut policy = misbehaves();
    policy.deadline = std::time::Duration::ZERO;
    check(
        &policy,
        expect![[
            r#"policy "p" (guest-misbehaves.wasm): policy.deadline of "p" must be 1ms to 1s, got 0ns"#
        ]],
    );
}

#[test]
fn a_policy_takes_part_in_what_it_exports() {
    let takes = |config: &PolicyConfig| {
        let policy = load(config).expect("it is fine");
        (policy.describe().phases.clone(), policy.version().to_owned())
    };
    assert_eq!(takes(&misbehaves()), (vec![Phase::Admit, Phase::Account], "9.9.9".into()));
    assert_eq!(takes(&config("p", guest("guest-mute"))), (vec![], "1.0.0".into()));
    let (phases, _) = takes(&interlock_policy_wasm::default_policies()[0]);
    assert!(phases.contains(&Phase::Admit), "{phases:?}");
}
