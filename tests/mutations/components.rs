//! Components. What still loads is asked, and answers or fails as a policy may.

use std::cell::Cell;

use interlock_policy_chain::{PhaseQuestion, Record};
use interlock_policy_wasm::{PolicyConfig, PolicyHost, PolicySource};

use crate::{each_mutant, in_words, original};

/// Small ones: a compiled mutant costs a second here.
const GUESTS: [&str; 3] = ["guest-plain", "guest-mute", "hello-policy"];

#[test]
fn a_component_loads_or_is_refused_in_words_and_what_loads_can_be_asked() {
    let records = String::from_utf8(original("tests/mutations/data/records.jsonl")).expect("text");
    let first = records.lines().next().expect("a record");
    let record: Record = serde_json::from_str(first).expect("a record");
    let questions: Vec<PhaseQuestion> = record.steps.into_iter().map(|step| step.asked).collect();
    let guests = GUESTS.map(|name| original(&format!("target/guests/{name}.wasm")));
    let refused = Cell::new(0);
    let host = PolicyHost::new().expect("WebAssembly works here");
    each_mutant(&guests, 150, |mutant| {
        let source = PolicySource::File("mutant.wasm".into());
        let config = PolicyConfig { crash_budget: 0, ..PolicyConfig::new("p", source) };
        match host.load_bytes(&config, mutant.to_vec()) {
            Ok(policy) => {
                let answers = questions.iter().filter_map(|asked| asked.ask(policy.as_ref()));
                answers.filter_map(Result::err).try_for_each(|failed| in_words(&failed.to_string()))
            }
            Err(failed) => {
                refused.set(refused.get() + 1);
                in_words(&failed.to_string())
            }
        }
    });
    assert!(refused.get() > 50, "{} refused", refused.get());
}
