//! What a request asks for, whichever endpoint it came through.
//!
//! Each endpoint's file reads its own body into one [`Ask`]; from there on nobody needs to know
//! which it was, except the voice that answers. Which fields there are, and what becomes of those
//! that are not read, is in `fields`.
//!
//! # Not here
//!
//! What depends on the model (its context, its vocabulary) is checked in `admit`, where the
//! model is known.

mod chat;
mod completions;
mod fields;
mod invalid;
mod json;
mod responses;
mod sampling;
mod stop_tokens;
mod template;
#[cfg(test)]
mod tests;

use std::hash::Hasher;

use interlock_request::{Endpoint, Generation, TokenId};
use interlock_text::{ChatOptions, Message};

pub(crate) use fields::UnknownFields;
pub use fields::request_fields_md;
use fields::{Endpoints, RequestFields};
pub(crate) use invalid::Invalid;
use json::{Item, Object};
pub(crate) use responses::Echo;
pub(crate) use sampling::Wished;

/// A well-formed request.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Ask {
    /// The model's name, as the client wrote it; `None`: it leaves the choice to the host.
    pub(crate) model: Option<String>,
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
    /// Fields that nobody knows, and that were ignored.
    pub(crate) unknown: UnknownFields,
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
        /// How they become a prompt.
        options: ChatOptions,
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
            Self::Chat { messages, options, .. } => {
                messages.iter().map(|m| m.content.len()).sum::<usize>() + options.variables.bytes()
            }
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
    /// Texts that end it. They may hold the names of special tokens.
    pub(crate) stops: Vec<String>,
    /// Tokens that end it, beside the model's own. They may be outside its vocabulary.
    pub(crate) stop_tokens: Vec<TokenId>,
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
            Endpoint::Chat => chat::parse(body),
            Endpoint::Completions => completions::parse(body),
            Endpoint::Responses => responses::parse(body),
        }
    }
}

/// Other servers serve one model and do not ask for its name; some of their clients send an empty one.
fn model(body: &RequestFields<'_>) -> Result<Option<String>, Invalid> {
    let name = body.get("model").map(|item| item.text()).transpose()?;
    Ok(name.filter(|name| !name.is_empty()))
}

fn flag(body: &RequestFields<'_>, name: &str) -> Result<bool, Invalid> {
    body.get(name).map_or(Ok(false), |item| item.boolean())
}

/// `max_tokens`, by whichever of its names; -1 is how clients say that there is no limit.
fn length(body: &RequestFields<'_>, otherwise: Length) -> Result<Length, Invalid> {
    const NAME: &str = "max_tokens";
    const UNLIMITED: i64 = -1;

    let Some(item) = body.get(NAME) else { return Ok(otherwise) };
    if item.integer(UNLIMITED..=UNLIMITED).is_ok() {
        return Ok(Length::Context);
    }
    let tokens = item.integer(1..=i64::MAX)?;
    Ok(Length::Asked { param: body.written(NAME), tokens, shown: item.shown() })
}

/// `stop`, and what vLLM's clients know as `stop_token_ids`, `ignore_eos` and `min_tokens`.
fn ending(body: &RequestFields<'_>) -> Result<Ending, Invalid> {
    let least =
        |item: Item<'_>| Ok(Least { tokens: item.integer(0..=i64::MAX)?, shown: item.shown() });
    Ok(Ending {
        stops: stops(body)?,
        stop_tokens: stop_tokens::parse(body)?,
        ignore_eos: flag(body, "ignore_eos")?,
        least: body.get("min_tokens").map(least).transpose()?,
    })
}

/// `stop`: up to four texts. Empty ones are how some clients say that there are none.
fn stops(body: &RequestFields<'_>) -> Result<Vec<String>, Invalid> {
    /// OpenAI's limit.
    const STOPS_MAX: usize = 4;
    /// Longest text to look for, in bytes. Every one is compared at every token.
    const STOP_BYTES_MAX: usize = 256;

    let Some(item) = body.get("stop") else { return Ok(vec![]) };
    let stop = |item: &Item<'_>| {
        let text = item.text()?;
        if text.len() <= STOP_BYTES_MAX {
            Ok(text)
        } else {
            Err(item.wrong_value(&format!("a string of at most {STOP_BYTES_MAX} bytes")))
        }
    };
    let mut count = 0;
    let mut stops = if item.is_list() {
        item.list(|one| {
            count += 1;
            if count > STOPS_MAX {
                return Err(item.wrong_value(&format!("at most {STOPS_MAX} strings")));
            }
            stop(&one)
        })?
    } else {
        vec![stop(&item)?]
    };
    stops.retain(|stop| !stop.is_empty());
    Ok(stops)
}

/// `stream` and `stream_options.include_usage`.
fn streaming(
    endpoint: Endpoints,
    body: &RequestFields<'_>,
    unknown: &mut UnknownFields,
) -> Result<(bool, bool), Invalid> {
    let stream = flag(body, "stream")?;
    let Some(options) = body.get("stream_options") else { return Ok((stream, false)) };
    if !stream {
        return Err(options.wrong_value("absent unless stream is true"));
    }
    let options = fields::STREAM_OPTIONS.read(endpoint, options.object()?, unknown)?;
    Ok((stream, flag(&options, "include_usage")?))
}

/// How many of the likeliest tokens to tell.
fn likeliest(item: &Item<'_>) -> Result<u32, Invalid> {
    let count = item.integer(0..=i64::from(Generation::LOGPROBS_MAX))?;
    Ok(u32::try_from(count).expect("the range was checked"))
}

/// `top_logprobs`, which goes with another field that says whether to tell any at all.
fn top_logprobs(body: &RequestFields<'_>, asked: bool, with: &str) -> Result<Option<u32>, Invalid> {
    let Some(item) = body.get("top_logprobs") else { return Ok(asked.then_some(0)) };
    match likeliest(&item)? {
        count if asked => Ok(Some(count)),
        0 => Ok(None),
        _ => Err(item.wrong_value(&format!("absent or 0 unless {with}"))),
    }
}

/// A field that takes these texts; others are features that this host has not.
fn only_text(body: &RequestFields<'_>, name: &str, served: &[&str]) -> Result<(), Invalid> {
    let Some(item) = body.get(name) else { return Ok(()) };
    if item.is_text() && served.contains(&item.text()?.as_str()) {
        return Ok(());
    }
    let served = served.join(" or ");
    Err(Invalid::unsupported(item.path(), &format!("only {served} is"), &item.shown()))
}

/// `response_format` and `text.format`: plain text.
fn only_plain_text(
    endpoint: Endpoints,
    format: Option<Item<'_>>,
    unknown: &mut UnknownFields,
) -> Result<(), Invalid> {
    let Some(format) = format else { return Ok(()) };
    // What the format is says more than what it would need.
    let kind = format.object()?.take("type");
    only_plain(&kind.ok_or_else(|| Invalid::missing(&format!("{}.type", format.path())))?)?;
    fields::FORMAT.read(endpoint, format.object()?, unknown).map(drop)
}

fn only_plain(kind: &Item<'_>) -> Result<(), Invalid> {
    match kind.text()?.as_str() {
        "text" => Ok(()),
        _ => Err(Invalid::unsupported(kind.path(), "only text is", &kind.shown())),
    }
}
