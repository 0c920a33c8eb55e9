//! The body of the request at hand, by JSON Pointer. Needs the grant `content:read` or
//! `content:write`, for all of it or for what is below a pointer.
//!
//! In native tests it is [`Host::body`](crate::testing::Host::body)'s.

pub use crate::bindings::reading::interlock::policy::content::Fault;

#[cfg(target_arch = "wasm32")]
pub use crate::bindings::reading::interlock::policy::content::{get, remove, set};
#[cfg(not(target_arch = "wasm32"))]
pub use crate::testing::content::{get, remove, set};

/// The text at a pointer; `None`: nothing is there, or it is no text.
///
/// # Errors
///
/// As [`get`]'s.
pub fn text(pointer: &str) -> Result<Option<String>, Fault> {
    Ok(get(pointer)?.and_then(|json| serde_json::from_str(&json).ok()))
}
