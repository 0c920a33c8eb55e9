//! The log: lines on stderr, for people or for a collector; and all else that is said there.
//!
//! # Invariants
//!
//! - Nothing of this program writes to stderr but one thread, through one queue
//!   (`interlock-log`): a reader who does not read, or a disk that is full, holds up neither a
//!   request nor the engine nor the end. Panics and the last error go through it too.
//! - Where lines are missing the log says how many, whatever its filter.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{self, IsTerminal, Write};
use std::panic::PanicHookInfo;
use std::sync::OnceLock;
use std::time::Duration;

use interlock_config::{LogConfig, LogFormat, Problem};
use interlock_log::{LineWriter, LogMetrics, Losses, Output};
use interlock_request::without_logins;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::prelude::*;

use crate::note;

/// Longest wait for the last lines to be read. Whoever reads at all has read them by then.
const FLUSH_MAX: Duration = Duration::from_secs(1);

/// What may follow a panic is an abort, which waits for nobody: so the panic does, for so long.
const PANIC_FLUSH_MAX: Duration = Duration::from_millis(100);

static STDERR: OnceLock<LineWriter> = OnceLock::new();
static FORMAT: OnceLock<LogFormat> = OnceLock::new();
/// Set where the log is a host's, which somebody collects.
static SERVING: OnceLock<LogFormat> = OnceLock::new();

/// Begins to log. What `[log]` allows, [`LogConfig::problems`] has checked before.
pub(crate) fn start(config: &LogConfig, metrics: Option<&LogMetrics>) -> anyhow::Result<()> {
    let stderr = stderr()?;
    stderr.set_bytes_max(config.buffer_max.in_memory());
    if let Some(metrics) = metrics {
        stderr.count_in(metrics.lines_dropped.clone());
        let _ = SERVING.set(config.format);
    }
    let filter: Targets = config.filter.replace(' ', "").parse()?;
    let lines = tracing_subscriber::fmt::layer().with_writer(|| Lines(stderr));
    let lines = match config.format {
        LogFormat::Text => lines.with_ansi(is_coloured()).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry().with(lines.with_filter(filter)).try_init()?;
    let _ = FORMAT.set(config.format);
    std::panic::set_hook(Box::new(panicked));
    Ok(())
}

/// For commands without a configuration: what goes wrong, and nothing else.
pub(crate) fn start_quiet() -> anyhow::Result<()> {
    start(&LogConfig { filter: "warn".into(), ..LogConfig::default() }, None)
}

/// Says why the process ends: as a line of the log where a host logs, whatever the filter; else as
/// any remark.
pub(crate) fn last(text: &str, problems: &[Problem], status: u8) {
    // Whoever found it may have quoted what somebody else wrote.
    let text = &*without_logins(text);
    let (Some(stderr), Some(format)) = (STDERR.get(), SERVING.get()) else {
        return note(text);
    };
    let mut fields = vec![("exit_status", status.into())];
    let text = match format {
        // A collector wants them one by one, and a person below each other.
        LogFormat::Json if !problems.is_empty() => {
            let each: Vec<_> =
                problems.iter().map(|problem| without_logins(&problem.to_string())).collect();
            fields.push(("problems", each.into()));
            text.lines().next().unwrap_or_default().trim_end_matches(':')
        }
        LogFormat::Json | LogFormat::Text => text,
    };
    stderr.push(&line("ERROR", "interlock", text, &fields));
    flush();
}

/// Says something on stderr that is no line of the log.
pub(crate) fn tell(text: &str) {
    // Without a thread there is nobody to write, and no use in saying so.
    if let Ok(stderr) = stderr() {
        stderr.push(without_logins(text).as_bytes());
        flush();
    }
}

/// Waits until what was said is read, within a bound: before the process ends, and where something
/// else is to be seen behind it.
pub(crate) fn flush() {
    if let Some(stderr) = STDERR.get() {
        stderr.flush(FLUSH_MAX);
    }
}

/// Whether stderr shows colours.
pub(crate) fn is_coloured() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

fn stderr() -> io::Result<&'static LineWriter> {
    if let Some(stderr) = STDERR.get() {
        return Ok(stderr);
    }
    let bytes_max = LogConfig::default().buffer_max.in_memory();
    let out = Output::same_as(&io::stderr())?;
    let started = LineWriter::start("interlock-log", out, bytes_max, Gaps)?;
    Ok(STDERR.get_or_init(|| started))
}

/// Takes what `tracing` has made a line of.
struct Lines(&'static LineWriter);

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Gaps;

impl Losses for Gaps {
    fn mark(&self, lines: u64, why: &str) -> Vec<u8> {
        let missing = format!("{lines} lines of the log are missing here: {why}");
        line("WARN", "interlock::log", &missing, &[("dropped", lines.into())])
    }
}

/// A panic, whatever the filter. It ends what it happened in and not more: who waits for that says
/// what came of it.
fn panicked(panic: &PanicHookInfo<'_>) {
    let Some(stderr) = STDERR.get() else { return };
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("unnamed");
    let message = panic.payload_as_str().unwrap_or("with something that is no text");
    let place = panic.location().map_or_else(String::new, |place| format!(" at {place}"));
    let said = format!("thread '{name}' panicked{place}: {message}");
    let backtrace = Backtrace::capture();
    let backtrace = match backtrace.status() {
        BacktraceStatus::Captured => vec![("backtrace", backtrace.to_string().into())],
        _ => Vec::new(),
    };
    stderr.push(&line("ERROR", "panic", &said, &backtrace));
    stderr.flush(PANIC_FLUSH_MAX);
}

/// A line as `tracing` would make it, where `tracing` may be in the middle of one, or filter it.
fn line(level: &str, target: &str, message: &str, fields: &[(&str, serde_json::Value)]) -> Vec<u8> {
    let mut now = String::new();
    // Fails where a year has more than four digits.
    let _ = SystemTime.format_time(&mut Writer::new(&mut now));
    let mut line = match FORMAT.get() {
        Some(LogFormat::Json) => {
            let mut object = serde_json::Map::new();
            object.insert("timestamp".into(), now.into());
            object.insert("level".into(), level.into());
            object.insert("message".into(), message.into());
            object.extend(fields.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
            object.insert("target".into(), target.into());
            serde_json::Value::Object(object).to_string()
        }
        Some(LogFormat::Text) | None => {
            let shown = fields.iter().map(|(key, value)| match value.as_str() {
                Some(text) => format!("\n{text}"),
                None => format!(" {key}={value}"),
            });
            format!("{now} {level:>5} {target}: {message}{}", shown.collect::<String>())
        }
    };
    line.push('\n');
    line.into_bytes()
}
