//! May this request pass, and under which plan?

use std::sync::Arc;

use interlock_request::Generation;

use super::{AdmissionReview, Shadows, context};
use crate::answer_headers;
use crate::call::{CallContext, CallOutcome};
use crate::completion::AdmitState;
use crate::record::PhaseQuestion;
use crate::{AdmissionOutcome, PolicyRefusal, PolicySession};
use interlock_policy_api::{
    Admission, Admitted, Body, Decision, Facts, Load, Phase, PlanProposal, Prompt,
};

/// Longest note; what is longer is no decision, since half a note is worse than none.
const NOTE_BYTES_MAX: usize = 1024;

impl AdmissionReview {
    /// Asks the policies in order; the first rejection ends the matter, the plans of the others
    /// merge by [`PlanProposal::tighten`] under the operator's ceilings.
    ///
    /// A policy that traps or overruns its limits has *no* decision. What then happens is its
    /// `on_failure` setting, never a default here.
    ///
    /// # Errors
    ///
    /// When a policy turns the request away, or fails closed. The policies that had let it pass are
    /// told.
    pub async fn admit(
        mut self,
        facts: Facts,
        load: &Load,
        prompt: Prompt,
        generation: Generation,
        body: &Arc<Body>,
    ) -> Result<AdmissionOutcome, PolicyRefusal> {
        let facts = Arc::new(facts);
        self.completion.facts = Some(Arc::clone(&facts));
        // Counted before anyone is asked, so that of two that come at once the second sees the
        // first: a bound on them holds exactly.
        let counted = self.completion.shared.tenants.enter(&facts.identity.tenant);
        let others = counted.others();
        self.completion.counted = Some(counted);

        let (mut shadows, from) = (Shadows::none(), self.decisions.len());
        let asked = self.decide(&facts, load, others, body, &mut shadows).await;
        let (load, tenant_in_flight) = (*load, others);
        let question = || PhaseQuestion::Admit { facts: (*facts).clone(), load, tenant_in_flight };
        self.write(question, from, &asked);
        let merged = self.completion.member_states.iter().map(|state| state.proposal);
        let merged = merged.fold(PlanProposal::default(), PlanProposal::tighten);
        let (goes_on, ceilings) = (asked.is_ok(), self.chain.ceilings);
        let bound = facts.identity.priority;
        shadows.compare(Phase::Admit, || {
            move |previous: Option<&Decision>, answer: &Decision| match (previous, answer) {
                (Some(Decision::Admit(one)), Decision::Admit(other)) => {
                    one.proposal != other.proposal
                }
                (Some(previous), _) => previous.as_str() != answer.as_str(),
                (None, Decision::Reject(_)) => goes_on,
                (None, Decision::Admit(admission)) => {
                    let plan = |proposal: PlanProposal| proposal.clamp(&ceilings).under(bound);
                    let other = merged.tighten(admission.proposal);
                    goes_on
                        && (other.tokens_max != merged.tokens_max || plan(other) != plan(merged))
                }
            }
        });
        asked?;
        let plan = merged.clamp(&self.chain.ceilings).under(facts.identity.priority);
        let admitted = Admitted::by_policies(&facts, prompt, generation, plan, merged.tokens_max);
        let Self { chain, mut completion, decisions, headers, draft } = self;
        if let Some(mut draft) = draft {
            draft.admitted(plan, admitted.tokens_max());
        }
        completion.admitted_at = Some(crate::clock::now());
        let session = PolicySession::new(completion, facts, chain, plan);
        Ok(AdmissionOutcome { admitted, session, headers, decisions })
    }

    async fn decide(
        &mut self,
        facts: &Arc<Facts>,
        load: &Load,
        others: u32,
        body: &Arc<Body>,
        shadows: &mut Shadows<Decision>,
    ) -> Result<(), PolicyRefusal> {
        let phase = Phase::Admit;
        let mut end = Ok(());
        for (at, member) in self.members(phase) {
            if shadows.is_over_for(&member) {
                break;
            }
            // From here on it hears how this ends, also if this future is dropped at the await.
            self.completion.member_states[at].admit_state = AdmitState::Asked;
            let own = || {
                let (facts, load, body) = (Arc::clone(facts), *load, Arc::clone(body));
                let state = &self.completion.member_states[at];
                let notes = state.calls.clone().or_else(|| state.background.clone());
                move |policy: &dyn interlock_policy_api::Policy| {
                    let answer = policy.admit(&facts, &load, others, &body);
                    // For what comes behind this call: also when nobody waits for its answer any
                    // more, what it holds for the request is given back by this.
                    if let (Some(background), Ok(decision)) = (notes, &answer)
                        && let (Decision::Admit(admission), Ok(())) = (decision, sensible(decision))
                    {
                        let _ = background.note.set(admission.note.as_str().into());
                    }
                    answer
                }
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
            let (outcome, decision) = context
                .ask(&member, |policy| policy.admit(facts, load, others, body), own, sensible)
                .await;
            let fresh = decision.decision.is_ok();
            self.decisions.push(decision);
            if let (true, CallOutcome::Answered(Decision::Admit(admission))) =
                (member.shadow, &outcome)
            {
                // Its later calls bring its own note back, though nothing else follows.
                self.completion.member_states[at].note = admission.note.as_str().into();
            }
            match shadows.set_aside(&member, outcome) {
                CallOutcome::Answered(Decision::Admit(admission)) => {
                    answer_headers::add(&mut self.headers, &admission.headers);
                    self.let_in(at, &admission, fresh);
                }
                CallOutcome::Answered(Decision::Reject(rejection)) => {
                    if fresh {
                        self.completion.member_states[at].admit_state = AdmitState::Refused;
                    }
                    shadows.end(&member);
                    end = Err(self.refuse(&member, phase, &rejection));
                }
                CallOutcome::Builtin | CallOutcome::NoAnswer => {}
                CallOutcome::Closed(status, failure) => {
                    shadows.end(&member);
                    end = Err(self.fail_closed(&member, phase, status, failure));
                }
            }
        }
        end
    }

    fn let_in(&mut self, at: usize, admission: &Admission, fresh: bool) {
        let state = &mut self.completion.member_states[at];
        state.proposal = admission.proposal;
        if let Some(watch) = admission.watch {
            state.watch = watch;
        }
        // A decision that is repeated comes without the note: that names what was held for
        // another request, and must not be let go twice.
        if fresh {
            state.note = admission.note.as_str().into();
        }
    }
}

fn sensible(decision: &Decision) -> Result<(), String> {
    match decision {
        Decision::Admit(admission) if admission.note.len() > NOTE_BYTES_MAX => {
            Err(format!("a note has at most {NOTE_BYTES_MAX} bytes, got {}", admission.note.len()))
        }
        Decision::Admit(admission) if admission.proposal.tokens_max == Some(0) => {
            Err("a plan's max-tokens must be at least 1, got 0".into())
        }
        Decision::Admit(_) | Decision::Reject(_) => Ok(()),
    }
}
