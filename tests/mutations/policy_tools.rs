//! Records before another policy, cases and workloads.

use std::cell::Cell;
use std::sync::Arc;

use interlock_metrics::Registry;
use interlock_policy_api::Policy;
use interlock_policy_tools::cases::{Cases, PolicyUnderTest};
use interlock_policy_tools::clock::ManualClock;
use interlock_policy_tools::replay::replay;
use interlock_policy_tools::workload::Workload;
use interlock_policy_wasm::{PolicyConfig, PolicyHost, PolicySource, Services};
use interlock_state::State;

use crate::{each_mutant, in_words, original};

/// Quota, with a state and a clock of its own.
fn specimen() -> PolicyUnderTest {
    let clock = ManualClock::default();
    let state = State::memory_with(Arc::new(clock.clone()));
    let registry = Registry::new();
    let services = Services { state: state.clone(), registry: &registry, cache: None };
    let host = PolicyHost::with(services).expect("WebAssembly works here");
    let source = PolicySource::Builtin("quota".to_owned());
    let grants = ["state", "metrics"].map(|grant| grant.parse().expect("a grant")).to_vec();
    let settings = serde_json::json!({ "anonymous": "nobody" });
    let settings = settings.as_object().cloned().expect("a table");
    let config =
        PolicyConfig { grants, settings, crash_budget: 0, ..PolicyConfig::new("quota", source) };
    let policy: Arc<dyn Policy> = host.load(&config).expect("it comes with the host");
    PolicyUnderTest { policy, state: state.space("quota"), clock }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_record_is_replayed_or_refused_in_words() {
    let PolicyUnderTest { policy, clock, .. } = specimen();
    let records = original("tests/mutations/data/records.jsonl");
    let asked = |trace: &str| replay(trace, None, policy.as_ref(), &clock);
    asked(&text(&records)).expect("as it was recorded, it is a record");
    let replayed = Cell::new(0);
    each_mutant(&[records], 1500, |mutant| match asked(&text(mutant)) {
        Ok(answers) => {
            replayed.set(replayed.get() + 1);
            in_words(&answers.to_string())
        }
        Err(why) => in_words(&why.to_string()),
    });
    assert!(replayed.get() > 20, "{} of them were still records", replayed.get());
}

const CASES: &str = r#"
[settings]
anonymous = "allow"

[[case]]
name = "one a minute"
step = [
  { request = { prompt_tokens = 100, tenant = "acme" }, expect = { decision = "admit" } },
  { at = "61s", expect = { decision = "reject", status = 429, retry_after = { max = "1m" } } },
]

[[case]]
name = "alone"
request = { prompt_tokens = 10, max_tokens = 20, body_bytes = 300, model = "m" }
load = { waiting = 3, running = 2 }
expect = { decision = "admit", code = "within_limits" }
"#;

#[test]
fn cases_are_played_or_refused_in_words() {
    let PolicyUnderTest { policy, state, clock } = specimen();
    let play = |text: &str| {
        let mut begin = |_: &_| {
            let (policy, state) = (Arc::clone(&policy), state.clone());
            Ok(PolicyUnderTest { policy, state, clock: clock.clone() })
        };
        Cases::parse(text)?.play("", &mut begin)
    };
    play(CASES).expect("they are cases");
    let played = Cell::new(0);
    each_mutant(&[CASES.as_bytes().to_vec()], 1500, |mutant| match play(&text(mutant)) {
        Ok(how) => {
            played.set(played.get() + 1);
            in_words(&how.to_string())
        }
        Err(why) => in_words(&why.to_string()),
    });
    assert!(played.get() > 20, "{} of them were still cases", played.get());
}

#[test]
fn a_workload_is_read_or_refused_in_words() {
    let workload = original("host/cli/src/policy/template/workload.toml.in");
    Workload::parse(&text(&workload)).expect("it is one");
    each_mutant(&[workload], 1500, |mutant| match Workload::parse(&text(mutant)) {
        Ok(_) => Ok(()),
        Err(why) => in_words(&why.to_string()),
    });
}
