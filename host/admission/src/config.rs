//! The settings that the chain reads.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use interlock_request::{Deadlines, DrainLimits};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Ceilings;

/// `[limits]`: the most that any policy may grant.
///
/// A policy can ask for less, never for more; without policies these are the plan.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// Longest time from admission to a request's first pass. Turn this up when clients would
    /// rather wait than retry.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub queue_max: Duration,
    /// Longest time from admission to the first token. Turn this up for very long prompts on
    /// slow machines.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub first_token_max: Duration,
    /// Longest pause between two tokens. Turn this up when one pass may take longer than this.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub inter_token_max: Duration,
    /// Longest time from admission to the end. Turn this up when long outputs are cut off.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub total_max: Duration,
    /// Longest time a request may go on after its client left. Turn this up when usage must be
    /// complete for billing.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub drain_time_max: Duration,
    /// Most tokens a request may generate after its client left. Turn this up together with
    /// `drain_time_max`.
    pub drain_tokens_max: u32,
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

/// `on_failure` of one policy: what its silence means, phase by phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OnFailure {
    /// When `admit` gives no decision: `closed:STATUS` turns the request away with that HTTP
    /// status, `open` goes on as if the policy were not there.
    pub admit: FailureAction,
    /// When `account` fails. The request is over by then, so only `open` makes sense: the
    /// failure is logged and counted.
    pub account: FailureAction,
}

impl Default for OnFailure {
    fn default() -> Self {
        Self { admit: FailureAction::Closed(503), account: FailureAction::Open }
    }
}

/// What a policy's silence means. Written `open` or `closed:503`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub enum FailureAction {
    /// Go on without it.
    Open,
    /// Turn the request away with this HTTP status, 400 to 599.
    Closed(u16),
}

/// A failure action that is neither `open` nor `closed:STATUS`.
#[derive(Debug, thiserror::Error)]
#[error("a failure action is \"open\" or \"closed:STATUS\" with a status of 400 to 599, got {0:?}")]
pub struct BadFailureAction(String);

impl FromStr for FailureAction {
    type Err = BadFailureAction;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || BadFailureAction(text.to_owned());
        if text == "open" {
            return Ok(Self::Open);
        }
        let status = text.strip_prefix("closed:").ok_or_else(bad)?;
        let status: u16 = status.parse().map_err(|_| bad())?;
        if (400..=599).contains(&status) { Ok(Self::Closed(status)) } else { Err(bad()) }
    }
}

impl TryFrom<String> for FailureAction {
    type Error = BadFailureAction;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl fmt::Display for FailureAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open => f.write_str("open"),
            Self::Closed(status) => write!(f, "closed:{status}"),
        }
    }
}

impl From<FailureAction> for String {
    fn from(action: FailureAction) -> Self {
        action.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_action_reads_as_it_is_written() {
        for text in ["open", "closed:503", "closed:403"] {
            assert_eq!(text.parse::<FailureAction>().expect(text).to_string(), text);
        }
        for text in ["", "closed", "closed:200", "closed:x", "Open"] {
            assert!(text.parse::<FailureAction>().is_err(), "{text:?} was taken");
        }
    }

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
