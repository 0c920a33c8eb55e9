//! The vocabulary: what a request asks for, what it produces and how it can end.
//!
//! Every other crate speaks these words; this one speaks nobody else's.
//!
//! # Not here
//!
//! No behaviour beyond what a value can say of itself: no I/O, no clock, no HTTP, no MLX.

mod ending;
mod generation;
mod names;
mod secret;
mod size;

pub use ending::{CancelCause, Deadline, Fault, FaultKind, Finish, Outcome, Stage, Usage};
pub use generation::{
    Deadlines, DisconnectAction, DrainLimits, Drawn, Generation, Logprobs, Penalties, Priority,
    Sampling, SamplingDefaults,
};
pub use names::{BadRequestId, Endpoint, ModelId, RequestId, TokenId};
pub use secret::{Secret, UrlWithLogin, is_secret, without_login, without_logins};
pub use size::{BadByteSize, ByteSize};
