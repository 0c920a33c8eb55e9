//! The settings that the chain reads.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use interlock_request::{ByteSize, Deadlines, DrainLimits};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::RecordBounds;
use interlock_policy_api::{Ceilings, Phase};

/// Largest file of records that the host writes and `interlock policy replay` reads.
pub const RECORD_BYTES_MAX: u64 = 1 << 30;

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

/// `[policies]`: what concerns all policies together. Each one has a `[[policy]]` of its own.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PoliciesConfig {
    /// How often the files of policies are looked at for changes, 100ms to 1h; a change is taken
    /// over without a restart, and one that does not load leaves everything as it is. 0s: only
    /// when the host is told to (SIGHUP, or the admin listener). Turn it off where a file that
    /// appears must not decide anything before someone said so.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub reload: Duration,
    /// A file to append one line of JSON to for each request: what policies were asked, what they
    /// said and why, for `interlock policy replay`. Prompts and answers are not in there, nor
    /// headers that no policy was granted, nor credentials as they came. Set this while you work
    /// on a policy: each request takes a kilobyte or two. When the file is moved or deleted, the
    /// next record begins a new one (at SIGHUP that is done at once). Unset, nothing is recorded.
    #[schemars(example = &"policies.jsonl")]
    pub record: Option<PathBuf>,
    /// Most bytes of that file, 1MiB to 1GiB. When it is full it is renamed to `.1`, what was `.1`
    /// to `.2` and so on, and a new one is begun. Turn this up when one file is to hold a whole day.
    pub record_max: ByteSize,
    /// How many earlier files are kept, 0 to 1000; the oldest is deleted, or the only one where none
    /// is kept. Turn this up when there is room on the disk and a day is more than they hold.
    pub record_kept: u32,
    /// A folder to keep compiled policies in, so that the next start need not compile them again;
    /// `off`: they are not kept. Unset, it is `interlock/policies` in the user's cache folder. What
    /// lies there is run as it is, so a folder that others may write to, or put another in the
    /// place of, is not used. Set this where the user has no cache folder, as in a container.
    #[schemars(example = &"off")]
    pub cache: Option<PathBuf>,
}

impl Default for PoliciesConfig {
    fn default() -> Self {
        Self {
            reload: Duration::from_secs(2),
            record: None,
            record_max: ByteSize(64 << 20),
            record_kept: 3,
            cache: None,
        }
    }
}

impl PoliciesConfig {
    const RELOAD_MIN: Duration = Duration::from_millis(100);
    const RELOAD_MAX: Duration = Duration::from_secs(3600);
    const RECORD_MAX_MIN: ByteSize = ByteSize(1 << 20);
    const RECORD_MAX_MAX: ByteSize = ByteSize(RECORD_BYTES_MAX);
    const RECORD_KEPT_MAX: u32 = 1000;

    /// Every problem, as key, relation, value.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let (least, most, reload) = (Self::RELOAD_MIN, Self::RELOAD_MAX, self.reload);
        if !reload.is_zero() && !(least..=most).contains(&reload) {
            problems.push(format!("policies.reload must be 0s or {least:?} to 1h, got {reload:?}"));
        }
        if self.record.as_ref().is_some_and(|path| path.as_os_str().is_empty()) {
            problems.push("policies.record must be the path of a file, got \"\"".into());
        }
        let (least, most, bytes) = (Self::RECORD_MAX_MIN, Self::RECORD_MAX_MAX, self.record_max);
        if !(least..=most).contains(&bytes) {
            problems.push(format!("policies.record_max must be {least} to {most}, got {bytes}"));
        }
        let (most, kept) = (Self::RECORD_KEPT_MAX, self.record_kept);
        if kept > most {
            problems.push(format!("policies.record_kept must be 0 to {most}, got {kept}"));
        }
        if self.cache.as_ref().is_some_and(|path| path.as_os_str().is_empty()) {
            problems
                .push("policies.cache must be the path of a folder or \"off\", got \"\"".into());
        }
        problems
    }

    /// How much is kept of records.
    pub fn record_bounds(&self) -> RecordBounds {
        RecordBounds { bytes_max: self.record_max.0, kept: self.record_kept }
    }

    /// Where compiled policies are kept, if this is where they are when nobody says otherwise.
    pub fn cache_or(&self, usual: Option<PathBuf>) -> Option<PathBuf> {
        match &self.cache {
            None => usual,
            Some(path) if path.as_os_str() == "off" => None,
            Some(path) => Some(path.clone()),
        }
    }
}

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

/// Whether a policy decides. Written `enforce`, `shadow` or `canary:5`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub enum PolicyMode {
    /// It decides.
    #[default]
    Enforce,
    /// It is asked and compared with what is decided without it, and nothing follows.
    Shadow,
    /// It decides for so many of a hundred requests. The others get the generation of it that was
    /// there before, if there was one.
    Canary(u8),
}

/// A mode that is none.
#[derive(Debug, thiserror::Error)]
#[error(
    "a policy's mode is \"enforce\", \"shadow\" or \"canary:PERCENT\" with a whole number of 1 to 99, \
     got {0:?}"
)]
pub struct BadPolicyMode(String);

impl FromStr for PolicyMode {
    type Err = BadPolicyMode;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || BadPolicyMode(text.to_owned());
        match text {
            "enforce" => Ok(Self::Enforce),
            "shadow" => Ok(Self::Shadow),
            _ => {
                let percent = text.strip_prefix("canary:").and_then(|text| text.parse().ok());
                percent
                    .filter(|percent| (1..=99).contains(percent))
                    .map(Self::Canary)
                    .ok_or_else(bad)
            }
        }
    }
}

impl TryFrom<String> for PolicyMode {
    type Error = BadPolicyMode;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl fmt::Display for PolicyMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Enforce => f.write_str("enforce"),
            Self::Shadow => f.write_str("shadow"),
            Self::Canary(percent) => write!(f, "canary:{percent}"),
        }
    }
}

impl From<PolicyMode> for String {
    fn from(mode: PolicyMode) -> Self {
        mode.to_string()
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
    fn a_reload_is_off_or_neither_too_often_nor_too_rare() {
        let problems = |reload| PoliciesConfig { reload, ..PoliciesConfig::default() }.problems();
        assert_eq!(PoliciesConfig::default().problems(), [""; 0]);
        assert_eq!(problems(Duration::ZERO), [""; 0]);
        let why = "policies.reload must be 0s or 100ms to 1h, got 1ms";
        assert_eq!(problems(Duration::from_millis(1)), [why]);
        assert_eq!(problems(Duration::from_secs(7200)).len(), 1);
        let record = Some(PathBuf::new());
        assert_eq!(PoliciesConfig { record, ..PoliciesConfig::default() }.problems().len(), 1);
    }

    #[test]
    fn compiled_policies_are_kept_where_it_says_or_where_they_usually_are() {
        let usual = || Some(PathBuf::from("/usual"));
        let cache = |path: Option<&str>| PoliciesConfig {
            cache: path.map(PathBuf::from),
            ..PoliciesConfig::default()
        };
        assert_eq!(cache(None).cache_or(usual()), usual());
        assert_eq!(cache(Some("off")).cache_or(usual()), None);
        assert_eq!(cache(Some("/here")).cache_or(usual()), Some("/here".into()));
        assert_eq!(cache(Some("")).problems().len(), 1);
    }

    #[test]
    fn a_mode_reads_as_it_is_written() {
        for text in ["enforce", "shadow", "canary:5", "canary:99"] {
            assert_eq!(text.parse::<PolicyMode>().expect(text).to_string(), text);
        }
        for text in ["", "canary", "canary:0", "canary:100", "canary:x"] {
            assert!(text.parse::<PolicyMode>().is_err(), "{text:?} was taken");
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
