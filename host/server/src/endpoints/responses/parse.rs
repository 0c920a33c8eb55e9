//! Reads `POST /v1/responses`.

use interlock_text::Message;
use serde_json::value::RawValue;

use super::super::fields::{self, RESPONSES, RequestFields, UnknownFields};
use super::super::json::{Item, Object};
use super::super::{Ask, Length, Shape, Words, chat, common_fields, sampling, template};
use crate::failure::Invalid;

/// What a response repeats of its request.
#[derive(Debug, Clone)]
pub(crate) struct Echo {
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

impl Echo {
    /// About as much memory as the client's own words in it take.
    pub(crate) fn bytes(&self) -> usize {
        let instructions = self.instructions.as_ref().map_or(0, String::len);
        instructions + self.metadata.as_ref().map_or(0, |raw| raw.get().len())
    }
}

impl PartialEq for Echo {
    fn eq(&self, other: &Self) -> bool {
        let text = |echo: &Self| echo.metadata.as_ref().map(|raw| raw.get().to_owned());
        self.instructions == other.instructions
            && text(self) == text(other)
            && self.max_output_tokens == other.max_output_tokens
            && self.top_logprobs == other.top_logprobs
            && self.background == other.background
    }
}

pub(in crate::endpoints) fn parse(body: Object<'_>) -> Result<Ask, Invalid> {
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
        return Err(Invalid::unsupported("background", why, "true"));
    }
    let length = common_fields::length(&body, Length::Context)?;
    let echo = Echo {
        instructions,
        metadata: body.get("metadata").map(|item| metadata(&item)).transpose()?,
        max_output_tokens: match &length {
            Length::Asked { tokens, .. } => Some(*tokens),
            Length::Default(_) | Length::Context => None,
        },
        top_logprobs: logprobs.unwrap_or(0),
        background,
    };
    Ok(Ask {
        model,
        words: Words::Chat { param: "input", messages, options: template::parse(&body)? },
        sampling,
        length,
        ending: common_fields::ending(&body)?,
        logprobs,
        stream,
        background,
        shape: Shape::Responses(Box::new(echo)),
        unknown,
    })
}

/// `text.format`, and `response_format`, which clients of the chat endpoint know.
fn only_plain_text(body: &RequestFields<'_>, unknown: &mut UnknownFields) -> Result<(), Invalid> {
    common_fields::only_plain_text(RESPONSES, body.get("response_format"), unknown)?;
    let Some(text) = body.get("text") else { return Ok(()) };
    let text = fields::TEXT_OPTIONS.read(RESPONSES, text.object()?, unknown)?;
    common_fields::only_plain_text(RESPONSES, text.get("format"), unknown)
}

/// `include` and `top_logprobs`.
fn logprobs(body: &RequestFields<'_>) -> Result<Option<u32>, Invalid> {
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
fn input(item: &Item<'_>, unknown: &mut UnknownFields) -> Result<Vec<Message>, Invalid> {
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

fn message(item: &Item<'_>, unknown: &mut UnknownFields) -> Result<Message, Invalid> {
    let message = fields::INPUT_MESSAGE.read(RESPONSES, item.object()?, unknown)?;
    common_fields::only_text(&message, "type", &["message"])?;
    let role = chat::role(&message.need("role")?)?;
    let content = chat::content(RESPONSES, &message.need("content")?, unknown)?;
    Ok(Message { role, content, name: None })
}

/// Up to 16 short texts, as OpenAI has it. Never a metric label, never in a log.
fn metadata(item: &Item<'_>) -> Result<Box<RawValue>, Invalid> {
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
