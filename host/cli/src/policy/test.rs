//! `interlock policy test`: facts in, decisions out.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::bail;
use clap::Args;
use interlock_policy_tools::cases::{Cases, NotBegun, NotPlayed, PolicyUnderTest};
use interlock_policy_tools::clock::ManualClock;
use interlock_policy_wasm::{
    LoadFailed, LoadProblem, PolicyConfig, PolicyHost, Services, default_cache,
};
use interlock_state::State;
use serde_json::{Map, Value};

use super::subject::{Subject, read};
use crate::{BadUsage, note, say};

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Test {
    #[command(flatten)]
    subject: Subject,

    /// The cases; `interlock policy new` writes examples, and wit/README.md describes them
    #[arg(value_name = "CASES.toml")]
    cases: PathBuf,

    /// Run only the cases whose name contains this text
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = r#"Examples:
  interlock policy test night-shift.wasm cases.toml
  interlock policy test builtin:quota cases.toml --only "per minute"

A case:
  [[case]]
  name = "a long prompt is turned away"
  settings = { max_prompt_tokens = 100 }
  request = { prompt_tokens = 101, tenant = "acme" }
  expect = { decision = "reject", status = 413, detail = { contains = "100" } }

A case of several steps, which share a state and a clock:
  [[case]]
  name = "one a minute"
  settings = { requests_per_minute = 1 }
  step = [{ expect = { decision = "admit" } },
          { expect = { decision = "reject", retry_after = { max = "1m" } } },
          { at = "61s", expect = { decision = "admit" } }]

A case at a time of day; cases begin on 2026-01-01T00:00:00Z, a Thursday, unless they say when:
  [[case]]
  name = "nobody is let in at night"
  at = "2026-03-07T22:30:00Z"
  step = [{ expect = { decision = "reject" } },
          { at = "2026-03-08T06:00:00Z", expect = { decision = "admit" } }]

Settings are those of --config, then what a case says, then --settings, key by key: the last wins.
Without --grant and --config, the policy is granted all that it asks for.

It exits with 0 when every decision is as expected, 1 when one is not, and 2 when there was nothing to
ask: no such component, one that this host cannot load, or cases that make no sense."#;

impl Test {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let text = read(&self.cases).map_err(|why| BadUsage(format!("{why:#}")))?;
        let file = self.cases.display();
        let cases = Cases::parse(&text).map_err(|why| BadUsage(format!("{file}: {why}")))?;
        let mut policy = self.subject.policy()?;
        // A case says what a policy answers, and not when it is too slow on this machine; and one
        // that traps is asked again.
        policy.deadline = policy.deadline.max(std::time::Duration::from_secs(1));
        policy.crash_budget = 0;
        let generous = !self.subject.circumstances.grants_said();
        let configured = policy.settings.clone();
        let said = self.subject.circumstances.settings_said().cloned().unwrap_or_default();
        let given = cases.settings_given().into_iter();
        let both: Vec<_> = given.filter(|key| said.contains_key(*key)).collect();
        if !both.is_empty() {
            note(&format!("{file} sets {} too; --settings wins", both.join(", ")));
        }
        let mut begin = |settings: &Map<String, Value>| {
            let mut settled = configured.clone();
            settled.extend(settings.clone());
            settled.extend(said.clone());
            let policy = PolicyConfig { settings: settled, ..policy.clone() };
            begin(&policy, generous)
        };
        let played = cases.play(&self.only, &mut begin);
        let played = played.map_err(|why| match why {
            NotPlayed::Cases(why) => BadUsage(format!("{file}: {why}")),
            NotPlayed::Policy(why) => BadUsage(why),
        })?;
        if self.json {
            say(&format!("{:#}\n", played.to_json()))?;
        } else {
            say(&format!("{} with {file}\n\n{played}", self.subject.source))?;
        }
        match played.passed() {
            true => Ok(()),
            false => bail!("{} does not decide as {file} expects", self.subject.source),
        }
    }
}

/// A policy with a state of its own that nobody else has touched.
fn begin(policy: &PolicyConfig, generous: bool) -> Result<PolicyUnderTest, NotBegun> {
    let clock = ManualClock::default();
    let state = State::memory_with(Arc::new(clock.clone()));
    let registry = interlock_metrics::Registry::new();
    let services = Services { state: state.clone(), registry: &registry, cache: default_cache() };
    let host = PolicyHost::with(services).map_err(|why| NotBegun::Unusable(why.to_string()))?;
    let mut policy = policy.clone();
    let mut loaded = host.load(&policy);
    if loaded.is_err() && generous {
        let description = host.describe(&policy).map_err(not_begun)?;
        if !description.missing.is_empty() {
            policy.grants.extend(description.missing);
            loaded = host.load(&policy);
        }
    }
    let loaded = loaded.map_err(not_begun)?;
    Ok(PolicyUnderTest { policy: loaded, state: state.space(&policy.name), clock })
}

/// A case may be about what a policy makes of its settings, and about nothing before that.
fn not_begun(failed: LoadFailed) -> NotBegun {
    match failed.why {
        LoadProblem::Settings(_) | LoadProblem::Start(_) | LoadProblem::Descriptor(_) => {
            NotBegun::Refused(failed.to_string())
        }
        _ => NotBegun::Unusable(failed.to_string()),
    }
}
