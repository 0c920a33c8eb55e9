//! What a request asks for, whichever endpoint it came through.
//!
//! Each endpoint's file reads its own body into one [`Ask`]; from there on nobody needs to know
//! which it was, except the voice that answers.
//!
//! # Not here
//!
//! What depends on the model (its context, its vocabulary) is checked in `admit`, where the
//! model is known.

mod chat;
mod completions;
mod invalid;
mod json;
mod responses;
mod sampling;
#[cfg(test)]
mod tests;

use std::hash::Hasher;

use interlock_request::{Endpoint, Generation, TokenId};
use interlock_text::Message;

pub(crate) use invalid::Invalid;
use json::{Item, Object};
pub(crate) use responses::Echo;
pub(crate) use sampling::Wished;

/// A well-formed request.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Ask {
    /// The model's name, as the client wrote it.
    pub(crate) model: String,
    /// What to continue.
    pub(crate) words: Words,
    /// How to draw tokens, as far as it says so.
    pub(crate) sampling: Wished,
    /// How many tokens to generate at most.
    pub(crate) length: Length,
    /// What else ends the answer, and what does not.
    pub(crate) ending: Ending,
    /// Tell how likely tokens were, and this many of the likeliest.
    pub(crate) logprobs: Option<u32>,
    /// Does the client want text as it comes?
    pub(crate) stream: bool,
    /// Will the client ask for the answer later?
    pub(crate) background: bool,
    /// What the answer repeats of the question.
    pub(crate) shape: Shape,
}

/// What to continue.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Words {
    /// Messages, for the chat template. The field they came in is `param`.
    Chat {
        /// `messages` or `input`.
        param: &'static str,
        /// At least one.
        messages: Vec<Message>,
    },
    /// Text, as it is.
    Text(String),
    /// Tokens, as they are. They stand at `path`.
    Tokens {
        /// `prompt` or `prompt[0]`.
        path: String,
        /// May be outside the model's vocabulary.
        ids: Vec<TokenId>,
    },
}

impl Default for Words {
    /// Nothing: what is left where they were taken.
    fn default() -> Self {
        Self::Text(String::new())
    }
}

impl Words {
    /// The body's field that holds them.
    pub(crate) fn param(&self) -> &'static str {
        match self {
            Self::Chat { param, .. } => param,
            Self::Text(_) | Self::Tokens { .. } => "prompt",
        }
    }

    /// Hashes how they begin: role and content of messages, or the text. False, and nothing is
    /// hashed, when they are no text.
    pub(crate) fn hash_beginning(&self, hasher: &mut impl Hasher) -> bool {
        /// As much as tells a system prompt from another.
        const BYTES_MAX: usize = 1024;

        let mut left = BYTES_MAX;
        let mut take = |text: &str| {
            let bytes = &text.as_bytes()[..text.len().min(left)];
            left -= bytes.len();
            hasher.write(bytes);
            hasher.write_u8(0xff);
            left > 0
        };
        match self {
            Self::Chat { messages, .. } => {
                // What comes after that is not looked at, however many messages there are.
                let _ = messages.iter().all(|m| take(&m.role) && take(&m.content));
            }
            Self::Text(text) => _ = take(text),
            Self::Tokens { .. } => return false,
        }
        true
    }

    /// About how many tokens they are, before anybody has counted.
    pub(crate) fn tokens_about(&self) -> u32 {
        /// Of usual text, with usual tokenizers.
        const BYTES_EACH: usize = 4;

        let tokens = match self {
            Self::Tokens { ids, .. } => ids.len(),
            text => text.text_bytes().div_ceil(BYTES_EACH),
        };
        u32::try_from(tokens).unwrap_or(u32::MAX)
    }

    /// How many parts they have: messages, or tokens.
    pub(crate) fn parts(&self) -> usize {
        match self {
            Self::Chat { messages, .. } => messages.len(),
            Self::Text(_) => 1,
            Self::Tokens { ids, .. } => ids.len(),
        }
    }

    /// Bytes of text to tokenize.
    pub(crate) fn text_bytes(&self) -> usize {
        match self {
            Self::Chat { messages, .. } => messages.iter().map(|m| m.content.len()).sum(),
            Self::Text(text) => text.len(),
            Self::Tokens { .. } => 0,
        }
    }
}

/// How many tokens to generate at most.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Length {
    /// As many as the client said, in this field.
    Asked {
        /// `max_tokens` or one of its younger names.
        param: &'static str,
        /// At least 1; may be beyond the context.
        tokens: i64,
        /// The number as the client wrote it.
        shown: String,
    },
    /// The endpoint's own default.
    Default(u32),
    /// As many as the context holds.
    Context,
}

/// What ends an answer before its length does, and what does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ending {
    /// Texts that end it.
    pub(crate) stops: Vec<String>,
    /// Go on where the model would end.
    pub(crate) ignore_eos: bool,
    /// Nothing but the length ends it before this many tokens.
    pub(crate) least: Option<Least>,
}

/// `min_tokens`
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Least {
    /// May be beyond the context.
    pub(crate) tokens: i64,
    /// The number as the client wrote it.
    pub(crate) shown: String,
}

/// What is particular to the endpoint.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Shape {
    /// `/v1/chat/completions`
    Chat {
        /// Does the stream end with a usage chunk?
        include_usage: bool,
    },
    /// `/v1/completions`
    Completions {
        /// Does the stream end with a usage chunk?
        include_usage: bool,
    },
    /// `/v1/responses`
    Responses(Box<Echo>),
}

impl Shape {
    /// About as much memory as the client's own words in it take.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Chat { .. } | Self::Completions { .. } => 0,
            Self::Responses(echo) => echo.bytes(),
        }
    }
}

impl Ask {
    /// How many tokens the client asked for at most, if it did.
    pub(crate) fn tokens_asked(&self) -> Option<u32> {
        match &self.length {
            Length::Asked { tokens, .. } => Some(u32::try_from(*tokens).unwrap_or(u32::MAX)),
            Length::Default(_) | Length::Context => None,
        }
    }

    /// Reads a body.
    ///
    /// # Errors
    ///
    /// When it is no JSON, or a field is not what this endpoint takes.
    pub(crate) fn parse(endpoint: Endpoint, body: &[u8]) -> Result<Self, Invalid> {
        let body = std::str::from_utf8(body).map_err(|e| Invalid::not_utf8(e.valid_up_to()))?;
        let body = Object::parse(body)?;
        match endpoint {
            Endpoint::Chat => chat::parse(&body),
            Endpoint::Completions => completions::parse(&body),
            Endpoint::Responses => responses::parse(&body),
        }
    }
}

fn model(body: &Object<'_>) -> Result<String, Invalid> {
    body.need("model")?.text()
}

fn flag(body: &Object<'_>, name: &str) -> Result<bool, Invalid> {
    body.get(name).map_or(Ok(false), |item| item.boolean())
}

/// The first of these fields that is set.
fn length(body: &Object<'_>, names: &[&'static str], otherwise: Length) -> Result<Length, Invalid> {
    for &param in names {
        if let Some(item) = body.get(param) {
            let tokens = item.integer(1..=i64::MAX)?;
            return Ok(Length::Asked { param, tokens, shown: item.shown() });
        }
    }
    Ok(otherwise)
}

/// `stop`, and what vLLM's clients know as `ignore_eos` and `min_tokens`.
fn ending(body: &Object<'_>) -> Result<Ending, Invalid> {
    let least =
        |item: Item<'_>| Ok(Least { tokens: item.integer(0..=i64::MAX)?, shown: item.shown() });
    Ok(Ending {
        stops: stops(body)?,
        ignore_eos: flag(body, "ignore_eos")?,
        least: body.get("min_tokens").map(least).transpose()?,
    })
}

/// `stop`: up to four texts.
fn stops(body: &Object<'_>) -> Result<Vec<String>, Invalid> {
    /// OpenAI's limit.
    const STOPS_MAX: usize = 4;
    /// Longest text to look for, in bytes. Every one is compared at every token.
    const STOP_BYTES_MAX: usize = 256;

    let Some(item) = body.get("stop") else { return Ok(vec![]) };
    let stop = |item: &Item<'_>| {
        let text = item.text()?;
        if (1..=STOP_BYTES_MAX).contains(&text.len()) {
            Ok(text)
        } else {
            Err(item.wrong_value(&format!("a string of 1 to {STOP_BYTES_MAX} bytes")))
        }
    };
    if !item.is_list() {
        return Ok(vec![stop(&item)?]);
    }
    let mut stops = 0;
    item.list(|one| {
        stops += 1;
        if stops > STOPS_MAX {
            return Err(item.wrong_value(&format!("at most {STOPS_MAX} strings")));
        }
        stop(&one)
    })
}

/// `stream` and `stream_options.include_usage`.
fn streaming(body: &Object<'_>) -> Result<(bool, bool), Invalid> {
    let stream = flag(body, "stream")?;
    let Some(options) = body.get("stream_options") else { return Ok((stream, false)) };
    if !stream {
        return Err(options.wrong_value("absent unless stream is true"));
    }
    Ok((stream, flag(&options.object()?, "include_usage")?))
}

/// Fields that change what an answer means, and that this host cannot honour. Ignoring them
/// would be a wrong answer; ignoring an unknown field is what compatible servers do.
fn refuse(body: &Object<'_>, fields: &[(&str, &str)]) -> Result<(), Invalid> {
    for (name, why) in fields {
        if let Some(item) = body.get(name)
            && !item.is_off()
        {
            return Err(Invalid::unsupported(item.path(), why, &item.shown()));
        }
    }
    Ok(())
}

/// `n` and its like: one answer per request.
fn only_one(body: &Object<'_>, name: &str) -> Result<(), Invalid> {
    let Some(item) = body.get(name) else { return Ok(()) };
    match item.integer(1..=i64::MAX)? {
        1 => Ok(()),
        _ => Err(Invalid::unsupported(name, "one answer per request is served", &item.shown())),
    }
}

/// How many of the likeliest tokens to tell.
fn likeliest(item: &Item<'_>) -> Result<u32, Invalid> {
    let count = item.integer(0..=i64::from(Generation::LOGPROBS_MAX))?;
    Ok(u32::try_from(count).expect("the range was checked"))
}

/// `top_logprobs`, which goes with another field that says whether to tell any at all.
fn top_logprobs(body: &Object<'_>, asked: bool, with: &str) -> Result<Option<u32>, Invalid> {
    let Some(item) = body.get("top_logprobs") else { return Ok(asked.then_some(0)) };
    match likeliest(&item)? {
        count if asked => Ok(Some(count)),
        0 => Ok(None),
        _ => Err(item.wrong_value(&format!("absent or 0 unless {with}"))),
    }
}

/// A field that takes these texts; others are features that this host has not.
fn only_text(body: &Object<'_>, name: &str, served: &[&str]) -> Result<(), Invalid> {
    let Some(item) = body.get(name) else { return Ok(()) };
    if item.is_text() && served.contains(&item.text()?.as_str()) {
        return Ok(());
    }
    let served = served.join(" or ");
    Err(Invalid::unsupported(item.path(), &format!("only {served} is"), &item.shown()))
}

/// `response_format` and `text.format`: plain text.
fn only_plain_text(format: Option<Item<'_>>) -> Result<(), Invalid> {
    let Some(format) = format else { return Ok(()) };
    let object = format.object()?;
    object.need("type")?.text()?;
    only_text(&object, "type", &["text"])
}
