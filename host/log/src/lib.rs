//! Lines for a file, a pipe or a terminal that may be slow, full, or read by nobody.
//!
//! A [`LineWriter`] takes lines from any thread and never makes it wait: they lie in a queue of
//! bounded bytes, and one thread of its own writes them. What does not fit is dropped and counted,
//! and whoever owns the lines is told ([`Losses`]), so that a gap can be marked where it is.
//!
//! # Invariants
//!
//! - [`LineWriter::push`] holds a lock for a copy of the line and no longer, whatever the reader
//!   does. Nothing is written, and nobody told, under that lock.
//! - Lines come out in the order in which they went in, whole. Once one was dropped, all are until
//!   the writer has taken what lies there: so a gap has one place.
//! - Queued and being written, there are never more than `bytes_max` bytes.
//! - No wait for the reader is without a bound: [`LineWriter::flush`] has one, and the thread is
//!   never joined.
//!
//! # Not here
//!
//! What the lines say, and `tracing`. `tracing-appender` has a writer of this kind; its bound is a
//! number of lines of any length, it only counts what it drops, and it is told of a write that
//! fails by nobody.

mod metrics;
mod output;
mod writer;

pub use metrics::LogMetrics;
pub use output::Output;
pub use writer::{LineWriter, Losses};
