//! A simulated model: tokens are a pure function of history, time and failures are settings.
//!
//! Tests, benches and the policy simulator run the real engine loop and the real server on it, so
//! everything but the arithmetic is what production runs.
//!
//! # Invariants
//!
//! - The same prompt gives the same tokens, alone or in a batch; with a temperature, the same prompt and
//!   seed do.
//! - A forward pass takes the time that its settings say, and fails when they say so.
//!
//! # Not here
//!
//! No text: `interlock-text` has the tokenizer that goes with these ids (bytes, and a few
//! specials). No randomness: a request without a seed samples as if its seed were 0.

mod device;
mod gate;
mod logprobs;
mod model;
mod settings;

pub use device::{Device, RowKind, RowSeen};
pub use gate::Gate;
pub use logprobs::logprobs;
pub use model::SimModel;
pub use settings::{BadSettings, SimSettings};
