//! What a policy says, in our log: tagged, bounded, and at a bounded rate.

use std::borrow::Cow;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use interlock_request::{RequestId, Secret, is_secret};
use serde_json::{Map, Value};

use super::GuestState;
use crate::from_wit::cut;
use crate::limits::{LOG_BURST, LOG_LINE_BYTES_MAX, LOG_LINES_PER_SECOND};
use crate::wit::imports;
use crate::wit::imports::log::Level;
use crate::wit::v0_1;

/// One policy's access to the log, shared by its instances.
pub(crate) struct GuestLog {
    policy: String,
    /// Of its settings: they are not for those who read the log, whoever writes to it.
    secrets: Vec<String>,
    budget: Mutex<LineBudget>,
}

/// A shorter one is a word that anybody may say.
const SECRET_BYTES_MIN: usize = 4;

impl GuestLog {
    pub(crate) fn new(policy: &str, settings: &Map<String, Value>) -> Self {
        let mut secrets = Vec::new();
        settings
            .iter()
            .for_each(|(name, value)| find_secrets(value, is_secret(name), &mut secrets));
        // The longest first: a shorter one may be part of it.
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        Self {
            policy: policy.to_owned(),
            secrets,
            budget: Mutex::new(LineBudget::new(Instant::now())),
        }
    }

    /// Writes a line, if anybody listens and the rate allows it. What nobody would see costs
    /// neither a place among those that are seen nor the making of a line.
    pub(crate) fn write(&self, level: Level, request: Option<&RequestId>, message: &str) {
        let heard = match level {
            Level::Trace => tracing::enabled!(tracing::Level::TRACE),
            Level::Debug => tracing::enabled!(tracing::Level::DEBUG),
            Level::Info => tracing::enabled!(tracing::Level::INFO),
            Level::Warn => tracing::enabled!(tracing::Level::WARN),
            Level::Error => tracing::enabled!(tracing::Level::ERROR),
        };
        if !heard {
            return;
        }
        let passed =
            self.budget.lock().unwrap_or_else(PoisonError::into_inner).pass(Instant::now());
        let Some(dropped) = passed else { return };
        let line = self.presentable(message);
        let request = request.map_or("", RequestId::as_str);
        // tracing fixes a level per call site, hence five of them.
        macro_rules! event {
            ($level:ident) => {
                if dropped == 0 {
                    tracing::$level!(policy = self.policy, request, "{line}")
                } else {
                    tracing::$level!(policy = self.policy, request, dropped, "{line}")
                }
            };
        }
        match level {
            Level::Trace => event!(trace),
            Level::Debug => event!(debug),
            Level::Info => event!(info),
            Level::Warn => event!(warn),
            Level::Error => event!(error),
        }
    }

    /// A guest's text as it may stand in a log: one line, of bounded length, nothing a terminal
    /// would obey, none of its settings' secrets.
    pub(crate) fn presentable(&self, message: &str) -> String {
        let message =
            &*self.secrets.iter().fold(Cow::from(message), |message, secret| {
                match message.contains(&**secret) {
                    true => message.replace(&**secret, Secret::MASK).into(),
                    false => message,
                }
            });
        let mut line = String::with_capacity(message.len().min(LOG_LINE_BYTES_MAX));
        for c in cut(message, LOG_LINE_BYTES_MAX).chars() {
            if c.is_control() { line.extend(c.escape_default()) } else { line.push(c) }
        }
        if message.len() > LOG_LINE_BYTES_MAX {
            line.push('…');
        }
        line
    }
}

fn find_secrets(value: &Value, secret: bool, found: &mut Vec<String>) {
    match value {
        Value::Object(inside) => {
            inside.iter().for_each(|(name, value)| {
                find_secrets(value, secret || is_secret(name), found);
            });
        }
        Value::Array(items) => items.iter().for_each(|item| find_secrets(item, secret, found)),
        Value::String(text) if secret && text.len() >= SECRET_BYTES_MIN => found.push(text.clone()),
        _ => {}
    }
}

// Lines do not count as calls: their rate is bounded, and a policy that cannot say why it failed
// cannot be repaired.
impl imports::log::Host for GuestState {
    fn write(&mut self, level: imports::log::Level, message: String) -> wasmtime::Result<()> {
        self.say(level, &message);
        Ok(())
    }
}

impl v0_1::interlock::policy::log::Host for GuestState {
    fn write(&mut self, level: v0_1::interlock::policy::log::Level, message: String) {
        use v0_1::interlock::policy::log::Level as Old;
        let level = match level {
            Old::Trace => imports::log::Level::Trace,
            Old::Debug => imports::log::Level::Debug,
            Old::Info => imports::log::Level::Info,
            Old::Warn => imports::log::Level::Warn,
            Old::Error => imports::log::Level::Error,
        };
        self.say(level, &message);
    }
}

impl GuestState {
    fn say(&mut self, level: imports::log::Level, message: &str) {
        self.functions.log.write(level, self.call.request.as_ref(), message);
        if level == imports::log::Level::Error {
            self.last_error = Some(self.functions.log.presentable(message));
        }
    }
}

/// A bucket of lines that refills with time, and how many found it empty.
struct LineBudget {
    lines: f64,
    at: Instant,
    dropped: u64,
}

impl LineBudget {
    fn new(now: Instant) -> Self {
        Self { lines: f64::from(LOG_BURST), at: now, dropped: 0 }
    }

    /// May a line pass? Then how many before it did not.
    fn pass(&mut self, now: Instant) -> Option<u64> {
        let refill = now.duration_since(self.at).as_secs_f64() * f64::from(LOG_LINES_PER_SECOND);
        self.lines = (self.lines + refill).min(f64::from(LOG_BURST));
        self.at = now;
        if self.lines < 1.0 {
            self.dropped += 1;
            return None;
        }
        self.lines -= 1.0;
        Some(std::mem::take(&mut self.dropped))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_flood_is_counted_and_the_next_line_says_so() {
        let start = Instant::now();
        let mut budget = LineBudget::new(start);
        let passed = (0..1000).filter(|_| budget.pass(start).is_some()).count();
        assert_eq!(passed, LOG_BURST as usize);
        assert_eq!(budget.pass(start + Duration::from_secs(1)), Some(1000 - u64::from(LOG_BURST)));
        assert_eq!(budget.pass(start + Duration::from_secs(1)), Some(0));
    }

    #[test]
    fn a_guests_text_is_one_line_that_no_terminal_obeys() {
        let log = GuestLog::new("p", &Map::new());
        assert_eq!(log.presentable("a\nb\u{1b}[2J"), r"a\nb\u{1b}[2J");
        assert_eq!(log.presentable(&"ß".repeat(9999)).len(), LOG_LINE_BYTES_MAX + "…".len());
    }

    #[test]
    fn a_guest_that_says_its_secrets_is_not_heard_saying_them() {
        let settings = serde_json::json!({
            "webhook": {"api_key": "s3cret-1", "retries": 3},
            "passwords": ["s3cret-1-and-2", "x"],
            "name": "blue",
        });
        let log = GuestLog::new("p", settings.as_object().unwrap());
        let said = "blue: invalid type: string \"s3cret-1\", expected a map; s3cret-1-and-2, x";
        let shown = "blue: invalid type: string \"***\", expected a map; ***, x";
        assert_eq!(log.presentable(said), shown);
    }

    #[test]
    fn lines_that_nobody_hears_cost_no_line_that_somebody_would() {
        let log = GuestLog::new("p", &Map::new());
        // Nothing listens here.
        (0..1000).for_each(|_| log.write(Level::Debug, None, "a line"));
        let budget = log.budget.lock().unwrap();
        assert_eq!((budget.lines, budget.dropped), (f64::from(LOG_BURST), 0));
    }
}
