//! Policies in other languages: what `make guests-languages` built decides as its README says, with
//! the settings and within the limits of the interlock.toml beside it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use interlock_metrics::Registry;
use interlock_policy_api::{
    Body, Decision, Facts, Headers, Identity, Load, Phase, Policy, RequestContext, Summary,
};
use interlock_policy_wasm::{PolicyConfig, PolicyHost, PolicySource, Services, WasmPolicy};
use interlock_request::{Endpoint, Finish, ModelId, Outcome, Priority, RequestId, Usage};
use serde::Deserialize;

/// An interlock.toml of which the policies are read.
#[derive(Deserialize)]
struct Configured {
    policy: Vec<PolicyConfig>,
}

/// The policy of a name, as the example's configuration has it.
fn load(example: &str, name: &str, registry: &Registry) -> Arc<WasmPolicy> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let file = root.join("examples").join(example).join("interlock.toml");
    let text = std::fs::read_to_string(file).expect("each example has a configuration");
    let configured: Configured = toml::from_str(&text).expect("it is one of this host");
    let mut config = configured.policy.into_iter().find(|policy| policy.name == name).expect(name);
    let PolicySource::File(path) = &config.source else { panic!("{name} is no file") };
    let path = root.join(path);
    assert!(path.exists(), "{} is not there: run `make guests-languages`", path.display());
    config.source = PolicySource::File(path);
    // Compiling a Python takes a minute in a debug build: once, and not at every test.
    let cache = Some(root.join("target/policy-cache"));
    let services = Services { state: interlock_state::State::memory(), registry, cache };
    let host = PolicyHost::with(services).expect("WebAssembly works here");
    host.load(&config).expect("it fits this host, without WASI")
}

/// 10:30 on a Monday, in a time zone one hour east of Greenwich.
const MONDAY: u64 = 1_795_426_200_000_000;
const HOUR: u64 = 3_600_000_000;

fn facts(prompt_tokens: u32) -> Facts {
    Facts {
        serial: 1,
        request_id: RequestId::parse("r-1").expect("an id"),
        arrived_at_micros: MONDAY,
        endpoint: Endpoint::Chat,
        model: ModelId::new("smollm2-135m-instruct"),
        streaming: true,
        background: false,
        prompt_tokens,
        tokens_max: 4000,
        tokens_max_asked: false,
        body_bytes: 512,
        // The largest numbers that there are must get through, in JavaScript too.
        prefix_key: u64::MAX,
        identity: Identity { tenant: "blue".into(), ..Identity::default() },
        headers: Headers::default(),
    }
}

#[test]
fn javascript_makes_large_requests_wait_for_the_evening() {
    let policy = load("javascript", "office-hours", &Registry::new());
    assert!(policy.takes(Phase::Admit) && !policy.takes(Phase::Account));
    assert_eq!(policy.headers(), ["x-job"]);
    let admit = |facts: &Facts| {
        let load = Load { waiting: 1, waiting_max: 32, running: 2, running_max: 8 };
        policy.admit(facts, &load, 0, &Body::new(Vec::new())).expect("it decides")
    };
    let code = |facts: &Facts| match admit(facts) {
        Decision::Admit(admission) => (admission.code.0.to_string(), admission.proposal.priority),
        Decision::Reject(rejection) => panic!("turned away: {rejection:?}"),
    };

    assert_eq!(code(&facts(8000)), ("small".into(), None));
    let Decision::Reject(rejection) = admit(&facts(8001)) else { panic!("it was let in") };
    assert_eq!(
        (rejection.status, rejection.reason.code.0.to_string()),
        (429, "too_large_in_hours".into())
    );
    assert_eq!(rejection.retry_after, Some(Duration::from_secs(7 * 3600 + 1800)));
    let detail = rejection.reason.detail.expect("it says why");
    assert!(detail.contains("needs 8001 tokens; until 18:00 at most 8000"), "{detail}");

    let evening = Facts { arrived_at_micros: MONDAY + 8 * HOUR, ..facts(8001) };
    assert_eq!(code(&evening), ("after_hours".into(), None));
    let batch = Headers(vec![("x-job".into(), "batch".into())]);
    let batch = Facts { headers: batch, ..facts(8001) };
    assert_eq!(code(&batch), ("batch_job".into(), Some(Priority::Batch)));
    let exempt = Identity { tenant: "operations".into(), ..Identity::default() };
    assert_eq!(code(&Facts { identity: exempt, ..facts(8001) }), ("exempt".into(), None));
}

#[test]
fn python_counts_what_requests_cost() {
    let registry = Registry::new();
    let policy = load("python", "showback", &registry);
    assert!(policy.takes(Phase::Account) && !policy.takes(Phase::Admit));
    let summary = Summary {
        closing: Outcome::Completed(Finish::Stop).into(),
        usage: Usage {
            prompt_tokens: 1_000_000,
            cached_tokens: 500_000,
            generated_tokens: 250_000,
        },
        queue_time: Some(Duration::from_millis(3)),
        time_to_first_token: None,
        total: Duration::from_secs(2),
    };
    for tenant in ["blue", "blue", ""] {
        let identity = Identity { tenant: tenant.into(), ..Identity::default() };
        let facts = Facts { identity, ..facts(100) };
        policy.account(RequestContext { facts: &facts, note: "" }, &summary).expect("it counts");
    }

    let exposed = registry.expose().expect("metrics are text");
    let mut spent: Vec<&str> =
        exposed.lines().filter(|line| line.starts_with("interlock_plugin_")).collect();
    spent.sort_unstable();
    // 0.5 M tokens at 0.01, as many at 0.002, 0.25 M at 0.04.
    assert_eq!(
        spent,
        [
            r#"interlock_plugin_spend_total{model="smollm2-135m-instruct",policy="showback",tenant="blue"} 0.032"#,
            r#"interlock_plugin_spend_total{model="smollm2-135m-instruct",policy="showback",tenant="nobody"} 0.016"#,
        ]
    );
}
