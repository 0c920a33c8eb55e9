//! Policies in the chain: failures are counted, and `on_failure` decides.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use expect_test::expect;
use interlock_metrics::Registry;
use interlock_policy_api::{Body, Event, Facts, Load, Plan, Progress, Prompt};
use interlock_policy_chain::{
    AdmissionOutcome, LimitsConfig, OnFailure, PolicyChain, PolicyMetrics, PolicyRefusal, at_once,
};
use interlock_policy_wasm::{PolicyConfig, PolicySource, default_policies};
use interlock_request::{
    Deadline, Deadlines, DisconnectAction, DrainLimits, Endpoint, Generation, Priority, Sampling,
    Usage,
};

mod common;
use common::{facts, host, metrics, misbehaves, settings, summary};

fn chain(configs: &[PolicyConfig]) -> (Arc<PolicyChain>, Registry) {
    let (host, registry) = host();
    let load =
        |config: &PolicyConfig| config.chain_entry(host.load(config).expect("it is fine so far"));
    let entries = configs.iter().map(load).collect();
    let metrics = PolicyMetrics::register(&registry);
    let chain = PolicyChain::new(entries, LimitsConfig::default().ceilings(), metrics);
    (Arc::new(chain), registry)
}

fn ask(chain: &Arc<PolicyChain>, facts: Facts) -> Result<AdmissionOutcome, PolicyRefusal> {
    let generation = Generation {
        sampling: Sampling::greedy(),
        tokens_max: 50,
        tokens_min: 0,
        stop_tokens: vec![],
        logprobs: None,
        priority: Priority::Standard,
    };
    let prompt = Prompt::new(vec![1]).expect("a token");
    let review = chain.review(facts.serial, facts.request_id.clone());
    let body = Arc::new(Body::new(b"{}".to_vec()));
    at_once(review.admit(facts, &Load::default(), prompt, generation, &body))
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
    let outcome = ask(&chain, facts("fine")).expect("the next request is served");
    outcome.session.settle(&summary());
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
        let outcome = ask(&chain, facts).expect("guard turns nobody away");
        let plan = outcome.admitted.plan();
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
    let outcome = ask(&chain, facts("m")).expect("guard turns nobody away");
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
    .assert_debug_eq(outcome.admitted.plan());
}

fn builtin(name: &str, json: &str) -> PolicyConfig {
    PolicyConfig {
        settings: settings(json),
        ..PolicyConfig::new(name, PolicySource::Builtin(name.into()))
    }
}

/// What the policies make of a request, in whichever order they are asked.
fn plan_of(mut policies: Vec<PolicyConfig>) -> Plan {
    let admitted = |policies: &[PolicyConfig]| {
        let (chain, _) = chain(policies);
        *ask(&chain, facts("m")).expect("they turn nobody away").admitted.plan()
    };
    let plan = admitted(&policies);
    policies.reverse();
    assert_eq!(admitted(&policies), plan);
    plan
}

const DRAINS: &str =
    r#"{"streaming": {"on_disconnect": {"drain": {"max_time": "5s", "max_tokens": 64}}}}"#;

fn drain() -> DisconnectAction {
    DisconnectAction::Drain(DrainLimits { time_max: Duration::from_secs(5), tokens_max: 64 })
}

#[test]
fn the_deadlines_of_one_policy_and_the_drain_of_another_hold() {
    let ceilings = LimitsConfig::default().ceilings();
    let deadlines = Deadlines { queue: Some(Duration::from_secs(7)), ..ceilings.deadlines };
    let expected = Plan { priority: Priority::Standard, deadlines, on_disconnect: drain() };
    let timeouts = builtin("timeouts", r#"{"queue": {"base": "7s"}, "total": {}}"#);
    assert_eq!(plan_of(vec![timeouts.clone(), builtin("disconnect-guard", DRAINS)]), expected);

    // And guard does either's work, where it is told to leave the other's to them.
    let time = r#"{"first_token": {}, "inter_token": {}, "total": {}, "queue": {"base": "7s"},
        "streaming": {"on_disconnect": "abstain"}}"#;
    let disconnect = builtin("disconnect-guard", DRAINS);
    assert_eq!(plan_of(vec![builtin("guard", time), disconnect]), expected);
    let drains = r#"{"queue": {}, "first_token": {}, "inter_token": {}, "total": {},
        "streaming": {"on_disconnect": {"drain": {"max_time": "5s", "max_tokens": 64}}}}"#;
    assert_eq!(plan_of(vec![timeouts, builtin("guard", drains)]), expected);
}

#[test]
fn what_no_policy_says_is_the_hosts_own_default() {
    let unsaid = Plan {
        priority: Priority::Standard,
        deadlines: LimitsConfig::default().ceilings().deadlines,
        on_disconnect: DisconnectAction::Cancel,
    };
    assert_eq!(plan_of(vec![builtin("timeouts", "{}"), builtin("disconnect-guard", "{}")]), unsaid);
}

#[test]
fn a_deadline_that_is_extended_leaves_the_drain_as_it_was() {
    let extends = r#"{"total": {"base": "60s"},
        "extend": {"total": {"by": "30s", "since_token": "2s"}}}"#;
    let (chain, _) = chain(&[builtin("disconnect-guard", DRAINS), builtin("timeouts", extends)]);
    let mut session = ask(&chain, facts("m")).expect("they turn nobody away").session;
    assert_eq!(session.plan().deadlines.total, Some(Duration::from_secs(60)));
    let progress = Progress {
        at_micros: 60_000_000,
        elapsed: Duration::from_secs(60),
        since_token: Some(Duration::from_secs(1)),
        usage: Usage { prompt_tokens: 100, cached_tokens: 0, generated_tokens: 40 },
    };
    let reacted = at_once(session.event(Event::TimedOut(Deadline::Total), progress));
    assert!(reacted.plan_changed && reacted.cancel.is_none());
    assert_eq!(session.plan().deadlines.total, Some(Duration::from_secs(90)));
    assert_eq!(session.plan().on_disconnect, drain());
}
