//! What the policies have to say about a request that goes on.
//!
//! # Invariants
//!
//! - A policy's amendment takes the place of what it had said itself; what the others said, who
//!   the caller is and the operator's ceilings hold as before.
//! - It is settled exactly once: by hand, or when it is dropped.
//! - A dropped call of [`Oversight::event`] changes nothing that was not answered yet.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::chain::{Member, PolicyChain};
use crate::consult::{Heard, Matter};
use crate::duty::{Duty, Party};
use crate::lane::Lane;
use crate::{Guards, Said};
use interlock_policy_api::{
    Code, Event, EventSet, Facts, Guarding, Phase, Plan, PlanProposal, Policy, Progress, Reaction,
    Reason, Summary, Told, Watch, WindowSize,
};

/// What the policies have to say about an admitted request, and the duty to tell them its end.
pub struct Oversight {
    duty: Duty,
    facts: Arc<Facts>,
    chain: Arc<PolicyChain>,
    admitted_at: Instant,
    plan: Plan,
    /// In the present silence (told by how many tokens there were): how long a pause was reported.
    silence: (u32, Duration),
}

impl fmt::Debug for Oversight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Oversight")
            .field("facts", &self.facts)
            .field("plan", &self.plan)
            .finish_non_exhaustive()
    }
}

/// What came of an event.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Reacted {
    /// [`Oversight::plan`] is another one now.
    pub plan_changed: bool,
    /// A policy wants the request to end.
    pub cancel: Option<Cancelled>,
    /// What was said.
    pub said: Vec<Said>,
}

/// A policy ended a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cancelled {
    /// Which.
    pub policy: String,
    /// Why.
    pub reason: Reason,
    /// The HTTP status that its `on_failure` says, when it gave no decision at all.
    pub failed: Option<u16>,
}

impl Oversight {
    pub(crate) fn new(duty: Duty, facts: Arc<Facts>, chain: Arc<PolicyChain>, plan: Plan) -> Self {
        let admitted_at = duty.admitted_at.unwrap_or_else(crate::clock::now);
        Self { duty, facts, chain, admitted_at, plan, silence: (0, Duration::ZERO) }
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
        for (member, party) in self.parties() {
            if member.policy.takes(Phase::Events) {
                merged.events = union(merged.events, party.watch.events);
                merged.stalled_after = shorter(merged.stalled_after, stall(party));
            }
            if member.policy.takes(Phase::StreamGuard) {
                let guarding = match party.watch.guarding {
                    Guarding::Gate(size) if member.shadow => Guarding::Observe(size),
                    guarding => guarding,
                };
                merged.guarding = stricter(merged.guarding, guarding);
            }
        }
        merged
    }

    /// How long a silence must last for the next policy to hear of it, when there are so many
    /// tokens. `None`: nobody is left to tell.
    pub fn stalled_after(&self, generated_tokens: u32) -> Option<Duration> {
        let told = self.told_of_silence(generated_tokens);
        self.parties()
            .filter(|(member, _)| member.policy.takes(Phase::Events))
            .filter_map(|(_, party)| stall(party))
            .filter(|after| Some(*after) > told)
            .min()
    }

    /// Tells those who watch for it, in the order of the chain. The first to cancel ends the
    /// matter.
    pub async fn event(&mut self, event: Event, progress: Progress) -> Reacted {
        let mut reacted = Reacted::default();
        let before = self.plan;
        let told = self.told_of_silence(progress.usage.generated_tokens);
        if let Event::Stalled(pause) = event {
            self.silence = (progress.usage.generated_tokens, pause);
        }
        for at in 0..self.duty.parties.len() {
            let member = self.duty.panel[at].clone();
            let party = &self.duty.parties[at];
            if !member.policy.takes(Phase::Events) || !watches(party, &event, told) {
                continue;
            }
            let note = Arc::clone(&party.note);
            if let (Some(lane), true) = (&party.lane, member.looks_on()) {
                self.look_on(at, lane, event, progress);
                continue;
            }
            let (heard, said) = self.ask(at, &note, event, progress).await;
            reacted.said.push(said);
            if member.shadow {
                if let Heard::Said(reaction) = heard
                    && reaction != Reaction::Keep
                {
                    member.meters.disagreed(Phase::Events);
                }
                continue;
            }
            match heard {
                Heard::Said(Reaction::Keep) | Heard::Builtin | Heard::Silence => {}
                Heard::Said(Reaction::Cancel(reason)) => {
                    let policy = member.name.to_string();
                    reacted.cancel = Some(Cancelled { policy, reason, failed: None });
                    break;
                }
                Heard::Said(Reaction::Amend(proposal, _)) => self.amend(at, proposal),
                Heard::Said(Reaction::Disconnect(action, _)) => {
                    let on_disconnect = Some(action);
                    let proposal = self.duty.parties[at].proposal;
                    self.amend(at, PlanProposal { on_disconnect, ..proposal });
                }
                Heard::Closed(status, _) => {
                    let policy = member.name.to_string();
                    let reason = Reason { code: Code::from("policy_failed"), detail: None };
                    reacted.cancel = Some(Cancelled { policy, reason, failed: Some(status) });
                    break;
                }
            }
        }
        reacted.plan_changed = self.plan != before;
        reacted
    }

    /// The policies that read its text; `None`: there are none. To be asked for once.
    pub fn guards(&self) -> Option<Guards> {
        Guards::of(&self.duty, &self.facts)
    }

    /// Tells every policy how it ended, in the order of the chain.
    pub fn settle(mut self, summary: &Summary) {
        self.duty.fulfil(summary);
    }

    async fn ask(
        &self,
        at: usize,
        note: &Arc<str>,
        event: Event,
        progress: Progress,
    ) -> (Heard<Reaction>, Said) {
        let facts = &self.facts;
        let own = || {
            let (facts, note) = (Arc::clone(facts), Arc::clone(note));
            move |policy: &dyn Policy| {
                policy.event(Told { facts: &facts, note: &note }, &event, &progress)
            }
        };
        let fast = |policy: &dyn Policy| policy.event(Told { facts, note }, &event, &progress);
        self.matter(at).consult(&self.duty.panel[at], fast, own, |_| Ok(())).await
    }

    /// Tells one that only looks on.
    fn look_on(&self, at: usize, lane: &Arc<Lane>, event: Event, progress: Progress) {
        let (facts, notes) = (Arc::clone(&self.facts), Arc::clone(lane));
        let ask = move |policy: &dyn Policy| {
            let note = notes.note.get().map_or("", |note| note);
            policy.event(Told { facts: &facts, note }, &event, &progress)
        };
        let member = &self.duty.panel[at];
        let looking = member.clone();
        self.matter(at).look_on(member, lane, ask, move |reaction: Reaction| {
            if reaction != Reaction::Keep {
                looking.meters.disagreed(Phase::Events);
            }
        });
    }

    fn matter(&self, at: usize) -> Matter<'_> {
        Matter {
            commons: &self.duty.commons,
            calls: self.duty.parties[at].calls.as_ref(),
            large: false,
            id: &self.duty.id,
            phase: Phase::Events,
            gates: false,
            about: Some((self.facts.identity.tenant.as_str(), self.facts.model.as_str())),
        }
    }

    /// This party's words take the place of its earlier ones; everyone's make the plan again.
    fn amend(&mut self, at: usize, proposal: PlanProposal) {
        self.duty.parties[at].proposal = proposal;
        let all = self.duty.parties.iter().map(|party| party.proposal);
        let merged = all.fold(PlanProposal::default(), PlanProposal::tighten);
        self.plan = merged.clamp(&self.chain.ceilings).under(self.facts.identity.priority);
    }

    fn parties(&self) -> impl Iterator<Item = (&Member, &Party)> {
        self.duty.panel.iter().zip(&self.duty.parties)
    }

    fn told_of_silence(&self, generated_tokens: u32) -> Option<Duration> {
        let (tokens, told) = self.silence;
        (tokens == generated_tokens && !told.is_zero()).then_some(told)
    }
}

fn stall(party: &Party) -> Option<Duration> {
    party.watch.stalled_after.filter(|_| party.watch.events.stalled)
}

/// Does it want to hear of this? Of a silence, it wants to hear once, when it is long enough.
fn watches(party: &Party, event: &Event, told: Option<Duration>) -> bool {
    let events = party.watch.events;
    match event {
        Event::Queued(_) => events.queued,
        Event::Dispatched => events.dispatched,
        Event::FirstToken => events.first_token,
        Event::Stalled(pause) => {
            stall(party).is_some_and(|after| after <= *pause && Some(after) > told)
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
