//! What a simulation came to, for people and for scripts.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};

use super::Observed;
use super::client::RequestSeen;
use super::end::SimulatedEnd;
use super::invariants::CHECKED;
use super::recorder::{DecisionKey, Recording};
use crate::table::Table;
use crate::workload::{Slo, Workload};

/// What a simulation came to.
#[derive(Debug, Clone)]
pub struct Report {
    seed: u64,
    time: Duration,
    slo: Slo,
    rows: Vec<ReportRow>,
    fairness: Option<f64>,
    wait_max: Option<Duration>,
    passes: u64,
    stalled: u64,
    failed_passes: u64,
    busy: f64,
    said: BTreeMap<DecisionKey, u64>,
    ends: BTreeMap<(String, String), u64>,
    closings: BTreeMap<String, u64>,
    accounted_tokens: u64,
    violations: Vec<String>,
    took: Duration,
}

/// A tenant's part, or everyone's.
#[derive(Debug, Clone, PartialEq)]
struct ReportRow {
    name: String,
    asked: u64,
    answered: u64,
    refused: u64,
    left: u64,
    broken: u64,
    first_token: Option<(Duration, Duration)>,
    inter_token: Option<(Duration, Duration)>,
    longest_pause: Option<Duration>,
    tokens_per_second: f64,
    good: u64,
    good_per_second: f64,
}

impl Report {
    pub(super) fn of(
        workload: &Workload,
        seed: u64,
        seen: &Observed,
        recording: &Recording,
        violations: Vec<String>,
        took: Duration,
    ) -> Self {
        let recorded = recording.recorded();
        let slo = workload.slo;
        let whose = |which: usize| seen.asked.iter().filter(move |asked| asked.tenant == which);
        let seconds = seen.time.as_secs_f64().max(0.001);
        let mut rows: Vec<ReportRow> = workload
            .tenants
            .iter()
            .enumerate()
            .map(|(which, tenant)| row(&tenant.name, whose(which), &slo, seconds))
            .collect();
        let shares: Vec<f64> =
            (0..workload.tenants.len()).filter_map(|which| share(whose(which))).collect();
        if rows.len() > 1 {
            rows.push(row("all", seen.asked.iter(), &slo, seconds));
        }
        let mut ends = BTreeMap::new();
        for asked in &seen.asked {
            *ends.entry(label(&asked.end)).or_default() += 1;
        }
        let mut closings = BTreeMap::new();
        let summaries = || recorded.ended.values().flatten().map(|ended| &ended.summary);
        for summary in summaries() {
            *closings.entry(summary.closing.as_str().to_owned()).or_default() += 1;
        }
        let work = &seen.rested.work;
        Self {
            seed,
            time: seen.time,
            slo,
            rows,
            fairness: jain(&shares),
            wait_max: summaries().filter_map(|summary| summary.queue_time).max(),
            passes: work.passes,
            stalled: work.stalled,
            failed_passes: work.failed,
            busy: work.busy.as_secs_f64() / seconds,
            said: recorded.said.clone(),
            ends,
            closings,
            accounted_tokens: summaries().map(|s| u64::from(s.usage.generated_tokens)).sum(),
            violations,
            took,
        }
    }

    /// What must hold and did not.
    pub fn violations(&self) -> &[String] {
        &self.violations
    }

    /// All figures, for scripts. Times are in seconds. The same for the same seed: how long the
    /// simulation took is not in it.
    pub fn to_json(&self) -> Value {
        let seconds = |time: Duration| time.as_secs_f64();
        let pair = |pair: Option<(Duration, Duration)>| {
            pair.map(|(p50, p99)| json!({"p50": seconds(p50), "p99": seconds(p99)}))
        };
        let row = |row: &ReportRow| {
            json!({
                "tenant": row.name, "requests": row.asked, "answered": row.answered,
                "refused": row.refused, "left": row.left, "broken": row.broken,
                "first_token": pair(row.first_token), "inter_token": pair(row.inter_token),
                "longest_pause": row.longest_pause.map(seconds),
                "tokens_per_second": row.tokens_per_second, "good": row.good,
                "good_per_second": row.good_per_second,
            })
        };
        let said = |((policy, phase, decision, reason), count): (&DecisionKey, &u64)| {
            json!({"policy": policy, "phase": phase, "decision": decision, "reason": reason,
                "count": count})
        };
        let end = |((end, why), count): (&(String, String), &u64)| json!({"end": end, "why": why, "count": count});
        json!({
            "seed": self.seed, "seconds": seconds(self.time),
            "tenants": self.rows.iter().map(row).collect::<Vec<_>>(),
            "fairness": self.fairness, "longest_wait": self.wait_max.map(seconds),
            "passes": self.passes, "stalled_passes": self.stalled,
            "failed_passes": self.failed_passes, "device_busy": self.busy,
            "accounted_tokens": self.accounted_tokens,
            "said": self.said.iter().map(said).collect::<Vec<_>>(),
            "ends": self.ends.iter().map(end).collect::<Vec<_>>(),
            "accounts": self.closings, "violations": self.violations,
        })
    }

    /// The figures of two simulations of one workload, side by side.
    pub fn beside(&self, baseline: &Self) -> String {
        let mut table = Table::new(&["", ">baseline", ">this", ">change"]);
        let (of, was) = (self.rows.last(), baseline.rows.last());
        let (Some(of), Some(was)) = (of, was) else { return String::new() };
        let mut line = |name: &str, was: Option<f64>, is: Option<f64>, unit: &str| {
            let shown = |value: Option<f64>| value.map_or("-".into(), |value| number(value, unit));
            let change = match (was, is) {
                (Some(was), Some(is)) if was != 0.0 => {
                    format!("{:+.1} %", (is / was - 1.0) * 100.0)
                }
                _ => String::new(),
            };
            table.row([name.to_owned(), shown(was), shown(is), change]);
        };
        let ms = |time: Option<Duration>| time.map(|time| time.as_secs_f64() * 1000.0);
        let p = |pair: Option<(Duration, Duration)>, high: bool| {
            ms(pair.map(|(p50, p99)| if high { p99 } else { p50 }))
        };
        line("answered", Some(was.answered as f64), Some(of.answered as f64), "");
        line("refused", Some(was.refused as f64), Some(of.refused as f64), "");
        line("left by themselves", Some(was.left as f64), Some(of.left as f64), "");
        line("broken off", Some(was.broken as f64), Some(of.broken as f64), "");
        line("first token p50", p(was.first_token, false), p(of.first_token, false), " ms");
        line("first token p99", p(was.first_token, true), p(of.first_token, true), " ms");
        line("between tokens p50", p(was.inter_token, false), p(of.inter_token, false), " ms");
        line("between tokens p99", p(was.inter_token, true), p(of.inter_token, true), " ms");
        line("tokens a second", Some(was.tokens_per_second), Some(of.tokens_per_second), "");
        line("good answers a second", Some(was.good_per_second), Some(of.good_per_second), "");
        line("fairness", baseline.fairness, self.fairness, "");
        line("longest wait", ms(baseline.wait_max), ms(self.wait_max), " ms");
        table.to_string()
    }
}

fn row<'a>(
    name: &str,
    asked: impl Iterator<Item = &'a RequestSeen>,
    slo: &Slo,
    seconds: f64,
) -> ReportRow {
    let all: Vec<&RequestSeen> = asked.collect();
    let count =
        |is: fn(&SimulatedEnd) -> bool| all.iter().filter(|asked| is(&asked.end)).count() as u64;
    let mut first: Vec<Duration> = all.iter().filter_map(|asked| asked.first_token).collect();
    let mut inter: Vec<Duration> = all.iter().filter_map(|asked| between(asked)).collect();
    first.sort_unstable();
    inter.sort_unstable();
    let good = all.iter().filter(|asked| is_good(asked, slo)).count() as u64;
    let tokens: u64 = all.iter().map(|asked| tokens(asked)).sum();
    ReportRow {
        name: name.to_owned(),
        asked: all.len() as u64,
        answered: count(|end| matches!(end, SimulatedEnd::Answered { .. })),
        refused: count(|end| matches!(end, SimulatedEnd::Refused { .. })),
        left: count(|end| matches!(end, SimulatedEnd::Left)),
        broken: count(|end| matches!(end, SimulatedEnd::Broken { .. } | SimulatedEnd::Lost)),
        first_token: middle_and_far(&first),
        inter_token: middle_and_far(&inter),
        longest_pause: all.iter().map(|asked| asked.longest_pause).max(),
        tokens_per_second: tokens as f64 / seconds,
        good,
        good_per_second: good as f64 / seconds,
    }
}

/// What it got: as the answer says, or what was seen of it.
fn tokens(asked: &RequestSeen) -> u64 {
    u64::from(asked.usage.map_or(asked.pieces, |(_, generated)| generated))
}

/// The mean time between its tokens.
fn between(asked: &RequestSeen) -> Option<Duration> {
    let pauses = asked.pieces.checked_sub(1).filter(|pauses| *pauses > 0)?;
    Some(asked.decoding / pauses)
}

/// Answered, and as fast as was promised. An answer in one piece has no first token: all of it
/// must be here when the last one would have been.
fn is_good(asked: &RequestSeen, slo: &Slo) -> bool {
    if !matches!(asked.end, SimulatedEnd::Answered { .. }) {
        return false;
    }
    if asked.streaming {
        return asked.first_token.is_none_or(|time| time <= slo.first_token)
            && between(asked).is_none_or(|time| time <= slo.inter_token);
    }
    let tokens = u32::try_from(tokens(asked)).unwrap_or(u32::MAX);
    asked.total <= slo.first_token + slo.inter_token * tokens
}

/// How much of what it asked for a tenant got. Who left has had what it wanted.
fn share<'a>(asked: impl Iterator<Item = &'a RequestSeen>) -> Option<f64> {
    let (mut got, mut wanted) = (0.0, 0.0);
    for asked in asked.filter(|asked| asked.end != SimulatedEnd::Left) {
        wanted += 1.0;
        got += f64::from(u8::from(matches!(asked.end, SimulatedEnd::Answered { .. })));
    }
    (wanted > 0.0).then(|| got / wanted)
}

/// Jain's index (Jain, Chiu and Hawe 1984): 1 when all have the same share, 1/n when one has all.
fn jain(shares: &[f64]) -> Option<f64> {
    let sum: f64 = shares.iter().sum();
    let squares: f64 = shares.iter().map(|share| share * share).sum();
    (shares.len() > 1 && squares > 0.0).then(|| sum * sum / (shares.len() as f64 * squares))
}

fn middle_and_far(sorted: &[Duration]) -> Option<(Duration, Duration)> {
    let at = |share: f64| {
        let rank = (share * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied()
    };
    at(0.5).zip(at(0.99))
}

fn label(end: &SimulatedEnd) -> (String, String) {
    match end {
        SimulatedEnd::Answered { finish } => ("answered".into(), finish.clone()),
        SimulatedEnd::Refused { status, code } => (format!("refused {status}"), code.clone()),
        SimulatedEnd::Broken { code } => ("broken off".into(), code.clone()),
        SimulatedEnd::Left => ("left".into(), String::new()),
        SimulatedEnd::Lost => ("lost".into(), String::new()),
    }
}

fn number(value: f64, unit: &str) -> String {
    match value {
        value if value == value.trunc() && unit.is_empty() => format!("{value}"),
        value if value < 1.0 => format!("{value:.3}{unit}"),
        value if value < 10.0 => format!("{value:.2}{unit}"),
        value => format!("{value:.1}{unit}"),
    }
}

fn ms(time: Duration) -> String {
    let ms = time.as_secs_f64() * 1000.0;
    if ms < 10.0 { format!("{ms:.1}") } else { format!("{ms:.0}") }
}

fn two(pair: Option<(Duration, Duration)>) -> [String; 2] {
    pair.map_or(["-".into(), "-".into()], |(a, b)| [ms(a), ms(b)])
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let asked = self.rows.last().map_or(0, |row| row.asked);
        writeln!(
            f,
            "{asked} requests in {:.1} s of simulated time, seed {}; it took {:.1} s\n",
            self.time.as_secs_f64(),
            self.seed,
            self.took.as_secs_f64()
        )?;
        let mut table =
            Table::new(&["tenant", ">requests", ">answered", ">refused", ">left", ">broken off"]);
        for row in &self.rows {
            let counts = [row.asked, row.answered, row.refused, row.left, row.broken];
            let counts = counts.map(|count| count.to_string());
            table.row(std::iter::once(row.name.clone()).chain(counts));
        }
        writeln!(f, "{table}")?;
        let mut table = Table::new(&[
            "tenant",
            ">first token p50",
            ">p99",
            ">between tokens p50",
            ">p99",
            ">longest pause",
            ">tokens/s",
            ">good/s",
            ">good",
        ]);
        for row in &self.rows {
            let [first, first_far] = two(row.first_token);
            let [inter, inter_far] = two(row.inter_token);
            let pause = row.longest_pause.map_or("-".into(), ms);
            let good = 100.0 * row.good as f64 / (row.asked.max(1) as f64);
            table.row([
                row.name.clone(),
                first,
                first_far,
                inter,
                inter_far,
                pause,
                number(row.tokens_per_second, ""),
                number(row.good_per_second, ""),
                format!("{good:.0} %"),
            ]);
        }
        write!(f, "{table}")?;
        writeln!(
            f,
            "  (times in ms; good: the first token within {}, and {} between tokens at most)\n",
            humantime::format_duration(self.slo.first_token),
            humantime::format_duration(self.slo.inter_token)
        )?;
        let mut table = Table::new(&["", ">"]);
        if let Some(fairness) = self.fairness {
            table.row(["fairness (Jain, of the shares answered)".into(), format!("{fairness:.3}")]);
        }
        if let Some(wait) = self.wait_max {
            table.row(["longest wait for a first pass".into(), format!("{} ms", ms(wait))]);
        }
        let passes = match (self.stalled, self.failed_passes) {
            (0, 0) => self.passes.to_string(),
            (stalled, failed) => {
                format!("{} ({stalled} stalled, {failed} failed)", self.passes)
            }
        };
        table.row(["passes".into(), passes]);
        table.row(["the device was busy".into(), format!("{:.0} %", self.busy * 100.0)]);
        table.row(["tokens accounted".into(), self.accounted_tokens.to_string()]);
        writeln!(f, "{table}")?;

        let mut table = Table::new(&["policy", "phase", "decision", "reason", ">count"]);
        for ((policy, phase, decision, reason), count) in &self.said {
            let count = count.to_string();
            table.row([
                policy.clone(),
                (*phase).to_owned(),
                decision.clone(),
                reason.clone(),
                count,
            ]);
        }
        if !table.is_empty() {
            writeln!(f, "{table}")?;
        }
        let mut table = Table::new(&["the client saw", "why", ">count"]);
        for ((end, why), count) in &self.ends {
            table.row([end.clone(), why.clone(), count.to_string()]);
        }
        writeln!(f, "{table}")?;
        let mut table = Table::new(&["the account says", ">count"]);
        for (closing, count) in &self.closings {
            table.row([closing.clone(), count.to_string()]);
        }
        if !table.is_empty() {
            writeln!(f, "{table}")?;
        }
        if self.violations.is_empty() {
            let (last, others) = CHECKED.split_last().expect("something is checked");
            writeln!(f, "checked, and held: {}; {last}", others.join("; "))
        } else {
            writeln!(f, "VIOLATED, seed {}:", self.seed)?;
            self.violations.iter().try_for_each(|violation| writeln!(f, "  {violation}"))
        }
    }
}
