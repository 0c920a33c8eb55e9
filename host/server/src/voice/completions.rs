//! Answers `POST /v1/completions`.
//!
//! A stream is chunks with text, a chunk with the finish reason, a chunk with the usage if the
//! client asked for it, and `[DONE]`. One that fails ends with an error frame and `[DONE]`.

use serde::Serialize;

use super::{ErrorFrame, Frames, Head, Tokens, Voice, finish_reason, json};
use crate::failure::Complaint;
use crate::pieces::Done;

pub(super) struct Completions {
    head: Head,
    id: String,
    include_usage: bool,
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
    logprobs: Option<()>,
    finish_reason: Option<&'static str>,
}

impl Completions {
    pub(super) fn new(head: Head, include_usage: bool) -> Self {
        let id = format!("cmpl-{}", head.request);
        Self { head, id, include_usage }
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

    fn choice(&self, text: &str, finish_reason: Option<&'static str>, frames: &mut Frames) {
        let choices = [Choice { text, index: 0, logprobs: None, finish_reason }];
        frames.data(&self.completion(&choices, self.include_usage.then_some(None)));
    }
}

impl Voice for Completions {
    fn text(&mut self, text: &str, frames: &mut Frames) {
        self.choice(text, None, frames);
    }

    fn done(&mut self, done: &Done, frames: &mut Frames) {
        self.choice("", Some(finish_reason(done.finish)), frames);
        if self.include_usage {
            frames.data(&self.completion(&[], Some(Some(done.usage.into()))));
        }
        frames.end_mark();
    }

    fn fail(&mut self, complaint: &Complaint, frames: &mut Frames) {
        frames.data(&ErrorFrame { error: complaint });
        frames.end_mark();
    }

    fn whole(&mut self, text: String, done: &Done) -> Vec<u8> {
        let finish_reason = Some(finish_reason(done.finish));
        let choices = [Choice { text: &text, index: 0, logprobs: None, finish_reason }];
        json(&self.completion(&choices, Some(Some(done.usage.into()))))
    }
}
