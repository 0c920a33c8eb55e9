//! Those who ask: they come, wait, read, and leave, some of them early.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, header};
use http_body_util::BodyExt;
use serde_json::json;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tower::ServiceExt;

use super::end::SimulatedEnd;
use super::reader::{AnswerReader, WholeAnswer, unknown};
use crate::rng::Rng;
use crate::workload::{Burst, Tenant, Workload, WorkloadEndpoint};

/// A request, and what its client saw of it.
#[derive(Debug, Clone)]
pub(super) struct RequestSeen {
    pub(super) id: String,
    /// Its place among the workload's tenants.
    pub(super) tenant: usize,
    pub(super) streaming: bool,
    pub(super) at: Duration,
    pub(super) first_token: Option<Duration>,
    /// From the first token to the last.
    pub(super) decoding: Duration,
    /// The longest pause between two tokens.
    pub(super) longest_pause: Duration,
    /// Pieces of text, each of one token unless a policy or the tokenizer held it back.
    pub(super) pieces: u32,
    /// As the answer says.
    pub(super) usage: Option<(u32, u32)>,
    pub(super) total: Duration,
    pub(super) end: SimulatedEnd,
}

/// Who is here, for whoever drives the engine.
#[derive(Debug, Default)]
pub(super) struct ClientActivity {
    pub(super) asked: Notify,
    inside: AtomicUsize,
    gone: AtomicBool,
}

impl ClientActivity {
    /// Have all clients gone for good?
    pub(super) fn gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    /// How many requests are on their way.
    pub(super) fn inside(&self) -> usize {
        self.inside.load(Ordering::Relaxed)
    }
}

/// All clients of a simulation.
pub(super) struct Clients {
    shared: Arc<ClientsShared>,
    seed: u64,
}

/// What they share.
struct ClientsShared {
    app: Router,
    workload: Workload,
    began: Instant,
    activity: Arc<ClientActivity>,
    asked: AtomicUsize,
    seen: Mutex<Vec<RequestSeen>>,
}

/// One request to come.
struct PlannedRequest {
    id: String,
    tenant: usize,
    streaming: bool,
    body: String,
    leaves_with: Option<u32>,
}

impl Clients {
    pub(super) fn new(app: Router, workload: &Workload, seed: u64) -> Self {
        let shared = ClientsShared {
            app,
            workload: workload.clone(),
            began: Instant::now(),
            activity: Arc::default(),
            asked: AtomicUsize::new(0),
            seen: Mutex::default(),
        };
        Self { shared: Arc::new(shared), seed }
    }

    pub(super) fn activity(&self) -> Arc<ClientActivity> {
        Arc::clone(&self.shared.activity)
    }

    /// Until the last has gone.
    pub(super) async fn live(self) -> Vec<RequestSeen> {
        /// Longer than any limit of a host. What has no end by then will have none.
        const PATIENCE: Duration = Duration::from_secs(7 * 24 * 60 * 60);

        let Self { shared, seed } = self;
        let mut sources = JoinSet::new();
        for (which, tenant) in shared.workload.tenants.iter().enumerate() {
            let rng = |what: &str| Rng::new(seed, &format!("{} {what}", tenant.name));
            if tenant.rate > 0.0 {
                sources.spawn(Arc::clone(&shared).trickle(which, rng("rate")));
            }
            if let Some(burst) = tenant.burst {
                sources.spawn(Arc::clone(&shared).bursts(which, burst, rng("burst")));
            }
            for client in 0..tenant.clients {
                let rng = rng(&format!("client {client}"));
                sources.spawn(Arc::clone(&shared).client(which, client, rng));
            }
        }
        let all = async { while sources.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(PATIENCE, all).await;
        shared.activity.gone.store(true, Ordering::Relaxed);
        shared.activity.asked.notify_one();
        let mut seen = std::mem::take(&mut *shared.seen());
        seen.sort_by(|a, b| (a.at, &a.id).cmp(&(b.at, &b.id)));
        seen
    }
}

impl ClientsShared {
    fn seen(&self) -> std::sync::MutexGuard<'_, Vec<RequestSeen>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn over(&self) -> bool {
        let asked = self.asked.load(Ordering::Relaxed) as u64;
        self.began.elapsed() >= self.workload.duration || asked >= self.workload.requests
    }

    /// Requests that come by chance.
    async fn trickle(self: Arc<Self>, tenant: usize, mut rng: Rng) {
        let rate = self.workload.tenants[tenant].rate;
        let mut at = Duration::ZERO;
        let mut inside = JoinSet::new();
        for number in 0_u64.. {
            at += Duration::from_secs_f64(rng.pause(rate));
            tokio::time::sleep_until(self.began + at).await;
            if self.over() {
                break;
            }
            let planned = self.planned(tenant, &format!("{number}"), &mut rng);
            inside.spawn(Arc::clone(&self).ask(planned));
            while inside.try_join_next().is_some() {}
        }
        while inside.join_next().await.is_some() {}
    }

    /// Requests that come together.
    async fn bursts(self: Arc<Self>, tenant: usize, burst: Burst, mut rng: Rng) {
        let mut inside = JoinSet::new();
        for round in 1_u32.. {
            tokio::time::sleep_until(self.began + burst.every * round).await;
            if self.over() {
                break;
            }
            for number in 0..burst.size {
                let planned = self.planned(tenant, &format!("b{round}.{number}"), &mut rng);
                inside.spawn(Arc::clone(&self).ask(planned));
            }
            while inside.try_join_next().is_some() {}
        }
        while inside.join_next().await.is_some() {}
    }

    /// A client that asks again when it has its answer.
    async fn client(self: Arc<Self>, tenant: usize, client: u32, mut rng: Rng) {
        /// Who was turned away does not come back at once.
        const PAUSE_MIN: Duration = Duration::from_secs(1);

        for number in 0_u64.. {
            if self.over() {
                return;
            }
            let planned = self.planned(tenant, &format!("c{client}.{number}"), &mut rng);
            let retry_after = Arc::clone(&self).ask(planned).await;
            let think = self.workload.tenants[tenant].think;
            let pause = retry_after.map_or(think, |after| after.max(think).max(PAUSE_MIN));
            // An answer that took no time must not keep the clock from going on.
            tokio::time::sleep(pause.max(Duration::from_millis(1))).await;
        }
    }

    fn planned(&self, which: usize, number: &str, rng: &mut Rng) -> PlannedRequest {
        let tenant = &self.workload.tenants[which];
        let prompt = tenant.prompt.draw(rng);
        let tokens = tenant.output.draw(rng);
        let shared = rng.chance(tenant.shared_prefix);
        let streaming = rng.chance(tenant.streaming);
        let leaves = tenant.leave.map(|leave| (rng.chance(leave.chance), leave.after.draw(rng)));
        let leaves_with = leaves.and_then(|(leaves, with)| leaves.then_some(with));
        let model = tenant.model.as_ref().unwrap_or(&self.workload.models[0].name);
        let text = words(prompt, shared, rng);
        let body = body(tenant, model, &text, tokens, streaming);
        let id = format!("{}-{number}", id_of(&tenant.name));
        PlannedRequest { id, tenant: which, streaming, body, leaves_with }
    }

    /// Asks, and reads until the end or until it leaves. Says when to come back, if it was turned
    /// away.
    async fn ask(self: Arc<Self>, planned: PlannedRequest) -> Option<Duration> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.activity.inside.fetch_add(1, Ordering::Relaxed);
        self.activity.asked.notify_one();
        let at = self.began.elapsed();
        let mut reader = AnswerReader::new(at, self.began);
        // Who is told nothing token by token leaves after the time that they should have taken.
        let patience = match planned.leaves_with {
            Some(with) if !planned.streaming => Some(self.workload.slo.inter_token * (with + 1)),
            _ => None,
        };
        let reading = self.read(&planned, &mut reader);
        let end = match patience {
            None => reading.await,
            Some(patience) => {
                tokio::time::timeout(patience, reading).await.unwrap_or(SimulatedEnd::Left)
            }
        };
        let retry_after = match &end {
            SimulatedEnd::Refused { .. } => Some(reader.retry_after),
            _ => None,
        };
        let seen = RequestSeen {
            id: planned.id,
            tenant: planned.tenant,
            streaming: planned.streaming,
            at,
            first_token: reader.first_token,
            decoding: reader.last_token.saturating_sub(reader.first_at),
            longest_pause: reader.longest_pause,
            pieces: reader.pieces,
            usage: reader.usage,
            total: self.began.elapsed() - at,
            end,
        };
        self.seen().push(seen);
        self.activity.inside.fetch_sub(1, Ordering::Relaxed);
        retry_after
    }

    async fn read(&self, planned: &PlannedRequest, reader: &mut AnswerReader) -> SimulatedEnd {
        let tenant = &self.workload.tenants[planned.tenant];
        let path = match tenant.endpoint {
            WorkloadEndpoint::Chat => "/v1/chat/completions",
            WorkloadEndpoint::Completions => "/v1/completions",
            WorkloadEndpoint::Responses => "/v1/responses",
        };
        let mut request = Request::post(path)
            .header(header::CONTENT_TYPE, "application/json")
            .header("x-request-id", &planned.id);
        for (name, value) in &tenant.headers {
            request = request.header(name, value);
        }
        let Ok(request) = request.body(Body::from(planned.body.clone())) else {
            return SimulatedEnd::Broken { code: "a header of the workload is none".into() };
        };
        let answer = self.app.clone().oneshot(request).await;
        let answer = answer.unwrap_or_else(|never| match never {});
        let status = answer.status().as_u16();
        let retry_after = answer.headers().get(header::RETRY_AFTER);
        let seconds = retry_after.and_then(|value| value.to_str().ok()?.parse().ok());
        reader.retry_after = seconds.map_or(Duration::ZERO, Duration::from_secs);
        let mut body = answer.into_body();
        if status >= 400 || !planned.streaming {
            let Ok(whole) = body.collect().await else {
                return SimulatedEnd::Broken { code: "connection".into() };
            };
            let answer: WholeAnswer = serde_json::from_slice(&whole.to_bytes()).unwrap_or_default();
            if status >= 400 {
                let code = answer.error.map_or_else(unknown, |error| error.code());
                return SimulatedEnd::Refused { status, code };
            }
            return reader.whole(answer);
        }
        loop {
            if planned.leaves_with.is_some_and(|with| reader.pieces >= with) {
                return SimulatedEnd::Left;
            }
            match body.frame().await {
                Some(Ok(frame)) => {
                    let Ok(data) = frame.into_data() else { continue };
                    reader.read(&data, planned.leaves_with);
                }
                Some(Err(_)) => return SimulatedEnd::Broken { code: "connection".into() },
                None => return reader.end.take().unwrap_or(SimulatedEnd::Lost),
            }
        }
    }
}

/// What a request's id may be made of.
fn id_of(name: &str) -> String {
    let letter = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    name.chars().take(64).map(letter).collect()
}

/// A text of so many bytes, which are the simulated model's tokens. Half of it may be what others
/// of the tenant say too.
fn words(tokens: u32, shared: bool, rng: &mut Rng) -> String {
    const LETTERS: &[u8] = b"etaoinshrdlu cmfwypvbgkqjxz ";
    let letters = |rng: &mut Rng, count: u32| -> String {
        let letter = |_| char::from(LETTERS[(rng.next() % LETTERS.len() as u64) as usize]);
        (0..count).map(letter).collect()
    };
    let alike = if shared { tokens / 2 } else { 0 };
    let mut text = letters(&mut Rng::new(0, "shared"), alike);
    text += &letters(rng, tokens - alike);
    text
}

fn body(tenant: &Tenant, model: &str, text: &str, tokens: u32, streaming: bool) -> String {
    let mut body = match tenant.endpoint {
        WorkloadEndpoint::Chat => json!({
            "model": model, "messages": [{"role": "user", "content": text}],
            "max_completion_tokens": tokens, "stream": streaming,
        }),
        WorkloadEndpoint::Completions => json!({
            "model": model, "prompt": text, "max_tokens": tokens, "stream": streaming,
        }),
        WorkloadEndpoint::Responses => json!({
            "model": model, "input": text, "max_output_tokens": tokens, "stream": streaming,
            "store": false,
        }),
    };
    if streaming && tenant.endpoint != WorkloadEndpoint::Responses {
        body["stream_options"] = json!({"include_usage": true});
    }
    let fields: BTreeMap<_, _> = tenant.body.iter().collect();
    for (name, value) in fields {
        body[name] = value.clone();
    }
    body.to_string()
}
