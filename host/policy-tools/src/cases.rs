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

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use interlock_policy_api::{Answer, Choice, Phase, Policy, RequestContext, Verdict, Window};
use interlock_state::Space;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::at::{self, At};
use crate::clock::HandClock;
use crate::differences::{Difference, differences};
use crate::given::{
    self, CallerGiven, CandidateGiven, EPOCH, EndedGiven, EventGiven, LoadGiven, ProgressGiven,
    RequestGiven,
};
use crate::spelled::Spelled;

/// A file of cases.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cases {
    /// When cases begin.
    at: Option<At>,
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
    at: Option<At>,
    settings: Option<Map<String, Value>>,
    /// Values of its state before the first step.
    #[serde(default)]
    state: BTreeMap<String, String>,
    /// What `init` is expected to say of the settings.
    expect_init: Option<Value>,
    #[serde(default, rename = "step")]
    steps: Vec<Step>,
    // A case of one step needs no `step`.
    phase: Option<PhaseGiven>,
    times: Option<u32>,
    #[serde(default)]
    request: Map<String, Value>,
    load: Option<LoadGiven>,
    caller: Option<CallerGiven>,
    candidates: Option<Vec<CandidateGiven>>,
    text: Option<Vec<String>>,
    event: Option<EventGiven>,
    progress: Option<ProgressGiven>,
    ended: Option<EndedGiven>,
    body: Option<Value>,
    expect: Option<Value>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    at: Option<At>,
    phase: Option<PhaseGiven>,
    times: Option<u32>,
    #[serde(default)]
    request: Map<String, Value>,
    load: Option<LoadGiven>,
    caller: Option<CallerGiven>,
    candidates: Option<Vec<CandidateGiven>>,
    text: Option<Vec<String>>,
    event: Option<EventGiven>,
    progress: Option<ProgressGiven>,
    ended: Option<EndedGiven>,
    body: Option<Value>,
    expect: Option<Value>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum PhaseGiven {
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
pub struct Specimen {
    /// The policy.
    pub policy: Arc<dyn Policy>,
    /// Its own state.
    pub state: Space,
    /// The clock of that state.
    pub clock: HandClock,
}

/// Begins a policy with these settings.
pub type Begin<'a> = dyn FnMut(&Map<String, Value>) -> Result<Specimen, NotBegun> + 'a;

/// Why a policy did not begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotBegun {
    /// It does not accept its settings, or fails with them, in these words: a case may expect that.
    Refused(String),
    /// It would begin with no settings: it is not there, or no policy of this host. No case is about
    /// that.
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
    /// Its name.
    pub name: String,
    /// What was not as expected, step after step; empty when all was.
    pub wrong: Vec<Wrong>,
}

/// What was not as expected in a step.
#[derive(Debug, Clone)]
pub struct Wrong {
    /// Which step, from 1, and which phase; empty where there is only one.
    pub step: String,
    /// What differs.
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
        let wrong = |wrong: &Wrong| {
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
            for Wrong { step, differences, answer } in wrong {
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

    fn play_case(&self, case: &Case, begin: &mut Begin<'_>) -> Result<Vec<Wrong>, NotPlayed> {
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
            return Ok(vec![Wrong { step: "init".into(), differences: found, answer: init }]);
        }
        let Ok(specimen) = begun else { return Ok(vec![]) };
        for (key, value) in &case.state {
            let set = specimen.state.set(key, value.as_bytes(), None);
            set.map_err(|fault| BadCases(format!("state.{key}: {fault:?}")))?;
        }
        let file_begins = self.at.map_or(EPOCH, |at| at.since_epoch(EPOCH));
        let begins = case.at.map_or(file_begins, |at| at.since_epoch(file_begins));
        let mut stage = Stage { specimen, begins, now: begins, admitted: BTreeMap::new() };
        let alone = Step {
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
            let request: RequestGiven = serde_json::from_value(Value::Object(request))
                .map_err(|why| BadCases(format!("request: {why}")))?;
            for time in 0..step.times.unwrap_or(1) {
                let (phase, answer) = stage.ask(step, case, &request).map_err(BadCases)?;
                let found = differences(step.expect.as_ref().unwrap_or(&json!({})), &answer);
                if found.is_empty() {
                    continue;
                }
                let times = if time > 0 { format!(", time {}", time + 1) } else { String::new() };
                let step = match lonely {
                    true if times.is_empty() => String::new(),
                    _ => format!("step {} ({}{times})", index + 1, phase.as_str()),
                };
                wrong.push(Wrong { step, differences: found, answer });
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

/// Where a case is played.
struct Stage {
    specimen: Specimen,
    /// When the case began, since the Unix epoch.
    begins: Duration,
    /// The same of what it is now.
    now: Duration,
    /// By request id: its number, what was noted, and when.
    admitted: BTreeMap<String, Known>,
}

#[derive(Clone)]
struct Known {
    serial: u64,
    note: String,
    at: Duration,
}

impl Stage {
    fn ask(
        &mut self,
        step: &Step,
        case: &Case,
        request: &RequestGiven,
    ) -> Result<(Phase, Value), String> {
        if let Some(at) = step.at {
            self.go_on(at)?;
        }
        let now = self.now;
        let serial = self.admitted.len() as u64 + 1;
        let next = Known { serial, note: String::new(), at: self.begins };
        let mut known = self.admitted.get(&request.id).cloned().unwrap_or(next);
        if let Some(note) = &request.note {
            known.note.clone_from(note);
        }
        let phase = step.phase();
        let policy = Arc::clone(&self.specimen.policy);
        if !policy.takes(phase) {
            return Err(format!("the policy takes no part in {}", phase.as_str()));
        }
        let body = given::body(step.body.as_ref().or(case.body.as_ref()));
        let facts = request.facts(known.serial, now, phase)?;
        let told = RequestContext { facts: &facts, note: &known.note };
        let load = step.load.or(case.load).unwrap_or_default();
        let mut answer = match phase {
            Phase::Identify => {
                let caller = step.caller.clone().unwrap_or_default();
                policy.identify(&caller.caller(request, known.serial, now)?).spelled()
            }
            Phase::Transform => policy.transform(&facts, &body).spelled(),
            Phase::Route => {
                let given = step.candidates.as_deref().unwrap_or_default();
                let candidates: Vec<_> =
                    (0..).zip(given).map(|(id, given)| given.candidate(id)).collect();
                named(&policy.route(&facts, &candidates, &body), given)
            }
            Phase::Admit => {
                policy.admit(&facts, &load.load(), load.tenant_in_flight, &body).spelled()
            }
            Phase::StreamGuard => guarded(
                policy.as_ref(),
                told,
                step.text.as_deref().unwrap_or_default(),
                step.progress.as_ref(),
            ),
            Phase::Events => {
                let event = step.event.ok_or("phase events needs an event")?;
                let progress = step.progress.clone().unwrap_or_default();
                let progress = progress.progress(facts.prompt_tokens, now, known.at);
                policy.event(told, &event.into(), &progress).spelled()
            }
            Phase::Account => {
                let ended = step.ended.as_ref().ok_or("phase account needs ended")?;
                let summary = ended.summary(facts.prompt_tokens, now, known.at);
                let answer = policy.account(told, &summary);
                policy.forget(known.serial, summary.ran());
                answer.spelled()
            }
        };
        match (phase, answer["decision"].as_str()) {
            (Phase::Admit, Some("admit")) => {
                let note = answer["note"].as_str().unwrap_or_default().to_owned();
                self.admitted.insert(request.id.clone(), Known { note, at: now, ..known });
            }
            // Who was turned away is not heard of again.
            (_, Some("reject")) => policy.forget(known.serial, false),
            _ => {}
        }
        self.look(step.expect.as_ref(), &body, &mut answer)?;
        Ok((phase, answer))
    }

    /// It is this late from now on.
    fn go_on(&mut self, at: At) -> Result<(), String> {
        let now = at.since_epoch(self.begins);
        if now < self.now {
            let (then, is) = (at::written(now), at::written(self.now));
            return Err(format!("a step at {then} comes after one at {is}: time goes forward"));
        }
        self.now = now;
        self.specimen.clock.set(now - self.begins);
        Ok(())
    }

    /// What an expectation asks for beside the answer: `body` by pointer, `state` by key.
    fn look(
        &self,
        expect: Option<&Value>,
        body: &interlock_policy_api::Body,
        answer: &mut Value,
    ) -> Result<(), String> {
        if let Some(Value::Object(pointers)) = expect.and_then(|expect| expect.get("body")) {
            let mut found = Map::new();
            for pointer in pointers.keys() {
                let got =
                    body.get(pointer, usize::MAX).map_err(|why| format!("expect.body: {why}"))?;
                if let Some(got) = got {
                    let value = serde_json::from_str(&got).expect("a body holds JSON");
                    found.insert(pointer.clone(), value);
                }
            }
            answer["body"] = Value::Object(found);
        }
        if let Some(Value::Object(keys)) = expect.and_then(|expect| expect.get("state")) {
            let mut found = Map::new();
            for key in keys.keys() {
                let got = self.specimen.state.get(key);
                if let Some(got) = got.map_err(|fault| format!("expect.state.{key}: {fault:?}"))? {
                    found.insert(key.clone(), String::from_utf8_lossy(&got).into());
                }
            }
            answer["state"] = Value::Object(found);
        }
        Ok(())
    }
}

impl Step {
    fn phase(&self) -> Phase {
        match self.phase {
            Some(PhaseGiven::Identify) => Phase::Identify,
            Some(PhaseGiven::Transform) => Phase::Transform,
            Some(PhaseGiven::Route) => Phase::Route,
            Some(PhaseGiven::Admit) => Phase::Admit,
            Some(PhaseGiven::StreamGuard) => Phase::StreamGuard,
            Some(PhaseGiven::Events) => Phase::Events,
            Some(PhaseGiven::Account) => Phase::Account,
            None if self.caller.is_some() => Phase::Identify,
            None if self.candidates.is_some() => Phase::Route,
            None if self.text.is_some() => Phase::StreamGuard,
            None if self.event.is_some() => Phase::Events,
            None if self.ended.is_some() => Phase::Account,
            None => Phase::Admit,
        }
    }
}

/// A choice by the names of models, which a case knows, and not by ids, which it does not.
fn named(choice: &Answer<Choice>, given: &[CandidateGiven]) -> Value {
    let mut spelled = choice.spelled();
    let name = |id: u32| given.get(id as usize).map_or("?", |given| given.model.as_str());
    match choice {
        Ok(Choice::Pick(id, _)) => spelled["pick"] = name(*id).into(),
        Ok(Choice::Scores(..)) => {
            let scores = spelled["scores"].as_object().cloned().unwrap_or_default();
            let named = scores
                .into_iter()
                .map(|(id, score)| (name(id.parse().unwrap_or(u32::MAX)).to_owned(), score));
            spelled["scores"] = Value::Object(named.collect());
        }
        _ => {}
    }
    spelled
}

/// Feeds the text piece by piece, as the host does with a gate, and says what the client gets.
fn guarded(
    policy: &dyn Policy,
    told: RequestContext<'_>,
    pieces: &[String],
    progress: Option<&ProgressGiven>,
) -> Value {
    let mut passed = String::new();
    let mut held = String::new();
    let mut decisions = vec![];
    let mut last = json!({"decision": "pass"});
    let usage = progress.cloned().unwrap_or_default().usage(told.facts.prompt_tokens);
    for (index, piece) in pieces.iter().enumerate() {
        let held_bytes = held.len();
        let text = std::mem::take(&mut held) + piece;
        let finished = index + 1 == pieces.len();
        let window = Window {
            index: u32::try_from(index).unwrap_or(u32::MAX),
            text: &text,
            held: u32::try_from(held_bytes).unwrap_or(u32::MAX),
            finished,
            usage,
        };
        let answer = policy.window(told, &window);
        let decision = answer.spelled();
        decisions.push(decision["decision"].clone());
        last = decision;
        let (out, hold) = match answer {
            Ok(Verdict::Pass) => (text.clone(), 0),
            Ok(Verdict::Hold(hold)) => (text[..cut(&text, hold)].to_owned(), hold),
            Ok(Verdict::Replace { text, hold, .. }) => (text, hold),
            Ok(Verdict::Stop { text, .. }) => {
                passed += &text;
                break;
            }
            Ok(Verdict::Abort(_)) | Err(_) => break,
        };
        passed += &out;
        held = text[cut(&text, hold)..].to_owned();
        if finished {
            passed += &held;
        }
    }
    last["passed"] = passed.into();
    last["decisions"] = Value::Array(decisions);
    last
}

/// Where the last `hold` bytes begin; a place inside a character moves to its front.
fn cut(text: &str, hold: u32) -> usize {
    text.floor_char_boundary(text.len().saturating_sub(hold as usize))
}

#[cfg(test)]
mod tests;
