//! The policies that read what the model says, in a row.
//!
//! Text goes in as it is made; what may go to the client comes out. Those that gate stand one
//! behind the other in the order of the chain: each sees what the one before it let through. Those
//! that observe see what goes to the client, beside the stream.
//!
//! # Invariants
//!
//! - Without a verdict that changes something, the text that comes out is the text that went in.
//! - Those that gate hold back less than a window each, and what their verdicts hold back: see
//!   `window_buffer` for the bounds. Those that observe delay and change nothing.
//! - A dropped call loses no text: what was not judged yet is judged in the next one.
//! - When several end the answer, failing it wins over stopping it; the text in front of a stop
//!   still goes past those behind.
//!
//! # Not here
//!
//! No clock and no tokens: the time and the usage come with each call.

mod observer;
mod window_buffer;

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use interlock_request::Usage;

use crate::ChainShared;
use crate::call::{CallContext, CallOutcome};
use crate::completion::CompletionGuard;
use crate::metrics::WindowFate;
use crate::policy_set::PolicyMember;
use crate::serial_queue::SerialQueue;
use interlock_policy_api::{Code, Facts, Guarding, Phase, Policy, Reason, RequestContext, Verdict};
use observer::{Observer, OwnedWindow};
use window_buffer::{BufferEnd, WindowBuffer};

/// The text that may go to the client, and whether it was the last.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FilteredText {
    /// The text that may go to the client.
    pub text: String,
    /// A policy ended the answer: nothing comes after `text`.
    pub end: Option<GuardEnd>,
}

/// How a policy ended an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuardEnd {
    /// The answer ends here, with `content_filter`.
    Stop {
        /// The name of the policy.
        policy: String,
        /// The reason that the policy gave.
        reason: Reason,
    },
    /// The request fails.
    Abort {
        /// The name of the policy.
        policy: String,
        /// The reason that the policy gave.
        reason: Reason,
        /// The HTTP status that its `on_failure` says, when it gave no decision at all.
        failed: Option<u16>,
    },
}

/// The policies that read the text of one request.
pub struct StreamFilters {
    gates: Vec<GatingPolicy>,
    observers: Vec<Observer>,
    facts: Arc<Facts>,
    shared: ChainShared,
    /// The text that passed all gating policies and was not taken yet.
    out: String,
    /// Nothing comes after `out` and what is still behind the gate that said so.
    end: Option<GuardEnd>,
    /// Every policy has seen the last window, or need not.
    done: bool,
}

struct GatingPolicy {
    /// Where it is asked, when that may take long.
    calls: Option<Arc<SerialQueue>>,
    member: PolicyMember,
    note: Arc<str>,
    buffer: WindowBuffer,
    /// It has seen the last window.
    finished: bool,
}

impl fmt::Debug for StreamFilters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamFilters")
            .field("gates", &self.gates.len())
            .field("observers", &self.observers.len())
            .finish_non_exhaustive()
    }
}

impl StreamFilters {
    pub(crate) fn of(completion: &CompletionGuard, facts: &Arc<Facts>) -> Option<Self> {
        let (mut gates, mut observers) = (Vec::new(), Vec::new());
        for (at, (member, state)) in
            completion.policy_set.iter().zip(&completion.member_states).enumerate()
        {
            if !member.policy.takes(Phase::StreamGuard) {
                continue;
            }
            let (member, note) = (member.clone(), Arc::clone(&state.note));
            match state.watch.guarding {
                Guarding::Off => {}
                Guarding::Gate(size) if !member.shadow => {
                    let (calls, buffer) = (state.calls.clone(), WindowBuffer::new(size));
                    gates.push(GatingPolicy { calls, member, note, buffer, finished: false });
                }
                Guarding::Gate(size) | Guarding::Observe(size) => {
                    let facts = Arc::clone(facts);
                    observers.extend(Observer::new(member, note, facts, (completion, at), size));
                }
            }
        }
        let nobody = gates.is_empty() && observers.is_empty();
        (!nobody).then(|| Self {
            gates,
            observers,
            facts: Arc::clone(facts),
            shared: completion.shared.clone(),
            out: String::new(),
            end: None,
            done: false,
        })
    }

    /// Whether one of them holds text back.
    pub fn gates(&self) -> bool {
        !self.gates.is_empty()
    }

    /// A token's text; what may go to the client now.
    pub async fn push(&mut self, text: &str, usage: Usage, now: Instant) -> FilteredText {
        match self.gates.first_mut() {
            _ if self.done => {}
            Some(gate) => gate.buffer.accept(text, now),
            None => self.out.push_str(text),
        }
        self.flow(usage, now, false).await
    }

    /// When [`StreamFilters::due`] wants to be called, if no text comes before.
    pub fn due_at(&self) -> Option<Instant> {
        if self.done {
            return None;
        }
        let gates = self.gates.iter().map(|gate| &gate.buffer);
        let observers = self.observers.iter().map(|observer| &observer.buffer);
        gates.chain(observers).filter_map(WindowBuffer::due_at).min()
    }

    /// Shows the windows that are due at that moment.
    pub async fn due(&mut self, usage: Usage, now: Instant) -> FilteredText {
        self.flow(usage, now, false).await
    }

    /// No text comes any more: everyone sees the rest, and nothing stays behind.
    pub async fn finish(&mut self, usage: Usage, now: Instant) -> FilteredText {
        self.flow(usage, now, true).await
    }

    /// Lets text past the gates whose windows are due.
    async fn flow(&mut self, usage: Usage, now: Instant, finishing: bool) -> FilteredText {
        if !self.done && self.end.is_none() {
            self.listen();
        }
        if self.done {
            return FilteredText { text: String::new(), end: self.end.clone() };
        }
        // A gate has ended it, and that call was dropped before those behind it had seen the rest.
        let mut finishing = finishing || self.end.is_some();
        for at in 0..self.gates.len() {
            if matches!(self.end, Some(GuardEnd::Abort { .. })) {
                break;
            }
            let gate = &self.gates[at];
            if gate.finished || !(finishing || gate.buffer.is_due(usage, now)) {
                continue;
            }
            let verdict = self.verdict(at, usage, finishing).await;
            let gate = &mut self.gates[at];
            gate.finished = finishing;
            let released = match verdict {
                Ok(verdict) => {
                    gate.member.meters.window(fate(&verdict));
                    gate.buffer.apply(verdict, usage, finishing)
                }
                Err(end) => {
                    self.end = Some(end);
                    continue;
                }
            };
            let policy = || self.gates[at].member.name.to_string();
            match released.end {
                Some(BufferEnd::Stop(reason)) => {
                    let stop = GuardEnd::Stop { policy: policy(), reason };
                    self.end.get_or_insert(stop);
                    self.gates[at].finished = true;
                    // Those behind see the last of it now.
                    finishing = true;
                    // Nothing comes past this one any more, so those in front are done too.
                    self.gates[..at].iter_mut().for_each(|gate| gate.finished = true);
                }
                Some(BufferEnd::Abort(reason)) => {
                    self.end = Some(GuardEnd::Abort { policy: policy(), reason, failed: None });
                }
                None => {}
            }
            match self.gates.get_mut(at + 1) {
                Some(next) => next.buffer.accept(&released.text, now),
                None => self.out.push_str(&released.text),
            }
        }
        self.pass(usage, now, finishing)
    }

    /// Hands out what has passed, and shows it to those who observe.
    fn pass(&mut self, usage: Usage, now: Instant, finishing: bool) -> FilteredText {
        self.done = finishing || self.end.is_some();
        let text = std::mem::take(&mut self.out);
        for observer in &mut self.observers {
            if self.done {
                observer.finish(&text, usage, now);
            } else {
                observer.push(&text, usage, now);
            }
        }
        if !self.done {
            self.listen();
        }
        FilteredText { text, end: self.end.clone() }
    }

    /// Has one of those who observe ended it meanwhile? What was not passed yet then never is.
    fn listen(&mut self) {
        for end in self.observers.iter().filter_map(Observer::end) {
            self.done = true;
            match (&self.end, &end) {
                (None, _) | (Some(GuardEnd::Stop { .. }), GuardEnd::Abort { .. }) => {
                    self.end = Some(end);
                }
                (Some(_), _) => {}
            }
        }
    }

    /// What a gate says of its window; an end when it gave no verdict and is closed.
    async fn verdict(&self, at: usize, usage: Usage, finished: bool) -> Result<Verdict, GuardEnd> {
        let GatingPolicy { calls, member, note, buffer, .. } = &self.gates[at];
        let facts = &self.facts;
        let context = CallContext {
            shared: &self.shared,
            calls: calls.as_ref(),
            large: false,
            id: &facts.request_id,
            phase: Phase::StreamGuard,
            gates: true,
            about: Some((&facts.identity.tenant, facts.model.as_str())),
        };
        let window = buffer.window(usage, finished);
        let own = || {
            let (facts, note, kept) =
                (Arc::clone(facts), Arc::clone(note), OwnedWindow::from(window));
            move |policy: &dyn Policy| {
                policy.window(RequestContext { facts: &facts, note: &note }, &kept.window())
            }
        };
        let fast = |policy: &dyn Policy| policy.window(RequestContext { facts, note }, &window);
        let (outcome, _) = context.ask(member, fast, own, |_| Ok(())).await;
        match outcome {
            CallOutcome::Answered(verdict) => Ok(verdict),
            CallOutcome::Builtin | CallOutcome::NoAnswer => Ok(Verdict::Pass),
            CallOutcome::Closed(status, _) => Err(policy_failed(member.name.to_string(), status)),
        }
    }
}

fn policy_failed(policy: String, status: u16) -> GuardEnd {
    let reason = Reason { code: Code::from("policy_failed"), detail: None };
    GuardEnd::Abort { policy, reason, failed: Some(status) }
}

fn fate(verdict: &Verdict) -> WindowFate {
    match verdict {
        Verdict::Pass => WindowFate::Passed,
        Verdict::Hold(_) => WindowFate::Held,
        Verdict::Replace { .. } | Verdict::Stop { .. } | Verdict::Abort(_) => WindowFate::Replaced,
    }
}

#[cfg(test)]
mod tests;
