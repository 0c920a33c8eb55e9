//! The simulated model's vocabulary: bytes, and markers that no text can spell.
//!
//! | id | token |
//! | --- | --- |
//! | 0 to 255 | the byte of that value |
//! | 256 | `<eos>` |
//! | 257 | `<bos>`, first in every prompt |
//! | 258, 259, 260 | `<user>`, `<assistant>`, `<system>`: a message of that role begins |
//! | 261 | `<end>`: the message ends |
//! | 262 to 511 | nothing |
//!
//! So one token is one byte, a prompt's length is known without running anything, and a
//! multi-byte character always comes in several tokens.

use interlock_request::TokenId;

use crate::pieces::Pieces;
use crate::{Message, PromptEnd, RenderError};

pub(crate) const VOCABULARY: u32 = 512;
pub(crate) const EOS: TokenId = 256;
const BOS: TokenId = 257;
const USER: TokenId = 258;
const ASSISTANT: TokenId = 259;
const SYSTEM: TokenId = 260;
const END: TokenId = 261;

pub(crate) fn pieces() -> Pieces {
    let mut pieces = Pieces::new(0, b"");
    for byte in 0..=u8::MAX {
        pieces.add(&[byte]);
    }
    for _ in 256..VOCABULARY {
        pieces.add(&[]);
    }
    pieces
}

pub(crate) fn encode(text: &str, tokens_max: usize) -> Result<Vec<TokenId>, RenderError> {
    at_most(tokens_max, 1 + text.len())?;
    Ok(std::iter::once(BOS).chain(bytes(text)).collect())
}

/// `<bos>`, each message as role, bytes, `<end>`, then `<assistant>` for the answer. A last message
/// that is continued has no `<end>`.
pub(crate) fn render(
    messages: &[Message],
    end: PromptEnd,
    tokens_max: usize,
) -> Result<Vec<TokenId>, RenderError> {
    let tokens = messages.iter().map(|message| 2 + message.content.len());
    at_most(tokens_max, 2 + tokens.sum::<usize>())?;
    let mut ids = vec![BOS];
    for message in messages {
        ids.push(role(&message.role));
        ids.extend(bytes(&message.content));
        ids.push(END);
    }
    match end {
        PromptEnd::GenerationPrompt => ids.push(ASSISTANT),
        PromptEnd::LastMessage => {}
        PromptEnd::WithinLastMessage => _ = ids.pop(),
    }
    Ok(ids)
}

fn at_most(tokens_max: usize, tokens: usize) -> Result<(), RenderError> {
    match tokens > tokens_max {
        true => Err(RenderError::TooLong { tokens_min: tokens, tokens_max }),
        false => Ok(()),
    }
}

/// How a marker is called; nothing for other ids.
pub(crate) fn name(id: TokenId) -> &'static str {
    match id {
        EOS => "<eos>",
        BOS => "<bos>",
        USER => "<user>",
        ASSISTANT => "<assistant>",
        SYSTEM => "<system>",
        END => "<end>",
        _ => "",
    }
}

/// The token of a role. Every role other than the model and its operator counts as the user, tools too.
fn role(name: &str) -> TokenId {
    match name {
        "assistant" => ASSISTANT,
        "system" | "developer" => SYSTEM,
        _ => USER,
    }
}

fn bytes(text: &str) -> impl Iterator<Item = TokenId> {
    text.bytes().map(TokenId::from)
}
