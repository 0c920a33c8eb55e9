//! How a request ended, as policies are told.

use std::time::Duration;

use interlock_request::{Outcome, Usage};

/// How a request ended, in the words that policies read.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// How it ended.
    pub closing: Closing,
    /// What it used.
    pub usage: Usage,
    /// From admission to its first pass, if it had one.
    pub queue_time: Option<Duration>,
    /// From admission to the first token, if there was one.
    pub time_to_first_token: Option<Duration>,
    /// From admission to the end.
    pub total: Duration,
}

/// How it ended for those who were asked about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Closing {
    /// It was admitted, and ended like this.
    Ended(Outcome),
    /// It never began: another policy, or the host, turned it away.
    Rejected,
}

impl From<Outcome> for Closing {
    fn from(outcome: Outcome) -> Self {
        Self::Ended(outcome)
    }
}

impl Closing {
    /// Its label: the outcome's, or `rejected`.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Ended(outcome) => outcome.as_str(),
            Self::Rejected => "rejected",
        }
    }
}

impl Summary {
    /// Had its first pass begun, or was there even a token?
    pub fn ran(&self) -> bool {
        self.queue_time.is_some() || self.usage.generated_tokens > 0
    }

    /// Of a request of which no pass began, `total` after its admission.
    pub fn nothing_ran(closing: Closing, total: Duration) -> Self {
        let usage = Usage::default();
        Self { closing, usage, queue_time: None, time_to_first_token: None, total }
    }
}
