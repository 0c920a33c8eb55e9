//! The one path of every generating request: claim, read, parse, admit, submit, answer.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::HeaderName;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::Response;
use interlock_request::{CancelCause, DisconnectAction, Endpoint, RequestId};

use crate::accounting::{Ledger, Title};
use crate::admit::Entry;
use crate::answer_state::State;
use crate::body;
use crate::chunks::{EndKind, Inlet, pieces};
use crate::driver::{Life, Reader, Text};
use crate::endpoints::{Ask, Shape, UnknownFields};
use crate::endpoints::{Head, Stream, voice};
use crate::failure::Failure;
use crate::host::Host;
use crate::in_flight::{Claim, Owner};
use crate::request_info::Meta;
use crate::work::{WorkPool, struck};
use crate::write_out::written;
use crate::{result_store, stored_responses};

/// With this header an answer names the fields that were ignored because nobody knows them.
const IGNORED_FIELDS: &str = "x-ignored-fields";

/// Answers one generating request.
///
/// When its client leaves, its connection drops this future or the body it returned, and with them
/// the inlet: that is how the driver learns of it, at once.
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
    // From here on it can be asked to stop, wherever it is: by its client as soon as the policies
    // have said who that is.
    let mut claim = host.live.claim(&meta.id, endpoint);
    if let Some(why) = host.closed() {
        drop(claim);
        body::discard(&mut body, &host.config).await;
        return Err(why);
    }
    let owner = claim.owner();
    let generation = meta.client.generation();
    let prepared = tokio::select! {
        biased;
        cause = claim.asked() => Err(cause),
        prepared = prepare(&host, endpoint, &meta, &headers, &mut body, &owner) => Ok(prepared?),
        deadline = struck(host.due(meta.arrived_at)) => Err(CancelCause::Deadline(deadline)),
    };
    let (ask, mut entry) = match prepared {
        Ok(prepared) => prepared,
        Err(cause) => {
            claim.ends(EndKind::Cancelled);
            // The answer does not wait for what is still to come.
            body::discard_behind(body, host.config.clone());
            return Err(Failure::Cancelled(cause));
        }
    };
    let said = std::mem::take(&mut entry.headers);
    let place = entry.place.take();
    let Ask { stream, shape, ending, logprobs, unknown, .. } = ask;
    let (temperature, top_p) = entry.drawing;
    let head = Head {
        request: entry.id.clone(),
        model: entry.model.id.clone(),
        created: entry.at_micros / 1_000_000,
        temperature,
        top_p,
        logprobs: logprobs.is_some(),
        text: Arc::clone(&entry.text),
    };
    let title = Arc::new(result_store::Title {
        tenant: std::mem::take(&mut entry.tenant),
        endpoint,
        shape: shape.clone(),
        head: head.clone(),
        canceller: claim.canceller(),
    });
    let submission = Submission { title, streaming: stream, stops: ending.stops, claim, entry };
    let mut response = match place {
        Some(place) => {
            let title = Arc::clone(&submission.title);
            let keeping = host.results.keep(Arc::clone(&title), State::Queued);
            submission.submit(&host, Reader::Nobody(keeping, place), false);
            stored_responses::shown(&host.work, &title, &State::Queued).await?
        }
        None => {
            let has_left = generation.admitted();
            let title = Arc::clone(&submission.title);
            let (outlet, inlet) = pieces(Some(generation));
            submission.submit(&host, Reader::Client(outlet), has_left);
            if has_left {
                // The connection drops this next, and what would be answered is for nobody.
                return std::future::pending().await;
            }
            let keepalive = host.config.stream_keepalive;
            let stream = stream.then_some(keepalive);
            answer((&host.work, &title.tenant), shape, head, stream, inlet).await?
        }
    };
    name_ignored(&unknown, &meta.id, response.headers_mut());
    policies_say(&said, response.headers_mut());
    Ok(response)
}

/// Tells a client which fields of its request nobody here knows.
fn name_ignored(unknown: &UnknownFields, request: &RequestId, headers: &mut HeaderMap) {
    let Some(fields) = unknown.listed() else { return };
    tracing::debug!(%request, %fields, "fields that are in no table were ignored");
    let value = HeaderValue::try_from(fields).expect("their names are printable");
    headers.insert(IGNORED_FIELDS, value);
}

/// Adds what policies say to a client. What cannot be a header is left out; what is ours stays.
pub(crate) fn policies_say(said: &[(String, String)], headers: &mut HeaderMap) {
    for (name, value) in said {
        let (name, value) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value));
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.entry(name).or_insert(value);
        }
    }
}

/// Everything up to the policies' consent.
async fn prepare(
    host: &Host,
    endpoint: Endpoint,
    meta: &Meta,
    headers: &HeaderMap,
    body: &mut Body,
    owner: &Owner,
) -> Result<(Ask, Entry), Failure> {
    let mut visit = match host.identify(meta, endpoint, headers).await {
        Ok(visit) => visit,
        Err(refused) => {
            // Not looked at, but let pass, so that the client gets to read why.
            body::discard(body, &host.config).await;
            return Err(refused);
        }
    };
    owner.is(&visit.identity.tenant);
    if let Err(encoded) = body::as_it_is(headers) {
        body::discard(body, &host.config).await;
        return Err(encoded.into());
    }
    let mut lease = host.work.lease(visit.whose());
    let arrived = body::read(body, &host.config, Some(&mut lease)).await?;
    // A body may take its time; what began to arrive before the shutdown is no exception.
    if let Some(why) = host.closed() {
        return Err(why);
    }
    let understood = host.understand(&mut visit, arrived, &mut lease).await?;
    host.admit(visit, understood, &mut lease).await
}

/// An admitted request, before the engine has it.
struct Submission {
    title: Arc<result_store::Title>,
    streaming: bool,
    stops: Vec<String>,
    claim: Claim,
    entry: Entry,
}

impl Submission {
    /// Hands it to the engine and starts its driver. If its client has left already, the engine
    /// has it only where somebody may want it to go on.
    fn submit(self, host: &Host, reader: Reader, has_left: bool) {
        let Self { title, streaming, stops, claim, entry } = self;
        let Entry {
            seat,
            arrived_at,
            admitted,
            oversight,
            model,
            detokenizer,
            prompt_tokens,
            tokens_min,
            before,
            ..
        } = entry;
        let about = Title {
            id: title.head.request.clone(),
            arrived_at,
            endpoint: title.endpoint,
            model: model.id.clone(),
            recent: Arc::clone(&model.recent),
            streaming,
            prompt_tokens,
        };
        let given_up = has_left
            && oversight.plan().on_disconnect == DisconnectAction::Cancel
            && !oversight.watch().events.disconnected;
        let ledger = Ledger::open(about, oversight, Arc::clone(&host.metrics));
        let text = Text::new(detokenizer, stops, tokens_min);
        let later = (Arc::clone(&host.results), title);
        let running = match given_up {
            true => seat.submit_cancelled(admitted, CancelCause::Disconnect),
            false => seat.submit(admitted),
        };
        let wall = Arc::clone(&host.wall);
        let life = Life::new(running, claim, ledger, text, reader, later, wall);
        // Its owner is `live`: the driver holds a claim there, and the shutdown waits for all.
        tokio::spawn(life.run(before));
    }
}

async fn answer(
    (work, tenant): (&WorkPool, &str),
    shape: Shape,
    head: Head,
    stream: Option<Duration>,
    inlet: Inlet,
) -> Result<Response, Failure> {
    let request = head.request.clone();
    let mut voice = voice(shape, head);
    let (content_type, body) = if let Some(keepalive) = stream {
        let stream = Stream::new(request, voice, inlet, keepalive);
        ("text/event-stream; charset=utf-8", Body::new(stream))
    } else {
        let (said, done) = inlet.whole().await?;
        let bytes = said.bytes();
        let whole = written(work, tenant, bytes, move || voice.whole(said, &done)).await?;
        ("application/json", Body::from(whole))
    };
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if stream.is_some() {
        // Proxies that gather a body before they pass it on would defeat the purpose.
        headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    }
    Ok(response)
}
