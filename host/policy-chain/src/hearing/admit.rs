//! May this request pass, and under which plan?

use std::sync::Arc;

use interlock_request::Generation;

use super::{Hearing, Shadows, matter};
use crate::answer_headers;
use crate::consult::{Heard, Matter};
use crate::duty::Stand;
use crate::record::Asked;
use crate::{Consent, Oversight, Refused};
use interlock_policy_api::{
    Admission, Admitted, Body, Decision, Facts, Load, Phase, PlanProposal, Prompt,
};

/// Longest note; what is longer is no decision, since half a note is worse than none.
const NOTE_BYTES_MAX: usize = 1024;

impl Hearing {
    /// Asks the policies in order; the first rejection ends the matter, the plans of the others
    /// merge by [`PlanProposal::tighten`] under the operator's ceilings.
    ///
    /// A policy that traps or overruns its limits has *no* decision. What then happens is its
    /// `on_failure` setting, never a default here.
    ///
    /// # Errors
    ///
    /// When a policy turns the request away, or fails closed. Those that had let it pass hear so.
    pub async fn admit(
        mut self,
        facts: Facts,
        load: &Load,
        prompt: Prompt,
        generation: Generation,
        body: &Arc<Body>,
    ) -> Result<Consent, Refused> {
        let facts = Arc::new(facts);
        self.duty.facts = Some(Arc::clone(&facts));
        // Counted before anyone is asked, so that of two that come at once the second sees the
        // first: a bound on them holds exactly.
        let counted = self.duty.commons.tenants.enter(&facts.identity.tenant);
        let others = counted.others();
        self.duty.counted = Some(counted);

        let (mut shadows, from) = (Shadows::none(), self.said.len());
        let asked = self.decisions(&facts, load, others, body, &mut shadows).await;
        let (load, tenant_in_flight) = (*load, others);
        let question = || Asked::Admit { facts: (*facts).clone(), load, tenant_in_flight };
        self.write(question, from, &asked);
        let merged = self.duty.parties.iter().map(|party| party.proposal);
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
        let Self { chain, mut duty, said, headers, draft } = self;
        if let Some(mut draft) = draft {
            draft.admitted(plan, admitted.tokens_max());
        }
        duty.admitted_at = Some(crate::clock::now());
        let oversight = Oversight::new(duty, facts, chain, plan);
        Ok(Consent { admitted, oversight, headers, said })
    }

    async fn decisions(
        &mut self,
        facts: &Arc<Facts>,
        load: &Load,
        others: u32,
        body: &Arc<Body>,
        shadows: &mut Shadows<Decision>,
    ) -> Result<(), Refused> {
        let phase = Phase::Admit;
        let mut end = Ok(());
        for (at, member) in self.members(phase) {
            if shadows.are_done_before(&member) {
                break;
            }
            // From here on it hears how this ends, also if this future is dropped at the await.
            self.duty.parties[at].stand = Stand::Asked;
            let own = || {
                let (facts, load, body) = (Arc::clone(facts), *load, Arc::clone(body));
                let party = &self.duty.parties[at];
                let notes = party.calls.clone().or_else(|| party.lane.clone());
                move |policy: &dyn interlock_policy_api::Policy| {
                    let answer = policy.admit(&facts, &load, others, &body);
                    // For what comes behind this call: also when nobody waits for its answer any
                    // more, what it holds for the request is given back by this.
                    if let (Some(lane), Ok(decision)) = (notes, &answer)
                        && let (Decision::Admit(admission), Ok(())) = (decision, sensible(decision))
                    {
                        let _ = lane.note.set(admission.note.as_str().into());
                    }
                    answer
                }
            };
            let about = Some((facts.identity.tenant.as_str(), facts.model.as_str()));
            if let Some(lane) = self.lane(at) {
                let matter = matter(&self.duty, at, phase, about);
                shadows.look_on(matter, &member, &lane, own(), sensible);
                continue;
            }
            let matter = Matter { large: body.is_large(), ..matter(&self.duty, at, phase, about) };
            let (heard, said) = matter
                .consult(&member, |policy| policy.admit(facts, load, others, body), own, sensible)
                .await;
            let fresh = said.decision.is_ok();
            self.said.push(said);
            if let (true, Heard::Said(Decision::Admit(admission))) = (member.shadow, &heard) {
                // Its later calls bring its own note back, though nothing else follows.
                self.duty.parties[at].note = admission.note.as_str().into();
            }
            match shadows.part(&member, heard) {
                Heard::Said(Decision::Admit(admission)) => {
                    answer_headers::add(&mut self.headers, &admission.headers);
                    self.let_in(at, &admission, fresh);
                }
                Heard::Said(Decision::Reject(rejection)) => {
                    if fresh {
                        self.duty.parties[at].stand = Stand::Refused;
                    }
                    shadows.end(&member);
                    end = Err(self.refuse(&member, phase, &rejection));
                }
                Heard::Builtin | Heard::Silence => {}
                Heard::Closed(status, failure) => {
                    shadows.end(&member);
                    end = Err(self.fail_closed(&member, phase, status, failure));
                }
            }
        }
        end
    }

    fn let_in(&mut self, at: usize, admission: &Admission, fresh: bool) {
        let party = &mut self.duty.parties[at];
        party.proposal = admission.proposal;
        if let Some(watch) = admission.watch {
            party.watch = watch;
        }
        // A decision that is repeated comes without the note: that names what was held for
        // another request, and must not be let go twice.
        if fresh {
            party.note = admission.note.as_str().into();
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
