//! Answers `POST /v1/chat/completions`.
//!
//! A stream is a chunk with the role, chunks with content, a chunk with the finish reason, a
//! chunk with the usage if the client asked for it, and `[DONE]`. One that fails ends with an
//! error frame and `[DONE]`.

use serde::Serialize;

use super::super::error::ApiError;
use super::super::logprobs::LogprobEntry;
use super::super::sse_frames::{SseFrames, TextFrame};
use super::super::writer::{
    CompletionUsage, ErrorFrame, ResponseHead, ResponseWriter, finish_reason, json,
};
use crate::chunks::{Done, TextChunk};

pub(in crate::endpoints) struct ChatWriter {
    head: ResponseHead,
    id: String,
    include_usage: bool,
    role_told: bool,
    /// A chunk with nothing but text, from the first one on.
    plain: Option<TextFrame>,
}

#[derive(Serialize)]
struct ChatChunk<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: &'a [ChatDeltaChoice<'a>],
    /// Absent unless asked for; then null in all chunks but the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<CompletionUsage>>,
}

#[derive(Serialize)]
struct ChatDeltaChoice<'a> {
    index: u32,
    delta: ChatDelta<'a>,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
}

#[derive(Serialize, Default)]
struct ChatDelta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
}

#[derive(Serialize)]
struct ChatCompletion<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: [ChatChoice; 1],
    usage: CompletionUsage,
}

#[derive(Serialize)]
struct ChatChoice {
    index: u32,
    message: ChatAnswerMessage,
    logprobs: Option<ChatLogprobs>,
    finish_reason: &'static str,
}

#[derive(Serialize)]
struct ChatLogprobs {
    content: Vec<LogprobEntry>,
    refusal: Option<()>,
}

#[derive(Serialize)]
struct ChatAnswerMessage {
    role: &'static str,
    content: String,
    refusal: Option<()>,
}

impl ChatWriter {
    pub(in crate::endpoints) fn new(head: ResponseHead, include_usage: bool) -> Self {
        let id = format!("chatcmpl-{}", head.info.id);
        Self { head, id, include_usage, role_told: false, plain: None }
    }

    fn chunk<'a>(
        &'a self,
        choices: &'a [ChatDeltaChoice<'a>],
        usage: Option<CompletionUsage>,
    ) -> ChatChunk<'a> {
        ChatChunk {
            id: &self.id,
            object: "chat.completion.chunk",
            created: self.head.created(),
            model: self.head.info.model.as_str(),
            choices,
            usage: self.include_usage.then_some(usage),
        }
    }

    fn choice(
        &self,
        delta: ChatDelta<'_>,
        finish_reason: Option<&'static str>,
        frames: &mut SseFrames,
    ) {
        let choice = ChatDeltaChoice { index: 0, delta, logprobs: None, finish_reason };
        frames.data(&self.chunk(&[choice], None));
    }

    /// What a chunk with this text holds.
    fn with_text(text: &str, logprobs: Option<ChatLogprobs>) -> ChatDeltaChoice<'_> {
        let delta = ChatDelta { role: None, content: Some(text) };
        ChatDeltaChoice { index: 0, delta, logprobs, finish_reason: None }
    }

    fn plain(&mut self) -> &TextFrame {
        let plain = self.plain.take().unwrap_or_else(|| {
            TextFrame::new(&self.chunk(&[Self::with_text(TextFrame::PLACE, None)], None))
        });
        self.plain.insert(plain)
    }

    fn logprobs(&self, chunk: &TextChunk) -> ChatLogprobs {
        ChatLogprobs { content: LogprobEntry::each(&self.head.text, &chunk.tokens), refusal: None }
    }

    /// Comes with the first text, so that a client's clock for the first chunk stops there.
    fn role(&mut self, frames: &mut SseFrames) {
        if !std::mem::replace(&mut self.role_told, true) {
            let delta = ChatDelta { role: Some("assistant"), content: Some("") };
            self.choice(delta, None, frames);
        }
    }
}

impl ResponseWriter for ChatWriter {
    fn text(&mut self, chunk: TextChunk, frames: &mut SseFrames) {
        self.role(frames);
        if chunk.tokens.is_empty() {
            return frames.text(&chunk.text, self.plain());
        }
        let choice = Self::with_text(&chunk.text, Some(self.logprobs(&chunk)));
        frames.data(&self.chunk(&[choice], None));
    }

    fn done(&mut self, done: &Done, frames: &mut SseFrames) {
        self.role(frames);
        self.choice(ChatDelta::default(), Some(finish_reason(done.finish)), frames);
        if self.include_usage {
            frames.data(&self.chunk(&[], Some(done.usage.into())));
        }
        frames.end_mark();
    }

    fn fail(&mut self, error: &ApiError, frames: &mut SseFrames) {
        frames.data(&ErrorFrame { error });
        frames.end_mark();
    }

    fn whole(&mut self, chunk: TextChunk, done: &Done) -> Vec<u8> {
        let logprobs = self.head.tells_logprobs(&chunk).then(|| self.logprobs(&chunk));
        json(&ChatCompletion {
            id: &self.id,
            object: "chat.completion",
            created: self.head.created(),
            model: self.head.info.model.as_str(),
            choices: [ChatChoice {
                index: 0,
                message: ChatAnswerMessage {
                    role: "assistant",
                    content: chunk.text,
                    refusal: None,
                },
                logprobs,
                finish_reason: finish_reason(done.finish),
            }],
            usage: done.usage.into(),
        })
    }
}
