//! Requests that go on without a client, and answers that are asked for later.

use std::time::Duration;

use interlock_policy_api::{Identified, Identity, PlanProposal};
use interlock_request::{CancelCause, DisconnectAction, DrainLimits, Finish, Outcome};
use interlock_server::DetachedConfig;
use serde_json::Value;

use crate::rig::{Rig, Script, Setup, within};

pub(crate) const BACKGROUND: &str =
    r#"{"model":"sim","input":"hello","max_output_tokens":8,"temperature":0,"background":true}"#;

pub(crate) fn detach() -> Setup {
    let limits = DrainLimits { time_max: Duration::from_secs(20), tokens_max: 1000 };
    let on_disconnect = Some(DisconnectAction::Detach(limits));
    Setup::planning(PlanProposal { on_disconnect, ..PlanProposal::default() })
}

pub(crate) async fn becomes(rig: &Rig, path: &str, status: &str) -> Value {
    within(async {
        loop {
            let answer = rig.get(path).await.json();
            if answer["status"] == status {
                return answer;
            }
            tokio::task::yield_now().await;
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_in_the_background_is_queued_then_runs_then_is_there() {
    let mut rig = Rig::with(Setup { gated: true, ..Setup::default() }).await;
    let mut connection = rig.begin("/v1/responses", "bg", BACKGROUND).await;
    let queued = connection.answer().await;
    assert_eq!(queued.status, 200, "{queued:?}");
    let queued = queued.json();
    assert_eq!((&queued["id"], &queued["status"]), (&"resp_bg".into(), &"queued".into()));
    assert_eq!((&queued["background"], &queued["output"]), (&true.into(), &Value::Array(vec![])));
    rig.gate.wait_begun(1);
    becomes(&rig, "/v1/responses/resp_bg", "in_progress").await;
    rig.gate.open();
    // As long as the answer that one gets who waits.
    let done = becomes(&rig, "/v1/responses/resp_bg", "incomplete").await;
    let (_, account) = rig.ended().await;
    assert_eq!(account.outcome, Outcome::Completed(Finish::Length));
    let waited = rig.post("/v1/responses", &BACKGROUND.replace(",\"background\":true", "")).await;
    let text = |answer: &Value| answer["output"][0]["content"][0]["text"].clone();
    assert_eq!(text(&done), text(&waited.json()));
    assert_eq!(done["usage"]["output_tokens"], 8);
    let request = becomes(&rig, "/v1/requests/bg", "completed").await;
    assert_eq!((&request["endpoint"], &request["error"]), (&"responses".into(), &Value::Null));
    assert_eq!(text(&request["answer"]), text(&done));
    let mut connection = rig.connect().await;
    connection.send("DELETE", "/v1/responses/resp_bg", &[], "").await;
    assert_eq!(connection.answer().await.json()["deleted"], true);
    assert_eq!(rig.get("/v1/responses/resp_bg").await.code(), "request_not_found");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_in_the_background_can_be_cancelled() {
    let mut rig = Rig::with(Setup { gated: true, ..Setup::default() }).await;
    // Too long to be over before its driver hears of it.
    let long = BACKGROUND.replace(":8", ":3000");
    rig.begin("/v1/responses", "bg", &long).await.answer().await;
    rig.gate.wait_begun(1);
    let cancelled = rig.post("/v1/responses/resp_bg/cancel", "").await;
    assert_eq!((cancelled.status, &cancelled.json()["status"]), (200, &"cancelled".into()));
    rig.gate.open();
    assert_eq!(rig.ended().await.1.outcome, Outcome::Cancelled(CancelCause::Operator));
    let kept = becomes(&rig, "/v1/responses/resp_bg", "cancelled").await;
    assert_eq!(kept["error"], Value::Null);
    let again = rig.post("/v1/responses/resp_bg/cancel", "").await.json();
    assert_eq!(again["status"], "cancelled");
    assert_eq!(becomes(&rig, "/v1/requests/bg", "cancelled").await["answer"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_left_behind_can_be_fetched_whole() {
    let stream = r#"{"model":"sim","messages":[{"role":"user","content":"hello"}],"max_tokens":30,"temperature":0,"stream":true}"#;
    let mut rig = Rig::with(Setup { gated: true, ..detach() }).await;
    let mut connection = rig.begin("/v1/chat/completions", "left", stream).await;
    rig.gate.let_through(5);
    connection.until("data: ").await;
    rig.gate.wait_begun(6);
    drop(connection);
    rig.metric_is("http_connections", 0.0).await;
    rig.gate.open();
    let (_, account) = rig.ended().await;
    assert_eq!(account.outcome, Outcome::Completed(Finish::Length));
    let kept = becomes(&rig, "/v1/requests/left", "completed").await;
    let whole = rig.post("/v1/chat/completions", &stream.replace(",\"stream\":true", "")).await;
    let text = |answer: &Value| answer["choices"][0]["message"]["content"].clone();
    assert_eq!(text(&kept["answer"]), text(&whole.json()));
    assert_eq!(rig.get("/v1/responses/resp_left").await.status, 404, "it is no response");
    assert_eq!(rig.get("/v1/requests/other").await.code(), "request_not_found");
}

#[tokio::test(flavor = "multi_thread")]
async fn so_many_go_on_without_a_client_and_no_more() {
    let detached = DetachedConfig { requests_max: 1, ..DetachedConfig::default() };
    let mut rig = Rig::with(Setup { gated: true, detached, ..detach() }).await;
    rig.begin("/v1/responses", "first", BACKGROUND).await.answer().await;
    rig.gate.wait_begun(1);
    let second = rig.begin("/v1/responses", "second", BACKGROUND).await.answer().await;
    assert_eq!((second.status, second.code().as_str()), (429, "too_many_detached"));
    assert!(second.header("retry-after").is_some());
    let body = r#"{"model":"sim","prompt":"hello","max_tokens":4000}"#;
    let leaver = rig.begin("/v1/completions", "leaver", body).await;
    rig.metric_is("requests_waiting", 1.0).await;
    drop(leaver);
    rig.metric_is("http_connections", 0.0).await;
    rig.gate.open();
    let mut ended = [rig.ended().await, rig.ended().await];
    ended.sort_by(|a, b| a.0.cmp(&b.0));
    let tokens = ended.each_ref().map(|(_, account)| account.usage.generated_tokens);
    let outcomes = ended.map(|(id, account)| (id, account.outcome));
    assert_eq!((&*outcomes[0].0, &outcomes[0].1), ("first", &Outcome::Completed(Finish::Length)));
    // There was no place for it, though its policies would have let it go on.
    assert_eq!(outcomes[1], ("leaver".into(), Outcome::Cancelled(CancelCause::Disconnect)));
    assert_eq!(tokens, [8, 0]);
    assert_eq!(rig.get("/v1/requests/leaver").await.code(), "request_not_found");
}

/// A policy that believes what a header says.
pub(crate) fn tenants() -> Script {
    let identify = |caller: &interlock_policy_api::Caller| {
        let tenant = caller.headers.0.first().map_or("", |(_, value)| value).to_owned();
        Identified::Known(Identity { tenant, ..Identity::default() }, "header".into())
    };
    Script {
        headers: vec!["x-tenant".into()],
        identify: Some(Box::new(identify)),
        ..Script::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_is_its_own_tenants_alone() {
    let rig = Rig::with(Setup::scripted(tenants())).await;
    let ask = async |method: &str, path: &str, tenant: &str, body: &str| {
        let mut connection = rig.connect().await;
        let headers = [("x-tenant", tenant), ("x-request-id", "mine")];
        connection.send(method, path, &headers, body).await;
        connection.answer().await
    };
    assert_eq!(ask("POST", "/v1/responses", "acme", BACKGROUND).await.status, 200);
    assert_eq!(ask("GET", "/v1/responses/resp_mine", "acme", "").await.status, 200);
    // Its id is free for others, who are not in its way.
    let over = async |tenant: &str| {
        within(async {
            while ask("DELETE", "/v1/responses/resp_mine", tenant, "").await.status != 200 {
                tokio::task::yield_now().await;
            }
        })
        .await;
    };
    assert_eq!(ask("POST", "/v1/responses", "globex", BACKGROUND).await.status, 200);
    over("globex").await;
    assert_eq!(ask("GET", "/v1/responses/resp_mine", "acme", "").await.status, 200);
    for (method, path) in [
        ("GET", "/v1/responses/resp_mine"),
        ("POST", "/v1/responses/resp_mine/cancel"),
        ("DELETE", "/v1/responses/resp_mine"),
        ("GET", "/v1/requests/mine"),
    ] {
        assert_eq!(ask(method, path, "globex", "").await.status, 404, "{method} {path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_cancels_its_own_requests_alone() {
    let mut rig = Rig::with(Setup { gated: true, ..Setup::scripted(tenants()) }).await;
    let ask = async |path: &str, tenant: &str, body: &str| {
        let mut connection = rig.connect().await;
        let headers = [("x-tenant", tenant), ("x-request-id", "mine")];
        connection.send("POST", path, &headers, body).await;
        connection
    };
    let body = r#"{"model":"sim","prompt":"hello","max_tokens":40}"#;
    let mut theirs = ask("/v1/completions", "acme", body).await;
    rig.gate.wait_begun(1);
    let cancel = async |tenant| ask("/v1/requests/mine/cancel", tenant, "").await.answer().await;
    assert_eq!(cancel("globex").await.code(), "request_not_found");
    let mut ours = ask("/v1/completions", "globex", body).await;
    rig.metric_is("requests_waiting", 1.0).await;
    assert_eq!(cancel("globex").await.status, 200);
    assert_eq!(ours.answer().await.code(), "request_cancelled");
    rig.gate.open();
    assert_eq!(theirs.answer().await.status, 200);
    let mut ended = [rig.ended().await.1.outcome, rig.ended().await.1.outcome];
    ended.sort_by_key(|outcome| matches!(outcome, Outcome::Completed(_)));
    let cancelled = Outcome::Cancelled(CancelCause::Operator);
    assert_eq!(ended, [cancelled, Outcome::Completed(Finish::Length)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_places_nothing_goes_on_without_its_client() {
    let within_limits = DrainLimits { time_max: Duration::from_secs(20), tokens_max: 1000 };
    for action in [DisconnectAction::Drain(within_limits), DisconnectAction::Detach(within_limits)]
    {
        let proposal = PlanProposal { on_disconnect: Some(action), ..PlanProposal::default() };
        let detached = DetachedConfig { requests_max: 0, ..DetachedConfig::default() };
        let setup = Setup { gated: true, detached, ..Setup::planning(proposal) };
        let mut rig = Rig::with(setup).await;
        let body = r#"{"model":"sim","prompt":"hello","max_tokens":4000}"#;
        let leaver = rig.begin("/v1/completions", "leaver", body).await;
        rig.gate.wait_begun(1);
        drop(leaver);
        rig.metric_is("http_connections", 0.0).await;
        rig.gate.open();
        let outcome = rig.ended().await.1.outcome;
        assert_eq!(outcome, Outcome::Cancelled(CancelCause::Disconnect), "{action:?}");
    }
}
