//! Errors in OpenAI's shape.

use axum::Json;
use axum::response::{IntoResponse, Response};
use interlock_request::RequestId;
use serde::Serialize;
use serde_json::json;

use crate::failure::Failure;

/// An error in OpenAI's shape, without its envelope.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct ApiError {
    /// A sentence for people.
    pub(crate) message: String,
    /// Whose fault it is, roughly.
    #[serde(rename = "type")]
    pub(crate) kind: &'static str,
    /// The field, if it is about one.
    pub(crate) param: Option<String>,
    /// The cause, for programs.
    pub(crate) code: String,
}

impl ApiError {
    /// What the client of this request is told of a failure.
    pub(crate) fn of(failure: &Failure, id: &RequestId) -> Self {
        let kind = match failure.status().as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            429 => "rate_limit_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        };
        let (message, param, code) = (failure.message(id), failure.param(), failure.code());
        Self { message, kind, param, code }
    }
}

/// The body of a response that tells of a failure.
pub(crate) fn error_json(failure: &Failure, id: &RequestId) -> serde_json::Value {
    json!({ "error": ApiError::of(failure, id) })
}

/// A failure as a response. A route adds what else it has to say of the resource (`Allow`).
pub(crate) fn error_response(failure: &Failure, id: &RequestId) -> Response {
    (failure.status(), Json(error_json(failure, id))).into_response()
}
