//! The APIs: a folder for each, which parses its requests and writes its answers, whole and
//! streamed.
//!
//! Each parses its own body into one [`ApiRequest`]; from there on nobody needs to know which it
//! was, except the [`ResponseWriter`] that answers. Which fields there are, and what becomes of
//! those that are not read, is in `fields`. What an API adds is one variant of [`ResponseFormat`].
//!
//! # Not here
//!
//! Routes and the host: what is here turns bytes into values and values into bytes. What depends on
//! the model (its context, its vocabulary) is checked in `admit`, where the model is known.

mod chat;
mod common_fields;
mod completions;
mod error;
mod fields;
mod json;
mod logprobs;
#[cfg(test)]
mod parsing_tests;
mod responses;
mod sampling;
mod sse_frames;
mod sse_stream;
mod stop_tokens;
mod template;
mod writer;
#[cfg(test)]
mod writing_tests;

use std::hash::Hasher;

use interlock_request::{Endpoint, TokenId};
use interlock_text::{ChatOptions, Message};

use crate::answer_state::AnswerState;
use crate::failure::InvalidRequest;
pub(crate) use error::{ApiError, error_json, error_response};
pub(crate) use fields::UnknownFields;
pub use fields::request_fields_md;
use json::JsonObject;
pub(crate) use responses::RequestEcho;
pub(crate) use sampling::SamplingParams;
pub(crate) use sse_stream::SseStream;
pub(crate) use writer::{ResponseHead, ResponseWriter};

/// A well-formed request.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ApiRequest {
    /// The model's name, as the client wrote it; `None`: it leaves the choice to the host.
    pub(crate) model: Option<String>,
    pub(crate) input: PromptInput,
    /// How to draw tokens, as far as it says so.
    pub(crate) sampling: SamplingParams,
    /// How many tokens to generate at most.
    pub(crate) max_tokens: MaxTokens,
    /// What else ends the answer, and what does not.
    pub(crate) stop: StopRules,
    /// Tell how likely tokens were, and this many of the likeliest.
    pub(crate) logprobs: Option<u32>,
    /// Does the client want text as it comes?
    pub(crate) stream: bool,
    /// Will the client ask for the answer later?
    pub(crate) background: bool,
    /// What is particular to the endpoint.
    pub(crate) format: ResponseFormat,
    /// Fields that are in no table, and were ignored.
    pub(crate) unknown: UnknownFields,
}

/// What to continue.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum PromptInput {
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

impl Default for PromptInput {
    /// Nothing: what is left where they were taken.
    fn default() -> Self {
        Self::Text(String::new())
    }
}

impl PromptInput {
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
pub(crate) enum MaxTokens {
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
pub(crate) struct StopRules {
    /// Texts that end it. They may hold the names of special tokens.
    pub(crate) stops: Vec<String>,
    /// Tokens that end it, beside the model's own. They may be outside its vocabulary.
    pub(crate) stop_tokens: Vec<TokenId>,
    /// Go on where the model would end.
    pub(crate) ignore_eos: bool,
    /// Nothing but the length ends it before this many tokens.
    pub(crate) min_tokens: Option<MinTokens>,
}

/// `min_tokens`
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MinTokens {
    /// May be beyond the context.
    pub(crate) tokens: i64,
    /// The number as the client wrote it.
    pub(crate) shown: String,
}

/// What is particular to the endpoint.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum ResponseFormat {
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
    Responses(Box<RequestEcho>),
}

impl ResponseFormat {
    /// About as much memory as the client's own words in it take.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Chat { .. } | Self::Completions { .. } => 0,
            Self::Responses(echo) => echo.bytes(),
        }
    }
}

impl ApiRequest {
    /// How many tokens the client asked for at most, if it did.
    pub(crate) fn tokens_asked(&self) -> Option<u32> {
        match &self.max_tokens {
            MaxTokens::Asked { tokens, .. } => Some(u32::try_from(*tokens).unwrap_or(u32::MAX)),
            MaxTokens::Default(_) | MaxTokens::Context => None,
        }
    }

    /// Reads a body.
    ///
    /// # Errors
    ///
    /// When it is no JSON, or a field is not what this endpoint takes.
    pub(crate) fn parse(endpoint: Endpoint, body: &[u8]) -> Result<Self, InvalidRequest> {
        let body =
            std::str::from_utf8(body).map_err(|e| InvalidRequest::not_utf8(e.valid_up_to()))?;
        let body = JsonObject::parse(body)?;
        match endpoint {
            Endpoint::Chat => chat::parse(body),
            Endpoint::Completions => completions::parse(body),
            Endpoint::Responses => responses::parse(body),
        }
    }
}

/// The writer of the endpoint that this format belongs to.
pub(crate) fn writer(format: ResponseFormat, head: ResponseHead) -> Box<dyn ResponseWriter> {
    match format {
        ResponseFormat::Chat { include_usage } => {
            Box::new(chat::ChatWriter::new(head, include_usage))
        }
        ResponseFormat::Completions { include_usage } => {
            Box::new(completions::CompletionsWriter::new(head, include_usage))
        }
        ResponseFormat::Responses(echo) => Box::new(responses::ResponsesWriter::new(head, *echo)),
    }
}

/// A stored response as its client sees it. Other endpoints have no such object: it is empty.
pub(crate) fn stored_response_json(
    format: &ResponseFormat,
    head: &ResponseHead,
    state: &AnswerState,
) -> Vec<u8> {
    match format {
        ResponseFormat::Responses(echo) => responses::shown(head.clone(), (**echo).clone(), state),
        ResponseFormat::Chat { .. } | ResponseFormat::Completions { .. } => vec![],
    }
}
