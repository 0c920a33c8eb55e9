//! The time that limits are counted in.

use std::time::{Duration, Instant};

/// Says how much time has passed since some moment that never changes.
///
/// It must never run backwards, and the host's own does not: a policy's limits must not care that
/// somebody set the time of day.
pub trait StateClock: Send + Sync {
    /// Time since that moment.
    fn now(&self) -> Duration;
}

/// The machine's monotonic clock.
pub(crate) struct Monotonic(Instant);

impl Monotonic {
    pub(crate) fn new() -> Self {
        Self(Instant::now())
    }
}

impl StateClock for Monotonic {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }
}
