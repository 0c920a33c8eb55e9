//! `interlock policy`: commands for authors of policies.
//!
//! `interlock-policy-tools` and `interlock-policy-wasm` do the work; this module has the flags, the
//! files and the texts.

mod bench;
mod check;
mod inspect;
mod new;
mod replay;
mod sim;
pub(crate) mod subject;
mod test;

use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Create a policy project, with its tests, cases and documentation
    New(new::New),
    /// Check whether a policy would load; show its imports, grants and phases
    Check(check::Check),
    /// Describe a policy in full: phases, reasons, metrics, settings, size
    Inspect(inspect::Inspect),
    /// Run test cases: give a policy facts, and compare its decisions with the expected ones
    Test(test::Test),
    /// Run a workload through the host with a simulated model and clock
    Sim(sim::Sim),
    /// Replay recorded requests with another policy, and show which decisions differ
    Replay(replay::Replay),
    /// Measure the time and memory that a policy's calls take
    Bench(bench::PolicyBench),
}

pub(crate) const EXAMPLES: &str = "\
Examples:
  interlock policy new night-shift                   then: cd night-shift && make
  interlock policy check night-shift.wasm            whether it loads, and with which grants
  interlock policy inspect builtin:guard             phases, reasons, metrics, settings, size
  interlock policy test night-shift.wasm cases.toml  test cases: facts in, decisions out
  interlock policy sim --config interlock.toml workload.toml
  interlock policy replay trace.jsonl --policy night-shift.wasm
  interlock policy bench night-shift.wasm            time and memory of its calls";

impl PolicyCommand {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        match self {
            Self::New(new) => new.run(),
            Self::Check(check) => check.run(),
            Self::Inspect(inspect) => inspect.run(),
            Self::Test(test) => test.run(),
            Self::Sim(sim) => sim.run(),
            Self::Replay(replay) => replay.run(),
            Self::Bench(bench) => bench.run(),
        }
    }
}
