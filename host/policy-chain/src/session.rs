//! The policies of an admitted request, until it ends.
//!
//! # Invariants
//!
//! - A policy's amendment takes the place of what it had said itself; what the others said, who
//!   the caller is and the operator's ceilings hold as before.
//! - A session is settled exactly once: by a call, or when it is dropped.
//! - A dropped call of [`PolicySession::event`] changes nothing that was not answered yet.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::PolicyChain;
use crate::call::{CallContext, CallOutcome};
use crate::completion::{CompletionGuard, MemberState};
use crate::policy_set::PolicyMember;
use crate::serial_queue::SerialQueue;
use crate::{DecisionRecord, StreamFilters};
use interlock_policy_api::{
    Code, Event, EventSet, Facts, Guarding, Phase, Plan, PlanProposal, Policy, Progress, Reaction,
    Reason, RequestContext, Summary, Watch, WindowSize,
};

/// The policies of an admitted request: events go to them, and they are told its end.
pub struct PolicySession {
    completion: CompletionGuard,
    facts: Arc<Facts>,
    chain: Arc<PolicyChain>,
    admitted_at: Instant,
    plan: Plan,
    /// In the present silence (told by how many tokens there were): how long a pause was reported.
    silence: (u32, Duration),
}

impl fmt::Debug for PolicySession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PolicySession")
            .field("facts", &self.facts)
            .field("plan", &self.plan)
            .finish_non_exhaustive()
    }
}

/// What follows of an event.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct EventOutcome {
    /// [`PolicySession::plan`] is another one now.
    pub plan_changed: bool,
    /// A policy wants the request to end.
    pub cancel: Option<CancelledByPolicy>,
    /// The decisions of the policies.
    pub decisions: Vec<DecisionRecord>,
}

/// A policy ended a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CancelledByPolicy {
    /// The name of the policy.
    pub policy: String,
    /// The reason that the policy gave.
    pub reason: Reason,
    /// The HTTP status that its `on_failure` says, when it gave no decision at all.
    pub failed: Option<u16>,
}

impl PolicySession {
    pub(crate) fn new(
        completion: CompletionGuard,
        facts: Arc<Facts>,
        chain: Arc<PolicyChain>,
        plan: Plan,
    ) -> Self {
        let admitted_at = completion.admitted_at.unwrap_or_else(crate::clock::now);
        Self { completion, facts, chain, admitted_at, plan, silence: (0, Duration::ZERO) }
    }

    /// What the host must enforce now.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The facts of its admission.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// When it was admitted; its deadlines count from here.
    pub fn admitted_at(&self) -> Instant {
        self.admitted_at
    }

    /// The policies that this request stays with.
    pub fn chain(&self) -> &Arc<PolicyChain> {
        &self.chain
    }

    /// What at least one policy wants to see: the union of the events, the shortest pause, the
    /// strictest guarding and the smallest windows.
    pub fn watch(&self) -> Watch {
        let mut merged = Watch::default();
        for (member, state) in self.member_states() {
            if member.policy.takes(Phase::Events) {
                merged.events = union(merged.events, state.watch.events);
                merged.stalled_after = shorter(merged.stalled_after, stall(state));
            }
            if member.policy.takes(Phase::StreamGuard) {
                let guarding = match state.watch.guarding {
                    Guarding::Gate(size) if member.shadow => Guarding::Observe(size),
                    guarding => guarding,
                };
                merged.guarding = stricter(merged.guarding, guarding);
            }
        }
        merged
    }

    /// How long a silence must last for the next policy to be told of it, when there are so many
    /// tokens. `None`: nobody is left to tell.
    pub fn stalled_after(&self, generated_tokens: u32) -> Option<Duration> {
        let reported = self.told_of_silence(generated_tokens);
        self.member_states()
            .filter(|(member, _)| member.policy.takes(Phase::Events))
            .filter_map(|(_, state)| stall(state))
            .filter(|after| Some(*after) > reported)
            .min()
    }

    /// Tells those who watch for it, in the order of the chain. The first to cancel ends the
    /// matter.
    pub async fn event(&mut self, event: Event, progress: Progress) -> EventOutcome {
        let mut result = EventOutcome::default();
        let before = self.plan;
        let reported = self.told_of_silence(progress.usage.generated_tokens);
        if let Event::Stalled(pause) = event {
            self.silence = (progress.usage.generated_tokens, pause);
        }
        for at in 0..self.completion.member_states.len() {
            let member = self.completion.policy_set[at].clone();
            let state = &self.completion.member_states[at];
            if !member.policy.takes(Phase::Events) || !watches(state, &event, reported) {
                continue;
            }
            let note = Arc::clone(&state.note);
            if let (Some(background), true) = (&state.background, member.runs_in_background()) {
                self.ask_in_background(at, background, event, progress);
                continue;
            }
            let (outcome, decision) = self.ask(at, &note, event, progress).await;
            result.decisions.push(decision);
            if member.shadow {
                if let CallOutcome::Answered(reaction) = outcome
                    && reaction != Reaction::Keep
                {
                    member.meters.disagreed(Phase::Events);
                }
                continue;
            }
            match outcome {
                CallOutcome::Answered(Reaction::Keep)
                | CallOutcome::Builtin
                | CallOutcome::NoAnswer => {}
                CallOutcome::Answered(Reaction::Cancel(reason)) => {
                    let policy = member.name.to_string();
                    result.cancel = Some(CancelledByPolicy { policy, reason, failed: None });
                    break;
                }
                CallOutcome::Answered(Reaction::Amend(proposal, _)) => self.amend(at, proposal),
                CallOutcome::Answered(Reaction::Disconnect(action, _)) => {
                    let on_disconnect = Some(action);
                    let proposal = self.completion.member_states[at].proposal;
                    self.amend(at, PlanProposal { on_disconnect, ..proposal });
                }
                CallOutcome::Closed(status, _) => {
                    let policy = member.name.to_string();
                    let reason = Reason { code: Code::from("policy_failed"), detail: None };
                    result.cancel =
                        Some(CancelledByPolicy { policy, reason, failed: Some(status) });
                    break;
                }
            }
        }
        result.plan_changed = self.plan != before;
        result
    }

    /// The policies that read its text; `None`: there are none. To be asked for once.
    pub fn stream_filters(&self) -> Option<StreamFilters> {
        StreamFilters::of(&self.completion, &self.facts)
    }

    /// Tells every policy how it ended, in the order of the chain.
    pub fn settle(mut self, summary: &Summary) {
        self.completion.complete(summary);
    }

    async fn ask(
        &self,
        at: usize,
        note: &Arc<str>,
        event: Event,
        progress: Progress,
    ) -> (CallOutcome<Reaction>, DecisionRecord) {
        let facts = &self.facts;
        let own = || {
            let (facts, note) = (Arc::clone(facts), Arc::clone(note));
            move |policy: &dyn Policy| {
                policy.event(RequestContext { facts: &facts, note: &note }, &event, &progress)
            }
        };
        let fast =
            |policy: &dyn Policy| policy.event(RequestContext { facts, note }, &event, &progress);
        self.context(at).ask(&self.completion.policy_set[at], fast, own, |_| Ok(())).await
    }

    /// Tells a policy that nothing waits for.
    fn ask_in_background(
        &self,
        at: usize,
        background: &Arc<SerialQueue>,
        event: Event,
        progress: Progress,
    ) {
        let (facts, notes) = (Arc::clone(&self.facts), Arc::clone(background));
        let ask = move |policy: &dyn Policy| {
            let note = notes.note.get().map_or("", |note| note);
            policy.event(RequestContext { facts: &facts, note }, &event, &progress)
        };
        let member = &self.completion.policy_set[at];
        let pending = member.clone();
        self.context(at).ask_in_background(member, background, ask, move |reaction: Reaction| {
            if reaction != Reaction::Keep {
                pending.meters.disagreed(Phase::Events);
            }
        });
    }

    fn context(&self, at: usize) -> CallContext<'_> {
        CallContext {
            shared: &self.completion.shared,
            calls: self.completion.member_states[at].calls.as_ref(),
            large: false,
            id: &self.completion.id,
            phase: Phase::Events,
            gates: false,
            about: Some((self.facts.identity.tenant.as_str(), self.facts.model.as_str())),
        }
    }

    /// This policy's proposal takes the place of its earlier one, and the plan is merged again.
    fn amend(&mut self, at: usize, proposal: PlanProposal) {
        self.completion.member_states[at].proposal = proposal;
        let all = self.completion.member_states.iter().map(|state| state.proposal);
        let merged = all.fold(PlanProposal::default(), PlanProposal::tighten);
        self.plan = merged.clamp(&self.chain.ceilings).under(self.facts.identity.priority);
    }

    fn member_states(&self) -> impl Iterator<Item = (&PolicyMember, &MemberState)> {
        self.completion.policy_set.iter().zip(&self.completion.member_states)
    }

    fn told_of_silence(&self, generated_tokens: u32) -> Option<Duration> {
        let (tokens, reported) = self.silence;
        (tokens == generated_tokens && !reported.is_zero()).then_some(reported)
    }
}

fn stall(state: &MemberState) -> Option<Duration> {
    state.watch.stalled_after.filter(|_| state.watch.events.stalled)
}

/// Whether the policy watches this event. It is told of a silence once, when that is long enough.
fn watches(state: &MemberState, event: &Event, reported: Option<Duration>) -> bool {
    let events = state.watch.events;
    match event {
        Event::Queued(_) => events.queued,
        Event::Dispatched => events.dispatched,
        Event::FirstToken => events.first_token,
        Event::Stalled(pause) => {
            stall(state).is_some_and(|after| after <= *pause && Some(after) > reported)
        }
        Event::TimedOut(_) => events.timed_out,
        Event::Disconnected => events.disconnected,
        Event::Preempted(_) => events.preempted,
    }
}

fn union(a: EventSet, b: EventSet) -> EventSet {
    EventSet {
        queued: a.queued | b.queued,
        dispatched: a.dispatched | b.dispatched,
        first_token: a.first_token | b.first_token,
        stalled: a.stalled | b.stalled,
        timed_out: a.timed_out | b.timed_out,
        disconnected: a.disconnected | b.disconnected,
        preempted: a.preempted | b.preempted,
    }
}

fn shorter(a: Option<Duration>, b: Option<Duration>) -> Option<Duration> {
    [a, b].into_iter().flatten().min()
}

fn stricter(a: Guarding, b: Guarding) -> Guarding {
    use Guarding::{Gate, Observe, Off};
    let smaller = |a: WindowSize, b: WindowSize| WindowSize {
        tokens: a.tokens.min(b.tokens),
        delay_max: a.delay_max.min(b.delay_max),
    };
    match (a, b) {
        (Off, other) | (other, Off) => other,
        (Gate(a), Gate(b)) => Gate(smaller(a, b)),
        (Observe(a), Observe(b)) => Observe(smaller(a, b)),
        (Gate(size), Observe(_)) | (Observe(_), Gate(size)) => Gate(size),
    }
}

#[cfg(test)]
mod tests;
