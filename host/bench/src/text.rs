//! A report as a person reads it in a terminal.

use std::fmt;
use std::num::NonZeroU32;

use crate::failure::Failures;
use crate::plan::Storming;
use crate::report::{BenchReport, Cell, Figure, Iteration, Storm, TargetFacts};
use crate::stats::Spread;
use crate::table::{Column, TextTable};
use crate::workload::WorkloadKind;

impl fmt::Display for BenchReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        head(f, self)?;
        for workload in self.measured_workloads() {
            tables(f, self, workload)?;
        }
        if self.measured_workloads().next().is_some() {
            meaning(f, self)?;
        }
        if !self.storms.is_empty() {
            storms(f, self)?;
        }
        remarks(f, self)?;
        failures(f, self)
    }
}

fn head(f: &mut fmt::Formatter<'_>, report: &BenchReport) -> fmt::Result {
    let BenchReport { at, version, machine, plan, .. } = report;
    writeln!(f, "interlock bench {version}, {at}")?;
    write!(f, "machine    {}, {} cores, {}", machine.cpu, machine.cores, machine.system)?;
    if let Some(load) = report.load_before {
        write!(f, ", load {:.2} before", load.0[0])?;
    }
    if let Some(load) = report.load_after {
        write!(f, ", {:.2} after", load.0[0])?;
    }
    writeln!(f)?;
    for TargetFacts { name, url, model, owned_by, version } in &report.targets {
        write!(f, "target     {name}: {url}, model {model}")?;
        match (version, owned_by) {
            (Some(version), _) => write!(f, ", interlock {version}")?,
            (None, Some(owner)) => write!(f, ", owned by {owner}")?,
            (None, None) => {}
        }
        writeln!(f)?;
    }
    let (iterations, warmup) = (plan.iterations, plan.warmup);
    write!(f, "asked      {}, {} tokens, ", plan.api, plan.max_tokens)?;
    write!(f, "{}", if plan.stream { "streaming" } else { "not streaming" })?;
    writeln!(f, "; iterations {iterations} after {warmup} to warm up; seed {}", plan.seed)
}

/// A table of a workload: what it is called, and its columns for each target.
struct TableLayout {
    title: &'static str,
    columns: &'static [(&'static str, Shows)],
}

/// What a column shows of a cell.
#[derive(Clone, Copy)]
enum Shows {
    /// A figure of each iteration.
    Iterations(Figure),
    /// Over all requests of all iterations: the mean, and how far they lie from it.
    Requests,
    /// Of those, the smallest.
    Slowest,
    /// And the largest.
    Fastest,
}

const SHOWN: [TableLayout; 6] = [
    TableLayout {
        title: "All tokens per second",
        columns: &[("", Shows::Iterations(|batch| batch.tokens_per_s))],
    },
    TableLayout {
        title: "Wall clock, s",
        columns: &[("", Shows::Iterations(|batch| Some(batch.wall_s)))],
    },
    TableLayout {
        title: "Tokens per second of one request",
        columns: &[
            ("mean", Shows::Requests),
            ("slowest", Shows::Slowest),
            ("fastest", Shows::Fastest),
        ],
    },
    TableLayout {
        title: "Time to first token, ms",
        columns: &[
            ("smallest", Shows::Iterations(|batch| batch.first_token_ms_least)),
            ("largest", Shows::Iterations(|batch| batch.first_token_ms_most)),
        ],
    },
    TableLayout {
        title: "Between two tokens, ms",
        columns: &[
            ("p50", Shows::Iterations(|batch| batch.inter_token_ms_p50)),
            ("p99", Shows::Iterations(|batch| batch.inter_token_ms_p99)),
        ],
    },
    TableLayout {
        title: "CPU of the server, ms per token",
        columns: &[("", Shows::Iterations(Iteration::cpu_ms_per_token))],
    },
];

impl Shows {
    fn of(self, cell: &Cell) -> Option<Spread> {
        match self {
            Self::Iterations(figure) => cell.spread(figure),
            Self::Requests => cell.request_tokens_per_s,
            Self::Slowest => cell.request_tokens_per_s.map(|spread| Spread::single(spread.least)),
            Self::Fastest => cell.request_tokens_per_s.map(|spread| Spread::single(spread.most)),
        }
    }

    /// A deviation of one value would be a 0 that looks like certainty.
    fn deviates(self, report: &BenchReport) -> bool {
        match self {
            Self::Iterations(_) => report.plan.iterations > NonZeroU32::MIN,
            Self::Requests => true,
            Self::Slowest | Self::Fastest => false,
        }
    }
}

fn tables(f: &mut fmt::Formatter<'_>, report: &BenchReport, workload: WorkloadKind) -> fmt::Result {
    let at_once = &report.plan.concurrency;
    for TableLayout { title, columns } in &SHOWN {
        let mut table = TextTable::default().with(Column::new("at once", at_once));
        let mut any = false;
        for target in report.target_names() {
            for (name, shows) in *columns {
                let spread = |at_once: &NonZeroU32| -> Option<Spread> {
                    shows.of(report.cell(workload, *at_once, target)?)
                };
                let spreads: Vec<Option<Spread>> = at_once.iter().map(spread).collect();
                any |= spreads.iter().any(Option::is_some);
                table = table.with(column(name, target, &spreads, shows.deviates(report)));
            }
        }
        // Without a stream there is no first token, without a process no CPU time.
        if any {
            write!(f, "\n{title} ({workload})\n{table}")?;
        }
    }
    Ok(())
}

fn column(name: &str, target: &str, spreads: &[Option<Spread>], deviates: bool) -> Column {
    let name_or_target = if name.is_empty() { target } else { name };
    let column = if deviates {
        Column::of_spreads(name_or_target, spreads)
    } else {
        let means: Vec<Option<f64>> = spreads.iter().map(|s| s.map(|s| s.mean)).collect();
        Column::of_numbers(name_or_target, &means)
    };
    if name.is_empty() { column } else { column.under(target) }
}

fn meaning(f: &mut fmt::Formatter<'_>, report: &BenchReport) -> fmt::Result {
    let spread = match report.plan.iterations.get() {
        1 => "There was one iteration: nothing is known of the deviation between iterations.",
        _ => "A figure with ± is the mean and the standard deviation over iterations.",
    };
    let counted = "All tokens per second: the tokens of all answers of a batch, divided by its wall \
                   clock.";
    let one = "Tokens per second of one request: the tokens of its answer, divided by the time from \
               sending it to\n  its end, waiting included; the mean and standard deviation over the \
               requests of all iterations,\n  the slowest request and the fastest.";
    writeln!(
        f,
        "\n{spread}\n\
         A batch is as many requests as stand under \"at once\", sent together over connections that \
         are already open.\n\
         {counted}\n\
         Wall clock: the time from the batch's first request sent to its last answer ended.\n\
         {one}"
    )?;
    if report.plan.stream {
        let first = "Time to first token (TTFT): from sending a request to the first text of its \
                     answer, waiting included;\n  of each batch the smallest and the largest.";
        let between = "Between two tokens: from one piece of text to the next of the same answer; in \
                       each batch half of them\n  take at most p50, and 99 of 100 at most p99.";
        writeln!(f, "{first}\n{between}")?;
    } else {
        writeln!(f, "Answers came in one piece, so there is no time to first token.")?;
    }
    if report.cells.iter().any(|cell| cell.batches.iter().any(|batch| batch.cpu_s.is_some())) {
        writeln!(
            f,
            "CPU of the server: the processor time that its process used during a batch, divided by \
             the batch's tokens."
        )?;
    }
    Ok(())
}

fn storms(f: &mut fmt::Formatter<'_>, report: &BenchReport) -> fmt::Result {
    let storms = &report.storms;
    let column = |name, figure: fn(&Storm) -> String| Column::new(name, storms.iter().map(figure));
    let table = TextTable::default()
        .with(column("at once", |storm| storm.concurrency.to_string()))
        .with(column("target", |storm| storm.target.clone()))
        .with(column("requests", |storm| storm.requests.to_string()))
        .with(column("served", |storm| storm.served.to_string()))
        .with(
            column("before text", |storm| storm.left_before_text.to_string())
                .under("left on purpose"),
        )
        .with(column("midway", |storm| storm.left_midway.to_string()).under("left on purpose"))
        .with(column("refused", |storm| storm.refused.count().to_string()))
        .with(column("failed", |storm| storm.failures.count().to_string()))
        .with(column("s", |storm| format!("{:.2}", storm.wall_s)))
        .with(
            column("answers", |storm| {
                if storm.after.failure.is_none() { "yes" } else { "NO" }.to_owned()
            })
            .under("afterwards"),
        )
        .with(
            column("idle after", |storm| match (storm.after.idle_after_s, &storm.after.still) {
                (Some(seconds), _) => format!("{seconds:.2} s"),
                (None, Some(still)) => still.clone(),
                (None, None) => "unknown".to_owned(),
            })
            .under("afterwards"),
        )
        .with(column("in device", |storm| told(storm.after.passes_in_flight_max)).under("passes"))
        .with(column("failed", |storm| told(storm.after.failed_passes)).under("passes"));
    let Storming { leave_percent, settle, time, .. } = report.plan.storm;
    let length = time.map_or_else(String::new, |time| format!(", for {time:?}"));
    writeln!(f, "\nDisconnect storm: {leave_percent} of 100 leave{length}\n{table}")?;
    writeln!(
        f,
        "Served: whole answers. Left on purpose: connections that the client closed, before the first \
         text or in the middle.\n\
         Refused: answers of 429 and 503. Failed: anything else, 500 and a broken stream among it.\n\
         In device: the most passes that the host has had in its device at once, which must be 1. \
         Failed passes: during the storm.\n\
         Answers: whether the server answered a plain request afterwards. Idle after: how long its \
         metrics took to show\n  no request, running or waiting; {settle:?} is the most. (Unknown: \
         the server has no metrics of this host.)"
    )
}

/// A whole number that a server may not have told.
fn told(number: Option<f64>) -> String {
    number.map_or_else(|| "unknown".to_owned(), |number| format!("{number:.0}"))
}

/// What a reader should know before believing the figures.
fn remarks(f: &mut fmt::Formatter<'_>, report: &BenchReport) -> fmt::Result {
    for target in report.target_names() {
        let cells = || report.cells.iter().filter(|cell| cell.target == target);
        let batches = || cells().flat_map(|cell| &cell.batches);
        let sum = |figure: fn(&Iteration) -> u64| batches().map(figure).sum::<u64>();
        let (answered, counted) =
            (sum(|batch| batch.answered), sum(|batch| batch.counted_by_server));
        if counted < answered {
            writeln!(
                f,
                "\n{target}: {} of {answered} answers came without usage; each piece of text \
                 counts as one token.",
                answered - counted
            )?;
        }
        let short = sum(|batch| batch.short);
        if short > 0 {
            writeln!(
                f,
                "\n{target}: {short} of {answered} answers are shorter than asked for: the \
                 model ended them, and figures of two targets may not compare."
            )?;
        }
        let (tokens, chunks) = (sum(|batch| batch.tokens), sum(|batch| batch.chunks));
        if report.plan.stream && counted == answered && chunks * 10 < tokens * 9 {
            writeln!(
                f,
                "\n{target}: {tokens} tokens came in {chunks} pieces of text; between two tokens \
                 is between two pieces."
            )?;
        }
    }
    Ok(())
}

fn failures(f: &mut fmt::Formatter<'_>, report: &BenchReport) -> fmt::Result {
    if report.failures() == 0 {
        return Ok(());
    }
    writeln!(f, "\nFailures")?;
    let of_cells = report.cells.iter().map(|cell| {
        let Cell { workload, concurrency, target, .. } = cell;
        (format!("{workload}, {concurrency} at once, {target}"), cell.failures())
    });
    let of_storms = report.storms.iter().map(|storm| {
        let Storm { concurrency, target, .. } = storm;
        (format!("storm, {concurrency} at once, {target}"), storm.failures.clone())
    });
    for (place, failures) in of_cells.chain(of_storms) {
        each(f, &place, &failures)?;
    }
    for Storm { target, concurrency, after, .. } in &report.storms {
        let place = format!("storm, {concurrency} at once, {target}");
        if let Some(failure) = &after.failure {
            writeln!(f, "  {place}: a plain request afterwards: {failure}")?;
        }
        if let Some(still) = &after.still {
            writeln!(f, "  {place}: with every client gone, its metrics still show {still}")?;
        }
        if after.overlapped() {
            let most = told(after.passes_in_flight_max);
            writeln!(f, "  {place}: {most} passes were in the device at once")?;
        }
        if after.failed_passes.is_some_and(|failed| failed > 0.0) {
            writeln!(f, "  {place}: {} passes failed", told(after.failed_passes))?;
        }
    }
    Ok(())
}

fn each(f: &mut fmt::Formatter<'_>, place: &str, failures: &Failures) -> fmt::Result {
    for (kind, failed) in failures.iter() {
        writeln!(f, "  {place}: {} × {kind}; the first: {}", failed.count, failed.first)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::failure::RequestFailure;
    use crate::plan::BenchPlan;
    use crate::report::tests::{cell, report, storm};

    #[test]
    fn a_report_reads_like_this() {
        expect![[r#"
            interlock bench 0.1.0, 2025-01-01T00:00:00Z
            machine    a cpu, 2 cores, linux x, load 0.50 before
            target     simple: http://127.0.0.1:1/v1, model m, owned by interlock
            target     batched: http://127.0.0.1:1/v1, model m, owned by interlock
            asked      chat, 64 tokens, streaming; iterations 3 after 1 to warm up; seed 0

            All tokens per second (short)
              at once    simple   batched
                    1   120 ± 1   142 ± 2
                    4    95 ± 0   173 ± 3

            Wall clock, s (short)
              at once        simple       batched
                    1   2.13 ± 0.02   1.80 ± 0.03
                    4   2.69 ± 0.00   1.48 ± 0.03

            Tokens per second of one request (short)
                                                simple                           batched
              at once         mean   slowest   fastest          mean   slowest   fastest
                    1   32.0 ± 8.8      23.8      40.3   37.9 ± 10.4      28.0      48.0
                    4   25.3 ± 6.9      19.0      31.7   46.1 ± 12.7      34.0      58.7

            Time to first token, ms (short)
                                         simple                    batched
              at once     smallest      largest      smallest      largest
                    1    8.3 ± 0.1   33.3 ± 0.3   7.04 ± 0.10   28.2 ± 0.4
                    4   10.5 ± 0.0   42.1 ± 0.0   5.78 ± 0.10   23.1 ± 0.4

            Between two tokens, ms (short)
                                           simple                     batched
              at once           p50           p99           p50           p99
                    1   4.17 ± 0.03   7.50 ± 0.06   3.52 ± 0.05   6.34 ± 0.09
                    4   5.26 ± 0.00   9.47 ± 0.00   2.89 ± 0.05   5.20 ± 0.09

            A figure with ± is the mean and the standard deviation over iterations.
            A batch is as many requests as stand under "at once", sent together over connections that are already open.
            All tokens per second: the tokens of all answers of a batch, divided by its wall clock.
            Wall clock: the time from the batch's first request sent to its last answer ended.
            Tokens per second of one request: the tokens of its answer, divided by the time from sending it to
              its end, waiting included; the mean and standard deviation over the requests of all iterations,
              the slowest request and the fastest.
            Time to first token (TTFT): from sending a request to the first text of its answer, waiting included;
              of each batch the smallest and the largest.
            Between two tokens: from one piece of text to the next of the same answer; in each batch half of them
              take at most p50, and 99 of 100 at most p99.
        "#]]
        .assert_eq(&report().to_string());
    }

    #[test]
    fn a_storm_and_what_went_wrong_read_like_this() {
        let mut broken = storm();
        broken.target = "batched".to_owned();
        broken.after.failure = Some("cannot connect: refused".to_owned());
        broken.after.idle_after_s = None;
        broken.after.passes_in_flight_max = Some(2.0);
        broken.after.failed_passes = None;
        let mut report = report();
        report.plan = BenchPlan { workloads: vec![WorkloadKind::Storm], ..report.plan };
        report.cells = vec![cell("simple", 1, &[1.0])];
        report.storms = vec![storm(), broken];
        report.cells[0].batches[0].failures.add(&RequestFailure::Cut("x".to_owned()));
        report.cells[0].batches[0].short = 3;
        let text = report.to_string();
        let storms = text.find("\nDisconnect").expect("there is a table of storms");
        expect![[r#"

            Disconnect storm: 50 of 100 leave
                                                           left on purpose                                       afterwards                passes
              at once    target   requests   served   before text   midway   refused   failed      s   answers   idle after   in device    failed
                    4    simple         40       18            10       11         0        0   2.50       yes       0.05 s           1         0
                    4   batched         40       18            10       11         0        0   2.50        NO      unknown           2   unknown

            Served: whole answers. Left on purpose: connections that the client closed, before the first text or in the middle.
            Refused: answers of 429 and 503. Failed: anything else, 500 and a broken stream among it.
            In device: the most passes that the host has had in its device at once, which must be 1. Failed passes: during the storm.
            Answers: whether the server answered a plain request afterwards. Idle after: how long its metrics took to show
              no request, running or waiting; 5s is the most. (Unknown: the server has no metrics of this host.)

            simple: 3 of 4 answers are shorter than asked for: the model ended them, and figures of two targets may not compare.

            Failures
              short, 1 at once, simple: 1 × cut off; the first: cut off: x
              storm, 4 at once, batched: a plain request afterwards: cannot connect: refused
              storm, 4 at once, batched: 2 passes were in the device at once
        "#]].assert_eq(&text[storms..]);
    }
}
