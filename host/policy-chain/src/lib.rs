//! Policies decide, the chain merges, and only an [`Admitted`](interlock_policy_api::Admitted) gets to the engine.
//!
//! [`Policies`] holds the [`PolicyChain`] that new requests get. A request's head begins a
//! [`Hearing`], in which its policies identify, transform, route and admit; with their consent comes
//! an [`Oversight`], by which they hear of events, read the text ([`Guards`]) and learn how it
//! ended.
//! What each said is [`Said`]; a [`Record`] holds it all to be asked again.
//!
//! # Invariants
//!
//! - The one way to an [`Admitted`](interlock_policy_api::Admitted) is [`Hearing::admit`], and the one thing the engine
//!   accepts is one of these: a route that forgets the policies does not compile.
//! - Every [`Admitted`](interlock_policy_api::Admitted) comes with one [`Oversight`], which is settled exactly once: by hand, or
//!   when it is dropped.
//! - A request stays with the generation of policies that it began with, and each of them
//!   forgets it, exactly once.
//! - A policy that fails has no decision. What then happens stands in the operator's [`OnFailure`].
//!
//! # Not here
//!
//! No WebAssembly (`interlock-policy-wasm` implements [`Policy`](interlock_policy_api::Policy)), no engine, no MLX, no HTTP: a
//! policy gets facts and returns a plan, and the types leave it nothing else to reach.

mod answer_headers;
mod at_once;
mod chain;
mod clock;
mod config;
mod consult;
mod duty;
mod generations;
mod guards;
mod hearing;
mod lane;
mod last_good;
mod metrics;
mod outcome;
mod oversight;
mod policy_threads;
mod record;
mod said;
mod slow;
mod tenants;
#[cfg(test)]
mod testing;

pub use at_once::at_once;
pub use chain::{Commons, Link, PolicyChain};
pub use config::{
    BadFailureAction, BadPolicyMode, FailureAction, LimitsConfig, OnFailure, PoliciesConfig,
    PolicyMode, RECORD_BYTES_MAX,
};
pub use generations::{BadEarlier, Earlier, NotKept, Policies};
pub use guards::{GuardEnd, Guards, Passed};
pub use hearing::Hearing;
pub use metrics::PolicyMetrics;
pub use outcome::{Consent, Refused};
pub use oversight::{Cancelled, Oversight, Reacted};
pub use record::{Asked, Record, RecordBounds, RecordFile, RecordSink, Ruled, Step};
pub use said::{Answered, Said};
