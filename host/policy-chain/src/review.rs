//! The policies' review of one request, from its head to its admission.
//!
//! The host calls the phases in this order; each is skipped by a chain in which no policy takes
//! part in it. When a review ends without an admission, however it does, the policies that were
//! asked to admit the request are told that it was turned away, and all forget it.
//!
//! # Invariants
//!
//! - The first rejection ends the review. Later policies are not asked; but one in the shadow of
//!   the policy that ended it is, or it would be compared only where it matters least.
//! - Nothing waits for a slow policy in shadow: it is asked in the background, and compared when
//!   it has answered. What it says is counted and logged, and in no record.
//! - No lock is held while a policy is asked.

mod admit;
mod identify;
mod route;
mod shadows;
mod transform;

use std::fmt;
use std::sync::Arc;

use interlock_request::RequestId;

use crate::PolicyChain;
use crate::answer_headers;
use crate::call::CallContext;
use crate::completion::CompletionGuard;
use crate::policy_set::PolicyMember;
use crate::record::{PhaseQuestion, RecordDraft};
use crate::serial_queue::SerialQueue;
use crate::{DecisionRecord, PolicyRefusal};
use interlock_policy_api::{Code, Phase, PolicyFailure, Reason, Rejection};
use shadows::Shadows;

/// The review of one request by the policies of its generation. See [`PolicyChain::review`].
pub struct AdmissionReview {
    chain: Arc<PolicyChain>,
    completion: CompletionGuard,
    decisions: Vec<DecisionRecord>,
    headers: Vec<(String, String)>,
    draft: Option<RecordDraft>,
}

impl PolicyChain {
    /// Begins the review of a request. `serial` tells it apart from all others of this
    /// process, as [`interlock_policy_api::Facts::serial`].
    pub fn review(self: &Arc<Self>, serial: u64, id: RequestId) -> AdmissionReview {
        AdmissionReview::new(Arc::clone(self), serial, id)
    }
}

impl fmt::Debug for AdmissionReview {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdmissionReview")
            .field("request", &self.completion.id)
            .finish_non_exhaustive()
    }
}

impl AdmissionReview {
    pub(crate) fn new(chain: Arc<PolicyChain>, serial: u64, id: RequestId) -> Self {
        let completion =
            CompletionGuard::new(chain.policy_set(serial), serial, id, chain.shared.clone());
        let sink = chain.shared.records.as_ref().map(Arc::clone);
        let draft = sink.map(|sink| RecordDraft::new(chain.generation(), sink));
        Self { chain, completion, decisions: vec![], headers: vec![], draft }
    }

    /// The policies that this request stays with.
    pub fn chain(&self) -> &Arc<PolicyChain> {
        &self.chain
    }

    /// The decisions so far.
    pub fn decisions(&self) -> &[DecisionRecord] {
        &self.decisions
    }

    /// Headers that policies put on the answer so far.
    pub fn headers(&self) -> &[(String, String)] {
        &self.headers
    }

    /// The policies that take part in this phase, by their place in the set.
    fn members(&self, phase: Phase) -> impl Iterator<Item = (usize, PolicyMember)> + use<> {
        let policy_set = Arc::clone(&self.completion.policy_set);
        (0..policy_set.len()).filter(move |&at| policy_set[at].policy.takes(phase)).map({
            let policy_set = Arc::clone(&self.completion.policy_set);
            move |at| (at, policy_set[at].clone())
        })
    }

    /// The background queue of a policy that nothing waits for.
    fn background(&self, at: usize) -> Option<Arc<SerialQueue>> {
        let background = self.completion.member_states[at].background.as_ref();
        background.filter(|_| self.completion.policy_set[at].runs_in_background()).cloned()
    }

    /// Records a phase, if records are wanted: all decisions since `from`.
    fn write<T>(
        &mut self,
        asked: impl FnOnce() -> PhaseQuestion,
        from: usize,
        result: &Result<T, PolicyRefusal>,
    ) {
        let Some(draft) = &mut self.draft else { return };
        // Nobody was asked.
        if self.decisions.len() > from {
            draft.step(asked(), &self.decisions[from..]);
        }
        if let Err(refused) = result {
            draft.refused(refused);
        }
    }

    fn refuse(&self, member: &PolicyMember, phase: Phase, rejection: &Rejection) -> PolicyRefusal {
        let mut headers = Vec::new();
        answer_headers::add(&mut headers, &rejection.headers);
        answer_headers::add(&mut headers, &self.headers);
        let status = rejection.status.clamp(400, 599);
        let rejection = Rejection { status, headers, ..rejection.clone() };
        PolicyRefusal { policy: (*member.name).into(), phase, rejection, failure: None }
    }

    fn fail_closed(
        &self,
        member: &PolicyMember,
        phase: Phase,
        status: u16,
        failure: PolicyFailure,
    ) -> PolicyRefusal {
        let name = &*member.name;
        let rejection = Rejection {
            status,
            reason: Reason {
                code: Code::from("policy_failed"),
                detail: Some(format!("the policy {name:?} could not decide about this request")),
            },
            retry_after: None,
            headers: self.headers.clone(),
        };
        PolicyRefusal { policy: name.into(), phase, rejection, failure: Some(Box::new(failure)) }
    }
}

/// The context of a call, borrowed from the guard alone so that the rest of the review stays free.
fn context<'a>(
    completion: &'a CompletionGuard,
    at: usize,
    phase: Phase,
    about: Option<(&'a str, &'a str)>,
) -> CallContext<'a> {
    CallContext {
        shared: &completion.shared,
        calls: completion.member_states[at].calls.as_ref(),
        large: false,
        id: &completion.id,
        phase,
        gates: false,
        about,
    }
}

#[cfg(test)]
mod tests;
