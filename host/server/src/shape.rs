//! One shape for all errors: what a handler refuses, and what the framework refuses before a handler
//! is asked (a path that is no text, a method, a header), is told as JSON in OpenAI's shape.

use std::convert::Infallible;

use axum::Json;
use axum::body::{Body, to_bytes};
use axum::extract::{FromRequestParts, Path, Request};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use interlock_request::RequestId;
use serde_json::json;

use crate::failure::{Failure, HeadProblem};

/// A part of a path, such as an id. One that does not decode to text is taken as it is written: it
/// is nobody's.
#[derive(Debug)]
pub(crate) struct PathPart(pub(crate) String);

impl<S: Send + Sync> FromRequestParts<S> for PathPart {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Infallible> {
        let decoded = Path::<String>::from_request_parts(parts, state).await;
        Ok(Self(decoded.map_or_else(|_| as_written(parts), |Path(part)| part)))
    }
}

/// The part of the path that stands where its route has a name.
fn as_written(parts: &Parts) -> String {
    let route = parts.extensions.get::<axum::extract::MatchedPath>();
    let (before, after) = route
        .and_then(|route| {
            let (before, rest) = route.as_str().split_once('{')?;
            Some((before, rest.split_once('}')?.1))
        })
        .unwrap_or_default();
    let path = parts.uri.path();
    let part = path.strip_prefix(before).unwrap_or(path);
    part.strip_suffix(after).unwrap_or(part).to_owned()
}

/// Around a listener that is no client's: gives errors their shape, and adds nothing.
pub(crate) async fn json_errors(request: Request, next: Next) -> Response {
    let mut response = unshaped(next.run(request).await).await;
    match response.extensions_mut().remove::<Failure>() {
        Some(failure) => {
            let id = RequestId::generate();
            let status = failure.status().as_u16();
            tracing::warn!(status, code = failure.reason(), "a request was refused");
            shaped(&failure, &id)
        }
        None => response,
    }
}

/// The failure that a response stands for, if the framework wrote it rather than a handler of ours.
pub(crate) async fn unshaped(response: Response) -> Response {
    /// More than any framework says.
    const SAID_MAX: usize = 1024;

    let status = response.status();
    let json = HeaderValue::from_static("application/json");
    let is_error = status.is_client_error() || status.is_server_error();
    let is_ours = response.extensions().get::<Failure>().is_some()
        || response.headers().get(header::CONTENT_TYPE) == Some(&json);
    if !is_error || is_ours {
        return response;
    }
    let (parts, body) = response.into_parts();
    let said = to_bytes(body, SAID_MAX).await.unwrap_or_default();
    let mut response = Response::from_parts(parts, Body::empty());
    response.extensions_mut().insert(failure_of(status, &String::from_utf8_lossy(&said)));
    response
}

fn failure_of(status: StatusCode, said: &str) -> Failure {
    match status {
        StatusCode::NOT_FOUND => Failure::UnknownUrl { path: "this URL".into() },
        StatusCode::METHOD_NOT_ALLOWED => Failure::Method,
        status if status.is_server_error() => Failure::INTERNAL,
        status => Failure::Unreadable(HeadProblem::Rejected { status, why: said.to_owned() }),
    }
}

/// A failure as a response. What else it has to say of the resource (`Allow`) the route adds.
pub(crate) fn shaped(failure: &Failure, id: &RequestId) -> Response {
    let body = Json(json!({ "error": failure.complaint(id) }));
    (failure.status(), body).into_response()
}
