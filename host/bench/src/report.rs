//! What a run found out, as it is kept in a file.
//!
//! Every iteration is kept, so that a later comparison knows the spread.

use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

use crate::failure::Failures;
use crate::machine::{LoadAverage, Machine};
use crate::plan::BenchPlan;
use crate::stats::Spread;
use crate::workload::WorkloadKind;

/// What this version writes, and reads.
const FORMAT: &str = "interlock-bench/1";

/// The results of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BenchReport {
    /// `interlock-bench/1`: changes when a reader of the old would be wrong about the new.
    pub format: String,
    /// The time at which the run began, in UTC.
    pub at: String,
    /// The version of the program that measured.
    pub version: String,
    /// The machine that measured; the servers may be on another.
    pub machine: Machine,
    /// The machine's load average before the run.
    pub load_before: Option<LoadAverage>,
    /// The machine's load average after the run.
    pub load_after: Option<LoadAverage>,
    /// The plan of the run.
    pub plan: BenchPlan,
    /// The servers that were measured.
    pub targets: Vec<TargetFacts>,
    /// What was measured: workload by workload, concurrency by concurrency, target by target.
    pub cells: Vec<Cell>,
    /// The results of storms.
    pub storms: Vec<Storm>,
}

/// What is known of a measured server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetFacts {
    /// The server's name in the report.
    pub name: String,
    /// The server's URL.
    pub url: String,
    /// The model that requests named.
    pub model: String,
    /// The model's `owned_by`, which often names the server.
    pub owned_by: Option<String>,
    /// The server's version, if this program started it.
    pub version: Option<String>,
}

/// One workload at one concurrency on one target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// The kind of prompts.
    pub workload: WorkloadKind,
    /// Requests at once.
    pub concurrency: NonZeroU32,
    /// The target's name.
    pub target: String,
    /// The results of each iteration.
    pub batches: Vec<Iteration>,
    /// The median time between two pieces of text, over the answers of all iterations.
    pub inter_token_ms_p50: Option<f64>,
    /// The 99th percentile of the time between two pieces of text, over the answers of all iterations.
    pub inter_token_ms_p99: Option<f64>,
    /// Each answer's tokens divided by its time, over the answers of all iterations.
    #[serde(default)]
    pub request_tokens_per_s: Option<Spread>,
    /// The failed requests of the warm-up.
    pub warmup_failures: Failures,
}

/// One iteration: requests sent at once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Iteration {
    /// The number of requests sent.
    pub requests: u64,
    /// Requests with a whole answer. The others are in `failures`.
    pub answered: u64,
    /// Answers of fewer tokens than asked for: the model ended them.
    pub short: u64,
    /// Tokens of whole answers.
    pub tokens: u64,
    /// Answers whose tokens the server counted; those of the others are pieces of text.
    pub counted_by_server: u64,
    /// Pieces of text that whole answers came in.
    pub chunks: u64,
    /// Tokens of prompts, where the server counted.
    pub prompt_tokens: u64,
    /// From the first request sent to the last answer's end.
    pub wall_s: f64,
    /// `tokens` divided by `wall_s`.
    pub tokens_per_s: Option<f64>,
    /// Each answer's tokens divided by its time: the mean over answers.
    pub request_tokens_per_s: Option<f64>,
    /// From sending a request to its first text: the shortest time.
    pub first_token_ms_least: Option<f64>,
    /// From sending a request to its first text: the mean.
    pub first_token_ms_mean: Option<f64>,
    /// From sending a request to its first text: the longest time.
    pub first_token_ms_most: Option<f64>,
    /// The median time between two pieces of text of an answer.
    pub inter_token_ms_p50: Option<f64>,
    /// The 99th percentile of the time between two pieces of text of an answer.
    pub inter_token_ms_p99: Option<f64>,
    /// The server's CPU time, if this program started the server and the system tells.
    pub cpu_s: Option<f64>,
    /// Requests without a whole answer.
    pub failures: Failures,
}

/// One disconnect storm.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Storm {
    /// Requests at once.
    pub concurrency: NonZeroU32,
    /// The target's name.
    pub target: String,
    /// Requests sent in all.
    pub requests: u64,
    /// Requests with a whole answer.
    pub served: u64,
    /// Requests that the client left on purpose before the first text.
    pub left_before_text: u64,
    /// Requests that the client left on purpose in the middle of the answer.
    pub left_midway: u64,
    /// Requests refused with 429 or 503, by status.
    pub refused: Failures,
    /// Requests that failed in any other way.
    pub failures: Failures,
    /// From the first request to the last end.
    pub wall_s: f64,
    /// The state of the server after the storm.
    pub after: StormAfter,
}

/// A server after a storm.
#[derive(Debug, Default, Clone, PartialEq, Serialize, Deserialize)]
pub struct StormAfter {
    /// The failure of one more plain request; None when it was answered.
    pub failure: Option<String>,
    /// Seconds until the server's metrics showed no request, running or waiting; None when the server
    /// has no such metrics, or that did not happen.
    pub idle_after_s: Option<f64>,
    /// The requests that the server's metrics showed at the end, if there were any.
    pub still: Option<String>,
    /// The most passes that an Interlock has had in its device at once, since it started.
    #[serde(default)]
    pub passes_in_flight_max: Option<f64>,
    /// Passes of an Interlock that failed from the storm's begin to its end.
    #[serde(default)]
    pub failed_passes: Option<f64>,
}

/// Why a file is not a report that can be read.
#[derive(Debug, thiserror::Error)]
pub enum NotAReport {
    /// The file is not a report.
    #[error("not a report of `interlock bench`: {0}")]
    Other(serde_json::Error),
    /// The report was written by a version with another format.
    #[error("its format is {found:?}; this version reads {FORMAT:?}")]
    Format {
        /// The format that the report names.
        found: String,
    },
}

/// Reads one figure of an iteration, for tables and plots.
pub(crate) type Figure = fn(&Iteration) -> Option<f64>;

impl BenchReport {
    pub(crate) fn begin(plan: &BenchPlan, targets: Vec<TargetFacts>) -> Self {
        Self {
            format: FORMAT.to_owned(),
            at: humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            machine: Machine::here(),
            load_before: LoadAverage::now(),
            load_after: None,
            plan: plan.clone(),
            targets,
            cells: Vec::new(),
            storms: Vec::new(),
        }
    }

    /// Reads what [`BenchReport::to_json`] wrote.
    ///
    /// # Errors
    ///
    /// When it did not.
    pub fn parse(json: &str) -> Result<Self, NotAReport> {
        #[derive(Deserialize)]
        struct Head {
            format: String,
        }
        let Head { format: found } = serde_json::from_str(json).map_err(NotAReport::Other)?;
        if found != FORMAT {
            return Err(NotAReport::Format { found });
        }
        serde_json::from_str(json).map_err(NotAReport::Other)
    }

    /// All of it.
    #[must_use]
    pub fn to_json(&self) -> String {
        let json = serde_json::to_string_pretty(self);
        json.expect("texts, numbers and maps by text are JSON") + "\n"
    }

    /// How many things went wrong: requests without an answer, servers that a storm broke.
    #[must_use]
    pub fn failures(&self) -> u64 {
        let cells = self.cells.iter().map(|cell| cell.failures().count());
        let storms = self.storms.iter().map(|storm| {
            let after = &storm.after;
            storm.failures.count()
                + u64::from(after.failure.is_some())
                + u64::from(after.still.is_some())
                + u64::from(after.overlapped())
                + after.failed_passes.map_or(0, |passes| passes as u64)
        });
        cells.chain(storms).sum()
    }

    pub(crate) fn target_names(&self) -> impl Iterator<Item = &str> {
        self.targets.iter().map(|target| target.name.as_str())
    }

    pub(crate) fn cell(
        &self,
        workload: WorkloadKind,
        at_once: NonZeroU32,
        target: &str,
    ) -> Option<&Cell> {
        self.cells.iter().find(|cell| {
            (cell.workload, cell.concurrency, cell.target.as_str()) == (workload, at_once, target)
        })
    }

    /// The workloads that have cells, in the plan's order.
    pub(crate) fn measured_workloads(&self) -> impl Iterator<Item = WorkloadKind> {
        self.plan.workloads.iter().copied().filter(|workload| *workload != WorkloadKind::Storm)
    }
}

impl Cell {
    /// A figure over the iterations that have it.
    #[must_use]
    pub fn spread(&self, figure: fn(&Iteration) -> Option<f64>) -> Option<Spread> {
        Spread::of(self.batches.iter().filter_map(figure))
    }

    /// Everything that failed, warming up or measuring.
    #[must_use]
    pub fn failures(&self) -> Failures {
        let mut all = self.warmup_failures.clone();
        self.batches.iter().for_each(|batch| all.merge(&batch.failures));
        all
    }
}

impl StormAfter {
    /// Were two passes in the device at once? That is what crashes it.
    pub(crate) fn overlapped(&self) -> bool {
        self.passes_in_flight_max.is_some_and(|most| most > 1.0)
    }
}

impl Iteration {
    /// CPU milliseconds of the server for each token.
    #[must_use]
    pub fn cpu_ms_per_token(&self) -> Option<f64> {
        let seconds = self.cpu_s.filter(|_| self.tokens > 0)?;
        Some(seconds * 1e3 / self.tokens as f64)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::plan::tests::{nonzero, plan};

    /// A batch whose figures all follow from one.
    pub(crate) fn batch(tokens_per_s: f64) -> Iteration {
        Iteration {
            requests: 4,
            answered: 4,
            short: 0,
            tokens: 256,
            counted_by_server: 4,
            chunks: 256,
            prompt_tokens: 128,
            wall_s: 256.0 / tokens_per_s,
            tokens_per_s: Some(tokens_per_s),
            request_tokens_per_s: Some(tokens_per_s / 4.0),
            first_token_ms_least: Some(1000.0 / tokens_per_s),
            first_token_ms_mean: Some(2000.0 / tokens_per_s),
            first_token_ms_most: Some(4000.0 / tokens_per_s),
            inter_token_ms_p50: Some(500.0 / tokens_per_s),
            inter_token_ms_p99: Some(900.0 / tokens_per_s),
            cpu_s: None,
            failures: Failures::default(),
        }
    }

    pub(crate) fn cell(target: &str, concurrency: u32, tokens_per_s: &[f64]) -> Cell {
        Cell {
            workload: WorkloadKind::Short,
            concurrency: nonzero(concurrency),
            target: target.to_owned(),
            batches: tokens_per_s.iter().copied().map(batch).collect(),
            inter_token_ms_p50: Some(500.0 / tokens_per_s[0]),
            inter_token_ms_p99: Some(900.0 / tokens_per_s[0]),
            request_tokens_per_s: Spread::of(tokens_per_s.iter().flat_map(|r| [r / 5.0, r / 3.0])),
            warmup_failures: Failures::default(),
        }
    }

    /// The figures of the project's origin, more or less.
    pub(crate) fn report() -> BenchReport {
        let facts = |name: &str| TargetFacts {
            name: name.to_owned(),
            url: "http://127.0.0.1:1/v1".to_owned(),
            model: "m".to_owned(),
            owned_by: Some("interlock".to_owned()),
            version: None,
        };
        BenchReport {
            at: "2025-01-01T00:00:00Z".to_owned(),
            version: "0.1.0".to_owned(),
            machine: Machine { cpu: "a cpu".to_owned(), cores: 2, system: "linux x".to_owned() },
            load_before: Some(LoadAverage([0.5, 1.0, 1.5])),
            load_after: None,
            cells: vec![
                cell("simple", 1, &[119.0, 120.0, 121.0]),
                cell("batched", 1, &[140.0, 142.0, 144.0]),
                cell("simple", 4, &[95.0, 95.0, 95.0]),
                cell("batched", 4, &[170.0, 173.0, 176.0]),
            ],
            ..BenchReport::begin(&plan(), vec![facts("simple"), facts("batched")])
        }
    }

    #[test]
    fn a_report_survives_its_file() {
        let report = report();
        assert_eq!(BenchReport::parse(&report.to_json()).expect("our own"), report);
    }

    #[test]
    fn another_file_is_refused_with_the_reason() {
        let refused = |json: &str| BenchReport::parse(json).expect_err("not ours").to_string();
        assert!(refused("{}").starts_with("not a report of `interlock bench`"));
        assert!(refused("hello").starts_with("not a report of `interlock bench`"));
        assert!(refused(r#"{"format":"interlock-bench/9"}"#).contains("interlock-bench/9"));
        assert!(refused(&format!("{{\"format\":\"{FORMAT}\"}}")).contains("missing field"));
    }

    #[test]
    fn whatever_went_wrong_is_counted() {
        let mut report = report();
        assert_eq!(report.failures(), 0);
        let failure = crate::failure::RequestFailure::Cut("x".to_owned());
        report.cells[0].batches[1].failures.add(&failure);
        report.cells[1].warmup_failures.add(&failure);
        report.storms.push(storm());
        assert_eq!(report.failures(), 2);
        report.storms[0].after.still = Some("1 running".to_owned());
        report.storms[0].failures.add(&failure);
        assert_eq!(report.failures(), 4);
        report.storms[0].after.passes_in_flight_max = Some(2.0);
        report.storms[0].after.failed_passes = Some(3.0);
        assert_eq!(report.failures(), 8);
    }

    pub(crate) fn storm() -> Storm {
        Storm {
            concurrency: nonzero(4),
            target: "simple".to_owned(),
            requests: 40,
            served: 18,
            left_before_text: 10,
            left_midway: 11,
            refused: Failures::default(),
            failures: Failures::default(),
            wall_s: 2.5,
            after: StormAfter {
                failure: None,
                idle_after_s: Some(0.05),
                still: None,
                passes_in_flight_max: Some(1.0),
                failed_passes: Some(0.0),
            },
        }
    }
}
