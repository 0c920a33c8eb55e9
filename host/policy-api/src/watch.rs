//! What policies see and say of a request that goes on.

use std::time::Duration;

use interlock_request::{Deadline, DisconnectAction, Usage};

use crate::{Code, PlanProposal, Reason};

/// What a policy wants to see of a request after its admission. The default is nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize, serde::Serialize)]
pub struct Watch {
    /// The events that the policy is told of.
    pub events: EventSet,
    /// How long a pause is a stall; `None`: it does not want to know.
    pub stalled_after: Option<Duration>,
    /// Whether and how it reads the text.
    pub guarding: Guarding,
}

/// A set of [`Event`]s, by kind. The default is empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize, serde::Serialize)]
pub struct EventSet {
    /// See [`Event::Queued`]; the others likewise.
    pub queued: bool,
    /// See [`Event::Dispatched`].
    pub dispatched: bool,
    /// See [`Event::FirstToken`].
    pub first_token: bool,
    /// See [`Event::Stalled`].
    pub stalled: bool,
    /// See [`Event::TimedOut`].
    pub timed_out: bool,
    /// See [`Event::Disconnected`].
    pub disconnected: bool,
    /// See [`Event::Preempted`].
    pub preempted: bool,
}

/// What a policy that reads the text is to do with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Guarding {
    /// The policy does not see the text.
    #[default]
    Off,
    /// The policy sees the text that the client already has.
    Observe(WindowSize),
    /// The client gets what it lets pass.
    Gate(WindowSize),
}

/// How much text makes a window: so many tokens, or fewer when the first is so old.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
pub struct WindowSize {
    /// At least 1.
    pub tokens: u32,
    /// At least 1 ms.
    pub delay_max: Duration,
}

/// Something that happened to an admitted request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// The request waits behind so many others.
    Queued(u32),
    /// The first pass of the request begins.
    Dispatched,
    /// The first token came.
    FirstToken,
    /// No token came for this long.
    Stalled(Duration),
    /// This deadline has struck.
    TimedOut(Deadline),
    /// The client left.
    Disconnected,
    /// The request gave its pages to another; the number counts how often it did.
    Preempted(u32),
}

/// How far a request is when something happens to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
pub struct Progress {
    /// The time of the event, in microseconds since the Unix epoch.
    pub at_micros: u64,
    /// The time since the request was admitted.
    pub elapsed: Duration,
    /// The time since the last token; `None` before the first.
    pub since_token: Option<Duration>,
    /// The tokens so far.
    pub usage: Usage,
}

/// A policy's answer to an event.
#[derive(Debug, Clone, PartialEq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reaction {
    /// The request goes on as planned.
    Keep,
    /// The request ends.
    Cancel(Reason),
    /// This takes the place of what this policy had proposed.
    Amend(PlanProposal, Code),
    /// This takes the place of what this policy had proposed for a client that leaves.
    Disconnect(DisconnectAction, Code),
}

impl Reaction {
    /// Its label in `interlock_policy_calls_total{decision}`.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::Cancel(_) => "cancel",
            Self::Amend(..) => "amend",
            Self::Disconnect(..) => "disconnect",
        }
    }
}

/// A piece of a request's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window<'a> {
    /// Counts the windows of this request, from 0.
    pub index: u32,
    /// What was held back, and behind it what is new.
    pub text: &'a str,
    /// Bytes at its front that were held back by the last verdict.
    pub held: u32,
    /// Nothing comes after this.
    pub finished: bool,
    /// Tokens so far.
    pub usage: Usage,
}

/// What a policy says of a window.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The client gets it.
    Pass,
    /// The client gets all but the last so many bytes.
    Hold(u32),
    /// The client gets this in place of all but the last `hold` bytes.
    Replace {
        /// What it gets.
        text: String,
        /// Bytes that stay.
        hold: u32,
        /// The reason that the policy gives.
        reason: Reason,
    },
    /// The client gets this, and the answer ends.
    Stop {
        /// What it gets.
        text: String,
        /// The reason that the policy gives.
        reason: Reason,
    },
    /// The request fails.
    Abort(Reason),
}

impl Verdict {
    /// Its label in `interlock_policy_calls_total{decision}`.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Hold(_) => "hold",
            Self::Replace { .. } => "replace",
            Self::Stop { .. } => "stop",
            Self::Abort(_) => "abort",
        }
    }
}
