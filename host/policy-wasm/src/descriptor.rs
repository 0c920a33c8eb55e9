//! What a policy says of itself, once it was found to make sense.

use std::collections::BTreeSet;

use interlock_policy_api::{Phase, Watch};
use serde::Serialize;

use crate::LoadProblem;
use crate::from_wit;
use crate::grants::Grant;
use crate::host_functions::overlap;
use crate::limits::{
    METRIC_LABELS_MAX, METRICS_MAX, NEEDS_MAX, REASON_CODE_BYTES_MAX, REASONS_MAX, SCHEMA_BYTES_MAX,
};
use crate::wit::v0_1::exports::interlock::policy::lifecycle as old;
use crate::wit::v0_2::exports::interlock::policy::lifecycle;

/// A descriptor as it came.
pub(crate) struct Descriptor {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) reasons: Vec<String>,
    pub(crate) metrics: Vec<lifecycle::Metric>,
    pub(crate) needs: Vec<String>,
    pub(crate) watch: Watch,
    pub(crate) settings_schema: String,
}

/// A metric of a policy's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeclaredMetric {
    /// Its name behind `interlock_plugin_`.
    pub name: String,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// What it means.
    pub help: String,
    /// Names of its labels, besides `policy`.
    pub labels: Vec<String>,
}

impl From<lifecycle::Descriptor> for Descriptor {
    fn from(said: lifecycle::Descriptor) -> Self {
        Self {
            name: said.name,
            version: said.version,
            reasons: said.reasons,
            metrics: said.metrics,
            needs: said.needs,
            watch: from_wit::watch(&said.watch),
            settings_schema: said.settings_schema,
        }
    }
}

impl From<old::Descriptor> for Descriptor {
    fn from(said: old::Descriptor) -> Self {
        Self {
            name: said.name,
            version: said.version,
            reasons: Vec::new(),
            metrics: Vec::new(),
            needs: Vec::new(),
            watch: Watch::default(),
            settings_schema: String::new(),
        }
    }
}

impl Descriptor {
    /// What is wrong with it, if anything is; its needs otherwise.
    pub(crate) fn check(&self) -> Result<Vec<Grant>, LoadProblem> {
        plain("name", &self.name, 64)?;
        plain("version", &self.version, 32)?;
        let said = |what: String| Err(LoadProblem::Descriptor(what));
        if self.reasons.len() > REASONS_MAX {
            return said(format!("at most {REASONS_MAX} reasons, got {}", self.reasons.len()));
        }
        let code = |reason: &String| {
            (1..=REASON_CODE_BYTES_MAX).contains(&reason.len())
                && reason.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        };
        if let Some(reason) = self.reasons.iter().find(|reason| !code(reason)) {
            let reason = from_wit::cut(reason, REASON_CODE_BYTES_MAX);
            return said(format!(
                "a reason is 1 to {REASON_CODE_BYTES_MAX} lower-case letters, digits and '_', got {reason:?}"
            ));
        }
        if let Some(twice) = repeated(self.reasons.iter()) {
            return said(format!("reasons must differ, got {twice:?} twice"));
        }
        self.check_metrics()?;
        if self.settings_schema.len() > SCHEMA_BYTES_MAX {
            return said(format!(
                "a settings-schema has at most {SCHEMA_BYTES_MAX} bytes, got {}",
                self.settings_schema.len()
            ));
        }
        if self.needs.len() > NEEDS_MAX {
            return said(format!("at most {NEEDS_MAX} needs, got {}", self.needs.len()));
        }
        let need = |need: &String| {
            need.parse::<Grant>()
                .map_err(|bad| LoadProblem::Descriptor(format!("its needs: {bad}")))
        };
        self.needs.iter().map(need).collect()
    }

    fn check_metrics(&self) -> Result<(), LoadProblem> {
        let said = |what: String| Err(LoadProblem::Descriptor(what));
        if self.metrics.len() > METRICS_MAX {
            return said(format!("at most {METRICS_MAX} metrics, got {}", self.metrics.len()));
        }
        let word = |text: &str| {
            (1..=64).contains(&text.len())
                && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
                && !text.as_bytes()[0].is_ascii_digit()
        };
        for metric in &self.metrics {
            let name = from_wit::cut(&metric.name, 64);
            let counts = metric.kind == lifecycle::MetricKind::Counter;
            if !word(&metric.name) || counts != metric.name.ends_with("_total") {
                return said(format!(
                    "a metric's name is 1 to 64 letters, digits and '_', and counters alone end \
                     with _total, got {name:?}"
                ));
            }
            let reserved = |label: &&String| {
                !word(label)
                    || label.starts_with("__")
                    || ["policy", "le"].contains(&label.as_str())
            };
            if let Some(label) = metric.labels.iter().find(reserved) {
                return said(format!(
                    "a label of {name:?} is 1 to 64 letters, digits and '_', and neither policy nor \
                     le, got {:?}",
                    from_wit::cut(label, 64)
                ));
            }
            if metric.labels.len() > METRIC_LABELS_MAX || repeated(metric.labels.iter()).is_some() {
                return said(format!(
                    "a metric has at most {METRIC_LABELS_MAX} labels, all different; {name:?} has not"
                ));
            }
            if metric.help.len() > 512 || metric.help.chars().any(char::is_control) {
                return said(format!("the help of {name:?} is one line of at most 512 bytes"));
            }
        }
        if let Some(twice) = repeated(self.metrics.iter().map(|metric| &metric.name)) {
            return said(format!("metrics must differ, got {twice:?} twice"));
        }
        for (at, metric) in self.metrics.iter().enumerate() {
            let ending = |other| Some((other, overlap(metric, other)?));
            if let Some((other, ending)) = self.metrics[..at].iter().find_map(ending) {
                let (name, other) = (&metric.name, &other.name);
                return said(format!(
                    "{name:?} and {other:?} would be taken for each other, since a histogram has \
                     series that end with {ending}"
                ));
            }
        }
        Ok(())
    }

    /// What it watches, as far as it exports what would be called.
    pub(crate) fn watched(&self, takes: impl Fn(Phase) -> bool) -> Watch {
        within(self.watch, takes)
    }

    /// Does another instance say the same, as far as others rely on it?
    pub(crate) fn agrees(&self, other: &Self) -> bool {
        let shape = |descriptor: &Self| -> Vec<(String, lifecycle::MetricKind, Vec<String>)> {
            let metrics = descriptor.metrics.iter();
            metrics.map(|m| (m.name.clone(), m.kind, m.labels.clone())).collect()
        };
        self.version == other.version
            && self.reasons == other.reasons
            && self.watch == other.watch
            && shape(self) == shape(other)
    }

    pub(crate) fn metrics(&self) -> Vec<DeclaredMetric> {
        let declared = |metric: &lifecycle::Metric| DeclaredMetric {
            name: metric.name.clone(),
            kind: match metric.kind {
                lifecycle::MetricKind::Counter => "counter",
                lifecycle::MetricKind::Gauge => "gauge",
                lifecycle::MetricKind::Histogram => "histogram",
            },
            help: metric.help.clone(),
            labels: metric.labels.clone(),
        };
        self.metrics.iter().map(declared).collect()
    }
}

/// A watch without what nobody would be called for.
pub(crate) fn within(watch: Watch, takes: impl Fn(Phase) -> bool) -> Watch {
    let none = Watch::default();
    let (events, stalled_after) = if takes(Phase::Events) {
        (watch.events, watch.stalled_after)
    } else {
        (none.events, None)
    };
    let guarding = if takes(Phase::StreamGuard) { watch.guarding } else { none.guarding };
    Watch { events, stalled_after, guarding }
}

fn repeated<'a>(names: impl Iterator<Item = &'a String>) -> Option<&'a String> {
    let mut seen = BTreeSet::new();
    names.into_iter().find(|name| !seen.insert(*name))
}

fn plain(field: &str, value: &str, max: usize) -> Result<(), LoadProblem> {
    let printable = |c: char| c.is_ascii_graphic() || c == ' ';
    if (1..=max).contains(&value.len()) && value.chars().all(printable) {
        return Ok(());
    }
    let value: String = value.chars().take(max).collect();
    Err(LoadProblem::Descriptor(format!(
        "its {field} must be 1 to {max} bytes of printable ASCII, got {value:?}"
    )))
}
