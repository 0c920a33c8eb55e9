//! Counts the forward passes in flight, so that it is measured that there are never two.

use std::time::Duration;

use interlock_metrics::{Histogram, IntGauge};

use crate::Clock;

/// What a forward pass computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PassKind {
    /// Only tokens of prompts.
    Prefill,
    /// The next token of each row.
    Decode,
    /// Tokens of prompts, and next tokens of rows.
    Mixed,
}

impl PassKind {
    pub(crate) const ALL: [Self; 3] = [Self::Prefill, Self::Decode, Self::Mixed];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Prefill => "prefill",
            Self::Decode => "decode",
            Self::Mixed => "mixed",
        }
    }
}

/// The metrics of forward passes. They can count more than one at a time, since they must be able to show
/// the overlap that the rest of this crate makes impossible.
#[derive(Debug, Clone)]
pub(crate) struct PassMetrics {
    pub(crate) in_flight: IntGauge,
    pub(crate) in_flight_max: IntGauge,
    /// By kind, in the order of [`PassKind::ALL`].
    pub(crate) seconds: [Histogram; 3],
}

impl PassMetrics {
    /// Counts a pass that begins. It ends when the guard is dropped, also by a panic.
    pub(crate) fn begin<'a>(&'a self, kind: PassKind, clock: &'a dyn Clock) -> PassInFlight<'a> {
        self.in_flight.inc();
        let now = self.in_flight.get();
        if now > self.in_flight_max.get() {
            self.in_flight_max.set(now);
        }
        PassInFlight { metrics: self, kind, clock, began_at: clock.now() }
    }
}

/// A pass that has begun and not ended.
pub(crate) struct PassInFlight<'a> {
    metrics: &'a PassMetrics,
    kind: PassKind,
    clock: &'a dyn Clock,
    began_at: Duration,
}

impl PassInFlight<'_> {
    /// Ends the pass and returns how long it took.
    pub(crate) fn end(self) -> Duration {
        self.elapsed()
    }

    fn elapsed(&self) -> Duration {
        self.clock.now().saturating_sub(self.began_at)
    }
}

impl Drop for PassInFlight<'_> {
    fn drop(&mut self) {
        self.metrics.in_flight.dec();
        let elapsed = self.elapsed().as_secs_f64();
        self.metrics.seconds[self.kind as usize].observe(elapsed);
    }
}
