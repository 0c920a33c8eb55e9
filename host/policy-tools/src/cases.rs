//! Cases: facts in, the decision that is expected.
//!
//! ```toml
//! [settings]                          # of all cases that have none of their own
//! per_minute = 2
//!
//! [request]                           # likewise, field by field
//! tenant = "acme"
//!
//! [[case]]
//! name = "a long prompt is turned away"
//! request = { prompt_tokens = 9000 }
//! expect = { decision = "reject", status = 413, reason = "prompt_too_long" }
//!
//! [[case]]
//! name = "two a minute, and then again"
//! [[case.step]]
//! times = 2
//! expect = { decision = "admit" }
//! [[case.step]]
//! expect = { decision = "reject", status = 429, retry_after = { max = "1m" } }
//! [[case.step]]
//! at = "61s"
//! expect = { decision = "admit" }
//!
//! [[case]]
//! name = "nobody is let in at night"
//! at = "2026-03-07T22:30:00Z"
//! expect = { decision = "reject", status = 503 }
//! ```
//!
//! The steps of a case share the policy's state and a clock that only they move; cases share
//! nothing. Which phase is asked follows from what a step gives: `caller`, `candidates`, `text`,
//! `event`, `ended`, and `admit` otherwise; `phase` says it outright.
//!
//! # Not here
//!
//! Where policies come from: whoever runs cases hands in a way to begin one. No chain: a case is
//! about what one policy says, not about what becomes of it between others.

mod run;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use interlock_policy_api::{Phase, Policy};
use interlock_state::Space;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::case_time::CaseTime;
use crate::clock::ManualClock;
use crate::differences::{Difference, differences};
use crate::fixtures::{
    CallerFixture, CandidateFixture, EPOCH, EndedFixture, EventFixture, LoadFixture,
    ProgressFixture, RequestFixture,
};
use run::CaseRun;

/// A file of cases.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cases {
    /// When cases begin.
    at: Option<CaseTime>,
    #[serde(default)]
    settings: Map<String, Value>,
    #[serde(default)]
    request: Map<String, Value>,
    #[serde(default, rename = "case")]
    cases: Vec<Case>,
}

/// One story: a policy that has just begun, and what it is asked in turn.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    /// When it begins.
    at: Option<CaseTime>,
    settings: Option<Map<String, Value>>,
    /// Values of its state before the first step.
    #[serde(default)]
    state: BTreeMap<String, String>,
    /// What `init` is expected to say of the settings.
    expect_init: Option<Value>,
    #[serde(default, rename = "step")]
    steps: Vec<CaseStep>,
    // A case of one step needs no `step`.
    phase: Option<PhaseFixture>,
    times: Option<u32>,
    #[serde(default)]
    request: Map<String, Value>,
    load: Option<LoadFixture>,
    caller: Option<CallerFixture>,
    candidates: Option<Vec<CandidateFixture>>,
    text: Option<Vec<String>>,
    event: Option<EventFixture>,
    progress: Option<ProgressFixture>,
    ended: Option<EndedFixture>,
    body: Option<Value>,
    expect: Option<Value>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct CaseStep {
    at: Option<CaseTime>,
    phase: Option<PhaseFixture>,
    times: Option<u32>,
    #[serde(default)]
    request: Map<String, Value>,
    load: Option<LoadFixture>,
    caller: Option<CallerFixture>,
    candidates: Option<Vec<CandidateFixture>>,
    text: Option<Vec<String>>,
    event: Option<EventFixture>,
    progress: Option<ProgressFixture>,
    ended: Option<EndedFixture>,
    body: Option<Value>,
    expect: Option<Value>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum PhaseFixture {
    Identify,
    Transform,
    Route,
    Admit,
    StreamGuard,
    Events,
    Account,
}

/// A file that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadCases(String);

/// A policy that has just begun, and what a case may set of what it lives in.
pub struct PolicyUnderTest {
    /// The policy that is asked.
    pub policy: Arc<dyn Policy>,
    /// Its own state.
    pub state: Space,
    /// The clock of that state.
    pub clock: ManualClock,
}

/// Begins a policy with these settings.
pub type Begin<'a> = dyn FnMut(&Map<String, Value>) -> Result<PolicyUnderTest, NotBegun> + 'a;

/// Why a policy did not begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotBegun {
    /// It does not accept its settings, or fails with them, in these words: a case may expect that.
    Refused(String),
    /// It would begin with no settings: it is not there, or no policy of this host. No case is
    /// about that.
    Unusable(String),
}

/// Why no case was played.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotPlayed {
    /// A case makes no sense: what it gives cannot be given.
    #[error(transparent)]
    Cases(#[from] BadCases),
    /// There is no policy to put cases before.
    #[error("{0}")]
    Policy(String),
}

/// How the cases went.
#[derive(Debug, Clone, Default)]
pub struct Played {
    /// One after the other, as in the file.
    pub cases: Vec<CasePlayed>,
}

/// How one went.
#[derive(Debug, Clone)]
pub struct CasePlayed {
    /// The name of the case.
    pub name: String,
    /// What was not as expected, step after step; empty when all was.
    pub wrong: Vec<Mismatch>,
}

/// What was not as expected in a step.
#[derive(Debug, Clone)]
pub struct Mismatch {
    /// Which step, from 1, and which phase; empty where there is only one.
    pub step: String,
    /// Where the answer differs from what was expected.
    pub differences: Vec<Difference>,
    /// The whole answer.
    pub answer: Value,
}

impl Played {
    /// Was everything as expected?
    pub fn passed(&self) -> bool {
        self.cases.iter().all(|case| case.wrong.is_empty())
    }

    /// Each case with what is wrong with it, for scripts.
    pub fn to_json(&self) -> Value {
        let difference = |difference: &Difference| json!({"at": difference.at, "expected": difference.expected, "got": difference.got});
        let wrong = |wrong: &Mismatch| {
            let differences: Vec<_> = wrong.differences.iter().map(difference).collect();
            json!({"step": wrong.step, "differences": differences, "answer": wrong.answer})
        };
        let case = |case: &CasePlayed| {
            let wrong: Vec<_> = case.wrong.iter().map(wrong).collect();
            json!({"name": case.name, "passed": case.wrong.is_empty(), "wrong": wrong})
        };
        json!({"passed": self.passed(), "cases": self.cases.iter().map(case).collect::<Vec<_>>()})
    }
}

impl fmt::Display for Played {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for CasePlayed { name, wrong } in &self.cases {
            let mark = if wrong.is_empty() { "ok    " } else { "FAILED" };
            writeln!(f, "  {mark}  {name}")?;
            for Mismatch { step, differences, answer } in wrong {
                if !step.is_empty() {
                    writeln!(f, "          {step}")?;
                }
                for difference in differences {
                    let Difference { at, expected, got } = difference;
                    let at = if at.is_empty() { "answer" } else { at };
                    writeln!(f, "            {at}")?;
                    writeln!(f, "              - {expected}")?;
                    writeln!(f, "              + {got}")?;
                }
                writeln!(f, "            it answered {answer}")?;
            }
        }
        let failed = self.cases.iter().filter(|case| !case.wrong.is_empty()).count();
        let of = self.cases.len();
        match failed {
            0 => writeln!(f, "\n{of} cases, all as expected"),
            failed => writeln!(f, "\n{of} cases, {failed} not as expected"),
        }
    }
}

impl Cases {
    /// Reads a file of cases.
    ///
    /// # Errors
    ///
    /// When it is not TOML, or not cases: with the line.
    pub fn parse(text: &str) -> Result<Self, BadCases> {
        let bad = |why: String| BadCases(why.trim_end().to_owned());
        let cases: Self = toml::from_str(text).map_err(|why| bad(why.to_string()))?;
        if cases.cases.is_empty() {
            return Err(bad("it has no [[case]]".into()));
        }
        for case in &cases.cases {
            let alone = case.expect.is_some();
            if case.steps.is_empty() && !alone && case.expect_init.is_none() {
                return Err(bad(format!("case {:?} expects nothing", case.name)));
            }
            if !case.steps.is_empty() && alone {
                let name = &case.name;
                return Err(bad(format!("case {name:?} has steps; its expect belongs to them")));
            }
            if let Some(at) = case.steps.iter().position(|step| step.expect.is_none()) {
                return Err(bad(format!("case {:?}, step {}: no expect", case.name, at + 1)));
            }
        }
        Ok(cases)
    }

    /// Plays those whose names contain `only`.
    ///
    /// # Errors
    ///
    /// When a case makes no sense, or there is no policy that could be asked.
    pub fn play(&self, only: &str, begin: &mut Begin<'_>) -> Result<Played, NotPlayed> {
        let mut played = Played::default();
        for case in self.cases.iter().filter(|case| case.name.contains(only)) {
            let wrong = self.play_case(case, begin);
            let wrong = wrong.map_err(|why| match why {
                NotPlayed::Cases(BadCases(why)) => {
                    BadCases(format!("case {:?}: {why}", case.name)).into()
                }
                policy @ NotPlayed::Policy(_) => policy,
            })?;
            played.cases.push(CasePlayed { name: case.name.clone(), wrong });
        }
        // Nothing played is nothing tested.
        if played.cases.is_empty() {
            let named = self.cases.iter().map(|case| format!("{:?}", case.name));
            let named: Vec<_> = named.collect();
            return Err(BadCases(format!(
                "no case's name contains {only:?}; there are {}",
                if named.is_empty() { "none".to_owned() } else { named.join(", ") }
            ))
            .into());
        }
        Ok(played)
    }

    /// Settings that the file gives to a case.
    pub fn settings_given(&self) -> BTreeSet<&str> {
        let own = self.cases.iter().filter_map(|case| case.settings.as_ref());
        own.chain([&self.settings])
            .flat_map(|settings| settings.keys().map(String::as_str))
            .collect()
    }

    fn play_case(&self, case: &Case, begin: &mut Begin<'_>) -> Result<Vec<Mismatch>, NotPlayed> {
        let settings = case.settings.as_ref().unwrap_or(&self.settings);
        let begun = begin(settings);
        let init = match &begun {
            Ok(_) => json!({"init": "ok"}),
            Err(NotBegun::Refused(why)) => json!({"init": "refused", "message": why}),
            Err(NotBegun::Unusable(why)) => return Err(NotPlayed::Policy(why.clone())),
        };
        let expected = match &case.expect_init {
            None => json!({"init": "ok"}),
            // A text is what the message must contain.
            Some(Value::String(part)) => {
                json!({"init": "refused", "message": {"contains": part}})
            }
            Some(expected) => expected.clone(),
        };
        let found = differences(&expected, &init);
        if !found.is_empty() {
            return Ok(vec![Mismatch { step: "init".into(), differences: found, answer: init }]);
        }
        let Ok(tested) = begun else { return Ok(vec![]) };
        for (key, value) in &case.state {
            let set = tested.state.set(key, value.as_bytes(), None);
            set.map_err(|fault| BadCases(format!("state.{key}: {fault:?}")))?;
        }
        let file_begins = self.at.map_or(EPOCH, |at| at.since_epoch(EPOCH));
        let begins = case.at.map_or(file_begins, |at| at.since_epoch(file_begins));
        let mut run = CaseRun { tested, begins, now: begins, admitted: BTreeMap::new() };
        let alone = CaseStep {
            at: None,
            phase: case.phase,
            times: case.times,
            request: Map::new(),
            load: case.load,
            caller: case.caller.clone(),
            candidates: case.candidates.clone(),
            text: case.text.clone(),
            event: case.event,
            progress: case.progress.clone(),
            ended: case.ended.clone(),
            body: case.body.clone(),
            expect: case.expect.clone(),
        };
        let lonely = case.steps.is_empty() && case.expect.is_some();
        let mut wrong = vec![];
        for (index, step) in lonely.then_some(&alone).into_iter().chain(&case.steps).enumerate() {
            let mut request = self.request.clone();
            for given in [&case.request, &step.request] {
                merge(&mut request, given);
            }
            let request: RequestFixture = serde_json::from_value(Value::Object(request))
                .map_err(|why| BadCases(format!("request: {why}")))?;
            for time in 0..step.times.unwrap_or(1) {
                let (phase, answer) = run.ask(step, case, &request).map_err(BadCases)?;
                let found = differences(step.expect.as_ref().unwrap_or(&json!({})), &answer);
                if found.is_empty() {
                    continue;
                }
                let times = if time > 0 { format!(", time {}", time + 1) } else { String::new() };
                let step = match lonely {
                    true if times.is_empty() => String::new(),
                    _ => format!("step {} ({}{times})", index + 1, phase.as_str()),
                };
                wrong.push(Mismatch { step, differences: found, answer });
            }
        }
        Ok(wrong)
    }
}

/// Tables are merged, the rest is replaced.
fn merge(into: &mut Map<String, Value>, from: &Map<String, Value>) {
    for (key, value) in from {
        match (into.get_mut(key), value) {
            (Some(Value::Object(into)), Value::Object(from)) => merge(into, from),
            _ => {
                into.insert(key.clone(), value.clone());
            }
        }
    }
}

impl CaseStep {
    fn phase(&self) -> Phase {
        match self.phase {
            Some(PhaseFixture::Identify) => Phase::Identify,
            Some(PhaseFixture::Transform) => Phase::Transform,
            Some(PhaseFixture::Route) => Phase::Route,
            Some(PhaseFixture::Admit) => Phase::Admit,
            Some(PhaseFixture::StreamGuard) => Phase::StreamGuard,
            Some(PhaseFixture::Events) => Phase::Events,
            Some(PhaseFixture::Account) => Phase::Account,
            None if self.caller.is_some() => Phase::Identify,
            None if self.candidates.is_some() => Phase::Route,
            None if self.text.is_some() => Phase::StreamGuard,
            None if self.event.is_some() => Phase::Events,
            None if self.ended.is_some() => Phase::Account,
            None => Phase::Admit,
        }
    }
}

#[cfg(test)]
mod tests;
