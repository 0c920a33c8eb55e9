//! What a cancel and a `DELETE` answer is what happened, and what everyone else says too.

use interlock_policy_api::{
    Admission, Caller, Event, EventSet, Identified, Identity, Reaction, Watch,
};
use interlock_request::{CancelCause, Endpoint, Finish, Outcome};
use interlock_server::DetachedConfig;
use interlock_sim::SimSettings;
use tokio::sync::mpsc;

use crate::detached::{BACKGROUND, becomes, detach};
use crate::rig::{Latch, Rig, Script, Setup};
use crate::wire::Answer;

const CANCEL_RESPONSE: (&str, &str) = ("POST", "/v1/responses/resp_bg/cancel");
const CANCEL_REQUEST: (&str, &str) = ("POST", "/v1/requests/bg/cancel");
const DELETE: (&str, &str) = ("DELETE", "/v1/responses/resp_bg");

async fn ask(rig: &Rig, (method, path): (&str, &str)) -> Answer {
    let mut connection = rig.connect().await;
    connection.send(method, path, &[], "").await;
    connection.answer().await
}

fn counted(rig: &Rig, outcome: &str) -> f64 {
    let labels = format!(r#"endpoint="responses",model="sim",outcome="{outcome}""#);
    rig.metric(&format!("requests_total{{{labels}}}"))
}

/// A policy that hears of the first token and thinks until it is let go.
#[derive(Clone, Default)]
struct Thinker {
    /// It has begun to think.
    thinks: Latch,
    goes_on: Latch,
    /// Somebody looks a request up, or cancels it.
    is_asked_for: Latch,
}

impl Thinker {
    fn script(&self, slow: bool) -> Script {
        let events = EventSet { first_token: true, ..EventSet::default() };
        let watch = Some(Watch { events, ..Watch::default() });
        let (thinker, identifier) = (self.clone(), self.clone());
        let identify = move |caller: &Caller| {
            if caller.looks_up {
                identifier.is_asked_for.open();
            }
            Identified::Known(acme(), "known".into())
        };
        let event = move |_: Event| {
            thinker.thinks.open();
            thinker.goes_on.wait();
            Reaction::Keep
        };
        Script {
            identify: Some(Box::new(identify)),
            admit: Some(Box::new(move |_| Admission { watch, ..Admission::default() })),
            event: Some(Box::new(event)),
            slow,
            ..Script::default()
        }
    }
}

fn acme() -> Identity {
    Identity { tenant: "acme".into(), ..Identity::default() }
}

/// A request that has come to its end, and whose driver does not know yet, is asked to stop so. Its
/// driver then hears of both. What was answered.
async fn too_late(rig: &Rig, thinker: &Thinker, how: (&str, &str)) -> Answer {
    rig.begin("/v1/responses", "bg", BACKGROUND).await.answer().await;
    thinker.thinks.opened().await;
    rig.metric_is("requests_running", 0.0).await;
    let mut connection = rig.connect().await;
    connection.send(how.0, how.1, &[], "").await;
    // Whether it is heard before the driver goes on, or after: the answer is the same.
    thinker.is_asked_for.opened().await;
    thinker.goes_on.open();
    connection.answer().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_that_comes_too_late_says_how_the_response_ended() {
    let thinker = Thinker::default();
    let mut rig = Rig::with(Setup::scripted(thinker.script(false))).await;
    let cancelled = too_late(&rig, &thinker, CANCEL_RESPONSE).await;
    assert_eq!((cancelled.status, &cancelled.json()["status"]), (200, &"incomplete".into()));
    assert_eq!(cancelled.json(), rig.get("/v1/responses/resp_bg").await.json());
    assert_eq!(rig.ended().await.1.outcome, Outcome::Completed(Finish::Length));
    assert_eq!((counted(&rig, "completed"), counted(&rig, "cancelled")), (1.0, 0.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancel_that_comes_too_late_says_how_the_request_ended_now_and_later() {
    let thinker = Thinker::default();
    let mut rig = Rig::with(Setup::scripted(thinker.script(false))).await;
    let cancelled = too_late(&rig, &thinker, CANCEL_REQUEST).await.json();
    let said = |answer: &serde_json::Value| (answer["cancelled"].clone(), answer["status"].clone());
    assert_eq!(said(&cancelled), (false.into(), "completed".into()));
    assert_eq!(rig.ended().await.1.outcome, Outcome::Completed(Finish::Length));
    let later = ask(&rig, CANCEL_REQUEST).await.json();
    assert_eq!(said(&later), (false.into(), "completed".into()));
    assert_eq!(rig.get("/v1/requests/bg").await.json()["status"], "completed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_is_cancelled_once_however_often_and_in_what_words_it_is_asked_for() {
    let mut rig = Rig::with(Setup { gated: true, ..Setup::default() }).await;
    rig.begin("/v1/responses", "bg", BACKGROUND).await.answer().await;
    rig.gate.wait_begun(1);
    let asked = tokio::join!(
        ask(&rig, CANCEL_RESPONSE),
        ask(&rig, CANCEL_REQUEST),
        ask(&rig, CANCEL_RESPONSE)
    );
    rig.gate.open();
    let after = (ask(&rig, CANCEL_RESPONSE).await, ask(&rig, CANCEL_REQUEST).await);
    for answer in [asked.0, asked.1, asked.2, after.0, after.1] {
        assert_eq!((answer.status, &answer.json()["status"]), (200, &"cancelled".into()));
    }
    assert_eq!(rig.ended().await.1.outcome, Outcome::Cancelled(CancelCause::Operator));
    assert_eq!((counted(&rig, "completed"), counted(&rig, "cancelled")), (0.0, 1.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_waits_is_cancelled_and_so_is_one_that_its_client_left() {
    let mut rig = Rig::with(Setup { gated: true, ..detach() }).await;
    let body = r#"{"model":"sim","prompt":"hello","max_tokens":4000}"#;
    let left = rig.begin("/v1/completions", "left", body).await;
    rig.gate.wait_begun(1);
    drop(left);
    rig.metric_is("http_connections", 0.0).await;
    becomes(&rig, "/v1/requests/left", "running").await;
    // It has come while the pass of the other is in the device.
    rig.begin("/v1/responses", "bg", BACKGROUND).await.answer().await;
    for id in ["bg", "left"] {
        let answer = rig.post(&format!("/v1/requests/{id}/cancel"), "").await.json();
        assert_eq!(answer["status"], "cancelled", "{id}");
        assert_eq!(rig.get(&format!("/v1/requests/{id}")).await.json()["status"], "cancelled");
    }
    rig.gate.open();
    for _ in 0..2 {
        assert_eq!(rig.ended().await.1.outcome, Outcome::Cancelled(CancelCause::Operator));
    }
}

/// The pass of the request failed while a policy was asked about it, and it is cancelled before its
/// driver hears of that. It was told that it is cancelled; its account said that it had failed.
#[tokio::test(flavor = "multi_thread")]
async fn who_was_told_that_it_is_cancelled_is_accounted_for_as_cancelled() {
    let thinker = Thinker::default();
    let fails =
        SimSettings { stop: 0, fail_above_tokens: Some(0), fail_from: 4, ..SimSettings::default() };
    let setup = Setup { model: fails, ..Setup::scripted(thinker.script(true)) };
    let mut rig = Rig::with(setup).await;
    rig.begin("/v1/responses", "bg", BACKGROUND).await.answer().await;
    // Its driver waits for the policy, and so has not heard yet.
    thinker.thinks.opened().await;
    rig.metric_is(r#"engine_failed_requests_total{code="out_of_memory"}"#, 1.0).await;
    let cancelled = ask(&rig, CANCEL_RESPONSE).await.json();
    thinker.goes_on.open();
    assert_eq!(cancelled["status"], "cancelled");
    assert_eq!(rig.ended().await.1.outcome, Outcome::Cancelled(CancelCause::Operator));
    assert_eq!(rig.get("/v1/responses/resp_bg").await.json()["status"], "cancelled");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_that_runs_is_cancelled_when_it_is_deleted_and_is_nowhere_then() {
    let detached = DetachedConfig { requests_max: 1, ..DetachedConfig::default() };
    let mut rig = Rig::with(Setup { gated: true, detached, ..Setup::default() }).await;
    let long = BACKGROUND.replace(":8", ":3000");
    rig.begin("/v1/responses", "bg", &long).await.answer().await;
    rig.gate.wait_begun(1);
    let deleted = ask(&rig, DELETE).await;
    assert_eq!((deleted.status, &deleted.json()["deleted"]), (200, &true.into()));
    for path in ["/v1/responses/resp_bg", "/v1/requests/bg"] {
        assert_eq!(rig.get(path).await.code(), "request_not_found");
    }
    assert_eq!(ask(&rig, DELETE).await.code(), "request_not_found", "it is deleted once");
    rig.gate.open();
    assert_eq!(rig.ended().await.1.outcome, Outcome::Cancelled(CancelCause::Operator));
    assert_eq!(counted(&rig, "cancelled"), 1.0);
    // Its place is free, and its id.
    rig.metric_is("requests_running", 0.0).await;
    rig.begin("/v1/responses", "bg", BACKGROUND).await.answer().await;
    becomes(&rig, "/v1/responses/resp_bg", "incomplete").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_that_delete_one_response_one_does() {
    let rig = Rig::with(Setup { gated: true, ..Setup::default() }).await;
    rig.begin("/v1/responses", "bg", BACKGROUND).await.answer().await;
    rig.gate.wait_begun(1);
    let (one, other) = tokio::join!(ask(&rig, DELETE), ask(&rig, DELETE));
    let mut said = [one.status, other.status];
    said.sort_unstable();
    assert_eq!(said, [200, 404]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_that_has_ended_before_its_delete_was_heard_is_gone_and_was_completed() {
    let thinker = Thinker::default();
    let mut rig = Rig::with(Setup::scripted(thinker.script(false))).await;
    let deleted = too_late(&rig, &thinker, DELETE).await;
    assert_eq!((deleted.status, &deleted.json()["deleted"]), (200, &true.into()));
    assert_eq!(rig.get("/v1/responses/resp_bg").await.code(), "request_not_found");
    assert_eq!(rig.ended().await.1.outcome, Outcome::Completed(Finish::Length));
}

/// A client waits for it, so there is nothing to fetch; but it is not nowhere either.
#[tokio::test(flavor = "multi_thread")]
async fn who_asks_for_a_request_whose_client_waits_is_told_that_it_is_in_flight() {
    let rig = Rig::with(Setup { gated: true, ..Setup::default() }).await;
    let body = BACKGROUND.replace(",\"background\":true", "");
    let mut waits = rig.begin("/v1/responses", "bg", &body).await;
    rig.gate.wait_begun(1);
    for how in
        [("GET", "/v1/responses/resp_bg"), ("GET", "/v1/requests/bg"), CANCEL_RESPONSE, DELETE]
    {
        let answer = ask(&rig, how).await;
        assert_eq!((answer.status, &*answer.code()), (409, "request_in_flight"), "{how:?}");
        let why = answer.json()["error"]["message"].to_string();
        assert!(why.contains("/v1/requests/bg/cancel"), "{how:?}: {why}");
    }
    rig.gate.open();
    assert_eq!(waits.answer().await.status, 200, "and none of these has touched it");
}

/// Another request of the client's has the same id.
#[tokio::test(flavor = "multi_thread")]
async fn deleting_a_response_touches_no_other_request_of_its_id() {
    let mut rig = Rig::with(Setup { gated: true, ..Setup::default() }).await;
    rig.begin("/v1/responses", "bg", BACKGROUND).await.answer().await;
    rig.gate.wait_begun(1);
    let body = r#"{"model":"sim","prompt":"hello","max_tokens":4}"#;
    let mut other = rig.begin("/v1/completions", "bg", body).await;
    rig.metric_is("requests_waiting", 1.0).await;
    assert_eq!(ask(&rig, DELETE).await.status, 200);
    rig.gate.open();
    assert_eq!(other.answer().await.status, 200);
    let mut ended = [rig.ended().await.1.outcome, rig.ended().await.1.outcome];
    ended.sort_by_key(|outcome| matches!(outcome, Outcome::Completed(_)));
    let cancelled = Outcome::Cancelled(CancelCause::Operator);
    assert_eq!(ended, [cancelled, Outcome::Completed(Finish::Length)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_looks_up_or_cancels_is_identified_for_the_endpoint_that_the_request_came_through() {
    let (asked_in, mut asked) = mpsc::channel(16);
    let identify = move |caller: &Caller| {
        asked_in.try_send((caller.endpoint, caller.looks_up)).expect("the test reads on");
        Identified::Known(acme(), "known".into())
    };
    let script = Script { identify: Some(Box::new(identify)), ..Script::default() };
    let Setup { decision, .. } = detach();
    let rig = Rig::with(Setup { gated: true, decision, ..Setup::scripted(script) }).await;
    let chat =
        r#"{"model":"sim","messages":[{"role":"user","content":"hello"}],"max_tokens":4000}"#;
    let text = r#"{"model":"sim","prompt":"hello","max_tokens":4000}"#;
    let stories = [
        (Endpoint::Chat, "/v1/chat/completions", chat),
        (Endpoint::Completions, "/v1/completions", text),
        (Endpoint::Responses, "/v1/responses", BACKGROUND),
    ];
    for (endpoint, path, body) in stories {
        let id = endpoint.as_str();
        let live = rig.begin(path, id, body).await;
        assert_eq!(asked.recv().await, Some((endpoint, false)), "{path}");
        rig.metric_is("requests_running", 1.0).await;
        let (get, cancel) = (format!("/v1/requests/{id}"), format!("/v1/requests/{id}/cancel"));
        assert_eq!(rig.post(&cancel, "").await.json()["status"], "cancelled");
        assert_eq!(asked.recv().await, Some((endpoint, true)), "POST {cancel}");
        drop(live);
        rig.gate.let_through(1);
        rig.metric_is("requests_running", 0.0).await;
        if endpoint == Endpoint::Responses {
            // Nobody lives of that name any more, but it is kept.
            assert_eq!(rig.get(&get).await.status, 200);
            assert_eq!(asked.recv().await, Some((endpoint, true)), "GET {get}");
            for (method, path) in [
                ("GET", "/v1/responses/resp_responses"),
                ("POST", "/v1/responses/resp_responses/cancel"),
                ("DELETE", "/v1/responses/resp_responses"),
            ] {
                assert_eq!(ask(&rig, (method, path)).await.status, 200, "{method} {path}");
                assert_eq!(asked.recv().await, Some((endpoint, true)), "{method} {path}");
            }
        }
    }
}
