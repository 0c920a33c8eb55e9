//! The figures of the two modes, as RESULTS.md and README.md show them, are those of the data in
//! tests/benches/results. `UPDATE=1` writes them anew.

use std::fmt::Write;
use std::fs;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use interlock_bench::{BenchReport, Cell, Iteration, Spread, WorkloadKind};

/// A run of the protocol: its file's name, and what README calls what it ran on.
const RUNS: [(&str, &str); 2] = [
    ("cpu", "SmolLM2-135M, two cores of an AMD EPYC"),
    ("gpu", "Qwen3-1.7B's shape, random weights, one H200"),
];
const MODES: [&str; 2] = ["simple", "batched"];
/// What the project was asked for with 8 clients: tokens, and wall clock, against simple.
const ASKED: (f64, f64) = (2.4, 1.0 / 3.0);

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|why| panic!("{path}: {why}"))
}

fn run(kind: &str) -> BenchReport {
    let report = BenchReport::parse(&read(&format!("tests/benches/results/modes-{kind}.json")));
    let report = report.unwrap_or_else(|why| panic!("modes-{kind}.json: {why}"));
    let plan = &report.plan;
    let at_once: Vec<u32> = plan.concurrency.iter().map(|at_once| at_once.get()).collect();
    let asked = (plan.max_tokens.get(), plan.iterations.get(), plan.stream, &at_once[..]);
    assert_eq!(asked, (128, 5, true, &[1, 2, 4, 8][..]), "the protocol of modes-{kind}.json");
    assert_eq!(report.failures(), 0, "requests of modes-{kind}.json that failed");
    report
}

fn cell<'a>(
    report: &'a BenchReport,
    workload: WorkloadKind,
    at_once: NonZeroU32,
    mode: &str,
) -> &'a Cell {
    let here = |cell: &&Cell| {
        (cell.workload, cell.concurrency, cell.target.as_str()) == (workload, at_once, mode)
    };
    let found = report.cells.iter().find(here);
    found.unwrap_or_else(|| panic!("{workload}, {at_once} at once, {mode} was measured"))
}

/// Three significant digits, or all before the point.
fn digits(value: f64) -> usize {
    match value {
        value if value >= 100.0 => 0,
        value if value >= 10.0 => 1,
        _ => 2,
    }
}

fn number(value: f64) -> String {
    format!("{value:.*}", digits(value))
}

fn spread(spread: Spread) -> String {
    format!(
        "{:.*} ± {:.*}",
        digits(spread.mean),
        spread.mean,
        digits(spread.mean),
        spread.deviation
    )
}

fn over_iterations(cell: &Cell, figure: fn(&Iteration) -> Option<f64>) -> Spread {
    cell.spread(figure).expect("every iteration has it")
}

fn tokens(cell: &Cell) -> Spread {
    over_iterations(cell, |batch| batch.tokens_per_s)
}

fn wall(cell: &Cell) -> Spread {
    over_iterations(cell, |batch| Some(batch.wall_s))
}

fn of_one_request(cell: &Cell) -> String {
    let rates = cell.request_tokens_per_s.expect("every answer has a rate");
    format!("{} ({} to {})", spread(rates), number(rates.least), number(rates.most))
}

fn first_token(cell: &Cell) -> String {
    let least = over_iterations(cell, |batch| batch.first_token_ms_least);
    let most = over_iterations(cell, |batch| batch.first_token_ms_most);
    format!("{}, {}", spread(least), spread(most))
}

/// A table with a row for each number at once and a column for each mode, and the ratio of a figure
/// where there is one.
fn table(
    report: &BenchReport,
    workload: WorkloadKind,
    title: &str,
    shown: impl Fn(&Cell) -> String,
    ratio: Option<fn(&Cell) -> Spread>,
) -> String {
    let mut text = format!("{title}\n\n| at once | simple | batched |");
    text += if ratio.is_some() { " batched / simple |\n" } else { "\n" };
    text += if ratio.is_some() { "| --- | --- | --- | --- |\n" } else { "| --- | --- | --- |\n" };
    for &at_once in &report.plan.concurrency {
        let [simple, batched] = MODES.map(|mode| cell(report, workload, at_once, mode));
        write!(text, "| {at_once} | {} | {} |", shown(simple), shown(batched)).expect("a string");
        if let Some(figure) = ratio {
            let ratio = figure(batched).mean / figure(simple).mean;
            write!(text, " {ratio:.2} |").expect("a string");
        }
        text.push('\n');
    }
    text
}

/// Both figures of a workload at 8 at once, batched against simple.
fn gain(report: &BenchReport, workload: WorkloadKind) -> (f64, f64) {
    let eight = NonZeroU32::new(8).expect("8 is not 0");
    let [simple, batched] = MODES.map(|mode| cell(report, workload, eight, mode));
    (tokens(batched).mean / tokens(simple).mean, wall(batched).mean / wall(simple).mean)
}

fn verdict(report: &BenchReport) -> String {
    let (times, share) = gain(report, WorkloadKind::Short);
    let reached = |yes: bool| if yes { "reached" } else { "missed" };
    format!(
        "At 8 at once batched makes **{times:.2}** times the tokens (asked for: {}; {}) in **{share:.2}** \
         of the wall clock\n(asked for: less than a third; {}).",
        ASKED.0,
        reached(times >= ASKED.0),
        reached(share < ASKED.1),
    )
}

fn section(kind: &str, report: &BenchReport) -> String {
    let load = |load: Option<interlock_bench::LoadAverage>| {
        load.map_or_else(|| "unknown".to_owned(), |load| format!("{:.2}", load.0[0]))
    };
    let (machine, day) = (&report.machine, report.at.split('T').next().unwrap_or_default());
    let head = format!(
        "{day}, {}, {} cores; load {} before and {} after; model {}.\n\
         Data: [modes-{kind}.json](results/modes-{kind}.json); plot: \
         [modes-{kind}.svg](results/modes-{kind}.svg).\n",
        machine.cpu,
        machine.cores,
        load(report.load_before),
        load(report.load_after),
        report.targets[0].model,
    );
    let (short, mixed) = (WorkloadKind::Short, WorkloadKind::Mixed);
    let tokens_shown = |cell: &Cell| spread(tokens(cell));
    let wall_shown = |cell: &Cell| spread(wall(cell));
    let both = |cell: &Cell| format!("{}; {}", spread(tokens(cell)), spread(wall(cell)));
    [
        head,
        table(report, short, "**All tokens per second**", tokens_shown, Some(tokens)),
        table(report, short, "**Wall clock, s**", wall_shown, Some(wall)),
        table(
            report,
            short,
            "**Tokens per second of one request**, mean ± deviation across requests (slowest to fastest)",
            of_one_request,
            None,
        ),
        table(report, short, "**First token, ms**, smallest and largest", first_token, None),
        verdict(report) + "\n",
        table(
            report,
            mixed,
            "**Mixed: short answers leave the batch early**, all tokens per second; wall clock, s; the ratio \
             is that of the tokens",
            both,
            Some(tokens),
        ),
    ]
    .join("\n")
}

/// README's table: what it ran on, and tokens per second of both modes.
fn summary() -> String {
    let mut text =
        "| simple / batched, tokens/s | 1 client | 2 | 4 | 8 | wall clock with 8, s |\n".to_owned();
    text += "| --- | --- | --- | --- | --- | --- |\n";
    for (kind, name) in RUNS {
        let report = run(kind);
        let row = report.plan.concurrency.iter().map(|&at_once| {
            let modes = MODES.map(|mode| cell(&report, WorkloadKind::Short, at_once, mode));
            let [simple, batched] = modes.map(|cell| tokens(cell).mean);
            format!("{simple:.0} / {batched:.0}")
        });
        let row: Vec<String> = row.collect();
        let eight = *report.plan.concurrency.last().expect("the protocol has four");
        let [simple, batched] =
            MODES.map(|mode| number(wall(cell(&report, WorkloadKind::Short, eight, mode)).mean));
        writeln!(text, "| {name} | {} | {simple} / {batched} |", row.join(" | "))
            .expect("a string");
    }
    text
}

/// Compares what stands between a page's marks with what should; with `UPDATE=1`, writes it.
fn agrees(page: &str, mark: &str, expected: &str) {
    let text = read(page);
    let (begin, end) =
        (format!("<!-- {mark}: from the data -->\n"), format!("<!-- end of {mark} -->"));
    let (before, rest) = text.split_once(&begin).unwrap_or_else(|| panic!("{page} has {begin}"));
    let (shown, after) = rest.split_once(&end).unwrap_or_else(|| panic!("{page} has {end}"));
    let expected = format!("\n{}\n\n", expected.trim());
    if std::env::var_os("UPDATE").is_some() {
        let text = format!("{before}{begin}{expected}{end}{after}");
        fs::write(root().join(page), text).unwrap_or_else(|why| panic!("{page}: {why}"));
        return;
    }
    assert_eq!(shown, expected, "{page}, {mark}: run tests/benches/modes.sh tables and review");
}

#[test]
fn pages_show_the_figures_of_the_data() {
    for (kind, _) in RUNS {
        agrees("tests/benches/RESULTS.md", &format!("modes-{kind}"), &section(kind, &run(kind)));
    }
    agrees("README.md", "modes", &summary());
}
