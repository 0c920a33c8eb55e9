//! The log: lines on stderr, for people or for a collector.

use std::io::IsTerminal;

use interlock_config::{LogConfig, LogFormat};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;

/// Begins to log. What `[log]` allows, [`LogConfig::problems`] has checked before.
pub(crate) fn start(config: &LogConfig) -> anyhow::Result<()> {
    let filter: Targets = config.filter.replace(' ', "").parse()?;
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let lines = match config.format {
        LogFormat::Text => lines.with_ansi(colours).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry().with(lines.with_filter(filter)).try_init()?;
    Ok(())
}

/// For commands without a configuration: what goes wrong, and nothing else.
pub(crate) fn start_quiet() -> anyhow::Result<()> {
    start(&LogConfig { filter: "warn".into(), ..LogConfig::default() })
}
