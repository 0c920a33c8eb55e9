//! Clients that leave, before and while they are answered.

use std::time::Duration;

use interlock_policy_api::{Admission, Identified, Identity, PlanProposal};
use interlock_request::{
    ByteSize, CancelCause, DisconnectAction, DrainLimits, Finish, Outcome, Usage,
};
use interlock_server::{HalfClose, ServerConfig};
use interlock_sim::SimSettings;

use crate::rig::{Latch, Rig, Script, Setup, within};
use crate::wire::Connection;

const ENDLESS: &str = r#"{"model":"sim","prompt":"hello","max_tokens":4000}"#;
const ENDLESS_STREAM: &str = r#"{"model":"sim","prompt":"hello","max_tokens":4000,"stream":true}"#;

fn gated() -> Setup {
    Setup { gated: true, ..Setup::default() }
}

const LEFT: Outcome = Outcome::Cancelled(CancelCause::Disconnect);

#[tokio::test(flavor = "multi_thread")]
async fn leaving_a_stream_or_a_whole_answer_cancels_it_in_the_pass_that_is_in_the_device() {
    for body in [ENDLESS, ENDLESS_STREAM] {
        let mut rig = Rig::with(gated()).await;
        let connection = rig.begin("/v1/completions", "leaver", body).await;
        rig.gate.let_through(3);
        rig.gate.wait_begun(4);
        drop(connection);
        rig.metric_is("http_connections", 0.0).await;
        rig.gate.open();
        let (id, summary) = rig.ended().await;
        assert_eq!((id.as_str(), &summary.outcome), ("leaver", &LEFT));
        // The prompt's pass gave the first token, and the pass in the device was the fourth; the
        // driver may have been one pass late to hear of it.
        let Usage { prompt_tokens, generated_tokens, .. } = summary.usage;
        assert_eq!(prompt_tokens, 6);
        assert!(generated_tokens < 4000, "{generated_tokens}");
        let ended = r#"requests_total{endpoint="completions",model="sim",outcome="disconnected"}"#;
        assert_eq!(rig.metric(ended), 1.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn leaving_the_waiting_room_gives_the_place_back_without_a_pass() {
    for body in [ENDLESS, ENDLESS_STREAM] {
        let mut rig = Rig::with(gated()).await;
        let first = rig.begin("/v1/completions", "first", ENDLESS).await;
        rig.gate.wait_begun(1);
        let second = rig.begin("/v1/completions", "second", body).await;
        rig.metric_is("requests_waiting", 1.0).await;
        drop(second);
        rig.metric_is("http_connections", 1.0).await;
        rig.gate.open();
        let (id, summary) = rig.ended().await;
        assert_eq!((id.as_str(), &summary.outcome), ("second", &LEFT));
        assert_eq!(summary.usage, Usage::default());
        drop(first);
        assert_eq!(rig.ended().await.0, "first");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_goes_on_after_its_client_left_until_its_limit() {
    let drain = |tokens_max| DrainLimits { time_max: Duration::from_secs(20), tokens_max };
    let on_disconnect = Some(DisconnectAction::Drain(drain(10)));
    let setup = Setup::planning(PlanProposal { on_disconnect, ..PlanProposal::default() });
    // A pass takes long enough for the driver to hear of the client before 4000 of them are over.
    let model = SimSettings { decode: Duration::from_millis(1), ..setup.model.clone() };
    let mut rig = Rig::with(Setup { gated: true, model, ..setup }).await;
    let connection = rig.begin("/v1/completions", "leaver", ENDLESS_STREAM).await;
    rig.gate.wait_begun(1);
    drop(connection);
    rig.metric_is("http_connections", 0.0).await;
    rig.gate.open();
    let (_, summary) = rig.ended().await;
    assert_eq!(summary.outcome, LEFT);
    assert!(summary.usage.generated_tokens >= 10, "{summary:?}");
    assert!(summary.usage.generated_tokens < 4000, "{summary:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_that_reaches_the_end_is_a_whole_answer() {
    let drain = DrainLimits { time_max: Duration::from_secs(20), tokens_max: 1000 };
    let on_disconnect = Some(DisconnectAction::Drain(drain));
    let setup = Setup::planning(PlanProposal { on_disconnect, ..PlanProposal::default() });
    let mut rig = Rig::with(Setup { gated: true, ..setup }).await;
    let body = r#"{"model":"sim","prompt":"hello","max_tokens":30}"#;
    let connection = rig.begin("/v1/completions", "leaver", body).await;
    rig.gate.wait_begun(1);
    drop(connection);
    rig.metric_is("http_connections", 0.0).await;
    rig.gate.open();
    let (_, summary) = rig.ended().await;
    assert_eq!(summary.outcome, Outcome::Completed(Finish::Length));
    assert_eq!(summary.usage, Usage { prompt_tokens: 6, cached_tokens: 0, generated_tokens: 30 });
}

#[tokio::test(flavor = "multi_thread")]
async fn leaving_before_the_body_is_there_leaves_nothing_behind() {
    let rig = Rig::start().await;
    let mut connection = rig.connect().await;
    let head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nx-request-id: half\r\ncontent-length: 50\r\n\r\n{";
    connection.raw(head.as_bytes()).await;
    rig.metric_is("http_connections", 1.0).await;
    drop(connection);
    rig.metric_is("http_connections", 0.0).await;
    // Its id is free again.
    let mut again = rig.begin("/v1/completions", "half", r#"{"model":"sim","prompt":"x"}"#).await;
    assert_eq!(again.answer().await.status, 200);
}

/// A request as bytes, after which the connection stays open.
fn request(method: &str, path: &str, id: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\nx-request-id: {id}\r\n\
         content-length: {length}\r\n\r\n{body}"
    )
}

const SHORT: &str = r#"{"model":"sim","prompt":"x","max_tokens":1}"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_half_closed_client_gets_whatever_is_answered_at_once() {
    for half_close in [HalfClose::Left, HalfClose::Wait] {
        let server = ServerConfig { half_close, ..ServerConfig::default() };
        let setup = Setup { server, seats: 1, gated: true, ..Setup::default() };
        let rig = Rig::with(setup).await;
        // Both places are taken, so that a request which is in order is refused, too.
        let running = rig.begin("/v1/completions", "running", ENDLESS).await;
        rig.gate.wait_begun(1);
        let waiting = rig.begin("/v1/completions", "waiting", ENDLESS).await;
        rig.metric_is("requests_waiting", 1.0).await;
        let unknown = SHORT.replace("sim", "nobody");
        for (method, path, body, status) in [
            ("GET", "/metrics", "", 200),
            ("GET", "/health/live", "", 200),
            ("GET", "/health/ready", "", 200),
            ("GET", "/v1/models", "", 200),
            ("GET", "/v1/requests/nobody", "", 404),
            ("POST", "/v1/requests/nobody/cancel", "", 404),
            ("POST", "/v1/completions", "not json", 400),
            ("POST", "/v1/completions", &unknown, 404),
            ("POST", "/v1/completions", SHORT, 429),
        ] {
            for time in 0..30 {
                let mut connection = rig.connect().await;
                connection.raw(request(method, path, "half", body).as_bytes()).await;
                connection.half_close().await;
                let answer = connection.answer().await;
                assert_eq!(answer.status, status, "{half_close:?} {path}, time {time}");
                assert!(!answer.body.is_empty(), "{half_close:?} {path}, time {time}");
            }
        }
        // A body that breaks off is said to.
        let mut connection = rig.connect().await;
        let whole = request("POST", "/v1/completions", "half", SHORT);
        connection.raw(&whole.as_bytes()[..whole.len() - 5]).await;
        connection.half_close().await;
        assert_eq!(connection.answer().await.status, 400);
        drop((running, waiting));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_closed_client_that_is_waited_for_gets_its_generation_and_may_still_reset() {
    let server = ServerConfig { half_close: HalfClose::Wait, ..ServerConfig::default() };
    let mut rig = Rig::with(Setup { server, ..gated() }).await;
    for body in [ENDLESS, ENDLESS_STREAM] {
        let body = body.replace("4000", "40");
        let begun = rig.gate.begun().len();
        let mut connection = rig.begin("/v1/completions", "half", &body).await;
        connection.half_close().await;
        rig.gate.wait_begun(begun + 1);
        rig.gate.let_through(40);
        let answer = connection.answer().await;
        assert_eq!(answer.status, 200);
        assert!(answer.body.contains(r#""finish_reason":"length""#), "{answer:?}");
        assert_eq!(rig.ended().await.1.outcome, Outcome::Completed(Finish::Length));
    }
    for body in [ENDLESS, ENDLESS_STREAM] {
        let begun = rig.gate.begun().len();
        let mut connection = rig.begin("/v1/completions", "half", body).await;
        connection.raw(b"\r\nGET /metrics HT").await;
        connection.half_close().await;
        rig.gate.wait_begun(begun + 1);
        connection.reset();
        rig.metric_is("http_connections", 0.0).await;
        rig.gate.let_through(1000);
        assert_eq!(rig.ended().await.1.outcome, LEFT);
        rig.metric_is("requests_running", 0.0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_whose_end_lies_behind_its_request_never_reaches_the_device() {
    for body in [ENDLESS, ENDLESS_STREAM] {
        for behind in ["", "\r\n", &request("GET", "/metrics", "next", "")] {
            let latch = Latch::default();
            let held = latch.clone();
            let admit = move |_: &_| {
                held.wait();
                Admission::default()
            };
            let script = Script { admit: Some(Box::new(admit)), slow: true, ..Script::default() };
            let mut rig = Rig::with(Setup { gated: true, ..Setup::scripted(script) }).await;
            let mut connection = rig.connect().await;
            let begun = request("POST", "/v1/completions", "leaver", body) + behind;
            connection.raw(begun.as_bytes()).await;
            // Its end is in the socket while a policy is asked, long before there is an answer.
            rig.metric_is("requests_waiting", 1.0).await;
            connection.half_close().await;
            latch.open();
            let (id, summary) = rig.ended().await;
            assert_eq!((id.as_str(), &summary.outcome), ("leaver", &LEFT));
            assert_eq!(summary.usage, Usage::default());
            assert_eq!(rig.gate.begun().len(), 0, "no pass was for it");
            connection.closed().await;
            rig.metric_is("http_connections", 0.0).await;
            rig.metric_is("requests_waiting", 0.0).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_while_a_policy_thinks_does_not_wait_for_it() {
    let latch = Latch::default();
    let held = latch.clone();
    let identify = move |_: &_| {
        held.wait();
        Identified::Known(Identity::default(), "known".into())
    };
    let script = Script { identify: Some(Box::new(identify)), slow: true, ..Script::default() };
    let rig = Rig::with(Setup::scripted(script)).await;
    for leave in [Connection::reset, drop] {
        let connection = rig.begin("/v1/completions", "leaver", ENDLESS).await;
        rig.metric_is("http_connections", 1.0).await;
        leave(connection);
        rig.metric_is("http_connections", 0.0).await;
    }
    latch.open();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_in_the_background_has_no_client_to_lose() {
    let mut rig = Rig::with(gated()).await;
    let body = r#"{"model":"sim","input":"x","max_output_tokens":3,"background":true}"#;
    let mut connection = rig.connect().await;
    connection.raw(request("POST", "/v1/responses", "behind", body).as_bytes()).await;
    connection.half_close().await;
    assert_eq!(connection.answer().await.status, 200);
    rig.gate.open();
    assert_eq!(rig.ended().await.1.outcome, Outcome::Completed(Finish::Length));
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_behind_one_another_are_answered_in_their_order_while_the_client_stays() {
    let rig = Rig::with(gated()).await;
    let mut connection = rig.connect().await;
    // The second is larger than what one read takes, and smaller than what is kept.
    let long = format!(r#"{{"model":"sim","prompt":"{}","max_tokens":1}}"#, "x".repeat(3000));
    let padded = format!("{long}{}", " ".repeat(100_000));
    let first = request("POST", "/v1/completions", "first", SHORT);
    let second = request("POST", "/v1/completions", "second", &padded);
    let third = request("GET", "/health/live", "third", "");
    let last = "GET /v1/models HTTP/1.1\r\nhost: localhost\r\nx-request-id: last\r\nconnection: close\r\n\r\n";
    connection.raw(format!("{first}\r\n{second}{third}{last}").as_bytes()).await;
    rig.gate.wait_begun(1);
    rig.gate.open();
    let all = connection.rest().await;
    let at = |id: &str| {
        all.find(&format!("x-request-id: {id}\r\n")).unwrap_or_else(|| panic!("{id} in {all}"))
    };
    assert!(at("first") < at("second") && at("second") < at("third") && at("third") < at("last"));
    assert_eq!(all.matches("HTTP/1.1 200").count(), 4, "{all}");
    assert!(all.contains(r#""prompt_tokens":3001"#), "the second is whole: {all}");
}

#[tokio::test(flavor = "multi_thread")]
async fn more_behind_a_request_than_is_kept_closes_the_connection_after_the_answer() {
    let server = ServerConfig { pipelined_max: ByteSize(1000), ..ServerConfig::default() };
    let mut rig = Rig::with(Setup { server, ..gated() }).await;
    let mut connection = rig.connect().await;
    let whole = request("GET", "/health/live", "second", "");
    let first = request("POST", "/v1/completions", "first", SHORT);
    let cut =
        request("POST", "/v1/completions", "third", &SHORT.replace('x', &"x".repeat(1 << 21)));
    connection.raw(first.as_bytes()).await;
    rig.gate.wait_begun(1);
    // All of it leaves this client, though nobody will look at it.
    connection.raw(format!("{whole}{cut}").as_bytes()).await;
    rig.gate.open();
    let first = within(connection.until("text_completion")).await;
    assert!(first.contains(r#""finish_reason":"length""#), "{first}");
    let rest = connection.rest().await;
    assert!(rest.contains("x-request-id: second"), "{rest}");
    assert!(!rest.contains(r#""text""#), "what was cut is not taken for a request: {rest}");
    assert_eq!(rig.ended().await.0, "first");
    rig.metric_is("http_connections", 0.0).await;
    assert_eq!(rig.metric(r#"http_connections_refused_total{reason="pipelined_max"}"#), 1.0);
}
