//! What one tenant asked, no other can find out.

use std::sync::{Arc, Mutex};

use interlock_engine::PrefixSharing;
use interlock_policy_api::{Candidate, Choice, Facts};
use serde_json::{Value, json};

use crate::detached::tenants;
use crate::rig::{Rig, Setup};

async fn ask(rig: &Rig, tenant: &str, path: &str, body: &Value) -> Value {
    let mut connection = rig.connect().await;
    connection.send("POST", path, &[("x-tenant", tenant)], &body.to_string()).await;
    connection.answer().await.json()
}

/// How many tokens of this prompt were computed before, as usage says.
async fn cached(rig: &Rig, tenant: &str, prompt: &str) -> u64 {
    let body = json!({ "model": "sim", "prompt": prompt, "max_tokens": 1 });
    let answer = ask(rig, tenant, "/v1/completions", &body).await;
    let cached = &answer["usage"]["prompt_tokens_details"]["cached_tokens"];
    cached.as_u64().unwrap_or_else(|| panic!("{answer}"))
}

/// A number of five digits was found by asking for it ten times for each digit.
#[tokio::test(flavor = "multi_thread")]
async fn a_guess_of_another_tenants_prompt_is_told_nothing_in_any_endpoints_usage() {
    let rig = Rig::with(Setup::scripted(tenants())).await;
    let secret = "the number is 48151. ".repeat(20);
    assert_eq!(cached(&rig, "acme", &secret).await, 0);
    assert_eq!(cached(&rig, "globex", &secret).await, 0, "asked by another");
    assert!(cached(&rig, "acme", &secret).await >= 400, "asked again by its own");
    assert!(cached(&rig, "globex", &secret).await >= 400, "what it asked itself");
    let chat = json!({
        "model": "sim", "max_tokens": 1, "messages": [{ "role": "user", "content": secret }],
    });
    let response = json!({ "model": "sim", "max_output_tokens": 1, "input": secret });
    let of_chat =
        |answer: &Value| answer["usage"]["prompt_tokens_details"]["cached_tokens"].clone();
    let of_response =
        |answer: &Value| answer["usage"]["input_tokens_details"]["cached_tokens"].clone();
    for tenant in ["acme", "globex", "initech"] {
        let first = ask(&rig, tenant, "/v1/chat/completions", &chat).await;
        assert_eq!(of_chat(&first), 0, "{tenant}: {first}");
        let again = ask(&rig, tenant, "/v1/responses", &response).await;
        assert!(of_response(&again).as_u64() >= Some(400), "the same prompt again: {again}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_operator_lets_all_share_they_do() {
    let setup = Setup { prefix_sharing: PrefixSharing::All, ..Setup::scripted(tenants()) };
    let rig = Rig::with(setup).await;
    let prompt = "the number is 48151. ".repeat(20);
    assert_eq!(cached(&rig, "acme", &prompt).await, 0);
    assert!(cached(&rig, "globex", &prompt).await >= 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_are_told_of_like_beginnings_exactly_where_they_may_be_shared() {
    for sharing in [PrefixSharing::Tenant, PrefixSharing::All] {
        let seen = Arc::new(Mutex::new(vec![]));
        let seen_in = Arc::clone(&seen);
        let route = move |facts: &Facts, candidates: &[Candidate]| {
            let told = (facts.prefix_key, candidates[0].prefix_seen);
            seen_in.lock().expect("no panic").push(told);
            Choice::Abstain
        };
        let mut script = tenants();
        script.route = Some(Box::new(route));
        let rig = Rig::with(Setup { prefix_sharing: sharing, ..Setup::scripted(script) }).await;
        for tenant in ["acme", "acme", "globex"] {
            cached(&rig, tenant, "hello").await;
        }
        let told = seen.lock().expect("no panic").clone();
        let [first, again, other] = told.as_slice() else { panic!("{told:?}") };
        assert_eq!((first.1, *again), (false, (first.0, true)), "{sharing:?}");
        let shares = sharing == PrefixSharing::All;
        assert_eq!((other.0 == first.0, other.1), (shares, shares), "{sharing:?}");
    }
}
