//! How a request ends. Every admitted request ends exactly once, as one [`Outcome`].

/// Why the model stopped by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Finish {
    /// A stop token or a stop string.
    Stop,
    /// `max_tokens`, or the model's context, is used up.
    Length,
    /// A policy that reads the text ended it.
    Filtered,
}

/// The deadlines of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Deadline {
    /// Waited too long for its first pass.
    Queue,
    /// Took too long to its first token.
    FirstToken,
    /// Paused too long between two tokens.
    InterToken,
    /// Took too long in all.
    Total,
}

impl Deadline {
    /// The deadline's name in metrics, logs and errors.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::FirstToken => "first_token",
            Self::InterToken => "inter_token",
            Self::Total => "total",
        }
    }
}

/// Who asked for a request to be cancelled. The first to ask is the cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CancelCause {
    /// The client closed its connection.
    Disconnect,
    /// One of the plan's deadlines struck.
    Deadline(Deadline),
    /// `POST /v1/requests/{id}/cancel`.
    Operator,
    /// The host is stopping and its patience is over.
    Shutdown,
    /// A policy, after it was admitted.
    Policy,
}

impl CancelCause {
    /// All of them, for metrics that must be there before the first of each.
    pub const ALL: [Self; 8] = [
        Self::Disconnect,
        Self::Deadline(Deadline::Queue),
        Self::Deadline(Deadline::FirstToken),
        Self::Deadline(Deadline::InterToken),
        Self::Deadline(Deadline::Total),
        Self::Operator,
        Self::Shutdown,
        Self::Policy,
    ];

    /// The cause's label in `interlock_cancellations_total{cause}`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Disconnect => "disconnect",
            Self::Deadline(Deadline::Queue) => "deadline_queue",
            Self::Deadline(Deadline::FirstToken) => "deadline_first_token",
            Self::Deadline(Deadline::InterToken) => "deadline_inter_token",
            Self::Deadline(Deadline::Total) => "deadline_total",
            Self::Operator => "operator",
            Self::Shutdown => "shutdown",
            Self::Policy => "policy",
        }
    }
}

/// The stage that a request had reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// No pass has begun for it.
    Waiting,
    /// The prompt is being computed.
    Prefilling,
    /// The request produces tokens.
    Decoding,
}

impl Stage {
    /// All of them, in order.
    pub const ALL: [Self; 3] = [Self::Waiting, Self::Prefilling, Self::Decoding];

    /// The stage's label in metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Prefilling => "prefilling",
            Self::Decoding => "decoding",
        }
    }
}

/// How an admitted request ended, for the log line, the metric and the policies' account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The model came to an end.
    Completed(Finish),
    /// The request was cancelled.
    Cancelled(CancelCause),
    /// A pass, the engine or the host failed it.
    Failed(Fault),
}

impl Outcome {
    /// The outcome's label in `interlock_requests_total{outcome}`.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Completed(_) => "completed",
            Self::Cancelled(CancelCause::Disconnect) => "disconnected",
            Self::Cancelled(CancelCause::Deadline(_)) => "timed_out",
            Self::Cancelled(
                CancelCause::Operator | CancelCause::Shutdown | CancelCause::Policy,
            ) => "cancelled",
            Self::Failed(_) => "failed",
        }
    }
}

/// Why a request failed through no doing of its client's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The kind of failure, which the client is told.
    pub kind: FaultKind,
    /// The reason, for the host's log alone.
    pub why: String,
}

/// What a client may know of a [`Fault`]: enough to tell whether trying again can help.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// Something inside failed: a bug, or a request that the model cannot compute.
    Internal,
    /// The device had too little memory for it.
    OutOfMemory,
    /// The device has failed for good, and the host ends.
    DeviceFailed,
}

impl FaultKind {
    /// All of them, for whoever lists them.
    pub const ALL: [Self; 3] = [Self::Internal, Self::OutOfMemory, Self::DeviceFailed];

    /// The kind's code in logs and errors.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Internal => "internal_error",
            Self::OutOfMemory => "out_of_memory",
            Self::DeviceFailed => "device_failed",
        }
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.why)
    }
}

/// Something inside failed, as far as is known.
impl From<String> for Fault {
    fn from(why: String) -> Self {
        Self { kind: FaultKind::Internal, why }
    }
}

/// Something inside failed, as far as is known.
impl From<&str> for Fault {
    fn from(why: &str) -> Self {
        why.to_owned().into()
    }
}

/// The exact numbers of tokens that a request took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize, serde::Serialize)]
pub struct Usage {
    /// Tokens the model saw as the prompt.
    pub prompt_tokens: u32,
    /// Prompt tokens whose keys and values another request had already computed.
    pub cached_tokens: u32,
    /// Tokens the model generated, the stop token included.
    pub generated_tokens: u32,
}
