//! Answers `POST /v1/chat/completions`.
//!
//! A stream is a chunk with the role, chunks with content, a chunk with the finish reason, a
//! chunk with the usage if the client asked for it, and `[DONE]`. One that fails ends with an
//! error frame and `[DONE]`.

use serde::Serialize;

use super::super::error::Complaint;
use super::super::logprobs::TokenLogprob;
use super::super::sse_frames::{Frames, TextFrame};
use super::super::writer::{ErrorFrame, Head, Tokens, Voice, finish_reason, json};
use crate::chunks::{Done, Said};

pub(in crate::endpoints) struct Chat {
    head: Head,
    id: String,
    include_usage: bool,
    role_told: bool,
    /// A chunk with nothing but text, from the first one on.
    plain: Option<TextFrame>,
}

#[derive(Serialize)]
struct Chunk<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: &'a [Choice<'a>],
    /// Absent unless asked for; then null in all chunks but the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Tokens>>,
}

#[derive(Serialize)]
struct Choice<'a> {
    index: u32,
    delta: Delta<'a>,
    logprobs: Option<Logprobs>,
    finish_reason: Option<&'static str>,
}

#[derive(Serialize, Default)]
struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
}

#[derive(Serialize)]
struct Completion<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: [WholeChoice; 1],
    usage: Tokens,
}

#[derive(Serialize)]
struct WholeChoice {
    index: u32,
    message: Message,
    logprobs: Option<Logprobs>,
    finish_reason: &'static str,
}

#[derive(Serialize)]
struct Logprobs {
    content: Vec<TokenLogprob>,
    refusal: Option<()>,
}

#[derive(Serialize)]
struct Message {
    role: &'static str,
    content: String,
    refusal: Option<()>,
}

impl Chat {
    pub(in crate::endpoints) fn new(head: Head, include_usage: bool) -> Self {
        let id = format!("chatcmpl-{}", head.request);
        Self { head, id, include_usage, role_told: false, plain: None }
    }

    fn chunk<'a>(&'a self, choices: &'a [Choice<'a>], usage: Option<Tokens>) -> Chunk<'a> {
        Chunk {
            id: &self.id,
            object: "chat.completion.chunk",
            created: self.head.created,
            model: self.head.model.as_str(),
            choices,
            usage: self.include_usage.then_some(usage),
        }
    }

    fn choice(&self, delta: Delta<'_>, finish_reason: Option<&'static str>, frames: &mut Frames) {
        let choice = Choice { index: 0, delta, logprobs: None, finish_reason };
        frames.data(&self.chunk(&[choice], None));
    }

    /// What a chunk with this text holds.
    fn with_text(text: &str, logprobs: Option<Logprobs>) -> Choice<'_> {
        let delta = Delta { role: None, content: Some(text) };
        Choice { index: 0, delta, logprobs, finish_reason: None }
    }

    fn plain(&mut self) -> &TextFrame {
        let plain = self.plain.take().unwrap_or_else(|| {
            TextFrame::new(&self.chunk(&[Self::with_text(TextFrame::PLACE, None)], None))
        });
        self.plain.insert(plain)
    }

    fn logprobs(&self, said: &Said) -> Logprobs {
        Logprobs { content: TokenLogprob::each(&self.head.text, &said.tokens), refusal: None }
    }

    /// Comes with the first text, so that a client's clock for the first chunk stops there.
    fn role(&mut self, frames: &mut Frames) {
        if !std::mem::replace(&mut self.role_told, true) {
            let delta = Delta { role: Some("assistant"), content: Some("") };
            self.choice(delta, None, frames);
        }
    }
}

impl Voice for Chat {
    fn text(&mut self, said: Said, frames: &mut Frames) {
        self.role(frames);
        if said.tokens.is_empty() {
            return frames.text(&said.text, self.plain());
        }
        let choice = Self::with_text(&said.text, Some(self.logprobs(&said)));
        frames.data(&self.chunk(&[choice], None));
    }

    fn done(&mut self, done: &Done, frames: &mut Frames) {
        self.role(frames);
        self.choice(Delta::default(), Some(finish_reason(done.finish)), frames);
        if self.include_usage {
            frames.data(&self.chunk(&[], Some(done.usage.into())));
        }
        frames.end_mark();
    }

    fn fail(&mut self, complaint: &Complaint, frames: &mut Frames) {
        frames.data(&ErrorFrame { error: complaint });
        frames.end_mark();
    }

    fn whole(&mut self, said: Said, done: &Done) -> Vec<u8> {
        let logprobs = self.head.tells_logprobs(&said).then(|| self.logprobs(&said));
        json(&Completion {
            id: &self.id,
            object: "chat.completion",
            created: self.head.created,
            model: self.head.model.as_str(),
            choices: [WholeChoice {
                index: 0,
                message: Message { role: "assistant", content: said.text, refusal: None },
                logprobs,
                finish_reason: finish_reason(done.finish),
            }],
            usage: done.usage.into(),
        })
    }
}
