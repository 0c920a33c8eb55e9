//! What writes an endpoint's answers: whole, as JSON, or chunk by chunk, as server-sent events.

use std::sync::Arc;

use interlock_request::{Finish, Usage};
use interlock_text::TextModel;
use serde::Serialize;

use super::error::ApiError;
use super::sse_frames::SseFrames;
use crate::chunks::{Done, TextChunk};
use crate::request_info::RequestInfo;

/// Writes one answer as one endpoint's clients expect it.
///
/// For a stream, in order: [`ResponseWriter::open`], [`ResponseWriter::text`] any number of times,
/// then [`ResponseWriter::done`] or [`ResponseWriter::fail`]. Otherwise [`ResponseWriter::whole`],
/// alone.
pub(crate) trait ResponseWriter: Send {
    /// The request is admitted.
    fn open(&mut self, frames: &mut SseFrames) {
        let _ = frames;
    }

    /// More text, never empty.
    fn text(&mut self, chunk: TextChunk, frames: &mut SseFrames);

    /// The answer is complete.
    fn done(&mut self, done: &Done, frames: &mut SseFrames);

    /// The answer ends early, with an error.
    fn fail(&mut self, error: &ApiError, frames: &mut SseFrames);

    /// The whole answer as JSON.
    fn whole(&mut self, chunk: TextChunk, done: &Done) -> Vec<u8>;
}

/// What every answer says about itself.
#[derive(Debug, Clone)]
pub(crate) struct ResponseHead {
    /// The request that is answered. The answer's own id repeats its id.
    pub(crate) info: Arc<RequestInfo>,
    /// The temperature at which its tokens are drawn.
    pub(crate) temperature: f32,
    /// The `top_p` with which its tokens are drawn.
    pub(crate) top_p: f32,
    /// Did the client ask how likely tokens were?
    pub(crate) logprobs: bool,
    /// How tokens are spelled.
    pub(crate) text: Arc<TextModel>,
}

impl ResponseHead {
    /// Seconds since the Unix epoch at which the request had arrived.
    pub(super) fn created(&self) -> u64 {
        self.info.arrived_at_micros / 1_000_000
    }

    /// Can a whole answer tell how likely its tokens were? One without text has none to tell of;
    /// one with text but no tokens comes from a model that says nothing of them.
    pub(super) fn tells_logprobs(&self, chunk: &TextChunk) -> bool {
        self.logprobs && (chunk.text.is_empty() || !chunk.tokens.is_empty())
    }
}

pub(super) fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("our own types have string keys and no failing serializers")
}

pub(super) fn finish_reason(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop => "stop",
        Finish::Length => "length",
        Finish::Filtered => "content_filter",
    }
}

/// Token counts as chat and completions have them.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct CompletionUsage {
    prompt_tokens: u64,
    completion_tokens: u64,
    total_tokens: u64,
    prompt_tokens_details: PromptDetails,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct PromptDetails {
    cached_tokens: u64,
}

impl From<Usage> for CompletionUsage {
    fn from(usage: Usage) -> Self {
        let prompt_tokens = u64::from(usage.prompt_tokens);
        let completion_tokens = u64::from(usage.generated_tokens);
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            prompt_tokens_details: PromptDetails { cached_tokens: usage.cached_tokens.into() },
        }
    }
}

/// An error frame of chat and completions: OpenAI's clients raise on its `error` key.
#[derive(Debug, Serialize)]
pub(super) struct ErrorFrame<'a> {
    pub(super) error: &'a ApiError,
}
