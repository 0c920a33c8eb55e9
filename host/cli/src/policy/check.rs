//! `interlock policy check`: would it load?

use clap::Args;
use interlock_policy_api::CallTime;
use interlock_policy_tools::table::Table;
use interlock_policy_wasm::{Grant, PolicyDescription, PolicyHost};

use super::subject::Subject;
use crate::say;

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Check {
    #[command(flatten)]
    subject: Subject,
}

const EXAMPLES: &str = "\
Examples:
  interlock policy check night-shift.wasm
  interlock policy check night-shift.wasm --config interlock.toml
  interlock policy check quota.wasm --grant state --grant headers:x-team

The settings are checked too: those of --settings or of --config. Exit status: 1 when the policy
would not load.";

impl Check {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let policy = self.subject.policy()?;
        let host = PolicyHost::new()?;
        match host.load(&policy) {
            Ok(loaded) => {
                say(&facts(loaded.describe(), &policy.grants))?;
                say(&format!("\n{} loads\n", policy.source))
            }
            Err(failed) => {
                let description = host.describe(&policy)?;
                say(&facts(&description, &policy.grants))?;
                if !description.grants_line.is_empty() {
                    say(&format!("\nadd to its [[policy]]:\n  {}\n", description.grants_line))?;
                }
                Err(anyhow::anyhow!("{failed}"))
            }
        }
    }
}

/// What can be said of a component, as a table.
pub(crate) fn facts(description: &PolicyDescription, granted: &[Grant]) -> String {
    let mut table = Table::new(&["", ""]);
    let says = description.says.as_ref();
    if let Some(says) = says {
        table.row(["calls itself".to_owned(), format!("{} {}", says.name, says.version)]);
    }
    table.row(["made for".to_owned(), format!("interlock:policy@{}", description.wit)]);
    let size = format!("{:.1} KiB", description.bytes as f64 / 1024.0);
    table.row(["size".to_owned(), size]);
    table.row(["sha256".to_owned(), description.digest.to_string()]);
    table.row(["takes part in".to_owned(), description.phases_text()]);
    table.row(["imports".to_owned(), or_none(&description.imports)]);
    let slow = match description.call_time {
        CallTime::AtOnce => None,
        CallTime::Computes => Some("its calls may take long: called on threads of its own"),
        CallTime::Waits => Some("it asks others: called on threads of its own"),
    };
    if let Some(why) = slow {
        table.row(["is slow".to_owned(), why.to_owned()]);
    }
    match says {
        Some(says) => {
            table.row(["reasons".to_owned(), or_none(&says.reasons)]);
            let metrics: Vec<_> = says.metrics.iter().map(metric).collect();
            table.row(["metrics".to_owned(), or_none(&metrics)]);
        }
        None => table.row(["reasons".to_owned(), "unknown: it did not begin".to_owned()]),
    }
    let mut text = table.to_string();
    let needs = says.map_or(&[][..], |says| &says.needs);
    // What its imports need has no line of its own: it is missing, or it was granted.
    let mut wanted: Vec<&Grant> = needs.iter().chain(&description.missing).chain(granted).collect();
    wanted.sort();
    wanted.dedup();
    if !wanted.is_empty() {
        let mut table = Table::new(&["grant", ""]);
        for grant in wanted {
            let how = if description.missing.contains(grant) { "MISSING" } else { "granted" };
            table.row([grant.to_string(), how.to_owned()]);
        }
        text += &format!("\n{table}");
    }
    text
}

fn metric(metric: &interlock_policy_wasm::DeclaredMetric) -> String {
    let value = serde_json::to_value(metric).unwrap_or_default();
    let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let labels = value["labels"].as_array().cloned().unwrap_or_default();
    let labels: Vec<_> = labels.iter().filter_map(|label| label.as_str()).collect();
    let labels =
        if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
    format!("{}{labels}", text("name"))
}

fn or_none(list: &[String]) -> String {
    if list.is_empty() { "none".to_owned() } else { list.join(", ") }
}
