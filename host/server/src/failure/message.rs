//! What a client is told of a cause, in sentences that name the value and the limit.

use interlock_engine::{EngineExit, NotStarted};
use interlock_request::{CancelCause, Deadline, FaultKind, RequestId};

use super::{BodyProblem, ConnectionLimit, Failure, HeadProblem, Intervention};
use crate::origin::Foreign;
use crate::work::{ModelPart, STUCK_MAX, WorkError};

impl Failure {
    /// One sentence for the client of this request.
    pub(crate) fn message(&self, id: &RequestId) -> String {
        match self {
            Self::InvalidRequest(invalid) => invalid.message.clone(),
            Self::BadRequestId(why) => format!("x-request-id is not valid: {why}"),
            Self::Body(BodyProblem::TooLarge { limit }) => {
                format!("the body is larger than the limit of {limit} bytes")
            }
            Self::Body(BodyProblem::TooSlow { limit }) => {
                format!("the body did not arrive within {limit:?}")
            }
            Self::Body(BodyProblem::Broken(why)) => format!("the body could not be read: {why}"),
            Self::Body(BodyProblem::Encoded(codings)) => encoded(codings),
            Self::HeadTooLarge { unit, got, limit } => {
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
                format!("the request cannot be read: {}", excerpt(why))
            }
            Self::Foreign(Foreign::Origin(origin)) => format!(
                "web pages of the origin {:?} may not use this host: they are not in its setting \
                 server.allowed_origins",
                excerpt(origin)
            ),
            Self::Foreign(Foreign::Host(host)) => format!(
                "this host is not called {:?} here: names that it has beside localhost and its \
                 addresses are in its setting server.allowed_hosts",
                excerpt(host)
            ),
            Self::UnknownModel { asked, served } => {
                let asked = excerpt(asked);
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
            Self::Connections(ConnectionLimit::Connections(limit)) => {
                format!("{limit} connections are open, which is the limit")
            }
            Self::Connections(ConnectionLimit::Address(limit)) => {
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
            Self::Work(WorkError::Full { limit }) => {
                format!("{limit} requests already wait to be read, which is the limit")
            }
            Self::Work(WorkError::TooMuch { bytes, limit }) => format!(
                "reading this request would take some {bytes} bytes of memory, the limit is {limit}"
            ),
            Self::Work(WorkError::Late(deadline)) => {
                Self::Cancelled(CancelCause::Deadline(*deadline)).message(id)
            }
            Self::Work(WorkError::Endless { owner: (model, part), limit }) => format!(
                "the {} of the model {model} did not come to an end within {limit:?}",
                part.spoken()
            ),
            Self::Work(WorkError::Stuck { owner: (model, part) }) => {
                let (part, others) = match part {
                    ModelPart::ChatTemplate => (part.spoken(), "; /v1/completions works"),
                    ModelPart::Tokenizer => (part.spoken(), ""),
                };
                format!(
                    "the {part} of the model {model} has not come to an end for {STUCK_MAX} \
                     requests, so no more are taken until one of them has{others}"
                )
            }
            Self::Failed(FaultKind::Internal) | Self::Work(WorkError::Panicked) => {
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

/// As much of a client's text as an error repeats.
pub(crate) fn excerpt(text: &str) -> String {
    text.chars().take(RequestId::BYTES_MAX).collect()
}

/// What the sender of a compressed body is told.
pub(crate) fn encoded(codings: &str) -> String {
    format!(
        "a body with the content-encoding {:?} is not supported: send it as it is, without that \
         header",
        excerpt(codings)
    )
}
