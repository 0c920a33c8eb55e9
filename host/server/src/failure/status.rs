//! The only place where a cause becomes a status.
//!
//! | cause | status | code |
//! |---|---|---|
//! | a field is wrong, missing or not served | 400 | `invalid_value`, `unsupported_parameter`, ... |
//! | body compressed | 415 | `content_encoding` |
//! | unknown model, route or request id | 404 | `model_not_found`, `unknown_url`, `request_not_found` |
//! | a web page, or a name, that is not allowed | 403, 421 | `cross_origin`, `wrong_host` |
//! | wrong method | 405 | `method_not_allowed` |
//! | not HTTP, or what the framework cannot read | 400 | `malformed_request` |
//! | head too slow, URL too long, head too large | 408, 414, 431 | `header_timeout`, `url_too_long`, `headers_too_large` |
//! | body too slow, too large | 408, 413 | `body_timeout`, `body_too_large` |
//! | asked for while its client is being answered | 409 | `request_in_flight` |
//! | cancelled by an operator, or by a policy after its admission | 409 | `request_cancelled`, the policy's own |
//! | queue full | 429 | `waiting_room_full` |
//! | a policy refused | its own | its own |
//! | would take too much memory | 413 | `prompt_too_costly` |
//! | a policy gave no decision | what its `on_failure` says | `policy_failed` |
//! | too many go on without a client | 429 | `too_many_detached` |
//! | a pass, the engine or the host failed | 500 | `internal_error` |
//! | the model's template or tokenizer did not end | 500 | `prompt_timeout` |
//! | the device's memory did not suffice for it | 503 | `out_of_memory` |
//! | the device has failed, and the host ends | 503 | `device_failed` |
//! | a policy made nonsense of the request | 500 | `policy_failed` |
//! | loading, draining, stopped, too many connections | 503 | `model_loading`, `shutting_down`, ... |
//! | too many wait to be read; too many did not end | 503 | `work_queue_full`, `prompt_stuck` |
//! | a deadline struck | 504 | `deadline_queue`, `deadline_first_token`, ... |
//!
//! Cancelling by an operator is 409 because the request lost against another one; there is no
//! registered status for it. OpenAI's clients retry 409 and 5xx by themselves unless
//! `x-should-retry` says no, so we say no where the same request would only end the same way.

use std::time::Duration;

use axum::http::StatusCode;
use interlock_engine::{EngineExit, NotStarted};
use interlock_request::{CancelCause, Deadline, FaultKind};

use super::{BodyProblem, Failure, HeadProblem};
use crate::origin::Foreign;
use crate::work::WorkError;

/// When the same request may be sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Retry {
    /// The client knows best.
    Unsaid,
    /// After the configured time.
    Later,
    /// After a time that a policy chose.
    After(Duration),
    /// The request would end the same way, or was ended on purpose.
    Never,
}

impl Failure {
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::InvalidRequest(_) | Self::BadRequestId(_) => StatusCode::BAD_REQUEST,
            Self::Body(BodyProblem::TooLarge { .. }) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Body(BodyProblem::TooSlow { .. }) => StatusCode::REQUEST_TIMEOUT,
            Self::Body(BodyProblem::Broken(_)) => StatusCode::BAD_REQUEST,
            Self::Body(BodyProblem::Encoded(_)) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::HeadTooLarge { .. } | Self::Unreadable(HeadProblem::TooLarge(_)) => {
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
            }
            Self::Unreadable(HeadProblem::Malformed) => StatusCode::BAD_REQUEST,
            Self::Unreadable(HeadProblem::UrlTooLong) => StatusCode::URI_TOO_LONG,
            Self::Unreadable(HeadProblem::TooSlow { .. }) => StatusCode::REQUEST_TIMEOUT,
            Self::Unreadable(HeadProblem::Rejected { status, .. }) => *status,
            Self::Foreign(Foreign::Origin(_)) => StatusCode::FORBIDDEN,
            Self::Foreign(Foreign::Host(_)) => StatusCode::MISDIRECTED_REQUEST,
            Self::UnknownModel { .. }
            | Self::UnknownUrl { .. }
            | Self::UnknownRequest(_)
            | Self::NotKept(_) => StatusCode::NOT_FOUND,
            Self::InFlight(_) => StatusCode::CONFLICT,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::NotStarted(NotStarted::Full { .. }) => StatusCode::TOO_MANY_REQUESTS,
            Self::Connections(_) | Self::Draining | Self::NotStarted(_) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::Refused(refused) => StatusCode::from_u16(refused.rejection.status)
                .unwrap_or(StatusCode::SERVICE_UNAVAILABLE),
            Self::Cancelled(CancelCause::Deadline(_)) => StatusCode::GATEWAY_TIMEOUT,
            Self::Cancelled(CancelCause::Shutdown) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Intervened(intervention) => intervention
                .failed
                .and_then(|status| StatusCode::from_u16(status).ok())
                .unwrap_or(StatusCode::CONFLICT),
            // A client that left reads nothing; the status is for completeness.
            Self::Cancelled(
                CancelCause::Operator | CancelCause::Disconnect | CancelCause::Policy,
            ) => StatusCode::CONFLICT,
            Self::Detached { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::Work(WorkError::Full { .. } | WorkError::Stuck { .. }) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::Work(WorkError::TooMuch { .. }) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Work(WorkError::Late(_)) => StatusCode::GATEWAY_TIMEOUT,
            Self::Work(WorkError::Endless { .. } | WorkError::Panicked) => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
            Self::Failed(FaultKind::Internal) | Self::Spoiled(_) => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
            // Elsewhere, or when memory has come free or the host is back, it can be served.
            Self::Failed(FaultKind::OutOfMemory | FaultKind::DeviceFailed) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
        }
    }

    pub(crate) fn retry(&self) -> Retry {
        match self {
            Self::NotStarted(
                NotStarted::Full { .. }
                | NotStarted::Loading
                | NotStarted::Stopped(EngineExit::DeviceFailed(_)),
            )
            | Self::Failed(FaultKind::OutOfMemory | FaultKind::DeviceFailed)
            | Self::Connections(_)
            | Self::Detached { .. }
            | Self::Draining
            | Self::Work(WorkError::Full { .. } | WorkError::Stuck { .. })
            | Self::Cancelled(CancelCause::Shutdown | CancelCause::Deadline(Deadline::Queue)) => {
                Retry::Later
            }
            Self::Refused(refused) => {
                refused.rejection.retry_after.map_or(Retry::Unsaid, Retry::After)
            }
            Self::Cancelled(_)
            | Self::InFlight(_)
            | Self::Intervened(_)
            | Self::Spoiled(_)
            | Self::Work(WorkError::Endless { .. }) => Retry::Never,
            _ => Retry::Unsaid,
        }
    }
}
