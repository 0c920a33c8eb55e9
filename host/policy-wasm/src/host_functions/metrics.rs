//! `metrics`: a policy's own numbers, bounded in how many there can be.
//!
//! They cannot be families of the host's registry, which are declared once and for good: a policy
//! comes, is replaced by another generation, and may have other metrics then. So they are one
//! collector, which says at each scrape what there is.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use interlock_metrics::proto::{
    Bucket, Counter, Gauge, Histogram, LabelPair, Metric as Sample, MetricFamily, MetricType,
};
use interlock_metrics::{Collector, Desc};

use super::{GuestState, Misuse};
use crate::from_wit::cut;
use crate::limits::{METRIC_LABEL_BYTES_MAX, METRIC_SERIES_MAX};
use crate::wit::imports::metrics as wit;
use crate::wit::v0_2::exports::interlock::policy::lifecycle::{Metric, MetricKind};

/// What is counted beyond the sets of label values that a metric may have.
const OTHER: &str = "__other__";

/// What the names of a histogram's series end with.
const ENDINGS: [&str; 3] = ["_bucket", "_sum", "_count"];

/// Upper bounds of histograms: two in each power of ten, 1e-6 to 1e6.
const BOUNDS: [f64; 25] = [
    1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0,
    100.0, 300.0, 1e3, 3e3, 1e4, 3e4, 1e5, 3e5, 1e6,
];

/// The metrics of all policies: a collector for the host's registry. Every clone is the same.
#[derive(Clone, Default)]
pub(crate) struct PluginMetrics(Arc<Mutex<Families>>);

// By name, then by policy.
type Families = BTreeMap<String, BTreeMap<String, Arc<PolicyFamily>>>;

/// The metrics of one policy, by their index in its descriptor.
pub(crate) struct DeclaredMeters(Vec<Arc<PolicyFamily>>);

/// The metrics of one policy, as they are shown.
pub(crate) struct ExposedMetrics<'a> {
    pub(crate) policy: &'a str,
    pub(crate) metrics: &'a [Metric],
    pub(crate) meters: &'a DeclaredMeters,
}

impl ExposedMetrics<'_> {
    fn put(self, families: &mut Families) {
        for (metric, family) in self.metrics.iter().zip(&self.meters.0) {
            let policies = families.entry(metric.name.clone()).or_default();
            policies.insert(self.policy.to_owned(), Arc::clone(family));
        }
    }

    /// Why the metrics of two policies cannot be shown together: both would stand in one family,
    /// which has one kind, one set of labels and one help.
    pub(crate) fn contradicts(&self, other: &Self) -> Option<String> {
        // Of two generations of a policy one is shown.
        if self.policy == other.policy {
            return None;
        }
        let with = |mine| other.metrics.iter().find_map(|theirs| self.clash(mine, other, theirs));
        self.metrics.iter().find_map(with)
    }

    fn clash(&self, mine: &Metric, other: &Self, theirs: &Metric) -> Option<String> {
        let (name, policy) = (&mine.name, other.policy);
        if let Some(ending) = overlap(mine, theirs) {
            let theirs = &theirs.name;
            return Some(format!(
                "its metric {name:?} and {theirs:?} of the policy {policy:?} would be taken for each \
                 other, since a histogram has series that end with {ending}: rename one of them"
            ));
        }
        let (mine, theirs) = difference(mine, theirs)?;
        Some(format!(
            "its metric {name:?} {mine}, and that of the policy {policy:?} {theirs}; both would be \
             shown as interlock_plugin_{name}: make them alike, or rename one of them"
        ))
    }
}

/// What two metrics of one name say of themselves where they differ, in words.
fn difference(mine: &Metric, theirs: &Metric) -> Option<(String, String)> {
    if mine.name != theirs.name {
        return None;
    }
    let both = |of: fn(&Metric) -> String| Some((of(mine), of(theirs)));
    if mine.kind != theirs.kind {
        return both(|metric| format!("is a {}", kind(metric.kind)));
    }
    if mine.labels != theirs.labels {
        return both(|metric| match metric.labels.is_empty() {
            true => "has no labels".to_owned(),
            false => format!("has the labels {}", metric.labels.join(", ")),
        });
    }
    if mine.help != theirs.help {
        return both(|metric| format!("has the help {:?}", metric.help));
    }
    None
}

/// What the name of one metric ends with when the other is a histogram that has such a series.
pub(crate) fn overlap<'a>(a: &'a Metric, b: &'a Metric) -> Option<&'a str> {
    let series = |histogram: &'a Metric, other: &'a Metric| {
        let ending = other.name.strip_prefix(&histogram.name)?;
        let is_one = histogram.kind == MetricKind::Histogram && ENDINGS.contains(&ending);
        is_one.then_some(ending)
    };
    series(a, b).or_else(|| series(b, a))
}

/// One metric of one policy.
struct PolicyFamily {
    kind: MetricKind,
    help: String,
    labels: Vec<String>,
    series: RwLock<HashMap<Vec<String>, Arc<Series>>>,
}

/// A number, or a distribution of them. Floats are kept as their bits.
struct Series {
    value: AtomicU64,
    buckets: Option<Box<[AtomicU64; BOUNDS.len() + 1]>>,
}

impl PluginMetrics {
    /// The metrics that a policy will count, which nobody sees yet: it may come to nothing. What is
    /// shown under the same name and of the same shape goes on; of another shape, it begins anew.
    pub(crate) fn prepare(&self, policy: &str, metrics: &[Metric]) -> DeclaredMeters {
        let families = self.families();
        let prepared = metrics.iter().map(|metric| {
            let shown = families.get(&metric.name).and_then(|policies| policies.get(policy));
            let family = shown.filter(|family| family.is(metric)).cloned();
            let family = family.unwrap_or_else(|| Arc::new(PolicyFamily::new(metric)));
            // There before its first event, or a rate would miss that one.
            if family.labels.is_empty() {
                family.series(&[]);
            }
            family
        });
        DeclaredMeters(prepared.collect())
    }

    /// Shows the metrics of these policies, and no others from the next scrape on.
    pub(crate) fn show_only<'a>(&self, policies: impl Iterator<Item = ExposedMetrics<'a>>) {
        let mut families = Families::new();
        for shown in policies {
            shown.put(&mut families);
        }
        *self.families() = families;
    }

    /// Shows those of one more policy, in place of what it had before.
    pub(crate) fn show(&self, shown: ExposedMetrics<'_>) {
        let mut families = self.families();
        for family in families.values_mut() {
            family.remove(shown.policy);
        }
        shown.put(&mut families);
        families.retain(|_, policies| !policies.is_empty());
    }

    fn families(&self) -> MutexGuard<'_, Families> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn kind(kind: MetricKind) -> &'static str {
    match kind {
        MetricKind::Counter => "counter",
        MetricKind::Gauge => "gauge",
        MetricKind::Histogram => "histogram",
    }
}

impl PolicyFamily {
    fn new(metric: &Metric) -> Self {
        let (help, labels) = (metric.help.clone(), metric.labels.clone());
        Self { kind: metric.kind, help, labels, series: RwLock::default() }
    }

    fn is(&self, metric: &Metric) -> bool {
        (self.kind, &self.help, &self.labels) == (metric.kind, &metric.help, &metric.labels)
    }

    fn series(&self, labels: &[String]) -> Arc<Series> {
        let read = self.series.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(series) = read.get(labels) {
            return Arc::clone(series);
        }
        drop(read);
        let mut series = self.series.write().unwrap_or_else(PoisonError::into_inner);
        // A place of its own for what comes too late.
        let full = series.len() >= METRIC_SERIES_MAX && !series.contains_key(labels);
        let labels = if full { vec![OTHER.to_owned(); labels.len()] } else { labels.to_vec() };
        let fresh = || Arc::new(Series::new(self.kind));
        Arc::clone(series.entry(labels).or_insert_with(fresh))
    }
}

impl Series {
    fn new(kind: MetricKind) -> Self {
        let buckets = || Box::new([const { AtomicU64::new(0) }; BOUNDS.len() + 1]);
        let buckets = (kind == MetricKind::Histogram).then(buckets);
        Self { value: AtomicU64::new(0_f64.to_bits()), buckets }
    }

    fn add(&self, value: f64) {
        let more = |bits| Some((f64::from_bits(bits) + value).to_bits());
        // It never says no.
        let _ = self.value.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
    }

    fn observe(&self, value: f64) {
        if let Some(buckets) = &self.buckets {
            buckets[BOUNDS.partition_point(|bound| *bound < value)].fetch_add(1, Ordering::Relaxed);
            self.add(value);
        }
    }

    fn value(&self) -> f64 {
        f64::from_bits(self.value.load(Ordering::Relaxed))
    }
}

impl GuestState {
    /// The series that is meant, if the call makes sense.
    fn series(
        &mut self,
        metric: u32,
        value: f64,
        mut labels: Vec<String>,
        fits: &[MetricKind],
    ) -> wasmtime::Result<(MetricKind, Arc<Series>)> {
        self.charge()?;
        let misuse = |why: String| Err(Misuse(why).into());
        let Some(meters) = self.functions.meters.get() else {
            return misuse("it counted before it had said what it counts".into());
        };
        let family = usize::try_from(metric).ok().and_then(|index| meters.0.get(index));
        let Some(family) = family else {
            return misuse(format!(
                "metric {metric} is none of the {} that it declared",
                meters.0.len()
            ));
        };
        if !fits.contains(&family.kind) {
            return misuse(format!("metric {metric} is a {}", kind(family.kind)));
        }
        if labels.len() != family.labels.len() {
            return misuse(format!(
                "metric {metric} has {} labels, got {}",
                family.labels.len(),
                labels.len()
            ));
        }
        if !value.is_finite() || (family.kind == MetricKind::Counter && value < 0.0) {
            return misuse(format!("metric {metric} cannot count {value}"));
        }
        for label in &mut labels {
            label.truncate(cut(label, METRIC_LABEL_BYTES_MAX).len());
        }
        Ok((family.kind, family.series(&labels)))
    }
}

impl wit::Host for GuestState {
    fn add(&mut self, metric: u32, value: f64, labels: Vec<String>) -> wasmtime::Result<()> {
        let fits = [MetricKind::Counter, MetricKind::Gauge];
        let (_, series) = self.series(metric, value, labels, &fits)?;
        series.add(value);
        Ok(())
    }

    fn set(&mut self, metric: u32, value: f64, labels: Vec<String>) -> wasmtime::Result<()> {
        let (_, series) = self.series(metric, value, labels, &[MetricKind::Gauge])?;
        series.value.store(value.to_bits(), Ordering::Relaxed);
        Ok(())
    }

    fn observe(&mut self, metric: u32, value: f64, labels: Vec<String>) -> wasmtime::Result<()> {
        let (_, series) = self.series(metric, value, labels, &[MetricKind::Histogram])?;
        series.observe(value);
        Ok(())
    }
}

impl Collector for PluginMetrics {
    /// What there is changes, and the registry allows to say nothing beforehand.
    fn desc(&self) -> Vec<&Desc> {
        Vec::new()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.families().iter().map(|(name, policies)| exposed(name, policies)).collect()
    }
}

fn exposed(name: &str, policies: &BTreeMap<String, Arc<PolicyFamily>>) -> MetricFamily {
    let mut exposed = MetricFamily::default();
    exposed.set_name(format!("interlock_plugin_{name}"));
    if let Some(first) = policies.values().next() {
        exposed.set_help(first.help.clone());
        exposed.set_field_type(match first.kind {
            MetricKind::Counter => MetricType::COUNTER,
            MetricKind::Gauge => MetricType::GAUGE,
            MetricKind::Histogram => MetricType::HISTOGRAM,
        });
    }
    let mut metrics = Vec::new();
    for (policy, family) in policies {
        let series = family.series.read().unwrap_or_else(PoisonError::into_inner);
        for (values, series) in series.iter() {
            let names = std::iter::once("policy").chain(family.labels.iter().map(String::as_str));
            let values = std::iter::once(policy.as_str()).chain(values.iter().map(String::as_str));
            metrics.push(measured(names.zip(values), family.kind, series));
        }
    }
    exposed.set_metric(metrics);
    exposed
}

fn measured<'a>(
    labels: impl Iterator<Item = (&'a str, &'a str)>,
    kind: MetricKind,
    series: &Series,
) -> Sample {
    let pair = |(name, value): (&str, &str)| {
        let mut pair = LabelPair::default();
        pair.set_name(name.to_owned());
        pair.set_value(value.to_owned());
        pair
    };
    let mut labels: Vec<LabelPair> = labels.map(pair).collect();
    labels.sort_by(|a, b| a.name().cmp(b.name()));
    let mut metric = Sample::from_label(labels);
    match (kind, &series.buckets) {
        (MetricKind::Counter, _) => {
            let mut counter = Counter::default();
            counter.set_value(series.value());
            metric.set_counter(counter);
        }
        (MetricKind::Histogram, Some(counts)) => {
            let mut sum = 0;
            let mut buckets = Vec::with_capacity(BOUNDS.len());
            for (count, bound) in counts.iter().zip(BOUNDS) {
                sum += count.load(Ordering::Relaxed);
                let mut bucket = Bucket::default();
                bucket.set_cumulative_count(sum);
                bucket.set_upper_bound(bound);
                buckets.push(bucket);
            }
            sum += counts[BOUNDS.len()].load(Ordering::Relaxed);
            let mut histogram = Histogram::default();
            histogram.set_sample_count(sum);
            histogram.set_sample_sum(series.value());
            histogram.set_bucket(buckets);
            metric.set_histogram(histogram);
        }
        (MetricKind::Gauge | MetricKind::Histogram, _) => {
            let mut gauge = Gauge::default();
            gauge.set_value(series.value());
            metric.set_gauge(gauge);
        }
    }
    metric
}

#[cfg(test)]
mod tests;
