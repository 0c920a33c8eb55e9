//! The policies that the host is shipped with, and the examples, as components: what their own
//! tests show natively is true behind the border, with the real state, and their documentation's
//! configurations are ones.

use std::fs;
use std::path::Path;
use std::time::Duration;

use interlock_metrics::Registry;
use interlock_policy_api::{
    Admission, Answer, Choice, Code, Decision, Event, Facts, Guarding, Identified, Identity,
    PlanProposal, Policy, Progress, Reaction, Rejection, RequestContext, Summary, Verdict, Watch,
    Window,
};
use interlock_policy_wasm::{PolicyConfig, PolicyHost, PolicySource};
use interlock_request::{Deadline, Deadlines, DisconnectAction, DrainLimits, Usage};

mod common;
use common::{
    LOAD, body, caller, candidate, config, facts, grants, guest, host, metrics, settings, summary,
};

/// `printf %s "$KEY" | sha256sum`
const KEY: &str = "5e884898da28047151d0e56f8dc6292773603d0d6aabbdd62a11ef721d1542d8";

/// A host, its metrics, and a policy on it.
struct Case {
    policy: std::sync::Arc<interlock_policy_wasm::WasmPolicy>,
    registry: Registry,
    _host: PolicyHost,
}

fn case(name: &str, granted: &[&str], json: &str) -> Case {
    let (host, registry) = host();
    let config = PolicyConfig {
        grants: grants(granted),
        settings: settings(json),
        ..config(name, guest(name))
    };
    let policy = host.load(&config).unwrap_or_else(|why| panic!("{why}"));
    Case { policy, registry, _host: host }
}

fn of(tenant: &str) -> Facts {
    let identity = Identity { tenant: tenant.into(), priority: None, attributes: vec![] };
    Facts { identity, ..facts("m") }
}

fn admit(case: &Case, facts: &Facts) -> Result<Admission, Rejection> {
    match case.policy.admit(facts, &LOAD, 0, &body()).expect("it decides") {
        Decision::Admit(admission) => Ok(admission),
        Decision::Reject(rejection) => Err(rejection),
    }
}

fn value_of<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(it, _)| it == name).map(|(_, value)| value.as_str())
}

#[test]
fn guard_gives_a_request_whose_tokens_flow_more_time() {
    let settings = r#"{"total": {"base": "60s"},
        "extend": {"total": {"by": "30s", "since_token": "2s"}}}"#;
    let case = case("guard", &[], settings);
    assert!(case.policy.watch().events.timed_out);
    let facts = facts("m");
    let plan = admit(&case, &facts).expect("it lets everyone in").proposal;
    assert_eq!(plan.deadlines.total, Some(Duration::from_secs(60)));

    let struck = |since_token| {
        let progress = Progress {
            at_micros: facts.arrived_at_micros + 60_000_000,
            elapsed: Duration::from_secs(60),
            since_token: Some(Duration::from_secs(since_token)),
            usage: Usage { prompt_tokens: 100, cached_tokens: 0, generated_tokens: 40 },
        };
        let request = RequestContext { facts: &facts, note: "" };
        case.policy
            .event(request, &Event::TimedOut(Deadline::Total), &progress)
            .expect("it answers")
    };
    match struck(1) {
        Reaction::Amend(plan, why) => {
            assert_eq!(&*why.0, "extended");
            assert_eq!(plan.deadlines.total, Some(Duration::from_secs(90)));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(struck(3), Reaction::Keep);
}

#[test]
fn timeouts_says_nothing_of_a_disconnect_and_disconnect_guard_nothing_of_time() {
    let deadlines = r#"{"queue": {"base": "5s"}, "total": {"base": "60s"},
        "extend": {"total": {"by": "30s", "since_token": "2s"}}}"#;
    let timeouts = case("timeouts", &[], deadlines);
    assert!(timeouts.policy.watch().events.timed_out);
    let facts = facts("m");
    let seconds = |n| Some(Duration::from_secs(n));
    let of = |total| PlanProposal {
        deadlines: Deadlines { queue: seconds(5), total: seconds(total), ..Deadlines::default() },
        ..PlanProposal::default()
    };
    assert_eq!(admit(&timeouts, &facts).expect("it lets everyone in").proposal, of(60));
    let progress = Progress {
        at_micros: facts.arrived_at_micros + 60_000_000,
        elapsed: Duration::from_secs(60),
        since_token: seconds(1),
        usage: Usage { prompt_tokens: 100, cached_tokens: 0, generated_tokens: 40 },
    };
    let request = RequestContext { facts: &facts, note: "" };
    let struck = Event::TimedOut(Deadline::Total);
    let reaction = timeouts.policy.event(request, &struck, &progress).expect("it answers");
    assert_eq!(reaction, Reaction::Amend(of(90), Code::from("extended")));

    let drains =
        r#"{"streaming": {"on_disconnect": {"drain": {"max_time": "5s", "max_tokens": 64}}}}"#;
    let guard = case("disconnect-guard", &[], drains);
    let proposal = |streaming| {
        let facts = Facts { streaming, ..facts.clone() };
        admit(&guard, &facts).expect("it lets everyone in").proposal
    };
    let limits = DrainLimits { time_max: Duration::from_secs(5), tokens_max: 64 };
    let on_disconnect = Some(DisconnectAction::Drain(limits));
    assert_eq!(proposal(true), PlanProposal { on_disconnect, ..PlanProposal::default() });
    assert_eq!(proposal(false), PlanProposal::default());
}

#[test]
fn router_sends_an_alias_to_its_models_and_past_a_busy_one() {
    let settings = r#"{"aliases": {"gpt-4o": ["large", "small"]}, "fall_back_at": 2}"#;
    let case = case("router", &[], settings);
    let route = |candidates: &[_]| -> Answer<Choice> {
        case.policy.route(&facts("gpt-4o"), candidates, &body())
    };
    // The helper's candidates have as many waiting as their id.
    let both = [candidate(0, "small"), candidate(1, "large")];
    assert_eq!(route(&both), Ok(Choice::Pick(1, Code::from("alias"))));
    let busy = [candidate(0, "small"), candidate(2, "large")];
    assert_eq!(route(&busy), Ok(Choice::Pick(0, Code::from("fallback"))));
}

fn quota(limits: &str) -> Case {
    let tenants = format!(r#"{{"acme": {{"keys": ["{KEY}"], "priority": "batch"}}}}"#);
    let json = format!(r#"{{"tenants": {tenants}, "limits": {limits}}}"#);
    case("quota", &["state", "metrics"], &json)
}

#[test]
fn quota_knows_a_key_by_its_hash() {
    let case = quota("{}");
    let identify = |credential: &str| {
        let caller = interlock_policy_api::Caller { credential: credential.into(), ..caller("x") };
        case.policy.identify(&caller).expect("it decides")
    };
    match identify(KEY) {
        Identified::Known(identity, code) => {
            assert_eq!((identity.tenant.as_str(), &*code.0), ("acme", "key_known"));
            assert!(identity.priority.is_some());
        }
        other => panic!("{other:?}"),
    }
    for (credential, code) in [("", "missing_api_key"), (&"0".repeat(64), "invalid_api_key")] {
        match identify(credential) {
            Identified::Reject(it) => assert_eq!((it.status, &*it.reason.code.0), (401, code)),
            other => panic!("{other:?}"),
        }
    }
}

/// Who fetches an answer or cancels asks for no work: there must be a way to do so over the limit.
#[test]
fn quota_charges_whoever_asks_before_the_body_and_nobody_who_looks_something_up() {
    let case = quota(r#"{"requests_per_minute": 1}"#);
    let identify = |looks_up| {
        let known = interlock_policy_api::Caller { credential: KEY.into(), ..caller("x") };
        case.policy
            .identify(&interlock_policy_api::Caller { looks_up, ..known })
            .expect("it decides")
    };
    let look = || assert!(matches!(identify(true), Identified::Known(..)));
    look();
    assert!(matches!(identify(false), Identified::Known(..)));
    match identify(false) {
        Identified::Reject(it) => {
            assert_eq!((it.status, &*it.reason.code.0), (429, "requests_exceeded"));
            let wait = it.retry_after.expect("one comes back").as_secs();
            assert!((50..=60).contains(&wait), "{wait}");
        }
        other => panic!("{other:?}"),
    }
    look();
}

#[test]
fn quota_counts_in_the_hosts_state_and_says_when_to_come_again() {
    let case = quota(r#"{"requests_per_minute": 2, "tokens_per_minute": 100000}"#);
    let acme = of("acme");
    let first = admit(&case, &acme).expect("there are two");
    assert_eq!(value_of(&first.headers, "x-ratelimit-remaining-requests"), Some("1"));
    assert_eq!(value_of(&first.headers, "x-ratelimit-remaining-tokens"), Some("99850"));
    admit(&case, &acme).expect("there is one left");
    let refused = admit(&case, &acme).expect_err("there is none");
    assert_eq!((refused.status, &*refused.reason.code.0), (429, "requests_exceeded"));
    let wait = refused.retry_after.expect("one comes back").as_secs();
    assert!((25..=30).contains(&wait), "{wait}");
    assert_eq!(value_of(&refused.headers, "x-ratelimit-limit-requests"), Some("2"));
    admit(&case, &of("someone else")).expect("it is another's minute");
    let counted = metrics(&case.registry, "interlock_plugin_refused_total");
    let expected =
        r#"interlock_plugin_refused_total{limit="requests",policy="quota",tenant="acme"} 1"#;
    assert_eq!(counted, expected);
}

#[test]
fn quota_gives_back_a_place_and_tokens_when_a_request_has_ended() {
    let case = quota(r#"{"concurrent": 1, "tokens_per_minute": 1000}"#);
    let acme = of("acme");
    let admission = admit(&case, &acme).expect("it is alone");
    let refused = admit(&case, &acme).expect_err("it is not alone");
    assert_eq!((refused.status, &*refused.reason.code.0), (429, "concurrency_exceeded"));
    let request = RequestContext { facts: &acme, note: &admission.note };
    let summary: Summary = summary();
    case.policy.account(request, &summary).expect("it takes note");
    let next = admit(&case, &acme).expect("the first has ended");
    // 107 were used where 150 were held, unless the minute ended meanwhile.
    let left = value_of(&next.headers, "x-ratelimit-remaining-tokens");
    assert!(matches!(left, Some("743" | "850")), "{left:?}");
}

/// Its account may have failed, or there was no thread for it: the place was taken for an hour.
#[test]
fn a_place_is_free_when_its_request_is_forgotten_whoever_accounted_for_it() {
    let case = quota(r#"{"concurrent": 1}"#);
    let acme = of("acme");
    for ran in [false, true] {
        admit(&case, &acme).expect("it is alone");
        admit(&case, &acme).expect_err("it is not alone");
        case.policy.forget(acme.serial, ran);
    }
    admit(&case, &acme).expect("all have ended");
}

#[test]
fn stream_guard_redacts_what_comes_in_two_windows() {
    let case = case("stream-guard", &["metrics"], r#"{"patterns": [{"text": "Project Blue"}]}"#);
    let Watch { guarding: Guarding::Gate(_), .. } = case.policy.watch() else {
        panic!("it gates every request")
    };
    let facts = facts("m");
    let judge = |index, text, held, finished| {
        let usage = Usage { prompt_tokens: 100, cached_tokens: 0, generated_tokens: index };
        let window = Window { index, text, held, finished, usage };
        case.policy.window(RequestContext { facts: &facts, note: "" }, &window).expect("it judges")
    };
    assert_eq!(judge(0, "It is called Pro", 0, false), Verdict::Hold(3));
    match judge(1, "Project Blue, äh", 3, false) {
        Verdict::Replace { text, hold, reason } => {
            assert_eq!((text.as_str(), hold, &*reason.code.0), ("[redacted], äh", 0, "redacted"));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(judge(2, "Pro", 0, true), Verdict::Pass);
    let counted = metrics(&case.registry, "interlock_plugin_matches_total");
    assert!(
        counted.ends_with(r#"{action="redact",pattern="0",policy="stream-guard"} 1"#),
        "{counted}"
    );
}

#[test]
fn what_a_policy_imports_and_was_not_granted_is_named_when_it_is_loaded() {
    let (host, _) = host();
    let without = PolicyConfig {
        settings: settings(r#"{"anonymous": "x"}"#),
        ..config("quota", guest("quota"))
    };
    let why = host.load(&without).expect_err("it needs state and metrics").to_string();
    assert!(why.contains("state") && why.contains("metrics"), "{why}");
}

#[test]
fn what_a_policy_does_not_use_it_does_not_import() {
    // Nothing is granted, so what loads has no import but the log.
    for name in [
        "guard",
        "disconnect-guard",
        "timeouts",
        "router",
        "hello-policy",
        "route-by-length",
        "redact-stream",
    ] {
        let json = match name {
            "hello-policy" => r#"{"max_prompt_tokens": 1}"#,
            "route-by-length" => r#"{"short": "a", "long": "b", "from_prompt_tokens": 1}"#,
            "redact-stream" => r#"{"word": "a", "replacement": "b"}"#,
            _ => "{}",
        };
        case(name, &[], json);
    }
}

/// The tables of policies in a configuration.
fn policies(toml: &str) -> Vec<PolicyConfig> {
    #[derive(serde::Deserialize)]
    struct Configuration {
        policy: Vec<PolicyConfig>,
    }
    toml::from_str::<Configuration>(toml).expect("it is a configuration").policy
}

#[test]
fn the_configuration_in_each_readme_is_one() {
    let plugins = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../plugins");
    for name in ["guard", "disconnect-guard", "timeouts", "router", "quota", "stream-guard"] {
        let readme = fs::read_to_string(plugins.join(name).join("README.md")).expect("it has one");
        let configurations: Vec<_> = readme.split("```toml\n").skip(1).collect();
        assert!(!configurations.is_empty(), "{name}: it shows a configuration");
        for toml in configurations {
            let policies = policies(toml.split("```").next().expect("which ends"));
            let itself = PolicySource::Builtin(name.into());
            assert!(policies.iter().any(|policy| policy.source == itself), "{name}: {toml}");
            for policy in policies {
                host().0.load(&policy).unwrap_or_else(|why| panic!("{name}: {why}"));
            }
        }
    }
}

#[test]
fn the_configuration_of_each_example_loads_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for name in ["hello-policy", "quota-by-tenant", "redact-stream", "route-by-length"] {
        let file = root.join("examples").join(name).join("interlock.toml");
        let toml = fs::read_to_string(file).expect("it has one");
        for mut policy in policies(&toml) {
            let path = format!("target/guests/{name}.wasm");
            assert_eq!(policy.source, PolicySource::File(path.into()));
            policy.source = PolicySource::File(guest(name));
            host().0.load(&policy).unwrap_or_else(|why| panic!("{name}: {why}"));
        }
    }
}
