//! Starting, stopping, failing: what health says and what clients get meanwhile.

use std::time::Duration;

use interlock_request::{CancelCause, Finish, Outcome};
use interlock_server::{Served, ServerConfig};
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
    assert_eq!(rig.gone().await, Served { cancelled: 0 });
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
    assert_eq!(rig.gone().await, Served { cancelled: 2 });
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
    assert_eq!(rig.gone().await, Served { cancelled: 0 });
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
