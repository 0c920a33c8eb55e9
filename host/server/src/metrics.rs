//! What the server tells the outside. Labels are closed sets and the operator's model name.

use std::time::Duration;

use interlock_metrics::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, Registry};
use interlock_policy_api::Summary;
use interlock_request::{Endpoint, ModelId};

use crate::failure::Failure;

/// Requests, how they ended, how long their parts took; errors; connections.
#[derive(Debug, Clone)]
pub struct ServerMetrics {
    requests: IntCounterVec,
    request_seconds: HistogramVec,
    queue_seconds: Histogram,
    first_token_seconds: Histogram,
    inter_token_seconds: Histogram,
    prompt_tokens: IntCounter,
    cached_tokens: IntCounter,
    generated_tokens: IntCounter,
    errors: IntCounterVec,
    pub(crate) connections: IntGauge,
    pub(crate) admin_connections: IntGauge,
    pub(crate) metrics_connections: IntGauge,
    cut: IntCounterVec,
}

/// Which limit a connection was over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    /// `server.connections_max`
    Connections,
    /// `server.connections_per_address_max`
    Address,
    /// It waited in the reserve, and made way for another.
    Displaced,
    /// The process has no descriptors left.
    Descriptors,
    /// `server.pipelined_max`
    Pipelined,
}

impl Cut {
    const ALL: [Self; 5] =
        [Self::Connections, Self::Address, Self::Displaced, Self::Descriptors, Self::Pipelined];

    fn as_str(self) -> &'static str {
        match self {
            Self::Connections => "connections_max",
            Self::Address => "connections_per_address_max",
            Self::Displaced => "displaced",
            Self::Descriptors => "descriptors",
            Self::Pipelined => "pipelined_max",
        }
    }
}

impl ServerMetrics {
    /// 5 ms to 10 min: a refusal in the queue to a long answer.
    const REQUEST_SECONDS: &[f64] =
        &[0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 300.0, 600.0];
    /// 1 ms to 60 s, dense under 1 s where people notice.
    const FIRST_TOKEN_SECONDS: &[f64] = &[
        0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
    ];
    /// 1 ms to 10 s, dense where reading speed is.
    const INTER_TOKEN_SECONDS: &[f64] =
        &[0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.5, 10.0];

    /// Declares the metric families.
    pub fn register(registry: &Registry) -> Self {
        Self {
            requests: registry.counters(
                "requests_total",
                "Admitted requests that have ended, by outcome.",
                &["endpoint", "model", "outcome"],
            ),
            request_seconds: registry.histograms(
                "request_duration_seconds",
                "Time from admission to the end of a request.",
                Self::REQUEST_SECONDS,
                &["endpoint"],
            ),
            queue_seconds: registry.histogram(
                "queue_duration_seconds",
                "Time from admission to the first pass.",
                Self::FIRST_TOKEN_SECONDS,
            ),
            first_token_seconds: registry.histogram(
                "time_to_first_token_seconds",
                "Time from admission to the first token.",
                Self::FIRST_TOKEN_SECONDS,
            ),
            inter_token_seconds: registry.histogram(
                "inter_token_latency_seconds",
                "Time from one token of a request to its next.",
                Self::INTER_TOKEN_SECONDS,
            ),
            prompt_tokens: registry.counter(
                "prompt_tokens_total",
                "Prompt tokens of requests that have ended, cached ones included.",
            ),
            cached_tokens: registry.counter(
                "prompt_tokens_cached_total",
                "Prompt tokens that were in the prefix cache and were not computed again.",
            ),
            generated_tokens: registry
                .counter("generated_tokens_total", "Tokens that the model generated."),
            errors: registry.counters(
                "http_refusals_total",
                "Requests answered with an error status, by reason.",
                &["reason"],
            ),
            connections: registry.gauge("http_connections", "Open connections of clients."),
            admin_connections: registry
                .gauge("admin_connections", "Open connections of the admin listener."),
            metrics_connections: registry
                .gauge("metrics_connections", "Open connections of the listener of metrics."),
            cut: registry.counters(
                "http_connections_refused_total",
                "Connections that a limit refused or cut short, by reason.",
                &["reason"],
            ),
        }
    }

    /// Begins all series of a host with this model at 0, so that the first increase is one.
    pub(crate) fn serves(&self, model: &ModelId) {
        for endpoint in ["chat", "completions", "responses"] {
            self.request_seconds.with_label_values(&[endpoint]);
            for outcome in ["completed", "cancelled", "disconnected", "timed_out", "failed"] {
                self.requests.with_label_values(&[endpoint, model.as_str(), outcome]);
            }
        }
        for reason in Failure::REASONS {
            self.errors.with_label_values(&[reason]);
        }
        for cut in Cut::ALL {
            self.cut.with_label_values(&[cut.as_str()]);
        }
    }

    pub(crate) fn queued(&self, time: Duration) {
        self.queue_seconds.observe(time.as_secs_f64());
    }

    pub(crate) fn first_token(&self, time: Duration) {
        self.first_token_seconds.observe(time.as_secs_f64());
    }

    pub(crate) fn next_token(&self, time: Duration) {
        self.inter_token_seconds.observe(time.as_secs_f64());
    }

    pub(crate) fn ended(&self, endpoint: Endpoint, model: &ModelId, summary: &Summary) {
        let endpoint = endpoint.as_str();
        let outcome = summary.closing.as_str();
        self.requests.with_label_values(&[endpoint, model.as_str(), outcome]).inc();
        self.request_seconds.with_label_values(&[endpoint]).observe(summary.total.as_secs_f64());
        self.prompt_tokens.inc_by(summary.usage.prompt_tokens.into());
        self.cached_tokens.inc_by(summary.usage.cached_tokens.into());
        self.generated_tokens.inc_by(summary.usage.generated_tokens.into());
    }

    pub(crate) fn cut(&self, cut: Cut) {
        self.cut.with_label_values(&[cut.as_str()]).inc();
    }

    pub(crate) fn answered_with(&self, failure: &Failure) {
        self.errors.with_label_values(&[failure.reason()]).inc();
    }
}
