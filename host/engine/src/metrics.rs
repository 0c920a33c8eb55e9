//! The engine's metrics and the log lines that go with them.
//!
//! The families are totals over all engines of the thread: a forward pass is in flight or none is,
//! whichever model it is of, and whoever monitors the host asks whether anything runs at all.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use interlock_metrics::{Histogram, IntCounter, IntCounterVec, IntGauge, Registry};
use interlock_request::{CancelCause, FaultKind, RequestId, Stage};
use interlock_scheduler::PassBounds;

use crate::passes::{PassKind, PassMetrics};
use crate::{PassFailed, PassFault};

/// Metrics of forward passes, cancellations, and requests that wait and run. Labels are closed sets.
#[derive(Debug, Clone)]
pub struct EngineMetrics {
    pub(crate) waiting: IntGauge,
    running: IntGauge,
    /// Of `running`, the requests of one engine.
    running_here: Arc<AtomicI64>,
    pub(crate) passes: PassMetrics,
    rows: Histogram,
    next_tokens: IntCounter,
    prompt_tokens: IntCounter,
    retries: IntCounter,
    failures: IntCounterVec,
    failed_requests: IntCounterVec,
    rows_max: IntGauge,
    tokens_max: IntGauge,
    preemptions: IntCounter,
    cache_pages: IntGauge,
    cache_pages_used: IntGauge,
    cache_pages_idle: IntGauge,
    cancellations: IntCounterVec,
    cancelled_pass_failures: IntCounter,
    cancelled_pass_completions: IntCounter,
}

impl EngineMetrics {
    /// From 100 µs, a simulated token, to 60 s, a long chunk on a slow CPU.
    const PASS_SECONDS: &[f64] = &[
        1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
        10.0, 30.0, 60.0,
    ];

    /// From one request alone to the largest batches.
    const ROWS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 1024.0, 4096.0];

    /// Registers the families.
    pub fn register(registry: &Registry) -> Self {
        let tokens = registry.counters(
            "engine_tokens_total",
            "Tokens that passes computed, of prompts or as the next of a stream.",
            &["kind"],
        );
        let seconds = registry.histograms(
            "engine_pass_duration_seconds",
            "Time of one pass of the model.",
            Self::PASS_SECONDS,
            &["kind"],
        );
        let metrics = Self {
            waiting: registry
                .gauge("requests_waiting", "Requests that hold a place in the queue."),
            running: registry.gauge("requests_running", "Requests that have begun and not ended."),
            running_here: Arc::default(),
            passes: PassMetrics {
                in_flight: registry
                    .gauge("engine_passes_in_flight", "Passes in flight now; never above 1."),
                in_flight_max: registry.gauge(
                    "engine_passes_in_flight_max",
                    "Most passes ever in flight at once; above 1 is a bug to report.",
                ),
                // Looked up once, and not with each pass.
                seconds: PassKind::ALL.map(|kind| seconds.with_label_values(&[kind.as_str()])),
            },
            rows: registry.histogram(
                "engine_pass_rows",
                "Requests that one pass computed for.",
                Self::ROWS,
            ),
            next_tokens: tokens.with_label_values(&["next"]),
            prompt_tokens: tokens.with_label_values(&["prompt"]),
            retries: registry.counter(
                "engine_pass_retries_total",
                "Requests whose pass failed for a reason that is not known to be theirs, and which are tried again.",
            ),
            failures: registry.counters(
                "engine_pass_failures_total",
                "Passes that failed: through one row, as too large, or for an unknown reason.",
                &["kind"],
            ),
            failed_requests: registry.counters(
                "engine_failed_requests_total",
                "Requests that the engine ended as failed, by the error code that the client got.",
                &["code"],
            ),
            rows_max: registry.gauge(
                "engine_pass_rows_limit",
                "Most rows that a pass may have, over all models; less than is configured after passes that were too large.",
            ),
            tokens_max: registry.gauge(
                "engine_pass_tokens_limit",
                "Most tokens that a pass may have, over all models; less than is configured after passes that were too large.",
            ),
            preemptions: registry.counter(
                "preemptions_total",
                "Requests that gave their cache to a more urgent one and computed it again later.",
            ),
            cache_pages: registry.gauge("cache_pages", "Pages that the cache has."),
            cache_pages_used: registry
                .gauge("cache_pages_used", "Pages that running requests hold."),
            cache_pages_idle: registry.gauge(
                "cache_pages_idle",
                "Pages that no request holds, kept for prompts with the same prefix; they use memory.",
            ),
            cancellations: registry.counters(
                "cancellations_total",
                "Requests cancelled, by cause and by the stage that they were in.",
                &["cause", "stage"],
            ),
            cancelled_pass_failures: registry.counter(
                "cancelled_pass_failures_total",
                "Passes that failed after their request was cancelled; the log has each.",
            ),
            cancelled_pass_completions: registry.counter(
                "cancelled_pass_completions_total",
                "Passes that completed after their request was cancelled; the log has each.",
            ),
        };
        // A rate over a counter that appears with its first event misses that event.
        for (cause, stage) in CancelCause::ALL.iter().flat_map(|c| Stage::ALL.map(|s| (c, s))) {
            metrics.cancellations.with_label_values(&[cause.as_str(), stage.as_str()]);
        }
        for kind in [PassFault::Row(0), PassFault::TooLarge, PassFault::Broken] {
            metrics.failures.with_label_values(&[kind.as_str()]);
        }
        for kind in FaultKind::ALL {
            metrics.failed_requests.with_label_values(&[kind.as_str()]);
        }
        metrics
    }

    /// Counts a pass that has ended, well or not.
    pub(crate) fn passed(&self, rows: usize, decoding: usize, prompt_tokens: u32) {
        self.rows.observe(rows as f64);
        self.next_tokens.inc_by(decoding as u64);
        self.prompt_tokens.inc_by(u64::from(prompt_tokens));
    }

    pub(crate) fn retried(&self, requests: usize) {
        self.retries.inc_by(requests as u64);
    }

    pub(crate) fn pass_failed(&self, kind: PassFault) {
        self.failures.with_label_values(&[kind.as_str()]).inc();
    }

    pub(crate) fn request_failed(&self, kind: FaultKind) {
        self.failed_requests.with_label_values(&[kind.as_str()]).inc();
    }

    pub(crate) fn preempted(&self, id: &RequestId) {
        self.preemptions.inc();
        tracing::debug!(request = %id, "preempted");
    }

    /// The same metrics for a further engine, which counts its own running requests apart.
    pub(crate) fn of_one_engine(&self) -> Self {
        Self { running_here: Arc::default(), ..self.clone() }
    }

    /// Counts a request of this engine that has begun.
    pub(crate) fn begun(&self) -> RunningGuard {
        self.running_here.fetch_add(1, Ordering::Relaxed);
        RunningGuard {
            _total: GaugeGuard::new(&self.running),
            here: Arc::clone(&self.running_here),
        }
    }

    /// Requests of this engine that have begun and not ended.
    pub(crate) fn running_here(&self) -> i64 {
        self.running_here.load(Ordering::Relaxed)
    }

    /// This engine's part of the page gauges.
    pub(crate) fn cache(&self, pages: u32) -> PageGauges {
        let mut total = GaugeShare { gauge: self.cache_pages.clone(), amount: 0 };
        total.set(pages.into());
        let used = GaugeShare { gauge: self.cache_pages_used.clone(), amount: 0 };
        let idle = GaugeShare { gauge: self.cache_pages_idle.clone(), amount: 0 };
        PageGauges { total, used, idle }
    }

    /// This engine's part of the gauges of how large passes may be.
    pub(crate) fn bounds(&self, bounds: PassBounds) -> BoundsGauges {
        let share = |gauge: &IntGauge| GaugeShare { gauge: gauge.clone(), amount: 0 };
        let mut gauges =
            BoundsGauges { rows: share(&self.rows_max), tokens: share(&self.tokens_max) };
        gauges.set(bounds);
        gauges
    }

    pub(crate) fn cancelled(&self, cause: CancelCause, stage: Stage) {
        self.cancellations.with_label_values(&[cause.as_str(), stage.as_str()]).inc();
    }

    /// Counts and logs a pass that was in flight when its request was cancelled. Nobody waits for its
    /// result any more, so it is reported nowhere else.
    pub(crate) fn cancelled_pass_ended<T>(
        &self,
        id: &RequestId,
        cause: CancelCause,
        result: &Result<T, PassFailed>,
    ) {
        let cause = cause.as_str();
        match result {
            Ok(_) => {
                self.cancelled_pass_completions.inc();
                tracing::info!(request = %id, cause, "pass completed after its request was cancelled");
            }
            Err(error) => {
                self.cancelled_pass_failures.inc();
                tracing::error!(request = %id, cause, %error, "pass failed after its request was cancelled");
            }
        }
    }
}

/// One engine's part of the page gauges: all pages, those that requests hold, and those that only keep a
/// prefix.
#[derive(Debug)]
pub(crate) struct PageGauges {
    total: GaugeShare,
    used: GaugeShare,
    idle: GaugeShare,
}

impl PageGauges {
    /// Sets the gauges: `pages` are held by no request, and `idle` of those keep a prefix.
    pub(crate) fn available(&mut self, pages: u32, idle: u32) {
        self.used.set(self.total.amount - i64::from(pages));
        self.idle.set(idle.into());
    }
}

/// One engine's part of the gauges of how large passes may be.
#[derive(Debug)]
pub(crate) struct BoundsGauges {
    rows: GaugeShare,
    tokens: GaugeShare,
}

impl BoundsGauges {
    pub(crate) fn set(&mut self, bounds: PassBounds) {
        self.rows.set(bounds.rows.get().into());
        self.tokens.set(bounds.tokens.get().into());
    }
}

/// One engine's part of a gauge, for as long as it lives.
#[derive(Debug)]
struct GaugeShare {
    gauge: IntGauge,
    amount: i64,
}

impl GaugeShare {
    fn set(&mut self, amount: i64) {
        self.gauge.add(amount - self.amount);
        self.amount = amount;
    }
}

impl Drop for GaugeShare {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// Counts a request that has begun and not ended, in the gauge of all and in its engine's own count.
#[derive(Debug)]
pub(crate) struct RunningGuard {
    _total: GaugeGuard,
    here: Arc<AtomicI64>,
}

impl Drop for RunningGuard {
    fn drop(&mut self) {
        self.here.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counts one in a gauge for as long as it lives.
#[derive(Debug)]
pub(crate) struct GaugeGuard(IntGauge);

impl GaugeGuard {
    pub(crate) fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}
