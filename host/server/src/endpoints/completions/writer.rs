//! Answers `POST /v1/completions`.
//!
//! A stream is chunks with text, a chunk with the finish reason, a chunk with the usage if the
//! client asked for it, and `[DONE]`. One that fails ends with an error frame and `[DONE]`.

use serde::Serialize;

use super::super::error::ApiError;
use super::super::logprobs::LogprobColumns;
use super::super::sse_frames::{SseFrames, TextFrame};
use super::super::writer::{
    CompletionUsage, ErrorFrame, ResponseHead, ResponseWriter, finish_reason, json,
};
use crate::chunks::{Done, TextChunk};

pub(in crate::endpoints) struct CompletionsWriter {
    head: ResponseHead,
    id: String,
    include_usage: bool,
    /// A chunk with nothing but text, from the first one on.
    plain: Option<TextFrame>,
}

/// Whole answers and chunks have one shape here.
#[derive(Serialize)]
struct TextCompletion<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: &'a [CompletionChoice<'a>],
    /// Absent in chunks unless asked for; then null in all but the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<CompletionUsage>>,
}

#[derive(Serialize)]
struct CompletionChoice<'a> {
    text: &'a str,
    index: u32,
    logprobs: Option<LogprobColumns>,
    finish_reason: Option<&'static str>,
}

impl CompletionsWriter {
    pub(in crate::endpoints) fn new(head: ResponseHead, include_usage: bool) -> Self {
        let id = format!("cmpl-{}", head.info.id);
        Self { head, id, include_usage, plain: None }
    }

    fn completion<'a>(
        &'a self,
        choices: &'a [CompletionChoice<'a>],
        usage: Option<Option<CompletionUsage>>,
    ) -> TextCompletion<'a> {
        TextCompletion {
            id: &self.id,
            object: "text_completion",
            created: self.head.created(),
            model: self.head.info.model.as_str(),
            choices,
            usage,
        }
    }

    fn chunk<'a>(&'a self, choices: &'a [CompletionChoice<'a>]) -> TextCompletion<'a> {
        self.completion(choices, self.include_usage.then_some(None))
    }

    fn plain(&mut self) -> &TextFrame {
        let plain = self.plain.take().unwrap_or_else(|| {
            let text = TextFrame::PLACE;
            let choice = CompletionChoice { text, index: 0, logprobs: None, finish_reason: None };
            TextFrame::new(&self.chunk(&[choice]))
        });
        self.plain.insert(plain)
    }

    fn logprobs(&self, chunk: &TextChunk) -> LogprobColumns {
        LogprobColumns::new(&self.head.text, &chunk.tokens)
    }
}

impl ResponseWriter for CompletionsWriter {
    fn text(&mut self, chunk: TextChunk, frames: &mut SseFrames) {
        if chunk.tokens.is_empty() {
            return frames.text(&chunk.text, self.plain());
        }
        let logprobs = Some(self.logprobs(&chunk));
        let choice =
            CompletionChoice { text: &chunk.text, index: 0, logprobs, finish_reason: None };
        frames.data(&self.chunk(&[choice]));
    }

    fn done(&mut self, done: &Done, frames: &mut SseFrames) {
        let finish_reason = Some(finish_reason(done.finish));
        let choice = CompletionChoice { text: "", index: 0, logprobs: None, finish_reason };
        frames.data(&self.chunk(&[choice]));
        if self.include_usage {
            frames.data(&self.completion(&[], Some(Some(done.usage.into()))));
        }
        frames.end_mark();
    }

    fn fail(&mut self, error: &ApiError, frames: &mut SseFrames) {
        frames.data(&ErrorFrame { error });
        frames.end_mark();
    }

    fn whole(&mut self, chunk: TextChunk, done: &Done) -> Vec<u8> {
        let finish_reason = Some(finish_reason(done.finish));
        let logprobs = self.head.tells_logprobs(&chunk).then(|| self.logprobs(&chunk));
        let choices = [CompletionChoice { text: &chunk.text, index: 0, logprobs, finish_reason }];
        json(&self.completion(&choices, Some(Some(done.usage.into()))))
    }
}
