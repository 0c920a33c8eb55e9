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

use crate::answer_state::State as Kept;
use crate::endpoints::{Complaint, Shape, shown_response, voice};
use crate::failure::{Failure, cut};
use crate::host::Host;
use crate::path_part::PathPart;
use crate::request_info::Meta;
use crate::result_store::Title;
use crate::work::WorkPool;
use crate::write_out::written;

type Answer = Result<Response, Failure>;

/// What stands before a request's id in a response's.
const RESPONSE: &str = "resp_";

/// A request and, once it has ended, its answer in the words of its endpoint.
#[derive(Serialize)]
struct Shown<'a> {
    id: &'a str,
    object: &'static str,
    endpoint: &'static str,
    status: &'static str,
    answer: Option<&'a RawValue>,
    error: Option<Complaint>,
}

/// `GET /v1/responses/{id}`
pub(crate) async fn response(
    State(host): State<Arc<Host>>,
    Extension(meta): Extension<Meta>,
    PathPart(id): PathPart,
    headers: HeaderMap,
) -> Answer {
    let (title, kept) = host.kept_response(&meta, &headers, &id).await?;
    shown(&host.work, &title, &kept).await
}

/// `POST /v1/responses/{id}/cancel`: asking twice, or for one that has ended, changes nothing. The
/// answer is what `GET` shows from then on.
pub(crate) async fn cancel_response(
    State(host): State<Arc<Host>>,
    Extension(meta): Extension<Meta>,
    PathPart(id): PathPart,
    headers: HeaderMap,
) -> Answer {
    let (title, _) = host.kept_response(&meta, &headers, &id).await?;
    let kept = host.cancel_kept(&title).await;
    shown(&host.work, &title, &kept.ok_or_else(|| Failure::NotKept(cut(&id)))?).await
}

/// `DELETE /v1/responses/{id}`: one that still runs is cancelled first, since nobody could ask for it
/// any more.
pub(crate) async fn delete_response(
    State(host): State<Arc<Host>>,
    Extension(meta): Extension<Meta>,
    PathPart(id): PathPart,
    headers: HeaderMap,
) -> Answer {
    let (title, _) = host.kept_response(&meta, &headers, &id).await?;
    host.cancel_kept(&title).await;
    if !host.results.remove(&title) {
        return Err(Failure::NotKept(cut(&id)));
    }
    Ok(Json(json!({ "id": id, "object": "response", "deleted": true })).into_response())
}

/// `GET /v1/requests/{id}`
pub(crate) async fn request(
    State(host): State<Arc<Host>>,
    Extension(meta): Extension<Meta>,
    PathPart(id): PathPart,
    headers: HeaderMap,
) -> Answer {
    let endpoint = host.endpoint_of(RequestId::parse(&id).ok().as_ref());
    let (title, kept) = host.kept(&meta, endpoint, &headers, &id, |_| true).await?;
    let (mut answer, mut error) = (None, None);
    match &kept {
        Kept::Queued | Kept::Running => {}
        Kept::Ended(result) => match &**result {
            (said, Ok(done)) => {
                let (title, said, done) = (Arc::clone(&title), said.clone(), *done);
                let tenant = title.tenant.clone();
                let write =
                    move || voice(title.shape.clone(), title.head.clone()).whole(said, &done);
                let whole = written(&host.work, &tenant, result.0.bytes(), write);
                answer = Some(whole.await?);
            }
            (_, Err(failure)) => error = Some(Complaint::of(failure, &title.head.request)),
        },
    }
    let status = kept.as_str();
    let id = title.head.request.as_str();
    let endpoint = title.endpoint.as_str();
    // Written by us, so it is text and JSON, and goes in as it is.
    let answer = answer.and_then(|bytes| String::from_utf8(bytes).ok());
    let answer = answer.and_then(|text| RawValue::from_string(text).ok());
    let shown = Shown { id, object: "request", endpoint, status, answer: answer.as_deref(), error };
    Ok(Json(shown).into_response())
}

impl Host {
    async fn kept_response(
        &self,
        meta: &Meta,
        headers: &HeaderMap,
        id: &str,
    ) -> Result<(Arc<Title>, Kept), Failure> {
        let unknown = || Failure::NotKept(cut(id));
        let request = id.strip_prefix(RESPONSE).ok_or_else(unknown)?;
        let responses = |endpoint: Endpoint| endpoint == Endpoint::Responses;
        let kept = self.kept(meta, Endpoint::Responses, headers, request, responses).await;
        let (title, kept) = kept.map_err(|why| match why {
            Failure::NotKept(_) => unknown(),
            why => why,
        })?;
        let is_response = matches!(title.shape, Shape::Responses(_));
        is_response.then_some((title, kept)).ok_or_else(unknown)
    }

    async fn kept(
        &self,
        meta: &Meta,
        endpoint: Endpoint,
        headers: &HeaderMap,
        id: &str,
        through: impl Fn(Endpoint) -> bool,
    ) -> Result<(Arc<Title>, Kept), Failure> {
        let visit = self.identify_to_look_up(meta, endpoint, headers).await?;
        let id = RequestId::parse(id).map_err(|_| Failure::NotKept(cut(id)))?;
        let tenant = &visit.identity.tenant;
        if let Some(kept) = self.results.get(&id, tenant) {
            return Ok(kept);
        }
        let in_flight = self.live.has(&id, tenant, through);
        Err(if in_flight { Failure::InFlight(id) } else { Failure::NotKept(id.to_string()) })
    }
}

/// A response as it is at the moment.
pub(crate) async fn shown(work: &WorkPool, title: &Arc<Title>, kept: &Kept) -> Answer {
    let (bytes, tenant) = (title.shape.bytes() + kept.bytes(), title.tenant.clone());
    let (title, kept) = (Arc::clone(title), kept.clone());
    let write = move || shown_response(&title.shape, &title.head, &kept);
    let mut response = Response::new(written(work, &tenant, bytes, write).await?.into());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}
