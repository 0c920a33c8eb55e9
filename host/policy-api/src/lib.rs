//! What a policy is told, what it can answer, and the request that every policy has passed.
//!
//! [`Policy`] is the trait: one method for each phase, each with its own facts and its own answer.
//! [`PlanProposal`]s merge into one [`Plan`] under the operator's [`Ceilings`], and an [`Admitted`]
//! is what the engine takes.
//!
//! # Invariants
//!
//! - Plans only tighten: merging can shorten a deadline or lower a priority, never the reverse,
//!   and nothing exceeds the operator's [`Ceilings`].
//! - A policy gets facts and returns values: nothing in here leads to the engine, the device or a
//!   connection.
//!
//! # Not here
//!
//! No order in which policies are asked and no consequence of what they answer
//! (`interlock-policy-chain`), no WebAssembly (`interlock-policy-wasm`), no I/O, no clock.

mod admitted;
mod body;
mod decision;
mod facts;
mod plan;
mod policy;
mod reason;
mod summary;
mod watch;

pub use admitted::{Admitted, Prompt, Work};
pub use body::{BadPointer, Body};
pub use decision::{
    Admission, Choice, Decision, Edits, FailureKind, Identified, Phase, PolicyAnswer,
    PolicyFailure, Transformed,
};
pub use facts::{Caller, Candidate, Facts, Headers, Identity, Load};
pub use plan::{Ceilings, Plan, PlanProposal};
pub use policy::{Answer, CallTime, Policy, RequestContext};
pub use reason::{Code, Reason, Rejection};
pub use summary::{Closing, Summary};
pub use watch::{
    Event, EventSet, Guarding, Progress, Reaction, Verdict, Watch, Window, WindowSize,
};
