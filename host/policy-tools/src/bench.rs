//! What a policy's calls cost: wall time of each, and CPU time of all.

use std::time::{Duration, Instant};

use interlock_policy_api::{
    Body, Caller, Candidate, Closing, Event, Facts, Headers, Identity, Load, Phase, Policy,
    Progress, RequestContext, Summary, Window,
};
use interlock_request::{Endpoint, Finish, ModelId, Outcome, Priority, RequestId, Usage};
use serde_json::{Value, json};

/// The figures of one phase.
#[derive(Debug, Clone)]
pub struct Figures {
    /// The phase that was measured.
    pub phase: Phase,
    /// Calls that were measured.
    pub calls: u32,
    /// Those that gave no answer.
    pub failures: u32,
    /// How the first failed.
    pub first_failure: Option<String>,
    /// Half of them took no longer.
    pub p50: Duration,
    /// 99 of a hundred took no longer.
    pub p99: Duration,
    /// CPU time of a call, the mean of all; none where the system does not say.
    pub cpu: Option<Duration>,
}

impl Figures {
    /// For scripts, in seconds.
    pub fn to_json(&self) -> Value {
        json!({
            "phase": self.phase.as_str(), "calls": self.calls, "failures": self.failures,
            "p50": self.p50.as_secs_f64(), "p99": self.p99.as_secs_f64(),
            "cpu": self.cpu.map(|cpu| cpu.as_secs_f64()),
        })
    }
}

/// Measures every phase that the policy takes part in, with about 1 KB of facts. `cpu` says how
/// much CPU time this thread has used.
pub fn measure(
    policy: &dyn Policy,
    calls: u32,
    cpu: &dyn Fn() -> Option<Duration>,
) -> Vec<Figures> {
    let taken = Phase::ALL.into_iter().filter(|phase| policy.takes(*phase));
    taken.map(|phase| phase_of(policy, phase, calls, cpu)).collect()
}

fn phase_of(
    policy: &dyn Policy,
    phase: Phase,
    calls: u32,
    cpu: &dyn Fn() -> Option<Duration>,
) -> Figures {
    let asked = BenchInput::new(policy.headers());
    // The first calls make instances and fill caches.
    for _ in 0..calls / 10 {
        let _ = asked.ask(policy, phase);
        policy.forget(asked.facts.serial, false);
    }
    let mut times = Vec::with_capacity(calls as usize);
    let (mut failures, mut first_failure) = (0, None);
    let mut used = Duration::ZERO;
    let mut known = true;
    for _ in 0..calls {
        let cpu_before = cpu();
        let began = Instant::now();
        let answer = asked.ask(policy, phase);
        times.push(began.elapsed());
        match (cpu_before, cpu()) {
            (Some(before), Some(after)) => used += after.saturating_sub(before),
            _ => known = false,
        }
        if let Err(why) = answer {
            failures += 1;
            first_failure.get_or_insert(why);
        }
        // Not measured: nobody waits for it.
        policy.forget(asked.facts.serial, false);
    }
    times.sort_unstable();
    let at = |share: f64| {
        let rank = (share * times.len() as f64).ceil() as usize;
        times.get(rank.max(1) - 1).copied().unwrap_or_default()
    };
    Figures {
        phase,
        calls,
        failures,
        first_failure,
        p50: at(0.5),
        p99: at(0.99),
        cpu: known.then(|| used / calls.max(1)),
    }
}

/// What is asked: about 1 KB, as a request of a company's service is.
struct BenchInput {
    facts: Facts,
    caller: Caller,
    candidates: Vec<Candidate>,
}

impl BenchInput {
    const CANDIDATES: u32 = 16;

    fn new(headers: &[String]) -> Self {
        let headers: Vec<(String, String)> =
            headers.iter().map(|name| (name.clone(), "a-value-of-usual-length".into())).collect();
        let attributes = (0..12).map(|n| {
            (format!("attribute-{n}"), "a value of the length that such values have".to_owned())
        });
        let request_id = RequestId::parse("0190f2d4c0de7a1b8f2e6d5c4b3a2918").expect("it is one");
        let facts = Facts {
            serial: 0,
            request_id: request_id.clone(),
            arrived_at_micros: u64::try_from(crate::fixtures::EPOCH.as_micros()).unwrap_or(0),
            endpoint: Endpoint::Chat,
            model: ModelId::new("Qwen/Qwen3-0.6B"),
            streaming: true,
            background: false,
            prompt_tokens: 800,
            tokens_max: 512,
            tokens_max_asked: true,
            body_bytes: 3600,
            prefix_key: 0x5eed,
            identity: Identity {
                tenant: "acme".into(),
                priority: Some(Priority::Standard),
                attributes: attributes.collect(),
            },
            headers: Headers(headers.clone()),
        };
        let caller = Caller {
            serial: 0,
            request_id,
            arrived_at_micros: facts.arrived_at_micros,
            endpoint: Endpoint::Chat,
            credential: "5e884898da28047151d0e56f8dc6292773603d0d6aabbdd62a11ef721d1542d8".into(),
            address: "192.0.2.1".into(),
            headers: Headers(headers),
            looks_up: false,
        };
        let candidate = |id| Candidate {
            id,
            model: ModelId::new(format!("model-{id}")),
            asked: id < 4,
            ready: true,
            context: 32_768,
            load: Load { waiting: id, waiting_max: 256, running: 8, running_max: 16 },
            prefix_seen: id == 3,
            first_token: Some(Duration::from_millis(180)),
            inter_token: Some(Duration::from_millis(21)),
        };
        Self { facts, caller, candidates: (0..Self::CANDIDATES).map(candidate).collect() }
    }

    fn ask(&self, policy: &dyn Policy, phase: Phase) -> Result<(), String> {
        let usage = Usage { prompt_tokens: 800, cached_tokens: 0, generated_tokens: 64 };
        let facts = &self.facts;
        let request = RequestContext { facts, note: "" };
        let body = Body::new(b"{}".to_vec());
        let load = Load { waiting: 2, waiting_max: 256, running: 8, running_max: 16 };
        let answer = match phase {
            Phase::Identify => policy.identify(&self.caller).map(drop),
            Phase::Transform => policy.transform(facts, &body).map(drop),
            Phase::Route => policy.route(facts, &self.candidates, &body).map(drop),
            Phase::Admit => policy.admit(facts, &load, 3, &body).map(drop),
            Phase::StreamGuard => {
                let text = "what a model says in a dozen tokens, more or less as it does";
                let window = Window { index: 0, text, held: 0, finished: false, usage };
                policy.window(request, &window).map(drop)
            }
            Phase::Events => {
                let progress = Progress {
                    at_micros: facts.arrived_at_micros,
                    elapsed: Duration::from_secs(2),
                    since_token: Some(Duration::from_millis(30)),
                    usage,
                };
                policy.event(request, &Event::FirstToken, &progress).map(drop)
            }
            Phase::Account => {
                let summary = Summary {
                    closing: Closing::Ended(Outcome::Completed(Finish::Stop)),
                    usage,
                    queue_time: Some(Duration::from_millis(12)),
                    time_to_first_token: Some(Duration::from_millis(180)),
                    total: Duration::from_secs(2),
                };
                policy.account(request, &summary)
            }
        };
        answer.map_err(|failure| failure.to_string())
    }
}
