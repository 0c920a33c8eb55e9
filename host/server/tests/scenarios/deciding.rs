//! Policies that decide before a request is admitted: who it is, what changes, where it runs.

use std::sync::{Arc, Mutex};

use interlock_policy_api::{
    Admission, Body, Choice, Edits, Identified, Identity, Reason, Rejection, Transformed,
};
use interlock_server::ServerConfig;
use interlock_sim::SimSettings;

use crate::rig::{Rig, Script, Setup};

const ASK: &str = r#"{"model":"sim","prompt":"hello","max_tokens":5}"#;

fn rejection(status: u16, code: &str) -> Rejection {
    let reason = Reason { code: code.into(), detail: None };
    Rejection { status, reason, retry_after: None, headers: vec![("x-why".into(), code.into())] }
}

/// Knows one key, by its hash.
fn gatekeeper() -> Script {
    let identify = |caller: &interlock_policy_api::Caller| match caller.credential.get(..8) {
        // printf %s key | sha256sum
        Some("2c70e12b") => {
            let identity = Identity { tenant: "acme".into(), ..Identity::default() };
            Identified::Known(identity, "key".into())
        }
        _ => Identified::Reject(rejection(401, "unknown_key")),
    };
    Script { identify: Some(Box::new(identify)), ..Script::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_known_is_turned_away_before_anything_of_its_body_is_looked_at() {
    let rig = Rig::with(Setup::scripted(gatekeeper())).await;
    for body in [ASK, "not even JSON"] {
        let answer = rig.post("/v1/completions", body).await;
        assert_eq!((answer.status, answer.code().as_str()), (401, "unknown_key"));
        assert_eq!(answer.header("x-why"), Some("unknown_key"));
        assert_eq!(answer.json()["error"]["type"], "authentication_error");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_known_is_known_to_all_policies_after_that() {
    let mut rig = Rig::with(Setup::scripted(gatekeeper())).await;
    let mut connection = rig.connect().await;
    let headers = [("authorization", "Bearer key")];
    connection.send("POST", "/v1/completions", &headers, ASK).await;
    assert_eq!(connection.answer().await.status, 200);
    let facts = rig.facts().await;
    assert_eq!(facts.identity.tenant, "acme");
    assert_eq!((facts.prompt_tokens, facts.tokens_max, facts.tokens_max_asked), (6, 5, true));
    assert_ne!(facts.prefix_key, 0);
    assert_eq!(facts.headers.0, [], "no header was granted");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_may_change_the_body_and_say_so_in_a_header() {
    let transform = |_: &interlock_policy_api::Facts, body: &Body| {
        body.set("/max_tokens", "3").expect("the body is an object");
        Transformed::Edit(Edits {
            set_headers: vec![],
            remove_headers: vec![],
            answer_headers: vec![("x-cut".into(), "3".into()), ("bad name".into(), "x".into())],
            model: Some("other".into()),
            code: "cut".into(),
        })
    };
    let script = Script { transform: Some(Box::new(transform)), ..Script::default() };
    let other = Some(SimSettings { stop: 0, salt: 1, ..SimSettings::default() });
    let mut rig = Rig::with(Setup { other, ..Setup::scripted(script) }).await;
    let answer = rig.post("/v1/completions", ASK).await;
    assert_eq!(answer.header("x-cut"), Some("3"));
    let answer = answer.json();
    assert_eq!(answer["usage"]["completion_tokens"], 3);
    assert_eq!(answer["model"], "other");
    assert_eq!(rig.facts().await.tokens_max, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_makes_nonsense_of_a_body_is_to_blame_and_not_the_client() {
    let transform = |_: &interlock_policy_api::Facts, body: &Body| {
        body.set("/prompt", "7").expect("the body is an object");
        Transformed::Keep
    };
    let script = Script { transform: Some(Box::new(transform)), ..Script::default() };
    let rig = Rig::with(Setup::scripted(script)).await;
    let answer = rig.post("/v1/completions", ASK).await;
    assert_eq!((answer.status, answer.code().as_str()), (500, "policy_failed"));
    assert!(!answer.body.contains("prompt"), "{}", answer.body);
    assert_eq!(rig.metric(r#"http_refusals_total{reason="policy_spoiled"}"#), 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_may_choose_another_model_than_was_asked_for() {
    let seen = Arc::new(Mutex::new(vec![]));
    let seen_in = Arc::clone(&seen);
    let route = move |_: &interlock_policy_api::Facts, all: &[interlock_policy_api::Candidate]| {
        seen_in.lock().expect("no panic").extend(all.to_vec());
        let other =
            all.iter().find(|candidate| candidate.model.as_str() == "other").expect("it is there");
        Choice::Pick(other.id, "cheaper".into())
    };
    let script = Script { route: Some(Box::new(route)), ..Script::default() };
    let other = Some(SimSettings { stop: 0, salt: 1, context: 128, ..SimSettings::default() });
    let mut rig = Rig::with(Setup { other, ..Setup::scripted(script) }).await;
    for _ in 0..2 {
        assert_eq!(rig.post("/v1/completions", ASK).await.json()["model"], "other");
        assert_eq!(rig.facts().await.model.as_str(), "other");
    }
    // A name that nobody serves is a name that a policy may know.
    let unknown = ASK.replace("sim", "fast");
    assert_eq!(rig.post("/v1/completions", &unknown).await.json()["model"], "other");
    let seen = seen.lock().expect("no panic");
    let [sim, other, .., again] = &seen[..4] else { panic!("{seen:?}") };
    assert!(sim.asked && sim.ready && !other.asked && other.ready, "{seen:?}");
    assert_eq!((sim.context, other.context), (4096, 128));
    assert_eq!((sim.load.waiting_max, sim.load.running_max), (16, 64));
    assert!(!other.prefix_seen && other.first_token.is_none(), "it has served nobody: {other:?}");
    assert!(again.prefix_seen && again.first_token.is_some(), "it has: {again:?}");
    assert!(again.inter_token.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_policies_say_in_headers_is_on_the_answer_but_never_in_place_of_ours() {
    let admit = |_: &interlock_policy_api::Facts| Admission {
        headers: vec![
            ("x-ratelimit-remaining-requests".into(), "41".into()),
            ("content-type".into(), "text/html".into()),
        ],
        ..Admission::default()
    };
    let script = Script { admit: Some(Box::new(admit)), ..Script::default() };
    let rig = Rig::with(Setup::scripted(script)).await;
    for stream in [false, true] {
        let body = format!(r#"{{"model":"sim","prompt":"x","max_tokens":2,"stream":{stream}}}"#);
        let answer = rig.post("/v1/completions", &body).await;
        assert_eq!(answer.header("x-ratelimit-remaining-requests"), Some("41"));
        assert_ne!(answer.header("content-type"), Some("text/html"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_and_may_is_told_what_each_policy_decided() {
    let body = r#"{"model":"sim","prompt":"x","max_tokens":1}"#;
    for (policy_trace, asks) in [(true, true), (true, false), (false, true)] {
        let server = ServerConfig { policy_trace, ..ServerConfig::default() };
        let rig = Rig::with(Setup { server, ..Setup::default() }).await;
        let headers: &[_] = if asks { &[("x-policy-trace", "1")] } else { &[] };
        let mut connection = rig.connect().await;
        connection.send("POST", "/v1/completions", headers, body).await;
        let answer = connection.answer().await;
        let trace = answer.header("x-policy-trace").unwrap_or("");
        let told = trace.starts_with("admit witness/1 admit unspecified ") && trace.ends_with("us");
        assert_eq!(told, policy_trace && asks, "{trace}");
    }
}
