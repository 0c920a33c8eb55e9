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
//! | waiting room full | 429 | `waiting_room_full` |
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
//!
//! # Invariants
//!
//! - What failed inside is told to our log, never to the client: it gets the request's id.

use std::time::Duration;

use axum::http::StatusCode;
use interlock_engine::{EngineExit, NotStarted};
use interlock_policy_api::{PolicyFailure, Reason};
use interlock_policy_chain::PolicyRefusal;
use interlock_request::{CancelCause, Deadline, FaultKind, RequestId};
use serde::Serialize;

use crate::ask::Invalid;
use crate::body::encoded;
use crate::doors::Over;
use crate::listener::HeadLimits;
use crate::origin::Foreign;
use crate::router::cut;
use crate::work::{NotDone, Part, STUCK_MAX};

/// Why a request got no answer, or not the whole of it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Failure {
    /// The body says something that cannot be.
    Invalid(Invalid),
    /// `x-request-id` cannot be one.
    BadRequestId(String),
    /// The body did not arrive as it should.
    Body(BodyProblem),
    /// The head is larger than configured.
    Head {
        /// `bytes` or `headers`.
        unit: &'static str,
        /// How many there are.
        got: usize,
        /// How many there may be.
        limit: usize,
    },
    /// The head cannot be read, or not as it should be.
    Unreadable(HeadProblem),
    /// It comes from a web page that may not ask, or calls us by a name that we do not have.
    Foreign(Foreign),
    /// We serve other models.
    UnknownModel {
        /// The client's name for it.
        asked: String,
        /// Ours.
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
    Connections(Over),
    /// The host is stopping and takes nothing new.
    Draining,
    /// The engine would not take it.
    NotStarted(NotStarted),
    /// A policy turned it away.
    Refused(Box<PolicyRefusal>),
    /// A policy changed it into something that cannot be; the text is for our log.
    Spoiled(String),
    /// A policy ended it after its admission.
    Intervened(Box<Intervention>),
    /// As many go on without a client as may.
    Detached {
        /// How many those are.
        limit: usize,
    },
    /// The pool did not do what had to be done for it.
    Work(NotDone),
    /// Someone cancelled it.
    Cancelled(CancelCause),
    /// A pass, the engine or the host failed; our log has the reason.
    Failed(FaultKind),
}

/// A policy ended a request that it had admitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Intervention {
    /// Which.
    pub(crate) policy: String,
    /// Why.
    pub(crate) reason: Reason,
    /// The status that its `on_failure` says, when it gave no decision at all.
    pub(crate) failed: Option<u16>,
}

/// Why a head did not become a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum HeadProblem {
    /// It is not HTTP/1.1.
    Malformed,
    /// Far larger than configured.
    TooLarge(HeadLimits),
    /// Its first line is longer than can be.
    UrlTooLong,
    /// Slower than configured.
    TooSlow {
        /// Longest time.
        limit: Duration,
    },
    /// The framework refused it before we were asked.
    Rejected {
        /// With which status.
        status: StatusCode,
        /// In whose words.
        why: String,
    },
}

/// How a body failed to arrive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum BodyProblem {
    /// Larger than configured.
    TooLarge {
        /// Most bytes.
        limit: usize,
    },
    /// Slower than configured.
    TooSlow {
        /// Longest time.
        limit: Duration,
    },
    /// The connection broke, or its framing is wrong.
    Broken(String),
    /// It is compressed, in these ways, as its sender calls them.
    Encoded(String),
}

/// An error in OpenAI's shape, without its envelope.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Complaint {
    /// For people.
    pub(crate) message: String,
    /// Whose fault, roughly.
    #[serde(rename = "type")]
    pub(crate) kind: &'static str,
    /// The field, if it is about one.
    pub(crate) param: Option<String>,
    /// For programs.
    pub(crate) code: String,
}

/// When the same request may be sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Retry {
    /// The client knows best.
    Unsaid,
    /// After the configured time.
    Later,
    /// After a time that a policy chose.
    After(Duration),
    /// It would end the same way, or was ended on purpose.
    Never,
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

    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::Invalid(_) | Self::BadRequestId(_) => StatusCode::BAD_REQUEST,
            Self::Body(BodyProblem::TooLarge { .. }) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Body(BodyProblem::TooSlow { .. }) => StatusCode::REQUEST_TIMEOUT,
            Self::Body(BodyProblem::Broken(_)) => StatusCode::BAD_REQUEST,
            Self::Body(BodyProblem::Encoded(_)) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Head { .. } | Self::Unreadable(HeadProblem::TooLarge(_)) => {
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
            Self::Work(NotDone::Full { .. } | NotDone::Stuck { .. }) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::Work(NotDone::TooMuch { .. }) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Work(NotDone::Late(_)) => StatusCode::GATEWAY_TIMEOUT,
            Self::Work(NotDone::Endless { .. } | NotDone::Panicked) => {
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
            | Self::Work(NotDone::Full { .. } | NotDone::Stuck { .. })
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
            | Self::Work(NotDone::Endless { .. }) => Retry::Never,
            _ => Retry::Unsaid,
        }
    }

    /// Its label in `interlock_http_refusals_total{reason}`, a closed set, and its code unless a
    /// policy or the body's reader has a better one.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "invalid_request",
            Self::BadRequestId(_) => "invalid_request_id",
            Self::Body(BodyProblem::TooLarge { .. }) => "body_too_large",
            Self::Body(BodyProblem::TooSlow { .. }) => "body_timeout",
            Self::Body(BodyProblem::Broken(_)) => "body_broken",
            Self::Body(BodyProblem::Encoded(_)) => "content_encoding",
            Self::Head { .. } | Self::Unreadable(HeadProblem::TooLarge(_)) => "headers_too_large",
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
            Self::Work(NotDone::Full { .. }) => "work_queue_full",
            Self::Work(NotDone::TooMuch { .. }) => "prompt_too_costly",
            Self::Work(NotDone::Endless { .. }) => "prompt_timeout",
            Self::Work(NotDone::Stuck { .. }) => "prompt_stuck",
            Self::Work(NotDone::Late(deadline)) => {
                Self::Cancelled(CancelCause::Deadline(*deadline)).reason()
            }
            Self::Work(NotDone::Panicked) => FaultKind::Internal.as_str(),
            Self::Failed(kind) => kind.as_str(),
        }
    }

    /// What the client is told.
    pub(crate) fn complaint(&self, id: &RequestId) -> Complaint {
        let code = match self {
            Self::Invalid(invalid) => invalid.code.to_owned(),
            Self::Refused(refused) => refused.rejection.reason.code.0.to_string(),
            Self::Intervened(intervention) => intervention.reason.code.0.to_string(),
            Self::Spoiled(_) => "policy_failed".to_owned(),
            other => other.reason().to_owned(),
        };
        let kind = match self.status().as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            429 => "rate_limit_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        };
        Complaint { message: self.message(id), kind, param: self.param(), code }
    }

    fn param(&self) -> Option<String> {
        match self {
            Self::Invalid(invalid) => invalid.param.clone(),
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

    /// Whose page or which name was not allowed, for our log.
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

    fn message(&self, id: &RequestId) -> String {
        match self {
            Self::Invalid(invalid) => invalid.message.clone(),
            Self::BadRequestId(why) => format!("x-request-id is not valid: {why}"),
            Self::Body(BodyProblem::TooLarge { limit }) => {
                format!("the body is larger than the limit of {limit} bytes")
            }
            Self::Body(BodyProblem::TooSlow { limit }) => {
                format!("the body did not arrive within {limit:?}")
            }
            Self::Body(BodyProblem::Broken(why)) => format!("the body could not be read: {why}"),
            Self::Body(BodyProblem::Encoded(codings)) => encoded(codings),
            Self::Head { unit, got, limit } => {
                format!("the request's head has {got} {unit}, the limit is {limit}")
            }
            Self::Unreadable(HeadProblem::Malformed) => {
                "the request is not HTTP/1.1: its first line or one of its headers cannot be read"
                    .into()
            }
            Self::Unreadable(HeadProblem::TooLarge(limits)) => format!(
                "the request's head is more than twice as large as it may be: the limits are {} \
                 bytes and {} headers",
                limits.header_max, limits.headers_max
            ),
            Self::Unreadable(HeadProblem::UrlTooLong) => {
                "the request's URL is longer than 65534 bytes, which is the limit".into()
            }
            Self::Unreadable(HeadProblem::TooSlow { limit }) => {
                format!("the request's head did not arrive within {limit:?}")
            }
            Self::Unreadable(HeadProblem::Rejected { why, .. }) => {
                format!("the request cannot be read: {}", cut(why))
            }
            Self::Foreign(Foreign::Origin(origin)) => format!(
                "web pages of the origin {:?} may not use this host: they are not in its setting \
                 server.allowed_origins",
                cut(origin)
            ),
            Self::Foreign(Foreign::Host(host)) => format!(
                "this host is not called {:?} here: names that it has beside localhost and its \
                 addresses are in its setting server.allowed_hosts",
                cut(host)
            ),
            Self::UnknownModel { asked, served } => {
                let asked = cut(asked);
                let served: Vec<_> = served.iter().map(|name| format!("{name:?}")).collect();
                let served = served.join(", ");
                format!("the model {asked:?} does not exist; this host serves {served}")
            }
            Self::UnknownUrl { path } => format!("nothing is served at {path}"),
            Self::Method => "this URL does not take this method".into(),
            Self::UnknownRequest(id) => {
                format!("no request {id:?} is in flight, and no answer to one is kept")
            }
            Self::NotKept(id) => format!(
                "no answer {id:?} is kept: those are of requests in the background, and of those that \
                 went on without their client"
            ),
            Self::InFlight(id) => format!(
                "the request {:?} is in flight and its answer goes to its client alone: it is not \
                 stored (\"background\": true stores one); POST /v1/requests/{id}/cancel cancels it",
                id.as_str()
            ),
            Self::Connections(Over::Connections(limit)) => {
                format!("{limit} connections are open, which is the limit")
            }
            Self::Connections(Over::Address(limit)) => {
                format!("{limit} connections of one address are open, which is the limit")
            }
            Self::Draining => "the host is shutting down and takes no new requests".into(),
            Self::NotStarted(NotStarted::Stopped(EngineExit::DeviceFailed(_))) => {
                "the device that computes has failed; this host is ending".into()
            }
            Self::NotStarted(NotStarted::Stopped(_)) => {
                "the engine has stopped; this host cannot serve any more".into()
            }
            Self::NotStarted(why) => why.to_string(),
            Self::Refused(refused) => {
                let reason = &refused.rejection.reason;
                reason.detail.clone().unwrap_or_else(|| {
                    format!("the policy {:?} refused: {}", refused.policy, reason.code.0)
                })
            }
            Self::Intervened(intervention) => {
                let Intervention { policy, reason, failed } = &**intervention;
                reason.detail.clone().unwrap_or_else(|| match failed {
                    Some(_) => format!("the policy {policy:?} could not decide about request {id}"),
                    None => format!("the policy {policy:?} ended request {id}: {}", reason.code.0),
                })
            }
            Self::Spoiled(_) => {
                format!("a policy of this host made request {id} one that cannot be served")
            }
            Self::Detached { limit } => {
                format!("{limit} requests go on without a client, which is the limit")
            }
            Self::Cancelled(CancelCause::Deadline(deadline)) => {
                let what = match deadline {
                    Deadline::Queue => "waited too long for its turn",
                    Deadline::FirstToken => "took too long to its first token",
                    Deadline::InterToken => "paused too long between two tokens",
                    Deadline::Total => "took too long in all",
                };
                format!("request {id} {what} and was ended by its {} deadline", deadline.as_str())
            }
            Self::Cancelled(CancelCause::Operator) => {
                format!("request {id} was cancelled by an operator")
            }
            Self::Cancelled(CancelCause::Shutdown) => {
                format!("request {id} was ended because the host is shutting down")
            }
            Self::Cancelled(CancelCause::Disconnect) => {
                format!("the client of request {id} has left")
            }
            Self::Cancelled(CancelCause::Policy) => {
                format!("request {id} was ended by a policy")
            }
            Self::Work(NotDone::Full { limit }) => {
                format!("{limit} requests already wait to be read, which is the limit")
            }
            Self::Work(NotDone::TooMuch { bytes, limit }) => format!(
                "reading this request would take some {bytes} bytes of memory, the limit is {limit}"
            ),
            Self::Work(NotDone::Late(deadline)) => {
                Self::Cancelled(CancelCause::Deadline(*deadline)).message(id)
            }
            Self::Work(NotDone::Endless { owner: (model, part), limit }) => format!(
                "the {} of the model {model} did not come to an end within {limit:?}",
                part.spoken()
            ),
            Self::Work(NotDone::Stuck { owner: (model, part) }) => {
                let (part, others) = match part {
                    Part::ChatTemplate => (part.spoken(), "; /v1/completions works"),
                    Part::Tokenizer => (part.spoken(), ""),
                };
                format!(
                    "the {part} of the model {model} has not come to an end for {STUCK_MAX} \
                     requests, so no more are taken until one of them has{others}"
                )
            }
            Self::Failed(FaultKind::Internal) | Self::Work(NotDone::Panicked) => {
                format!("request {id} failed inside the host; its log has the reason")
            }
            Self::Failed(FaultKind::OutOfMemory) => format!(
                "request {id} ended because the memory of the device that computes did not suffice \
                 for it; the host's log has the reason"
            ),
            Self::Failed(FaultKind::DeviceFailed) => format!(
                "request {id} ended because the device that computes has failed; this host is ending"
            ),
        }
    }
}

impl From<Invalid> for Failure {
    fn from(invalid: Invalid) -> Self {
        Self::Invalid(invalid)
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

impl From<NotDone> for Failure {
    fn from(why: NotDone) -> Self {
        match why {
            NotDone::Late(deadline) => Self::Cancelled(CancelCause::Deadline(deadline)),
            NotDone::Panicked => Self::INTERNAL,
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
mod tests {
    use std::collections::BTreeSet;

    use interlock_engine::EngineExit;
    use interlock_policy_api::{Code, Phase, Reason, Rejection};
    use interlock_request::ModelId;

    use super::*;

    #[test]
    fn the_reasons_are_those_that_failures_give() {
        let refused = PolicyRefusal {
            policy: "p".into(),
            phase: Phase::Admit,
            rejection: Rejection {
                status: 403,
                reason: Reason { code: "no".into(), detail: None },
                retry_after: None,
                headers: vec![],
            },
            failure: None,
        };
        let deadlines =
            [Deadline::Queue, Deadline::FirstToken, Deadline::InterToken, Deadline::Total];
        let owner = (ModelId::new("m"), Part::ChatTemplate);
        let mut failures = vec![
            Failure::Invalid(Invalid::missing("model")),
            Failure::BadRequestId(String::new()),
            BodyProblem::TooLarge { limit: 1 }.into(),
            BodyProblem::TooSlow { limit: Duration::ZERO }.into(),
            BodyProblem::Broken(String::new()).into(),
            BodyProblem::Encoded(String::new()).into(),
            Failure::Head { unit: "bytes", got: 2, limit: 1 },
            Failure::Unreadable(HeadProblem::Malformed),
            Failure::Unreadable(HeadProblem::UrlTooLong),
            Failure::Unreadable(HeadProblem::TooSlow { limit: Duration::ZERO }),
            Failure::Foreign(Foreign::Origin(String::new())),
            Failure::Foreign(Foreign::Host(String::new())),
            Failure::UnknownModel { asked: String::new(), served: vec![] },
            Failure::UnknownUrl { path: String::new() },
            Failure::Method,
            Failure::UnknownRequest(String::new()),
            Failure::NotKept(String::new()),
            Failure::InFlight(RequestId::generate()),
            Failure::Connections(Over::Address(1)),
            Failure::Draining,
            NotStarted::Full { waiting: 1, limit: 1 }.into(),
            NotStarted::Loading.into(),
            NotStarted::Stopped(EngineExit::Asked).into(),
            refused.into(),
            Failure::Spoiled(String::new()),
            Failure::Intervened(Box::new(Intervention {
                policy: "p".into(),
                reason: Reason { code: Code::default(), detail: None },
                failed: None,
            })),
            Failure::Detached { limit: 1 },
            NotDone::Full { limit: 1 }.into(),
            NotDone::TooMuch { bytes: 2, limit: 1 }.into(),
            NotDone::Endless { owner: owner.clone(), limit: Duration::ZERO }.into(),
            NotDone::Stuck { owner }.into(),
            NotDone::Panicked.into(),
        ];
        failures.extend(FaultKind::ALL.map(Failure::Failed));
        let causes = [CancelCause::Operator, CancelCause::Shutdown, CancelCause::Disconnect];
        failures.extend(causes.map(Failure::Cancelled));
        failures.extend(deadlines.map(|which| Failure::Cancelled(CancelCause::Deadline(which))));
        let given: BTreeSet<_> = failures.iter().map(Failure::reason).collect();
        assert_eq!(given, Failure::REASONS.iter().copied().collect());
    }

    #[test]
    fn the_log_has_no_name_that_a_client_made_up() {
        let field = |path: &str| Failure::from(Invalid::missing(path)).field();
        assert_eq!(field("metadata.my secret").as_deref(), Some("metadata"));
        assert_eq!(field("logit_bias.cat").as_deref(), Some("logit_bias"));
        assert_eq!(field("messages[2].content").as_deref(), Some("messages[2].content"));
    }
}
