//! Why a model's text side cannot be made, and why a prompt does not become tokens.

use crate::{DecoderError, GgufError};

/// Why a model's text side could not be made. All are faults of the model's files, or of what
/// we support of them; none goes away by retrying.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// `tokenizer.json` is not one.
    #[error("tokenizer.json is not valid: {0}")]
    Json(String),
    /// The GGUF file's tokenizer is not one that we can build.
    #[error("tokenizer in the GGUF file: {0}")]
    Gguf(#[from] GgufError),
    /// The tokenizer turns tokens into text in a way that we do not know.
    #[error("tokenizer: {0}")]
    Decoder(#[from] DecoderError),
    /// The chat template has a syntax error.
    #[error("chat template: {0}")]
    Template(String),
    /// The tokenizer puts a token around plain prompts that it does not have.
    #[error("{name} {token:?} is not in the vocabulary")]
    NotInVocabulary {
        /// The name of the token: `bos_token` or `eos_token`.
        name: &'static str,
        /// The spelling of the token.
        token: String,
    },
}

/// Why a prompt did not become tokens.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RenderError {
    /// A base model: it continues texts and knows no roles. The client can do that.
    #[error("this model has no chat template: /v1/completions works, chat does not")]
    NoTemplate,
    /// The template called `raise_exception`; its words are for the client.
    #[error("{0}")]
    Refused(String),
    /// The prompt has more tokens than the caller takes. How many is not known: counting ended
    /// as soon as that was certain.
    #[error("the prompt has at least {tokens_min} tokens, more than {tokens_max}")]
    TooLong {
        /// The prompt has at least so many tokens, and may have many more.
        tokens_min: usize,
        /// The limit that the caller set.
        tokens_max: usize,
    },
    /// The last message was to be continued, and what the template made of the chat does not have it.
    #[error(
        "the last message cannot be continued (continue_final_message): the model's chat template \
         leaves its text out, or changes it"
    )]
    NotContinued,
    /// The template did not come to an end within its limits. Fewer or shorter messages may.
    #[error("the model's chat template needs more than {0} for this chat")]
    TooCostly(RenderLimit),
    /// The template failed: on these messages, or on any. The text is for our log as well.
    #[error("the model's chat template failed: {0}")]
    Template(String),
    /// The tokenizer failed on this text.
    #[error("the model's tokenizer failed: {0}")]
    Tokenizer(String),
}

/// A limit of rendering that a template met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RenderLimit {
    /// The limit of steps: instructions, items looked at, and bytes moved.
    #[error("{0} steps")]
    Steps(u64),
    /// The limit of nesting: lists in lists, or calls in calls.
    #[error("{0} levels of nesting")]
    Depth(usize),
}
