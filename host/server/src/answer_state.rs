//! How far the answer to a request is, for whoever asks for it later.

use std::sync::Arc;

use crate::chunks::{Done, EndKind, TextChunk};
use crate::failure::Failure;

/// How far it is.
#[derive(Debug, Clone)]
pub(crate) enum AnswerState {
    /// No pass has begun for it.
    Queued,
    /// Steps are computed for it.
    Running,
    /// The request has ended: its text so far, and how it ended.
    Ended(Arc<(TextChunk, Result<Done, Failure>)>),
}

impl AnswerState {
    /// The name that clients are shown.
    pub(crate) fn as_str(&self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Ended(result) => EndKind::of(&result.1).as_str(),
        }
    }

    /// About as much memory as what was said takes.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Queued | Self::Running => 0,
            Self::Ended(result) => result.0.bytes(),
        }
    }
}
