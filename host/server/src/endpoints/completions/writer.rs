//! Answers `POST /v1/completions`.
//!
//! A stream is chunks with text, a chunk with the finish reason, a chunk with the usage if the
//! client asked for it, and `[DONE]`. One that fails ends with an error frame and `[DONE]`.

use serde::Serialize;

use super::super::error::Complaint;
use super::super::logprobs::Columns;
use super::super::sse_frames::{Frames, TextFrame};
use super::super::writer::{ErrorFrame, Head, Tokens, Voice, finish_reason, json};
use crate::chunks::{Done, Said};

pub(in crate::endpoints) struct Completions {
    head: Head,
    id: String,
    include_usage: bool,
    /// A chunk with nothing but text, from the first one on.
    plain: Option<TextFrame>,
}

/// Whole answers and chunks have one shape here.
#[derive(Serialize)]
struct Completion<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: &'a [Choice<'a>],
    /// Absent in chunks unless asked for; then null in all but the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Tokens>>,
}

#[derive(Serialize)]
struct Choice<'a> {
    text: &'a str,
    index: u32,
    logprobs: Option<Columns>,
    finish_reason: Option<&'static str>,
}

impl Completions {
    pub(in crate::endpoints) fn new(head: Head, include_usage: bool) -> Self {
        let id = format!("cmpl-{}", head.request);
        Self { head, id, include_usage, plain: None }
    }

    fn completion<'a>(
        &'a self,
        choices: &'a [Choice<'a>],
        usage: Option<Option<Tokens>>,
    ) -> Completion<'a> {
        Completion {
            id: &self.id,
            object: "text_completion",
            created: self.head.created,
            model: self.head.model.as_str(),
            choices,
            usage,
        }
    }

    fn chunk<'a>(&'a self, choices: &'a [Choice<'a>]) -> Completion<'a> {
        self.completion(choices, self.include_usage.then_some(None))
    }

    fn plain(&mut self) -> &TextFrame {
        let plain = self.plain.take().unwrap_or_else(|| {
            let text = TextFrame::PLACE;
            let choice = Choice { text, index: 0, logprobs: None, finish_reason: None };
            TextFrame::new(&self.chunk(&[choice]))
        });
        self.plain.insert(plain)
    }

    fn logprobs(&self, said: &Said) -> Columns {
        Columns::new(&self.head.text, &said.tokens)
    }
}

impl Voice for Completions {
    fn text(&mut self, said: Said, frames: &mut Frames) {
        if said.tokens.is_empty() {
            return frames.text(&said.text, self.plain());
        }
        let logprobs = Some(self.logprobs(&said));
        let choice = Choice { text: &said.text, index: 0, logprobs, finish_reason: None };
        frames.data(&self.chunk(&[choice]));
    }

    fn done(&mut self, done: &Done, frames: &mut Frames) {
        let finish_reason = Some(finish_reason(done.finish));
        let choice = Choice { text: "", index: 0, logprobs: None, finish_reason };
        frames.data(&self.chunk(&[choice]));
        if self.include_usage {
            frames.data(&self.completion(&[], Some(Some(done.usage.into()))));
        }
        frames.end_mark();
    }

    fn fail(&mut self, complaint: &Complaint, frames: &mut Frames) {
        frames.data(&ErrorFrame { error: complaint });
        frames.end_mark();
    }

    fn whole(&mut self, said: Said, done: &Done) -> Vec<u8> {
        let finish_reason = Some(finish_reason(done.finish));
        let logprobs = self.head.tells_logprobs(&said).then(|| self.logprobs(&said));
        let choices = [Choice { text: &said.text, index: 0, logprobs, finish_reason }];
        json(&self.completion(&choices, Some(Some(done.usage.into()))))
    }
}
