//! The one thread that owns the model, and the handle that everyone else holds.
mod forward;
pub use forward::{Forward, ModelShape, PassFailed};
