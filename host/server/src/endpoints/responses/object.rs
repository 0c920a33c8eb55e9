//! The response object and what it is made of.

use interlock_request::{Finish, Usage};
use serde::Serialize;
use serde_json::value::RawValue;

use super::super::logprobs::LogprobEntry;
use super::super::writer::ResponseHead;
use super::parse::RequestEcho;
use crate::chunks::Done;

/// Where a response, or its item, is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ResponseStatus {
    Queued,
    InProgress,
    Completed,
    Incomplete,
    Failed,
    Cancelled,
}

/// As OpenAI has it, with what this host does not serve at its neutral value.
#[derive(Serialize)]
pub(super) struct ResponseObject<'a> {
    id: &'a str,
    object: &'static str,
    created_at: u64,
    status: ResponseStatus,
    background: bool,
    error: Option<ResponseError<'a>>,
    incomplete_details: Option<IncompleteDetails>,
    instructions: Option<&'a str>,
    max_output_tokens: Option<i64>,
    metadata: ResponseMetadata<'a>,
    model: &'a str,
    output: Vec<ResponseItem<'a>>,
    parallel_tool_calls: bool,
    previous_response_id: Option<()>,
    store: bool,
    temperature: f32,
    text: TextSettings,
    tool_choice: &'static str,
    tools: [(); 0],
    top_logprobs: u32,
    top_p: f32,
    truncation: &'static str,
    usage: Option<ResponseUsage>,
    user: Option<()>,
}

#[derive(Serialize)]
struct ResponseError<'a> {
    /// From OpenAI's closed list; the `error` event before it has the exact cause.
    code: &'static str,
    message: &'a str,
}

#[derive(Serialize)]
struct IncompleteDetails {
    reason: &'static str,
}

#[derive(Serialize)]
struct TextSettings {
    format: TextFormat,
}

#[derive(Serialize)]
struct TextFormat {
    r#type: &'static str,
}

/// The client's own, or `{}`.
#[derive(Serialize)]
#[serde(untagged)]
enum ResponseMetadata<'a> {
    Given(&'a RawValue),
    None {},
}

#[derive(Serialize)]
struct ResponseUsage {
    input_tokens: u64,
    input_tokens_details: InputDetails,
    output_tokens: u64,
    output_tokens_details: OutputDetails,
    total_tokens: u64,
}

#[derive(Serialize)]
struct InputDetails {
    cached_tokens: u64,
    cache_write_tokens: u64,
}

#[derive(Serialize)]
struct OutputDetails {
    reasoning_tokens: u64,
}

/// The one message of a response.
#[derive(Serialize)]
pub(super) struct ResponseItem<'a> {
    id: &'a str,
    r#type: &'static str,
    status: ResponseStatus,
    role: &'static str,
    content: Vec<ContentPart<'a>>,
}

/// The one part of a message.
#[derive(Serialize)]
pub(super) struct ContentPart<'a> {
    r#type: &'static str,
    text: &'a str,
    annotations: [(); 0],
    logprobs: Vec<LogprobEntry>,
}

impl<'a> ContentPart<'a> {
    pub(super) fn new(text: &'a str, logprobs: Vec<LogprobEntry>) -> Self {
        Self { r#type: "output_text", text, annotations: [], logprobs }
    }
}

impl<'a> ResponseItem<'a> {
    pub(super) fn new(id: &'a str, status: ResponseStatus, part: Option<ContentPart<'a>>) -> Self {
        let content = part.into_iter().collect();
        Self { id, r#type: "message", status, role: "assistant", content }
    }
}

impl<'a> ResponseObject<'a> {
    pub(super) fn new(
        id: &'a str,
        head: &'a ResponseHead,
        echo: &'a RequestEcho,
        status: ResponseStatus,
    ) -> Self {
        Self {
            id,
            object: "response",
            created_at: head.created(),
            status,
            background: echo.background,
            error: None,
            incomplete_details: None,
            instructions: echo.instructions.as_deref(),
            max_output_tokens: echo.max_output_tokens,
            metadata: echo
                .metadata
                .as_deref()
                .map_or(ResponseMetadata::None {}, ResponseMetadata::Given),
            model: head.info.model.as_str(),
            output: Vec::new(),
            parallel_tool_calls: true,
            previous_response_id: None,
            // What runs in the background is kept for a while, whatever was asked.
            store: echo.background,
            temperature: head.temperature,
            text: TextSettings { format: TextFormat { r#type: "text" } },
            tool_choice: "auto",
            tools: [],
            top_logprobs: echo.top_logprobs,
            top_p: head.top_p,
            truncation: "disabled",
            usage: None,
            user: None,
        }
    }

    pub(super) fn with(self, item: ResponseItem<'a>) -> Self {
        Self { output: vec![item], ..self }
    }

    pub(super) fn done(self, done: &Done, item: ResponseItem<'a>) -> Self {
        let incomplete_details = match done.finish {
            Finish::Stop => None,
            Finish::Length => Some(IncompleteDetails { reason: "max_output_tokens" }),
            Finish::Filtered => Some(IncompleteDetails { reason: "content_filter" }),
        };
        Self { incomplete_details, usage: Some(done.usage.into()), ..self.with(item) }
    }

    pub(super) fn failed(self, message: &'a str) -> Self {
        Self { error: Some(ResponseError { code: "server_error", message }), ..self }
    }
}

impl From<Usage> for ResponseUsage {
    fn from(usage: Usage) -> Self {
        let input_tokens = u64::from(usage.prompt_tokens);
        let output_tokens = u64::from(usage.generated_tokens);
        Self {
            input_tokens,
            input_tokens_details: InputDetails {
                cached_tokens: usage.cached_tokens.into(),
                cache_write_tokens: 0,
            },
            output_tokens,
            output_tokens_details: OutputDetails { reasoning_tokens: 0 },
            total_tokens: input_tokens + output_tokens,
        }
    }
}
