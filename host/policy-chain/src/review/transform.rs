//! What should be changed before the request is understood?

use std::sync::Arc;

use interlock_request::ModelId;

use super::{AdmissionReview, Shadows, context};
use crate::answer_headers;
use crate::call::{CallContext, CallOutcome};
use crate::record::PhaseQuestion;
use crate::{FailureAction, PolicyRefusal};
use interlock_policy_api::{Body, Edits, Facts, Phase, Transformed};

impl AdmissionReview {
    /// Lets the policies change the body, the headers that others see and the model, one after
    /// the other.
    ///
    /// # Errors
    ///
    /// When a policy turns the request away or fails closed.
    pub async fn transform(
        &mut self,
        facts: &mut Facts,
        body: &Arc<Body>,
    ) -> Result<(), PolicyRefusal> {
        let before = self.draft.is_some().then(|| facts.clone());
        let (mut shadows, from) = (Shadows::none(), self.decisions.len());
        let result = self.changes(facts, body, &mut shadows).await;
        if let Some(before) = before {
            self.write(|| PhaseQuestion::Transform(before), from, &result);
        }
        let goes_on = result.is_ok();
        shadows.compare(Phase::Transform, || {
            move |previous: Option<&Transformed>, answer: &Transformed| match (previous, answer) {
                (Some(previous), _) => previous != answer,
                (None, Transformed::Keep) => false,
                (None, Transformed::Edit(_)) => true,
                (None, Transformed::Reject(_)) => goes_on,
            }
        });
        result
    }

    async fn changes(
        &mut self,
        facts: &mut Facts,
        body: &Arc<Body>,
        shadows: &mut Shadows<Transformed>,
    ) -> Result<(), PolicyRefusal> {
        let phase = Phase::Transform;
        let mut end = Ok(());
        for (at, member) in self.members(phase) {
            if shadows.is_over_for(&member) {
                break;
            }
            // One that decides nothing changes nothing either; and what one that failed left half
            // changed is as it was, unless the request is not going to go on.
            let closed = matches!(member.on_failure.of(phase, false), FailureAction::Closed(_));
            let saved =
                (!closed && !member.shadow && member.policy.wants_content()).then(|| body.copy());
            let mine = if member.shadow { Arc::new(body.copy()) } else { Arc::clone(body) };
            let own = || {
                let (facts, body) = (facts.clone(), Arc::clone(&mine));
                move |policy: &dyn interlock_policy_api::Policy| policy.transform(&facts, &body)
            };
            let about = Some((facts.identity.tenant.as_str(), facts.model.as_str()));
            if let Some(background) = self.background(at) {
                let context = context(&self.completion, at, phase, about);
                shadows.ask_in_background(context, &member, &background, own(), sensible);
                continue;
            }
            let context = CallContext {
                large: body.is_large(),
                ..context(&self.completion, at, phase, about)
            };
            let (outcome, decision) =
                context.ask(&member, |policy| policy.transform(facts, &mine), own, sensible).await;
            if let (Err(_), Some(saved)) = (&decision.decision, saved) {
                body.replace_with(&saved);
            }
            self.decisions.push(decision);
            match shadows.set_aside(&member, outcome) {
                CallOutcome::Answered(Transformed::Edit(edits)) => {
                    answer_headers::add(&mut self.headers, &edits.answer_headers);
                    apply(facts, edits);
                }
                CallOutcome::Answered(Transformed::Reject(rejection)) => {
                    shadows.end(&member);
                    end = Err(self.refuse(&member, phase, &rejection));
                }
                CallOutcome::Answered(Transformed::Keep)
                | CallOutcome::Builtin
                | CallOutcome::NoAnswer => {}
                CallOutcome::Closed(status, failure) => {
                    shadows.end(&member);
                    end = Err(self.fail_closed(&member, phase, status, failure));
                }
            }
        }
        end
    }
}

fn sensible(answer: &Transformed) -> Result<(), String> {
    match answer {
        Transformed::Edit(Edits { model: Some(model), .. }) if model.is_empty() => {
            Err("a model has a name, got \"\"".into())
        }
        _ => Ok(()),
    }
}

fn apply(facts: &mut Facts, edits: Edits) {
    let lower = |name: &str| name.to_ascii_lowercase();
    let removed: Vec<String> = edits
        .remove_headers
        .iter()
        .chain(edits.set_headers.iter().map(|(name, _)| name))
        .map(|name| lower(name))
        .collect();
    facts.headers.0.retain(|(name, _)| !removed.contains(name));
    facts
        .headers
        .0
        .extend(edits.set_headers.into_iter().map(|(name, value)| (lower(&name), value)));
    if let Some(model) = edits.model {
        facts.model = ModelId::new(model);
    }
}
