//! The policies that read what the model says, in a row. (The pipeline itself follows.)

use std::time::Instant;

use interlock_request::Usage;

use crate::Reason;

/// The text that may go to the client, and whether it was the last.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Passed {
    /// For the client.
    pub text: String,
    /// A policy ended the answer: nothing comes after `text`.
    pub end: Option<GuardEnd>,
}

/// How a policy ended an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuardEnd {
    /// The answer ends here, with `content_filter`.
    Stop {
        /// Who ended it.
        policy: String,
        /// Why.
        reason: Reason,
    },
    /// The request fails.
    Abort {
        /// Who failed it.
        policy: String,
        /// Why.
        reason: Reason,
    },
}

/// The guards of one request.
#[derive(Debug)]
pub struct Guards(());

impl Guards {
    /// Does one of them hold text back?
    pub fn gates(&self) -> bool {
        false
    }

    /// A token's text; what may go to the client now.
    pub async fn push(&mut self, text: &str, usage: Usage, now: Instant) -> Passed {
        let _ = (usage, now);
        Passed { text: text.to_owned(), end: None }
    }

    /// When [`Guards::due`] wants to be called, if no text comes before.
    pub fn due_at(&self) -> Option<Instant> {
        None
    }

    /// That moment has come.
    pub async fn due(&mut self, usage: Usage, now: Instant) -> Passed {
        let _ = (usage, now);
        Passed::default()
    }

    /// No text comes any more.
    pub async fn finish(&mut self, usage: Usage, now: Instant) -> Passed {
        let _ = (usage, now);
        Passed::default()
    }
}
