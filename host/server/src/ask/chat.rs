//! Reads `POST /v1/chat/completions`.

use interlock_text::Message;

use super::json::{Item, Object};
use super::{Ask, Invalid, Length, Shape, Words};

/// Fields of OpenAI's chat API that this host does not serve.
const UNSERVED: &[(&str, &str)] = &[
    ("tools", "tool calls are not served"),
    ("functions", "function calls are not served"),
    ("audio", "only text is served"),
    ("prediction", "predicted outputs are not served"),
    ("web_search_options", "web search is not served"),
];

pub(super) fn parse(body: &Object<'_>) -> Result<Ask, Invalid> {
    let model = super::model(body)?;
    let messages = messages(&body.need("messages")?)?;
    super::only_one(body, "n")?;
    super::refuse(body, UNSERVED)?;
    super::only_text(body, "tool_choice", &["none", "auto"])?;
    super::only_text(body, "function_call", &["none", "auto"])?;
    super::only_plain_text(body.get("response_format"))?;
    if let Some(modalities) = body.get("modalities") {
        modalities.list(|modality| match modality.text()?.as_str() {
            "text" => Ok(()),
            _ => {
                let why = "only text is served";
                Err(Invalid::unsupported(modality.path(), why, &modality.shown()))
            }
        })?;
    }
    let logprobs = super::flag(body, "logprobs")?;
    let (stream, include_usage) = super::streaming(body)?;
    Ok(Ask {
        model,
        words: Words::Chat { param: "messages", messages, options: super::template::parse(body)? },
        sampling: super::sampling::parse(body)?,
        length: super::length(body, &["max_completion_tokens", "max_tokens"], Length::Context)?,
        ending: super::ending(body)?,
        logprobs: super::top_logprobs(body, logprobs, "logprobs is true")?,
        stream,
        background: false,
        shape: Shape::Chat { include_usage },
    })
}

fn messages(item: &Item<'_>) -> Result<Vec<Message>, Invalid> {
    let messages = item.list(|one| message(&one))?;
    if messages.is_empty() {
        return Err(item.wrong_value("an array of at least one message"));
    }
    Ok(messages)
}

fn message(item: &Item<'_>) -> Result<Message, Invalid> {
    let message = item.object()?;
    let role = role(&message.need("role")?)?;
    super::refuse(
        &message,
        &[
            ("tool_calls", "tool calls are not served"),
            ("function_call", "function calls are not served"),
            ("audio", "only text is served"),
        ],
    )?;
    let name = message.get("name").map(|item| item.text()).transpose()?;
    Ok(Message { role, content: content(&message.need("content")?, &["text"])?, name })
}

/// A role as chat templates know it.
pub(super) fn role(item: &Item<'_>) -> Result<String, Invalid> {
    match item.text()?.as_str() {
        // A developer's message is what OpenAI now calls a system message.
        "system" | "developer" => Ok("system".into()),
        "user" => Ok("user".into()),
        "assistant" => Ok("assistant".into()),
        "tool" | "function" => {
            Err(Invalid::unsupported(item.path(), "tool calls are not served", &item.shown()))
        }
        _ => Err(item.wrong_value("\"system\", \"developer\", \"user\" or \"assistant\"")),
    }
}

/// A message's content: a string, or parts of these types, which are joined as they are.
pub(super) fn content(item: &Item<'_>, text_types: &[&str]) -> Result<String, Invalid> {
    if !item.is_list() {
        return if item.is_text() {
            item.text()
        } else {
            Err(item.wrong_type("a string or an array of text parts"))
        };
    }
    let parts = item.list(|part| {
        let part = part.object()?;
        let kind = part.need("type")?;
        if !text_types.contains(&kind.text()?.as_str()) {
            let why = format!("only parts of type {} are", text_types.join(" or "));
            return Err(Invalid::unsupported(kind.path(), &why, &kind.shown()));
        }
        part.need("text")?.text()
    })?;
    if parts.is_empty() {
        return Err(item.wrong_value("a string or at least one text part"));
    }
    Ok(parts.concat())
}
