//! `[limits]`: the most that any policy may grant.

use std::time::Duration;

use interlock_policy_api::Ceilings;
use interlock_request::{Deadlines, DrainLimits};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `[limits]`: the most that any policy may grant.
///
/// A policy can ask for less, never for more; without policies these are the plan.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// Longest time from a request's head to its first pass: for its body to arrive, to be read,
    /// rendered and tokenized, and to wait. Turn this up when clients would rather wait than retry.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub queue_max: Duration,
    /// Longest time from a request's head to the first token. Turn this up for very long prompts on
    /// slow machines.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub first_token_max: Duration,
    /// Longest pause between two tokens. Turn this up when one pass may take longer than this.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub inter_token_max: Duration,
    /// Longest time from a request's head to the end. Turn this up when long outputs are cut off.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub total_max: Duration,
    /// Longest time a request may go on after its client left, when its answer is dropped. Turn
    /// this up when usage must be complete for billing.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub drain_time_max: Duration,
    /// Most tokens a request may generate after its client left, when its answer is dropped. Turn
    /// this up together with `drain_time_max`.
    pub drain_tokens_max: u32,
    /// Longest time a request may go on after its client left, when its answer is kept for whoever
    /// asks for it later. Turn this down when abandoned answers hold the machine for too long.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub detach_time_max: Duration,
    /// Most tokens a request may generate after its client left, when its answer is kept. Turn this
    /// down together with `detach_time_max`.
    pub detach_tokens_max: u32,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            queue_max: Duration::from_secs(300),
            first_token_max: Duration::from_secs(600),
            inter_token_max: Duration::from_secs(60),
            total_max: Duration::from_secs(3600),
            drain_time_max: Duration::from_secs(30),
            drain_tokens_max: 1024,
            detach_time_max: Duration::from_secs(3600),
            detach_tokens_max: 65_536,
        }
    }
}

impl LimitsConfig {
    /// The same as the chain wants it.
    pub fn ceilings(&self) -> Ceilings {
        Ceilings {
            deadlines: Deadlines {
                queue: Some(self.queue_max),
                first_token: Some(self.first_token_max),
                inter_token: Some(self.inter_token_max),
                total: Some(self.total_max),
            },
            drain: DrainLimits { time_max: self.drain_time_max, tokens_max: self.drain_tokens_max },
            detach: DrainLimits {
                time_max: self.detach_time_max,
                tokens_max: self.detach_tokens_max,
            },
        }
    }

    /// Every problem, as key, relation, value.
    pub fn problems(&self) -> Vec<String> {
        let times = [
            ("queue_max", self.queue_max),
            ("first_token_max", self.first_token_max),
            ("inter_token_max", self.inter_token_max),
            ("total_max", self.total_max),
        ];
        let mut problems: Vec<String> = times
            .iter()
            .filter(|(_, time)| time.is_zero())
            .map(|(key, _)| format!("limits.{key} must exceed 0s, got 0s"))
            .collect();
        if self.total_max < self.first_token_max {
            problems.push(format!(
                "limits.total_max must be at least limits.first_token_max ({:?}), got {:?}",
                self.first_token_max, self.total_max
            ));
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_is_reported_with_key_relation_and_value() {
        let config = LimitsConfig {
            queue_max: Duration::ZERO,
            total_max: Duration::from_secs(1),
            ..LimitsConfig::default()
        };
        assert_eq!(
            config.problems(),
            [
                "limits.queue_max must exceed 0s, got 0s",
                "limits.total_max must be at least limits.first_token_max (600s), got 1s"
            ]
        );
    }
}
