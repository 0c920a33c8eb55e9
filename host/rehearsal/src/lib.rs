//! A policy before its first night: cases, simulations, replays and measurements.
//!
//! | module | what it does |
//! | --- | --- |
//! | [`cases`] | facts in, the decision that is expected |
//!
//! # Not here
//!
//! No terminal and no flags: `cli` has them. No policy of its own, and no word that policies and
//! the host do not use between themselves.

pub mod cases;
pub mod clock;
mod dice;
pub mod differences;
pub mod given;
pub mod spelled;
pub mod table;
pub mod workload;
