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

use super::super::error::Complaint;
use super::super::logprobs::TokenLogprob;
use super::super::sse_frames::Frames;
use super::super::writer::{Head, Voice, json};
use super::object::{Item, Part, Response, Status};
use super::parse::Echo;
use crate::answer_state::State;
use crate::chunks::{Done, Said};
use crate::failure::Failure;

pub(in crate::endpoints) struct Responses {
    head: Head,
    id: String,
    item_id: String,
    echo: Echo,
    sequence: u64,
    /// All that was said, since the last events repeat it; None until there is something.
    said: Option<Said>,
}

/// `response.created` and its like.
#[derive(Serialize)]
struct ResponseEvent<'a> {
    r#type: &'static str,
    sequence_number: u64,
    response: Response<'a>,
}

/// `response.output_item.added` and `.done`.
#[derive(Serialize)]
struct ItemEvent<'a> {
    r#type: &'static str,
    sequence_number: u64,
    output_index: u32,
    item: Item<'a>,
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
    part: Option<Part<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    delta: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    logprobs: Option<Vec<TokenLogprob>>,
}

#[derive(Serialize)]
struct ErrorEvent<'a> {
    r#type: &'static str,
    sequence_number: u64,
    code: &'a str,
    message: &'a str,
    param: Option<&'a str>,
}

impl Responses {
    pub(in crate::endpoints) fn new(head: Head, echo: Echo) -> Self {
        let id = format!("resp_{}", head.request);
        let item_id = format!("msg_{}", head.request);
        Self { head, id, item_id, echo, sequence: 0, said: None }
    }

    fn next(&mut self) -> u64 {
        let number = self.sequence;
        self.sequence += 1;
        number
    }

    fn response(&self, status: Status) -> Response<'_> {
        Response::new(&self.id, &self.head, &self.echo, status)
    }

    fn item<'a>(&'a self, status: Status, said: Option<&'a Said>) -> Item<'a> {
        Item::new(&self.item_id, status, said.map(|said| self.part(said)))
    }

    fn part<'a>(&self, said: &'a Said) -> Part<'a> {
        Part::new(&said.text, TokenLogprob::each(&self.head.text, &said.tokens))
    }

    fn tell_response(&mut self, event: &'static str, status: Status, frames: &mut Frames) {
        let sequence_number = self.next();
        let response = self.response(status);
        frames.event(event, &ResponseEvent { r#type: event, sequence_number, response });
    }

    fn tell_item(&mut self, event: &'static str, status: Status, frames: &mut Frames) {
        let sequence_number = self.next();
        let said = if status == Status::InProgress { None } else { self.said.as_ref() };
        let item = self.item(status, said);
        frames.event(event, &ItemEvent { r#type: event, sequence_number, output_index: 0, item });
    }

    fn tell_part(&mut self, news: News<'_>, frames: &mut Frames) {
        let sequence_number = self.next();
        let said = self.said.as_ref();
        let (r#type, part) = match news {
            News::PartAdded => ("response.content_part.added", Some(Part::new("", vec![]))),
            News::Delta(_) => ("response.output_text.delta", None),
            News::TextDone => ("response.output_text.done", None),
            News::PartDone => ("response.content_part.done", said.map(|said| self.part(said))),
        };
        let (delta, text) = match news {
            News::Delta(more) => (Some(more), None),
            News::TextDone => (None, said),
            News::PartAdded | News::PartDone => (None, None),
        };
        let logprobs = delta
            .or(text)
            .map(|said| TokenLogprob::each_without_bytes(&self.head.text, &said.tokens));
        frames.event(
            r#type,
            &PartEvent {
                r#type,
                sequence_number,
                item_id: &self.item_id,
                output_index: 0,
                content_index: 0,
                part,
                delta: delta.map(|said| said.text.as_str()),
                text: text.map(|said| said.text.as_str()),
                logprobs,
            },
        );
    }

    /// Opens the one item and its one part, with the first text.
    fn begin(&mut self, frames: &mut Frames) {
        if self.said.is_none() {
            self.said = Some(Said::default());
            self.tell_item("response.output_item.added", Status::InProgress, frames);
            self.tell_part(News::PartAdded, frames);
        }
    }
}

/// A response as it is at the moment, at once.
pub(in crate::endpoints) fn shown(head: Head, echo: Echo, state: &State) -> Vec<u8> {
    let mut voice = Responses::new(head, echo);
    let (said, failure) = match state {
        State::Queued => return json(&voice.response(Status::Queued)),
        State::Running => return json(&voice.response(Status::InProgress)),
        State::Ended(result) => match &**result {
            (said, Ok(done)) => return voice.whole(said.clone(), done),
            (said, Err(failure)) => (said, failure),
        },
    };
    let cancelled = matches!(failure, Failure::Cancelled(CancelCause::Operator));
    let mut response = voice.response(if cancelled { Status::Cancelled } else { Status::Failed });
    if !said.text.is_empty() {
        response = response.with(voice.item(Status::Incomplete, Some(said)));
    }
    if cancelled {
        return json(&response);
    }
    let message = failure.message(&voice.head.request);
    json(&response.failed(&message))
}

/// What can be said about the one content part.
enum News<'a> {
    PartAdded,
    Delta(&'a Said),
    TextDone,
    PartDone,
}

fn status(finish: Finish) -> Status {
    match finish {
        Finish::Stop => Status::Completed,
        Finish::Length | Finish::Filtered => Status::Incomplete,
    }
}

impl Voice for Responses {
    fn open(&mut self, frames: &mut Frames) {
        self.tell_response("response.created", Status::InProgress, frames);
        self.tell_response("response.in_progress", Status::InProgress, frames);
    }

    fn text(&mut self, said: Said, frames: &mut Frames) {
        self.begin(frames);
        self.tell_part(News::Delta(&said), frames);
        self.said.get_or_insert_default().join(said);
    }

    fn done(&mut self, done: &Done, frames: &mut Frames) {
        self.begin(frames);
        let status = status(done.finish);
        self.tell_part(News::TextDone, frames);
        self.tell_part(News::PartDone, frames);
        self.tell_item("response.output_item.done", status, frames);
        let sequence_number = self.next();
        let item = self.item(status, self.said.as_ref());
        let r#type = match done.finish {
            Finish::Stop => "response.completed",
            Finish::Length | Finish::Filtered => "response.incomplete",
        };
        let response = self.response(status).done(done, item);
        frames.event(r#type, &ResponseEvent { r#type, sequence_number, response });
    }

    fn fail(&mut self, complaint: &Complaint, frames: &mut Frames) {
        let sequence_number = self.next();
        let Complaint { message, param, code, .. } = complaint;
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
        let mut response = self.response(Status::Failed);
        if let Some(said) = &self.said {
            response = response.with(self.item(Status::Incomplete, Some(said)));
        }
        let response = response.failed(message);
        frames.event(r#type, &ResponseEvent { r#type, sequence_number, response });
    }

    fn whole(&mut self, said: Said, done: &Done) -> Vec<u8> {
        let status = status(done.finish);
        let item = self.item(status, Some(&said));
        json(&self.response(status).done(done, item))
    }
}
