//! Why a request got no answer, or not the whole of it: one cause for each thing that can go wrong.
//!
//! `status` says which status a cause has, and when to try again; `message` what the client is
//! told. An endpoint puts both into the shape of its API (`endpoints::ApiError`).
//!
//! # Invariants
//!
//! - What failed inside is told to our log, never to the client: it gets the request's id.

mod invalid;
mod message;
mod status;

use std::time::Duration;

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use interlock_engine::{EngineExit, NotStarted};
use interlock_policy_api::{PolicyFailure, Reason};
use interlock_policy_chain::PolicyRefusal;
use interlock_request::{CancelCause, Deadline, FaultKind, RequestId};

use crate::origin::Foreign;
use crate::work::WorkError;
pub(crate) use invalid::InvalidRequest;
pub(crate) use message::{encoded, excerpt};
pub(crate) use status::Retry;

/// Why a request got no answer, or not the whole of it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Failure {
    /// A field of the body is wrong, or the body as a whole.
    InvalidRequest(InvalidRequest),
    /// The value of `x-request-id` cannot be an id.
    BadRequestId(String),
    /// The body did not arrive as it should.
    Body(BodyProblem),
    /// The head is larger than configured.
    HeadTooLarge {
        /// `bytes` or `headers`.
        unit: &'static str,
        /// Bytes or headers of the request.
        got: usize,
        /// `server.header_max` or `server.headers_max`.
        limit: usize,
    },
    /// The head cannot be read, or not as it should be.
    Unreadable(HeadProblem),
    /// The request comes from a web page that is not allowed, or names a host that this one is not.
    Foreign(Foreign),
    /// No model of this name is served.
    UnknownModel {
        /// The name as the client wrote it.
        asked: String,
        /// The names of those that are served.
        served: Vec<String>,
    },
    /// Nothing is served there.
    UnknownUrl {
        /// As the client wrote it, cut.
        path: String,
    },
    /// Something is served there, for another method.
    Method,
    /// No request of this id is in flight, and none is kept.
    UnknownRequest(String),
    /// No answer to a request of this id is kept, and none is in flight.
    NotKept(String),
    /// The request of this id is in flight, and its answer is for its client alone.
    InFlight(RequestId),
    /// More connections than configured.
    Connections(ConnectionLimit),
    /// The host is stopping and takes nothing new.
    Draining,
    /// The engine did not take the request.
    NotStarted(NotStarted),
    /// A policy refused the request.
    Refused(Box<PolicyRefusal>),
    /// A policy changed the request into one that is not valid; the text is for our log.
    Spoiled(String),
    /// A policy ended the request after its admission.
    Intervened(Box<Intervention>),
    /// As many requests as may go on without a client.
    Detached {
        /// `detached.requests_max`.
        limit: usize,
    },
    /// The work pool did not read or tokenize the request.
    Work(WorkError),
    /// The request was cancelled.
    Cancelled(CancelCause),
    /// A pass, the engine or the host failed; our log has the reason.
    Failed(FaultKind),
}

/// A policy ended a request that it had admitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Intervention {
    pub(crate) policy: String,
    pub(crate) reason: Reason,
    /// The status that its `on_failure` says, when it gave no decision at all.
    pub(crate) failed: Option<u16>,
}

/// Why a head did not become a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum HeadProblem {
    /// The head is not HTTP/1.1.
    Malformed,
    /// Far larger than configured.
    TooLarge(HeadLimits),
    /// The first line is longer than hyper takes.
    UrlTooLong,
    /// Slower than configured.
    TooSlow {
        /// The longest time that is allowed.
        limit: Duration,
    },
    /// The framework refused it before we were asked.
    Rejected {
        /// The framework's status.
        status: StatusCode,
        /// The framework's own words.
        why: String,
    },
}

/// What a request's head may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HeadLimits {
    /// `server.header_max`
    pub(crate) header_max: usize,
    /// `server.headers_max`
    pub(crate) headers_max: usize,
}

/// Which limit a connection is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ConnectionLimit {
    /// `server.connections_max`: so many are open.
    Connections(usize),
    /// `server.connections_per_address_max`: so many of its address are open.
    Address(usize),
}

/// How a body failed to arrive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum BodyProblem {
    /// Larger than configured.
    TooLarge {
        /// The most bytes that are allowed.
        limit: usize,
    },
    /// Slower than configured.
    TooSlow {
        /// The longest time that is allowed.
        limit: Duration,
    },
    /// The connection broke, or its framing is wrong.
    Broken(String),
    /// The body is compressed, with these codings.
    Encoded(String),
}

impl Failure {
    /// Something inside failed.
    pub(crate) const INTERNAL: Self = Self::Failed(FaultKind::Internal);

    /// Whatever [`Self::reason`] says, for metrics that must be there before the first of each.
    pub(crate) const REASONS: &[&str] = &[
        "invalid_request",
        "invalid_request_id",
        "body_too_large",
        "body_timeout",
        "body_broken",
        "content_encoding",
        "headers_too_large",
        "malformed_request",
        "url_too_long",
        "header_timeout",
        "cross_origin",
        "wrong_host",
        "model_not_found",
        "unknown_url",
        "method_not_allowed",
        "request_not_found",
        "request_in_flight",
        "too_many_connections",
        "shutting_down",
        "waiting_room_full",
        "model_loading",
        "engine_stopped",
        "policy",
        "deadline_queue",
        "deadline_first_token",
        "deadline_inter_token",
        "deadline_total",
        "request_cancelled",
        "disconnected",
        "policy_spoiled",
        "policy_ended",
        "too_many_detached",
        "work_queue_full",
        "prompt_too_costly",
        "prompt_timeout",
        "prompt_stuck",
        "internal_error",
        "out_of_memory",
        "device_failed",
    ];

    /// The label in `interlock_http_refusals_total{reason}`, a closed set, and its code unless a
    /// policy or the body's reader has a better one.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::InvalidRequest(_) => "invalid_request",
            Self::BadRequestId(_) => "invalid_request_id",
            Self::Body(BodyProblem::TooLarge { .. }) => "body_too_large",
            Self::Body(BodyProblem::TooSlow { .. }) => "body_timeout",
            Self::Body(BodyProblem::Broken(_)) => "body_broken",
            Self::Body(BodyProblem::Encoded(_)) => "content_encoding",
            Self::HeadTooLarge { .. } | Self::Unreadable(HeadProblem::TooLarge(_)) => {
                "headers_too_large"
            }
            Self::Unreadable(HeadProblem::Malformed | HeadProblem::Rejected { .. }) => {
                "malformed_request"
            }
            Self::Unreadable(HeadProblem::UrlTooLong) => "url_too_long",
            Self::Unreadable(HeadProblem::TooSlow { .. }) => "header_timeout",
            Self::Foreign(Foreign::Origin(_)) => "cross_origin",
            Self::Foreign(Foreign::Host(_)) => "wrong_host",
            Self::UnknownModel { .. } => "model_not_found",
            Self::UnknownUrl { .. } => "unknown_url",
            Self::Method => "method_not_allowed",
            Self::UnknownRequest(_) | Self::NotKept(_) => "request_not_found",
            Self::InFlight(_) => "request_in_flight",
            Self::Connections(_) => "too_many_connections",
            Self::Draining | Self::Cancelled(CancelCause::Shutdown) => "shutting_down",
            Self::NotStarted(NotStarted::Full { .. }) => "waiting_room_full",
            Self::NotStarted(NotStarted::Loading) => "model_loading",
            Self::NotStarted(NotStarted::Stopped(EngineExit::DeviceFailed(_))) => {
                FaultKind::DeviceFailed.as_str()
            }
            Self::NotStarted(NotStarted::Stopped(_)) => "engine_stopped",
            Self::Refused(_) => "policy",
            Self::Cancelled(CancelCause::Deadline(Deadline::Queue)) => "deadline_queue",
            Self::Cancelled(CancelCause::Deadline(Deadline::FirstToken)) => "deadline_first_token",
            Self::Cancelled(CancelCause::Deadline(Deadline::InterToken)) => "deadline_inter_token",
            Self::Cancelled(CancelCause::Deadline(Deadline::Total)) => "deadline_total",
            Self::Cancelled(CancelCause::Operator) => "request_cancelled",
            Self::Cancelled(CancelCause::Disconnect) => "disconnected",
            Self::Intervened(_) | Self::Cancelled(CancelCause::Policy) => "policy_ended",
            Self::Spoiled(_) => "policy_spoiled",
            Self::Detached { .. } => "too_many_detached",
            Self::Work(WorkError::Full { .. }) => "work_queue_full",
            Self::Work(WorkError::TooMuch { .. }) => "prompt_too_costly",
            Self::Work(WorkError::Endless { .. }) => "prompt_timeout",
            Self::Work(WorkError::Stuck { .. }) => "prompt_stuck",
            Self::Work(WorkError::Late(deadline)) => {
                Self::Cancelled(CancelCause::Deadline(*deadline)).reason()
            }
            Self::Work(WorkError::Panicked) => FaultKind::Internal.as_str(),
            Self::Failed(kind) => kind.as_str(),
        }
    }

    /// The cause as clients read it: a policy's own code, that of a wrong field, or the reason.
    pub(crate) fn code(&self) -> String {
        match self {
            Self::InvalidRequest(invalid) => invalid.code.to_owned(),
            Self::Refused(refused) => refused.rejection.reason.code.0.to_string(),
            Self::Intervened(intervention) => intervention.reason.code.0.to_string(),
            Self::Spoiled(_) => "policy_failed".to_owned(),
            other => other.reason().to_owned(),
        }
    }

    /// The field of the request that is wrong, if it is one.
    pub(crate) fn param(&self) -> Option<String> {
        match self {
            Self::InvalidRequest(invalid) => invalid.param.clone(),
            Self::UnknownModel { .. } => Some("model".into()),
            Self::BadRequestId(_) => Some("x-request-id".into()),
            _ => None,
        }
    }

    /// The field it is about, for our log: what clients name themselves is left out.
    pub(crate) fn field(&self) -> Option<String> {
        const NAMED_BY_CLIENTS: [&str; 2] = ["metadata.", "logit_bias."];

        let param = self.param()?;
        let theirs = NAMED_BY_CLIENTS.iter().find(|map| param.starts_with(*map));
        Some(theirs.map_or(param, |map| map.trim_end_matches('.').to_owned()))
    }

    /// The origin or the host name that was not allowed, for our log.
    pub(crate) fn foreign(&self) -> Option<&str> {
        match self {
            Self::Foreign(Foreign::Origin(name) | Foreign::Host(name)) => Some(name),
            _ => None,
        }
    }

    /// What was wrong inside, for our log.
    pub(crate) fn spoiled(&self) -> Option<&str> {
        match self {
            Self::Spoiled(why) => Some(why),
            _ => None,
        }
    }

    /// Headers that a policy adds to a refusal.
    pub(crate) fn headers(&self) -> &[(String, String)] {
        match self {
            Self::Refused(refused) => &refused.rejection.headers,
            _ => &[],
        }
    }

    /// The policy that refused, and what was wrong with it if it only failed.
    pub(crate) fn policy(&self) -> Option<(&str, Option<&PolicyFailure>)> {
        match self {
            Self::Refused(refused) => Some((&refused.policy, refused.failure.as_deref())),
            Self::Intervened(intervention) => Some((&intervention.policy, None)),
            _ => None,
        }
    }
}

impl IntoResponse for Failure {
    /// A status alone: the layer around all routes adds the id and the body, once for all of them.
    fn into_response(self) -> Response {
        let mut response = self.status().into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl From<InvalidRequest> for Failure {
    fn from(invalid: InvalidRequest) -> Self {
        Self::InvalidRequest(invalid)
    }
}

impl From<NotStarted> for Failure {
    fn from(why: NotStarted) -> Self {
        Self::NotStarted(why)
    }
}

impl From<PolicyRefusal> for Failure {
    fn from(refused: PolicyRefusal) -> Self {
        Self::Refused(Box::new(refused))
    }
}

impl From<WorkError> for Failure {
    fn from(why: WorkError) -> Self {
        match why {
            WorkError::Late(deadline) => Self::Cancelled(CancelCause::Deadline(deadline)),
            WorkError::Panicked => Self::INTERNAL,
            why => Self::Work(why),
        }
    }
}

impl From<BodyProblem> for Failure {
    fn from(problem: BodyProblem) -> Self {
        Self::Body(problem)
    }
}

#[cfg(test)]
mod tests;
