//! Policies decide, the chain merges, and only an [`Admitted`](interlock_policy_api::Admitted) gets to the engine.
//!
//! [`Policies`] holds the [`PolicyChain`] that new requests get. A request's head begins a
//! [`AdmissionReview`], in which its policies identify, transform, route and admit; with their consent comes
//! an [`PolicySession`], by which they hear of events, read the text ([`StreamFilters`]) and learn how it
//! ended.
//! What each said is [`DecisionRecord`]; a [`Record`] holds it all to be asked again.
//!
//! # Invariants
//!
//! - The one way to an [`Admitted`](interlock_policy_api::Admitted) is [`AdmissionReview::admit`], and the one thing the engine
//!   accepts is one of these: a route that forgets the policies does not compile.
//! - Every [`Admitted`](interlock_policy_api::Admitted) comes with one [`PolicySession`], which is settled exactly once: by hand, or
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
mod blocking_pool;
mod call;
mod chain;
mod clock;
mod completion;
mod config;
mod decision_record;
mod entry;
mod generations;
mod last_good;
mod metrics;
mod outcome;
mod panics;
mod policy_set;
mod policy_threads;
mod record;
mod refusal;
mod review;
mod serial_queue;
mod session;
mod shared;
mod stream_filters;
mod tenants;
#[cfg(test)]
mod testing;

pub use at_once::at_once;
pub use chain::PolicyChain;
pub use config::{
    BadFailureAction, BadPolicyMode, FailureAction, LimitsConfig, OnFailure, PoliciesConfig,
    PolicyMode, RECORD_BYTES_MAX, RecordBounds,
};
pub use decision_record::{AnyAnswer, DecisionRecord};
pub use entry::ChainEntry;
pub use generations::{BadRollbackTarget, GenerationNotKept, Policies, RollbackTarget};
pub use metrics::PolicyMetrics;
pub use outcome::AdmissionOutcome;
pub use record::{PhaseQuestion, Record, RecordFile, RecordSink, RecordedPhase, Ruling};
pub use refusal::PolicyRefusal;
pub use review::AdmissionReview;
pub use session::{CancelledByPolicy, EventOutcome, PolicySession};
pub use shared::ChainShared;
pub use stream_filters::{FilteredText, GuardEnd, StreamFilters};
