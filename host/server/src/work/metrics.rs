//! What the pool tells the outside.

use std::time::Duration;

use interlock_metrics::{HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Registry};

use super::{Class, WorkOwner};

/// What waits, what is done, what was not, and what is held.
#[derive(Debug, Clone)]
pub struct WorkMetrics {
    queued: IntGaugeVec,
    running: IntGaugeVec,
    ended: IntCounterVec,
    queue_seconds: HistogramVec,
    stuck: IntGaugeVec,
    pub(super) memory: IntGauge,
    pub(super) memory_waiting: IntGauge,
}

/// What became of a piece of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    Done,
    Refused,
    TimedOut,
    Abandoned,
    Stuck,
}

impl How {
    const ALL: [Self; 5] =
        [Self::Done, Self::Refused, Self::TimedOut, Self::Abandoned, Self::Stuck];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Refused => "refused",
            Self::TimedOut => "timed_out",
            Self::Abandoned => "abandoned",
            Self::Stuck => "stuck",
        }
    }
}

impl WorkMetrics {
    /// 0.1 ms to 10 s, dense where it would be noticed.
    const QUEUE_SECONDS: &[f64] =
        &[0.0001, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

    /// Declares the metric families.
    pub fn register(registry: &Registry) -> Self {
        let metrics = Self {
            queued: registry.gauges(
                "work_items_queued",
                "Requests that wait for a thread to be read, rendered or tokenized, by size.",
                &["class"],
            ),
            running: registry.gauges(
                "work_items_running",
                "Requests that are being read, rendered or tokenized, by size.",
                &["class"],
            ),
            ended: registry.counters(
                "work_items_total",
                "Requests that were to be read, rendered or tokenized, by size and outcome.",
                &["class", "outcome"],
            ),
            queue_seconds: registry.histograms(
                "work_queue_duration_seconds",
                "Time that a request waited for a thread to be read, rendered or tokenized, by size.",
                Self::QUEUE_SECONDS,
                &["class"],
            ),
            stuck: registry.gauges(
                "work_threads_stuck",
                "Threads on which a model's chat template or tokenizer does not end.",
                &["model", "part"],
            ),
            memory: registry.gauge(
                "work_memory_bytes",
                "Memory that is set aside for requests before they are admitted.",
            ),
            memory_waiting: registry
                .gauge("work_memory_requests_waiting", "Requests that wait for memory before they are admitted."),
        };
        for class in Class::ALL {
            let class = class.as_str();
            metrics.queued.with_label_values(&[class]);
            metrics.running.with_label_values(&[class]);
            metrics.queue_seconds.with_label_values(&[class]);
            for how in How::ALL {
                metrics.ended.with_label_values(&[class, how.as_str()]);
            }
        }
        metrics
    }

    pub(super) fn queued(&self, class: Class, waiting: usize) {
        let waiting = i64::try_from(waiting).unwrap_or(i64::MAX);
        self.queued.with_label_values(&[class.as_str()]).set(waiting);
    }

    pub(super) fn began(&self, class: Class, waited: Duration) {
        self.running.with_label_values(&[class.as_str()]).inc();
        self.queue_seconds.with_label_values(&[class.as_str()]).observe(waited.as_secs_f64());
    }

    /// It does not run any more, or is not counted as running.
    pub(super) fn over(&self, class: Class) {
        self.running.with_label_values(&[class.as_str()]).dec();
    }

    pub(super) fn ended(&self, class: Class, how: How) {
        self.ended.with_label_values(&[class.as_str(), how.as_str()]).inc();
    }

    pub(super) fn stuck(&self, (model, part): &WorkOwner, threads: usize) {
        let threads = i64::try_from(threads).unwrap_or(i64::MAX);
        self.stuck.with_label_values(&[model.as_str(), part.as_str()]).set(threads);
    }
}
