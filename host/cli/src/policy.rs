//! `interlock policy`: for those who write policies.
//!
//! What each command does is in `interlock-policy-tools` and `interlock-policy-wasm`; here are flags, files
//! and words.

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
    /// Make a policy that builds, tests and documents itself
    New(new::New),
    /// Say what a policy imports, needs and takes part in, and whether it would load
    Check(check::Check),
    /// Say everything that can be known of a policy
    Inspect(inspect::Inspect),
    /// Put facts before a policy and compare its decisions with what is expected
    Test(test::Test),
    /// Run a workload through the host with a simulated model and clock
    Sim(sim::Sim),
    /// Put recorded traffic before another policy and show what it decides otherwise
    Replay(replay::Replay),
    /// Measure what a policy costs
    Bench(bench::PolicyBench),
}

pub(crate) const EXAMPLES: &str = "\
Examples:
  interlock policy new night-shift                   then: cd night-shift && make
  interlock policy check night-shift.wasm            would it load, and with which grants
  interlock policy inspect builtin:guard             its reasons, metrics, settings, size
  interlock policy test night-shift.wasm cases.toml  facts in, decisions out
  interlock policy sim --config interlock.toml workload.toml
  interlock policy replay trace.jsonl --policy night-shift.wasm
  interlock policy bench night-shift.wasm            microseconds and bytes";

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
