//! One call of one policy: made where it belongs, timed, counted, and replaced when it fails.
//!
//! # Invariants
//!
//! - A policy that decides at once is called in line, and the future is ready at once. Every other
//!   call is made on threads of the policy's own, one after the other for each request.
//! - A panic in a policy is that policy's failure, of kind `trap`, and nobody else's.
//! - What happens in place of an answer is the operator's `on_failure`, never a default here.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use interlock_request::RequestId;

use crate::chain::{Commons, Member};
use crate::lane::{Lane, Unasked};
use crate::last_good::Key;
use crate::policy_threads::{CALLS_WAITING_MAX, PATIENCE};
use crate::said::Phased;
use crate::slow::drop_payload;
use crate::{FailureAction, Said};
use interlock_policy_api::{Answer, FailureKind, Phase, Policy, PolicyFailure};

/// About what a policy is asked.
#[derive(Clone, Copy)]
pub(crate) struct Matter<'a> {
    pub(crate) commons: &'a Commons,
    /// Where it is asked, when that may take long.
    pub(crate) calls: Option<&'a Arc<Lane>>,
    /// What it may read is large.
    pub(crate) large: bool,
    pub(crate) id: &'a RequestId,
    pub(crate) phase: Phase,
    /// In `stream_guard`: does the client wait for the answer?
    pub(crate) gates: bool,
    /// Tenant and model, for `last-good`; `None` when it is about nobody that could come again.
    pub(crate) about: Option<(&'a str, &'a str)>,
}

/// What is to be done.
#[derive(Debug)]
pub(crate) enum Heard<T> {
    /// What the policy says, now or last time.
    Said(T),
    /// What the host does by itself.
    Builtin,
    /// Nothing: as if it were not there.
    Silence,
    /// Turn the request away.
    Closed(u16, PolicyFailure),
}

impl Matter<'_> {
    /// Asks a policy. `fast` asks it here and now; `own` makes the same question without
    /// borrowing, for one that is slow; `check` says whether the answer can be one.
    pub(crate) async fn consult<T: Phased, S>(
        self,
        member: &Member,
        fast: impl FnOnce(&dyn Policy) -> Answer<T>,
        own: impl FnOnce() -> S,
        check: impl FnOnce(&T) -> Result<(), String>,
    ) -> (Heard<T>, Said)
    where
        S: FnOnce(&dyn Policy) -> Answer<T> + Send + 'static,
    {
        let asked_at = Instant::now();
        let away = member.slow() || self.large && member.policy.wants_content();
        let answer = match self.calls.filter(|_| away) {
            Some(calls) => self.ask_slowly(member, calls, own()).await,
            None => guarded(|| fast(member.policy.as_ref())),
        };
        let elapsed = asked_at.elapsed();
        self.weigh(member, checked(answer, check), elapsed)
    }

    /// Asks one that only looks on, beside the request: nothing waits for it. `then` gets what it
    /// says, in its lane.
    pub(crate) fn look_on<T: Phased>(
        self,
        member: &Member,
        lane: &Arc<Lane>,
        ask: impl FnOnce(&dyn Policy) -> Answer<T> + Send + 'static,
        then: impl FnOnce(T) + Send + 'static,
    ) {
        let Matter { commons, calls: _, large, id, phase, gates, about: _ } = self;
        let (commons, id, looking) = (commons.clone(), id.clone(), member.clone());
        let asked = lane.push(move || {
            let matter = Matter {
                commons: &commons,
                calls: None,
                large,
                id: &id,
                phase,
                gates,
                // What is in shadow is not repeated.
                about: None,
            };
            let asked_at = Instant::now();
            let answer = guarded(|| ask(looking.policy.as_ref()));
            if let (Heard::Said(answer), _) = matter.weigh(&looking, answer, asked_at.elapsed()) {
                then(answer);
            }
        });
        if !asked {
            let message = "too much waits for a thread beside the requests".into();
            let failure = PolicyFailure { kind: FailureKind::Busy, message };
            self.weigh::<T>(member, Err(failure), Duration::ZERO);
        }
    }

    /// Counts an answer, and finds what stands in for it when there is none.
    pub(crate) fn weigh<T: Phased>(
        self,
        member: &Member,
        answer: Answer<T>,
        elapsed: Duration,
    ) -> (Heard<T>, Said) {
        member.meters.called(self.phase, elapsed, &answer);
        let action = member.on_failure.of(self.phase, self.gates);
        let (heard, fallback) = match &answer {
            Ok(answer) => {
                if let (FailureAction::LastGood(_), false, Some(key)) =
                    (action, member.shadow, self.key(member))
                {
                    self.commons.last_good.keep(key, answer.clone().answered());
                }
                (Heard::Said(answer.clone()), None)
            }
            Err(_) if member.shadow => (Heard::Silence, None),
            Err(failure) => {
                let (heard, action) = self.stand_in(member, action, failure);
                member.meters.fell_back(self.phase, action.as_str());
                (heard, Some(action))
            }
        };
        let said = Said {
            policy: Arc::clone(&member.name),
            version: Arc::clone(&member.version),
            phase: self.phase,
            decision: answer.map(Phased::answered),
            fallback,
            shadow: member.shadow,
            elapsed,
        };
        self.log(&said);
        (heard, said)
    }

    fn stand_in<T: Phased>(
        self,
        member: &Member,
        action: FailureAction,
        failure: &PolicyFailure,
    ) -> (Heard<T>, FailureAction) {
        match action {
            FailureAction::Open => (Heard::Silence, action),
            FailureAction::Builtin => (Heard::Builtin, action),
            FailureAction::Closed(status) => (Heard::Closed(status, failure.clone()), action),
            FailureAction::LastGood(age_max) => {
                let recall = |key| self.commons.last_good.recall(&key, age_max);
                match self.key(member).and_then(recall) {
                    Some(answer) => (Heard::Said(answer), action),
                    None => (Heard::Closed(503, failure.clone()), FailureAction::UNAVAILABLE),
                }
            }
        }
    }

    fn key(self, member: &Member) -> Option<Key> {
        Some(Key::new(&member.name, self.phase, self.about?))
    }

    fn log(self, said: &Said) {
        let Said { policy, version, phase, decision, fallback, shadow, elapsed } = said;
        let phase = phase.as_str();
        match decision {
            Ok(_) => tracing::debug!(
                request = %self.id, %policy, %version, phase, decision = said.label(),
                code = said.code().map(|code| &*code.0), shadow, ?elapsed, "policy decided"
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

    async fn ask_slowly<T: Send + 'static>(
        self,
        member: &Member,
        calls: &Arc<Lane>,
        ask: impl FnOnce(&dyn Policy) -> Answer<T> + Send + 'static,
    ) -> Answer<T> {
        let Some(threads) = &member.threads else {
            return guarded(|| ask(member.policy.as_ref()));
        };
        let policy = Arc::clone(&member.policy);
        let job = move || guarded(|| ask(policy.as_ref()));
        calls.ask(threads, job).await.unwrap_or_else(|unasked| {
            Err(match unasked {
                Unasked::Busy => PolicyFailure {
                    kind: FailureKind::Busy,
                    message: format!(
                        "none of its threads was free within {PATIENCE:?}, or {CALLS_WAITING_MAX} \
                         requests waited for one already"
                    ),
                },
                Unasked::Gone => PolicyFailure {
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

/// Calls, and makes a panic a failure.
pub(crate) fn guarded<T>(call: impl FnOnce() -> Answer<T>) -> Answer<T> {
    // Policies are shared between threads and so keep themselves whole; what else the call has
    // borrowed, a body's lock among it, is whole after a panic too (see there).
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| panic.downcast_ref::<String>().cloned());
        let message = format!("it panicked: {}", text.as_deref().unwrap_or("(no message)"));
        drop_payload(panic);
        Err(PolicyFailure { kind: FailureKind::Trap, message })
    })
}

/// Calls one for what nobody waits for, such as an account, and counts it.
pub(crate) fn tell(
    member: &Member,
    phase: Phase,
    call: impl FnOnce(&dyn Policy) -> Answer<()>,
) -> Answer<()> {
    let asked_at = Instant::now();
    let answer = guarded(|| call(member.policy.as_ref()));
    member.meters.called(phase, asked_at.elapsed(), &answer);
    answer
}
