//! Simulations of small workloads, with policies made for the purpose.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use interlock_engine::{CacheConfig, EngineConfig, WaitingConfig};
use interlock_policy_api::{
    Admission, Answer, Body, Code, Decision, Facts, Load, Phase, PlanProposal, Policy, Reason,
    Rejection, RequestContext, Summary,
};
use interlock_policy_chain::{ChainEntry, LimitsConfig, OnFailure};
use interlock_policy_tools::simulation::{Report, Setup, SimClock, run};
use interlock_policy_tools::workload::Workload;
use interlock_request::Deadlines;
use interlock_server::{DetachedConfig, ServerConfig};
use interlock_state::{Bucket, Space, State, Taken};
use serde_json::Value;

/// So many requests a minute of each tenant, by a header.
struct PerMinute {
    state: Space,
    requests: f64,
}

impl Policy for PerMinute {
    fn name(&self) -> &str {
        "per-minute"
    }

    fn version(&self) -> &str {
        "1"
    }

    fn takes(&self, phase: Phase) -> bool {
        matches!(phase, Phase::Admit | Phase::Account)
    }

    fn headers(&self) -> &[String] {
        static HEADERS: std::sync::LazyLock<Vec<String>> =
            std::sync::LazyLock::new(|| vec!["x-tenant".into()]);
        &HEADERS
    }

    fn admit(&self, facts: &Facts, _: &Load, _: u32, _: &Body) -> Answer<Decision> {
        let tenant = facts.headers.0.first().map_or("nobody", |(_, value)| value);
        let bucket = Bucket { capacity: self.requests, refill_per_second: self.requests / 60.0 };
        let deadlines = Deadlines { queue: Some(Duration::from_secs(5)), ..Deadlines::default() };
        Ok(match self.state.take(tenant, bucket, 1.0).expect("memory answers") {
            Taken::Ok { .. } => Decision::Admit(Admission {
                proposal: PlanProposal { deadlines, ..PlanProposal::default() },
                code: Code::from("within"),
                ..Admission::default()
            }),
            Taken::Denied { available_in } => Decision::Reject(Rejection {
                status: 429,
                reason: Reason { code: Code::from("too_many"), detail: None },
                retry_after: Some(available_in),
                headers: vec![],
            }),
        })
    }

    fn account(&self, _: RequestContext<'_>, _: &Summary) -> Answer<()> {
        Ok(())
    }
}

/// Forgets to be told: what the host would look like that loses an account.
struct Deaf {
    broken: AtomicBool,
}

impl Policy for Deaf {
    fn name(&self) -> &str {
        "deaf"
    }

    fn version(&self) -> &str {
        "1"
    }

    /// Admits, and has never heard of accounts once it was asked: the chain skips it then.
    fn takes(&self, phase: Phase) -> bool {
        match phase {
            Phase::Admit => true,
            Phase::Account => !self.broken.load(Ordering::Relaxed),
            _ => false,
        }
    }

    fn admit(&self, _: &Facts, _: &Load, _: u32, _: &Body) -> Answer<Decision> {
        self.broken.store(true, Ordering::Relaxed);
        Ok(Decision::Admit(Admission::default()))
    }

    fn account(&self, _: RequestContext<'_>, _: &Summary) -> Answer<()> {
        Ok(())
    }
}

fn setup(policy: impl FnOnce(&State) -> Arc<dyn Policy>) -> Setup {
    let clock = SimClock::default();
    let state = State::memory_with(Arc::new(clock.clone()));
    let entry = ChainEntry::new(policy(&state), OnFailure::default());
    Setup {
        server: ServerConfig::default(),
        detached: DetachedConfig::default(),
        engine: EngineConfig::default(),
        cache: CacheConfig::default(),
        waiting: WaitingConfig::default(),
        ceilings: LimitsConfig::default().ceilings(),
        links: vec![entry],
        clock,
    }
}

fn per_minute(requests: f64) -> Setup {
    setup(|state| Arc::new(PerMinute { state: state.space("per-minute"), requests }))
}

const DAY: &str = r#"
    duration = "60s"
    slo = { first_token = "1s", inter_token = "100ms" }
    [[model]]
    name = "sim"
    settings = "decode=20ms,row=1ms,prefill=100us,stop=0"
    stall = { chance = 0.01, time = "1s" }
    fail = 0.002
    [[tenant]]
    name = "loud"
    rate = 3.0
    burst = { every = "20s", size = 20 }
    prompt = { median = 150, sigma = 0.8, max = 2000 }
    output = { min = 5, max = 80 }
    leave = { chance = 0.2, after = { min = 0, max = 40 } }
    headers = { x-tenant = "loud" }
    [[tenant]]
    name = "quiet"
    clients = 2
    think = "500ms"
    prompt = 300
    output = 40
    shared_prefix = 0.5
    streaming = 0.7
    headers = { x-tenant = "quiet" }
    [[tenant]]
    name = "completions"
    rate = 0.5
    endpoint = "completions"
    [[tenant]]
    name = "responses"
    rate = 0.5
    endpoint = "responses"
"#;

fn ran(setup: Setup, workload: &str, seed: u64) -> Report {
    let workload = Workload::parse(workload).unwrap_or_else(|why| panic!("{why}"));
    run(setup, &workload, seed).unwrap_or_else(|why| panic!("{why}"))
}

fn tenant<'a>(report: &'a Value, name: &str) -> &'a Value {
    let tenants = report["tenants"].as_array().expect("a list");
    tenants.iter().find(|tenant| tenant["tenant"] == name).expect("it is there")
}

#[test]
fn a_seed_is_a_day() {
    let first = ran(per_minute(30.0), DAY, 7);
    assert_eq!(first.violations(), [""; 0], "{first}");
    let again = ran(per_minute(30.0), DAY, 7);
    assert_eq!(first.to_json(), again.to_json());
    assert_ne!(first.to_json(), ran(per_minute(30.0), DAY, 8).to_json());
}

#[test]
fn a_host_without_policies_keeps_what_must_hold_too() {
    let report = ran(Setup { links: vec![], ..per_minute(60.0) }, DAY, 1);
    assert_eq!(report.violations(), [""; 0], "{report}");
}

#[test]
fn a_quota_holds_against_the_loud_and_lets_the_quiet_pass() {
    let report = ran(per_minute(60.0), DAY, 3);
    assert_eq!(report.violations(), [""; 0], "{report}");
    let json = report.to_json();
    let (loud, quiet) = (tenant(&json, "loud"), tenant(&json, "quiet"));
    assert!(loud["refused"].as_u64() > Some(50), "{report}");
    assert_eq!(quiet["refused"], 0, "{report}");
    assert!(loud["left"].as_u64() > Some(5), "{report}");
    let admitted = loud["requests"].as_u64().unwrap() - loud["refused"].as_u64().unwrap();
    // The bucket's content and a minute's refill.
    assert!((100..=121).contains(&admitted), "{admitted} of {report}");
    assert!(json["stalled_passes"].as_u64() > Some(3), "{report}");
    assert!(json["failed_passes"].as_u64() > Some(0), "{report}");
}

#[test]
fn time_is_what_the_model_says_it_takes() {
    let alone = r#"
        duration = "10s"
        [[model]]
        name = "sim"
        settings = "decode=20ms,prefill=1ms,stop=0"
        [[tenant]]
        name = "one"
        clients = 1
        think = "1s"
        prompt = 92
        output = 11
        endpoint = "completions"
    "#;
    let report = ran(per_minute(1000.0), alone, 1);
    assert_eq!(report.violations(), [""; 0], "{report}");
    let json = report.to_json();
    let one = tenant(&json, "one");
    assert_eq!(one["inter_token"]["p50"], 0.02, "{report}");
    // Timers know whole milliseconds, and a pass ends between two of them.
    let first = one["first_token"]["p50"].as_f64().expect("there is one");
    assert!((0.092..0.0935).contains(&first), "{report}");
}

/// The checks are worth something: a chain that loses accounts is found out.
#[test]
fn an_account_that_is_lost_is_a_violation() {
    let few = r#"
        duration = "2s"
        [[model]]
        name = "sim"
        [[tenant]]
        name = "t"
        rate = 2
    "#;
    let report = ran(setup(|_| Arc::new(Deaf { broken: AtomicBool::new(false) })), few, 1);
    let violations = report.violations().join("\n");
    assert!(violations.contains("policy \"deaf\" got 0 accounts of request 0"), "{report}");
}
