//! `interlock policy bench`: what a policy costs.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use clap::Args;
use interlock_bench::{LoadAverage, Machine};
use interlock_policy_tools::bench::{Figures, measure};
use interlock_policy_tools::table::Table;
use interlock_policy_wasm::PolicyHost;
use serde_json::json;

use super::subject::Subject;
use crate::{note, say};

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct PolicyBench {
    #[command(flatten)]
    subject: Subject,

    /// How many calls of each phase to measure
    #[arg(long, value_name = "N", default_value = "10000")]
    calls: NonZeroU32,

    /// Print JSON, with times in seconds
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  interlock policy bench night-shift.wasm
  interlock policy bench builtin:guard --calls 100000 --json

Each call has about 1 KB of facts, 16 candidates and windows of 60 bytes. The calls are made as the
host makes them, on one thread, with warm instances. Without --grant and --config, the policy is
granted all that it asks for.";

impl PolicyBench {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        if cfg!(debug_assertions) {
            note("this is a debug build; figures of a release build are several times better");
        }
        let mut policy = self.subject.policy()?;
        // A slow call is to be measured, not stopped.
        policy.deadline = Duration::from_secs(1);
        policy.crash_budget = 0;
        let host = PolicyHost::new()?;
        let description = host.describe(&policy)?;
        if !self.subject.circumstances.grants_said() {
            policy.grants.extend(description.missing.clone());
        }
        let before = LoadAverage::now();
        let began = Instant::now();
        let loaded = host.load(&policy)?;
        let load_time = began.elapsed();
        let figures = measure(loaded.as_ref(), self.calls.get(), &cpu_time);
        let memory = loaded.instance_memory().into_iter().max();
        let machine = Machine::here();
        if self.json {
            let phases: Vec<_> = figures.iter().map(Figures::to_json).collect();
            let report = json!({
                "policy": policy.source.to_string(), "sha256": description.digest.as_str(),
                "bytes": description.bytes, "load_seconds": load_time.as_secs_f64(),
                "instance_bytes": memory, "phases": phases, "machine": machine,
                "load_before": before, "load_after": LoadAverage::now(),
            });
            return say(&format!("{report:#}\n"));
        }
        let mut text = format!(
            "{}: {:.1} KiB, compiled and begun in {:.1} ms",
            policy.source,
            description.bytes as f64 / 1024.0,
            load_time.as_secs_f64() * 1000.0
        );
        if let Some(memory) = memory {
            text += &format!(", {:.0} KiB of memory an instance", memory as f64 / 1024.0);
        }
        text += &format!("\n\n{}", table(&figures));
        let shown = |load: Option<LoadAverage>| {
            load.map_or("unknown".to_owned(), |LoadAverage([one, five, _])| {
                format!("{one:.1}, {five:.1}")
            })
        };
        text += &format!(
            "\n{}, {} cores, {}; load average before {}, after {} (1 and 5 minutes)\n",
            machine.cpu,
            machine.cores,
            machine.system,
            shown(before),
            shown(LoadAverage::now())
        );
        for Figures { phase, failures, first_failure, .. } in &figures {
            if let Some(why) = first_failure {
                text += &format!("{}: {failures} calls failed; the first: {why}\n", phase.as_str());
            }
        }
        say(&text)
    }
}

fn table(figures: &[Figures]) -> Table {
    let mut table = Table::new(&["phase", ">calls", ">failed", ">p50", ">p99", ">CPU, mean"]);
    let micros = |time: Duration| format!("{:.2} µs", time.as_secs_f64() * 1e6);
    for of in figures {
        let phase = of.phase.as_str().to_owned();
        let cpu = of.cpu.map_or("-".to_owned(), micros);
        let counts = [of.calls.to_string(), of.failures.to_string()];
        let times = [micros(of.p50), micros(of.p99), cpu];
        table.row(std::iter::once(phase).chain(counts).chain(times));
    }
    table
}

/// What this thread has used of a core.
fn cpu_time() -> Option<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes into the place that it is given, which lives until it returns.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    let seconds = u64::try_from(time.tv_sec).ok()?;
    let nanos = u32::try_from(time.tv_nsec).ok()?;
    (failed == 0).then(|| Duration::new(seconds, nanos))
}
