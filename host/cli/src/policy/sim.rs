//! `interlock policy sim`: an hour's traffic in a second.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use interlock_policy_tools::simulation::{Report, Setup, SimClock, run};
use interlock_policy_tools::workload::Workload;
use interlock_policy_wasm::{PolicyConfig, PolicyHost, Services};
use interlock_state::State;
use serde_json::json;

use super::subject::{load, read};
use crate::{BadUsage, note, say};

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Sim {
    /// The configuration whose policies, limits, queue and engine are simulated
    #[arg(long, value_name = "FILE")]
    config: PathBuf,

    /// The workload: tenants, models, faults
    #[arg(value_name = "WORKLOAD.toml")]
    workload: PathBuf,

    /// Random seed; the same seed gives the same simulation
    #[arg(long, value_name = "N", default_value = "1")]
    seed: u64,

    /// Simulate this configuration as well, with the same requests, and compare the two
    #[arg(long, value_name = "FILE")]
    baseline: Option<PathBuf>,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = r#"Examples:
  interlock policy sim --config interlock.toml workload.toml
  interlock policy sim --config new.toml --baseline old.toml workload.toml
  interlock policy sim --config interlock.toml workload.toml --seed 7 --json

A workload:
  duration = "60s"
  slo = { first_token = "1s", inter_token = "100ms" }
  [[model]]
  name = "sim"
  settings = "decode=20ms,row=1ms,prefill=200us,stop=0"
  stall = { chance = 0.001, time = "2s" }
  [[tenant]]
  name = "acme"
  rate = 4.0
  prompt = { median = 200, sigma = 0.8, max = 3000 }
  output = { min = 20, max = 300 }
  leave = { chance = 0.1, after = { min = 0, max = 100 } }
  headers = { authorization = "Bearer acme-key" }

The models are the workload's; the configuration's models are ignored. Exit status: 1 when an
invariant of the host was violated; the same seed repeats the violation."#;

impl Sim {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let text = read(&self.workload)?;
        let workload = Workload::parse(&text)
            .map_err(|why| BadUsage(format!("{}: {why}", self.workload.display())))?;
        let report = simulate(&self.config, &workload, self.seed)?;
        let baseline = self.baseline.as_deref();
        let baseline = baseline.map(|path| simulate(path, &workload, self.seed)).transpose()?;
        match (&baseline, self.json) {
            (None, true) => say(&format!("{:#}\n", report.to_json()))?,
            (Some(baseline), true) => {
                let both = json!({"this": report.to_json(), "baseline": baseline.to_json()});
                say(&format!("{both:#}\n"))?;
            }
            (None, false) => say(&report.to_string())?,
            (Some(baseline), false) => {
                let beside = report.beside(baseline);
                say(&format!("{report}\nbeside {}:\n\n{beside}", self.beside()))?;
            }
        }
        let violations = |report: &Report| report.violations().len();
        let all = violations(&report) + baseline.as_ref().map_or(0, violations);
        if all > 0 {
            bail!(
                "the simulation violated {all} invariants of the host; --seed {} repeats that",
                self.seed
            );
        }
        Ok(())
    }

    fn beside(&self) -> String {
        self.baseline.as_deref().map(Path::display).map(|path| path.to_string()).unwrap_or_default()
    }
}

fn simulate(config: &Path, workload: &Workload, seed: u64) -> anyhow::Result<Report> {
    let config = load(config)?;
    let clock = SimClock::default();
    let registry = interlock_metrics::Registry::new();
    let state = State::memory_with(Arc::new(clock.clone()));
    let host = PolicyHost::with(Services { state, registry: &registry, cache: None })?;
    let mut links = vec![];
    for policy in &config.policy {
        // Deadlines count the machine's time, which must not change a simulated day.
        // Quarantine goes by the wall's clock, which has no place in a simulated day.
        let policy =
            PolicyConfig { deadline: Duration::from_secs(1), crash_budget: 0, ..policy.clone() };
        links.push(policy.chain_entry(host.load(&policy)?));
    }
    if links.is_empty() {
        note("no policies are configured: this is the host alone");
    }
    let setup = Setup {
        server: config.server,
        detached: config.detached,
        engine: config.engine,
        cache: config.cache,
        waiting: config.waiting,
        ceilings: config.limits.ceilings(),
        links,
        clock,
    };
    Ok(run(setup, workload, seed)?)
}
