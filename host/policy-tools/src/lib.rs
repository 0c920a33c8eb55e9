//! An author's tools for a policy: cases, simulations, replays and measurements.
//!
//! | module | what it does |
//! | --- | --- |
//! | [`cases`] | facts in, the decision that is expected |
//! | [`simulation`], [`workload`] | a day's traffic on the host's own code, with a clock that is paused |
//! | [`replay`] | recorded traffic before another policy |
//! | [`comparison`] | recorded traffic before the policies of then and one more |
//! | [`mod@bench`] | what a call costs |
//!
//! # Not here
//!
//! No terminal and no flags: `cli` has them. No policy of its own, and no word that policies and
//! the host do not use between themselves.

pub mod bench;
mod case_time;
pub mod cases;
pub mod clock;
pub mod comparison;
pub mod differences;
pub mod fixtures;
pub mod json;
pub mod replay;
mod rng;
pub mod simulation;
pub mod table;
pub mod workload;
