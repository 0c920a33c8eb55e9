//! What the policies in shadow mode answered in one phase, and the comparison with what was
//! decided.

use std::sync::{Arc, Mutex, PoisonError};

use interlock_policy_api::{Answer, Phase, Policy};

use crate::call::{CallContext, CallOutcome, checked};
use crate::decision_record::PhaseAnswer;
use crate::policy_set::PolicyMember;
use crate::serial_queue::SerialQueue;

/// The answers of policies in shadow mode, kept until it is known what was decided.
pub(super) struct Shadows<T> {
    answers: Vec<Shadow<T>>,
    /// The policies whose answers come later.
    pending: Vec<Arc<ShadowComparison<T>>>,
    /// The last answer of a policy that decides, and the name of that policy.
    decided: Option<(Arc<str>, T)>,
    /// The policy whose answer ended the phase.
    ended: Option<Arc<str>>,
}

struct Shadow<T> {
    member: PolicyMember,
    answer: T,
    /// The answer of the generation that decides in its place, if there is one.
    previous: Option<T>,
}

/// A policy that is asked in the background. Whichever comes later, its answer or the decision,
/// starts the comparison.
struct ShadowComparison<T> {
    member: PolicyMember,
    previous: Option<T>,
    both: Mutex<(Option<T>, Option<Differs<T>>)>,
}

/// Whether this answer would have made a difference: to the answer of the generation that the
/// policy is to replace, if there is one, or else to the result of the phase.
type Differs<T> = Arc<dyn Fn(Option<&T>, &T) -> bool + Send + Sync>;

impl<T: PhaseAnswer + Sync> Shadows<T> {
    pub(super) fn none() -> Self {
        Self { answers: Vec::new(), pending: Vec::new(), decided: None, ended: None }
    }

    /// The answer of this policy ends the phase.
    pub(super) fn end(&mut self, member: &PolicyMember) {
        self.ended = Some(Arc::clone(&member.name));
    }

    /// Whether the phase has ended and this policy is not in the shadow of the one that ended it.
    pub(super) fn is_over_for(&self, member: &PolicyMember) -> bool {
        self.ended.as_ref().is_some_and(|name| !member.shadow || *name != member.name)
    }

    /// Keeps the answer of a policy in shadow mode; gives back any other outcome.
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

    /// Asks a policy in the background.
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
            pending.compare(phase, Some(answer), None);
        });
    }

    /// The answer of the generation that this policy may replace, which is asked right before it.
    fn previous(&mut self, member: &PolicyMember) -> Option<T> {
        let previous = self.decided.take_if(|(name, _)| *name == member.name);
        previous.map(|(_, answer)| answer)
    }

    /// Counts the answers that would have made a difference.
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
