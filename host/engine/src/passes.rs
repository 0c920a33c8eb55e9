//! Counts the passes in flight, so that invariant 3 (never two) is seen and not believed.

use std::time::Instant;

use interlock_metrics::{HistogramVec, IntGauge};

/// What a pass computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PassKind {
    Prefill,
    Decode,
}

impl PassKind {
    pub(crate) const ALL: [Self; 2] = [Self::Prefill, Self::Decode];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Prefill => "prefill",
            Self::Decode => "decode",
        }
    }
}

/// Where passes are counted. Built to count more than one at a time: it must be able to see the
/// overlap that the rest of this crate makes impossible.
#[derive(Debug, Clone)]
pub(crate) struct Passes {
    pub(crate) in_flight: IntGauge,
    pub(crate) in_flight_max: IntGauge,
    pub(crate) seconds: HistogramVec,
}

impl Passes {
    /// A pass begins; it ends when the guard is dropped, also by a panic.
    pub(crate) fn begin(&self, kind: PassKind) -> PassInFlight<'_> {
        self.in_flight.inc();
        let now = self.in_flight.get();
        if now > self.in_flight_max.get() {
            self.in_flight_max.set(now);
        }
        PassInFlight { passes: self, kind, began_at: Instant::now() }
    }
}

/// A pass that has begun and not ended.
#[derive(Debug)]
pub(crate) struct PassInFlight<'a> {
    passes: &'a Passes,
    kind: PassKind,
    began_at: Instant,
}

impl Drop for PassInFlight<'_> {
    fn drop(&mut self) {
        self.passes.in_flight.dec();
        let elapsed = self.began_at.elapsed().as_secs_f64();
        self.passes.seconds.with_label_values(&[self.kind.as_str()]).observe(elapsed);
    }
}
