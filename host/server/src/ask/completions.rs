//! Reads `POST /v1/completions`.

use interlock_request::TokenId;

use super::json::{Item, Object};
use super::{Ask, Invalid, Length, Shape, Words};

/// OpenAI's default for `max_tokens` on this endpoint.
const TOKENS_DEFAULT: u32 = 16;

/// Fields of OpenAI's completions API that this host does not serve.
const UNSERVED: &[(&str, &str)] =
    &[("echo", "the prompt is not repeated"), ("suffix", "text is only generated at the end")];

pub(super) fn parse(body: &Object<'_>) -> Result<Ask, Invalid> {
    let model = super::model(body)?;
    let words = words(&body.need("prompt")?)?;
    super::only_one(body, "n")?;
    super::only_one(body, "best_of")?;
    super::refuse(body, UNSERVED)?;
    let (stream, include_usage) = super::streaming(body)?;
    Ok(Ask {
        model,
        words,
        sampling: super::sampling::parse(body)?,
        length: super::length(body, &["max_tokens"], Length::Default(TOKENS_DEFAULT))?,
        ending: super::ending(body)?,
        logprobs: body.get("logprobs").map(|item| super::likeliest(&item)).transpose()?,
        stream,
        background: false,
        shape: Shape::Completions { include_usage },
    })
}

/// A text, its tokens, or a list of one of these.
fn words(prompt: &Item<'_>) -> Result<Words, Invalid> {
    const EXPECTED: &str = "a string, an array of token ids, or an array of one of these";
    if prompt.is_text() {
        return Ok(Words::Text(prompt.text()?));
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
            return Err(Invalid::unsupported(prompt.path(), why, &prompt.shown()));
        }
        if one.is_text() {
            Ok(Words::Text(one.text()?))
        } else if one.is_list() {
            tokens(&one)
        } else {
            Err(one.wrong_type("a string or an array of token ids"))
        }
    })?;
    prompts.pop().ok_or_else(|| prompt.wrong_value(EXPECTED))
}

fn tokens(list: &Item<'_>) -> Result<Words, Invalid> {
    let id = |item: Item<'_>| -> Result<TokenId, Invalid> {
        let id = item.integer(0..=i64::from(TokenId::MAX))?;
        Ok(TokenId::try_from(id).expect("the range was checked"))
    };
    // A body has room for millions of ids. They are looked at one by one only to name a culprit.
    let ids = match serde_json::from_str::<Vec<TokenId>>(list.raw().get()) {
        Ok(ids) => ids,
        Err(_) => list.list(id)?,
    };
    if ids.is_empty() {
        return Err(list.wrong_value("an array of at least one token id"));
    }
    Ok(Words::Tokens { path: list.path().to_owned(), ids })
}
