//! What a policy can answer, and how it can fail to.

use std::time::Duration;

use crate::PlanProposal;

/// A policy's answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// Let it in, under this plan. [`PlanProposal::default`] asks for nothing in particular.
    Admit(PlanProposal),
    /// Turn it away.
    Reject(Rejection),
}

impl Decision {
    /// Its label in `interlock_policy_calls_total{decision}`.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Admit(_) => "admit",
            Self::Reject(_) => "reject",
        }
    }
}

/// Why a request was turned away, for the client and for us.
#[derive(Debug, Clone, PartialEq)]
pub struct Rejection {
    /// HTTP status, 400 to 599; the chain clamps what a policy says.
    pub status: u16,
    /// Machine-readable cause, and a sentence for the client.
    pub reason: Reason,
    /// When it makes sense to try again.
    pub retry_after: Option<Duration>,
}

/// A machine-readable cause with an optional sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// Short, stable, `snake_case`.
    pub code: String,
    /// For people.
    pub detail: Option<String>,
}

/// A moment in a request's life at which policies are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// May it pass, and under which plan?
    Admit,
    /// It has ended; this is how.
    Account,
}

impl Phase {
    /// Its label in metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Admit => "admit",
            Self::Account => "account",
        }
    }
}

/// A policy that gave no decision. What then happens is its `on_failure` setting.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {message}", kind.as_str())]
pub struct PolicyFailure {
    /// What went wrong, a closed set.
    pub kind: FailureKind,
    /// What exactly, for our log.
    pub message: String,
}

/// How a policy can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FailureKind {
    /// It trapped: a panic, an unreachable, a stack overflow.
    Trap,
    /// It took longer than its deadline.
    Deadline,
    /// It asked for more memory than it may have.
    Memory,
    /// It answered something that cannot be a decision.
    BadOutput,
    /// No instance could be made for the call.
    Instantiate,
}

impl FailureKind {
    /// All of them, for metrics that must be there before the first of each.
    pub const ALL: [Self; 5] =
        [Self::Trap, Self::Deadline, Self::Memory, Self::BadOutput, Self::Instantiate];

    /// Its label in `interlock_policy_failures_total{kind}`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Trap => "trap",
            Self::Deadline => "deadline",
            Self::Memory => "memory",
            Self::BadOutput => "bad_output",
            Self::Instantiate => "instantiate",
        }
    }
}
