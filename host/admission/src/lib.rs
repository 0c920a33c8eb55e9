//! Policies decide, the chain merges, and only an [`Admitted`] gets to the engine.
//!
//! # Invariants
//!
//! - The one way to an [`Admitted`] is [`PolicyChain::admit`], and the one thing the engine
//!   accepts is one of these: a route that forgets the policies does not compile.
//! - Plans only tighten: merging can shorten a deadline or lower a priority, never the reverse,
//!   and nothing exceeds the operator's [`Ceilings`].
//! - Every [`Admitted`] comes with one [`Account`], which is settled exactly once: by hand, or
//!   when it is dropped.
//!
//! # Not here
//!
//! No WebAssembly (`interlock-policy` implements [`Policy`]), no engine, no MLX, no HTTP: a
//! policy gets facts and returns a plan, and the types leave it nothing else to reach.

mod chain;
mod config;
mod decision;
mod facts;
mod metrics;
mod plan;

pub use chain::{Account, Admitted, Link, Policy, PolicyChain, Prompt, Refused, Summary, Verdict};
pub use config::{FailureAction, LimitsConfig, OnFailure};
pub use decision::{Decision, FailureKind, Phase, PolicyFailure, Reason, Rejection};
pub use facts::{Facts, Load};
pub use metrics::PolicyMetrics;
pub use plan::{Ceilings, Plan, PlanProposal};
