//! Policies as WebAssembly components: the only crate that knows wasmtime.
//!
//! A [`PolicyHost`] turns a [`PolicyConfig`] into a [`Policy`](interlock_policy_api::Policy): it
//! compiles the component, looks which phases it exports, links what it may import, and has it
//! read its settings. All of that happens when it is loaded, so that a bad component stops the boot
//! and not the hundredth request. What a policy sees is declared in `wit/policy.wit`.
//!
//! # Invariants
//!
//! - Whatever a policy does costs its decision and never the host: each call has a deadline and
//!   a memory limit ([`limits`] lists every bound), and what cannot be a decision is a
//!   [`PolicyFailure`](interlock_policy_api::PolicyFailure).
//! - An instance that failed is never used again. A call owns its instance and gives it back
//!   only when it succeeded, so there is no flag to forget.
//! - Calls are synchronous and happen on the caller's thread: no queue, no hop, and nothing that
//!   could be cancelled half-way.
//! - As long as a policy lives, so does the thread whose ticks its deadline counts.
//!
//! # Not here
//!
//! No merging of decisions and no `on_failure` (`interlock-policy-chain`), no HTTP server, no
//! engine: a policy never runs inside a pass. What outlives an instance is `interlock-state`'s.

mod builtin;
mod cache;
mod clock;
mod compiled;
mod config;
mod description;
mod descriptor;
mod from_wit;
mod grants;
mod host;
mod host_functions;
mod instance;
mod interfaces;
pub mod limits;
mod linked;
mod load;
mod manager;
mod metrics;
mod old;
mod policy;
mod quarantine;
mod runtime;
mod to_wit;
mod wit;

pub use cache::{default_cache, unusable_cache};
pub use config::{
    BadByteSize, BadSource, ByteSize, PolicyConfig, PolicySource, default_policies, problems,
};
pub use description::{PolicyDescription, SelfDescription};
pub use descriptor::DeclaredMetric;
pub use grants::{BadGrant, Grant};
pub use host::PolicyHost;
pub use load::{Digest, LoadFailed, LoadProblem};
pub use manager::{
    ChangeOrigin, ChangeReport, ManagerThread, NotChanged, PolicyChange, PolicyManager,
    PolicyUpdate, PolicyVersion,
};
pub use policy::WasmPolicy;
pub use runtime::{PolicyHostFailed, Services};
