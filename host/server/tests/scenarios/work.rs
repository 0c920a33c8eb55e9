//! What the host computes for requests before they are admitted: on the pool's threads, in a queue,
//! within bounds.

use std::convert::Infallible;
use std::future::Future;
use std::num::NonZeroUsize;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Frame;
use interlock_engine::{
    CacheConfig, EngineConfig, EngineMetrics, EngineState, EngineThread, Engines, PrefixSharing,
    WaitingConfig,
};
use interlock_metrics::Registry;
use interlock_policy_api::{Identified, Identity, Reason, Rejection};
use interlock_policy_chain::{LimitsConfig, Policies, PolicyMetrics};
use interlock_request::{ByteSize, ModelId, SamplingDefaults};
use interlock_server::{
    Class, DetachedConfig, ModelPart, PrefixKeys, STUCK_MAX, ServedModel, ServerConfig,
    ServerMetrics, ServerParts, WorkConfig, WorkError, WorkJob, WorkMetrics, WorkPool, app,
    system_time,
};
use interlock_sim::{Gate, SimModel, SimSettings};
use tokio::task::JoinHandle;
use tokio::time::{Instant, Sleep};
use tower::ServiceExt;

use crate::rig::{Latch, Rig, Script, Setup, within};

const SHORT: &str = r#"{"model":"sim","prompt":"x","max_tokens":1}"#;
const HOUR: Duration = Duration::from_secs(3600);

/// Two threads, a queue of three, 16 MiB.
fn setup() -> Setup {
    let work = WorkConfig {
        threads: NonZeroUsize::new(2),
        requests_max: NonZeroUsize::new(3).expect("not 0"),
        memory_max: ByteSize(16 << 20),
        time_max: HOUR,
    };
    Setup { work, ..Setup::default() }
}

/// Both of the pool's threads, held until the latch is open.
struct Full {
    latch: Latch,
    held: Vec<JoinHandle<Result<(), WorkError>>>,
}

impl Full {
    async fn of(rig: &Rig) -> Self {
        let (latch, inside) = (Latch::default(), Arc::new(AtomicUsize::new(0)));
        let hold = |class| {
            let (work, latch, inside) = (rig.work.clone(), latch.clone(), Arc::clone(&inside));
            tokio::spawn(async move {
                let held = move || {
                    inside.fetch_add(1, Ordering::SeqCst);
                    latch.wait();
                };
                work.run(WorkJob::new(class, "holder"), held).await
            })
        };
        let held = vec![hold(Class::Small), hold(Class::Small)];
        within(async {
            while inside.load(Ordering::SeqCst) < 2 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        Self { latch, held }
    }

    async fn end(self) {
        self.latch.open();
        for held in self.held {
            assert_eq!(within(held).await.expect("no panic"), Ok(()));
        }
    }
}

fn queued(rig: &Rig) -> f64 {
    ["small", "medium", "large"]
        .map(|c| rig.metric(&format!("work_items_queued{{class=\"{c}\"}}")))
        .iter()
        .sum()
}

async fn queued_is(rig: &Rig, count: f64) {
    within(async {
        while queued(rig) != count {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// All work that has ended in any way, as far as requests are concerned.
fn worked(rig: &Rig) -> f64 {
    let done = |class: &str| {
        rig.metric(&format!("work_items_total{{class=\"{class}\",outcome=\"done\"}}"))
    };
    ["small", "medium", "large"].map(done).iter().sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn health_answers_while_the_pool_is_full_and_its_gauge_says_what_waits() {
    let work = WorkConfig { memory_max: WorkConfig::default().memory_max, ..setup().work };
    let rig = Rig::with(Setup { work, ..setup() }).await;
    let full = Full::of(&rig).await;
    let mut waits = rig.begin("/v1/completions", "a", SHORT).await;
    // Not a byte of it is parsed on the only thread that answers.
    let ids = "1,".repeat(1_000_000);
    let body = format!(r#"{{"model":"sim","prompt":[{ids}-1]}}"#);
    let mut long = rig.begin("/v1/completions", "b", &body).await;
    queued_is(&rig, 2.0).await;
    assert_eq!(rig.metric("work_items_queued{class=\"large\"}"), 1.0);
    assert_eq!(rig.metric("requests_waiting"), 0.0, "that is the engine's");
    for path in ["/health/ready", "/health/live", "/metrics", "/v1/models"] {
        assert_eq!(rig.get(path).await.status, 200, "{path}");
    }
    full.end().await;
    assert_eq!((waits.answer().await.status, long.answer().await.status), (200, 400));
    assert_eq!(queued(&rig), 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_line_is_503_and_another_tenant_still_finds_a_place() {
    let tenant = |caller: &interlock_policy_api::Caller| {
        let named = caller.headers.0.first().map(|(_, tenant)| tenant.clone());
        let identity = Identity { tenant: named.unwrap_or_default(), ..Identity::default() };
        Identified::Known(identity, "named".into())
    };
    let script = Script {
        headers: vec!["x-tenant".into()],
        identify: Some(Box::new(tenant)),
        ..Script::default()
    };
    let rig = Rig::with(Setup { script, ..setup() }).await;
    let full = Full::of(&rig).await;
    let ask = async |tenant: &str| {
        let mut connection = rig.connect().await;
        connection.send("POST", "/v1/completions", &[("x-tenant", tenant)], SHORT).await;
        connection
    };
    let mut flood = Vec::new();
    for waiting in 1..=3_u32 {
        flood.push(ask("flood").await);
        queued_is(&rig, waiting.into()).await;
    }
    let refused = ask("flood").await.answer().await;
    assert_eq!((refused.status, refused.code().as_str()), (503, "work_queue_full"), "{refused:?}");
    assert!(refused.header("retry-after").is_some(), "{refused:?}");
    // In the place of the flood's last.
    let mut other = ask("other").await;
    assert_eq!(flood.pop().expect("three").answer().await.code(), "work_queue_full");
    full.end().await;
    assert_eq!(other.answer().await.status, 200);
    for mut connection in flood {
        assert_eq!(connection.answer().await.status, 200);
    }
    assert_eq!(rig.metric("http_refusals_total{reason=\"work_queue_full\"}"), 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_strikes_in_the_line() {
    let limits = LimitsConfig { queue_max: Duration::from_millis(50), ..LimitsConfig::default() };
    let rig = Rig::with(Setup { limits, ..setup() }).await;
    let full = Full::of(&rig).await;
    let answer = rig.post("/v1/completions", SHORT).await;
    assert_eq!((answer.status, answer.code().as_str()), (504, "deadline_queue"), "{answer:?}");
    assert_eq!(queued(&rig), 0.0);
    full.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_the_line_frees_its_place() {
    let rig = Rig::with(setup()).await;
    let full = Full::of(&rig).await;
    let waiting = rig.begin("/v1/completions", "a", SHORT).await;
    queued_is(&rig, 1.0).await;
    drop(waiting);
    queued_is(&rig, 0.0).await;
    assert_eq!(rig.metric("work_items_total{class=\"small\",outcome=\"abandoned\"}"), 1.0);
    full.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_in_the_line_can_be_cancelled_and_holds_up_no_shutdown() {
    let server = ServerConfig { drain_max: Duration::ZERO, ..ServerConfig::default() };
    let mut rig = Rig::with(Setup { server, ..setup() }).await;
    let full = Full::of(&rig).await;
    let mut asked = rig.begin("/v1/completions", "a", SHORT).await;
    queued_is(&rig, 1.0).await;
    assert_eq!(rig.post("/v1/requests/a/cancel", "").await.status, 200);
    assert_eq!(asked.answer().await.code(), "request_cancelled");
    let mut waiting = rig.begin("/v1/completions", "b", SHORT).await;
    queued_is(&rig, 1.0).await;
    // The pool's threads are where they were: nobody waits for them.
    rig.shut_down();
    assert_eq!(waiting.answer().await.code(), "shutting_down");
    assert_eq!(rig.gone().await.cancelled, 1);
    full.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_requests_hold_before_they_are_admitted_is_bounded_and_the_others_wait() {
    let work = WorkConfig { requests_max: NonZeroUsize::new(99).expect("not 0"), ..setup().work };
    let rig = Rig::with(Setup { work, ..setup() }).await;
    let full = Full::of(&rig).await;
    // Two megabytes, and two more to read them.
    let body = format!(r#"{{"model":"sim","prompt":"{}"}}"#, "x".repeat(2 << 20));
    let mut all = Vec::new();
    for n in 0..8 {
        // What finds no room is not read, so its client does not get to send it.
        let (mut connection, body) = (rig.connect().await, body.clone());
        let id = n.to_string();
        all.push(tokio::spawn(async move {
            let headers = [("x-request-id", &*id)];
            connection.send("POST", "/v1/completions", &headers, &body).await;
            connection.answer().await
        }));
    }
    within(async {
        while rig.metric("work_memory_requests_waiting") == 0.0 {
            assert!(rig.metric("work_memory_bytes") <= f64::from(16 << 20));
            tokio::task::yield_now().await;
        }
    })
    .await;
    // Small ones find room.
    let mut small = rig.begin("/v1/completions", "small", SHORT).await;
    rig.metric_is("work_items_queued{class=\"small\"}", 1.0).await;
    full.end().await;
    assert_eq!(small.answer().await.status, 200);
    for sending in all {
        let answer = within(sending).await.expect("no panic");
        assert_eq!(answer.code(), "context_length_exceeded");
    }
    rig.metric_is("work_memory_bytes", 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_takes_more_memory_than_one_may_is_413_whatever_its_length() {
    let rig = Rig::with(setup()).await;
    // A megabyte of token ids, which are read one by one: more than 8 MiB.
    let body = format!(r#"{{"model":"sim","prompt":[{}1]}}"#, "1,".repeat(500_000));
    let answer = rig.post("/v1/completions", &body).await;
    assert_eq!((answer.status, answer.code().as_str()), (413, "prompt_too_costly"), "{answer:?}");
    assert!(answer.body.contains("8388608"), "{answer:?}");
    assert_eq!(worked(&rig), 0.0);
    rig.metric_is("work_memory_bytes", 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_messages_or_ids_than_the_context_holds_are_refused_without_rendering() {
    let rig = Rig::with(Setup { work: WorkConfig::default(), ..Setup::default() }).await;
    let messages = r#"{"role":"user","content":"x"},"#.repeat(60_000);
    let chat = format!(r#"{{"model":"sim","messages":[{}]}}"#, messages.trim_end_matches(','));
    let answer = rig.post("/v1/chat/completions", &chat).await;
    assert_eq!((answer.status, answer.code().as_str()), (400, "context_length_exceeded"));
    assert!(answer.body.contains("at least 60000 tokens"), "{answer:?}");
    // It was read, and that was all.
    assert_eq!(worked(&rig), 1.0);
    let ids = format!(r#"{{"model":"sim","prompt":[{}1]}}"#, "1,".repeat(9_999));
    let answer = rig.post("/v1/completions", &ids).await;
    assert!(answer.body.contains("prompt has 10000 tokens"), "{answer:?}");
    assert_eq!(worked(&rig), 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_ask_costs_no_work() {
    let reject = |_: &interlock_policy_api::Caller| {
        let reason = Reason { code: "too_often".into(), detail: None };
        let headers = vec![];
        Identified::Reject(Rejection { status: 429, reason, retry_after: None, headers })
    };
    let script = Script { identify: Some(Box::new(reject)), ..Script::default() };
    let rig = Rig::with(Setup { script, ..setup() }).await;
    let body = format!(r#"{{"model":"sim","prompt":"{}"}}"#, "1".repeat(3 << 20));
    let answer = rig.post("/v1/completions", &body).await;
    assert_eq!((answer.status, answer.code().as_str()), (429, "too_often"));
    assert_eq!(worked(&rig), 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_that_is_stuck_too_often_has_its_chats_refused_by_name_and_nothing_else() {
    let rig = Rig::with(setup()).await;
    let chat = r#"{"model":"sim","messages":[{"role":"user","content":"x"}],"max_tokens":1}"#;
    let latch = Latch::default();
    for n in 1..=STUCK_MAX {
        assert_eq!(rig.post("/v1/chat/completions", chat).await.status, 200, "{n}");
        let (work, stuck) = (rig.work.clone(), latch.clone());
        let endless = tokio::spawn(async move {
            let owner = Some((ModelId::new("sim"), ModelPart::ChatTemplate));
            work.run(WorkJob { owner, ..WorkJob::new(Class::Small, "") }, move || stuck.wait())
                .await
        });
        rig.metric_is("work_items_running{class=\"small\"}", 1.0).await;
        rig.work.look(HOUR);
        let ended = within(endless).await.expect("no panic");
        assert!(matches!(ended, Err(WorkError::Endless { .. })), "{ended:?}");
    }
    let stuck = "work_threads_stuck{model=\"sim\",part=\"chat_template\"}";
    assert_eq!(rig.metric(stuck), 4.0);
    let refused = rig.post("/v1/chat/completions", chat).await;
    assert_eq!((refused.status, refused.code().as_str()), (503, "prompt_stuck"));
    assert!(refused.body.contains("the chat template of the model sim"), "{refused:?}");
    assert!(refused.header("retry-after").is_some(), "{refused:?}");
    assert_eq!(rig.post("/v1/completions", SHORT).await.status, 200);
    latch.open();
    rig.metric_is(stuck, 0.0).await;
    assert_eq!(rig.post("/v1/chat/completions", chat).await.status, 200);
}

/// A device from which no pass comes back. When it is dropped, its thread must not wait for one.
struct Stalled(Gate, Option<EngineThread>);

impl Drop for Stalled {
    fn drop(&mut self) {
        self.0.open();
        drop(self.1.take());
    }
}

/// The simulated model on such a device, behind routes without sockets.
fn stalled(limits: &LimitsConfig) -> (axum::Router, Stalled) {
    let registry = Arc::new(Registry::new());
    let gate = Gate::closed();
    let device = gate.clone();
    let mut engines = Engines::default();
    let engine = engines.add(
        &EngineConfig::default(),
        &CacheConfig::default(),
        &WaitingConfig::default(),
        &EngineMetrics::register(&registry),
        move || Ok::<_, String>(SimModel::gated(SimSettings::default(), device)),
    );
    let thread = engines.spawn().expect("a thread");
    while matches!(engine.state(), EngineState::Starting) {
        std::thread::yield_now();
    }
    let model = ServedModel {
        id: ModelId::new("sim"),
        aliases: vec![],
        sampling: SamplingDefaults::OPENAI,
        text: Arc::new(OnceLock::from(crate::rig::text())),
        engine,
    };
    let metrics = PolicyMetrics::register(&registry);
    let parts = ServerParts {
        config: ServerConfig::default(),
        models: vec![model],
        detached: DetachedConfig::default(),
        policies: Arc::new(Policies::new(vec![], limits.ceilings(), metrics)),
        work: WorkPool::in_line(&WorkConfig::default(), WorkMetrics::register(&registry)),
        prefix_keys: PrefixKeys::new(PrefixSharing::default()),
        in_flight: interlock_server::InFlight::default(),
        wall: Arc::new(system_time),
        metrics: ServerMetrics::register(&registry),
        registry: Some(Arc::clone(&registry)),
    };
    (app(parts), Stalled(gate, Some(thread)))
}

/// A body that takes its time, and then comes at once.
struct Slow(Pin<Box<Sleep>>, Option<Bytes>);

impl hyper::body::Body for Slow {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        std::task::ready!(self.0.as_mut().poll(cx));
        Poll::Ready(self.1.take().map(|bytes| Ok(Frame::data(bytes))))
    }
}

fn slow(time: Duration) -> Request<Body> {
    let bytes = Bytes::from_static(SHORT.as_bytes());
    let body = Slow(Box::pin(tokio::time::sleep(time)), Some(bytes));
    Request::post("/v1/completions").body(Body::new(body)).expect("a request")
}

// In virtual time, so that it says exactly when.
#[tokio::test(start_paused = true)]
async fn deadlines_count_from_the_head_and_not_from_when_the_body_was_there() {
    let first_token_max = Duration::from_millis(300);
    let (app, _stalled) = stalled(&LimitsConfig { first_token_max, ..LimitsConfig::default() });
    // Admitted in between, and not admitted at all.
    for body_takes in [200, 299, 400, 5_000] {
        let began = Instant::now();
        let answer = app.clone().oneshot(slow(Duration::from_millis(body_takes))).await;
        let answer = answer.expect("routes do not fail");
        assert_eq!(
            (answer.status().as_u16(), began.elapsed()),
            (504, first_token_max),
            "{body_takes}"
        );
        let body = answer.into_body().collect().await.expect("it is there").to_bytes();
        assert!(String::from_utf8_lossy(&body).contains("deadline_first_token"), "{body:?}");
    }
}
