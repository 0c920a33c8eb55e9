//! Reads `POST /v1/responses`.

use interlock_text::Message;
use serde_json::value::RawValue;

use super::super::fields::{self, RESPONSES, RequestFields, UnknownFields};
use super::super::json::{FieldValue, JsonObject};
use super::super::{
    ApiRequest, MaxTokens, PromptInput, ResponseFormat, chat, common_fields, sampling, template,
};
use crate::failure::InvalidRequest;

/// What a response repeats of its request.
#[derive(Debug, Clone)]
pub(crate) struct RequestEcho {
    /// The system message, as it was given.
    pub(crate) instructions: Option<String>,
    /// The client's own labels.
    pub(crate) metadata: Option<Box<RawValue>>,
    /// The limit that the client set.
    pub(crate) max_output_tokens: Option<i64>,
    /// How many of the likeliest tokens are told at each place.
    pub(crate) top_logprobs: u32,
    /// Did the client not wait for it?
    pub(crate) background: bool,
}

impl RequestEcho {
    /// About as much memory as the client's own words in it take.
    pub(crate) fn bytes(&self) -> usize {
        let instructions = self.instructions.as_ref().map_or(0, String::len);
        instructions + self.metadata.as_ref().map_or(0, |raw| raw.get().len())
    }
}

impl PartialEq for RequestEcho {
    fn eq(&self, other: &Self) -> bool {
        let text = |echo: &Self| echo.metadata.as_ref().map(|raw| raw.get().to_owned());
        self.instructions == other.instructions
            && text(self) == text(other)
            && self.max_output_tokens == other.max_output_tokens
            && self.top_logprobs == other.top_logprobs
            && self.background == other.background
    }
}

pub(in crate::endpoints) fn parse(body: JsonObject<'_>) -> Result<ApiRequest, InvalidRequest> {
    let mut unknown = UnknownFields::default();
    let body = fields::BODY.read(RESPONSES, body, &mut unknown)?;
    let model = common_fields::model(&body)?;
    let instructions = body.get("instructions").map(|item| item.text()).transpose()?;
    let mut messages = input(&body.need("input")?, &mut unknown)?;
    if let Some(text) = &instructions {
        let system = Message { role: "system".into(), content: text.clone(), name: None };
        messages.insert(0, system);
    }
    let logprobs = logprobs(&body)?;
    only_plain_text(&body, &mut unknown)?;
    let sampling = sampling::parse(&body)?;
    let (stream, _) = common_fields::streaming(RESPONSES, &body, &mut unknown)?;
    let background = common_fields::flag(&body, "background")?;
    if stream && background {
        let why = "a response in the background is not streamed";
        return Err(InvalidRequest::unsupported("background", why, "true"));
    }
    let max_tokens = common_fields::max_tokens(&body, MaxTokens::Context)?;
    let echo = RequestEcho {
        instructions,
        metadata: body.get("metadata").map(|item| metadata(&item)).transpose()?,
        max_output_tokens: match &max_tokens {
            MaxTokens::Asked { tokens, .. } => Some(*tokens),
            MaxTokens::Default(_) | MaxTokens::Context => None,
        },
        top_logprobs: logprobs.unwrap_or(0),
        background,
    };
    Ok(ApiRequest {
        model,
        input: PromptInput::Chat { param: "input", messages, options: template::parse(&body)? },
        sampling,
        max_tokens,
        stop: common_fields::stop(&body)?,
        logprobs,
        stream,
        background,
        format: ResponseFormat::Responses(Box::new(echo)),
        unknown,
    })
}

/// `text.format`, and `response_format`, which clients of the chat endpoint know.
fn only_plain_text(
    body: &RequestFields<'_>,
    unknown: &mut UnknownFields,
) -> Result<(), InvalidRequest> {
    common_fields::only_plain_text(RESPONSES, body.get("response_format"), unknown)?;
    let Some(text) = body.get("text") else { return Ok(()) };
    let text = fields::TEXT_OPTIONS.read(RESPONSES, text.object()?, unknown)?;
    common_fields::only_plain_text(RESPONSES, text.get("format"), unknown)
}

/// `include` and `top_logprobs`.
fn logprobs(body: &RequestFields<'_>) -> Result<Option<u32>, InvalidRequest> {
    /// The rest of what can be included is about tools and other kinds of content, of which no
    /// answer has any.
    const LOGPROBS: &str = "message.output_text.logprobs";

    let included = match body.get("include") {
        Some(include) => include.list(|what| what.text())?,
        None => vec![],
    };
    let asked = included.iter().any(|what| what == LOGPROBS);
    common_fields::top_logprobs(body, asked, &format!("include has {LOGPROBS:?}"))
}

/// A text from the user, or a list of messages.
fn input(
    item: &FieldValue<'_>,
    unknown: &mut UnknownFields,
) -> Result<Vec<Message>, InvalidRequest> {
    if item.is_text() {
        return Ok(vec![Message { role: "user".into(), content: item.text()?, name: None }]);
    }
    if !item.is_list() {
        return Err(item.wrong_type("a string or an array of messages"));
    }
    let messages = item.list(|one| message(&one, unknown))?;
    if messages.is_empty() {
        return Err(item.wrong_value("a string or an array of at least one message"));
    }
    Ok(messages)
}

fn message(item: &FieldValue<'_>, unknown: &mut UnknownFields) -> Result<Message, InvalidRequest> {
    let message = fields::INPUT_MESSAGE.read(RESPONSES, item.object()?, unknown)?;
    common_fields::only_text(&message, "type", &["message"])?;
    let role = chat::role(&message.need("role")?)?;
    let content = chat::content(RESPONSES, &message.need("content")?, unknown)?;
    Ok(Message { role, content, name: None })
}

/// Up to 16 short texts, as OpenAI has it. Never a metric label, never in a log.
fn metadata(item: &FieldValue<'_>) -> Result<Box<RawValue>, InvalidRequest> {
    const PAIRS_MAX: usize = 16;
    let object = item.object()?;
    if object.items().count() > PAIRS_MAX {
        return Err(item.wrong_value(&format!("an object of at most {PAIRS_MAX} strings")));
    }
    for (_, value) in object.items() {
        value.text()?;
    }
    Ok(item.raw().to_owned())
}
