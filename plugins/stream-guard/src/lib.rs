//! Redacts or stops answers on patterns, wherever windows end. README.md says how, and which
//! settings it has.
//!
//! # Not here
//!
//! No memory: what could be the front of a match is held back by the host, in the window. No
//! observing: it gates, since a match that the client has read is not redacted any more.

mod filter;
mod pattern;
mod settings;

use interlock_policy_sdk as sdk;
use sdk::{Guarding, Policy, RequestFacts, StreamGuard, Verdict, Watch, Window, WindowSize};

use crate::filter::{Action, Filter};
use crate::settings::Settings;

sdk::reasons! {
    /// Why stream-guard decides.
    enum Reason {
        /// Something was replaced.
        Redacted,
        /// The answer had to end.
        Stopped,
    }
}

sdk::metrics! {
    mod metrics {
        /// Matches, by the pattern and what happened.
        MATCHES: Counter = matches_total(pattern, action),
    }
}

struct Guard {
    filter: Filter,
    window: WindowSize,
}

impl Policy for Guard {
    type Settings = Settings;
    type Reason = Reason;
    const METRICS: &'static [sdk::Metric] = metrics::ALL;

    fn new(settings: Settings) -> Result<Self, String> {
        let window = WindowSize::new(settings.window_tokens, settings.window_delay);
        Ok(Self { filter: settings.filter()?, window })
    }

    fn watch(&self) -> Watch {
        Watch { guarding: Guarding::Gate(self.window), ..Watch::default() }
    }
}

impl StreamGuard for Guard {
    fn on_window(&self, _: &RequestFacts, window: &Window) -> Verdict {
        let scanned = self.filter.scan(&window.text, window.finished);
        for &rule in &scanned.matched {
            let rule = &self.filter.rules[rule];
            let action = match rule.action {
                Action::Redact(_) => "redact",
                Action::Stop(_) => "stop",
            };
            metrics::MATCHES.count([&rule.name, action]);
        }
        let hold = scanned.hold as u32;
        if scanned.stopped {
            sdk::stop(scanned.text, Reason::Stopped)
        } else if !scanned.matched.is_empty() {
            sdk::replace(scanned.text, hold, Reason::Redacted)
        } else if hold > 0 {
            Verdict::Hold(hold)
        } else {
            Verdict::Pass
        }
    }
}

sdk::export!(Guard: stream_guard; schema "settings.schema.json");

#[cfg(test)]
mod tests {
    use sdk::testing::{Host, window};
    use serde_json::{Value, json};

    use super::*;

    fn guard(host: &Host, patterns: Value) -> Guard {
        host.begin(json!({"patterns": patterns})).expect("these are settings")
    }

    #[test]
    fn a_secret_across_two_windows_is_redacted_and_the_rest_not_held_back() {
        let host = Host::new();
        let guard = guard(&host, json!([{"name": "project", "text": "Project Blue"}]));
        let verdict = |window: Window| guard.on_window(&host.request(), &window);
        assert_eq!(verdict(window(0, "", "It is called Pro", false)), Verdict::Hold(3));
        assert_eq!(
            verdict(window(1, "Pro", "ject Blue, and it is", false)),
            sdk::replace("[redacted], and it is", 0, Reason::Redacted)
        );
        assert_eq!(verdict(window(2, "", " Pro", true)), Verdict::Pass);
        assert_eq!(host.metric("matches_total", &["project", "redact"]), 1.0);
    }

    #[test]
    fn an_answer_ends_before_what_must_not_be_said() {
        let host = Host::new();
        let guard = guard(
            &host,
            json!([
                {"regex": "sk-\\w{8,}", "replacement": "[key]"},
                {"text": "the end", "action": "stop", "replacement": "…", "ignore_case": true},
            ]),
        );
        assert_eq!(
            guard.on_window(&host.request(), &window(0, "", "sk-12345678: The End of", false)),
            sdk::stop("[key]: …", Reason::Stopped)
        );
        assert_eq!(host.metric("matches_total", &["1", "stop"]), 1.0);
    }

    #[test]
    fn it_gates_every_request() {
        let guard = guard(&Host::new(), json!([{"text": "a"}]));
        assert_eq!(
            guard.watch().guarding,
            Guarding::Gate(WindowSize::new(8, sdk::Span::from_millis(100)))
        );
    }

    #[test]
    fn settings_that_make_no_sense_are_refused_by_key() {
        let refused =
            |settings: Value| Host::new().begin::<Guard>(settings).err().expect("no sense");
        assert_eq!(refused(json!({})), "patterns must not be empty: there is nothing to look for");
        assert_eq!(
            refused(json!({"patterns": [{"text": "a"}, {"regex": "(a"}]})),
            "patterns[1]: a ( has no )"
        );
        assert_eq!(
            refused(json!({"patterns": [{"name": "a"}]})),
            "patterns[0]: it must have either `text` or `regex`"
        );
        assert_eq!(
            refused(json!({"patterns": [{"text": "a"}], "longest_match": 5})),
            "longest_match must be from 8 to 4096, got 5"
        );
    }
}
