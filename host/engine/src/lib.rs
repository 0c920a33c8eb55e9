//! The one thread that owns the model, and the handle that everyone else holds.
//!
//! [`spawn`] builds the model on a thread of its own and runs it there until it is told to stop;
//! [`Engines`] does so with several models, an engine each, on that one thread. Others take a [`Seat`] in the waiting room, submit an admitted request with it and read its
//! [`Events`].
//!
//! # Invariants
//!
//! - Weights, caches and device state are made, used and dropped on the engine thread: the engine
//!   is `!Send`, and no lock guards any of it, so there is none to release early or take twice.
//! - A pass once begun is finished by the thread that began it, and no pass begins before the one
//!   in flight has ended. Cancelling acts between passes.
//! - Cancelling needs no room: it is a flag, never a message that must fit in a queue.
//! - Every submitted request ends with one [`Event::Ended`], unless the thread itself is gone.
//! - A pass that fails is tried again only so often: each failure ends a request, or takes one of
//!   the few retries that its requests have ([`RETRIES_MAX`]).
//! - Joining, leaving, cancelling and preempting are edits of a table: they touch no other
//!   request's row, pages, keys or values.
//! - The inbox always has room for whoever holds a [`Seat`], and a request's event channel for
//!   every event it can cause: the engine never waits for anyone but the device.
//!
//! # Not here
//!
//! No HTTP, no WebAssembly, no MLX, no text: token ids in, token ids out. No timers: whoever holds
//! a [`Control`] decides when to cancel.

mod bell;
mod clock;
mod company;
mod config;
mod control;
mod events;
mod fit;
mod forward;
mod handle;
mod metrics;
mod pace;
mod pages;
mod passes;
mod prefix;
mod retries;
mod stages;
mod step;
mod thread;

pub use clock::{Clock, SystemClock};
pub use company::Company;
pub use config::{CacheConfig, EngineConfig, Mode, WaitingConfig};
pub use control::Control;
pub use events::{Ended, Event, Events};
pub use forward::{Caches, Forward, ModelShape, Opening, PageId, PassFailed, PassFault, Row};
pub use handle::{EngineHandle, EngineView, NotStarted, Running, Seat};
pub use metrics::EngineMetrics;
pub use pages::PageAudit;
pub use prefix::{PrefixScope, PrefixSharing};
pub use retries::{RETRIES_MAX, TOKENS_PER_RETRY};
pub use step::{Audit, Engine, StepOutcome};
pub use thread::{
    Door, EngineExit, EngineState, EngineThread, Engines, by_hand, by_hand_beside, spawn,
};
