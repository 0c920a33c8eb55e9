//! What the engine tells the outside.
//!
//! The families are totals over all engines of the thread: a pass is in flight or none is,
//! whichever model it is of, and what watches the host asks whether anything runs at all.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use interlock_metrics::{Histogram, IntCounter, IntCounterVec, IntGauge, Registry};
use interlock_request::{CancelCause, FaultKind, RequestId, Stage};
use interlock_scheduler::PassBounds;

use crate::passes::{PassKind, Passes};
use crate::{PassFailed, PassFault};

/// Passes, cancellations, and who waits and runs. Labels are closed sets.
#[derive(Debug, Clone)]
pub struct EngineMetrics {
    pub(crate) waiting: IntGauge,
    running: IntGauge,
    /// Of `running`, those of one engine.
    running_here: Arc<AtomicI64>,
    pub(crate) passes: Passes,
    rows: Histogram,
    tokens: IntCounterVec,
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
    /// 100 µs to 60 s: a simulated token to a long chunk on a slow CPU.
    const PASS_SECONDS: &[f64] = &[
        1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
        10.0, 30.0, 60.0,
    ];

    /// One request alone to the largest batches there are.
    const ROWS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 1024.0, 4096.0];

    /// Declares the families.
    pub fn register(registry: &Registry) -> Self {
        let metrics = Self {
            waiting: registry
                .gauge("requests_waiting", "Requests that hold a place in the waiting room."),
            running: registry.gauge("requests_running", "Requests that have begun and not ended."),
            running_here: Arc::default(),
            passes: Passes {
                in_flight: registry
                    .gauge("engine_passes_in_flight", "Passes in flight now; never above 1."),
                in_flight_max: registry.gauge(
                    "engine_passes_in_flight_max",
                    "Most passes ever in flight at once; above 1 is a bug to report.",
                ),
                seconds: registry.histograms(
                    "engine_pass_seconds",
                    "Time of one pass of the model.",
                    Self::PASS_SECONDS,
                    &["kind"],
                ),
            },
            rows: registry.histogram(
                "engine_pass_rows",
                "Requests that one pass computed for.",
                Self::ROWS,
            ),
            tokens: registry.counters(
                "engine_tokens_total",
                "Tokens that passes computed: of prompts, or the next of a stream.",
                &["kind"],
            ),
            retries: registry.counter(
                "engine_pass_retries_total",
                "Requests whose pass failed through no known fault of theirs, and which tried again.",
            ),
            failures: registry.counters(
                "engine_pass_failures_total",
                "Passes that failed: through one row's fault, as too large, or nobody knows why.",
                &["kind"],
            ),
            failed_requests: registry.counters(
                "engine_failed_requests_total",
                "Requests that the engine ended as failed, by what their client was told.",
                &["code"],
            ),
            rows_max: registry.gauge(
                "engine_pass_rows_max",
                "Most rows that a pass may have, over all models; less than is configured after passes that were too large.",
            ),
            tokens_max: registry.gauge(
                "engine_pass_tokens_max",
                "Most tokens that a pass may have, over all models; less than is configured after passes that were too large.",
            ),
            preemptions: registry.counter(
                "preemptions_total",
                "Requests that gave their cache to a more urgent one and computed it again later.",
            ),
            cache_pages: registry.gauge("cache_pages", "Pages of cache that there are."),
            cache_pages_used: registry
                .gauge("cache_pages_used", "Pages of cache that running requests hold."),
            cache_pages_idle: registry.gauge(
                "cache_pages_idle",
                "Pages of cache that no request holds, kept for those that begin alike; memory all the same.",
            ),
            cancellations: registry.counters(
                "cancellations_total",
                "Requests cancelled, by who asked and how far they were.",
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
        for kind in PassKind::ALL {
            metrics.passes.seconds.with_label_values(&[kind.as_str()]);
        }
        for kind in [PassFault::Row(0), PassFault::TooLarge, PassFault::Broken] {
            metrics.failures.with_label_values(&[kind.as_str()]);
        }
        for kind in FaultKind::ALL {
            metrics.failed_requests.with_label_values(&[kind.as_str()]);
        }
        for kind in ["prompt", "next"] {
            metrics.tokens.with_label_values(&[kind]);
        }
        metrics
    }

    /// A pass has ended, well or not.
    pub(crate) fn passed(&self, rows: usize, decoding: usize, prompt_tokens: u32) {
        self.rows.observe(rows as f64);
        self.tokens.with_label_values(&["next"]).inc_by(decoding as u64);
        self.tokens.with_label_values(&["prompt"]).inc_by(u64::from(prompt_tokens));
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

    /// The same, for one engine more: it knows how many of those that run are its own.
    pub(crate) fn of_one_engine(&self) -> Self {
        Self { running_here: Arc::default(), ..self.clone() }
    }

    /// A request of this engine has begun.
    pub(crate) fn begun(&self) -> Begun {
        self.running_here.fetch_add(1, Ordering::Relaxed);
        Begun { _total: Counted::new(&self.running), here: Arc::clone(&self.running_here) }
    }

    /// Requests of this engine that have begun and not ended.
    pub(crate) fn running_here(&self) -> i64 {
        self.running_here.load(Ordering::Relaxed)
    }

    /// This engine's part of the pages that there are.
    pub(crate) fn cache(&self, pages: u32) -> CacheShare {
        let mut there_are = Share { gauge: self.cache_pages.clone(), amount: 0 };
        there_are.is(pages.into());
        let used = Share { gauge: self.cache_pages_used.clone(), amount: 0 };
        let idle = Share { gauge: self.cache_pages_idle.clone(), amount: 0 };
        CacheShare { there_are, used, idle }
    }

    /// This engine's part of how large passes may be.
    pub(crate) fn fit(&self, bounds: PassBounds) -> FitShare {
        let share = |gauge: &IntGauge| Share { gauge: gauge.clone(), amount: 0 };
        let mut fit = FitShare { rows: share(&self.rows_max), tokens: share(&self.tokens_max) };
        fit.is(bounds);
        fit
    }

    pub(crate) fn cancelled(&self, cause: CancelCause, stage: Stage) {
        self.cancellations.with_label_values(&[cause.as_str(), stage.as_str()]).inc();
    }

    /// The pass that was in flight when its request was cancelled has ended. Nobody waits for its
    /// result, so this is the only place that will ever tell of it.
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

/// One engine's part of the pages that there are, of those that are used, and of those that keep
/// what nobody uses now.
#[derive(Debug)]
pub(crate) struct CacheShare {
    there_are: Share,
    used: Share,
    idle: Share,
}

impl CacheShare {
    /// So many of them are used by nobody, and so many of those keep something.
    pub(crate) fn available(&mut self, pages: u32, idle: u32) {
        self.used.is(self.there_are.amount - i64::from(pages));
        self.idle.is(idle.into());
    }
}

/// One engine's part of how large passes may be.
#[derive(Debug)]
pub(crate) struct FitShare {
    rows: Share,
    tokens: Share,
}

impl FitShare {
    pub(crate) fn is(&mut self, bounds: PassBounds) {
        self.rows.is(bounds.rows.get().into());
        self.tokens.is(bounds.tokens.get().into());
    }
}

/// One engine's part of a gauge, for as long as it lives.
#[derive(Debug)]
struct Share {
    gauge: IntGauge,
    amount: i64,
}

impl Share {
    fn is(&mut self, amount: i64) {
        self.gauge.add(amount - self.amount);
        self.amount = amount;
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.is(0);
    }
}

/// A request that has begun and not ended, counted among all and among its engine's.
#[derive(Debug)]
pub(crate) struct Begun {
    _total: Counted,
    here: Arc<AtomicI64>,
}

impl Drop for Begun {
    fn drop(&mut self) {
        self.here.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One in a gauge, for as long as it lives.
#[derive(Debug)]
pub(crate) struct Counted(IntGauge);

impl Counted {
    pub(crate) fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}
