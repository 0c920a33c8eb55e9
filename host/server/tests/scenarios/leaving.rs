//! Clients that leave, before and while they are answered.

use std::time::Duration;

use interlock_admission::PlanProposal;
use interlock_request::{CancelCause, DisconnectAction, DrainLimits, Finish, Outcome, Usage};
use interlock_sim::SimSettings;

use crate::rig::{Rig, Setup};

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
    let head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\nx-request-id: half\r\ncontent-length: 50\r\n\r\n{";
    connection.raw(head.as_bytes()).await;
    rig.metric_is("http_connections", 1.0).await;
    drop(connection);
    rig.metric_is("http_connections", 0.0).await;
    // Its id is free again.
    let mut again = rig.begin("/v1/completions", "half", r#"{"model":"sim","prompt":"x"}"#).await;
    assert_eq!(again.answer().await.status, 200);
}
