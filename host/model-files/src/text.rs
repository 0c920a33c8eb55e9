//! The text side of a model's files: plain data, which one crate reads and another builds from.

use interlock_request::TokenId;
use serde_json::{Map, Value};

/// What a model's files say about its text. Plain data, which may go to another thread.
#[derive(Debug, Clone, PartialEq)]
pub struct TextParts {
    /// Where the tokenizer is built from.
    pub tokenizer: TokenizerSource,
    /// The Jinja template that turns a chat into one text; base models have none.
    pub chat_template: Option<String>,
    /// What a template may write by a name, as transformers hands it over: `bos_token`,
    /// `eos_token`, `pad_token` and others, each a text, and lists of texts. What has no name here is
    /// undefined in the template. A GGUF tokenizer that puts the first two around a plain prompt
    /// finds them here as well.
    pub special_tokens: Map<String, Value>,
    /// The tokens that end a generation, whatever the template writes. Empty if the files do not say.
    pub eos: Vec<TokenId>,
}

/// Where a tokenizer comes from.
#[derive(Debug, Clone, PartialEq)]
pub enum TokenizerSource {
    /// The contents of a `tokenizer.json`.
    Json(Vec<u8>),
    /// The tokenizer metadata of a GGUF file.
    Gguf(GgufTokenizer),
    /// No file: the simulated model's tokenizer, one token per byte. The other parts are ignored,
    /// since the simulated model has its own.
    Sim,
}

/// The `tokenizer.ggml.*` metadata of one GGUF file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GgufTokenizer {
    /// `tokenizer.ggml.model`: `gpt2` (byte-level BPE) or `llama` (SentencePiece), say.
    pub model: String,
    /// `tokenizer.ggml.pre`: how text is split before merging; absent in old files.
    pub pre: Option<String>,
    /// `tokenizer.ggml.tokens`: each token's spelling, by id.
    pub tokens: Vec<String>,
    /// `tokenizer.ggml.token_type`, by id: 1 normal, 2 unknown, 3 control, 4 user-defined, 6 byte.
    /// Empty means that all are normal.
    pub token_types: Vec<i32>,
    /// `tokenizer.ggml.scores`, by id; `llama` needs them.
    pub scores: Vec<f32>,
    /// `tokenizer.ggml.merges`, best first; `gpt2` needs them.
    pub merges: Vec<String>,
    /// `tokenizer.ggml.add_bos_token`: whether a plain prompt begins with bos.
    pub add_bos: Option<bool>,
    /// `tokenizer.ggml.add_eos_token`: whether a plain prompt ends with eos.
    pub add_eos: Option<bool>,
    /// `tokenizer.ggml.add_space_prefix`: does `llama` put a space in front of a text? It does unless
    /// this says no.
    pub add_space_prefix: Option<bool>,
}
