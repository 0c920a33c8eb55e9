//! What a policy says, in our log: tagged, bounded, and at a bounded rate.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use interlock_request::RequestId;

use crate::answers::cut;
use crate::limits::{LOG_BURST, LOG_LINE_BYTES_MAX, LOG_LINES_PER_SECOND};
use crate::wit::words::log::Level;

/// One policy's access to the log, shared by its instances.
pub(crate) struct Voice {
    policy: String,
    gate: Mutex<Gate>,
}

impl Voice {
    pub(crate) fn new(policy: &str) -> Self {
        Self { policy: policy.to_owned(), gate: Mutex::new(Gate::new(Instant::now())) }
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
        let passed = self.gate.lock().unwrap_or_else(PoisonError::into_inner).pass(Instant::now());
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
    /// would obey.
    pub(crate) fn presentable(&self, message: &str) -> String {
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

/// A bucket of lines that refills with time, and how many found it empty.
struct Gate {
    lines: f64,
    at: Instant,
    dropped: u64,
}

impl Gate {
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
        let mut gate = Gate::new(start);
        let passed = (0..1000).filter(|_| gate.pass(start).is_some()).count();
        assert_eq!(passed, LOG_BURST as usize);
        assert_eq!(gate.pass(start + Duration::from_secs(1)), Some(1000 - u64::from(LOG_BURST)));
        assert_eq!(gate.pass(start + Duration::from_secs(1)), Some(0));
    }

    #[test]
    fn a_guests_text_is_one_line_that_no_terminal_obeys() {
        let voice = Voice::new("p");
        assert_eq!(voice.presentable("a\nb\u{1b}[2J"), r"a\nb\u{1b}[2J");
        assert_eq!(voice.presentable(&"ß".repeat(9999)).len(), LOG_LINE_BYTES_MAX + "…".len());
    }

    #[test]
    fn lines_that_nobody_hears_cost_no_line_that_somebody_would() {
        let voice = Voice::new("p");
        // Nothing listens here.
        (0..1000).for_each(|_| voice.write(Level::Debug, None, "a line"));
        let gate = voice.gate.lock().unwrap();
        assert_eq!((gate.lines, gate.dropped), (f64::from(LOG_BURST), 0));
    }
}
