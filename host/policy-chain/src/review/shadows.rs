//! What the policies in shadow mode answered in one phase, and the comparison with what was decided.

use std::sync::{Arc, Mutex, PoisonError};

use interlock_policy_api::{Answer, Phase, Policy};

use crate::call::{CallContext, CallOutcome, checked};
use crate::decision_record::PhaseAnswer;
use crate::policy_set::PolicyMember;
use crate::serial_queue::SerialQueue;

/// What was heard of those that do not decide, kept until it is known what was decided.
pub(super) struct Shadows<T> {
    answers: Vec<Shadow<T>>,
    /// Those whose answers come later.
    pending: Vec<Arc<ShadowComparison<T>>>,
    /// What the last one answered that does decide, and who that was.
    decided: Option<(Arc<str>, T)>,
    /// Whose word ended the phase.
    ended: Option<Arc<str>>,
}

struct Shadow<T> {
    member: PolicyMember,
    answer: T,
    /// What the generation answered that decides in its place, if there is one.
    previous: Option<T>,
}

/// One that looks on: whichever comes later, its answer or what was decided, has them compared.
struct ShadowComparison<T> {
    member: PolicyMember,
    previous: Option<T>,
    both: Mutex<(Option<T>, Option<Differs<T>>)>,
}

/// Would this answer have made a difference? To what the generation said that it is to replace, if
/// that said something, or else to what came of it all.
type Differs<T> = Arc<dyn Fn(Option<&T>, &T) -> bool + Send + Sync>;

impl<T: PhaseAnswer + Sync> Shadows<T> {
    pub(super) fn none() -> Self {
        Self { answers: Vec::new(), pending: Vec::new(), decided: None, ended: None }
    }

    /// This one's word ends the phase.
    pub(super) fn end(&mut self, member: &PolicyMember) {
        self.ended = Some(Arc::clone(&member.name));
    }

    /// The phase has ended, and this is not the one that stands in its last one's shadow.
    pub(super) fn is_over_for(&self, member: &PolicyMember) -> bool {
        self.ended.as_ref().is_some_and(|name| !member.shadow || *name != member.name)
    }

    /// Keeps what a shadow said; gives back what somebody said who decides.
    pub(super) fn set_aside(
        &mut self,
        member: &PolicyMember,
        outcome: CallOutcome<T>,
    ) -> CallOutcome<T> {
        match outcome {
            CallOutcome::Answered(answer) if member.shadow => {
                let previous = self.previous(member);
                self.answers.push(Shadow { member: member.clone(), answer, previous });
                CallOutcome::NoAnswer
            }
            CallOutcome::Answered(answer) => {
                self.decided = Some((Arc::clone(&member.name), answer.clone()));
                CallOutcome::Answered(answer)
            }
            outcome => outcome,
        }
    }

    /// Asks one that looks on, in its lane.
    pub(super) fn ask_in_background(
        &mut self,
        context: CallContext<'_>,
        member: &PolicyMember,
        background: &Arc<SerialQueue>,
        ask: impl FnOnce(&dyn Policy) -> Answer<T> + Send + 'static,
        check: impl FnOnce(&T) -> Result<(), String> + Send + 'static,
    ) {
        let phase = context.phase;
        let previous = self.previous(member);
        let pending =
            Arc::new(ShadowComparison { member: member.clone(), previous, both: Mutex::default() });
        self.pending.push(Arc::clone(&pending));
        let ask = |policy: &dyn Policy| checked(ask(policy), check);
        context.ask_in_background(member, background, ask, move |answer| {
            pending.compare(phase, Some(answer), None)
        });
    }

    /// It stands right behind the generation that it may replace.
    fn previous(&mut self, member: &PolicyMember) -> Option<T> {
        let previous = self.decided.take_if(|(name, _)| *name == member.name);
        previous.map(|(_, answer)| answer)
    }

    /// Counts those that would have made a difference.
    pub(super) fn compare<J>(&self, phase: Phase, differs: impl FnOnce() -> J)
    where
        J: Fn(Option<&T>, &T) -> bool + Send + Sync + 'static,
    {
        if self.answers.is_empty() && self.pending.is_empty() {
            return;
        }
        let differs: Differs<T> = Arc::new(differs());
        for Shadow { member, answer, previous } in &self.answers {
            if differs(previous.as_ref(), answer) {
                disagreed(member, phase);
            }
        }
        for pending in &self.pending {
            pending.compare(phase, None, Some(Arc::clone(&differs)));
        }
    }
}

impl<T> ShadowComparison<T> {
    fn compare(&self, phase: Phase, answer: Option<T>, differs: Option<Differs<T>>) {
        let mut both = self.both.lock().unwrap_or_else(PoisonError::into_inner);
        // Each comes once, so the two are there together once.
        let (had_answer, had_differs) = std::mem::take(&mut *both);
        match (had_answer.or(answer), had_differs.or(differs)) {
            (Some(answer), Some(differs)) => {
                drop(both);
                if differs(self.previous.as_ref(), &answer) {
                    disagreed(&self.member, phase);
                }
            }
            one_of_them => *both = one_of_them,
        }
    }
}

fn disagreed(member: &PolicyMember, phase: Phase) {
    member.meters.disagreed(phase);
    tracing::info!(
        policy = %member.name, version = %member.version, phase = phase.as_str(),
        "a policy in shadow mode would have decided otherwise"
    );
}
