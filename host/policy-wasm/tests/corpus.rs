//! Components of releases: whatever this host becomes, they load and decide as they did.

use std::fs;
use std::path::Path;
use std::time::Duration;

use interlock_policy_api::{Closing, Code, FailureKind, Phase, PlanProposal, Policy as _, Summary};
use interlock_policy_wasm::PolicyConfig;

mod common;
use common::{
    admit, admitted, config, corpus, count, facts, grants, load, rejected, summary, told,
};

#[test]
fn every_component_of_every_release_loads() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/corpus");
    let mut loaded = 0;
    for version in fs::read_dir(folder).expect("there is a corpus") {
        let version = version.expect("it can be read").path();
        for file in fs::read_dir(&version).into_iter().flatten() {
            let file = file.expect("it can be read").path();
            if file.extension().is_none_or(|extension| extension != "wasm") {
                continue;
            }
            let policy = load(&config("p", file.clone())).unwrap_or_else(|why| panic!("{why}"));
            let version = version.file_name().expect("a version").to_string_lossy();
            assert_eq!(policy.describe().wit, version, "{}", file.display());
            loaded += 1;
        }
    }
    assert!(loaded >= 2, "{loaded} components");
}

#[test]
fn a_policy_of_0_1_decides_as_it_did() {
    let given = PolicyConfig {
        grants: grants(&["headers:x-tenant"]),
        deadline: Duration::from_millis(100),
        ..config("p", corpus("0.1.0", "misbehaves"))
    };
    let policy = load(&given).expect("it is of a release");
    assert_eq!((policy.takes(Phase::Admit), policy.takes(Phase::Route)), (true, false));
    let admission = admitted(&*policy, "fine");
    assert_eq!(admission.proposal, PlanProposal::default());
    assert_eq!((admission.code, admission.watch), (Code::default(), None));
    let facts_then = rejected(&*policy, "repeat the facts");
    assert_eq!((facts_then.status, &*facts_then.reason.code.0), (418, "facts"));
    let said = facts_then.reason.detail.expect("that is its detail");
    assert!(said.contains(r#"headers: [("x-tenant", "blue")] }"#), "{said}");
    assert!(said.contains("LoadFacts { waiting: 1, max-waiting: 32, running: 2 }"), "{said}");
    assert_eq!(&*rejected(&*policy, "long detail").reason.code.0, "_ong__ode");
    assert_eq!(&*rejected(&*policy, "reject as a success").reason.code.0, "rejected");
    let failure = admit(&*policy, "zero timeouts").expect_err("nobody means that");
    assert_eq!(failure.kind, FailureKind::BadOutput);
    for (what, kind) in [
        ("panic", FailureKind::Trap),
        ("spin", FailureKind::Deadline),
        ("grow", FailureKind::Memory),
    ] {
        assert_eq!(admit(&*policy, what).expect_err(what).kind, kind);
    }
    assert_eq!((count(&*policy), count(&*policy)), (1, 2), "warm instances are used again");
    policy.account(told(&facts("fine")), &summary()).expect("nothing wrong with that");
}

#[test]
fn a_policy_of_0_1_is_not_told_of_what_0_1_did_not_have() {
    let policy = load(&config("p", corpus("0.1.0", "misbehaves"))).expect("it is of a release");
    let turned_away = Summary { closing: Closing::Rejected, ..summary() };
    let facts = facts("account:panic");
    policy.account(told(&facts), &turned_away).expect("it was not asked");
    policy.account(told(&facts), &summary()).expect_err("now it was");
    policy.forget(7, false);
}

#[test]
fn guard_of_0_1_shapes_plans() {
    let policy = load(&config("guard", corpus("0.1.0", "guard"))).expect("it is of a release");
    assert!(admitted(&*policy, "m").proposal.deadlines.total.is_some());
}
