//! Two reports side by side.
//!
//! # Invariants
//!
//! - Only cells of the same workload and concurrency are compared, storms only of the same
//!   concurrency, of the same target: by name, or, where each report has but one target, whatever
//!   its name.
//! - A difference is marked as none when one iteration of B could as well be one of A.

use std::fmt;

use crate::failure::Failures;
use crate::report::{BenchReport, Cell, Figure, Iteration, Storm};
use crate::stats::Spread;
use crate::table::{Column, TextTable, shown};

/// Two reports side by side.
#[derive(Debug)]
pub struct Comparison {
    warnings: Vec<String>,
    pairs: Vec<Pair>,
}

/// A cell, or a storm, of both.
#[derive(Debug)]
struct Pair {
    title: String,
    rows: Vec<ComparisonRow>,
}

#[derive(Debug)]
struct ComparisonRow {
    measure: &'static str,
    a: Spread,
    b: Spread,
    /// Whether each is of several iterations. One of a storm is a single value.
    iterated: bool,
}

/// A figure of a storm, which has no iterations.
type StormFigure = fn(&Storm) -> Option<f64>;

/// No cell and no storm is in both.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the reports have nothing in common (workload, concurrency, target)\n  A has {a}\n  B has {b}"
)]
pub struct CannotCompare {
    a: String,
    b: String,
}

const MEASURES: [(&str, Figure); 9] = [
    ("all tokens/s", |batch| batch.tokens_per_s),
    ("wall clock, s", |batch| Some(batch.wall_s)),
    ("tokens/s of one request", |batch| batch.request_tokens_per_s),
    ("first token smallest, ms", |batch| batch.first_token_ms_least),
    ("first token mean, ms", |batch| batch.first_token_ms_mean),
    ("first token largest, ms", |batch| batch.first_token_ms_most),
    ("between tokens p50, ms", |batch| batch.inter_token_ms_p50),
    ("between tokens p99, ms", |batch| batch.inter_token_ms_p99),
    ("CPU ms/token", Iteration::cpu_ms_per_token),
];

const STORM_MEASURES: [(&str, StormFigure); 8] = [
    ("requests", |storm| Some(storm.requests as f64)),
    ("served", |storm| Some(storm.served as f64)),
    ("left on purpose", |storm| Some((storm.left_before_text + storm.left_midway) as f64)),
    ("refused", |storm| counted(&storm.refused)),
    ("failed", |storm| counted(&storm.failures)),
    ("wall clock, s", |storm| Some(storm.wall_s)),
    ("idle after, s", |storm| storm.after.idle_after_s),
    ("failed passes", |storm| storm.after.failed_passes),
];

fn counted(failures: &Failures) -> Option<f64> {
    Some(failures.count() as f64)
}

/// An entry of a report, which can be compared with the same entry of another report.
trait Comparable {
    fn target(&self) -> &str;
    /// The entry's workload and concurrency, without the target.
    fn place(&self) -> String;
    /// Whether the figures are of several iterations.
    fn iterated(&self) -> bool;
    /// The figures by name; `None` for those that were not measured.
    fn figures(&self) -> Vec<(&'static str, Option<Spread>)>;

    fn title(&self) -> String {
        format!("{}, {}", self.place(), self.target())
    }
}

impl Comparable for Cell {
    fn target(&self) -> &str {
        &self.target
    }

    fn place(&self) -> String {
        format!("{}, {} at once", self.workload, self.concurrency)
    }

    fn iterated(&self) -> bool {
        true
    }

    fn figures(&self) -> Vec<(&'static str, Option<Spread>)> {
        MEASURES.into_iter().map(|(name, figure)| (name, self.spread(figure))).collect()
    }
}

impl Comparable for Storm {
    fn target(&self) -> &str {
        &self.target
    }

    fn place(&self) -> String {
        format!("storm, {} at once", self.concurrency)
    }

    fn iterated(&self) -> bool {
        false
    }

    fn figures(&self) -> Vec<(&'static str, Option<Spread>)> {
        let single = |figure: StormFigure| figure(self).map(Spread::single);
        STORM_MEASURES.into_iter().map(|(name, figure)| (name, single(figure))).collect()
    }
}

/// All that a report has: cells, then storms.
fn contents(report: &BenchReport) -> Vec<&dyn Comparable> {
    let cells = report.cells.iter().map(|cell| cell as &dyn Comparable);
    cells.chain(report.storms.iter().map(|storm| storm as &dyn Comparable)).collect()
}

/// Lines up the cells and storms of both reports.
///
/// # Errors
///
/// When they have none in common.
pub fn compare(a: &BenchReport, b: &BenchReport) -> Result<Comparison, CannotCompare> {
    let renamed = a.targets.len() == 1 && b.targets.len() == 1;
    let same = |one: &dyn Comparable, other: &dyn Comparable| {
        one.place() == other.place() && (renamed || one.target() == other.target())
    };
    let (in_a, in_b) = (contents(a), contents(b));
    let mut warnings = differences(a, b);
    let mut pairs = Vec::new();
    for one in &in_a {
        match in_b.iter().find(|other| same(*one, **other)) {
            Some(other) => pairs.push(Pair::of(*one, *other)),
            None => warnings.push(format!("only in A: {}", one.title())),
        }
    }
    if pairs.is_empty() {
        return Err(CannotCompare { a: titles(&in_a), b: titles(&in_b) });
    }
    let missing = in_b.iter().filter(|other| !in_a.iter().any(|one| same(*one, **other)));
    warnings.extend(missing.map(|other| format!("only in B: {}", other.title())));
    Ok(Comparison { warnings, pairs })
}

fn titles(contents: &[&dyn Comparable]) -> String {
    let titles: Vec<String> = contents.iter().map(|one| one.title()).collect();
    if titles.is_empty() { "none".to_owned() } else { titles.join("; ") }
}

impl Pair {
    fn of(a: &dyn Comparable, b: &dyn Comparable) -> Self {
        let title = match a.target() == b.target() {
            true => a.title(),
            false => format!("{} in A, {} in B", a.title(), b.target()),
        };
        let both = a.figures().into_iter().zip(b.figures());
        let iterated = a.iterated();
        let rows = both.filter_map(|((measure, a), (_, b))| {
            Some(ComparisonRow { measure, a: a?, b: b?, iterated })
        });
        Self { title, rows: rows.collect() }
    }
}

/// What makes figures differ that is not the server.
fn differences(a: &BenchReport, b: &BenchReport) -> Vec<String> {
    let mut found = Vec::new();
    let mut differ = |what: &str, in_a: String, in_b: String| {
        if in_a != in_b {
            found.push(format!("{what} differs: {in_a} in A, {in_b} in B"));
        }
    };
    let machine = |report: &BenchReport| {
        let machine = &report.machine;
        format!("{}, {} cores, {}", machine.cpu, machine.cores, machine.system)
    };
    differ("the machine", machine(a), machine(b));
    let models = |report: &BenchReport| {
        let mut models: Vec<&str> = report.targets.iter().map(|t| t.model.as_str()).collect();
        models.dedup();
        models.join(", ")
    };
    differ("the model", models(a), models(b));
    let plan = |report: &BenchReport| serde_json::to_value(&report.plan).expect("a plan is JSON");
    let (plan_a, plan_b) = (plan(a), plan(b));
    let keys = plan_a.as_object().into_iter().flat_map(|plan| plan.keys());
    // Which cells there are is seen from the cells.
    for key in keys.filter(|key| !["workloads", "concurrency"].contains(&key.as_str())) {
        differ(key, plan_a[key].to_string(), plan_b[key].to_string());
    }
    for (name, report) in [("A", a), ("B", b)] {
        if report.failures() > 0 {
            found.push(format!("{name} has {} failures", report.failures()));
        }
    }
    found
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for warning in &self.warnings {
            writeln!(f, "warning: {warning}")?;
        }
        for Pair { title, rows } in &self.pairs {
            if !self.warnings.is_empty() || title != &self.pairs[0].title {
                writeln!(f)?;
            }
            let column = |name, cell: &dyn Fn(&ComparisonRow) -> String| {
                Column::new(name, rows.iter().map(cell))
            };
            let table = TextTable::default()
                .with(column("", &|row| row.measure.to_owned()))
                .with(column("A", &|row| row.shown(&row.a)))
                .with(column("B", &|row| row.shown(&row.b)))
                .with(column("B/A", &|row| row.ratio()))
                .with(column("", &|row| row.mark().to_owned()));
            write!(f, "{title}\n{table}")?;
        }
        writeln!(f, "\n~ the iterations of A and B overlap: this may be chance.")
    }
}

impl ComparisonRow {
    fn ratio(&self) -> String {
        if self.a.mean == 0.0 {
            "-".to_owned()
        } else {
            format!("{:.2}", self.b.mean / self.a.mean)
        }
    }

    fn shown(&self, figure: &Spread) -> String {
        match figure.mean {
            _ if self.iterated => shown(figure),
            whole if whole.fract() == 0.0 => format!("{whole:.0}"),
            other => format!("{other:.2}"),
        }
    }

    fn mark(&self) -> &'static str {
        if self.iterated && self.a.overlaps(&self.b) { "~" } else { " " }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::plan::tests::nonzero;
    use crate::report::tests::{cell, report, storm};

    fn with(cells: Vec<Cell>) -> BenchReport {
        BenchReport { cells, ..report() }
    }

    #[test]
    fn cells_line_up_and_chance_is_marked() {
        let a = with(vec![cell("simple", 1, &[100.0, 110.0, 120.0])]);
        let mut b = with(vec![cell("simple", 1, &[200.0, 220.0, 240.0])]);
        // As long as before, for one iteration at least.
        b.cells[0].batches[0].wall_s = 2.3;
        expect![[r#"
            short, 1 at once, simple
                                                   A             B    B/A
                          all tokens/s      110 ± 10      220 ± 20   2.00
                         wall clock, s   2.34 ± 0.21   1.51 ± 0.69   0.65   ~
               tokens/s of one request    27.5 ± 2.5    55.0 ± 5.0   2.00
              first token smallest, ms   9.14 ± 0.83   4.57 ± 0.42   0.50
                  first token mean, ms    18.3 ± 1.7   9.14 ± 0.83   0.50
               first token largest, ms    36.6 ± 3.3    18.3 ± 1.7   0.50
                between tokens p50, ms   4.57 ± 0.42   2.29 ± 0.21   0.50
                between tokens p99, ms   8.23 ± 0.75   4.11 ± 0.38   0.50

            ~ the iterations of A and B overlap: this may be chance.
        "#]]
        .assert_eq(&compare(&a, &b).expect("the same cells").to_string());
    }

    #[test]
    fn what_differs_besides_the_server_is_a_warning() {
        let a = with(vec![cell("simple", 1, &[100.0]), cell("simple", 4, &[100.0])]);
        let mut b = with(vec![cell("simple", 1, &[100.0]), cell("batched", 4, &[100.0])]);
        b.machine.cores = 64;
        b.plan.max_tokens = nonzero(16);
        b.targets[0].model = "other".to_owned();
        let comparison = compare(&a, &b).expect("one cell is the same");
        expect![[r#"
            the machine differs: a cpu, 2 cores, linux x in A, a cpu, 64 cores, linux x in B
            the model differs: m in A, other, m in B
            max_tokens differs: 64 in A, 16 in B
            only in A: short, 4 at once, simple
            only in B: short, 4 at once, batched"#]]
        .assert_eq(&comparison.warnings.join("\n"));
        assert_eq!(comparison.pairs.len(), 1);
    }

    #[test]
    fn storms_line_up_with_storms() {
        let storms = |served, idle_after_s| {
            let mut storm = storm();
            storm.served = served;
            storm.after.idle_after_s = idle_after_s;
            BenchReport { cells: vec![], storms: vec![storm], ..report() }
        };
        let comparison = compare(&storms(18, Some(0.05)), &storms(36, Some(0.1)));
        expect![[r#"
            storm, 4 at once, simple
                                   A      B    B/A
                     requests     40     40   1.00
                       served     18     36   2.00
              left on purpose     21     21   1.00
                      refused      0      0      -
                       failed      0      0      -
                wall clock, s   2.50   2.50   1.00
                idle after, s   0.05   0.10   2.00
                failed passes      0      0      -

            ~ the iterations of A and B overlap: this may be chance.
        "#]]
        .assert_eq(&comparison.expect("the same storm").to_string());
        let without = compare(&storms(18, Some(0.05)), &storms(18, None)).expect("the same storm");
        assert!(!without.to_string().contains("idle after"), "only what both know");
    }

    #[test]
    fn a_single_target_may_have_another_name() {
        let only = |name: &str, rate| {
            let mut report = with(vec![cell(name, 1, &[rate])]);
            report.targets.truncate(1);
            report
        };
        let comparison = compare(&only("old", 1.0), &only("new", 2.0)).expect("one target each");
        assert_eq!(comparison.pairs[0].title, "short, 1 at once, old in A, new in B");
    }

    #[test]
    fn nothing_in_common_is_an_error_that_says_what_there_is() {
        let (a, b) = (with(vec![cell("simple", 1, &[1.0])]), with(vec![cell("simple", 2, &[1.0])]));
        let error = compare(&a, &b).expect_err("other cells").to_string();
        assert!(error.contains("A has short, 1 at once, simple"), "{error}");
        assert!(error.contains("B has short, 2 at once, simple"), "{error}");
        assert!(compare(&with(vec![]), &a).is_err());
    }
}
