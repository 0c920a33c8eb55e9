//! Policies in the chain: failures are counted, and `on_failure` decides.

use std::fmt::Write as _;
use std::sync::Arc;

use expect_test::expect;
use interlock_metrics::Registry;
use interlock_policy_api::{Body, Facts, Load, Prompt};
use interlock_policy_chain::{
    Consent, LimitsConfig, OnFailure, PolicyChain, PolicyMetrics, Refused, at_once,
};
use interlock_policy_wasm::{PolicyConfig, default_policies};
use interlock_request::{Endpoint, Generation, Priority, Sampling};

mod common;
use common::{facts, host, metrics, misbehaves, settings, summary};

fn chain(configs: &[PolicyConfig]) -> (Arc<PolicyChain>, Registry) {
    let (host, registry) = host();
    let load = |config: &PolicyConfig| config.link(host.load(config).expect("it is fine so far"));
    let links = configs.iter().map(load).collect();
    let metrics = PolicyMetrics::register(&registry);
    let chain = PolicyChain::new(links, LimitsConfig::default().ceilings(), metrics);
    (Arc::new(chain), registry)
}

fn ask(chain: &Arc<PolicyChain>, facts: Facts) -> Result<Consent, Refused> {
    let generation = Generation {
        sampling: Sampling::greedy(),
        tokens_max: 50,
        tokens_min: 0,
        stop_tokens: vec![],
        logprobs: None,
        priority: Priority::Standard,
    };
    let prompt = Prompt::new(vec![1]).expect("a token");
    let hearing = chain.hear(facts.serial, facts.request_id.clone());
    let body = Arc::new(Body::new(b"{}".to_vec()));
    at_once(hearing.admit(facts, &Load::default(), prompt, generation, &body))
}

fn counters(registry: &Registry) -> String {
    let counted = metrics(registry, "interlock_policy_");
    let mut lines: Vec<_> = counted.lines().filter(|line| line.contains("_total{")).collect();
    lines.retain(|line| !line.contains("recycles"));
    lines.join("\n")
}

#[test]
fn a_trap_costs_that_decision_and_on_failure_says_what_it_means() {
    let closed = misbehaves();
    let (chain, registry) = self::chain(std::slice::from_ref(&closed));
    let refused = ask(&chain, facts("panic")).expect_err("closed means closed");
    assert_eq!(refused.rejection.status, 503);
    assert_eq!(&*refused.rejection.reason.code.0, "policy_failed");
    let consent = ask(&chain, facts("fine")).expect("the next request is served");
    consent.oversight.settle(&summary());
    expect![[r#"
        interlock_policy_calls_total{decision="admit",phase="admit",policy="p"} 1
        interlock_policy_calls_total{decision="done",phase="account",policy="p"} 2
        interlock_policy_calls_total{decision="failed",phase="admit",policy="p"} 1
        interlock_policy_failures_total{kind="trap",phase="admit",policy="p"} 1
        interlock_policy_fallbacks_total{action="closed",phase="admit",policy="p"} 1
        interlock_policy_reasons_total{code="served",phase="admit",policy="p"} 1"#]]
    .assert_eq(&counters(&registry));

    let open = PolicyConfig {
        on_failure: OnFailure { admit: "open".parse().expect("an action"), ..OnFailure::default() },
        ..closed
    };
    let (chain, registry) = self::chain(&[open]);
    drop(ask(&chain, facts("account:panic")).expect("admitting is fine"));
    drop(ask(&chain, facts("panic")).expect("open means open"));
    expect![[r#"
        interlock_policy_calls_total{decision="admit",phase="admit",policy="p"} 1
        interlock_policy_calls_total{decision="done",phase="account",policy="p"} 1
        interlock_policy_calls_total{decision="failed",phase="account",policy="p"} 1
        interlock_policy_calls_total{decision="failed",phase="admit",policy="p"} 1
        interlock_policy_failures_total{kind="trap",phase="account",policy="p"} 1
        interlock_policy_failures_total{kind="trap",phase="admit",policy="p"} 1
        interlock_policy_fallbacks_total{action="open",phase="account",policy="p"} 1
        interlock_policy_fallbacks_total{action="open",phase="admit",policy="p"} 1
        interlock_policy_reasons_total{code="served",phase="admit",policy="p"} 1"#]]
    .assert_eq(&counters(&registry));
}

#[test]
fn the_default_policies_shape_plans() {
    let (chain, _) = chain(&default_policies());
    let mut story = String::new();
    for (what, endpoint, streaming, prompt_tokens, tokens_max) in [
        ("a short chat", Endpoint::Chat, true, 40, 64),
        ("a long document", Endpoint::Completions, false, 8_000, 1_000),
        ("as much as it takes", Endpoint::Responses, true, 100, 32_000),
    ] {
        let facts = Facts { endpoint, streaming, prompt_tokens, tokens_max, ..facts("m") };
        let consent = ask(&chain, facts).expect("guard turns nobody away");
        let plan = consent.admitted.plan();
        let d = plan.deadlines;
        let _ = writeln!(
            story,
            "{what}: queue {:?}, first token {:?}, inter token {:?}, total {:?}; {:?}, {:?}",
            d.queue.unwrap(),
            d.first_token.unwrap(),
            d.inter_token.unwrap(),
            d.total.unwrap(),
            plan.on_disconnect,
            plan.priority,
        );
    }
    expect![[r#"
        a short chat: queue 300s, first token 362s, inter token 60s, total 486s; Cancel, Standard
        a long document: queue 300s, first token 600s, inter token 60s, total 1820s; Cancel, Standard
        as much as it takes: queue 300s, first token 365s, inter token 60s, total 3600s; Cancel, Standard
    "#]].assert_eq(&story);
}

#[test]
fn guard_reads_its_settings_from_the_hosts() {
    let mut guard = default_policies().remove(0);
    guard.settings = settings(
        r#"{
            "total": {"base": "1s", "per_output_token": "20ms"},
            "streaming": {
                "priority": "interactive",
                "on_disconnect": {"drain": {"max_time": "5s", "max_tokens": 64}}
            }
        }"#,
    );
    let (chain, _) = chain(&[guard]);
    let consent = ask(&chain, facts("m")).expect("guard turns nobody away");
    expect![[r#"
        Plan {
            priority: Interactive,
            deadlines: Deadlines {
                queue: Some(
                    300s,
                ),
                first_token: Some(
                    365s,
                ),
                inter_token: Some(
                    60s,
                ),
                total: Some(
                    2s,
                ),
            },
            on_disconnect: Drain(
                DrainLimits {
                    time_max: 5s,
                    tokens_max: 64,
                },
            ),
        }
    "#]]
    .assert_debug_eq(consent.admitted.plan());
}
