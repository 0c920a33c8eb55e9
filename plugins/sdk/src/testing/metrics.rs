//! Metrics that a test can look at. What would be a trap is a panic here.

use super::world;
use crate::metrics::MetricKind;

pub(crate) fn add(metric: u32, value: f64, labels: &[String]) {
    let kind = check(metric, value, labels);
    assert!(kind != MetricKind::Histogram, "a histogram observes");
    assert!(kind != MetricKind::Counter || value >= 0.0, "a counter only grows, got {value}");
    change(metric, labels, |number| *number += value);
}

pub(crate) fn set(metric: u32, value: f64, labels: &[String]) {
    let kind = check(metric, value, labels);
    assert!(kind == MetricKind::Gauge, "only a gauge can be set");
    change(metric, labels, |number| *number = value);
}

pub(crate) fn observe(metric: u32, value: f64, labels: &[String]) {
    let kind = check(metric, value, labels);
    assert!(kind == MetricKind::Histogram, "only a histogram observes");
    change(metric, labels, |number| *number += 1.0);
}

fn check(metric: u32, value: f64, labels: &[String]) -> MetricKind {
    let declared = world(|world| world.declared.get(metric as usize).copied());
    let declared = declared.expect("the policy begins with Host::begin and has METRICS");
    assert!(value.is_finite(), "{} got {value}", declared.name);
    assert_eq!(labels.len(), declared.labels.len(), "labels of {}", declared.name);
    declared.kind
}

fn change(metric: u32, labels: &[String], with: impl FnOnce(&mut f64)) {
    world(|world| with(world.numbers.entry((metric, labels.to_vec())).or_default()));
}
