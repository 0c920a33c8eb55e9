//! Counts the passes in flight, so that invariant 3 (never two) is seen and not believed.

use std::time::Duration;

use interlock_metrics::{Histogram, IntGauge};

use crate::Clock;

/// What a pass computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PassKind {
    /// Prompts alone.
    Prefill,
    /// The next token of each row.
    Decode,
    /// Both.
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

/// Where passes are counted. Built to count more than one at a time: it must be able to see the
/// overlap that the rest of this crate makes impossible.
#[derive(Debug, Clone)]
pub(crate) struct Passes {
    pub(crate) in_flight: IntGauge,
    pub(crate) in_flight_max: IntGauge,
    /// By kind, in the order of [`PassKind::ALL`].
    pub(crate) seconds: [Histogram; 3],
}

impl Passes {
    /// A pass begins; it ends when the guard is dropped, also by a panic.
    pub(crate) fn begin<'a>(&'a self, kind: PassKind, clock: &'a dyn Clock) -> PassInFlight<'a> {
        self.in_flight.inc();
        let now = self.in_flight.get();
        if now > self.in_flight_max.get() {
            self.in_flight_max.set(now);
        }
        PassInFlight { passes: self, kind, clock, began_at: clock.now() }
    }
}

/// A pass that has begun and not ended.
pub(crate) struct PassInFlight<'a> {
    passes: &'a Passes,
    kind: PassKind,
    clock: &'a dyn Clock,
    began_at: Duration,
}

impl PassInFlight<'_> {
    /// The pass has ended; how long it took.
    pub(crate) fn end(self) -> Duration {
        self.elapsed()
    }

    fn elapsed(&self) -> Duration {
        self.clock.now().saturating_sub(self.began_at)
    }
}

impl Drop for PassInFlight<'_> {
    fn drop(&mut self) {
        self.passes.in_flight.dec();
        let elapsed = self.elapsed().as_secs_f64();
        self.passes.seconds[self.kind as usize].observe(elapsed);
    }
}
