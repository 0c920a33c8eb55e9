//! The one thread that owns the model, and the handle through which other threads reach it.
//!
//! [`spawn`] builds the model on a thread of its own and runs it there until it is told to stop.
//! [`Engines`] does so with several models: an engine for each, all on that one thread. A caller reserves
//! a place in an engine's queue ([`QueuePermit`]), submits an admitted request with it and reads its
//! [`Events`].
//!
//! # Invariants
//!
//! - Weights, caches and device state are made, used and dropped on the engine thread. The engine is
//!   `!Send`, and no lock guards any of it, so there is none to release early or take twice.
//! - A forward pass once begun is finished by the thread that began it, and no pass begins before the
//!   one in flight has ended. Cancelling acts between passes.
//! - Cancelling needs no room in a queue: it is a flag, never a message.
//! - Every submitted request ends with one [`Event::Ended`], unless the thread itself is gone.
//! - A pass that fails is tried again only so often: each failure ends a request, or takes one of the
//!   few retries that its requests have ([`RETRIES_MAX`]).
//! - Joining, leaving, cancelling and preempting are edits of a table. They touch no other request's
//!   row, pages, keys or values.
//! - The inbox always has room for whoever holds a [`QueuePermit`], and a request's event channel for
//!   every event that it can cause. So the engine waits for nothing but the device.
//!
//! # Not here
//!
//! No HTTP, no WebAssembly, no MLX, no text: token ids in, token ids out. No timers: the holder of a
//! [`Control`] decides when to cancel.

mod clock;
mod config;
mod control;
mod events;
mod failures;
mod forward;
mod group;
mod handle;
mod limits;
mod manual;
mod metrics;
mod pacer;
mod pages;
mod passes;
mod prefix;
mod retries;
mod stages;
mod state;
mod step;
mod thread;
mod wakeup;

pub use clock::{Clock, SystemClock};
pub use config::{CacheConfig, EngineConfig, Mode, WaitingConfig};
pub use control::Control;
pub use events::{Ended, Event, Events};
pub use forward::{Caches, Forward, ModelShape, Opening, PageId, PassFailed, PassFault, Row};
pub use group::EngineGroup;
pub use handle::{EngineHandle, EngineView, NotStarted, QueuePermit, RequestHandle};
pub use manual::{InboxGuard, ManualEngine, manual, manual_in_group};
pub use metrics::EngineMetrics;
pub use pages::PageAudit;
pub use prefix::{PrefixScope, PrefixSharing};
pub use retries::{RETRIES_MAX, TOKENS_PER_RETRY};
pub use state::{EngineExit, EngineState};
pub use step::{Audit, Engine, StepOutcome};
pub use thread::{EngineThread, Engines, spawn};
