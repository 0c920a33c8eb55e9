//! Policies by their file, requests by their model's name.

#![allow(dead_code, reason = "each test file uses its share")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use interlock_admission::{Decision, Facts, Load, Policy, PolicyFailure, Rejection, Summary};
use interlock_policy::{LoadFailed, PolicyConfig, PolicyHost, PolicySource};
use interlock_request::{Endpoint, Finish, ModelId, Outcome, RequestId, Usage};

/// A component that `make guests` built.
pub(crate) fn guest(name: &str) -> PathBuf {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../target/guests/{name}.wasm"));
    assert!(path.exists(), "{} is not there: run `make setup`", path.display());
    path
}

pub(crate) fn config(name: &str, source: PathBuf) -> PolicyConfig {
    PolicyConfig::new(name, PolicySource::File(source))
}

/// The guest that does what a request's model is called.
pub(crate) fn misbehaves() -> PolicyConfig {
    config("p", guest("guest-misbehaves"))
}

pub(crate) fn load(config: &PolicyConfig) -> Result<Arc<dyn Policy>, LoadFailed> {
    PolicyHost::new().expect("WebAssembly works here").load(config)
}

pub(crate) fn settings(json: &str) -> serde_json::Map<String, serde_json::Value> {
    serde_json::from_str(json).expect("these are settings")
}

pub(crate) fn facts(model: &str) -> Facts {
    Facts {
        request_id: RequestId::parse("r-1").expect("an id"),
        arrived_at_micros: 1_700_000_000_000_000,
        endpoint: Endpoint::Chat,
        model: ModelId::new(model),
        streaming: true,
        prompt_tokens: 100,
        tokens_max: 50,
        tokens_max_asked: true,
        body_bytes: 512,
        headers: vec![("x-tenant".into(), "blue".into())],
    }
}

pub(crate) fn summary() -> Summary {
    Summary {
        outcome: Outcome::Completed(Finish::Stop),
        usage: Usage { prompt_tokens: 100, cached_tokens: 0, generated_tokens: 7 },
        queue_time: Some(Duration::from_millis(3)),
        time_to_first_token: None,
        total: Duration::from_secs(2),
    }
}

pub(crate) fn admit(policy: &dyn Policy, model: &str) -> Result<Decision, PolicyFailure> {
    policy.admit(&facts(model), &Load { waiting: 1, waiting_max: 32, running: 2 })
}

pub(crate) fn rejected(policy: &dyn Policy, model: &str) -> Rejection {
    match admit(policy, model) {
        Ok(Decision::Reject(rejection)) => rejection,
        other => panic!("{model:?} was not rejected: {other:?}"),
    }
}

/// How often the instance that answers was asked before and now.
pub(crate) fn count(policy: &dyn Policy) -> u128 {
    match admit(policy, "count") {
        Ok(Decision::Admit(plan)) => plan.deadlines.total.expect("it counts").as_micros(),
        other => panic!("it does not count: {other:?}"),
    }
}
