//! Between text and token ids, both ways, for one model.
//!
//! [`TextModel`] renders chats and encodes prompts; [`Detokenizer`] turns the engine's
//! tokens back into text as they come; [`StopMatcher`] looks for stop strings in it.
//!
//! # Invariants
//!
//! - Text given out in pieces is the text given out at once: whatever way tokens or text are
//!   cut, the pieces concatenated are equal. Property tests hold both to it.
//! - Nothing costs more than `n log n` in the length of its input, and rendering a chat has a
//!   budget of steps, so no message holds a thread for long. Measured (release, two busy
//!   cores, SmolLM2's vocabulary; 1 MB of letters, spaces, digits, emoji, newlines or text):
//!   0.4 to 2.7 s to encode, four to five times what 256 KB take; 10 to 70 ms to decode. That
//!   is too long for a thread that others wait for: call it where blocking is allowed.
//!
//! # Special tokens in a message are special tokens
//!
//! A message that contains `<|im_end|>` ends its turn: the rendered chat is tokenized as one
//! text with special tokens parsed, as transformers and vLLM do, because the template's own
//! markers are text too. The consequence: whoever may write a message's content may also
//! write what looks to the model like another role's message. Roles are a convention between
//! clients and model, never a protection; a policy that must keep users from it can refuse
//! such content. The simulated model is the exception: its markers have no spelling.
//!
//! # Not here
//!
//! No HTTP, no MLX, no threads. No tool calls, no reasoning, no images: those are read from
//! and written as text by whoever knows the client's protocol. No limit on a text's length:
//! whoever reads the bytes bounds them. One clock, and it only tells templates the date.

mod bounded;
mod chat;
mod detokenizer;
mod gguf;
mod metered;
mod model;
mod pieces;
mod python;
mod sim;
mod stop;
#[cfg(test)]
mod tiny;

pub use chat::Message;
pub use detokenizer::Detokenizer;
pub use gguf::{GgufError, GgufTokenizer};
pub use model::{
    RenderError, RenderLimit, STACK_BYTES, TextError, TextModel, TextParts, TokenizerSource,
};
pub use pieces::DecoderError;
pub use stop::{StopMatcher, Stopped};
