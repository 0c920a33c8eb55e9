//! What is answered to bytes that never become a request.
//!
//! hyper refuses a head that it cannot read with a status and nothing else. Here that gets what all
//! errors have: a reason for people and one for programs, an id, a line in the log and a count.

use axum::http::StatusCode;
use interlock_request::RequestId;

use crate::failure::{Failure, HeadLimits, HeadProblem};

/// A refusal of hyper's own: exactly what it writes, so that nothing else is ever taken for one.
/// What we answer has no line breaks of this kind but between headers.
pub(crate) fn is_bare(bytes: &[u8]) -> Option<StatusCode> {
    let text = std::str::from_utf8(bytes).ok()?;
    let head = text.strip_suffix("\r\n\r\n")?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.strip_prefix("HTTP/1.1 4")?.get(..2)?;
    let status = StatusCode::from_bytes(format!("4{status}").as_bytes()).ok()?;
    let known = |line: &str| {
        let name = line.split(": ").next().unwrap_or_default();
        ["connection", "date"].contains(&name) || line == "content-length: 0"
    };
    (head.contains(EMPTY) && lines.all(known)).then_some(status)
}

const EMPTY: &str = "\r\ncontent-length: 0";

/// Why hyper refuses with this status.
pub(crate) fn failure(status: StatusCode, limits: HeadLimits) -> Failure {
    Failure::Unreadable(match status {
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => HeadProblem::TooLarge(limits),
        StatusCode::URI_TOO_LONG => HeadProblem::UrlTooLong,
        _ => HeadProblem::Malformed,
    })
}

/// The refusal with a body; the head is hyper's, if it wrote one.
pub(crate) fn with_body(
    failure: &Failure,
    id: &RequestId,
    body: &str,
    bare: Option<&[u8]>,
) -> Vec<u8> {
    let status = failure.status();
    let code = failure.reason();
    let status_code = status.as_u16();
    tracing::info!(
        request = %id, status = status_code, code,
        "a connection was answered with an error: what its client sent is not an HTTP request"
    );
    let head = match bare.and_then(|bare| std::str::from_utf8(bare).ok()) {
        Some(bare) => bare.trim_end().replace(EMPTY, ""),
        None => format!("HTTP/1.1 {status}\r\nconnection: close"),
    };
    let length = body.len();
    format!(
        "{head}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\
         x-request-id: {id}\r\n\r\n{body}"
    )
    .into_bytes()
}
