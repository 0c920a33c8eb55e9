//! What outlives an instance. Needs the grant `state`.
//!
//! Each call is atomic, and all instances of a policy see the same. In native tests the store is
//! [`testing`](crate::testing)'s, with a clock that the test sets.

use crate::Span;

pub use crate::bindings::remembering::interlock::policy::state::{
    Bucket, Budget, Entered, Fault, Reservation, Reserved, Taken,
};

#[cfg(target_arch = "wasm32")]
pub use crate::bindings::remembering::interlock::policy::state::{
    compare_and_set, delete, enter, extend, get, increment, leave, reserve, set, settle, take,
};
#[cfg(not(target_arch = "wasm32"))]
pub use crate::testing::state::{
    compare_and_set, delete, enter, extend, get, increment, leave, reserve, set, settle, take,
};

impl Bucket {
    /// So many a minute, all of them at once if need be.
    pub fn per_minute(many: u32) -> Self {
        Self { capacity: many.into(), refill_per_second: f64::from(many) / 60.0 }
    }
}

impl Budget {
    /// So much in each window of this length.
    pub fn each(window: Span, limit: impl Into<f64>) -> Self {
        Self { limit: limit.into(), window: window.micros }
    }
}
