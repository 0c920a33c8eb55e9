//! How long the parts of a request may take.

use interlock_policy_sdk::{EventSet, Progress, RequestFacts, Span, Timeout, Timeouts, Watch};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::zeros;

/// The four deadlines, and when one that struck is not the end. A deadline without a `base` is left
/// to other policies and to the operator's `[limits]`.
#[derive(Debug, Clone, Copy, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Deadlines {
    /// From the request's head to the first pass.
    pub queue: Growing,
    /// From the request's head to the first token, the queue included.
    pub first_token: Growing,
    /// From one token to the next.
    pub inter_token: Growing,
    /// From the request's head to the end.
    pub total: Growing,
    /// When a deadline that struck is not the end.
    pub extend: Extend,
}

/// A time that grows with the request; `{}` leaves the deadline to other policies and to the
/// operator's `[limits]`.
#[derive(Debug, Clone, Copy, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend("dependentRequired" = {
    "per_prompt_token": ["base"],
    "per_output_token": ["base"],
}))]
pub struct Growing {
    /// For every request; the deadline is set by this, and left to others without it.
    pub base: Option<Span>,
    /// On top, for each token of the prompt.
    pub per_prompt_token: Span,
    /// On top, for each token that it may generate.
    pub per_output_token: Span,
}

/// When a deadline that struck is not the end; the operator's `[limits]` hold in any case.
#[derive(Debug, Clone, Copy, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Extend {
    /// More of `total` while tokens flow; not set: the deadline is hard.
    pub total: Option<WhileTokensFlow>,
    /// More of `first_token` while the prompt is at work; not set: the deadline is hard.
    pub first_token: Option<WhilePrefilling>,
}

/// More time for a request whose tokens flow.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WhileTokensFlow {
    /// So much more, each time.
    pub by: Span,
    /// If its last token is not older than this.
    pub since_token: Span,
}

/// More time for a request whose prompt is being computed, which has no tokens to show for it.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WhilePrefilling {
    /// So much more, each time.
    pub by: Span,
    /// Until so long after its admission.
    pub until: Span,
}

impl Deadlines {
    /// How long this request may take.
    pub fn timeouts(&self, request: &RequestFacts) -> Timeouts {
        Timeouts {
            queue: self.queue.of(request),
            first_token: self.first_token.of(request),
            inter_token: self.inter_token.of(request),
            total: self.total.of(request),
        }
    }

    /// The same with more time, for a request that this timeout would end while it gets on;
    /// `None`: it ends.
    pub fn extended(
        &self,
        request: &RequestFacts,
        timeout: Timeout,
        progress: &Progress,
    ) -> Option<Timeouts> {
        let timeouts = self.timeouts(request);
        let elapsed = Span { micros: progress.elapsed };
        match timeout {
            Timeout::Total => {
                let more = self.extend.total?;
                progress.since_token.filter(|&since| since <= more.since_token.micros)?;
                let total = Some(elapsed.plus(more.by).micros);
                Some(Timeouts { total, ..timeouts })
            }
            Timeout::FirstToken => {
                let more = self.extend.first_token?;
                if progress.usage.prompt_tokens == 0 {
                    return None; // It is still in the queue, and nothing gets on there.
                }
                let until = elapsed.plus(more.by).min(more.until);
                let first_token = Some(until).filter(|&it| it > elapsed)?.micros.into();
                Some(Timeouts { first_token, ..timeouts })
            }
            Timeout::Queue | Timeout::InterToken => None,
        }
    }

    /// What a policy watches that has these: timeouts, if one can be extended.
    pub fn watch(&self) -> Watch {
        let extends = self.extend.total.is_some() || self.extend.first_token.is_some();
        let events = if extends { EventSet::TIMED_OUT } else { EventSet::empty() };
        Watch { events, ..Watch::default() }
    }

    /// Every problem, as key, relation, value.
    pub fn problems(&self) -> Vec<String> {
        let all = [
            ("queue", self.queue),
            ("first_token", self.first_token),
            ("inter_token", self.inter_token),
            ("total", self.total),
        ];
        let mut problems: Vec<_> =
            all.into_iter().filter_map(|(key, growing)| growing.problem(key)).collect();
        let mut spans = vec![];
        // What another policy said, or the operator's limits, no amendment of ours makes longer.
        let in_vain = |key| format!("extend.{key} needs {key}.base, which is not set");
        if let Some(more) = self.extend.total {
            spans.extend([("extend.total.by", more.by)]);
            spans.extend([("extend.total.since_token", more.since_token)]);
            problems.extend(self.total.base.is_none().then(|| in_vain("total")));
        }
        if let Some(more) = self.extend.first_token {
            spans.extend([("extend.first_token.by", more.by)]);
            problems.extend(self.first_token.base.is_none().then(|| in_vain("first_token")));
        }
        problems.extend(zeros(spans));
        problems
    }
}

impl Growing {
    /// The same for every request.
    pub const fn fixed(base: Span) -> Self {
        Self { base: Some(base), per_prompt_token: Span::ZERO, per_output_token: Span::ZERO }
    }

    /// In microseconds, for this request; `None`: it is left to others.
    fn of(self, request: &RequestFacts) -> Option<u64> {
        let prompt = self.per_prompt_token.times(u64::from(request.prompt_tokens));
        let output = self.per_output_token.times(u64::from(request.max_tokens));
        self.base.map(|base| base.plus(prompt).plus(output).micros)
    }

    fn problem(self, key: &str) -> Option<String> {
        let Some(base) = self.base else {
            let grows = self.per_prompt_token > Span::ZERO || self.per_output_token > Span::ZERO;
            return grows.then(|| {
                format!(
                    "{key}.base must be set where {key} grows by the token; {key} = {{}} leaves it \
                     to other policies and to [limits]"
                )
            });
        };
        (base == Span::ZERO).then(|| {
            format!(
                "{key}.base must exceed 0s, got 0s; {key} = {{}} leaves it to other policies and \
                 to [limits]"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use interlock_policy_sdk::testing::{Host, usage};

    use super::*;

    fn deadlines(json: &str) -> Deadlines {
        serde_json::from_str(json).expect("these are deadlines")
    }

    fn request(prompt_tokens: u32, max_tokens: u32) -> RequestFacts {
        RequestFacts { prompt_tokens, max_tokens, ..Host::new().request() }
    }

    const GROWING: &str = r#"{
        "first_token": {"base": "10s", "per_prompt_token": "50ms"},
        "total": {"base": "60s", "per_prompt_token": "50ms", "per_output_token": "1s"}
    }"#;

    fn check(json: &str, request: &RequestFacts, expected: Expect) {
        let seconds = |micros: Option<u64>| {
            micros.map_or("others".to_owned(), |micros| format!("{}s", micros as f64 / 1e6))
        };
        let Timeouts { queue, first_token, inter_token, total } = deadlines(json).timeouts(request);
        expected.assert_eq(&format!(
            "queue {}, first token {}, inter token {}, total {}",
            seconds(queue),
            seconds(first_token),
            seconds(inter_token),
            seconds(total),
        ));
    }

    #[test]
    fn deadlines_grow_with_the_prompt_and_the_requested_length() {
        check(
            GROWING,
            &request(100, 50),
            expect!["queue others, first token 15s, inter token others, total 115s"],
        );
        check(
            GROWING,
            &request(8000, 2000),
            expect!["queue others, first token 410s, inter token others, total 2460s"],
        );
    }

    #[test]
    fn a_deadline_that_is_not_set_or_empty_is_left_to_others() {
        let left = expect!["queue 5s, first token others, inter token others, total others"];
        check(r#"{"queue": {"base": "5s"}, "total": {}}"#, &request(100, 50), left);
        assert_eq!(deadlines("{}").timeouts(&request(100, 50)), Timeouts::default());
        assert!(deadlines("{}").problems().is_empty());
        assert!(deadlines(r#"{"queue": {}, "total": {}}"#).problems().is_empty());
    }

    #[test]
    fn the_largest_request_does_not_overflow() {
        let json = r#"{"total": {"base": "1h", "per_output_token": "99999999h"}}"#;
        let timeouts = deadlines(json).timeouts(&request(u32::MAX, u32::MAX));
        assert_eq!(timeouts.total, Some(u64::MAX));
    }

    /// What becomes of the timeout, in seconds, when it strikes.
    fn later(json: &str, timeout: Timeout, progress: &Progress) -> Option<u64> {
        let timeouts = deadlines(json).extended(&request(100, 50), timeout, progress)?;
        let struck = match timeout {
            Timeout::Total => timeouts.total,
            _ => timeouts.first_token,
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
        assert_eq!(later(GROWING, Timeout::Total, &after(Some(0))), None, "nobody asked for it");
        assert_eq!(later(json, Timeout::InterToken, &after(Some(0))), None);
    }

    #[test]
    fn the_time_to_the_first_token_grows_while_the_prompt_is_at_work_up_to_a_point() {
        let json = r#"{"first_token": {"base": "60s"},
            "extend": {"first_token": {"by": "30s", "until": "100s"}}}"#;
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
    fn deadlines_that_cannot_be_meant_are_refused_by_key() {
        let bad = deadlines(
            r#"{
                "queue": {"base": "0s"},
                "inter_token": {"per_output_token": "1ms"},
                "extend": {
                    "total": {"by": "0s", "since_token": "1s"},
                    "first_token": {"by": "1s", "until": "1m"}
                }
            }"#,
        );
        expect![[r#"
            queue.base must exceed 0s, got 0s; queue = {} leaves it to other policies and to [limits]
            inter_token.base must be set where inter_token grows by the token; inter_token = {} leaves it to other policies and to [limits]
            extend.total needs total.base, which is not set
            extend.first_token needs first_token.base, which is not set
            extend.total.by must exceed 0s, got 0s"#]]
        .assert_eq(&bad.problems().join("\n"));
    }

    #[test]
    fn a_misspelt_key_is_refused_by_name() {
        let error = serde_json::from_str::<Deadlines>(r#"{"total": {"bsae": "1s"}}"#);
        let error = error.expect_err("there is no such key").to_string();
        assert!(error.starts_with("unknown field `bsae`"), "{error}");
    }
}
