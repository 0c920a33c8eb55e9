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

mod body;
mod chain;
mod config;
mod decision;
mod facts;
mod metrics;
mod plan;
mod policy;
mod watch;

pub use body::{BadPointer, Body};
pub use chain::{Account, Admitted, Link, PolicyChain, Prompt, Refused, Said, Summary};
pub use config::{FailureAction, LimitsConfig, OnFailure};
pub use decision::{
    Admission, Choice, Code, Decision, Edits, FailureKind, Identified, Phase, PolicyFailure,
    Reason, Rejection, Transformed,
};
pub use facts::{Caller, Candidate, Facts, Headers, Identity, Load};
pub use metrics::PolicyMetrics;
pub use plan::{Ceilings, Plan, PlanProposal};
pub use policy::{Answer, Policy, Told};
pub use watch::{Event, EventSet, Guarding, Progress, Reaction, Verdict, Watch, Window, WindowSize};
