//! Reads `POST /v1/completions`.

use interlock_request::TokenId;

use super::super::fields::{self, COMPLETIONS, RequestFields, UnknownFields};
use super::super::json::{FieldValue, JsonObject};
use super::super::{ApiRequest, MaxTokens, PromptInput, ResponseFormat, common_fields, sampling};
use crate::failure::InvalidRequest;

/// OpenAI's default for `max_tokens` on this endpoint.
const TOKENS_DEFAULT: u32 = 16;

pub(in crate::endpoints) fn parse(body: JsonObject<'_>) -> Result<ApiRequest, InvalidRequest> {
    let mut unknown = UnknownFields::default();
    let body = fields::BODY.read(COMPLETIONS, body, &mut unknown)?;
    let model = common_fields::model(&body)?;
    let input = input(&body.need("prompt")?)?;
    common_fields::only_plain_text(COMPLETIONS, body.get("response_format"), &mut unknown)?;
    let (stream, include_usage) = common_fields::streaming(COMPLETIONS, &body, &mut unknown)?;
    Ok(ApiRequest {
        model,
        input,
        sampling: sampling::parse(&body)?,
        max_tokens: common_fields::max_tokens(&body, MaxTokens::Default(TOKENS_DEFAULT))?,
        stop: common_fields::stop(&body)?,
        logprobs: logprobs(&body)?,
        stream,
        background: false,
        format: ResponseFormat::Completions { include_usage },
        unknown,
    })
}

/// A number of alternatives; `false` is how clients of the chat endpoint say none.
fn logprobs(body: &RequestFields<'_>) -> Result<Option<u32>, InvalidRequest> {
    let is_no = |item: &FieldValue<'_>| matches!(item.raw().get(), "false" | "\"false\"");
    let asked = body.get("logprobs").filter(|item| !is_no(item));
    asked.map(|item| common_fields::likeliest(&item)).transpose()
}

/// A text, its tokens, or a list of one of these.
fn input(prompt: &FieldValue<'_>) -> Result<PromptInput, InvalidRequest> {
    const EXPECTED: &str = "a string, an array of token ids, or an array of one of these";
    if prompt.is_text() {
        return Ok(PromptInput::Text(prompt.text()?));
    }
    if !prompt.is_list() {
        return Err(prompt.wrong_type(EXPECTED));
    }
    if prompt.is_list_of_numbers() {
        return tokens(prompt);
    }
    let mut another = false;
    let mut prompts = prompt.list(|one| {
        if std::mem::replace(&mut another, true) {
            let why = "one prompt per request is served";
            return Err(InvalidRequest::unsupported(prompt.path(), why, &prompt.shown()));
        }
        if one.is_text() {
            Ok(PromptInput::Text(one.text()?))
        } else if one.is_list() {
            tokens(&one)
        } else {
            Err(one.wrong_type("a string or an array of token ids"))
        }
    })?;
    prompts.pop().ok_or_else(|| prompt.wrong_value(EXPECTED))
}

fn tokens(list: &FieldValue<'_>) -> Result<PromptInput, InvalidRequest> {
    let id = |item: FieldValue<'_>| item.token_id();
    // A body has room for millions of ids. They are looked at one by one only to name a culprit.
    let ids = match serde_json::from_str::<Vec<TokenId>>(list.raw().get()) {
        Ok(ids) => ids,
        Err(_) => list.list(id)?,
    };
    if ids.is_empty() {
        return Err(list.wrong_value("an array of at least one token id"));
    }
    Ok(PromptInput::Tokens { path: list.path().to_owned(), ids })
}
