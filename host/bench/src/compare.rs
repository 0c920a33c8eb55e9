//! Two reports side by side.
//!
//! # Invariants
//!
//! - Only cells of the same workload and concurrency are compared, of the same target: by name,
//!   or, where each report has but one target, whatever its name.
//! - A difference is marked as none when one iteration of B could as well be one of A.

use std::fmt;

use crate::report::{Batch, Cell, Figure, Report};
use crate::stats::Spread;
use crate::table::{Column, Table, shown};

/// Two reports side by side.
#[derive(Debug)]
pub struct Comparison {
    warnings: Vec<String>,
    pairs: Vec<Pair>,
}

/// A cell of both.
#[derive(Debug)]
struct Pair {
    title: String,
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    measure: &'static str,
    a: Spread,
    b: Spread,
}

/// No cell is in both.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the reports have no cell in common (workload, concurrency, target)\n  A has {a}\n  B has {b}"
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
    ("CPU ms/token", Batch::cpu_ms_per_token),
];

/// Lines up the cells of both reports.
///
/// # Errors
///
/// When they have none in common.
pub fn compare(a: &Report, b: &Report) -> Result<Comparison, CannotCompare> {
    let renamed = a.targets.len() == 1 && b.targets.len() == 1;
    let same = |one: &Cell, other: &Cell| {
        (one.workload, one.concurrency) == (other.workload, other.concurrency)
            && (renamed || one.target == other.target)
    };
    let mut warnings = differences(a, b);
    let mut pairs = Vec::new();
    for one in &a.cells {
        match b.cells.iter().find(|other| same(one, other)) {
            Some(other) => pairs.push(Pair::of(one, other)),
            None => warnings.push(format!("only in A: {}", title(one))),
        }
    }
    if pairs.is_empty() {
        return Err(CannotCompare { a: titles(a), b: titles(b) });
    }
    let missing = b.cells.iter().filter(|other| !a.cells.iter().any(|one| same(one, other)));
    warnings.extend(missing.map(|other| format!("only in B: {}", title(other))));
    Ok(Comparison { warnings, pairs })
}

fn title(cell: &Cell) -> String {
    format!("{}, {} at once, {}", cell.workload, cell.concurrency, cell.target)
}

fn titles(report: &Report) -> String {
    let titles: Vec<String> = report.cells.iter().map(title).collect();
    if titles.is_empty() { "none".to_owned() } else { titles.join("; ") }
}

impl Pair {
    fn of(a: &Cell, b: &Cell) -> Self {
        let title = match a.target == b.target {
            true => title(a),
            false => format!("{} in A, {} in B", title(a), b.target),
        };
        let row = |(measure, figure): (&'static str, Figure)| {
            let (a, b) = a.spread(figure).zip(b.spread(figure))?;
            Some(Row { measure, a, b })
        };
        Self { title, rows: MEASURES.into_iter().filter_map(row).collect() }
    }
}

/// What makes figures differ that is not the server.
fn differences(a: &Report, b: &Report) -> Vec<String> {
    let mut found = Vec::new();
    let mut differ = |what: &str, in_a: String, in_b: String| {
        if in_a != in_b {
            found.push(format!("{what} differs: {in_a} in A, {in_b} in B"));
        }
    };
    let machine = |report: &Report| {
        let machine = &report.machine;
        format!("{}, {} cores, {}", machine.cpu, machine.cores, machine.system)
    };
    differ("the machine", machine(a), machine(b));
    let models = |report: &Report| {
        let mut models: Vec<&str> = report.targets.iter().map(|t| t.model.as_str()).collect();
        models.dedup();
        models.join(", ")
    };
    differ("the model", models(a), models(b));
    let plan = |report: &Report| serde_json::to_value(&report.plan).expect("a plan is JSON");
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
            let column =
                |name, cell: &dyn Fn(&Row) -> String| Column::new(name, rows.iter().map(cell));
            let table = Table::default()
                .with(column("", &|row| row.measure.to_owned()))
                .with(column("A", &|row| shown(&row.a)))
                .with(column("B", &|row| shown(&row.b)))
                .with(column("B/A", &|row| row.ratio()))
                .with(column("", &|row| row.mark().to_owned()));
            write!(f, "{title}\n{table}")?;
        }
        writeln!(f, "\n~ the iterations of A and B overlap: this may be chance.")
    }
}

impl Row {
    fn ratio(&self) -> String {
        if self.a.mean == 0.0 {
            "-".to_owned()
        } else {
            format!("{:.2}", self.b.mean / self.a.mean)
        }
    }

    fn mark(&self) -> &'static str {
        if self.a.overlaps(&self.b) { "~" } else { " " }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::plan::tests::nonzero;
    use crate::report::tests::{cell, report};

    fn with(cells: Vec<Cell>) -> Report {
        Report { cells, ..report() }
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
