//! The settings that say what is logged. `cli` sets the log up with them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `[log]`: what is written to stderr.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// What is logged: `error`, `warn`, `info`, `debug`, `trace` or `off`, and the same for single
    /// parts after a comma: `info,interlock_engine=debug`. The default has one line per request;
    /// turn this up to see a request's way through the host.
    pub filter: String,
    /// `text` for people, `json` for a log collector: one object per line, same fields.
    pub format: LogFormat,
}

/// How a line of the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// For a log collector.
    Json,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { filter: "info".into(), format: LogFormat::Text }
    }
}

impl LogConfig {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

    /// Every problem, as key, relation, value.
    pub fn problems(&self) -> Vec<String> {
        let bad = self.filter.split(',').map(str::trim).filter(|directive| {
            let (target, level) = directive.split_once('=').unwrap_or(("any", directive));
            target.is_empty() || !Self::LEVELS.contains(&level)
        });
        bad.map(|directive| {
            format!(
                "log.filter must be made of LEVEL or TARGET=LEVEL with a level of {}, got \
                 {directive:?}",
                Self::LEVELS.join(", ")
            )
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_with_a_level_that_does_not_exist_is_a_problem() {
        let problems =
            |filter: &str| LogConfig { filter: filter.into(), ..LogConfig::default() }.problems();
        assert_eq!(problems("info"), Vec::<String>::new());
        assert_eq!(problems("warn, interlock_engine=trace,hyper=off"), Vec::<String>::new());
        for filter in ["", "verbose", "info,", "=info", "interlock_engine", "a=b"] {
            assert_eq!(problems(filter).len(), 1, "{filter:?} was taken");
        }
    }
}
