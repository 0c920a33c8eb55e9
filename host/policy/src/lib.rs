//! Policies as WebAssembly components: the only crate that knows wasmtime.
//!
//! A [`PolicyHost`] turns a [`PolicyConfig`] into a [`Policy`](interlock_admission::Policy): it
//! compiles the component, looks which phases it exports, links what it may import, and has it
//! read its settings. All of that happens at start, so that a bad component stops the boot and
//! not the hundredth request. What a policy sees is declared in `wit/policy.wit`.
//!
//! # Invariants
//!
//! - Whatever a policy does costs its decision and never the host: each call has a deadline and
//!   a memory limit ([`limits`] lists every bound), and what cannot be a decision is a
//!   [`PolicyFailure`](interlock_admission::PolicyFailure).
//! - An instance that failed is never used again. A call owns its instance and gives it back
//!   only when it succeeded, so there is no flag to forget.
//! - Calls are synchronous and happen on the caller's thread: no queue, no hop, and nothing that
//!   could be cancelled half-way.
//! - As long as a policy lives, so does the thread whose ticks its deadline counts.
//!
//! # Not here
//!
//! No merging of decisions and no `on_failure` (`interlock-admission`), no HTTP, no engine: a
//! policy never runs inside a pass. No state that outlives an instance, and no capability but
//! writing to the log. Replacing a policy while the host runs is not there yet either.

mod clock;
mod config;
mod convert;
mod host;
mod instance;
pub mod limits;
mod load;
mod policy;
mod voice;
mod wit;

pub use config::{
    BadByteSize, BadSource, ByteSize, PolicyConfig, PolicySource, default_policies, problems,
};
pub use host::{HostFailed, PolicyHost};
pub use load::{LoadFailed, Unfit};
