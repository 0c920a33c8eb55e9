//! The settings that say what is logged. `cli` sets the log up with them.

use interlock_request::ByteSize;
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
    /// Lines that wait for whoever reads stderr, 64KiB to 1GiB of them. The host never waits: what
    /// does not fit is dropped and counted, and the log says how many lines are missing where they
    /// are. Turn this up when `interlock_log_lines_dropped_total` grows and the reader is only slow
    /// at times.
    pub buffer_max: ByteSize,
}

/// How a line of the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Lines of text, for people.
    Text,
    /// One JSON object a line, for a log collector.
    Json,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { filter: "info".into(), format: LogFormat::Text, buffer_max: ByteSize(4 << 20) }
    }
}

impl LogConfig {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

    /// Every problem, as key, relation, value.
    pub fn problems(&self) -> Vec<String> {
        let bad = self.filter.split(',').map(str::trim).filter(|directive| {
            let (target, level) = directive.split_once('=').unwrap_or(("any", directive));
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':' | '-' | '.');
            let is_target = !target.is_empty() && target.chars().all(plain);
            !is_target || !Self::LEVELS.contains(&level)
        });
        let bad = bad.map(|directive| {
            format!(
                "log.filter must be made of LEVEL or TARGET=LEVEL with a level of {}, got \
                 {directive:?}",
                Self::LEVELS.join(", ")
            )
        });
        let mut problems: Vec<String> = bad.collect();
        let bytes = self.buffer_max;
        if !(64 << 10..=1 << 30).contains(&bytes.0) {
            problems.push(format!("log.buffer_max must be 64KiB to 1GiB, got {bytes}"));
        }
        problems
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
        for filter in
            ["", "verbose", "info,", "=info", "interlock_engine", "a=b", "a[b]=info", "a\0=off"]
        {
            assert_eq!(problems(filter).len(), 1, "{filter:?} was taken");
        }
    }

    #[test]
    fn a_buffer_for_no_line_or_for_all_of_the_memory_is_a_problem() {
        let problems =
            |bytes| LogConfig { buffer_max: ByteSize(bytes), ..LogConfig::default() }.problems();
        assert_eq!(problems(64 << 10), Vec::<String>::new());
        assert_eq!(problems(1000), ["log.buffer_max must be 64KiB to 1GiB, got 1000B"]);
        assert_eq!(problems(2 << 30).len(), 1);
    }
}
