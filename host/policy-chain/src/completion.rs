//! Tells the policies how a request ended, and lets them forget it.
//!
//! # Invariants
//!
//! - A guard completes exactly once: by a call, or when it is dropped, whatever dropped it: a
//!   panic, a future that nobody polls any more, a client that left while a policy was being asked.
//! - A policy that was asked to admit the request is told how it ended, also when the policy failed
//!   to answer; the policy that turned it away itself is not. One that was not asked is told only
//!   of admitted requests.
//! - Every policy of the set forgets the request, after all calls about it, also those that nobody
//!   waits for any more, and is not called about it after that.

use std::sync::Arc;
use std::time::{Duration, Instant};

use interlock_request::{Outcome, RequestId};

use crate::ChainShared;
use crate::call::notify;
use crate::clock;
use crate::policy_set::{PolicyMember, PolicySet};
use crate::serial_queue::SerialQueue;
use crate::tenants::TenantGuard;
use interlock_policy_api::{
    Closing, Facts, FailureKind, Phase, PlanProposal, PolicyFailure, RequestContext, Summary, Watch,
};

/// What one policy has said of the request, and where it is called.
#[derive(Debug, Clone)]
pub(crate) struct MemberState {
    pub(crate) proposal: PlanProposal,
    pub(crate) note: Arc<str>,
    pub(crate) watch: Watch,
    pub(crate) admit_state: AdmitState,
    /// The queue of calls that the request waits for, when they may take long.
    pub(crate) calls: Option<Arc<SerialQueue>>,
    /// The queue of calls that nobody waits for. See [`PolicyMember::runs_in_background`].
    pub(crate) background: Option<Arc<SerialQueue>>,
}

impl MemberState {
    fn new(member: &PolicyMember, shared: &ChainShared) -> Self {
        let threads = member.threads.as_deref();
        let calls = threads.filter(|_| !member.runs_in_background()).map(|threads| &threads.calls);
        // A slow one that decides has all its calls on the threads that somebody waits for, but
        // for the windows that it only observes.
        let background = threads.filter(|_| member.slow());
        let pool = background.map_or(&shared.background, |threads| &threads.background);
        let background = member.runs_in_background() || member.policy.takes(Phase::StreamGuard);
        Self {
            proposal: PlanProposal::default(),
            note: Arc::default(),
            watch: member.policy.watch(),
            admit_state: AdmitState::NotAsked,
            calls: calls.map(|pool| SerialQueue::new(pool.clone())),
            background: background.then(|| SerialQueue::new(pool.clone())),
        }
    }
}

/// What a policy has to do with the admission.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AdmitState {
    NotAsked,
    Asked,
    Refused,
}

/// Sees to it that the policies of one request are told its end.
pub(crate) struct CompletionGuard {
    pub(crate) policy_set: PolicySet,
    /// One for each member of the set, in its order.
    pub(crate) member_states: Vec<MemberState>,
    pub(crate) serial: u64,
    pub(crate) id: RequestId,
    pub(crate) shared: ChainShared,
    /// There from the moment that the first policy is asked to admit it.
    pub(crate) facts: Option<Arc<Facts>>,
    pub(crate) admitted_at: Option<Instant>,
    pub(crate) counted: Option<TenantGuard>,
    completed: bool,
}

impl CompletionGuard {
    pub(crate) fn new(
        policy_set: PolicySet,
        serial: u64,
        id: RequestId,
        shared: ChainShared,
    ) -> Self {
        let member_states =
            policy_set.iter().map(|member| MemberState::new(member, &shared)).collect();
        Self {
            policy_set,
            member_states,
            serial,
            id,
            shared,
            facts: None,
            admitted_at: None,
            counted: None,
            completed: false,
        }
    }

    /// Tells the policies that it concerns how the request ended, in the order of the chain; those
    /// whose calls may take long are told on their own threads.
    pub(crate) fn complete(&mut self, summary: &Summary) {
        self.end(summary, summary.ran());
    }

    fn end(&mut self, summary: &Summary, ran: bool) {
        if std::mem::replace(&mut self.completed, true) {
            return;
        }
        let admitted = self.admitted_at.is_some();
        for (member, state) in self.policy_set.iter().zip(&self.member_states) {
            let concerned = match state.admit_state {
                AdmitState::NotAsked => admitted,
                AdmitState::Asked => true,
                AdmitState::Refused => false,
            };
            let accounts = concerned && member.policy.takes(Phase::Account);
            let settlement = Settlement {
                member: member.clone(),
                about: self.facts.clone().filter(|_| accounts),
                note: Arc::clone(&state.note),
                serial: self.serial,
                ran,
                calls: state.calls.clone(),
                background: state.background.clone(),
            };
            settlement.settle_last(summary);
        }
        // Only now is there room for the tenant's next one: what it held is given back.
        self.counted = None;
    }
}

/// The last calls of one policy about a request: `account`, then `forget`.
#[derive(Clone)]
struct Settlement {
    member: PolicyMember,
    about: Option<Arc<Facts>>,
    note: Arc<str>,
    serial: u64,
    ran: bool,
    calls: Option<Arc<SerialQueue>>,
    background: Option<Arc<SerialQueue>>,
}

impl Settlement {
    /// Settles behind all other calls about the request.
    fn settle_last(self, summary: &Summary) {
        let queues = [self.calls.clone(), self.background.clone()];
        if queues.iter().all(Option::is_none) {
            return self.settle(summary);
        }
        self.settle_after(queues.into_iter().flatten().collect(), summary.clone());
    }

    fn settle_after(self, mut queues: Vec<Arc<SerialQueue>>, summary: Summary) {
        let Some(background) = queues.pop() else { return self.settle_apart(summary) };
        let rest = background.close(move || self.settle_after(queues, summary));
        rest.into_iter().for_each(|rest| rest());
    }

    /// Settles now, on the threads for accounts where the call may take long.
    fn settle_apart(self, summary: Summary) {
        let threads = self.member.threads.clone().filter(|_| self.member.slow());
        let Some(threads) = threads else { return self.settle(&summary) };
        let alone = self.clone();
        if !threads.accounts.run(move || self.settle(&summary)) {
            alone.give_up();
        }
    }

    fn settle(self, summary: &Summary) {
        if let Some(facts) = &self.about {
            let request = RequestContext { facts, note: self.note() };
            let answer =
                notify(&self.member, Phase::Account, |policy| policy.account(request, summary));
            if let Err(failure) = answer {
                self.unaccounted(facts, &failure);
            }
        }
        self.forget();
    }

    /// What it noted, also when nobody waited for its answer any more.
    fn note(&self) -> &str {
        let queues = [&self.calls, &self.background].into_iter().flatten();
        queues.filter_map(|background| background.note.get()).next().unwrap_or(&self.note)
    }

    /// There is no thread to account on, and no room to wait for one.
    fn give_up(self) {
        if let Some(facts) = &self.about {
            let message = "too many accounts wait for a thread".into();
            let failure = PolicyFailure { kind: FailureKind::Busy, message };
            let answer = Err::<(), _>(failure.clone());
            self.member.meters.called(Phase::Account, Duration::ZERO, &answer);
            self.unaccounted(facts, &failure);
        }
        self.forget();
    }

    fn unaccounted(&self, facts: &Facts, failure: &PolicyFailure) {
        self.member.meters.fell_back(Phase::Account, "open");
        tracing::warn!(
            request = %facts.request_id, policy = %self.member.name, phase = "account",
            %failure, "policy failed to account for a request"
        );
    }

    fn forget(self) {
        let policy = &self.member.policy;
        let forgotten = crate::panics::guarded(|| {
            policy.forget(self.serial, self.ran);
            Ok(())
        });
        if let Err(failure) = forgotten {
            tracing::error!(policy = %self.member.name, %failure, "policy failed to forget");
        }
    }
}

impl Drop for CompletionGuard {
    fn drop(&mut self) {
        let (closing, total) = match self.admitted_at {
            Some(at) => {
                let why = "the request was dropped before it ended";
                let total = clock::now().saturating_duration_since(at);
                (Closing::Ended(Outcome::Failed(why.into())), total)
            }
            None => (Closing::Rejected, Duration::ZERO),
        };
        // Whether an admitted one had begun nobody knows any more.
        let ran = self.admitted_at.is_some();
        self.end(&Summary::nothing_ran(closing, total), ran);
    }
}

#[cfg(test)]
mod tests;
