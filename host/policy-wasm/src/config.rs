//! `[[policy]]`: which policies there are, and what they may cost.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use interlock_policy_api::Policy;
use interlock_policy_chain::{ChainEntry, FailureAction, OnFailure, PolicyMode};
pub use interlock_request::{BadByteSize, ByteSize};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::builtin::BUILTINS;
use crate::grants::Grant;
use crate::limits::{HOST_CALLS_MAX, INIT_TIME_MAX, MEMORY_MAX, TICK};

/// `[[policy]]`: one policy. The order of the tables is the order in which they are asked.
#[derive(Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PolicyConfig {
    /// What logs, metrics and verdicts call it: 1 to 64 lower-case letters, digits, `-` and `_`,
    /// different from every other policy's.
    pub name: String,
    /// Where the component is: the path of a `.wasm` file, or one that comes with the host,
    /// `builtin:guard`, `builtin:disconnect-guard`, `builtin:timeouts`, `builtin:quota`,
    /// `builtin:router` or `builtin:stream-guard`.
    pub source: PolicySource,
    /// What it means when the policy fails. By default a request that it could not decide about
    /// is turned away with 503, since a policy may be what keeps someone out. Set `admit` to
    /// `open` for one that only shapes plans; the limits in `[limits]` hold without it.
    #[serde(default)]
    pub on_failure: OnFailure,
    /// What it may reach, beyond writing to the log: `state`, `metrics`, `headers:NAME`,
    /// `content:read:/POINTER`, `content:write:/POINTER` (either without a pointer for the whole
    /// body), `http:HOST:PORT`. What a policy needs and was not granted is an error when it is
    /// loaded, which says what to add here.
    #[serde(default)]
    pub grants: Vec<Grant>,
    /// Longest time of one call, 1ms to 1s, in CPU time; it is stopped up to two ticks of 1ms
    /// later. The default is four hundred times what a small policy needs. Turn this up for a
    /// policy in an interpreted language: with more than the default it is called on threads of its
    /// own, since it may hold up whoever it shares one with. What a policy waits for others does not
    /// count.
    #[serde(default = "PolicyConfig::default_deadline", with = "humantime_serde")]
    #[schemars(with = "String")]
    pub deadline: Duration,
    /// A call that takes longer than this is counted in `interlock_policy_soft_deadlines_missed_total`;
    /// nothing else follows. Set it to what you want to be told of; by default nothing is counted.
    #[serde(default, with = "humantime_serde", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", example = &"1ms")]
    pub soft_deadline: Option<Duration>,
    /// Most memory of one instance, 128KiB to 64MiB; there are about as many instances as cores.
    /// The default is enough for a policy of ours several times over. Turn this up when the log
    /// says `memory`, after asking what it keeps.
    #[serde(default = "PolicyConfig::default_memory_max")]
    pub memory_max: ByteSize,
    /// Most calls of the host in one call of the policy, 1 to 100000; lines for the log do not
    /// count. Turn this up when the log says `host_calls`, after asking what it does with so many.
    #[serde(default = "PolicyConfig::default_calls_max")]
    pub calls_max: u32,
    /// Crashes within ten seconds after which it is not asked for a while, 0 to 1000; 0: it is
    /// asked whatever happens. Turn this up when a few requests that it cannot cope with should
    /// not cost the others its decision.
    #[serde(default = "PolicyConfig::default_crash_budget")]
    pub crash_budget: u32,
    /// How much its scores count in `route` beside those of other policies, 1 to 1000.
    #[serde(default = "PolicyConfig::default_weight")]
    pub weight: u32,
    /// Whether it decides: `enforce`, `shadow` (it is asked and compared, and nothing follows) or
    /// `canary:PERCENT` (it decides for so many of a hundred requests; the others get what was
    /// there before it was replaced, or go without it).
    #[serde(default)]
    pub mode: PolicyMode,
    /// What the policy itself reads: its own documentation says which keys there are.
    #[serde(default)]
    pub settings: serde_json::Map<String, serde_json::Value>,
}

/// Of its settings only the names: some of them may be secrets.
impl fmt::Debug for PolicyConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, source, on_failure, grants, mode, settings, .. } = self;
        f.debug_struct("PolicyConfig")
            .field("name", name)
            .field("source", source)
            .field("on_failure", on_failure)
            .field("grants", grants)
            .field("mode", mode)
            .field("settings", &settings.keys().collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

/// Where a component comes from. Written `builtin:NAME`, or as a path.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub enum PolicySource {
    /// One that is part of the host.
    Builtin(String),
    /// A file; a relative path counts from the working directory.
    File(PathBuf),
}

/// A source that is empty.
#[derive(Debug, thiserror::Error)]
#[error("a policy's source is \"builtin:NAME\" or the path of a .wasm file, got {0:?}")]
pub struct BadSource(String);

/// The policies of a host whose configuration names none: `guard`, with its own defaults.
///
/// It fails open: without it requests run under `[limits]`, which is what an operator who never
/// heard of policies would expect.
pub fn default_policies() -> Vec<PolicyConfig> {
    vec![PolicyConfig {
        on_failure: OnFailure { admit: FailureAction::Open, ..OnFailure::default() },
        ..PolicyConfig::new("guard", PolicySource::Builtin("guard".into()))
    }]
}

/// Every problem of these policies, alone and together, as key, relation, value.
pub fn problems(policies: &[PolicyConfig]) -> Vec<String> {
    let mut problems: Vec<String> = policies.iter().flat_map(PolicyConfig::problems).collect();
    let mut seen = BTreeSet::new();
    for policy in policies {
        if !seen.insert(&policy.name) {
            problems.push(format!("policy.name must be unique, got {:?} twice", policy.name));
        }
    }
    problems
}

impl PolicyConfig {
    const DEADLINE: Duration = Duration::from_millis(2);
    const CALLS_MAX: u32 = 256;
    const CRASH_BUDGET: u32 = 5;
    const MEMORY_MAX: ByteSize = ByteSize(8 << 20);
    const MEMORY_MAX_MIN: ByteSize = ByteSize(128 << 10);
    const NAME_BYTES_MAX: usize = 64;

    /// A policy with everything else at its default.
    pub fn new(name: impl Into<String>, source: PolicySource) -> Self {
        Self {
            name: name.into(),
            source,
            on_failure: OnFailure::default(),
            grants: Vec::new(),
            deadline: Self::DEADLINE,
            soft_deadline: None,
            memory_max: Self::MEMORY_MAX,
            calls_max: Self::CALLS_MAX,
            crash_budget: Self::CRASH_BUDGET,
            weight: Self::default_weight(),
            mode: PolicyMode::Enforce,
            settings: serde_json::Map::new(),
        }
    }

    /// Its place in the chain.
    pub fn chain_entry(&self, policy: Arc<dyn Policy>) -> ChainEntry {
        ChainEntry {
            mode: self.mode,
            // No weight is beyond what an f32 can hold.
            weight: f32::from(u16::try_from(self.weight).unwrap_or(u16::MAX)),
            soft_deadline: self.soft_deadline,
            ..ChainEntry::new(policy, self.on_failure)
        }
    }

    /// Every problem, as key, relation, value.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut must = |holds: bool, key: &str, relation: String, value: &dyn fmt::Debug| {
            if !holds {
                problems.push(format!(
                    "policy.{key} of {:?} must {relation}, got {value:?}",
                    self.name
                ));
            }
        };
        let plain =
            |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_');
        must(
            (1..=Self::NAME_BYTES_MAX).contains(&self.name.len()) && self.name.chars().all(plain),
            "name",
            "be 1 to 64 lower-case letters, digits, '-' and '_'".into(),
            &self.name,
        );
        // `POST /admin/policies/rollback` takes the last swap back.
        let taken = self.name == "rollback";
        must(!taken, "name", "not be that of a route of the admin listener".into(), &self.name);
        if let PolicySource::Builtin(name) = &self.source {
            let names: Vec<_> = BUILTINS.iter().map(|(name, _)| *name).collect();
            must(
                names.contains(&name.as_str()),
                "source",
                format!("be a path or builtin: with one of {}", names.join(", ")),
                &self.source.to_string(),
            );
        }
        must(
            (TICK..=INIT_TIME_MAX).contains(&self.deadline),
            "deadline",
            format!("be {TICK:?} to {INIT_TIME_MAX:?}"),
            &self.deadline,
        );
        let (least, most) = (Self::MEMORY_MAX_MIN, ByteSize(MEMORY_MAX));
        must(
            (least..=most).contains(&self.memory_max),
            "memory_max",
            format!("be {least} to {most}"),
            &self.memory_max.to_string(),
        );
        must(
            (1..=HOST_CALLS_MAX).contains(&self.calls_max),
            "calls_max",
            format!("be 1 to {HOST_CALLS_MAX}"),
            &self.calls_max,
        );
        must(self.crash_budget <= 1000, "crash_budget", "be 0 to 1000".into(), &self.crash_budget);
        must((1..=1000).contains(&self.weight), "weight", "be 1 to 1000".into(), &self.weight);
        let on_failure = self.on_failure.problems();
        problems.extend(
            on_failure.iter().map(|problem| format!("policy.{problem} (of {:?})", self.name)),
        );
        let given = |grant: &Grant| self.grants.iter().filter(|g| *g == grant).count() > 1;
        if let Some(twice) = self.grants.iter().find(|grant| given(grant)) {
            problems.push(format!(
                "policy.grants of {:?} must name each once, got \"{twice}\" twice",
                self.name
            ));
        }
        problems
    }

    const fn default_deadline() -> Duration {
        Self::DEADLINE
    }

    const fn default_memory_max() -> ByteSize {
        Self::MEMORY_MAX
    }

    const fn default_calls_max() -> u32 {
        Self::CALLS_MAX
    }

    const fn default_crash_budget() -> u32 {
        Self::CRASH_BUDGET
    }

    const fn default_weight() -> u32 {
        1
    }
}

impl FromStr for PolicySource {
    type Err = BadSource;

    fn from_str(text: &str) -> Result<Self, BadSource> {
        match text.strip_prefix("builtin:") {
            Some("") => Err(BadSource(text.to_owned())),
            None if text.is_empty() => Err(BadSource(text.to_owned())),
            Some(name) => Ok(Self::Builtin(name.to_owned())),
            None => Ok(Self::File(text.into())),
        }
    }
}

impl TryFrom<String> for PolicySource {
    type Error = BadSource;

    fn try_from(text: String) -> Result<Self, BadSource> {
        text.parse()
    }
}

impl From<PolicySource> for String {
    fn from(source: PolicySource) -> Self {
        source.to_string()
    }
}

impl fmt::Display for PolicySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Builtin(name) => write!(f, "builtin:{name}"),
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn a_source_is_builtin_or_a_path() {
        let file = PolicySource::File("policies/quota.wasm".into());
        assert_eq!("policies/quota.wasm".parse::<PolicySource>().unwrap(), file);
        let builtin = PolicySource::Builtin("guard".into());
        assert_eq!("builtin:guard".parse::<PolicySource>().unwrap(), builtin);
        assert!("builtin:".parse::<PolicySource>().is_err());
        assert!("".parse::<PolicySource>().is_err());
    }

    #[test]
    fn a_name_and_a_source_are_enough() {
        let read = serde_json::from_str::<PolicyConfig>;
        assert_eq!(
            read(
                r#"{"name": "guard", "source": "builtin:guard", "on_failure": {"admit": "open"}}"#
            )
            .unwrap(),
            default_policies()[0]
        );
        let full = r#"{"name":"q","source":"q.wasm","on_failure":{"admit":"closed:403"},"grants":["state","headers:x-tenant"],"deadline":"20ms","soft_deadline":"1ms","memory_max":"16MiB","calls_max":8,"crash_budget":0,"weight":2,"mode":"canary:5","settings":{"per_day":3}}"#;
        let config = read(full).unwrap();
        let again = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<PolicyConfig>(&again).unwrap(), config);
        assert_eq!((config.calls_max, config.weight), (8, 2));
        assert_eq!(config.mode, PolicyMode::Canary(5));
        let typo = r#"{"name": "q", "source": "q.wasm", "deadlne": "20ms"}"#;
        assert!(read(typo).unwrap_err().to_string().contains("unknown field `deadlne`"));
    }

    #[test]
    fn the_default_policies_have_no_problems() {
        assert_eq!(problems(&default_policies()), [""; 0]);
    }

    #[test]
    fn every_problem_is_reported_with_key_relation_and_value() {
        let bad = PolicyConfig {
            on_failure: OnFailure { account: FailureAction::Closed(503), ..OnFailure::default() },
            grants: vec![Grant::State, Grant::State],
            deadline: Duration::from_micros(200),
            memory_max: ByteSize(1 << 30),
            calls_max: 0,
            ..PolicyConfig::new("Über", PolicySource::Builtin("gard".into()))
        };
        expect![[r#"
            policy.name of "Über" must be 1 to 64 lower-case letters, digits, '-' and '_', got "Über"
            policy.source of "Über" must be a path or builtin: with one of disconnect-guard, guard, quota, router, stream-guard, timeouts, got "builtin:gard"
            policy.deadline of "Über" must be 1ms to 1s, got 200µs
            policy.memory_max of "Über" must be 128KiB to 64MiB, got "1GiB"
            policy.calls_max of "Über" must be 1 to 100000, got 0
            policy.on_failure.account must be "open", since the request is over by then, got "closed:503" (of "Über")
            policy.grants of "Über" must name each once, got "state" twice
            policy.name of "rollback" must not be that of a route of the admin listener, got "rollback"
            policy.name must be unique, got "guard" twice"#]]
        .assert_eq(&{
            let guard = default_policies().remove(0);
            let rollback = PolicyConfig { name: "rollback".into(), ..guard.clone() };
            problems(&[bad, rollback, guard.clone(), guard]).join("\n")
        });
    }
}
