//! Reads `POST /v1/completions`.

use interlock_request::TokenId;

use super::json::{Item, Object};
use super::{Ask, Invalid, Length, Shape, Words};

/// OpenAI's default for `max_tokens` on this endpoint.
const TOKENS_DEFAULT: u32 = 16;

/// Fields of OpenAI's completions API that this host does not serve.
const UNSERVED: &[(&str, &str)] = &[
    ("logprobs", "log probabilities are not served"),
    ("echo", "the prompt is not repeated"),
    ("suffix", "text is only generated at the end"),
];

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
        stops: super::stops(body)?,
        stream,
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
    let items = prompt.list()?;
    let Some(first) = items.first() else { return Err(prompt.wrong_value(EXPECTED)) };
    if first.is_number() {
        return tokens(prompt, &items);
    }
    let one = if first.is_text() {
        Words::Text(first.text()?)
    } else if first.is_list() {
        tokens(first, &first.list()?)?
    } else {
        return Err(first.wrong_type("a string or an array of token ids"));
    };
    if items.len() > 1 {
        let got = format!("{} prompts", items.len());
        return Err(Invalid::unsupported("prompt", "one prompt per request is served", &got));
    }
    Ok(one)
}

fn tokens(list: &Item<'_>, items: &[Item<'_>]) -> Result<Words, Invalid> {
    if items.is_empty() {
        return Err(list.wrong_value("an array of at least one token id"));
    }
    let id = |item: &Item<'_>| -> Result<TokenId, Invalid> {
        let id = item.integer(0..=i64::from(TokenId::MAX))?;
        Ok(TokenId::try_from(id).expect("the range was checked"))
    };
    let ids = items.iter().map(id).collect::<Result<_, _>>()?;
    Ok(Words::Tokens { path: list.path().to_owned(), ids })
}
