//! What the text side needs of a model's files: plain data, that may go to another thread.

use interlock_request::TokenId;
use serde_json::{Map, Value};

/// Where a model's tokenizer and chat template come from.
#[derive(Debug, Clone, PartialEq)]
pub struct TextSource {
    /// The tokenizer.
    pub tokenizer: TokenizerSource,
    /// A Jinja template, if the model has one.
    pub chat_template: Option<String>,
    /// What a template may write by a name (`bos_token`, ..): texts, or lists of texts.
    pub special_tokens: Map<String, Value>,
    /// End a text. Empty if the files do not say.
    pub eos: Vec<TokenId>,
}

/// A tokenizer as a model's files have it.
#[derive(Debug, Clone, PartialEq)]
pub enum TokenizerSource {
    /// The bytes of `tokenizer.json`.
    Json(Vec<u8>),
    /// GGUF's `tokenizer.ggml.*` metadata.
    Gguf {
        /// `model`: `gpt2` (byte-level BPE) or `llama` (SentencePiece), say.
        model: String,
        /// `pre`: how text is split before merging.
        pre: Option<String>,
        /// `tokens`, by id.
        tokens: Vec<String>,
        /// `token_type`, by id: 1 normal, 2 unknown, 3 control, 4 user-defined, 6 byte.
        token_types: Vec<i32>,
        /// `scores`, by id; SentencePiece only.
        scores: Vec<f32>,
        /// `merges`, best first; BPE only.
        merges: Vec<String>,
        /// `add_bos_token`.
        add_bos: Option<bool>,
        /// `add_eos_token`.
        add_eos: Option<bool>,
        /// `add_space_prefix`; SentencePiece only.
        add_space_prefix: Option<bool>,
    },
}
