//! One model's text side: its tokenizer, its chat template, its special tokens.

use std::fmt;

use interlock_model_files::{TextParts, TokenizerSource};
use interlock_request::TokenId;
use serde_json::Value;
use tokenizers::Tokenizer;

use crate::assembler::TextAssembler;
use crate::bounded::Bounded;
use crate::chat::{ChatOptions, ChatTemplate};
use crate::gguf::{self, BuiltTokenizer};
use crate::pieces::Pieces;
use crate::{Message, RenderError, StopMatcher, TextError, sim};

/// The text side of one model. Cheap to share: put it behind an `Arc`.
pub struct TextModel {
    encoder: Encoder,
    pieces: Pieces,
    eos: Vec<TokenId>,
    /// The spellings of the special tokens.
    names: Vec<String>,
}

enum Encoder {
    /// What `tokenizer.json` or GGUF describe, with what we add around a plain prompt. The
    /// former's own post-processor adds its special tokens; the latter has none.
    Real {
        tokenizer: Bounded,
        prefix: Option<TokenId>,
        suffix: Option<TokenId>,
        template: Option<Box<ChatTemplate>>,
    },
    Sim,
}

/// The library panics at some files that are not what it expects within a decoder.
fn read_tokenizer(json: &[u8]) -> Result<Tokenizer, TextError> {
    let read = std::panic::catch_unwind(|| Tokenizer::from_bytes(json));
    match read {
        Ok(read) => read.map_err(|error| TextError::Json(error.to_string())),
        Err(_) => Err(TextError::Json("a part of it is no JSON that could be read".to_owned())),
    }
}

impl TextModel {
    /// Builds tokenizer and template, once per model.
    ///
    /// # Errors
    ///
    /// When the model's files are broken or ask for what we do not support; see [`TextError`].
    pub fn new(parts: TextParts) -> Result<Self, TextError> {
        let TextParts { tokenizer, chat_template, special_tokens, eos } = parts;
        let BuiltTokenizer { mut tokenizer, add_bos, add_eos } = match tokenizer {
            TokenizerSource::Sim => return Ok(Self::simulated()),
            TokenizerSource::Gguf(gguf) => gguf::build(&gguf)?,
            TokenizerSource::Json(json) => {
                BuiltTokenizer { tokenizer: read_tokenizer(&json)?, add_bos: false, add_eos: false }
            }
        };
        // Some files were saved with the settings of their training: a prompt cut to 512
        // tokens without a word would be a wrong answer.
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|error| TextError::Json(error.to_string()))?;
        let pieces = Pieces::of(&tokenizer)?;
        let around = |adds: bool, name: &'static str| {
            let token = special_tokens.get(name).and_then(Value::as_str).filter(|_| adds);
            let id = |token: &str| match tokenizer.token_to_id(token) {
                Some(id) => Ok(id),
                None => Err(TextError::NotInVocabulary { name, token: token.to_owned() }),
            };
            token.map(id).transpose()
        };
        let (prefix, suffix) = (around(add_bos, "bos_token")?, around(add_eos, "eos_token")?);
        let template = chat_template
            .map(|source| ChatTemplate::new(&source, &special_tokens))
            .transpose()?
            .map(Box::new);
        let names = special_names(&tokenizer);
        let tokenizer = Bounded::new(Box::new(tokenizer));
        let encoder = Encoder::Real { tokenizer, prefix, suffix, template };
        Ok(Self { encoder, pieces, eos, names })
    }

    fn simulated() -> Self {
        let names = (0..sim::VOCABULARY).map(sim::name).filter(|name| !name.is_empty());
        let names = names.map(str::to_owned).collect();
        Self { encoder: Encoder::Sim, pieces: sim::pieces(), eos: vec![sim::EOS], names }
    }

    /// One more than the highest token id. A model's logits may be padded beyond it.
    pub fn vocabulary(&self) -> u32 {
        self.pieces.vocabulary()
    }

    /// The tokens that end a generation.
    pub fn eos(&self) -> &[TokenId] {
        &self.eos
    }

    /// Renders the chat template and tokenizes what comes out. The template writes bos itself; none
    /// is added.
    ///
    /// Call it on a thread with [`STACK_BYTES`] of stack, where computing is allowed.
    ///
    /// # Errors
    ///
    /// When there is no template, it refuses these messages, fails or meets a limit, it leaves out
    /// the message that is to be continued, or the prompt has more than `tokens_max` tokens.
    pub fn render_chat(
        &self,
        messages: &[Message],
        options: &ChatOptions,
        tokens_max: usize,
    ) -> Result<Vec<TokenId>, RenderError> {
        match &self.encoder {
            Encoder::Sim => sim::render(messages, options.end, tokens_max),
            Encoder::Real { template: None, .. } => Err(RenderError::NoTemplate),
            Encoder::Real { template: Some(template), tokenizer, .. } => {
                let bytes_max = tokenizer.bytes_max(tokens_max);
                let text = template.render(messages, options, tokens_max, bytes_max)?;
                tokenizer.encode(&text, false, tokens_max)
            }
        }
    }

    /// Tokenizes a plain prompt, with the special tokens that the model's tokenizer puts
    /// around one.
    ///
    /// # Errors
    ///
    /// When it has more than `tokens_max` tokens, or the tokenizer fails on this text, which
    /// takes some ten megabytes of spaces.
    pub fn encode(&self, text: &str, tokens_max: usize) -> Result<Vec<TokenId>, RenderError> {
        match &self.encoder {
            Encoder::Sim => sim::encode(text, tokens_max),
            Encoder::Real { tokenizer, prefix, suffix, .. } => {
                let around = usize::from(prefix.is_some()) + usize::from(suffix.is_some());
                let room = tokens_max.saturating_sub(around);
                let ids = tokenizer.encode(text, true, room).map_err(|error| match error {
                    RenderError::TooLong { tokens_min, .. } => {
                        RenderError::TooLong { tokens_min: tokens_min + around, tokens_max }
                    }
                    error => error,
                })?;
                let ids: Vec<_> = prefix.iter().copied().chain(ids).chain(*suffix).collect();
                match ids.len() {
                    tokens_min if tokens_min > tokens_max => {
                        Err(RenderError::TooLong { tokens_min, tokens_max })
                    }
                    _ => Ok(ids),
                }
            }
        }
    }

    /// The most memory that [`Self::encode`] takes for a moment, beside what it is given and
    /// what it returns. [`Self::render_chat`] takes as much, and for the template at most
    /// [`RENDER_BYTES_MAX`].
    pub fn working_bytes(&self, text_bytes: usize, tokens_max: usize) -> usize {
        match &self.encoder {
            Encoder::Sim => 0,
            Encoder::Real { tokenizer, .. } => tokenizer.working_bytes(text_bytes, tokens_max),
        }
    }

    /// The text of these tokens, special ones left out.
    pub fn decode(&self, ids: &[TokenId]) -> String {
        let mut text = TextAssembler::new(&self.pieces);
        let mut out = String::new();
        for &id in ids {
            text.push(&self.pieces, id, &mut out);
        }
        text.flush(&mut out);
        out
    }

    /// Watches one answer for these stop strings, which may hold the names of special tokens.
    pub fn stop_matcher(&self, stops: Vec<String>) -> StopMatcher {
        let holds_special = |stop: &str| self.names.iter().any(|name| stop.contains(name));
        StopMatcher::new(stops, holds_special)
    }

    /// The name of a special token, which has no text.
    pub fn special_name(&self, id: TokenId) -> Option<String> {
        let name = match &self.encoder {
            _ if !self.pieces.bytes(id).is_empty() => return None,
            Encoder::Sim => sim::name(id).to_owned(),
            Encoder::Real { tokenizer, .. } => {
                tokenizer.tokenizer().id_to_token(id).unwrap_or_default()
            }
        };
        (!name.is_empty()).then_some(name)
    }

    /// The bytes that a token stands for, which may be part of a character only. Of a special
    /// token, which stands for none, its name; nothing for holes in the vocabulary and beyond it.
    pub fn token_bytes(&self, id: TokenId) -> Vec<u8> {
        match self.special_name(id) {
            Some(name) => name.into_bytes(),
            None => self.pieces.bytes(id).to_vec(),
        }
    }

    pub(crate) fn pieces(&self) -> &Pieces {
        &self.pieces
    }
}

/// How special tokens are spelled where they are looked for in a stop string.
fn special_names(tokenizer: &Tokenizer) -> Vec<String> {
    let added = tokenizer.get_added_tokens_decoder();
    let special = added.into_values().filter(|token| token.special && !token.content.is_empty());
    special.map(|token| token.content).collect()
}

/// The most memory that a template may make use of: the messages of an honest one, a few times.
pub const RENDER_BYTES_MAX: usize = 64 * crate::chat::FUEL as usize;

/// The stack that [`TextModel::render_chat`] and [`TextModel::encode`] may need: templates nest.
pub const STACK_BYTES: usize = 8 * 1024 * 1024;

// A tokenizer's own is megabytes long.
impl fmt::Debug for TextModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TextModel")
            .field("vocabulary", &self.vocabulary())
            .field("eos", &self.eos)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
