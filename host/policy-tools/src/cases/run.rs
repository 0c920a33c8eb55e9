//! Plays one case: asks the policy step by step.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use interlock_policy_api::{Answer, Choice, Phase, Policy, RequestContext, Verdict, Window};
use serde_json::{Map, Value, json};

use super::{Case, CaseStep, PolicyUnderTest};
use crate::case_time::{self, CaseTime};
use crate::fixtures::{self, CandidateFixture, ProgressFixture, RequestFixture};
use crate::json::ToJson;

/// Where a case is played.
pub(super) struct CaseRun {
    pub(super) tested: PolicyUnderTest,
    /// When the case began, since the Unix epoch.
    pub(super) begins: Duration,
    /// The same of what it is now.
    pub(super) now: Duration,
    /// By request id: its number, what was noted, and when.
    pub(super) admitted: BTreeMap<String, KnownRequest>,
}

#[derive(Clone)]
pub(super) struct KnownRequest {
    serial: u64,
    note: String,
    at: Duration,
}

impl CaseRun {
    pub(super) fn ask(
        &mut self,
        step: &CaseStep,
        case: &Case,
        request: &RequestFixture,
    ) -> Result<(Phase, Value), String> {
        if let Some(at) = step.at {
            self.go_on(at)?;
        }
        let now = self.now;
        let serial = self.admitted.len() as u64 + 1;
        let next = KnownRequest { serial, note: String::new(), at: self.begins };
        let mut known = self.admitted.get(&request.id).cloned().unwrap_or(next);
        if let Some(note) = &request.note {
            known.note.clone_from(note);
        }
        let phase = step.phase();
        let policy = Arc::clone(&self.tested.policy);
        if !policy.takes(phase) {
            return Err(format!("the policy takes no part in {}", phase.as_str()));
        }
        let body = fixtures::body(step.body.as_ref().or(case.body.as_ref()));
        let facts = request.facts(known.serial, now, phase)?;
        let context = RequestContext { facts: &facts, note: &known.note };
        let load = step.load.or(case.load).unwrap_or_default();
        let mut answer = match phase {
            Phase::Identify => {
                let caller = step.caller.clone().unwrap_or_default();
                policy.identify(&caller.caller(request, known.serial, now)?).to_json()
            }
            Phase::Transform => policy.transform(&facts, &body).to_json(),
            Phase::Route => {
                let given = step.candidates.as_deref().unwrap_or_default();
                let candidates: Vec<_> =
                    (0..).zip(given).map(|(id, given)| given.candidate(id)).collect();
                named(&policy.route(&facts, &candidates, &body), given)
            }
            Phase::Admit => {
                policy.admit(&facts, &load.load(), load.tenant_in_flight, &body).to_json()
            }
            Phase::StreamGuard => guarded(
                policy.as_ref(),
                context,
                step.text.as_deref().unwrap_or_default(),
                step.progress.as_ref(),
            ),
            Phase::Events => {
                let event = step.event.ok_or("phase events needs an event")?;
                let progress = step.progress.clone().unwrap_or_default();
                let progress = progress.progress(facts.prompt_tokens, now, known.at);
                policy.event(context, &event.into(), &progress).to_json()
            }
            Phase::Account => {
                let ended = step.ended.as_ref().ok_or("phase account needs ended")?;
                let summary = ended.summary(facts.prompt_tokens, now, known.at);
                let answer = policy.account(context, &summary);
                policy.forget(known.serial, summary.ran());
                answer.to_json()
            }
        };
        match (phase, answer["decision"].as_str()) {
            (Phase::Admit, Some("admit")) => {
                let note = answer["note"].as_str().unwrap_or_default().to_owned();
                self.admitted.insert(request.id.clone(), KnownRequest { note, at: now, ..known });
            }
            // Who was turned away is not heard of again.
            (_, Some("reject")) => policy.forget(known.serial, false),
            _ => {}
        }
        self.look(step.expect.as_ref(), &body, &mut answer)?;
        Ok((phase, answer))
    }

    /// It is this late from now on.
    fn go_on(&mut self, at: CaseTime) -> Result<(), String> {
        let now = at.since_epoch(self.begins);
        if now < self.now {
            let (then, is) = (case_time::written(now), case_time::written(self.now));
            return Err(format!("a step at {then} comes after one at {is}: time goes forward"));
        }
        self.now = now;
        self.tested.clock.set(now - self.begins);
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
                let got = self.tested.state.get(key);
                if let Some(got) = got.map_err(|fault| format!("expect.state.{key}: {fault:?}"))? {
                    found.insert(key.clone(), String::from_utf8_lossy(&got).into());
                }
            }
            answer["state"] = Value::Object(found);
        }
        Ok(())
    }
}

/// A choice by the names of models, which a case knows, and not by ids, which it does not.
fn named(choice: &Answer<Choice>, given: &[CandidateFixture]) -> Value {
    let mut value = choice.to_json();
    let name = |id: u32| given.get(id as usize).map_or("?", |given| given.model.as_str());
    match choice {
        Ok(Choice::Pick(id, _)) => value["pick"] = name(*id).into(),
        Ok(Choice::Scores(..)) => {
            let scores = value["scores"].as_object().cloned().unwrap_or_default();
            let named = scores
                .into_iter()
                .map(|(id, score)| (name(id.parse().unwrap_or(u32::MAX)).to_owned(), score));
            value["scores"] = Value::Object(named.collect());
        }
        _ => {}
    }
    value
}

/// Feeds the text piece by piece, as the host does with a gate, and says what the client gets.
fn guarded(
    policy: &dyn Policy,
    context: RequestContext<'_>,
    pieces: &[String],
    progress: Option<&ProgressFixture>,
) -> Value {
    let mut passed = String::new();
    let mut held = String::new();
    let mut decisions = vec![];
    let mut last = json!({"decision": "pass"});
    let usage = progress.cloned().unwrap_or_default().usage(context.facts.prompt_tokens);
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
        let answer = policy.window(context, &window);
        let decision = answer.to_json();
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
