//! What an operator sees of the requests in flight, and may end.

use interlock_policy_api::{Code, Identified, Identity};
use interlock_request::{CancelCause, Outcome};
use interlock_server::AdminConfig;
use serde_json::Value;

use crate::admin::Admin;
use crate::rig::{Rig, Script, Setup, within};
use crate::wire::Connection;

const STREAM: &str = r#"{"model":"sim","prompt":"hello","max_tokens":3000,"stream":true}"#;

/// Every key is a tenant of its own: the one that its header names.
async fn rig() -> (Rig, Admin) {
    let identify = |caller: &interlock_policy_api::Caller| {
        let tenant = caller.headers.0.first().map_or("nobody", |(_, value)| value).to_owned();
        Identified::Known(Identity { tenant, ..Identity::default() }, Code::from("known"))
    };
    let script = Script {
        headers: vec!["x-tenant".into()],
        identify: Some(Box::new(identify)),
        ..Script::default()
    };
    let rig = Rig::with(Setup { gated: true, ..Setup::scripted(script) }).await;
    let admin = Admin::of(rig.in_flight.clone()).await;
    (rig, admin)
}

async fn begin(rig: &Rig, tenant: &str, id: &str) -> Connection {
    let mut connection = rig.connect().await;
    let headers = [("x-request-id", id), ("x-tenant", tenant)];
    connection.send("POST", "/v1/completions", &headers, STREAM).await;
    connection
}

/// The list, once it is so.
async fn listed(admin: &Admin, query: &str, is: impl Fn(&[Value]) -> bool) -> Vec<Value> {
    within(async {
        loop {
            let answer = admin.ask("GET", &format!("/admin/requests{query}"), &[], "").await;
            assert_eq!(answer.status, 200, "{answer:?}");
            let requests = answer.json()["requests"].as_array().expect("a list").clone();
            if is(&requests) {
                return requests;
            }
            tokio::task::yield_now().await;
        }
    })
    .await
}

fn are(state: &'static str) -> impl Fn(&[Value]) -> bool {
    move |requests| requests.last().is_some_and(|request| request["state"] == state)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_sees_what_every_request_does_and_nothing_of_what_it_says() {
    let (rig, admin) = rig().await;
    let mut first = begin(&rig, "acme", "a").await;
    rig.gate.wait_begun(1);
    rig.gate.let_through(3);
    first.until("data: ").await;
    listed(&admin, "", |requests| requests.iter().any(|r| r["generated_tokens"] == 3)).await;
    let _second = begin(&rig, "globex", "b").await;
    let both = listed(&admin, "", |requests| requests.len() == 2 && are("queued")(requests)).await;
    let text = |at: usize, key: &str| both[at][key].as_str().unwrap_or("-").to_owned();
    assert_eq!((text(0, "id"), text(1, "id")), ("a".into(), "b".into()), "the oldest first");
    assert_eq!((text(0, "tenant"), text(0, "model")), ("acme".into(), "sim".into()));
    assert_eq!((text(0, "endpoint"), text(0, "state")), ("completions".into(), "decode".into()));
    assert_eq!((text(0, "priority"), &both[0]["detached"]), ("standard".into(), &false.into()));
    assert_eq!(both[1]["generated_tokens"], 0);
    assert!(both[0]["age_ms"].is_u64() && both[1]["queue_ms"].is_u64(), "{both:?}");
    let mut known: Vec<_> = both[0].as_object().expect("an object").keys().cloned().collect();
    let mut all = [
        "id",
        "tenant",
        "endpoint",
        "model",
        "priority",
        "state",
        "detached",
        "generated_tokens",
        "age_ms",
        "queue_ms",
    ];
    known.sort_unstable();
    all.sort_unstable();
    assert_eq!(known, all);
    // By tenant, by model, and not too many.
    let one = listed(&admin, "?tenant=globex&model=sim", |_| true).await;
    assert_eq!((one.len(), &one[0]["id"]), (1, &"b".into()));
    assert_eq!(listed(&admin, "?model=other", |_| true).await.len(), 0);
    let answer = admin.ask("GET", "/admin/requests?limit=1", &[], "").await.json();
    assert_eq!((&answer["total"], &answer["requests"][0]["id"]), (&2.into(), &"a".into()));
    rig.gate.open();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_cancels_any_request_and_its_client_and_the_policies_are_told() {
    let (mut rig, admin) = rig().await;
    let mut first = begin(&rig, "acme", "a").await;
    rig.gate.wait_begun(1);
    let mut second = begin(&rig, "globex", "b").await;
    listed(&admin, "", |requests| requests.len() == 2 && are("queued")(requests)).await;
    // Their clients could not cancel each other's.
    assert_eq!(rig.post("/v1/requests/b/cancel", "").await.status, 404);
    let cancelled = admin.ask("POST", "/admin/requests/b/cancel", &[], "").await;
    let answer = cancelled.json();
    assert_eq!((cancelled.status, &answer["requests"]), (200, &1.into()));
    assert_eq!(answer["cancelled"], true, "{answer}");
    let told = second.rest().await;
    assert!(told.contains("request b was cancelled by an operator"), "{told}");
    rig.gate.open();
    let (id, account) = rig.ended().await;
    assert_eq!((&*id, account.outcome), ("b", Outcome::Cancelled(CancelCause::Operator)));
    // Its place is free, and it is gone from the list: soon, since policies are told first.
    listed(&admin, "", |requests| requests.len() == 1).await;
    let again = admin.ask("POST", "/admin/requests/b/cancel", &[], "").await;
    assert_eq!((again.status, again.code().as_str()), (404, "request_not_found"));
    first.until("data: ").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_two_tenants_use_is_cancelled_for_the_one_that_is_named() {
    let (mut rig, admin) = rig().await;
    let _first = begin(&rig, "acme", "same").await;
    rig.gate.wait_begun(1);
    let mut second = begin(&rig, "globex", "same").await;
    listed(&admin, "", |requests| requests.len() == 2 && are("queued")(requests)).await;
    let path = "/admin/requests/same/cancel";
    let nobodys = admin.ask("POST", &format!("{path}?tenant=initech"), &[], "").await;
    assert_eq!(nobodys.status, 404);
    let one = admin.ask("POST", &format!("{path}?tenant=globex"), &[], "").await;
    assert_eq!((&one.json()["requests"], &one.json()["cancelled"]), (&1.into(), &true.into()));
    second.until("cancelled by an operator").await;
    let both = admin.ask("POST", path, &[], "").await;
    assert!(both.json()["requests"].as_u64() >= Some(1), "{both:?}");
    rig.gate.open();
    for _ in 0..2 {
        let outcome = rig.ended().await.1.outcome;
        assert_eq!(outcome, Outcome::Cancelled(CancelCause::Operator));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_whose_body_has_not_arrived_is_listed_and_can_be_cancelled() {
    let (rig, admin) = rig().await;
    let mut slow = rig.connect().await;
    let head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nx-request-id: slow\r\n\
                x-tenant: acme\r\ncontent-length: 100\r\n\r\n{";
    slow.raw(head.as_bytes()).await;
    let one = listed(&admin, "?tenant=acme", |requests| requests.len() == 1).await;
    assert_eq!((&one[0]["state"], &one[0]["model"]), (&"admission".into(), &Value::Null));
    let cancelled = admin.ask("POST", "/admin/requests/slow/cancel", &[], "").await;
    assert_eq!((cancelled.status, &cancelled.json()["cancelled"]), (200, &true.into()));
    slow.until("HTTP/1.1 409").await;
    slow.until("request slow was cancelled by an operator").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_in_the_background_is_listed_as_one_that_nobody_waits_for() {
    let (rig, admin) = rig().await;
    let body = r#"{"model":"sim","input":"hello","max_output_tokens":3000,"background":true}"#;
    rig.begin("/v1/responses", "bg", body).await.answer().await;
    let one = listed(&admin, "", |requests| requests.len() == 1).await;
    assert_eq!((&one[0]["id"], &one[0]["detached"]), (&"bg".into(), &true.into()));
    rig.gate.open();
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_told_to_nobody_without_the_token() {
    let config = AdminConfig { token: Some("secret".into()), ..AdminConfig::default() };
    let admin = Admin::start(config).await;
    for (method, path) in [("GET", "/admin/requests"), ("POST", "/admin/requests/a/cancel")] {
        assert_eq!(admin.ask(method, path, &[], "").await.status, 401, "{path}");
    }
}
