//! `interlock policy replay`: what would another policy have said?

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use interlock_policy_tools::clock::ManualClock;
use interlock_policy_tools::comparison::compare;
use interlock_policy_tools::replay::replay;
use interlock_policy_wasm::{PolicyHost, PolicySource, Services};
use interlock_state::State;

use super::subject::{Circumstances, read, source};
use crate::say;

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Replay {
    /// The host's record of requests: `[policies] record = "trace.jsonl"`
    #[arg(value_name = "TRACE.jsonl")]
    trace: PathBuf,

    /// The policy to ask: a policy component's file, or builtin:NAME
    #[arg(long, value_name = "FILE|builtin:NAME", value_parser = source)]
    policy: PolicySource,

    /// The recorded policy to compare with; by default, the one that answered first
    #[arg(long, value_name = "NAME")]
    instead_of: Option<String>,

    /// Add the policy after the recorded ones, instead of replacing one of them
    #[arg(long, conflicts_with = "instead_of")]
    beside: bool,

    #[command(flatten)]
    circumstances: Circumstances,

    /// Print JSON, with every request whose decision changes
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  interlock policy replay trace.jsonl --policy new.wasm --instead-of quota
  interlock policy replay trace.jsonl --policy new.wasm --beside
  interlock policy replay trace.jsonl --policy new.wasm --config interlock.toml --json

The policy is asked at the times of the trace, so rate limits fill and empty as they did. Bodies are
not recorded: a policy that reads a body gets null. Without --grant and --config, the policy is
granted all that it asks for. With --beside, the recorded policies answer as recorded, and their
plans are merged with the new policy's under the `[limits]` of --config, or the default ones.
Exit status: 0 whether or not a decision changes.";

impl Replay {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let trace = read(&self.trace)?;
        let mut policy = self.circumstances.policy(&self.policy)?;
        policy.deadline = policy.deadline.max(Duration::from_secs(1));
        policy.crash_budget = 0;
        let clock = ManualClock::default();
        let registry = interlock_metrics::Registry::new();
        let state = State::memory_with(Arc::new(clock.clone()));
        let host = PolicyHost::with(Services { state, registry: &registry, cache: None })?;
        if !self.circumstances.grants_said() {
            policy.grants.extend(host.describe(&policy)?.missing);
        }
        let loaded = host.load(&policy)?;
        if self.beside {
            let limits = self.circumstances.limits()?;
            let link = policy.chain_entry(loaded);
            let found = compare(&trace, &link, limits.ceilings(), &clock)
                .map_err(|why| anyhow::anyhow!("{}: {why}", self.trace.display()))?;
            return show(self.json, &found.to_json(), &found);
        }
        let replayed = replay(&trace, self.instead_of.as_deref(), loaded.as_ref(), &clock)
            .map_err(|why| anyhow::anyhow!("{}: {why}", self.trace.display()))?;
        show(self.json, &replayed.to_json(), &replayed)
    }
}

fn show(
    as_json: bool,
    json: &serde_json::Value,
    text: &impl std::fmt::Display,
) -> anyhow::Result<()> {
    if as_json { say(&format!("{json:#}\n")) } else { say(&text.to_string()) }
}
