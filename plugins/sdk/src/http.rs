//! Requests to other services, for policies that may be slow. Needs a grant `http:HOST:PORT` for
//! each.
//!
//! In native tests [`Host::answers`](crate::testing::Host::answers) answers.

pub use crate::bindings::asking::interlock::policy::http::{Fault, Request, Response};

#[cfg(target_arch = "wasm32")]
pub use crate::bindings::asking::interlock::policy::http::send;
#[cfg(not(target_arch = "wasm32"))]
pub use crate::testing::http::send;
