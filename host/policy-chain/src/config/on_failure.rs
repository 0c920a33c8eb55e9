//! What the host does when a policy gives no decision.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use interlock_policy_api::Phase;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `on_failure` of one policy: what its silence means, phase by phase.
///
/// `closed:STATUS` turns the request away with that HTTP status. `open` goes on as if the policy
/// were not there. `builtin` does what the host does in that phase by itself. `last-good:TIME`
/// repeats what the policy last decided for the same tenant and model, if that is not older, and
/// is `closed:503` otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OnFailure {
    /// When `identify` gives no answer. `builtin` lets the caller in as nobody in particular.
    pub identify: FailureAction,
    /// When `transform` gives no answer. `builtin` changes nothing, as `open`.
    pub transform: FailureAction,
    /// When `route` gives no answer. `builtin` prefers the least busy of the models asked for.
    pub route: FailureAction,
    /// When `admit` gives no answer. `builtin` admits under `[limits]`.
    pub admit: FailureAction,
    /// When `stream_guard` gives no answer: `closed:STATUS` fails the request, `open` and
    /// `builtin` let the text pass. By default it is closed when the policy gates the text, and
    /// open when it only observes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"open")]
    pub stream_guard: Option<FailureAction>,
    /// When `events` gives no answer: `open` goes on as planned, `closed:STATUS` ends the request.
    pub events: FailureAction,
    /// When `account` fails. The request is over by then, so only `open` makes sense: the
    /// failure is logged and counted.
    pub account: FailureAction,
}

impl Default for OnFailure {
    fn default() -> Self {
        Self {
            identify: FailureAction::UNAVAILABLE,
            transform: FailureAction::Closed(500),
            route: FailureAction::Builtin,
            admit: FailureAction::UNAVAILABLE,
            stream_guard: None,
            events: FailureAction::Open,
            account: FailureAction::Open,
        }
    }
}

impl OnFailure {
    /// The same action in every phase, where it makes sense there.
    pub fn all(action: FailureAction) -> Self {
        let late = match action {
            FailureAction::Closed(_) => action,
            _ => FailureAction::Open,
        };
        Self {
            identify: action,
            transform: action,
            route: action,
            admit: action,
            stream_guard: Some(late),
            events: late,
            account: FailureAction::Open,
        }
    }

    /// What silence in this phase means. `gates`: the client gets only what the policy lets pass.
    pub fn of(&self, phase: Phase, gates: bool) -> FailureAction {
        let guard = if gates { FailureAction::UNAVAILABLE } else { FailureAction::Open };
        match phase {
            Phase::Identify => self.identify,
            Phase::Transform => self.transform,
            Phase::Route => self.route,
            Phase::Admit => self.admit,
            Phase::StreamGuard => self.stream_guard.unwrap_or(guard),
            Phase::Events => self.events,
            Phase::Account => self.account,
        }
    }

    /// Every problem, as key, relation, value; the keys count from `on_failure`.
    pub fn problems(&self) -> Vec<String> {
        use FailureAction::{Closed, LastGood, Open};
        let mut problems = Vec::new();
        if !matches!(self.account, Open) {
            problems.push(format!(
                "on_failure.account must be \"open\", since the request is over by then, got \"{}\"",
                self.account
            ));
        }
        if !matches!(self.events, Open | Closed(_)) {
            problems.push(format!(
                "on_failure.events must be \"open\" or \"closed:STATUS\", since an answer to one \
                 event fits no other, got \"{}\"",
                self.events
            ));
        }
        for (phase, action) in
            [("transform", Some(self.transform)), ("stream_guard", self.stream_guard)]
        {
            if let Some(action @ LastGood(_)) = action {
                problems.push(format!(
                    "on_failure.{phase} must be \"open\", \"builtin\" or \"closed:STATUS\", since an \
                     answer about one text fits no other, got \"{action}\""
                ));
            }
        }
        for (phase, action) in
            [("identify", self.identify), ("route", self.route), ("admit", self.admit)]
        {
            if action == LastGood(Duration::ZERO) {
                problems.push(format!(
                    "on_failure.{phase} must have a time above 0s, got \"{action}\""
                ));
            }
        }
        problems
    }
}

/// What a policy's silence means. Written `open`, `closed:503`, `builtin` or `last-good:30s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub enum FailureAction {
    /// Go on as if it were not there.
    Open,
    /// Turn the request away with this HTTP status, 400 to 599.
    Closed(u16),
    /// Do what the host does by itself.
    Builtin,
    /// Repeat its last decision for the same tenant and model, if it is not older than this.
    LastGood(Duration),
}

impl FailureAction {
    /// What most silence means by default.
    pub const UNAVAILABLE: Self = Self::Closed(503);

    /// Its label in `interlock_policy_fallbacks_total{action}`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Closed(_) => "closed",
            Self::Builtin => "builtin",
            Self::LastGood(_) => "last_good",
        }
    }
}

/// A failure action that is none.
#[derive(Debug, thiserror::Error)]
#[error(
    "a failure action is \"open\", \"builtin\", \"last-good:TIME\" or \"closed:STATUS\" with a status \
     of 400 to 599, got {0:?}"
)]
pub struct BadFailureAction(String);

impl FromStr for FailureAction {
    type Err = BadFailureAction;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || BadFailureAction(text.to_owned());
        match text.split_once(':') {
            None if text == "open" => Ok(Self::Open),
            None if text == "builtin" => Ok(Self::Builtin),
            Some(("last-good", time)) => {
                humantime::parse_duration(time).map(Self::LastGood).map_err(|_| bad())
            }
            Some(("closed", status)) => {
                let status: u16 = status.parse().map_err(|_| bad())?;
                (400..=599).contains(&status).then_some(Self::Closed(status)).ok_or_else(bad)
            }
            _ => Err(bad()),
        }
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
            Self::Open | Self::Builtin => f.write_str(self.as_str()),
            Self::Closed(status) => write!(f, "closed:{status}"),
            Self::LastGood(time) => write!(f, "last-good:{}", humantime::format_duration(*time)),
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
        for text in ["open", "closed:503", "closed:403", "builtin", "last-good:1m 30s"] {
            assert_eq!(text.parse::<FailureAction>().expect(text).to_string(), text);
        }
        for text in ["", "closed", "closed:200", "closed:x", "Open", "last-good", "open:1"] {
            assert!(text.parse::<FailureAction>().is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn silence_means_what_makes_sense_in_its_phase() {
        assert_eq!(OnFailure::default().problems(), [""; 0]);
        let ago = FailureAction::LastGood(Duration::from_secs(30));
        let bad = OnFailure {
            transform: ago,
            events: FailureAction::Builtin,
            account: FailureAction::Closed(500),
            ..OnFailure::default()
        };
        assert_eq!(bad.problems().len(), 3);
        assert_eq!(OnFailure::all(ago).problems().len(), 1);
        assert_eq!(OnFailure::all(FailureAction::Closed(418)).problems(), [""; 0]);
        let default = OnFailure::default();
        assert_eq!(default.of(Phase::StreamGuard, true), FailureAction::Closed(503));
        assert_eq!(default.of(Phase::StreamGuard, false), FailureAction::Open);
    }
}
