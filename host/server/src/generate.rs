//! The one path of every generating request: register, read, parse, admit, submit, answer.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::HeaderName;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::Response;
use interlock_request::{CancelCause, DisconnectAction, Endpoint, RequestId};

use crate::accounting::RequestAccounting;
use crate::admit::AdmittedRequest;
use crate::answer_state::AnswerState;
use crate::body;
use crate::chunks::{ChunkReceiver, EndKind, answer_channel};
use crate::driver::{AnswerDecoder, Recipient, RequestDriver};
use crate::endpoints::{ApiRequest, ResponseFormat, UnknownFields};
use crate::endpoints::{ResponseHead, SseStream, writer};
use crate::failure::Failure;
use crate::host::ServerHost;
use crate::in_flight::{Registration, TenantSetter};
use crate::request_head::RequestHead;
use crate::result_store::StoredRequest;
use crate::stored_responses;
use crate::work::{WorkPool, struck};
use crate::write_out::write_out;

/// With this header an answer names the fields that were ignored because nobody knows them.
const IGNORED_FIELDS: &str = "x-ignored-fields";

/// Answers one generating request.
///
/// When its client leaves, its connection drops this future or the body it returned, and with them
/// the receiver of its chunks: that is how the driver learns of it, at once.
///
/// # Errors
///
/// When it was not admitted, or ended badly before anything was sent.
pub(crate) async fn generate(
    host: Arc<ServerHost>,
    endpoint: Endpoint,
    head: RequestHead,
    headers: HeaderMap,
    mut body: Body,
) -> Result<Response, Failure> {
    // From here on it can be asked to stop, wherever it is: by its client as soon as the policies
    // have said who that is.
    let mut registration = host.in_flight.register(&head.id, endpoint);
    if let Some(why) = host.closed() {
        drop(registration);
        body::discard(&mut body, &host.config).await;
        return Err(why);
    }
    let tenant = registration.tenant_setter();
    let generation = head.client.generation();
    let prepared = tokio::select! {
        biased;
        cause = registration.cancel_requested() => Err(cause),
        prepared = prepare(&host, endpoint, &head, &headers, &mut body, &tenant) => Ok(prepared?),
        deadline = struck(host.due(head.arrived_at)) => Err(CancelCause::Deadline(deadline)),
    };
    let (request, mut admitted) = match prepared {
        Ok(prepared) => prepared,
        Err(cause) => {
            registration.ends(EndKind::Cancelled);
            // The answer does not wait for what is still to come.
            body::discard_behind(body, host.config.clone());
            return Err(Failure::Cancelled(cause));
        }
    };
    let said = std::mem::take(&mut admitted.headers);
    let background = admitted.background.take();
    let ApiRequest { stream, format, stop, logprobs, unknown, .. } = request;
    let (temperature, top_p) = admitted.drawing;
    let response_head = ResponseHead {
        info: Arc::clone(&admitted.info),
        temperature,
        top_p,
        logprobs: logprobs.is_some(),
        text: Arc::clone(&admitted.text),
    };
    let stored = Arc::new(StoredRequest {
        format: format.clone(),
        head: response_head.clone(),
        canceller: registration.canceller(),
    });
    let submission = Submission { stored, stops: stop.stops, registration, admitted };
    let mut response = match background {
        Some(background) => {
            let stored = Arc::clone(&submission.stored);
            let pending = host.results.keep(Arc::clone(&stored), AnswerState::Queued);
            submission.submit(&host, Recipient::Background(pending, background), false);
            stored_responses::shown(&host.work, &stored, &AnswerState::Queued).await?
        }
        None => {
            let has_left = generation.admitted();
            let (sender, receiver) = answer_channel(Some(generation));
            submission.submit(&host, Recipient::Client(sender), has_left);
            if has_left {
                // The connection drops this next, and what would be answered is for nobody.
                return std::future::pending().await;
            }
            let keepalive = host.config.stream_keepalive;
            let stream = stream.then_some(keepalive);
            answer(&host.work, format, response_head, stream, receiver).await?
        }
    };
    name_ignored(&unknown, &head.id, response.headers_mut());
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

/// Everything up to the admission.
async fn prepare(
    host: &ServerHost,
    endpoint: Endpoint,
    head: &RequestHead,
    headers: &HeaderMap,
    body: &mut Body,
    tenant: &TenantSetter,
) -> Result<(ApiRequest, AdmittedRequest), Failure> {
    let mut identified = match host.identify(head, endpoint, headers).await {
        Ok(identified) => identified,
        Err(refused) => {
            // Not looked at, but let pass, so that the client gets to read why.
            body::discard(body, &host.config).await;
            return Err(refused);
        }
    };
    tenant.set(&identified.identity.tenant);
    if let Err(encoded) = body::as_it_is(headers) {
        body::discard(body, &host.config).await;
        return Err(encoded.into());
    }
    let mut lease = host.work.lease(identified.work_tenant());
    let arrived = body::read(body, &host.config, Some(&mut lease)).await?;
    // A body may take its time; what began to arrive before the shutdown is no exception.
    if let Some(why) = host.closed() {
        return Err(why);
    }
    let parsed = host.parse(&mut identified, arrived, &mut lease).await?;
    host.admit(identified, parsed, &mut lease).await
}

/// An admitted request, before the engine has it.
struct Submission {
    stored: Arc<StoredRequest>,
    stops: Vec<String>,
    registration: Registration,
    admitted: AdmittedRequest,
}

impl Submission {
    /// Hands it to the engine and starts its driver. If its client has left already, the engine
    /// has it only where somebody may want it to go on.
    fn submit(self, host: &ServerHost, recipient: Recipient, has_left: bool) {
        let Self { stored, stops, registration, admitted } = self;
        let AdmittedRequest {
            info,
            permit,
            admitted,
            session,
            stats,
            detokenizer,
            tokens_min,
            before,
            ..
        } = admitted;
        let given_up = has_left
            && session.plan().on_disconnect == DisconnectAction::Cancel
            && !session.watch().events.disconnected;
        let accounting = RequestAccounting::open(info, stats, session, Arc::clone(&host.metrics));
        let text = AnswerDecoder::new(detokenizer, stops, tokens_min);
        let later = (Arc::clone(&host.results), stored);
        let running = match given_up {
            true => permit.submit_cancelled(admitted, CancelCause::Disconnect),
            false => permit.submit(admitted),
        };
        let wall = Arc::clone(&host.wall);
        let driver =
            RequestDriver::new(running, registration, accounting, text, recipient, later, wall);
        // The driver is registered in `in_flight`, and the shutdown waits for all that are.
        tokio::spawn(driver.run(before));
    }
}

async fn answer(
    work: &WorkPool,
    format: ResponseFormat,
    head: ResponseHead,
    stream: Option<Duration>,
    receiver: ChunkReceiver,
) -> Result<Response, Failure> {
    let info = Arc::clone(&head.info);
    let mut writer = writer(format, head);
    let (content_type, body) = if let Some(keepalive) = stream {
        let stream = SseStream::new(info, writer, receiver, keepalive);
        ("text/event-stream; charset=utf-8", Body::new(stream))
    } else {
        let (said, done) = receiver.whole().await?;
        let bytes = said.bytes();
        let whole = write_out(work, &info.tenant, bytes, move || writer.whole(said, &done)).await?;
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
