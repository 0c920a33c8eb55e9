//! The server of a few lines: it answers as it was told to, and counts.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use hyper::body::{Bytes, Frame};
use interlock_bench::Api;
use serde_json::{Value, json};
use tokio::sync::{Barrier, Mutex, mpsc, watch};

/// How the server treats whoever asks it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Manner {
    /// Everyone at once.
    Prompt,
    /// One after the other, and nobody before so many have come.
    OneByOne(usize),
    /// All at the same time, and nobody before so many have come.
    Together(usize),
    /// Goes on until the client leaves, for so many after the first.
    Endless(u64),
    /// 500 for all but the first request.
    Failing,
    /// 400 for everyone.
    Strict,
    /// Stops in the middle of every answer but the first.
    Cutting,
    /// Says nothing to all but the first.
    Silent,
}

pub(crate) struct Fake {
    manner: Manner,
    full: Barrier,
    turn: Mutex<()>,
    pub(crate) asked: AtomicU64,
    /// Requests in work, and clients that left before their answer was whole.
    pub(crate) running: watch::Sender<u64>,
    pub(crate) left: watch::Sender<u64>,
    /// What its metrics say of its device: the most passes at once, and whether some fail.
    pub(crate) device: AtomicU64,
    pub(crate) failing: AtomicBool,
    looked: AtomicU64,
    /// Prompts, as they came.
    pub(crate) prompts: Mutex<Vec<String>>,
}

pub(crate) const FIRST: Duration = Duration::from_millis(30);
pub(crate) const NEXT: Duration = Duration::from_millis(4);

impl Fake {
    pub(crate) async fn start(manner: Manner) -> (Arc<Self>, String) {
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
            device: AtomicU64::new(1),
            failing: AtomicBool::new(false),
            looked: AtomicU64::new(0),
            prompts: Mutex::default(),
        });
        let models = json!({ "data": [{ "id": "fake", "owned_by": "nobody" }] });
        let router = Router::new()
            .route("/v1/models", get(move || async { Json(models) }))
            .route("/v1/chat/completions", post(|fake, asked| generate(fake, asked, Api::Chat)))
            .route("/v1/completions", post(|fake, asked| generate(fake, asked, Api::Completions)))
            .route("/v1/responses", post(|fake, asked| generate(fake, asked, Api::Responses)))
            .route("/metrics", get(metrics))
            .with_state(Arc::clone(&fake));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("it=http://{}", listener.local_addr().expect("it listens"));
        tokio::spawn(async move { axum::serve(listener, router).await });
        (fake, url)
    }

    /// Does the request that came after so many others never end?
    fn is_endless(&self, before: u64) -> bool {
        matches!(self.manner, Manner::Endless(many) if (1..=many).contains(&before))
    }
}

async fn metrics(State(fake): State<Arc<Fake>>) -> String {
    let running = *fake.running.borrow();
    let in_device = fake.device.load(Ordering::Relaxed);
    // Two failed before anyone looked, and three more until the next look.
    let failed = if fake.failing.load(Ordering::Relaxed) {
        2 + 3 * fake.looked.fetch_add(1, Ordering::Relaxed).min(1)
    } else {
        0
    };
    format!(
        "interlock_requests_running {running}\ninterlock_requests_waiting 0\n\
         interlock_engine_passes_in_flight_max {in_device}\n\
         interlock_engine_pass_failures_total{{kind=\"row\"}} {failed}\n"
    )
}

async fn generate(fake: State<Arc<Fake>>, Json(asked): Json<Value>, api: Api) -> Response {
    let State(fake) = fake;
    let before = fake.asked.fetch_add(1, Ordering::Relaxed);
    let (prompt, most) = match api {
        Api::Chat => (&asked["messages"][0]["content"], "max_tokens"),
        Api::Completions => (&asked["prompt"], "max_tokens"),
        Api::Responses => (&asked["input"], "max_output_tokens"),
    };
    let prompt = prompt.as_str().expect("a prompt").to_owned();
    fake.prompts.lock().await.push(prompt);
    if fake.manner == Manner::Strict || (fake.manner == Manner::Failing && before > 0) {
        let status =
            if before > 0 { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::BAD_REQUEST };
        return (status, Json(json!({ "error": { "message": "I would not" } }))).into_response();
    }
    let tokens = asked[most].as_u64().expect("a number");
    if asked["stream"] == false {
        if fake.is_endless(before) {
            // Its connection is dropped, and this with it, when the client leaves.
            let _leaving = Leaving(Arc::clone(&fake));
            std::future::pending::<()>().await;
        }
        return Json(whole(api, tokens)).into_response();
    }
    assert_eq!(asked["ignore_eos"], true, "all answers should be equally long");
    let (to, chunks) = mpsc::channel(1);
    tokio::spawn(async move {
        fake.running.send_modify(|running| *running += 1);
        let whole = answer(&fake, api, before, tokens, &to).await.is_some();
        fake.running.send_modify(|running| *running -= 1);
        if !whole {
            fake.left.send_modify(|left| *left += 1);
        }
    });
    Response::new(Body::new(Chunks(chunks)))
}

/// Counts a client as gone when it is dropped.
struct Leaving(Arc<Fake>);

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.left.send_modify(|left| *left += 1);
    }
}

fn whole(api: Api, tokens: u64) -> Value {
    let usage = json!({ "prompt_tokens": 3, "completion_tokens": tokens });
    let choice = match api {
        Api::Chat => json!({ "message": { "content": "all of it" }, "finish_reason": "length" }),
        Api::Completions => json!({ "text": "all of it", "finish_reason": "length" }),
        Api::Responses => {
            let item = json!({ "type": "message", "content": [{ "text": "all of it" }] });
            let usage = json!({ "input_tokens": 3, "output_tokens": tokens });
            return json!({ "object": "response", "output": [item], "usage": usage, "error": null });
        }
    };
    json!({ "choices": [choice], "usage": usage })
}

/// The events of a stream: what comes before the text, a piece of text, and what comes after it.
fn events(api: Api, tokens: u64) -> [Vec<String>; 3] {
    let all = |events: &[Value]| events.iter().map(Value::to_string).collect::<Vec<_>>();
    // Twice as many tokens as pieces of text: the server's count should be believed.
    let usage = json!({ "completion_tokens": 2 * tokens });
    let choice = |choice: Value| json!({ "choices": [choice] });
    let end = json!({ "delta": {}, "finish_reason": "length" });
    let mut events = match api {
        Api::Chat => [
            all(&[choice(json!({ "delta": { "role": "assistant", "content": "" } }))]),
            all(&[choice(json!({ "delta": { "content": "a" } }))]),
            all(&[choice(end), json!({ "choices": [], "usage": usage })]),
        ],
        Api::Completions => [
            all(&[]),
            all(&[choice(json!({ "text": "a" }))]),
            all(&[
                choice(json!({ "text": "", "finish_reason": "length" })),
                json!({ "usage": usage }),
            ]),
        ],
        Api::Responses => {
            let usage = json!({ "input_tokens": 3, "output_tokens": 2 * tokens });
            let last = json!({ "status": "incomplete", "error": null, "usage": usage });
            [
                all(&[json!({ "type": "response.created", "response": { "usage": null } })]),
                all(&[json!({ "type": "response.output_text.delta", "delta": "a" })]),
                all(&[
                    json!({ "type": "response.output_text.done", "text": "aaa" }),
                    json!({ "type": "response.incomplete", "response": last }),
                ]),
            ]
        }
    };
    if api != Api::Responses {
        events[2].push("[DONE]".to_owned());
    }
    events
}

/// None when the client left before the end.
async fn answer(
    fake: &Fake,
    api: Api,
    before: u64,
    tokens: u64,
    to: &mpsc::Sender<Bytes>,
) -> Option<()> {
    let say = async |events: &[String]| {
        for event in events {
            to.send(format!("data: {event}\n\n").into()).await.ok()?;
        }
        Some(())
    };
    let rest = async |time| {
        tokio::select! {
            () = tokio::time::sleep(time) => Some(()),
            () = to.closed() => None,
        }
    };
    let [begin, piece, end] = events(api, tokens);
    say(&begin).await?;
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
    let endless = fake.is_endless(before);
    let cutting = fake.manner == Manner::Cutting && before > 0;
    for said in 0.. {
        if cutting && said == 2 {
            return Some(());
        }
        if said >= tokens && !endless {
            break;
        }
        say(&piece).await?;
        rest(NEXT).await?;
    }
    say(&end).await
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
