//! How likely tokens were, as each endpoint tells it.
//!
//! A token may be part of a character only. Chat and responses then show what a decoder makes of
//! it, U+FFFD, beside its exact bytes. Completions have no place for bytes, and use texts as keys:
//! there it is spelled `bytes:\xe2\x82`, as OpenAI does.

use interlock_request::TokenId;
use interlock_text::TextModel;
use serde::{Serialize, Serializer};

use crate::chunks::TokenLogprob;

/// Of what can never be drawn. JSON knows no infinity; this is OpenAI's number for it.
const NEVER: f32 = -9999.0;

/// Chat's and responses' entry for one token of the answer.
#[derive(Serialize)]
pub(super) struct LogprobEntry {
    #[serde(flatten)]
    drawn: TokenWithLogprob,
    top_logprobs: Vec<TokenWithLogprob>,
}

/// A token and how likely it was.
#[derive(Serialize)]
struct TokenWithLogprob {
    token: String,
    logprob: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes: Option<Vec<u8>>,
}

impl TokenWithLogprob {
    fn new(model: &TextModel, token: TokenId, logprob: f32) -> Self {
        let bytes = model.token_bytes(token);
        let token = String::from_utf8_lossy(&bytes).into_owned();
        Self { token, logprob: finite(logprob), bytes: Some(bytes) }
    }
}

impl LogprobEntry {
    fn new(model: &TextModel, logprob: &TokenLogprob) -> Self {
        let likely = |token, logprob| TokenWithLogprob::new(model, token, logprob);
        let top = logprob.logprobs.top.iter();
        Self {
            drawn: likely(logprob.token, logprob.logprobs.drawn),
            top_logprobs: top.map(|&(token, logprob)| likely(token, logprob)).collect(),
        }
    }

    /// An entry for each of these tokens.
    pub(super) fn each(model: &TextModel, tokens: &[TokenLogprob]) -> Vec<Self> {
        tokens.iter().map(|logprob| Self::new(model, logprob)).collect()
    }

    /// As [`Self::each`], for an event about text, whose entries have no bytes in OpenAI's API.
    pub(super) fn each_without_bytes(model: &TextModel, tokens: &[TokenLogprob]) -> Vec<Self> {
        let mut each = Self::each(model, tokens);
        for one in &mut each {
            one.drawn.bytes = None;
            one.top_logprobs.iter_mut().for_each(|likely| likely.bytes = None);
        }
        each
    }
}

/// Completions' lists, all of the same length.
#[derive(Serialize)]
pub(super) struct LogprobColumns {
    tokens: Vec<String>,
    token_logprobs: Vec<f32>,
    /// Null when only the tokens' own were asked for.
    top_logprobs: Option<Vec<TopLogprobs>>,
    /// Where each token begins in the answer's text, in characters.
    text_offset: Vec<usize>,
}

/// The likeliest tokens, likeliest first, and the drawn one if it is not among them: up to one
/// more than were asked for.
struct TopLogprobs(Vec<(String, f32)>);

impl LogprobColumns {
    pub(super) fn new(model: &TextModel, tokens: &[TokenLogprob]) -> Self {
        let tops = tokens.iter().map(|logprob| TopLogprobs::new(model, logprob)).collect();
        let any = tokens.iter().any(|logprob| !logprob.logprobs.top.is_empty());
        Self {
            tokens: tokens.iter().map(|logprob| spelled(model, logprob.token)).collect(),
            token_logprobs: tokens.iter().map(|logprob| finite(logprob.logprobs.drawn)).collect(),
            top_logprobs: any.then_some(tops),
            text_offset: tokens.iter().map(|logprob| logprob.at).collect(),
        }
    }
}

impl TopLogprobs {
    fn new(model: &TextModel, logprob: &TokenLogprob) -> Self {
        let mut top: Vec<(String, f32)> = Vec::with_capacity(logprob.logprobs.top.len() + 1);
        let drawn = (logprob.token, logprob.logprobs.drawn);
        for &(token, logprob) in logprob.logprobs.top.iter().chain([&drawn]) {
            let text = spelled(model, token);
            // Of tokens that are spelled alike, the likelier is told: keys are unique.
            if top.iter().all(|(known, _)| *known != text) {
                top.push((text, finite(logprob)));
            }
        }
        Self(top)
    }
}

impl Serialize for TopLogprobs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(text, logprob)| (text, logprob)))
    }
}

fn spelled(model: &TextModel, token: TokenId) -> String {
    String::from_utf8(model.token_bytes(token)).unwrap_or_else(|error| {
        let bytes = error.as_bytes().iter().map(|byte| format!("\\x{byte:02x}"));
        format!("bytes:{}", bytes.collect::<String>())
    })
}

fn finite(logprob: f32) -> f32 {
    logprob.max(NEVER)
}
