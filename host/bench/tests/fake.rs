//! Whole runs against a server of a few lines, which knows what it was asked and who left.

use std::convert::Infallible;
use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use hyper::body::{Bytes, Frame};
use interlock_bench::{
    Api, Plan, Progress, Report, Storming, Target, Unusable, Workload, room_for_connections, run,
};
use serde_json::{Value, json};
use tokio::sync::{Barrier, Mutex, mpsc, watch};

/// How the server treats whoever asks it.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Manner {
    /// Everyone at once.
    Prompt,
    /// One after the other, and nobody before so many have come.
    OneByOne(usize),
    /// All at the same time, and nobody before so many have come.
    Together(usize),
    /// Goes on until the client leaves, except for the first and for plain requests afterwards.
    Endless,
    /// 500 for all but the first request.
    Failing,
    /// 400 for everyone.
    Strict,
    /// Stops in the middle of every answer but the first.
    Cutting,
    /// Says nothing to all but the first.
    Silent,
}

struct Fake {
    manner: Manner,
    full: Barrier,
    turn: Mutex<()>,
    asked: AtomicU64,
    /// Requests in work, and clients that left before their answer was whole.
    running: watch::Sender<u64>,
    left: watch::Sender<u64>,
    /// Prompts, as they came.
    prompts: Mutex<Vec<String>>,
}

const FIRST: Duration = Duration::from_millis(30);
const NEXT: Duration = Duration::from_millis(4);

impl Fake {
    async fn start(manner: Manner) -> (Arc<Self>, String) {
        let full = match manner {
            Manner::OneByOne(many) | Manner::Together(many) => many,
            _ => 1,
        };
        let fake = Arc::new(Self {
            manner,
            full: Barrier::new(full),
            turn: Mutex::new(()),
            asked: AtomicU64::new(0),
            running: watch::Sender::new(0),
            left: watch::Sender::new(0),
            prompts: Mutex::default(),
        });
        let models = json!({ "data": [{ "id": "fake", "owned_by": "nobody" }] });
        let router = Router::new()
            .route("/v1/models", get(move || async { Json(models) }))
            .route("/v1/chat/completions", post(chat))
            .route("/metrics", get(metrics))
            .with_state(Arc::clone(&fake));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("it=http://{}", listener.local_addr().expect("it listens"));
        tokio::spawn(async move { axum::serve(listener, router).await });
        (fake, url)
    }
}

async fn metrics(State(fake): State<Arc<Fake>>) -> String {
    let running = *fake.running.borrow();
    format!("interlock_requests_running {running}\ninterlock_requests_waiting 0\n")
}

async fn chat(State(fake): State<Arc<Fake>>, Json(asked): Json<Value>) -> Response {
    let before = fake.asked.fetch_add(1, Ordering::Relaxed);
    let prompt = asked["messages"][0]["content"].as_str().expect("a prompt").to_owned();
    fake.prompts.lock().await.push(prompt);
    if fake.manner == Manner::Strict || (fake.manner == Manner::Failing && before > 0) {
        let status =
            if before > 0 { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::BAD_REQUEST };
        return (status, Json(json!({ "error": { "message": "I would not" } }))).into_response();
    }
    let tokens = asked["max_tokens"].as_u64().expect("a number");
    if asked["stream"] == false {
        let usage = json!({ "prompt_tokens": 3, "completion_tokens": tokens });
        let choices = json!([{ "message": { "content": "all of it" }, "finish_reason": "length" }]);
        return Json(json!({ "choices": choices, "usage": usage })).into_response();
    }
    assert_eq!(asked["ignore_eos"], true, "all answers should be equally long");
    let (to, chunks) = mpsc::channel(1);
    tokio::spawn(async move {
        fake.running.send_modify(|running| *running += 1);
        let whole = answer(&fake, before, tokens, &to).await.is_some();
        fake.running.send_modify(|running| *running -= 1);
        if !whole {
            fake.left.send_modify(|left| *left += 1);
        }
    });
    Response::new(Body::new(Chunks(chunks)))
}

/// None when the client left before the end.
async fn answer(fake: &Fake, before: u64, tokens: u64, to: &mpsc::Sender<Bytes>) -> Option<()> {
    let say = async |event: &str| to.send(format!("data: {event}\n\n").into()).await.ok();
    let rest = async |time| {
        tokio::select! {
            () = tokio::time::sleep(time) => Some(()),
            () = to.closed() => None,
        }
    };
    let chunk = |text: &str| json!({ "choices": [{ "delta": { "content": text } }] }).to_string();
    say(&json!({ "choices": [{ "delta": { "role": "assistant", "content": "" } }] }).to_string())
        .await?;
    let _turn = match fake.manner {
        Manner::OneByOne(_) if before > 0 => {
            fake.full.wait().await;
            Some(fake.turn.lock().await)
        }
        Manner::Together(_) if before > 0 => {
            fake.full.wait().await;
            None
        }
        Manner::Silent if before > 0 => {
            to.closed().await;
            return None;
        }
        _ => None,
    };
    rest(FIRST).await?;
    let endless = fake.manner == Manner::Endless && tokens > 8;
    let cutting = fake.manner == Manner::Cutting && before > 0;
    for said in 0.. {
        if cutting && said == 2 {
            return Some(());
        }
        if said >= tokens && !endless {
            break;
        }
        say(&chunk("a")).await?;
        rest(NEXT).await?;
    }
    say(r#"{"choices":[{"delta":{},"finish_reason":"length"}]}"#).await?;
    // Twice as many tokens as pieces of text: the server's count should be believed.
    say(&json!({ "choices": [], "usage": { "completion_tokens": 2 * tokens } }).to_string())
        .await?;
    say("[DONE]").await
}

struct Chunks(mpsc::Receiver<Bytes>);

impl hyper::body::Body for Chunks {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

fn nonzero(n: u32) -> NonZeroU32 {
    NonZeroU32::new(n).expect("not zero")
}

fn plan() -> Plan {
    Plan {
        workloads: vec![Workload::Short],
        concurrency: vec![nonzero(2)],
        iterations: nonzero(1),
        warmup: 0,
        max_tokens: nonzero(8),
        prompt_tokens: nonzero(64),
        api: Api::Chat,
        stream: true,
        ignore_eos: true,
        timeout: Duration::from_secs(60),
        seed: 1,
        storm: Storming {
            rounds: nonzero(5),
            leave_percent: 100,
            time: None,
            settle: Duration::from_secs(60),
        },
    }
}

async fn target(url: &str) -> Target {
    let address = url.parse().expect("an address");
    Target::meet(address, None, &[]).await.expect("it lists its model")
}

async fn measured(plan: Plan, url: &str) -> Report {
    run(plan, vec![target(url).await], Progress::Silent).await.expect("it can be measured")
}

#[tokio::test]
async fn figures_are_those_of_the_server() {
    // It answers nobody before both are there: they are sent at once.
    let (fake, url) = Fake::start(Manner::OneByOne(2)).await;
    let report = measured(plan(), &url).await;
    assert_eq!(report.failures(), 0, "{report}");
    let batch = &report.cells[0].batches[0];
    assert_eq!((batch.requests, batch.answered, batch.short), (2, 2, 0));
    assert_eq!((batch.chunks, batch.tokens, batch.counted_by_server), (16, 32, 2));
    // A request takes the server this long, and the second waits for the first.
    let (first, whole) = (FIRST.as_secs_f64(), (FIRST + NEXT * 8).as_secs_f64());
    assert!(batch.wall_s >= 2.0 * whole, "{report}");
    assert!(batch.first_token_ms_least >= Some(first * 1e3), "{report}");
    assert!(batch.first_token_ms_most >= Some((whole + first) * 1e3), "{report}");
    assert!(batch.first_token_ms_least < batch.first_token_ms_most, "{report}");
    assert!(batch.inter_token_ms_p50.is_some(), "{report}");
    // The two, and the one that finds out whether it answers at all.
    assert_eq!(fake.asked.load(Ordering::Relaxed), 3);
    assert_eq!(*fake.left.borrow(), 0, "nobody left");
}

#[tokio::test]
async fn hundreds_of_streams_flow_at_the_same_time() {
    const MANY: u32 = 300;
    // Both ends are in this process.
    room_for_connections(2 * u64::from(MANY)).expect("the system allows a few hundred files");
    let (_fake, url) = Fake::start(Manner::Together(MANY as usize)).await;
    let report = measured(Plan { concurrency: vec![nonzero(MANY)], ..plan() }, &url).await;
    assert_eq!(report.failures(), 0, "{report}");
    assert_eq!(report.cells[0].batches[0].chunks, 8 * u64::from(MANY));
}

#[tokio::test]
async fn every_target_is_asked_the_same_in_turn() {
    let (one, one_url) = Fake::start(Manner::Prompt).await;
    let (two, two_url) = Fake::start(Manner::Prompt).await;
    let targets = vec![target(&one_url.replace("it=", "one=")).await, target(&two_url).await];
    // With an odd number of rounds, a wrong order would have come right again.
    let plan = Plan { iterations: nonzero(3), warmup: 1, ..plan() };
    let report = run(plan, targets, Progress::Silent).await.expect("both answer");
    let names: Vec<&str> = report.cells.iter().map(|cell| cell.target.as_str()).collect();
    assert_eq!(names, ["one", "it"]);
    assert!(report.cells.iter().all(|cell| cell.batches.len() == 3), "the warm-up is no figure");
    let sorted = async |fake: &Fake| {
        let mut prompts = fake.prompts.lock().await.clone();
        prompts.sort();
        prompts.dedup();
        prompts
    };
    let (one, two) = (sorted(&one).await, sorted(&two).await);
    assert_eq!(one.len(), 1 + 4 * 2, "no prompt is asked twice");
    assert_eq!(one, two);
}

#[tokio::test]
async fn two_targets_of_one_name_are_refused() {
    let (_fake, url) = Fake::start(Manner::Prompt).await;
    let targets = vec![target(&url).await, target(&url).await];
    let refused = run(plan(), targets, Progress::Silent).await.expect_err("both are `it`");
    assert!(matches!(refused, Unusable::SameName(name) if name == "it"));
}

#[tokio::test]
async fn a_status_that_is_not_200_is_reported() {
    let (_fake, url) = Fake::start(Manner::Failing).await;
    let report = measured(plan(), &url).await;
    assert_eq!(report.failures(), 2);
    assert_eq!(report.cells[0].batches[0].tokens_per_s, None);
    let text = report.to_string();
    let line = "short, 2 at once, it: 2 × status 500; the first: status 500: I would not";
    assert!(text.contains(line), "{text}");
}

#[tokio::test]
async fn an_answer_that_is_cut_off_is_no_answer() {
    let (_fake, url) = Fake::start(Manner::Cutting).await;
    let text = measured(plan(), &url).await.to_string();
    assert!(text.contains("2 × cut off"), "{text}");
}

#[tokio::test]
async fn a_server_that_says_nothing_times_out_and_sees_us_leave() {
    let (fake, url) = Fake::start(Manner::Silent).await;
    // The first request is answered in this time, or this test fails at it.
    let plan = Plan { timeout: Duration::from_secs(2), ..plan() };
    let text = measured(plan, &url).await.to_string();
    assert!(text.contains("2 × timed out"), "{text}");
    everyone_is_seen_to_leave(&fake, 2).await;
}

#[tokio::test]
async fn who_refuses_the_first_request_is_not_measured() {
    let (fake, url) = Fake::start(Manner::Strict).await;
    let refused = run(plan(), vec![target(&url).await], Progress::Silent).await;
    let refused = refused.expect_err("it answers 400");
    assert!(refused.to_string().ends_with("status 400: I would not"), "{refused}");
    assert!(refused.may_be_for_extensions());
    assert_eq!(fake.asked.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn answers_in_one_piece_have_no_first_token() {
    let (_fake, url) = Fake::start(Manner::Prompt).await;
    let report = measured(Plan { stream: false, ..plan() }, &url).await;
    let batch = &report.cells[0].batches[0];
    assert_eq!((batch.answered, batch.tokens, batch.prompt_tokens), (2, 16, 6));
    assert_eq!((batch.first_token_ms_least, batch.inter_token_ms_p50), (None, None));
    assert!(!report.to_string().contains("Time to first token"));
}

async fn everyone_is_seen_to_leave(fake: &Fake, many: u64) {
    let mut left = fake.left.subscribe();
    let seen = tokio::time::timeout(Duration::from_secs(60), left.wait_for(|left| *left == many));
    let seen = seen.await.map(|seen| seen.is_ok());
    assert_eq!(seen, Ok(true), "{} of {many} were seen to leave", *fake.left.borrow());
}

/// Long answers, which this server ends only when the client does.
fn storm() -> Plan {
    Plan {
        workloads: vec![Workload::Storm],
        concurrency: vec![nonzero(8)],
        max_tokens: nonzero(16),
        ..plan()
    }
}

#[tokio::test]
async fn a_server_sees_every_client_of_a_storm_leave() {
    let (fake, url) = Fake::start(Manner::Endless).await;
    // What comes after the storm wants a whole answer, which this one never gives.
    let plan = Plan { timeout: Duration::from_secs(5), ..storm() };
    let report = measured(plan, &url).await;
    let storm = &report.storms[0];
    assert_eq!((storm.requests, storm.served, storm.failures.count()), (40, 0, 0), "{report}");
    assert_eq!(storm.left_before_text + storm.left_midway, 40, "{report}");
    assert!(storm.left_before_text > 0 && storm.left_midway > 0, "{report}");
    assert!(storm.after.idle_after_s.is_some(), "{report}");
    assert_eq!(storm.after.failure.as_deref(), Some("timed out after 5s"));
    assert_eq!(report.failures(), 1);
    // The forty, and the one afterwards that gave up.
    everyone_is_seen_to_leave(&fake, 41).await;
}

#[tokio::test]
async fn who_stays_in_a_storm_is_served() {
    let (fake, url) = Fake::start(Manner::Prompt).await;
    let storming = Storming { leave_percent: 50, ..plan().storm };
    let report = measured(Plan { storm: storming, ..storm() }, &url).await;
    let storm = &report.storms[0];
    assert!(storm.served > 0 && storm.left_before_text + storm.left_midway > 0, "{report}");
    assert_eq!(storm.served + storm.left_before_text + storm.left_midway, 40, "{report}");
    assert_eq!((report.failures(), &storm.after.failure), (0, &None), "{report}");
    assert_eq!(fake.asked.load(Ordering::Relaxed), 42);
}

#[tokio::test]
async fn a_server_that_keeps_requests_after_a_storm_is_found_out() {
    let (fake, url) = Fake::start(Manner::Prompt).await;
    fake.running.send_modify(|running| *running += 1);
    let storming = Storming { settle: Duration::from_millis(100), ..plan().storm };
    let report = measured(Plan { storm: storming, ..storm() }, &url).await;
    assert_eq!(report.storms[0].after.still.as_deref(), Some("1 running, 0 waiting"));
    assert!(report.to_string().contains("its metrics still show 1 running"), "{report}");
    assert_eq!(report.failures(), 1);
}
