//! One shape for all errors: what the framework refuses before a handler is asked (a path that is
//! no text, a method, a header) becomes a [`Failure`] like those of our handlers.

use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use interlock_request::RequestId;

use crate::endpoints::error_response;
use crate::failure::{Failure, HeadProblem};

/// What a route's handler returns: a failure gets its body and its headers from the layer around
/// it.
pub(crate) type HandlerResult = Result<Response, Failure>;

/// Around a listener that is no client's: gives errors their shape, and adds nothing.
pub(crate) async fn json_errors(request: Request, next: Next) -> Response {
    let mut response = unshaped(next.run(request).await).await;
    match response.extensions_mut().remove::<Failure>() {
        Some(failure) => {
            let id = RequestId::generate();
            let status = failure.status().as_u16();
            tracing::warn!(status, code = failure.reason(), "a request was refused");
            error_response(&failure, &id)
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
