//! Between text and token ids, both ways, for one model.
//!
//! [`TextModel`] renders chats and encodes prompts; [`Detokenizer`] turns the engine's
//! tokens back into text as they come; [`StopMatcher`] looks for stop strings in it.
//!
//! # Invariants
//!
//! - Text given out in pieces is the text given out at once: whatever way tokens or text are
//!   cut, the pieces concatenated are equal. Property tests hold both to it.
//! - A prompt has a limit of tokens, and what it costs goes by the limit: one that is too long is
//!   refused as soon as that is certain, mostly by its size or its pairs of bytes alone
//!   (`bounded.rs`). The longest word that may still fit is one of `limit` times the longest token,
//!   which takes `n log n` to merge; [`TextModel::working_bytes`] says what is held meanwhile.
//! - Rendering a chat has limits of steps, size and depth, whatever the template and the messages
//!   are (`chat.rs`). Half a second is still too long for a thread that others wait for: call it
//!   where computing is allowed.
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
//! No HTTP, no MLX, no threads. Which tokens end a generation: a model's files say so, and whoever
//! reads them. No tool calls, no reasoning, no images: those are read from
//! and written as text by whoever knows the client's protocol. No limit on the clock: whoever calls
//! has one. One clock, and it only tells templates the date.

mod assembler;
mod bounded;
mod chat;
mod detokenizer;
mod error;
mod fuel;
mod gguf;
mod jinja;
mod metered;
mod model;
mod namespace;
mod pieces;
mod python;
mod sim;
mod stop;
#[cfg(test)]
mod tiny;

pub use chat::{ChatOptions, Message, PromptEnd, TemplateVariables, VariablesError};
pub use detokenizer::Detokenizer;
pub use error::{RenderError, RenderLimit, TextError};
pub use gguf::GgufError;
pub use interlock_model_files::{GgufTokenizer, TextParts, TokenizerSource};
pub use model::{RENDER_BYTES_MAX, STACK_BYTES, TextModel};
pub use pieces::DecoderError;
pub use stop::{StopMatcher, Stopped};
