//! The settings that the engine reads.

use std::num::{NonZeroU32, NonZeroUsize};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `[engine]`: how the thread that owns the model works.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EngineConfig {
    /// How requests share the model. `simple` serves one at a time, the others wait: the
    /// reference that every other mode is compared with.
    pub mode: Mode,
    /// Most prompt tokens that one pass computes. A cancelled prompt stops between chunks: turn
    /// this down when cancelling must act sooner, up when long prompts should compute faster.
    pub prefill_chunk: NonZeroU32,
}

/// How requests share the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// One request at a time.
    Simple,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self { mode: Mode::Simple, prefill_chunk: NonZeroU32::new(256).expect("256 is not 0") }
    }
}

impl EngineConfig {
    /// Every problem, as key, relation, value.
    pub fn problems(&self) -> Vec<String> {
        let chunk = self.prefill_chunk.get();
        let mut problems = vec![];
        if chunk > Self::PREFILL_CHUNK_MAX {
            problems.push(format!(
                "engine.prefill_chunk must be at most {}, got {chunk}",
                Self::PREFILL_CHUNK_MAX
            ));
        }
        problems
    }

    /// A chunk beyond this no longer computes faster and only delays cancelling.
    pub const PREFILL_CHUNK_MAX: u32 = 8192;
}

/// `[waiting]`: how many requests may wait for the engine.
///
/// A full waiting room answers 429 at once; that is kinder than a slow timeout.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WaitingConfig {
    /// Requests that may wait for their first pass. One permit each, carried by the request until
    /// that pass: the inbox and the waiting list together never hold more. Turn this up when
    /// bursts are refused that the model would have served in time.
    pub requests_max: NonZeroUsize,
}

impl Default for WaitingConfig {
    fn default() -> Self {
        Self { requests_max: NonZeroUsize::new(256).expect("256 is not 0") }
    }
}

impl WaitingConfig {
    /// Every problem, as key, relation, value.
    pub fn problems(&self) -> Vec<String> {
        let requests_max = self.requests_max.get();
        let mut problems = vec![];
        if requests_max > Self::REQUESTS_MAX_MAX {
            problems.push(format!(
                "waiting.requests_max must be at most {}, got {requests_max}",
                Self::REQUESTS_MAX_MAX
            ));
        }
        problems
    }

    /// More waiting requests than this only fill memory with prompts.
    pub const REQUESTS_MAX_MAX: usize = 100_000;
}
