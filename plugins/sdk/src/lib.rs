//! What a policy for Interlock is written with: one file, no WASI, no unsafe code.
//!
//! ```
//! use interlock_policy_sdk as sdk;
//! use sdk::{Admit, Decision, Load, Policy, RequestFacts};
//!
//! /// Turns long prompts away.
//! struct Short {
//!     settings: Settings,
//! }
//!
//! #[derive(serde::Deserialize)]
//! #[serde(deny_unknown_fields)]
//! struct Settings {
//!     max_prompt_tokens: u32,
//! }
//!
//! sdk::reasons! {
//!     enum Reason { Short, PromptTooLong }
//! }
//!
//! impl Policy for Short {
//!     type Settings = Settings;
//!     type Reason = Reason;
//!
//!     fn new(settings: Settings) -> Result<Self, String> {
//!         Ok(Self { settings })
//!     }
//! }
//!
//! impl Admit for Short {
//!     fn admit(&self, request: &RequestFacts, _: &Load) -> Decision {
//!         if request.prompt_tokens > self.settings.max_prompt_tokens {
//!             let why = "this service takes short prompts only";
//!             return sdk::reject(413, Reason::PromptTooLong).detail(why).into();
//!         }
//!         sdk::admit(Reason::Short).into()
//!     }
//! }
//!
//! sdk::export!(Short: admit);
//! # fn main() {}
//! ```
//!
//! The crate is a `cdylib`; `wit/README.md` says how it becomes a component. What it exports are
//! the phases that [`export!`] names; what it imports are the capabilities whose functions it
//! calls ([`state`], [`content`], [`http`], [`metrics!`](macro@metrics)), and [`log`].
//!
//! On other targets the same code runs on [`testing`]'s host, so a policy is tested like any code.
//!
//! # Not here
//!
//! No clock and no randomness: a component for `wasm32-unknown-unknown` has neither, and the
//! facts say when a request arrived.

mod answers;
#[doc(hidden)]
pub mod bindings;
pub mod content;
mod export;
pub mod http;
pub mod log;
pub mod metrics;
mod phases;
mod priority;
mod reasons;
mod settings;
mod span;
pub mod state;
#[cfg(not(target_arch = "wasm32"))]
pub mod testing;

pub use answers::{
    abort, admit, amend, cancel, disconnect, edit, header, known, reject, replace, scores, stop,
};
pub use metrics::Metric;
pub use phases::{
    Account, Admit, Events, Identify, NoSettings, Policy, Route, StreamGuard, Transform,
};
pub use reasons::{NoReasons, Reasons};
pub use span::Span;

pub use bindings::accounting::exports::interlock::policy::account::{
    Canceller, Finish, Outcome, Summary,
};
pub use bindings::admitting::exports::interlock::policy::admit::{Admission, Decision, Load};
pub use bindings::base::interlock::policy::types::{
    Attribute, DisconnectAction, DrainLimits, Endpoint, EventSet, Guarding, Header, Plan, Priority,
    Rejection, RequestFacts, Timeout, Timeouts, Usage, Watch, WindowSize,
};
pub use bindings::guarding_streams::exports::interlock::policy::stream_guard::{
    Ending, Replacement, Verdict, Window,
};
pub use bindings::identifying::exports::interlock::policy::identify::{
    Answer as Known, Caller, Identity,
};
pub use bindings::reacting::exports::interlock::policy::events::{
    Amendment, Departure, Event, Progress, Reaction,
};
pub use bindings::routing::exports::interlock::policy::route::{
    Candidate, Choice, Pick, Ranking, Score,
};
pub use bindings::transforming::exports::interlock::policy::transform::{Answer as Edited, Edits};

#[doc(hidden)]
pub use bindings::base::exports::interlock::policy::lifecycle;
#[doc(hidden)]
pub use export::{Crate, begin, descriptor};
