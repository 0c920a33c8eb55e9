//! Policies by their file, requests by their model's name.

#![allow(dead_code, reason = "each test file uses its share")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use interlock_metrics::Registry;
use interlock_policy_api::{
    Admission, Body, Caller, Candidate, Decision, Facts, Headers, Identity, Load, Policy,
    PolicyFailure, Rejection, RequestContext, Summary,
};
use interlock_policy_wasm::{
    Grant, LoadFailed, PolicyConfig, PolicyHost, PolicySource, Services, WasmPolicy,
};
use interlock_request::{Endpoint, Finish, ModelId, Outcome, RequestId, Usage};
use interlock_state::State;

/// A component that `make guests` built.
pub(crate) fn guest(name: &str) -> PathBuf {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../target/guests/{name}.wasm"));
    assert!(path.exists(), "{} is not there: run `make setup`", path.display());
    path
}

/// A component of a release.
pub(crate) fn corpus(version: &str, name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../tests/corpus/{version}/{name}.wasm"))
}

/// A policy that is asked however often it fails.
pub(crate) fn config(name: &str, source: PathBuf) -> PolicyConfig {
    PolicyConfig { crash_budget: 0, ..PolicyConfig::new(name, PolicySource::File(source)) }
}

/// The guest that does what a request's model is called.
pub(crate) fn misbehaves() -> PolicyConfig {
    config("p", guest("guest-misbehaves"))
}

pub(crate) fn load(config: &PolicyConfig) -> Result<Arc<WasmPolicy>, LoadFailed> {
    PolicyHost::new().expect("WebAssembly works here").load(config)
}

/// A host whose metrics can be read.
pub(crate) fn host() -> (PolicyHost, Registry) {
    let registry = Registry::new();
    let services = Services { state: State::memory(), registry: &registry, cache: None };
    (PolicyHost::with(services).expect("WebAssembly works here"), registry)
}

pub(crate) fn grants(grants: &[&str]) -> Vec<Grant> {
    grants.iter().map(|grant| grant.parse().expect("a grant")).collect()
}

/// The lines of the metrics that have something to say, without times and zeroes.
pub(crate) fn metrics(registry: &Registry, of: &str) -> String {
    let text = registry.expose().expect("it can be read");
    let told = |line: &&str| line.starts_with(of) && !line.ends_with(" 0");
    let mut lines: Vec<_> = text.lines().filter(told).collect();
    lines.sort_unstable();
    lines.join("\n")
}

pub(crate) fn settings(json: &str) -> serde_json::Map<String, serde_json::Value> {
    serde_json::from_str(json).expect("these are settings")
}

pub(crate) fn facts(model: &str) -> Facts {
    Facts {
        serial: 7,
        request_id: RequestId::parse("r-1").expect("an id"),
        arrived_at_micros: 1_700_000_000_000_000,
        endpoint: Endpoint::Chat,
        model: ModelId::new(model),
        streaming: true,
        background: false,
        prompt_tokens: 100,
        tokens_max: 50,
        tokens_max_asked: true,
        body_bytes: 512,
        prefix_key: 42,
        identity: Identity {
            tenant: "blue".into(),
            priority: None,
            attributes: vec![("plan".into(), "gold".into())],
        },
        headers: Headers(vec![
            ("x-tenant".into(), "blue".into()),
            ("x-secret".into(), "not for everyone".into()),
        ]),
    }
}

pub(crate) fn caller(address: &str) -> Caller {
    Caller {
        serial: 7,
        request_id: RequestId::parse("r-1").expect("an id"),
        arrived_at_micros: 1_700_000_000_000_000,
        endpoint: Endpoint::Chat,
        credential: String::new(),
        address: address.into(),
        headers: Headers(vec![("x-tenant".into(), "blue".into())]),
        looks_up: false,
    }
}

pub(crate) fn candidate(id: u32, model: &str) -> Candidate {
    Candidate {
        id,
        model: ModelId::new(model),
        asked: id == 0,
        ready: true,
        context: 4096,
        load: Load { waiting: id, waiting_max: 32, running: 2, running_max: 8 },
        prefix_seen: false,
        first_token: Some(Duration::from_millis(20)),
        inter_token: None,
    }
}

pub(crate) const LOAD: Load = Load { waiting: 1, waiting_max: 32, running: 2, running_max: 8 };

pub(crate) fn body() -> Body {
    Body::new(br#"{"model":"m","messages":[{"content":"hi"}],"temperature":1}"#.to_vec())
}

pub(crate) fn summary() -> Summary {
    Summary {
        closing: Outcome::Completed(Finish::Stop).into(),
        usage: Usage { prompt_tokens: 100, cached_tokens: 60, generated_tokens: 7 },
        queue_time: Some(Duration::from_millis(3)),
        time_to_first_token: None,
        total: Duration::from_secs(2),
    }
}

pub(crate) fn told(facts: &Facts) -> RequestContext<'_> {
    RequestContext { facts, note: "" }
}

pub(crate) fn admit(policy: &dyn Policy, model: &str) -> Result<Decision, PolicyFailure> {
    policy.admit(&facts(model), &LOAD, 3, &body())
}

pub(crate) fn admitted(policy: &dyn Policy, model: &str) -> Admission {
    match admit(policy, model) {
        Ok(Decision::Admit(admission)) => admission,
        other => panic!("{model:?} was not admitted: {other:?}"),
    }
}

pub(crate) fn rejected(policy: &dyn Policy, model: &str) -> Rejection {
    match admit(policy, model) {
        Ok(Decision::Reject(rejection)) => rejection,
        other => panic!("{model:?} was not rejected: {other:?}"),
    }
}

/// How often the instance that answers was asked before and now.
pub(crate) fn count(policy: &dyn Policy) -> u128 {
    admitted(policy, "count").proposal.deadlines.total.expect("it counts").as_micros()
}
