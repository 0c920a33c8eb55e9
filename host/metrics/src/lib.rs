//! The metrics registry and its exposition.
//!
//! Components declare their families in one struct each, through a [`Registry`] made once in
//! `cli`; name, labels and help stand side by side there and nowhere else.
//!
//! # Invariants
//!
//! - Every family starts with `interlock_` and is declared once; a second declaration is a bug
//!   and ends the start-up.
//! - Labels are closed sets or named by the operator (models, policies), never client input.

use std::sync::Mutex;

pub use prometheus::core::{Collector, Desc};
pub use prometheus::proto;
use prometheus::{Encoder, HistogramOpts, Opts, TextEncoder};
pub use prometheus::{
    Gauge, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
};

const PREFIX: &str = "interlock";

/// The description of a metric family, for the inventory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Family {
    /// Full name, `interlock_` included.
    pub name: String,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// Label names, in order.
    pub labels: Vec<String>,
    /// The help text.
    pub help: String,
}

/// All families of this process.
#[derive(Debug, Default)]
pub struct Registry {
    prometheus: prometheus::Registry,
    // Written while components declare themselves at start, read by the inventory test.
    families: Mutex<Vec<Family>>,
}

impl Registry {
    /// An empty registry.
    pub fn new() -> Self {
        Self::default()
    }

    /// Declares a counter.
    ///
    /// # Panics
    ///
    /// Here and in the methods below: when the name is taken or not a metric name, which is a bug.
    pub fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.declare("counter", name, help, &[], IntCounter::with_opts(opts(name, help)))
    }

    /// Declares counters told apart by labels.
    pub fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.declare("counter", name, help, labels, IntCounterVec::new(opts(name, help), labels))
    }

    /// Declares a gauge of whole numbers.
    pub fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.declare("gauge", name, help, &[], IntGauge::with_opts(opts(name, help)))
    }

    /// Declares gauges told apart by labels.
    pub fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.declare("gauge", name, help, labels, IntGaugeVec::new(opts(name, help), labels))
    }

    /// Declares a histogram with these upper bounds.
    pub fn histogram(&self, name: &str, help: &str, bounds: &[f64]) -> Histogram {
        let opts = HistogramOpts::from(opts(name, help)).buckets(bounds.to_vec());
        self.declare("histogram", name, help, &[], Histogram::with_opts(opts))
    }

    /// Declares histograms told apart by labels.
    pub fn histograms(
        &self,
        name: &str,
        help: &str,
        bounds: &[f64],
        labels: &[&str],
    ) -> HistogramVec {
        let opts = HistogramOpts::from(opts(name, help)).buckets(bounds.to_vec());
        self.declare("histogram", name, help, labels, HistogramVec::new(opts, labels))
    }

    /// Adds families that come and go while the process runs, which no inventory can name.
    ///
    /// # Panics
    ///
    /// When there is one already: who has such families has them all.
    pub fn collect(&self, collector: Box<dyn Collector>) {
        self.prometheus
            .register(collector)
            .unwrap_or_else(|e| panic!("a second collector cannot be added: {e}"));
    }

    /// Everything in Prometheus' text format, version 0.0.4.
    ///
    /// # Errors
    ///
    /// When the encoder fails, which only a bug in a collector can cause.
    pub fn expose(&self) -> Result<String, prometheus::Error> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.prometheus.gather(), &mut text)?;
        String::from_utf8(text).map_err(|e| prometheus::Error::Msg(e.to_string()))
    }

    /// The `content-type` of [`Registry::expose`].
    pub const CONTENT_TYPE: &'static str = "text/plain; version=0.0.4; charset=utf-8";

    /// Every declared family, sorted by name.
    pub fn families(&self) -> Vec<Family> {
        let mut families =
            self.families.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        families.sort();
        families
    }

    fn declare<C: Collector + Clone + 'static>(
        &self,
        kind: &'static str,
        name: &str,
        help: &str,
        labels: &[&str],
        collector: Result<C, prometheus::Error>,
    ) -> C {
        let declared = collector
            .and_then(|c| self.prometheus.register(Box::new(c.clone())).map(|()| c))
            .unwrap_or_else(|e| panic!("metric {PREFIX}_{name} cannot be declared: {e}"));
        self.families.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(Family {
            name: format!("{PREFIX}_{name}"),
            kind,
            labels: labels.iter().map(|&l| l.to_owned()).collect(),
            help: help.to_owned(),
        });
        declared
    }
}

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(name, help).namespace(PREFIX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_is_exposed_under_our_prefix() {
        let registry = Registry::new();
        registry.counters("calls_total", "Calls.", &["by"]).with_label_values(&["me"]).inc();
        let text = registry.expose().expect("encodes");
        assert!(text.contains("interlock_calls_total{by=\"me\"} 1"), "{text}");
    }

    #[test]
    #[should_panic(expected = "metric interlock_calls_total cannot be declared")]
    fn a_family_declared_twice_ends_the_start_up() {
        let registry = Registry::new();
        registry.counter("calls_total", "Calls.");
        registry.counter("calls_total", "Calls.");
    }
}
