//! One call of one policy: made where it belongs, timed, counted, and replaced when it fails.
//!
//! # Invariants
//!
//! - A policy that decides at once is called in line, and the future is ready at once. Every other
//!   call is made on threads of the policy's own, one after the other for each request.
//! - A panic in a policy is that policy's failure, of kind `trap`, and nobody else's.
//! - What happens in place of an answer is the operator's `on_failure`, never a default here.

use std::sync::Arc;
use std::time::{Duration, Instant};

use interlock_request::RequestId;

use crate::ChainShared;
use crate::decision_record::PhaseAnswer;
use crate::last_good::LastGoodKey;
use crate::panics::guarded;
use crate::policy_set::PolicyMember;
use crate::policy_threads::{CALLS_WAITING_MAX, PATIENCE};
use crate::serial_queue::{NotAnswered, SerialQueue};
use crate::{DecisionRecord, FailureAction};
use interlock_policy_api::{Answer, FailureKind, Phase, Policy, PolicyFailure};

/// The circumstances of one call.
#[derive(Clone, Copy)]
pub(crate) struct CallContext<'a> {
    pub(crate) shared: &'a ChainShared,
    /// The queue of the policy's own threads, when the call may take long.
    pub(crate) calls: Option<&'a Arc<SerialQueue>>,
    /// The body that the policy may read is large.
    pub(crate) large: bool,
    pub(crate) id: &'a RequestId,
    pub(crate) phase: Phase,
    /// In `stream_guard`: does the client wait for the answer?
    pub(crate) gates: bool,
    /// Tenant and model, for `last-good`; `None` when it is about nobody that could come again.
    pub(crate) about: Option<(&'a str, &'a str)>,
}

/// What follows of one call.
#[derive(Debug)]
pub(crate) enum CallOutcome<T> {
    /// The answer of the policy, now or last time.
    Answered(T),
    /// The host does what it does without policies.
    Builtin,
    /// The host goes on as if the policy were not there.
    NoAnswer,
    /// The request is turned away with this status.
    Closed(u16, PolicyFailure),
}

impl CallContext<'_> {
    /// Asks a policy. `fast` asks it here and now; `own` makes the same question without
    /// borrowing, for one that is slow; `check` says whether the answer can be one.
    pub(crate) async fn ask<T: PhaseAnswer, S>(
        self,
        member: &PolicyMember,
        fast: impl FnOnce(&dyn Policy) -> Answer<T>,
        own: impl FnOnce() -> S,
        check: impl FnOnce(&T) -> Result<(), String>,
    ) -> (CallOutcome<T>, DecisionRecord)
    where
        S: FnOnce(&dyn Policy) -> Answer<T> + Send + 'static,
    {
        let asked_at = Instant::now();
        let away = member.slow() || self.large && member.policy.wants_content();
        let answer = match self.calls.filter(|_| away) {
            Some(calls) => self.ask_on_threads(member, calls, own()).await,
            None => guarded(|| fast(member.policy.as_ref())),
        };
        let elapsed = asked_at.elapsed();
        self.conclude(member, checked(answer, check), elapsed)
    }

    /// Asks a policy in the background: nothing waits for its answer. `then` gets the answer, in
    /// the queue of the policy's calls.
    pub(crate) fn ask_in_background<T: PhaseAnswer>(
        self,
        member: &PolicyMember,
        background: &Arc<SerialQueue>,
        ask: impl FnOnce(&dyn Policy) -> Answer<T> + Send + 'static,
        then: impl FnOnce(T) + Send + 'static,
    ) {
        let CallContext { shared, calls: _, large, id, phase, gates, about: _ } = self;
        let (shared, id, pending) = (shared.clone(), id.clone(), member.clone());
        let asked = background.push(move || {
            let context = CallContext {
                shared: &shared,
                calls: None,
                large,
                id: &id,
                phase,
                gates,
                // What is in shadow is not repeated.
                about: None,
            };
            let asked_at = Instant::now();
            let answer = guarded(|| ask(pending.policy.as_ref()));
            if let (CallOutcome::Answered(answer), _) =
                context.conclude(&pending, answer, asked_at.elapsed())
            {
                then(answer);
            }
        });
        if !asked {
            let message = "too much waits for a thread beside the requests".into();
            let failure = PolicyFailure { kind: FailureKind::Busy, message };
            self.conclude::<T>(member, Err(failure), Duration::ZERO);
        }
    }

    /// Counts and logs an answer, and applies `on_failure` when there is none.
    pub(crate) fn conclude<T: PhaseAnswer>(
        self,
        member: &PolicyMember,
        answer: Answer<T>,
        elapsed: Duration,
    ) -> (CallOutcome<T>, DecisionRecord) {
        member.meters.called(self.phase, elapsed, &answer);
        let action = member.on_failure.of(self.phase, self.gates);
        let (outcome, fallback) = match &answer {
            Ok(answer) => {
                if let (FailureAction::LastGood(_), false, Some(key)) =
                    (action, member.shadow, self.key(member))
                {
                    self.shared.last_good.keep(key, answer.clone().into_any());
                }
                (CallOutcome::Answered(answer.clone()), None)
            }
            Err(_) if member.shadow => (CallOutcome::NoAnswer, None),
            Err(failure) => {
                let (outcome, action) = self.fall_back(member, action, failure);
                member.meters.fell_back(self.phase, action.as_str());
                (outcome, Some(action))
            }
        };
        let decision = DecisionRecord {
            policy: Arc::clone(&member.name),
            version: Arc::clone(&member.version),
            phase: self.phase,
            decision: answer.map(PhaseAnswer::into_any),
            fallback,
            shadow: member.shadow,
            elapsed,
        };
        self.log(&decision);
        (outcome, decision)
    }

    fn fall_back<T: PhaseAnswer>(
        self,
        member: &PolicyMember,
        action: FailureAction,
        failure: &PolicyFailure,
    ) -> (CallOutcome<T>, FailureAction) {
        match action {
            FailureAction::Open => (CallOutcome::NoAnswer, action),
            FailureAction::Builtin => (CallOutcome::Builtin, action),
            FailureAction::Closed(status) => (CallOutcome::Closed(status, failure.clone()), action),
            FailureAction::LastGood(age_max) => {
                let recall = |key| self.shared.last_good.recall(&key, age_max);
                match self.key(member).and_then(recall) {
                    Some(answer) => (CallOutcome::Answered(answer), action),
                    None => (CallOutcome::Closed(503, failure.clone()), FailureAction::UNAVAILABLE),
                }
            }
        }
    }

    fn key(self, member: &PolicyMember) -> Option<LastGoodKey> {
        Some(LastGoodKey::new(&member.name, self.phase, self.about?))
    }

    fn log(self, record: &DecisionRecord) {
        let DecisionRecord { policy, version, phase, decision, fallback, shadow, elapsed } = record;
        let phase = phase.as_str();
        match decision {
            Ok(_) => tracing::debug!(
                request = %self.id, %policy, %version, phase, decision = record.label(),
                code = record.code().map(|code| &*code.0), shadow, ?elapsed, "policy decided"
            ),
            // The second failure of a broken policy says nothing new; the quarantine is logged
            // where it begins.
            Err(failure) if failure.kind == FailureKind::Quarantined => tracing::debug!(
                request = %self.id, %policy, %version, phase,
                fallback = fallback.map(FailureAction::as_str), shadow, "policy is quarantined"
            ),
            Err(failure) => tracing::warn!(
                request = %self.id, %policy, %version, phase, %failure,
                fallback = fallback.map(FailureAction::as_str), shadow, "policy gave no decision"
            ),
        }
    }

    async fn ask_on_threads<T: Send + 'static>(
        self,
        member: &PolicyMember,
        calls: &Arc<SerialQueue>,
        ask: impl FnOnce(&dyn Policy) -> Answer<T> + Send + 'static,
    ) -> Answer<T> {
        let Some(threads) = &member.threads else {
            return guarded(|| ask(member.policy.as_ref()));
        };
        let policy = Arc::clone(&member.policy);
        let job = move || guarded(|| ask(policy.as_ref()));
        calls.ask(threads, job).await.unwrap_or_else(|unasked| {
            Err(match unasked {
                NotAnswered::Busy => PolicyFailure {
                    kind: FailureKind::Busy,
                    message: format!(
                        "none of its threads was free within {PATIENCE:?}, or {CALLS_WAITING_MAX} \
                         requests waited for one already"
                    ),
                },
                NotAnswered::Gone => PolicyFailure {
                    kind: FailureKind::Trap,
                    message: "the host panicked when it called it".into(),
                },
            })
        })
    }
}

/// An answer, if it can be one.
pub(crate) fn checked<T>(
    answer: Answer<T>,
    check: impl FnOnce(&T) -> Result<(), String>,
) -> Answer<T> {
    answer.and_then(|answer| match check(&answer) {
        Ok(()) => Ok(answer),
        Err(why) => Err(PolicyFailure::bad_output(why)),
    })
}

/// Calls one for what nobody waits for, such as an account, and counts it.
pub(crate) fn notify(
    member: &PolicyMember,
    phase: Phase,
    call: impl FnOnce(&dyn Policy) -> Answer<()>,
) -> Answer<()> {
    let asked_at = Instant::now();
    let answer = guarded(|| call(member.policy.as_ref()));
    member.meters.called(phase, asked_at.elapsed(), &answer);
    answer
}
