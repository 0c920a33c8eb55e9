//! `interlock policy inspect`: everything that can be known of a policy.

use std::time::Instant;

use clap::Args;
use interlock_policy_tools::json;
use interlock_policy_wasm::PolicyHost;
use serde_json::{Value, json};

use super::check::facts;
use super::subject::Subject;
use crate::say;

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Inspect {
    #[command(flatten)]
    subject: Subject,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  interlock policy inspect builtin:guard
  interlock policy inspect quota.wasm --json | jq .settings_schema";

impl Inspect {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let mut policy = self.subject.policy()?;
        let host = PolicyHost::new()?;
        let mut description = host.describe(&policy)?;
        if !self.subject.circumstances.grants_said() {
            // Nobody asks what it may: it is shown with all that it needs.
            policy.grants.clone_from(&description.missing);
            description = host.describe(&policy)?;
        }
        let began = Instant::now();
        let loaded = host.load(&policy);
        let took = began.elapsed();
        let memory =
            loaded.as_ref().ok().and_then(|loaded| loaded.instance_memory().into_iter().max());
        let watch = description.says.as_ref().map(|says| json::watch(&says.watch));
        if self.json {
            let mut value = description.to_json();
            value["watch"] = watch.unwrap_or_default();
            value["load_seconds"] = took.as_secs_f64().into();
            value["instance_bytes"] = json!(memory);
            value["loads"] = loaded.is_ok().into();
            return say(&format!("{value:#}\n"));
        }
        let mut text = facts(&description, &policy.grants);
        text += &format!("\n  compiled and begun in {:.1} ms", took.as_secs_f64() * 1000.0);
        if let Some(memory) = memory {
            text += &format!(", {:.0} KiB of memory an instance", memory as f64 / 1024.0);
        }
        text += "\n";
        if let Some(watch) = watch {
            text += &format!("  watches {watch}\n");
        }
        if let Err(failed) = &loaded {
            text += &format!("  does not load: {failed}\n");
        }
        let schema = description.says.as_ref().map_or("", |says| says.settings_schema.as_str());
        match serde_json::from_str::<Value>(schema) {
            Ok(schema) => text += &format!("\nsettings:\n{schema:#}\n"),
            Err(_) => text += "\nsettings: it does not say which\n",
        }
        say(&text)
    }
}
