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
    mut body: Body,
) -> Result<Response, Failure> {
    // From here on it can be cancelled, wherever it is.
    let mut claim = host.live.claim(&meta.id);
    if host.draining() {
        drop(claim);
        body::discard(&mut body, &host.config).await;
        return Err(Failure::Draining);
    }
    let prepared = tokio::select! {
        biased;
        cause = claim.asked() => Err(cause),
        prepared = prepare(&host, endpoint, &meta, headers, &mut body) => Ok(prepared?),
    };
    let (arrival, ask, entry) = match prepared {
        Ok(prepared) => prepared,
        Err(cause) => {
            // The answer does not wait for what is still to come, but it must be let pass: see
            // `discard`. It ends with the connection, or when its time is up.
            tokio::spawn(async move { body::discard(&mut body, &host.config).await });
            return Err(Failure::Cancelled(cause));
        }
    };
    let Ask { stream, shape, ending, logprobs, .. } = ask;
    let (temperature, top_p) = entry.drawing;
    let head = Head {
        request: meta.id.clone(),
        model: entry.model.clone(),
        created: arrival.at_micros / 1_000_000,
        temperature,
        top_p,
        logprobs: logprobs.is_some(),
        text: Arc::clone(&entry.text),
    };
    let inlet = submit(&host, arrival, stream, ending.stops, claim, entry);
    answer(shape, head, stream, inlet).await
}

/// Everything up to the policies' consent.
async fn prepare(
    host: &Host,
    endpoint: Endpoint,
    meta: &Meta,
    headers: HeaderMap,
    body: &mut Body,
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
    let Entry { seat, admitted, account, model, text, prompt_tokens, tokens_min, .. } = entry;
    let Arrival { id, endpoint, .. } = arrival;
    let title = Title { id, endpoint, model, streaming, prompt_tokens };
    let ledger = Ledger::open(title, account, Arc::clone(&host.metrics));
    let plan = *admitted.plan();
    let (outlet, inlet) = pieces();
    let text = Text::new(text.detokenizer(), stops, tokens_min);
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
        let (said, done) = inlet.whole().await?;
        ("application/json", Body::from(voice.whole(said, &done)))
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
