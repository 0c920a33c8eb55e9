//! What guard decides: a pure function of its settings and the facts.

use interlock_policy_sdk::{Plan, RequestFacts, Timeouts};

use crate::settings::{Growing, Settings};

pub(crate) fn plan(settings: &Settings, request: &RequestFacts) -> Plan {
    let class = if request.streaming { settings.streaming } else { settings.whole };
    let time = |growing: Growing| {
        let prompt = growing.per_prompt_token.times(u64::from(request.prompt_tokens));
        let output = growing.per_output_token.times(u64::from(request.max_tokens));
        Some(growing.base.plus(prompt).plus(output).micros)
    };
    Plan {
        priority: settings.priority.of(request.endpoint).or(class.priority).map(Into::into),
        timeouts: Timeouts {
            queue: time(settings.queue),
            first_token: time(settings.first_token),
            inter_token: time(settings.inter_token),
            total: time(settings.total),
        },
        on_disconnect: Some(class.on_disconnect.action()),
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use interlock_policy_sdk::{DisconnectAction, Endpoint};

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
            request_id: "r".into(),
            arrived_at: 0,
            endpoint: if story.contains("chat") { Endpoint::Chat } else { Endpoint::Completions },
            model: "m".into(),
            streaming: story.contains("streams"),
            prompt_tokens: number("prompt "),
            max_tokens: number("up to "),
            max_tokens_asked: true,
            body_bytes: 1,
            headers: vec![],
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
        assert_eq!(format!("{:?}", priority(CHAT)), "Some(Priority::Interactive)");
        assert_eq!(
            format!("{:?}", priority("completions, streams, prompt 1, up to 1")),
            "Some(Priority::Batch)"
        );
        assert!(priority("chat, prompt 1, up to 1").is_none());
    }

    #[test]
    fn the_largest_request_does_not_overflow() {
        let json = r#"{"total": {"base": "1h", "per_output_token": "99999999h"}}"#;
        let plan = plan(&settings(json), &request("chat, prompt 4294967295, up to 4294967295"));
        assert_eq!(plan.timeouts.total, Some(u64::MAX));
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
                "queue.base must exceed 0s, got 0s",
                "whole.on_disconnect.drain.max_tokens must exceed 0, got 0"
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
