//! The rules that `guard`, `disconnect-guard` and `timeouts` share: how long the parts of a request
//! may take ([`Deadlines`]), and what becomes of a request whose client leaves ([`Departures`]).
//!
//! Both are read from settings, and both leave a field of the plan to other policies where the
//! settings do not say anything about it.
//!
//! # Not here
//!
//! No defaults: what holds where nobody said anything is `guard`'s to say. No priorities, which
//! `guard` has and neither of the others.

mod deadlines;
mod departures;

pub use deadlines::{Deadlines, Extend, Growing};
pub use departures::{Departure, Departures, OnDisconnect};
use interlock_policy_sdk::Span;

/// The keys of those of these times that are 0, as problems.
fn zeros<'a>(spans: impl IntoIterator<Item = (&'a str, Span)>) -> impl Iterator<Item = String> {
    let zeros = spans.into_iter().filter(|(_, span)| *span == Span::ZERO);
    zeros.map(|(key, _)| format!("{key} must exceed 0s, got 0s"))
}
