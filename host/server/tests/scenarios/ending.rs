//! Requests that are ended by others: deadlines, operators, failures, policies.

use std::time::Duration;

use interlock_policy_api::{Decision, PlanProposal, Reason, Rejection};
use interlock_request::{CancelCause, Deadline, Deadlines, Outcome};

use crate::rig::{Rig, Setup};

const WHOLE: &str = r#"{"model":"sim","prompt":"hello","max_tokens":4000}"#;
const STREAM: &str = r#"{"model":"sim","prompt":"hello","max_tokens":4000,"stream":true}"#;

fn gated_with(deadlines: Deadlines) -> Setup {
    let proposal = PlanProposal { deadlines, ..PlanProposal::default() };
    Setup { gated: true, ..Setup::planning(proposal) }
}

const SOON: Option<Duration> = Some(Duration::from_millis(50));

#[tokio::test(flavor = "multi_thread")]
async fn each_deadline_is_told_at_once_while_a_pass_is_in_the_device() {
    let none = Deadlines::default();
    let stories = [
        (Deadline::FirstToken, Deadlines { first_token: SOON, ..none }, 0),
        (Deadline::InterToken, Deadlines { inter_token: SOON, ..none }, 1),
        (Deadline::Total, Deadlines { total: SOON, ..none }, 0),
    ];
    for (deadline, deadlines, passes) in stories {
        let code = format!("deadline_{}", deadline.as_str());
        let mut rig = Rig::with(gated_with(deadlines)).await;
        rig.gate.let_through(passes);
        let answer = rig.post("/v1/completions", WHOLE).await;
        assert_eq!((answer.status, answer.code()), (504, code.clone()));
        assert_eq!(rig.gate.ended(), passes, "the next pass is still in the device");
        rig.gate.open();
        let (_, summary) = rig.ended().await;
        assert_eq!(summary.outcome, Outcome::Cancelled(CancelCause::Deadline(deadline)));

        let mut rig = Rig::with(gated_with(deadlines)).await;
        rig.gate.let_through(passes);
        let answer = rig.post("/v1/completions", STREAM).await;
        assert_eq!(answer.status, 200);
        let [.., error, "[DONE]"] = answer.events()[..] else { panic!("{answer:?}") };
        assert!(error.contains(&code), "{error}");
        assert_eq!(rig.gate.ended(), passes, "the next pass is still in the device");
        rig.gate.open();
        rig.ended().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_queue_deadline_strikes_in_the_waiting_room_and_invites_to_come_back() {
    let mut rig = Rig::with(gated_with(Deadlines { queue: SOON, ..Deadlines::default() })).await;
    let mut first = rig.begin("/v1/completions", "first", WHOLE).await;
    rig.gate.wait_begun(1);
    let answer = rig.post("/v1/completions", WHOLE).await;
    assert_eq!((answer.status, answer.code().as_str()), (504, "deadline_queue"));
    assert_eq!(answer.header("retry-after"), Some("1"));
    rig.gate.open();
    assert_eq!(first.answer().await.status, 200, "the first had begun in time");
    rig.ended().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_cancels_a_request_whole_or_streamed_and_twice_is_harmless() {
    for body in [WHOLE, STREAM] {
        let mut rig = Rig::with(Setup { gated: true, ..Setup::default() }).await;
        let mut connection = rig.begin("/v1/completions", "victim", body).await;
        rig.gate.wait_begun(1);
        for _ in 0..2 {
            let cancelled = rig.post("/v1/requests/victim/cancel", "").await;
            assert_eq!(cancelled.status, 200, "{cancelled:?}");
        }
        let answer = connection.answer().await;
        assert!(answer.body.contains("request_cancelled"), "{answer:?}");
        if body == WHOLE {
            assert_eq!(answer.status, 409);
            assert_eq!(answer.header("x-should-retry"), Some("false"));
        }
        rig.gate.open();
        let (_, summary) = rig.ended().await;
        assert_eq!(summary.outcome, Outcome::Cancelled(CancelCause::Operator));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_of_the_same_id_are_served_and_cancelled_together() {
    let mut rig = Rig::with(Setup { gated: true, ..Setup::default() }).await;
    let id = "Root=1-67891233-abcdef012345678912345678";
    let mut first = rig.begin("/v1/completions", id, WHOLE).await;
    rig.gate.wait_begun(1);
    let mut second = rig.begin("/v1/completions", id, WHOLE).await;
    rig.metric_is("requests_waiting", 1.0).await;
    rig.gate.open();
    assert_eq!(first.answer().await.status, 200);
    assert_eq!(second.answer().await.status, 200);
    assert_eq!((rig.ended().await.0, rig.ended().await.0), (id.to_owned(), id.to_owned()));

    let mut rig = Rig::with(Setup { gated: true, ..Setup::default() }).await;
    let mut first = rig.begin("/v1/completions", id, WHOLE).await;
    rig.gate.wait_begun(1);
    let mut second = rig.begin("/v1/completions", id, WHOLE).await;
    rig.metric_is("requests_waiting", 1.0).await;
    assert_eq!(rig.post(&format!("/v1/requests/{id}/cancel"), "").await.status, 200);
    assert_eq!(first.answer().await.code(), "request_cancelled");
    assert_eq!(second.answer().await.code(), "request_cancelled");
    rig.gate.open();
    rig.ended().await;
    rig.ended().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_is_cancelled_while_it_sends_reads_the_answer_and_no_reset() {
    let rig = Rig::start().await;
    let mut connection = rig.connect().await;
    let head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nx-request-id: early\r\ncontent-length: 3000000\r\n\r\n";
    connection.raw(head.as_bytes()).await;
    crate::rig::within(async {
        while rig.post("/v1/requests/early/cancel", "").await.status != 200 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    for _ in 0..30 {
        connection.raw(&[b' '; 100_000]).await;
        // No event tells that the server has closed: a reset destroys what the client has not read
        // yet, and only bytes that come later than the answer can cause one. Where they come
        // sooner, the test sees less, and passes.
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
    let answer = connection.answer().await;
    assert_eq!((answer.status, answer.code().as_str()), (409, "request_cancelled"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_cancelled_even_while_its_body_arrives() {
    let rig = Rig::start().await;
    let mut connection = rig.connect().await;
    let head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nx-request-id: early\r\ncontent-length: 50\r\n\r\n{";
    connection.raw(head.as_bytes()).await;
    crate::rig::within(async {
        while rig.post("/v1/requests/early/cancel", "").await.status != 200 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    // It does not wait for the rest of the body; the connection does.
    assert_eq!(connection.line().await, "HTTP/1.1 409 Conflict");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_pass_is_an_error_that_keeps_its_reason_to_itself() {
    for body in [WHOLE, STREAM] {
        let mut rig = Rig::with(Setup { gated: true, ..Setup::default() }).await;
        let mut connection = rig.begin("/v1/completions", "unlucky", body).await;
        rig.gate.let_through(1);
        rig.gate.wait_begun(2);
        rig.gate.fail_next();
        rig.gate.open();
        let answer = connection.answer().await;
        assert!(answer.body.contains("internal_error"), "{answer:?}");
        assert!(answer.body.contains("unlucky"), "{answer:?}");
        assert!(!answer.body.contains("the gate"), "{answer:?}");
        let (_, summary) = rig.ended().await;
        assert!(matches!(summary.outcome, Outcome::Failed(_)), "{summary:?}");
        assert_eq!(rig.post("/v1/completions", WHOLE).await.status, 200, "the next is served");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policys_refusal_is_told_as_the_policy_said_it() {
    let reason = Reason { code: "quota_spent".into(), detail: Some("come back later".into()) };
    let retry_after = Some(Duration::from_millis(2500));
    let headers = vec![("x-quota".into(), "0".into())];
    let decision = Decision::Reject(Rejection { status: 429, reason, retry_after, headers });
    let rig = Rig::with(Setup { decision, ..Setup::default() }).await;
    let answer = rig.post("/v1/completions", STREAM).await;
    assert_eq!((answer.status, answer.code().as_str()), (429, "quota_spent"));
    assert_eq!(answer.json()["error"]["message"], "come back later");
    assert_eq!(answer.header("retry-after"), Some("3"));
    assert_eq!(answer.header("x-quota"), Some("0"));
    assert_eq!(rig.metric(r#"http_refusals_total{reason="policy"}"#), 1.0);
    assert_eq!(rig.metric("requests_waiting"), 0.0, "its place in the queue is free again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_waiting_room_is_429_with_a_time_to_come_back() {
    let rig = Rig::with(Setup { gated: true, seats: 1, ..Setup::default() }).await;
    let mut running = rig.begin("/v1/completions", "running", WHOLE).await;
    rig.gate.wait_begun(1);
    let mut waiting = rig.begin("/v1/completions", "waiting", WHOLE).await;
    rig.metric_is("requests_waiting", 1.0).await;
    let answer = rig.post("/v1/completions", WHOLE).await;
    assert_eq!((answer.status, answer.code().as_str()), (429, "waiting_room_full"));
    assert_eq!(answer.header("retry-after"), Some("1"));
    rig.gate.open();
    assert_eq!(running.answer().await.status, 200);
    assert_eq!(waiting.answer().await.status, 200);
}
