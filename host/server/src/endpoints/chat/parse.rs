//! Reads `POST /v1/chat/completions`.

use interlock_text::Message;

use super::super::fields::{self, CHAT, EndpointSet, RequestFields, UnknownFields};
use super::super::json::{FieldValue, JsonObject};
use super::super::{
    ApiRequest, MaxTokens, PromptInput, ResponseFormat, common_fields, sampling, template,
};
use crate::failure::InvalidRequest;

pub(in crate::endpoints) fn parse(body: JsonObject<'_>) -> Result<ApiRequest, InvalidRequest> {
    let mut unknown = UnknownFields::default();
    let body = fields::BODY.read(CHAT, body, &mut unknown)?;
    let model = common_fields::model(&body)?;
    let messages = messages(&body.need("messages")?, &mut unknown)?;
    common_fields::only_plain_text(CHAT, body.get("response_format"), &mut unknown)?;
    only_text_modality(&body)?;
    let logprobs = common_fields::flag(&body, "logprobs")?;
    let (stream, include_usage) = common_fields::streaming(CHAT, &body, &mut unknown)?;
    Ok(ApiRequest {
        model,
        input: PromptInput::Chat { param: "messages", messages, options: template::parse(&body)? },
        sampling: sampling::parse(&body)?,
        max_tokens: common_fields::max_tokens(&body, MaxTokens::Context)?,
        stop: common_fields::stop(&body)?,
        logprobs: common_fields::top_logprobs(&body, logprobs, "logprobs is true")?,
        stream,
        background: false,
        format: ResponseFormat::Chat { include_usage },
        unknown,
    })
}

fn only_text_modality(body: &RequestFields<'_>) -> Result<(), InvalidRequest> {
    let Some(modalities) = body.get("modalities") else { return Ok(()) };
    let only_text = modalities.list(|modality| match modality.text()?.as_str() {
        "text" => Ok(()),
        _ => {
            let why = "only text is served";
            Err(InvalidRequest::unsupported(modality.path(), why, &modality.shown()))
        }
    });
    only_text.map(drop)
}

fn messages(
    item: &FieldValue<'_>,
    unknown: &mut UnknownFields,
) -> Result<Vec<Message>, InvalidRequest> {
    let messages = item.list(|one| message(&one, unknown))?;
    if messages.is_empty() {
        return Err(item.wrong_value("an array of at least one message"));
    }
    Ok(messages)
}

fn message(item: &FieldValue<'_>, unknown: &mut UnknownFields) -> Result<Message, InvalidRequest> {
    let message = fields::MESSAGE.read(CHAT, item.object()?, unknown)?;
    let role = role(&message.need("role")?)?;
    let name = message.get("name").map(|item| item.text()).transpose()?;
    let content = content(CHAT, &message.need("content")?, unknown)?;
    Ok(Message { role, content, name })
}

/// A role as chat templates know it.
pub(in crate::endpoints) fn role(item: &FieldValue<'_>) -> Result<String, InvalidRequest> {
    match item.text()?.as_str() {
        // A developer's message is what OpenAI now calls a system message.
        "system" | "developer" => Ok("system".into()),
        "user" => Ok("user".into()),
        "assistant" => Ok("assistant".into()),
        "tool" | "function" => Err(InvalidRequest::unsupported(
            item.path(),
            "tool calls are not served",
            &item.shown(),
        )),
        _ => Err(item.wrong_value("\"system\", \"developer\", \"user\" or \"assistant\"")),
    }
}

/// A message's content: a string, or parts of text, which are joined as they are.
pub(in crate::endpoints) fn content(
    endpoint: EndpointSet,
    item: &FieldValue<'_>,
    unknown: &mut UnknownFields,
) -> Result<String, InvalidRequest> {
    if !item.is_list() {
        return if item.is_text() {
            item.text()
        } else {
            Err(item.wrong_type("a string or an array of text parts"))
        };
    }
    let served: &[&str] = if endpoint == CHAT { &["text"] } else { &["input_text", "output_text"] };
    let parts = item.list(|part| {
        let part = fields::PART.read(endpoint, part.object()?, unknown)?;
        let kind = part.need("type")?;
        if !served.contains(&kind.text()?.as_str()) {
            let why = format!("only parts of type {} are", served.join(" or "));
            return Err(InvalidRequest::unsupported(kind.path(), &why, &kind.shown()));
        }
        part.need("text")?.text()
    })?;
    if parts.is_empty() {
        return Err(item.wrong_value("a string or at least one text part"));
    }
    Ok(parts.concat())
}
