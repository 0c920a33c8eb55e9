//! What a policy can answer, and how it can fail to.

use crate::{Code, Identity, PlanProposal, Reaction, Rejection, Verdict, Watch};

/// An answer to `identify`.
#[derive(Debug, Clone, PartialEq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Identified {
    /// The policy knows the caller: this identity, for this reason.
    Known(Identity, Code),
    /// The policy does not know the caller; the next policy is asked.
    Unknown,
    /// The caller is turned away.
    Reject(Rejection),
}

/// An answer to `transform`. What it changed of the body is in the body.
#[derive(Debug, Clone, PartialEq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Transformed {
    /// The request stays as it is.
    Keep,
    /// The request changes like this.
    Edit(Edits),
    /// The request is turned away.
    Reject(Rejection),
}

/// What changes of a request besides its body.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
pub struct Edits {
    /// Headers that later policies see in place of those of these names.
    pub set_headers: Vec<(String, String)>,
    /// Headers that later policies do not see any more.
    pub remove_headers: Vec<String>,
    /// Headers of the answer.
    pub answer_headers: Vec<(String, String)>,
    /// The model that is asked for from here on.
    pub model: Option<String>,
    /// The reason that the policy gives.
    pub code: Code,
}

/// An answer to `route`.
#[derive(Debug, Clone, PartialEq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Choice {
    /// The policy leaves the choice to others.
    Abstain,
    /// How well each suits, 0 to 1, by [`crate::Candidate::id`].
    Scores(Vec<(u32, f32)>, Code),
    /// The request runs on this candidate.
    Pick(u32, Code),
    /// The request is turned away.
    Reject(Rejection),
}

/// An answer to `admit`.
#[derive(Debug, Clone, PartialEq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// The request may run.
    Admit(Admission),
    /// The request is turned away.
    Reject(Rejection),
}

/// How a request may pass. The default asks for nothing in particular.
#[derive(Debug, Clone, PartialEq, Default, serde::Deserialize, serde::Serialize)]
pub struct Admission {
    /// What the host is to enforce.
    pub proposal: PlanProposal,
    /// What the policy watches; `None`: what it always does.
    pub watch: Option<Watch>,
    /// What the policy is told of the request again in later phases.
    pub note: String,
    /// Headers of the answer.
    pub headers: Vec<(String, String)>,
    /// The reason that the policy gives.
    pub code: Code,
}

impl Identified {
    /// The label of the answer in `interlock_policy_calls_total{decision}`.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Known(..) => "known",
            Self::Unknown => "unknown",
            Self::Reject(_) => "reject",
        }
    }
}

impl Transformed {
    /// The label of the answer, as in [`Identified::as_str`].
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::Edit(_) => "edit",
            Self::Reject(_) => "reject",
        }
    }
}

impl Choice {
    /// The part of a score that counts: 0 to 1, and NaN is 0.
    pub fn clamped(score: f32) -> f32 {
        if score.is_nan() { 0.0 } else { score.clamp(0.0, 1.0) }
    }

    /// The label of the answer, as in [`Identified::as_str`].
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Abstain => "abstain",
            Self::Scores(..) => "scores",
            Self::Pick(..) => "pick",
            Self::Reject(_) => "reject",
        }
    }
}

impl Decision {
    /// The label of the answer, as in [`Identified::as_str`].
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Admit(_) => "admit",
            Self::Reject(_) => "reject",
        }
    }
}

/// What every answer of a policy can say of itself.
pub trait PolicyAnswer {
    /// The label of the answer in `interlock_policy_calls_total{decision}`.
    fn label(&self) -> &'static str;
    /// The reason, where the answer has one.
    fn code(&self) -> Option<&Code>;
}

impl PolicyAnswer for Identified {
    fn label(&self) -> &'static str {
        self.as_str()
    }
    fn code(&self) -> Option<&Code> {
        match self {
            Self::Known(_, code) => Some(code),
            Self::Unknown => None,
            Self::Reject(rejection) => Some(&rejection.reason.code),
        }
    }
}

impl PolicyAnswer for Transformed {
    fn label(&self) -> &'static str {
        self.as_str()
    }
    fn code(&self) -> Option<&Code> {
        match self {
            Self::Keep => None,
            Self::Edit(edits) => Some(&edits.code),
            Self::Reject(rejection) => Some(&rejection.reason.code),
        }
    }
}

impl PolicyAnswer for Choice {
    fn label(&self) -> &'static str {
        self.as_str()
    }
    fn code(&self) -> Option<&Code> {
        match self {
            Self::Abstain => None,
            Self::Scores(_, code) | Self::Pick(_, code) => Some(code),
            Self::Reject(rejection) => Some(&rejection.reason.code),
        }
    }
}

impl PolicyAnswer for Decision {
    fn label(&self) -> &'static str {
        self.as_str()
    }
    fn code(&self) -> Option<&Code> {
        match self {
            Self::Admit(admission) => Some(&admission.code),
            Self::Reject(rejection) => Some(&rejection.reason.code),
        }
    }
}

impl PolicyAnswer for Reaction {
    fn label(&self) -> &'static str {
        self.as_str()
    }
    fn code(&self) -> Option<&Code> {
        match self {
            Self::Cancel(reason) => Some(&reason.code),
            Self::Amend(_, code) | Self::Disconnect(_, code) => Some(code),
            Self::Keep => None,
        }
    }
}

impl PolicyAnswer for Verdict {
    fn label(&self) -> &'static str {
        self.as_str()
    }
    fn code(&self) -> Option<&Code> {
        match self {
            Self::Pass | Self::Hold(_) => None,
            Self::Replace { reason, .. } | Self::Stop { reason, .. } | Self::Abort(reason) => {
                Some(&reason.code)
            }
        }
    }
}

/// What `account` answers: it took note.
impl PolicyAnswer for () {
    fn label(&self) -> &'static str {
        "done"
    }
    fn code(&self) -> Option<&Code> {
        None
    }
}

/// A moment in a request's life at which policies are asked.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Deserialize, serde::Serialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// `identify`: who is the caller?
    Identify,
    /// `transform`: what should be changed before the request is parsed?
    Transform,
    /// `route`: which model should the request run on?
    Route,
    /// `admit`: may the request run, and under which plan?
    Admit,
    /// `stream_guard`: may the client get this text?
    StreamGuard,
    /// `events`: what follows of something that happened to the request?
    Events,
    /// `account`: the request has ended.
    Account,
}

impl Phase {
    /// All of them, in the order of a request's life.
    pub const ALL: [Self; 7] = [
        Self::Identify,
        Self::Transform,
        Self::Route,
        Self::Admit,
        Self::StreamGuard,
        Self::Events,
        Self::Account,
    ];

    /// The label of the phase in metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Identify => "identify",
            Self::Transform => "transform",
            Self::Route => "route",
            Self::Admit => "admit",
            Self::StreamGuard => "stream_guard",
            Self::Events => "events",
            Self::Account => "account",
        }
    }
}

/// A policy that gave no decision. What then happens is its `on_failure` setting.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, serde::Deserialize, serde::Serialize)]
#[error("{}: {message}", kind.as_str())]
pub struct PolicyFailure {
    /// What went wrong, a closed set.
    pub kind: FailureKind,
    /// What exactly, for our log.
    pub message: String,
}

impl PolicyFailure {
    /// It answered something that cannot be a decision.
    pub fn bad_output(message: impl Into<String>) -> Self {
        Self { kind: FailureKind::BadOutput, message: message.into() }
    }

    /// It was asked in a phase that it takes no part in.
    pub fn absent(phase: Phase) -> Self {
        let message = format!("it takes no part in {}", phase.as_str());
        Self { kind: FailureKind::BadOutput, message }
    }
}

/// How a policy can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// It trapped: a panic, an unreachable, a stack overflow.
    Trap,
    /// It took longer than its deadline.
    Deadline,
    /// It asked for more memory than it may have.
    Memory,
    /// It called the host more often than it may in one call.
    HostCalls,
    /// It answered something that cannot be a decision.
    BadOutput,
    /// No instance could be made for the call.
    Instantiate,
    /// No thread was free for the call in time, or too many wait for one.
    Busy,
    /// It failed so often that it is not asked for a while.
    Quarantined,
}

impl FailureKind {
    /// All of them, for metrics that must be there before the first of each.
    pub const ALL: [Self; 8] = [
        Self::Trap,
        Self::Deadline,
        Self::Memory,
        Self::HostCalls,
        Self::BadOutput,
        Self::Instantiate,
        Self::Busy,
        Self::Quarantined,
    ];

    /// Its label in `interlock_policy_failures_total{kind}`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Trap => "trap",
            Self::Deadline => "deadline",
            Self::Memory => "memory",
            Self::HostCalls => "host_calls",
            Self::BadOutput => "bad_output",
            Self::Instantiate => "instantiate",
            Self::Busy => "busy",
            Self::Quarantined => "quarantined",
        }
    }
}
