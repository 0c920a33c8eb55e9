//! Starting, stopping, failing: what health says and what clients get meanwhile.

use std::time::Duration;

use interlock_request::{CancelCause, FaultKind, Finish, Outcome};
use interlock_server::{ServeOutcome, ServerConfig};
use interlock_sim::SimSettings;

use crate::rig::{Latch, Rig, Setup, within};

const STREAM: &str = r#"{"model":"sim","prompt":"hello","max_tokens":40,"stream":true}"#;

async fn becomes(rig: &Rig, readiness: &str) {
    within(async {
        while rig.get("/health/ready").await.json()["status"] != readiness {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_says_starting_until_the_model_is_there() {
    let (loads, model) = (Latch::default(), SimSettings { stop: 0, ..SimSettings::default() });
    let rig = Rig::loading(Setup { model, loads: loads.clone(), ..Setup::default() }).await;
    let early = rig.get("/health/ready").await;
    assert_eq!((early.status, early.json()["status"].as_str()), (503, Some("starting")));
    assert_eq!(rig.get("/health/live").await.status, 200);
    let refused = rig.post("/v1/completions", STREAM).await;
    assert_eq!((refused.status, refused.code().as_str()), (503, "model_loading"));
    assert_eq!(refused.header("retry-after"), Some("1"));
    loads.open();
    becomes(&rig, "ready").await;
    assert_eq!(rig.post("/v1/completions", STREAM).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn shutting_down_lets_what_flows_finish_and_turns_the_new_away() {
    let mut rig = Rig::with(Setup { gated: true, ..Setup::default() }).await;
    let mut flowing = rig.begin("/v1/completions", "flowing", STREAM).await;
    rig.gate.let_through(2);
    flowing.until("data: ").await;
    rig.shut_down();
    becomes(&rig, "draining").await;
    let refused = rig.post("/v1/completions", STREAM).await;
    assert_eq!((refused.status, refused.code().as_str()), (503, "shutting_down"));
    assert!(refused.header("retry-after").is_some());
    rig.gate.open();
    let rest = flowing.rest().await;
    assert!(rest.contains("data: [DONE]"), "{rest}");
    assert!(!rest.contains("error"), "{rest}");
    assert_eq!(rig.gone().await, ServeOutcome { cancelled: 0 });
    assert_eq!(rig.ended().await.1.outcome, Outcome::Completed(Finish::Length));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_that_takes_too_long_cancels_and_tells_everyone() {
    let server = ServerConfig { drain_max: Duration::from_millis(50), ..ServerConfig::default() };
    let mut rig = Rig::with(Setup { gated: true, server, ..Setup::default() }).await;
    let mut flowing = rig.begin("/v1/completions", "flowing", STREAM).await;
    rig.gate.let_through(2);
    flowing.until("data: ").await;
    rig.gate.wait_begun(3); // in the device: who comes now must wait
    let mut waiting = rig.begin("/v1/completions", "waiting", STREAM).await;
    rig.metric_is("requests_waiting", 1.0).await;
    rig.shut_down();
    for client in [&mut flowing, &mut waiting] {
        let rest = client.rest().await;
        assert!(rest.contains("shutting_down") && rest.contains("[DONE]"), "{rest}");
    }
    rig.gate.open();
    assert_eq!(rig.gone().await, ServeOutcome { cancelled: 2 });
    for _ in 0..2 {
        let (_, summary) = rig.ended().await;
        assert_eq!(summary.outcome, Outcome::Cancelled(CancelCause::Shutdown));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_do_not_hold_the_shutdown_up() {
    let mut rig = Rig::start().await;
    rig.metric_is("http_connections", 0.0).await;
    let mut idle = rig.connect().await;
    rig.metric_is("http_connections", 1.0).await;
    rig.shut_down();
    assert_eq!(rig.gone().await, ServeOutcome { cancelled: 0 });
    assert_eq!(idle.rest().await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_panics_is_told_to_its_client_and_to_the_health_check() {
    let panic_at = std::num::NonZeroU64::new(5);
    let model = SimSettings { stop: 0, panic_at, ..SimSettings::default() };
    let mut rig = Rig::with(Setup { model, ..Setup::default() }).await;
    let answer = rig.post("/v1/completions", STREAM).await;
    let [.., error, "[DONE]"] = answer.events()[..] else { panic!("{answer:?}") };
    assert!(error.contains("internal_error"), "{error}");
    assert!(matches!(rig.ended().await.1.outcome, Outcome::Failed(_)));
    becomes(&rig, "failed").await;
    let refused = rig.post("/v1/completions", STREAM).await;
    assert_eq!((refused.status, refused.code().as_str()), (503, "engine_stopped"));
    assert_eq!(rig.get("/health/live").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_has_failed_is_told_to_everyone_by_its_name() {
    let device_lost_at = std::num::NonZeroU64::new(5);
    let model = SimSettings { stop: 0, device_lost_at, ..SimSettings::default() };
    let mut rig = Rig::with(Setup { model, gated: true, ..Setup::default() }).await;
    let mut flowing = rig.begin("/v1/completions", "flowing", STREAM).await;
    rig.gate.let_through(2);
    flowing.until("data: ").await;
    rig.gate.wait_begun(3); // in the device: who comes now must wait
    let mut waiting = rig.begin("/v1/completions", "waiting", STREAM).await;
    rig.metric_is("requests_waiting", 1.0).await;
    rig.gate.open();
    for client in [&mut flowing, &mut waiting] {
        let rest = client.rest().await;
        assert!(rest.contains("device_failed"), "{rest}");
        let Outcome::Failed(fault) = rig.ended().await.1.outcome else { panic!("{rest}") };
        assert_eq!(fault.kind, FaultKind::DeviceFailed);
    }
    let refused = rig.post("/v1/completions", STREAM).await;
    assert_eq!((refused.status, refused.code().as_str()), (503, "device_failed"));
    assert!(refused.header("retry-after").is_some());
    let ready = rig.get("/health/ready").await;
    let (status, told) = (ready.status, ready.json());
    assert_eq!(
        (status, &told["status"], &told["reason"]),
        (503, &"failed".into(), &"device_failed".into())
    );
    assert_eq!(rig.get("/health/live").await.status, 200);
    assert_eq!(rig.metric(r#"engine_failed_requests_total{code="device_failed"}"#), 2.0);
    // Told to stop, as it is by whoever looks after the engines, it says so still.
    rig.shut_down();
    assert_eq!(rig.gone().await, ServeOutcome { cancelled: 0 });
}

/// The other model's device is another's to lose: its stream comes to its end.
#[tokio::test(flavor = "multi_thread")]
async fn one_model_whose_device_has_failed_leaves_the_others_their_requests() {
    let device_lost_at = std::num::NonZeroU64::new(5);
    let other = SimSettings { stop: 0, device_lost_at, ..SimSettings::default() };
    let rig = Rig::with(Setup { other: Some(other), ..Setup::default() }).await;
    let of_other = STREAM.replace("sim", "other");
    let failed = rig.post("/v1/completions", &of_other).await;
    assert!(failed.body.contains("device_failed"), "{failed:?}");
    assert_eq!(rig.post("/v1/completions", &of_other).await.code(), "device_failed");
    let served = rig.post("/v1/completions", STREAM).await;
    assert!(served.body.contains("[DONE]") && !served.body.contains("error"), "{served:?}");
    let told = rig.get("/health/ready").await.json();
    assert_eq!(told["models"].to_string(), r#"{"other":"failed","sim":"ready"}"#);
}

/// The process is told to stop as soon as one has failed. Whoever comes while the others' requests
/// end is to hear what it is about.
#[tokio::test(flavor = "multi_thread")]
async fn while_the_others_finish_new_requests_are_told_that_the_device_has_failed() {
    let device_lost_at = std::num::NonZeroU64::new(1);
    let other = SimSettings { stop: 0, device_lost_at, ..SimSettings::default() };
    let mut rig = Rig::with(Setup { other: Some(other), gated: true, ..Setup::default() }).await;
    let mut flowing = rig.begin("/v1/completions", "flowing", STREAM).await;
    rig.gate.let_through(2);
    flowing.until("data: ").await;
    // Its next pass is in the device, so that whoever comes now waits.
    rig.gate.wait_begun(3);
    let of_other = STREAM.replace("sim", "other");
    let mut failing = rig.begin("/v1/completions", "failing", &of_other).await;
    rig.metric_is("requests_waiting", 1.0).await;
    rig.gate.let_through(1);
    let failed = failing.rest().await;
    assert!(failed.contains("device_failed"), "{failed}");
    rig.shut_down();
    let of_nobody = STREAM.replace("sim", "nobody");
    within(async {
        loop {
            let refused = rig.post("/v1/completions", &of_nobody).await;
            if refused.status != 404 {
                assert_eq!((refused.status, refused.code().as_str()), (503, "device_failed"));
                break;
            }
        }
    })
    .await;
    rig.gate.open();
    let rest = flowing.rest().await;
    assert!(rest.contains("[DONE]") && !rest.contains("error"), "{rest}");
    assert_eq!(rig.gone().await, ServeOutcome { cancelled: 0 });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_does_not_fit_the_devices_memory_is_told_so() {
    let model = SimSettings { stop: 0, fail_above_rows: Some(0), ..SimSettings::default() };
    let mut rig = Rig::with(Setup { model, ..Setup::default() }).await;
    let whole = STREAM.replace(",\"stream\":true", "");
    let refused = rig.post("/v1/completions", &whole).await;
    assert_eq!((refused.status, refused.code().as_str()), (503, "out_of_memory"));
    assert!(refused.header("retry-after").is_some());
    let error = refused.json()["error"].clone();
    assert_eq!(error["type"], "server_error");
    assert!(error["message"].as_str().is_some_and(|said| said.contains("memory")), "{error}");
    let Outcome::Failed(fault) = rig.ended().await.1.outcome else { panic!("it failed") };
    assert_eq!(fault.kind, FaultKind::OutOfMemory);
    let streamed = rig.post("/v1/completions", STREAM).await;
    assert!(streamed.body.contains("out_of_memory"), "{streamed:?}");
    assert_eq!(rig.metric(r#"engine_failed_requests_total{code="out_of_memory"}"#), 2.0);
    assert!(rig.metric(r#"engine_pass_failures_total{kind="too_large"}"#) >= 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn how_large_a_pass_may_be_is_told() {
    let model = SimSettings { stop: 0, fail_above_rows: Some(2), ..SimSettings::default() };
    let mut rig = Rig::with(Setup { model, gated: true, ..Setup::default() }).await;
    assert_eq!(rig.metric("engine_pass_rows_limit"), 64.0);
    assert_eq!(rig.metric("engine_pass_tokens_limit"), 2048.0 + 64.0);
    let mut clients = vec![rig.begin("/v1/completions", "first", STREAM).await];
    rig.gate.wait_begun(1);
    for name in ["second", "third", "fourth"] {
        clients.push(rig.begin("/v1/completions", name, STREAM).await);
    }
    rig.metric_is("requests_waiting", 3.0).await;
    rig.gate.open();
    within(async {
        // Three rows or four, as the pace has it: half of them at most fit the next.
        while rig.metric("engine_pass_rows_limit") > 2.0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    for client in &mut clients {
        let rest = client.rest().await;
        assert!(rest.contains("[DONE]") && !rest.contains("error"), "{rest}");
        assert_eq!(rig.ended().await.1.outcome, Outcome::Completed(Finish::Length));
    }
}
