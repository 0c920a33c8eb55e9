//! Answers `POST /v1/responses`.
//!
//! A stream is, each with its number in the sequence:
//!
//! ```text
//! response.created                    at once
//! response.in_progress
//! response.output_item.added          with the first text
//! response.content_part.added
//! response.output_text.delta ...
//! response.output_text.done           at the end
//! response.content_part.done
//! response.output_item.done
//! response.completed                  or response.incomplete, when the length is used up
//! ```
//!
//! One that fails ends with `error`, which has the exact cause, and `response.failed`.

use interlock_request::{CancelCause, Finish};
use serde::Serialize;

use super::super::error::ApiError;
use super::super::logprobs::LogprobEntry;
use super::super::sse_frames::SseFrames;
use super::super::writer::{ResponseHead, ResponseWriter, json};
use super::object::{ContentPart, ResponseItem, ResponseObject, ResponseStatus};
use super::parse::RequestEcho;
use crate::answer_state::AnswerState;
use crate::chunks::{Done, TextChunk};
use crate::failure::Failure;

pub(in crate::endpoints) struct ResponsesWriter {
    head: ResponseHead,
    id: String,
    item_id: String,
    echo: RequestEcho,
    sequence: u64,
    /// All that was said, since the last events repeat it; None until there is something.
    chunk: Option<TextChunk>,
}

/// `response.created` and its like.
#[derive(Serialize)]
struct ResponseEvent<'a> {
    r#type: &'static str,
    sequence_number: u64,
    response: ResponseObject<'a>,
}

/// `response.output_item.added` and `.done`.
#[derive(Serialize)]
struct ItemEvent<'a> {
    r#type: &'static str,
    sequence_number: u64,
    output_index: u32,
    item: ResponseItem<'a>,
}

/// Everything about the one content part of the one item.
#[derive(Serialize)]
struct PartEvent<'a> {
    r#type: &'static str,
    sequence_number: u64,
    item_id: &'a str,
    output_index: u32,
    content_index: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    part: Option<ContentPart<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    delta: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<Vec<LogprobEntry>>,
}

#[derive(Serialize)]
struct ErrorEvent<'a> {
    r#type: &'static str,
    sequence_number: u64,
    code: &'a str,
    message: &'a str,
    param: Option<&'a str>,
}

impl ResponsesWriter {
    pub(in crate::endpoints) fn new(head: ResponseHead, echo: RequestEcho) -> Self {
        let id = format!("resp_{}", head.info.id);
        let item_id = format!("msg_{}", head.info.id);
        Self { head, id, item_id, echo, sequence: 0, chunk: None }
    }

    fn next(&mut self) -> u64 {
        let number = self.sequence;
        self.sequence += 1;
        number
    }

    fn response(&self, status: ResponseStatus) -> ResponseObject<'_> {
        ResponseObject::new(&self.id, &self.head, &self.echo, status)
    }

    fn item<'a>(
        &'a self,
        status: ResponseStatus,
        chunk: Option<&'a TextChunk>,
    ) -> ResponseItem<'a> {
        ResponseItem::new(&self.item_id, status, chunk.map(|chunk| self.part(chunk)))
    }

    fn part<'a>(&self, chunk: &'a TextChunk) -> ContentPart<'a> {
        ContentPart::new(&chunk.text, LogprobEntry::each(&self.head.text, &chunk.tokens))
    }

    fn tell_response(
        &mut self,
        event: &'static str,
        status: ResponseStatus,
        frames: &mut SseFrames,
    ) {
        let sequence_number = self.next();
        let response = self.response(status);
        frames.event(event, &ResponseEvent { r#type: event, sequence_number, response });
    }

    fn tell_item(&mut self, event: &'static str, status: ResponseStatus, frames: &mut SseFrames) {
        let sequence_number = self.next();
        let chunk = if status == ResponseStatus::InProgress { None } else { self.chunk.as_ref() };
        let item = self.item(status, chunk);
        frames.event(event, &ItemEvent { r#type: event, sequence_number, output_index: 0, item });
    }

    fn tell_part(&mut self, news: PartUpdate<'_>, frames: &mut SseFrames) {
        let sequence_number = self.next();
        let chunk = self.chunk.as_ref();
        let (r#type, part) = match news {
            PartUpdate::PartAdded => {
                ("response.content_part.added", Some(ContentPart::new("", vec![])))
            }
            PartUpdate::Delta(_) => ("response.output_text.delta", None),
            PartUpdate::TextDone => ("response.output_text.done", None),
            PartUpdate::PartDone => {
                ("response.content_part.done", chunk.map(|chunk| self.part(chunk)))
            }
        };
        let (delta, text) = match news {
            PartUpdate::Delta(more) => (Some(more), None),
            PartUpdate::TextDone => (None, chunk),
            PartUpdate::PartAdded | PartUpdate::PartDone => (None, None),
        };
        let logprobs = delta
            .or(text)
            .map(|chunk| LogprobEntry::each_without_bytes(&self.head.text, &chunk.tokens));
        frames.event(
            r#type,
            &PartEvent {
                r#type,
                sequence_number,
                item_id: &self.item_id,
                output_index: 0,
                content_index: 0,
                part,
                delta: delta.map(|chunk| chunk.text.as_str()),
                text: text.map(|chunk| chunk.text.as_str()),
                logprobs,
            },
        );
    }

    /// Opens the one item and its one part, with the first text.
    fn begin(&mut self, frames: &mut SseFrames) {
        if self.chunk.is_none() {
            self.chunk = Some(TextChunk::default());
            self.tell_item("response.output_item.added", ResponseStatus::InProgress, frames);
            self.tell_part(PartUpdate::PartAdded, frames);
        }
    }
}

/// A response as it is at the moment, at once.
pub(in crate::endpoints) fn shown(
    head: ResponseHead,
    echo: RequestEcho,
    state: &AnswerState,
) -> Vec<u8> {
    let mut writer = ResponsesWriter::new(head, echo);
    let (chunk, failure) = match state {
        AnswerState::Queued => return json(&writer.response(ResponseStatus::Queued)),
        AnswerState::Running => return json(&writer.response(ResponseStatus::InProgress)),
        AnswerState::Ended(result) => match &**result {
            (chunk, Ok(done)) => return writer.whole(chunk.clone(), done),
            (chunk, Err(failure)) => (chunk, failure),
        },
    };
    let cancelled = matches!(failure, Failure::Cancelled(CancelCause::Operator));
    let mut response =
        writer.response(if cancelled { ResponseStatus::Cancelled } else { ResponseStatus::Failed });
    if !chunk.text.is_empty() {
        response = response.with(writer.item(ResponseStatus::Incomplete, Some(chunk)));
    }
    if cancelled {
        return json(&response);
    }
    let message = failure.message(&writer.head.info.id);
    json(&response.failed(&message))
}

/// What can be said about the one content part.
enum PartUpdate<'a> {
    PartAdded,
    Delta(&'a TextChunk),
    TextDone,
    PartDone,
}

fn status(finish: Finish) -> ResponseStatus {
    match finish {
        Finish::Stop => ResponseStatus::Completed,
        Finish::Length | Finish::Filtered => ResponseStatus::Incomplete,
    }
}

impl ResponseWriter for ResponsesWriter {
    fn open(&mut self, frames: &mut SseFrames) {
        self.tell_response("response.created", ResponseStatus::InProgress, frames);
        self.tell_response("response.in_progress", ResponseStatus::InProgress, frames);
    }

    fn text(&mut self, chunk: TextChunk, frames: &mut SseFrames) {
        self.begin(frames);
        self.tell_part(PartUpdate::Delta(&chunk), frames);
        self.chunk.get_or_insert_default().join(chunk);
    }

    fn done(&mut self, done: &Done, frames: &mut SseFrames) {
        self.begin(frames);
        let status = status(done.finish);
        self.tell_part(PartUpdate::TextDone, frames);
        self.tell_part(PartUpdate::PartDone, frames);
        self.tell_item("response.output_item.done", status, frames);
        let sequence_number = self.next();
        let item = self.item(status, self.chunk.as_ref());
        let r#type = match done.finish {
            Finish::Stop => "response.completed",
            Finish::Length | Finish::Filtered => "response.incomplete",
        };
        let response = self.response(status).done(done, item);
        frames.event(r#type, &ResponseEvent { r#type, sequence_number, response });
    }

    fn fail(&mut self, error: &ApiError, frames: &mut SseFrames) {
        let sequence_number = self.next();
        let ApiError { message, param, code, .. } = error;
        frames.event(
            "error",
            &ErrorEvent {
                r#type: "error",
                sequence_number,
                code,
                message,
                param: param.as_deref(),
            },
        );
        let sequence_number = self.next();
        let r#type = "response.failed";
        let mut response = self.response(ResponseStatus::Failed);
        if let Some(chunk) = &self.chunk {
            response = response.with(self.item(ResponseStatus::Incomplete, Some(chunk)));
        }
        let response = response.failed(message);
        frames.event(r#type, &ResponseEvent { r#type, sequence_number, response });
    }

    fn whole(&mut self, chunk: TextChunk, done: &Done) -> Vec<u8> {
        let status = status(done.finish);
        let item = self.item(status, Some(&chunk));
        json(&self.response(status).done(done, item))
    }
}
