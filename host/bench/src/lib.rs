//! Asks servers as their clients do, and reports how fast they answered.
//!
//! [`run`] takes a [`BenchPlan`] and [`Target`]s, any server with OpenAI's API, and returns a
//! [`BenchReport`]: what the tables ([`BenchReport`]'s `Display`), the [`plot`] and [`compare`] show. A
//! [`StartedHost`] is a target that we start ourselves.
//!
//! # Invariants
//!
//! - Targets are asked in turn, batch by batch, so that what else the machine does falls on all
//!   alike; each gets the very same prompts, which the seed decides.
//! - A request has a connection of its own, opened before the clock starts and closed when the
//!   request is dropped: no pool stands between a client that leaves and the server that should
//!   see it leave.
//! - Every request asked is in the report: answered, left on purpose, or failed by kind. Only
//!   answers that came whole count as tokens.
//!
//! # Not here
//!
//! Judgement: what is fast enough is not known here, and no figure is asserted. Quality of the
//! answers. TLS: whatever speaks it costs time that is not the server's. The terminal, except the
//! bar that [`ProgressDisplay`] draws.

mod ask;
mod batch;
mod compare;
mod exchange;
mod failure;
mod host;
mod machine;
mod plan;
mod plot;
mod progress;
mod question;
mod report;
mod request;
mod run;
mod sse;
mod stats;
mod storm;
mod table;
mod target;
mod text;
mod workload;

pub use compare::{CannotCompare, Comparison, compare};
pub use failure::{Failed, Failures, RequestFailure};
pub use host::{HostStartError, StartedHost};
pub use machine::{LoadAverage, Machine};
pub use plan::{Api, BenchPlan, Storming};
pub use plot::{Picture, UnknownPicture, plot};
pub use progress::ProgressDisplay;
pub use report::{BenchReport, Cell, Iteration, NotAReport, Storm, StormAfter, TargetFacts};
pub use run::{TooManyConnections, Unusable, room_for_connections, run};
pub use stats::Spread;
pub use target::{Address, BadAddress, BadHeader, Header, Target};
pub use workload::WorkloadKind;
