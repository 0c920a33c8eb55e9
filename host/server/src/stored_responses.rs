//! Asking for an answer later: `/v1/responses/{id}` in OpenAI's words, `/v1/requests/{id}` for an
//! answer of any endpoint.
//!
//! Who asks must be who was answered: the policies say who that is, as for every request. Ids that
//! are somebody else's are as unknown as those that nobody has.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use interlock_request::{Endpoint, RequestId};
use serde::Serialize;
use serde_json::json;
use serde_json::value::RawValue;

use crate::answer_state::AnswerState;
use crate::endpoints::{ApiError, ResponseFormat, stored_response_json, writer};
use crate::error_response::HandlerResult;
use crate::failure::{Failure, excerpt};
use crate::host::ServerHost;
use crate::path_param::PathParam;
use crate::request_head::RequestHead;
use crate::result_store::StoredRequest;
use crate::work::WorkPool;
use crate::write_out::write_out;

/// What stands before a request's id in a response's.
const RESPONSE: &str = "resp_";

/// A request and, once it has ended, its answer in the words of its endpoint.
#[derive(Serialize)]
struct StoredRequestJson<'a> {
    id: &'a str,
    object: &'static str,
    endpoint: &'static str,
    status: &'static str,
    answer: Option<&'a RawValue>,
    error: Option<ApiError>,
}

/// `GET /v1/responses/{id}`
pub(crate) async fn response(
    State(host): State<Arc<ServerHost>>,
    Extension(head): Extension<RequestHead>,
    PathParam(id): PathParam,
    headers: HeaderMap,
) -> HandlerResult {
    let (stored, kept) = host.kept_response(&head, &headers, &id).await?;
    shown(&host.work, &stored, &kept).await
}

/// `POST /v1/responses/{id}/cancel`: asking twice, or for one that has ended, changes nothing. The
/// answer is what `GET` shows from then on.
pub(crate) async fn cancel_response(
    State(host): State<Arc<ServerHost>>,
    Extension(head): Extension<RequestHead>,
    PathParam(id): PathParam,
    headers: HeaderMap,
) -> HandlerResult {
    let (stored, _) = host.kept_response(&head, &headers, &id).await?;
    let kept = host.cancel_kept(&stored).await;
    shown(&host.work, &stored, &kept.ok_or_else(|| Failure::NotKept(excerpt(&id)))?).await
}

/// `DELETE /v1/responses/{id}`: one that still runs is cancelled first, since nobody could ask for it
/// any more.
pub(crate) async fn delete_response(
    State(host): State<Arc<ServerHost>>,
    Extension(head): Extension<RequestHead>,
    PathParam(id): PathParam,
    headers: HeaderMap,
) -> HandlerResult {
    let (stored, _) = host.kept_response(&head, &headers, &id).await?;
    host.cancel_kept(&stored).await;
    if !host.results.remove(&stored) {
        return Err(Failure::NotKept(excerpt(&id)));
    }
    Ok(Json(json!({ "id": id, "object": "response", "deleted": true })).into_response())
}

/// `GET /v1/requests/{id}`
pub(crate) async fn request(
    State(host): State<Arc<ServerHost>>,
    Extension(head): Extension<RequestHead>,
    PathParam(id): PathParam,
    headers: HeaderMap,
) -> HandlerResult {
    let endpoint = host.endpoint_of(RequestId::parse(&id).ok().as_ref());
    let (stored, kept) = host.kept(&head, endpoint, &headers, &id, |_| true).await?;
    let (mut answer, mut error) = (None, None);
    match &kept {
        AnswerState::Queued | AnswerState::Running => {}
        AnswerState::Ended(result) => match &**result {
            (chunk, Ok(done)) => {
                let (stored, chunk, done) = (Arc::clone(&stored), chunk.clone(), *done);
                let tenant = stored.head.info.tenant.clone();
                let write =
                    move || writer(stored.format.clone(), stored.head.clone()).whole(chunk, &done);
                let whole = write_out(&host.work, &tenant, result.0.bytes(), write);
                answer = Some(whole.await?);
            }
            (_, Err(failure)) => error = Some(ApiError::of(failure, &stored.head.info.id)),
        },
    }
    let status = kept.as_str();
    let id = stored.head.info.id.as_str();
    let endpoint = stored.head.info.endpoint.as_str();
    // Written by us, so it is text and JSON, and goes in as it is.
    let answer = answer.and_then(|bytes| String::from_utf8(bytes).ok());
    let answer = answer.and_then(|text| RawValue::from_string(text).ok());
    let shown = StoredRequestJson {
        id,
        object: "request",
        endpoint,
        status,
        answer: answer.as_deref(),
        error,
    };
    Ok(Json(shown).into_response())
}

impl ServerHost {
    async fn kept_response(
        &self,
        head: &RequestHead,
        headers: &HeaderMap,
        id: &str,
    ) -> Result<(Arc<StoredRequest>, AnswerState), Failure> {
        let unknown = || Failure::NotKept(excerpt(id));
        let request = id.strip_prefix(RESPONSE).ok_or_else(unknown)?;
        let responses = |endpoint: Endpoint| endpoint == Endpoint::Responses;
        let kept = self.kept(head, Endpoint::Responses, headers, request, responses).await;
        let (stored, kept) = kept.map_err(|why| match why {
            Failure::NotKept(_) => unknown(),
            why => why,
        })?;
        let is_response = matches!(stored.format, ResponseFormat::Responses(_));
        is_response.then_some((stored, kept)).ok_or_else(unknown)
    }

    async fn kept(
        &self,
        head: &RequestHead,
        endpoint: Endpoint,
        headers: &HeaderMap,
        id: &str,
        through: impl Fn(Endpoint) -> bool,
    ) -> Result<(Arc<StoredRequest>, AnswerState), Failure> {
        let identified = self.identify_to_look_up(head, endpoint, headers).await?;
        let id = RequestId::parse(id).map_err(|_| Failure::NotKept(excerpt(id)))?;
        let tenant = &identified.identity.tenant;
        if let Some(kept) = self.results.get(&id, tenant) {
            return Ok(kept);
        }
        let in_flight = self.in_flight.has(&id, tenant, through);
        Err(if in_flight { Failure::InFlight(id) } else { Failure::NotKept(id.to_string()) })
    }
}

/// A response as it is at the moment.
pub(crate) async fn shown(
    work: &WorkPool,
    stored: &Arc<StoredRequest>,
    kept: &AnswerState,
) -> HandlerResult {
    let (bytes, tenant) = (stored.format.bytes() + kept.bytes(), stored.head.info.tenant.clone());
    let (stored, kept) = (Arc::clone(stored), kept.clone());
    let write = move || stored_response_json(&stored.format, &stored.head, &kept);
    let mut response = Response::new(write_out(work, &tenant, bytes, write).await?.into());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}
