//! Text out of tokens as they come.
//!
//! Every token stands for some bytes ([`Pieces`](crate::pieces::Pieces)); this puts them
//! together and gives out whole characters.
//!
//! # Invariants
//!
//! - What was pushed and flushed, concatenated, goes on where [`TextModel::decode`] of the prompt
//!   leaves off: together they are the text of all tokens. A tokenizer that puts a space in front of a
//!   text puts it in front of the prompt, not of the answer.
//! - A character that begins in the prompt and ends in the answer is the answer's. Of one that never
//!   becomes whole, the prompt has the U+FFFD.
//! - At most three bytes are held back: the beginning of one character. Bytes that cannot be
//!   part of any become U+FFFD at once, as `String::from_utf8_lossy` has it, so a model that
//!   babbles bytes neither stalls the stream nor grows the buffer.

use std::sync::Arc;

use interlock_request::TokenId;

use crate::TextModel;
use crate::assembler::TextAssembler;

/// Turns one sequence's tokens into text, one at a time.
#[derive(Debug)]
pub struct Detokenizer {
    model: Arc<TextModel>,
    text: TextAssembler,
}

impl Detokenizer {
    fn new(model: Arc<TextModel>, prompt: &[TokenId]) -> Self {
        let text = TextAssembler::after(model.pieces(), prompt);
        Self { model, text }
    }

    /// The model whose tokens it knows.
    pub fn model(&self) -> &TextModel {
        &self.model
    }

    /// Takes the next token; the text it completes, which may be empty.
    pub fn push(&mut self, token: TokenId) -> String {
        let mut out = String::new();
        self.text.push(self.model.pieces(), token, &mut out);
        out
    }

    /// The sequence has ended: a character that never became whole is U+FFFD.
    pub fn flush(&mut self) -> String {
        let mut out = String::new();
        self.text.flush(&mut out);
        out
    }
}

impl TextModel {
    /// Starts turning the tokens that follow a prompt into the text that follows the prompt's.
    pub fn detokenizer(self: &Arc<Self>, prompt: &[TokenId]) -> Detokenizer {
        Detokenizer::new(Arc::clone(self), prompt)
    }
}

#[cfg(test)]
mod tests;
