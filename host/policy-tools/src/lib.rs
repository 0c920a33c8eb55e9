//! A policy before its first night: cases, simulations, replays and measurements.
//!
//! | module | what it does |
//! | --- | --- |
//! | [`cases`] | facts in, the decision that is expected |
//! | [`sim`], [`workload`] | a day's traffic on the host's own code, with a clock that is paused |
//! | [`replay`] | recorded traffic before another policy |
//! | [`mod@beside`] | recorded traffic before the policies of then and one more |
//! | [`mod@bench`] | what a call costs |
//!
//! # Not here
//!
//! No terminal and no flags: `cli` has them. No policy of its own, and no word that policies and
//! the host do not use between themselves.

mod at;
pub mod bench;
pub mod beside;
pub mod cases;
pub mod clock;
mod dice;
pub mod differences;
pub mod given;
pub mod replay;
pub mod sim;
pub mod spelled;
pub mod table;
pub mod workload;
