//! The one path of every generating request: claim, read, parse, admit, submit, answer.

use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::Response;
use interlock_request::Endpoint;

use crate::admit::{Arrival, Entry};
use crate::ask::{Ask, Shape};
use crate::body;
use crate::failure::Failure;
use crate::host::Host;
use crate::ledger::{Ledger, Title};
use crate::life::{Life, Text};
use crate::live::Claim;
use crate::pieces::{Inlet, pieces};
use crate::router::Meta;
use crate::voice::{Head, Stream, voice};

/// Answers one generating request.
///
/// When its client leaves, hyper drops this future or the body it returned, and with them the
/// inlet: that is how the driver learns of it, at once.
///
/// # Errors
///
/// When it was not admitted, or ended badly before anything was sent.
pub(crate) async fn generate(
    host: Arc<Host>,
    endpoint: Endpoint,
    meta: Meta,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Failure> {
    let mut claim = match claim(&host, &meta) {
        Ok(claim) => claim,
        Err(failure) => {
            body::discard(body, &host.config).await;
            return Err(failure);
        }
    };
    let (arrival, ask, entry) = tokio::select! {
        biased;
        cause = claim.asked() => return Err(Failure::Cancelled(cause)),
        prepared = prepare(&host, endpoint, &meta, headers, body) => prepared?,
    };
    let Ask { stream, shape, stops, .. } = ask;
    let head = Head {
        request: meta.id.clone(),
        model: host.model.clone(),
        created: arrival.at_micros / 1_000_000,
    };
    let inlet = submit(&host, arrival, stream, stops, claim, entry);
    answer(shape, head, stream, inlet).await
}

/// Its id is its own from here on, so that it can be cancelled wherever it is.
fn claim(host: &Host, meta: &Meta) -> Result<Claim, Failure> {
    let claim = host.live.claim(&meta.id).ok_or_else(|| Failure::IdInUse(meta.id.clone()))?;
    if host.draining() { Err(Failure::Draining) } else { Ok(claim) }
}

/// Everything up to the policies' consent.
async fn prepare(
    host: &Host,
    endpoint: Endpoint,
    meta: &Meta,
    headers: HeaderMap,
    body: Body,
) -> Result<(Arrival, Ask, Entry), Failure> {
    let body = body::read(body, &host.config).await?;
    // A body may take its time; what began to arrive before the shutdown is no exception.
    if host.draining() {
        return Err(Failure::Draining);
    }
    let ask = host.labour(body.len(), || Ask::parse(endpoint, &body)).await?;
    let arrival = Arrival {
        id: meta.id.clone(),
        endpoint,
        at_micros: meta.at_micros,
        headers,
        body_bytes: u64::try_from(body.len()).unwrap_or(u64::MAX),
    };
    let entry = host.admit(&arrival, &ask).await?;
    Ok((arrival, ask, entry))
}

/// Hands the request to the engine and starts its driver.
fn submit(
    host: &Host,
    arrival: Arrival,
    streaming: bool,
    stops: Vec<String>,
    claim: Claim,
    entry: Entry,
) -> Inlet {
    let Entry { seat, admitted, account, text, prompt_tokens } = entry;
    let Arrival { id, endpoint, .. } = arrival;
    let title = Title { id, endpoint, model: host.model.clone(), streaming, prompt_tokens };
    let ledger = Ledger::open(title, account, Arc::clone(&host.metrics));
    let plan = *admitted.plan();
    let (outlet, inlet) = pieces();
    let text = Text::new(text.detokenizer(), stops);
    let life = Life::new(seat.submit(admitted), &plan, claim, ledger, text, outlet);
    // Its owner is `live`: the driver holds a claim there, and the shutdown waits for all claims.
    tokio::spawn(life.run());
    inlet
}

async fn answer(shape: Shape, head: Head, stream: bool, inlet: Inlet) -> Result<Response, Failure> {
    let request = head.request.clone();
    let mut voice = voice(shape, head);
    let (content_type, body) = if stream {
        ("text/event-stream; charset=utf-8", Body::new(Stream::new(request, voice, inlet)))
    } else {
        let (text, done) = inlet.whole().await?;
        ("application/json", Body::from(voice.whole(text, &done)))
    };
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if stream {
        // Proxies that gather a body before they pass it on would defeat the purpose.
        headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    }
    Ok(response)
}
