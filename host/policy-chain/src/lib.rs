//! Asks the policies in their order and merges what they decide.
//!
//! [`Policies`] holds the [`PolicyChain`] that new requests get. A request begins an
//! [`AdmissionReview`], in which the policies identify, transform, route and admit. When all of
//! them admit it, its [`AdmissionOutcome`] holds a [`PolicySession`]: with that, the policies are
//! told of events, read the text ([`StreamFilters`]) and learn how the request ended. Each answer
//! is a [`DecisionRecord`]; a [`Record`] holds all questions and answers of one review, so that
//! another policy can be asked the same.
//!
//! # Invariants
//!
//! - Only [`AdmissionReview::admit`] makes an [`Admitted`](interlock_policy_api::Admitted), and the
//!   engine takes nothing else: a route that forgets the policies does not compile.
//! - Every [`Admitted`](interlock_policy_api::Admitted) comes with one [`PolicySession`], which is
//!   settled exactly once: by a call, or when it is dropped.
//! - A request stays with the generation of policies that it began with, and each policy forgets
//!   the request exactly once.
//! - A policy that fails has no decision. The operator's [`OnFailure`] says what happens then.
//!
//! # Not here
//!
//! No WebAssembly (`interlock-policy-wasm` implements [`Policy`](interlock_policy_api::Policy)), no
//! engine, no MLX, no HTTP: a policy gets facts and returns a plan, and the types leave it nothing
//! else to reach.

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
