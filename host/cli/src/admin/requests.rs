//! `interlock requests`: the requests that a running host has in flight.

use clap::Subcommand;
use interlock_policy_tools::table::Table;
use serde_json::Value;
use ureq::http::Method;

use super::{Admin, AdminRequest, cell, percent};
use crate::say;

#[derive(Debug, Subcommand)]
pub(crate) enum RequestsCommand {
    /// List the requests in flight, the oldest first
    List {
        /// List only requests of this tenant
        #[arg(long)]
        tenant: Option<String>,

        /// List only requests of this model
        #[arg(long)]
        model: Option<String>,

        #[command(flatten)]
        admin: Admin,

        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Cancel the requests that have an id, of all tenants; their clients get an error
    Cancel {
        /// The request's id, as `interlock requests list` and the log show it
        id: String,

        /// Cancel only this tenant's request: clients choose ids, so two tenants may use the same one
        #[arg(long)]
        tenant: Option<String>,

        #[command(flatten)]
        admin: Admin,
    },
}

pub(crate) const EXAMPLES: &str = "\
Examples:
  interlock requests list --config interlock.toml
  interlock requests list --tenant acme --url http://127.0.0.1:8081
  interlock requests cancel 6f1d2c3b";

impl RequestsCommand {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        match self {
            Self::List { tenant, model, admin, json } => {
                let said = [("tenant", tenant.as_deref()), ("model", model.as_deref())];
                let query =
                    said.iter().filter_map(|(name, value)| Some((*name, (*value)?))).collect();
                let path = "/admin/requests".to_owned();
                let told = admin.ask(AdminRequest { path, query, ..AdminRequest::default() })?;
                say(&if json { format!("{told:#}\n") } else { list(&told) })
            }
            Self::Cancel { id, tenant, admin } => {
                let path = format!("/admin/requests/{}/cancel", percent(&id));
                let query = tenant.iter().map(|tenant| ("tenant", tenant.as_str())).collect();
                let asked =
                    AdminRequest { method: Method::POST, path, query, ..AdminRequest::default() };
                let told = admin.ask(asked)?;
                say(&format!("told to stop: {} of id {id}\n", cell(&told["requests"])))
            }
        }
    }
}

fn list(told: &Value) -> String {
    let requests = told["requests"].as_array().map_or(&[][..], Vec::as_slice);
    let total = told["total"].as_u64().unwrap_or(0);
    if requests.is_empty() {
        return "no requests in flight\n".to_owned();
    }
    let columns =
        ["id", "tenant", "endpoint", "model", "priority", "state", ">tokens", ">queued", ">age"];
    let mut table = Table::new(&columns);
    for request in requests {
        let detached = if request["detached"] == true { " (detached)" } else { "" };
        table.row([
            cell(&request["id"]),
            cell(&request["tenant"]),
            cell(&request["endpoint"]),
            cell(&request["model"]),
            cell(&request["priority"]),
            format!("{}{detached}", cell(&request["state"])),
            cell(&request["generated_tokens"]),
            seconds(&request["queue_ms"]),
            seconds(&request["age_ms"]),
        ]);
    }
    let shown = match requests.len() as u64 {
        all if all == total => String::new(),
        some => format!(", the {some} oldest of them here"),
    };
    format!("{total} in flight{shown}\n\n{table}")
}

fn seconds(millis: &Value) -> String {
    let tenths = |millis: u64| format!("{}.{} s", millis / 1000, millis % 1000 / 100);
    millis.as_u64().map_or_else(|| "-".to_owned(), tenths)
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use serde_json::json;

    use super::*;

    #[test]
    fn requests_stand_in_columns() {
        let told = json!({"total": 12, "requests": [
            {"id": "a-long-id", "tenant": "acme", "endpoint": "chat", "model": "m", "priority": "batch",
             "state": "decode", "detached": true, "generated_tokens": 1203, "age_ms": 65_432, "queue_ms": 90},
            {"id": "b", "tenant": null, "endpoint": "responses", "model": null, "priority": null,
             "state": "admission", "detached": false, "generated_tokens": 0, "age_ms": 7, "queue_ms": null},
        ]});
        expect![[r#"
            12 in flight, the 2 oldest of them here

              id          tenant   endpoint    model   priority   state               tokens   queued      age
              a-long-id   acme     chat        m       batch      decode (detached)     1203    0.0 s   65.4 s
              b           -        responses   -       -          admission                0        -    0.0 s
        "#]].assert_eq(&list(&told));
        assert_eq!(list(&json!({"total": 0, "requests": []})), "no requests in flight\n");
    }
}
