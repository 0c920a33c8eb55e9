//! What guard decides: pure functions of its settings and the facts.

use interlock_policy_sdk::{Plan, Progress, RequestFacts, Span, Timeout, Timeouts};

use crate::settings::{Growing, Settings};

/// How long a request may take, how urgent it is, and what if its client leaves.
pub(crate) fn plan(settings: &Settings, request: &RequestFacts) -> Plan {
    let class = settings.class(request);
    let time = |growing: Growing| {
        let prompt = growing.per_prompt_token.times(u64::from(request.prompt_tokens));
        let output = growing.per_output_token.times(u64::from(request.max_tokens));
        Some(growing.base.plus(prompt).plus(output).micros)
    };
    Plan {
        priority: settings.priority.of(request.endpoint).or(class.priority),
        timeouts: Timeouts {
            queue: time(settings.queue),
            first_token: time(settings.first_token),
            inter_token: time(settings.inter_token),
            total: time(settings.total),
        },
        on_disconnect: Some(class.on_disconnect.action()),
        max_tokens: None,
    }
}

/// The plan with more time, for a request that this timeout would end while it gets on;
/// `None`: it ends.
pub(crate) fn extended(
    settings: &Settings,
    request: &RequestFacts,
    timeout: Timeout,
    progress: &Progress,
) -> Option<Plan> {
    let mut plan = plan(settings, request);
    let elapsed = Span { micros: progress.elapsed };
    match timeout {
        Timeout::Total => {
            let more = settings.extend.total?;
            progress.since_token.filter(|&since| since <= more.since_token.micros)?;
            plan.timeouts.total = Some(elapsed.plus(more.by).micros);
        }
        Timeout::FirstToken => {
            let more = settings.extend.first_token?;
            if progress.usage.prompt_tokens == 0 {
                return None; // It is still in the queue, and nothing gets on there.
            }
            let until = elapsed.plus(more.by).min(more.until);
            plan.timeouts.first_token = Some(until).filter(|&it| it > elapsed)?.micros.into();
        }
        Timeout::Queue | Timeout::InterToken => return None,
    }
    Some(plan)
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use interlock_policy_sdk::testing::{Host, usage};
    use interlock_policy_sdk::{DisconnectAction, Endpoint, Priority};

    use super::*;

    const CHAT: &str = "chat, streams, prompt 100, up to 50";

    fn settings(json: &str) -> Settings {
        serde_json::from_str(json).expect("these are settings")
    }

    fn request(story: &str) -> RequestFacts {
        let number = |after: &str| {
            let digits = story.split(after).nth(1).expect(after);
            digits.split(',').next().unwrap().parse().expect("a number")
        };
        RequestFacts {
            endpoint: if story.contains("chat") { Endpoint::Chat } else { Endpoint::Completions },
            streaming: story.contains("streams"),
            background: story.contains("background"),
            prompt_tokens: number("prompt "),
            max_tokens: number("up to "),
            ..Host::new().request()
        }
    }

    fn check(json: &str, story: &str, expected: Expect) {
        let plan = plan(&settings(json), &request(story));
        let seconds = |micros: Option<u64>| micros.expect("guard sets all four") as f64 / 1e6;
        let disconnect = match plan.on_disconnect.expect("guard sets it") {
            DisconnectAction::Cancel => "cancel".to_owned(),
            DisconnectAction::Drain(d) => {
                format!("drain {}s or {} tokens", d.max_time as f64 / 1e6, d.max_tokens)
            }
            DisconnectAction::Detach(d) => {
                format!("detach {}s or {} tokens", d.max_time as f64 / 1e6, d.max_tokens)
            }
        };
        expected.assert_eq(&format!(
            "queue {}s, first token {}s, inter token {}s, total {}s; {disconnect}; {:?}",
            seconds(plan.timeouts.queue),
            seconds(plan.timeouts.first_token),
            seconds(plan.timeouts.inter_token),
            seconds(plan.timeouts.total),
            plan.priority,
        ));
    }

    #[test]
    fn deadlines_grow_with_the_prompt_and_the_requested_length() {
        check(
            "{}",
            CHAT,
            expect!["queue 300s, first token 365s, inter token 60s, total 475s; cancel; None"],
        );
        check(
            "{}",
            "chat, streams, prompt 8000, up to 2000",
            expect!["queue 300s, first token 760s, inter token 60s, total 2820s; cancel; None"],
        );
    }

    #[test]
    fn a_setting_replaces_its_default_and_leaves_the_others() {
        check(
            r#"{"total": {"base": "1s", "per_output_token": "20ms"}}"#,
            CHAT,
            expect!["queue 300s, first token 365s, inter token 60s, total 2s; cancel; None"],
        );
    }

    #[test]
    fn what_a_disconnect_does_depends_on_the_class() {
        let json = r#"{
            "streaming": {"on_disconnect": {"drain": {"max_time": "5s", "max_tokens": 64}}},
            "whole": {"on_disconnect": "cancel"}
        }"#;
        check(
            json,
            CHAT,
            expect![
                "queue 300s, first token 365s, inter token 60s, total 475s; drain 5s or 64 tokens; None"
            ],
        );
        check(
            json,
            "chat, prompt 100, up to 50",
            expect!["queue 300s, first token 365s, inter token 60s, total 475s; cancel; None"],
        );
    }

    #[test]
    fn an_endpoint_has_the_last_word_on_priority() {
        let json = r#"{
            "streaming": {"priority": "interactive"},
            "priority": {"completions": "batch"}
        }"#;
        let priority = |story| plan(&settings(json), &request(story)).priority;
        assert_eq!(priority(CHAT), Some(Priority::Interactive));
        let completions = priority("completions, streams, prompt 1, up to 1");
        assert_eq!(completions, Some(Priority::Batch));
        assert!(priority("chat, prompt 1, up to 1").is_none());
    }

    #[test]
    fn the_largest_request_does_not_overflow() {
        let json = r#"{"total": {"base": "1h", "per_output_token": "99999999h"}}"#;
        let plan = plan(&settings(json), &request("chat, prompt 4294967295, up to 4294967295"));
        assert_eq!(plan.timeouts.total, Some(u64::MAX));
    }

    #[test]
    fn a_background_request_outlives_its_client_unless_the_settings_say_otherwise() {
        let story = "chat, streams, background, prompt 100, up to 50";
        check(
            "{}",
            story,
            expect![
                "queue 300s, first token 365s, inter token 60s, total 475s; detach 3600s or 65536 tokens; None"
            ],
        );
        check(
            r#"{"background": {"on_disconnect": "cancel", "priority": "batch"}}"#,
            story,
            expect![
                "queue 300s, first token 365s, inter token 60s, total 475s; cancel; Some(Priority::Batch)"
            ],
        );
    }

    /// What becomes of the timeout, in seconds, when it strikes after so many seconds.
    fn later(json: &str, timeout: Timeout, progress: &Progress) -> Option<u64> {
        let plan = extended(&settings(json), &request(CHAT), timeout, progress)?;
        let struck = match timeout {
            Timeout::Total => plan.timeouts.total,
            _ => plan.timeouts.first_token,
        };
        struck.map(|micros| micros / 1_000_000)
    }

    #[test]
    fn the_total_time_grows_while_tokens_flow() {
        let json = r#"{"total": {"base": "60s"},
            "extend": {"total": {"by": "30s", "since_token": "2s"}}}"#;
        let after = |since_token: Option<u64>| Progress {
            since_token: since_token.map(|seconds| seconds * 1_000_000),
            ..Host::new().progress(Span::from_secs(60), 40)
        };
        assert_eq!(later(json, Timeout::Total, &after(Some(0))), Some(90));
        assert_eq!(later(json, Timeout::Total, &after(Some(2))), Some(90));
        assert_eq!(later(json, Timeout::Total, &after(Some(3))), None, "the last token is old");
        assert_eq!(later(json, Timeout::Total, &after(None)), None, "there was no token");
        assert_eq!(later("{}", Timeout::Total, &after(Some(0))), None, "nobody asked for it");
        assert_eq!(later(json, Timeout::InterToken, &after(Some(0))), None);
    }

    #[test]
    fn the_time_to_the_first_token_grows_while_the_prompt_is_at_work_up_to_a_point() {
        let json = r#"{"extend": {"first_token": {"by": "30s", "until": "100s"}}}"#;
        let after = |seconds, prompt| Progress {
            usage: usage(prompt, 0),
            ..Host::new().progress(Span::from_secs(seconds), 0)
        };
        assert_eq!(later(json, Timeout::FirstToken, &after(60, 100)), Some(90));
        assert_eq!(later(json, Timeout::FirstToken, &after(90, 100)), Some(100));
        assert_eq!(later(json, Timeout::FirstToken, &after(100, 100)), None);
        assert_eq!(later(json, Timeout::FirstToken, &after(60, 0)), None, "it is in the queue");
    }

    #[test]
    fn settings_that_end_every_request_are_refused_by_key() {
        let bad = settings(
            r#"{
                "queue": {"base": "0s"},
                "whole": {"on_disconnect": {"drain": {"max_time": "1s", "max_tokens": 0}}}
            }"#,
        );
        assert_eq!(
            bad.problems(),
            [
                "whole.on_disconnect.drain.max_tokens must exceed 0, got 0",
                "queue.base must exceed 0s, got 0s"
            ]
        );
        assert!(Settings::default().problems().is_empty());
    }

    #[test]
    fn a_misspelt_setting_is_refused_by_name() {
        let error = serde_json::from_str::<Settings>(r#"{"total": {"bsae": "1s"}}"#);
        let error = error.expect_err("there is no such key").to_string();
        assert!(error.starts_with("unknown field `bsae`"), "{error}");
    }
}
