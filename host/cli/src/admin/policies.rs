//! `interlock policies`: the policies of a running host.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Subcommand;
use interlock_policy_chain::{PolicyMode, RollbackTarget};
use interlock_policy_tools::table::Table;
use serde_json::{Map, Value, json};
use ureq::http::Method;

use super::{Admin, AdminRequest, cell, percent, short};
use crate::policy::subject;
use crate::{BadUsage, say};

#[derive(Debug, Subcommand)]
pub(crate) enum PoliciesCommand {
    /// List the policies in use, and the generations that a rollback can go back to
    List {
        #[command(flatten)]
        admin: Admin,

        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Replace a policy's component, settings or mode; requests in flight keep the old policy
    Swap {
        /// The policy's name in the configuration
        name: String,

        /// The new component; by default, the policy keeps its component
        #[arg(value_name = "FILE")]
        component: Option<PathBuf>,

        /// The policy's mode: enforce, shadow or canary:PERCENT; by default, it keeps its mode
        #[arg(long)]
        mode: Option<PolicyMode>,

        /// The policy's settings: JSON, or a JSON or TOML file; by default, it keeps its settings
        #[arg(long, value_name = "JSON|FILE", value_parser = subject::settings)]
        settings: Option<Map<String, Value>>,

        #[command(flatten)]
        admin: Admin,

        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Go back to an earlier generation of all policies; later generations are dropped
    Rollback {
        /// The generation: previous, start (the configured policies), or a generation's number
        #[arg(long, value_name = "GENERATION", default_value = "previous")]
        to: RollbackTarget,

        #[command(flatten)]
        admin: Admin,

        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

pub(crate) const EXAMPLES: &str = "\
Examples:
  interlock policies list --config interlock.toml
  interlock policies swap guard new.wasm --mode canary:20     for 20 % of the requests
  interlock policies swap guard --mode enforce                for all requests
  interlock policies rollback                                 undoes the last change
  interlock policies rollback --to start                      the configured policies again";

impl PoliciesCommand {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        match self {
            Self::List { admin, json } => {
                let path = "/admin/policies".to_owned();
                let told = admin.ask(AdminRequest { path, ..AdminRequest::default() })?;
                say(&if json { format!("{told:#}\n") } else { list(&told) })
            }
            Self::Swap { name, component, mode, settings, admin, json } => {
                let told = swap(&admin, &name, component, mode, settings)?;
                say(&if json { format!("{told:#}\n") } else { changed(&told) })
            }
            Self::Rollback { to, admin, json } => {
                let path = "/admin/policies/rollback".to_owned();
                let to = to.to_string();
                let query = vec![("to", &*to)];
                let asked =
                    AdminRequest { method: Method::POST, path, query, ..AdminRequest::default() };
                let told = admin.ask(asked)?;
                say(&if json { format!("{told:#}\n") } else { changed(&told) })
            }
        }
    }
}

fn swap(
    admin: &Admin,
    name: &str,
    component: Option<PathBuf>,
    mode: Option<PolicyMode>,
    settings: Option<Map<String, Value>>,
) -> anyhow::Result<Value> {
    let path = format!("/admin/policies/{}", percent(name));
    let mode = mode.map(|mode| mode.to_string());
    let settings = settings.map(Value::Object);
    let post = AdminRequest { method: Method::POST, path, ..AdminRequest::default() };
    match component {
        Some(file) => {
            let body =
                interlock_files::read(&file, interlock_policy_wasm::limits::COMPONENT_BYTES_MAX)
                    .map_err(|why| BadUsage(format!("cannot read {}: {why}", file.display())))?;
            let settings = settings.map(|settings| settings.to_string());
            let said = [("mode", mode.as_deref()), ("settings", settings.as_deref())];
            let query = said.iter().filter_map(|(name, value)| Some((*name, (*value)?))).collect();
            admin.ask(AdminRequest { query, body, content_type: Some("application/wasm"), ..post })
        }
        None => {
            let said = [("mode", mode.map(Value::from)), ("settings", settings)];
            let said = said.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
            let body = json!(said.collect::<Map<_, _>>()).to_string().into_bytes();
            admin.ask(AdminRequest { body, content_type: Some("application/json"), ..post })
        }
    }
}

fn list(told: &Value) -> String {
    let mut policies = Table::new(&["policy", "version", "mode", "sha256", "source", "since"]);
    for policy in told["policies"].as_array().into_iter().flatten() {
        let posted = if policy["posted"] == true { " (posted)" } else { "" };
        policies.row([
            cell(&policy["name"]),
            cell(&policy["version"]),
            cell(&policy["mode"]),
            format!("{}{posted}", short(&policy["sha256"])),
            cell(&policy["source"]),
            cell(&policy["loaded_at"]),
        ]);
    }
    let mut generations = Table::new(&[">generation", "origin", "since", "policies"]);
    for generation in told["generations"].as_array().into_iter().flatten() {
        let policies = generation["policies"].as_array().into_iter().flatten();
        let policies: Vec<_> =
            policies.map(|p| format!("{} {}", cell(&p["name"]), version(p))).collect();
        generations.row([
            cell(&generation["generation"]),
            cell(&generation["origin"]),
            cell(&generation["at"]),
            policies.join(", "),
        ]);
    }
    let current = cell(&told["generation"]);
    format!(
        "generation {current} is in place\n\n{policies}\ngenerations, the last one in place\n\n{generations}"
    )
}

/// What a swap or a rollback came to.
fn changed(told: &Value) -> String {
    let (now, before) = (cell(&told["generation"]), cell(&told["from_generation"]));
    if now == before {
        return format!("nothing has changed: generation {now} stays in place\n");
    }
    let mut text = format!("generation {now} is in place; it was {before}\n\n");
    let mut table = Table::new(&["policy", "from", "to", "settings"]);
    for change in told["changed"].as_array().into_iter().flatten() {
        let settings = if change["settings_changed"] == true { "changed" } else { "as before" };
        let (from, to) = (version(&change["from"]), version(&change["to"]));
        table.row([cell(&change["policy"]), from, to, settings.to_owned()]);
    }
    let _ = write!(text, "{table}");
    text
}

fn version(of: &Value) -> String {
    if of.is_null() {
        return "-".to_owned();
    }
    format!("{} ({}, {})", cell(&of["version"]), short(&of["sha256"]), cell(&of["mode"]))
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn policies_and_generations_stand_in_columns() {
        let digest = "0123456789abcdef0123456789abcdef";
        let one = |version: &str, mode: &str| json!({"name": "guard", "version": version, "sha256": digest, "mode": mode});
        let told = json!({
            "generation": 12,
            "policies": [
                {"name": "guard", "version": "1.10.0", "sha256": digest, "mode": "canary:20", "posted": true,
                 "source": "builtin:guard", "loaded_at": "2026-03-07T22:30:00Z"},
                {"name": "night-shift", "version": "1", "sha256": digest, "mode": "enforce", "posted": false,
                 "source": "policies/night.wasm", "loaded_at": "2026-03-07T22:00:00Z"},
            ],
            "generations": [
                {"generation": 1, "origin": "start", "at": "2026-03-07T22:00:00Z", "policies": [one("1.9.0", "enforce")]},
                {"generation": 12, "origin": "admin", "at": "2026-03-07T22:30:00Z", "policies": [one("1.10.0", "canary:20")]},
            ],
        });
        expect![[r#"
            generation 12 is in place

              policy        version   mode        sha256                  source                since
              guard         1.10.0    canary:20   0123456789ab (posted)   builtin:guard         2026-03-07T22:30:00Z
              night-shift   1         enforce     0123456789ab            policies/night.wasm   2026-03-07T22:00:00Z

            generations, the last one in place

              generation   origin   since                  policies
                       1   start    2026-03-07T22:00:00Z   guard 1.9.0 (0123456789ab, enforce)
                      12   admin    2026-03-07T22:30:00Z   guard 1.10.0 (0123456789ab, canary:20)
        "#]].assert_eq(&list(&told));
    }

    #[test]
    fn a_change_says_from_what_to_what() {
        let version = |version: &str, mode: &str| json!({"version": version, "sha256": "0123456789abcdef", "mode": mode});
        let told = json!({"generation": 8, "from_generation": 7, "changed": [
            {"policy": "guard", "from": version("1.9.0", "enforce"), "to": version("1.10.0", "canary:20"), "settings_changed": false},
        ]});
        expect![[r#"
            generation 8 is in place; it was 7

              policy   from                            to                                 settings
              guard    1.9.0 (0123456789ab, enforce)   1.10.0 (0123456789ab, canary:20)   as before
        "#]]
        .assert_eq(&changed(&told));
        let same = json!({"generation": 7, "from_generation": 7, "changed": []});
        assert_eq!(changed(&same), "nothing has changed: generation 7 stays in place\n");
    }
}
