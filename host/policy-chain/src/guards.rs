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
//!   `sieve` for the bounds. Those that observe delay and change nothing.
//! - A dropped call loses no text: what was not judged yet is judged in the next one.
//! - When several end the answer, failing it wins over stopping it; the text in front of a stop
//!   still goes past those behind.
//!
//! # Not here
//!
//! No clock and no tokens: the time and the usage come with each call.

mod observer;
mod sieve;

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use interlock_request::Usage;

use crate::chain::{Commons, Member};
use crate::consult::{Heard, Matter};
use crate::duty::Duty;
use crate::lane::Lane;
use crate::metrics::WindowFate;
use interlock_policy_api::{Code, Facts, Guarding, Phase, Policy, Reason, Told, Verdict};
use observer::{Kept, Observer};
use sieve::{Ending, Sieve};

/// The text that may go to the client, and whether it was the last.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Passed {
    /// For the client.
    pub text: String,
    /// A policy ended the answer: nothing comes after `text`.
    pub end: Option<GuardEnd>,
}

/// How a policy ended an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuardEnd {
    /// The answer ends here, with `content_filter`.
    Stop {
        /// Who ended it.
        policy: String,
        /// Why.
        reason: Reason,
    },
    /// The request fails.
    Abort {
        /// Who failed it.
        policy: String,
        /// Why.
        reason: Reason,
        /// The HTTP status that its `on_failure` says, when it gave no decision at all.
        failed: Option<u16>,
    },
}

/// The guards of one request.
pub struct Guards {
    gates: Vec<Gate>,
    observers: Vec<Observer>,
    facts: Arc<Facts>,
    commons: Commons,
    /// What passed all gates and was not taken yet.
    out: String,
    /// Nothing comes after `out` and what is still behind the gate that said so.
    end: Option<GuardEnd>,
    /// Everyone has seen the last window, or need not.
    done: bool,
}

struct Gate {
    /// Where it is asked, when that may take long.
    calls: Option<Arc<Lane>>,
    member: Member,
    note: Arc<str>,
    sieve: Sieve,
    /// It has seen the last window.
    finished: bool,
}

impl fmt::Debug for Guards {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guards")
            .field("gates", &self.gates.len())
            .field("observers", &self.observers.len())
            .finish_non_exhaustive()
    }
}

impl Guards {
    pub(crate) fn of(duty: &Duty, facts: &Arc<Facts>) -> Option<Self> {
        let (mut gates, mut observers) = (Vec::new(), Vec::new());
        for (at, (member, party)) in duty.panel.iter().zip(&duty.parties).enumerate() {
            if !member.policy.takes(Phase::StreamGuard) {
                continue;
            }
            let (member, note) = (member.clone(), Arc::clone(&party.note));
            match party.watch.guarding {
                Guarding::Off => {}
                Guarding::Gate(size) if !member.shadow => {
                    let (calls, sieve) = (party.calls.clone(), Sieve::new(size));
                    gates.push(Gate { calls, member, note, sieve, finished: false });
                }
                Guarding::Gate(size) | Guarding::Observe(size) => {
                    let facts = Arc::clone(facts);
                    observers.extend(Observer::new(member, note, facts, (duty, at), size));
                }
            }
        }
        let nobody = gates.is_empty() && observers.is_empty();
        (!nobody).then(|| Self {
            gates,
            observers,
            facts: Arc::clone(facts),
            commons: duty.commons.clone(),
            out: String::new(),
            end: None,
            done: false,
        })
    }

    /// Does one of them hold text back?
    pub fn gates(&self) -> bool {
        !self.gates.is_empty()
    }

    /// A token's text; what may go to the client now.
    pub async fn push(&mut self, text: &str, usage: Usage, now: Instant) -> Passed {
        match self.gates.first_mut() {
            _ if self.done => {}
            Some(gate) => gate.sieve.accept(text, now),
            None => self.out.push_str(text),
        }
        self.flow(usage, now, false).await
    }

    /// When [`Guards::due`] wants to be called, if no text comes before.
    pub fn due_at(&self) -> Option<Instant> {
        if self.done {
            return None;
        }
        let gates = self.gates.iter().map(|gate| &gate.sieve);
        let observers = self.observers.iter().map(|observer| &observer.sieve);
        gates.chain(observers).filter_map(Sieve::due_at).min()
    }

    /// That moment has come.
    pub async fn due(&mut self, usage: Usage, now: Instant) -> Passed {
        self.flow(usage, now, false).await
    }

    /// No text comes any more: everyone sees the rest, and nothing stays behind.
    pub async fn finish(&mut self, usage: Usage, now: Instant) -> Passed {
        self.flow(usage, now, true).await
    }

    /// Lets text past the gates whose windows are due.
    async fn flow(&mut self, usage: Usage, now: Instant, finishing: bool) -> Passed {
        if !self.done && self.end.is_none() {
            self.listen();
        }
        if self.done {
            return Passed { text: String::new(), end: self.end.clone() };
        }
        // A gate has ended it, and that call was dropped before those behind it had seen the rest.
        let mut finishing = finishing || self.end.is_some();
        for at in 0..self.gates.len() {
            if matches!(self.end, Some(GuardEnd::Abort { .. })) {
                break;
            }
            let gate = &self.gates[at];
            if gate.finished || !(finishing || gate.sieve.is_due(usage, now)) {
                continue;
            }
            let verdict = self.verdict(at, usage, finishing).await;
            let gate = &mut self.gates[at];
            gate.finished = finishing;
            let sifted = match verdict {
                Ok(verdict) => {
                    gate.member.meters.window(fate(&verdict));
                    gate.sieve.apply(verdict, usage, finishing)
                }
                Err(end) => {
                    self.end = Some(end);
                    continue;
                }
            };
            let policy = || self.gates[at].member.name.to_string();
            match sifted.end {
                Some(Ending::Stop(reason)) => {
                    let stop = GuardEnd::Stop { policy: policy(), reason };
                    self.end.get_or_insert(stop);
                    self.gates[at].finished = true;
                    // Those behind see the last of it now.
                    finishing = true;
                    // Nothing comes past this one any more, so those in front are done too.
                    self.gates[..at].iter_mut().for_each(|gate| gate.finished = true);
                }
                Some(Ending::Abort(reason)) => {
                    self.end = Some(GuardEnd::Abort { policy: policy(), reason, failed: None });
                }
                None => {}
            }
            match self.gates.get_mut(at + 1) {
                Some(next) => next.sieve.accept(&sifted.text, now),
                None => self.out.push_str(&sifted.text),
            }
        }
        self.pass(usage, now, finishing)
    }

    /// Hands out what has passed, and shows it to those who observe.
    fn pass(&mut self, usage: Usage, now: Instant, finishing: bool) -> Passed {
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
        Passed { text, end: self.end.clone() }
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
        let Gate { calls, member, note, sieve, .. } = &self.gates[at];
        let facts = &self.facts;
        let matter = Matter {
            commons: &self.commons,
            calls: calls.as_ref(),
            large: false,
            id: &facts.request_id,
            phase: Phase::StreamGuard,
            gates: true,
            about: Some((&facts.identity.tenant, facts.model.as_str())),
        };
        let window = sieve.window(usage, finished);
        let own = || {
            let (facts, note, kept) = (Arc::clone(facts), Arc::clone(note), Kept::from(window));
            move |policy: &dyn Policy| {
                policy.window(Told { facts: &facts, note: &note }, &kept.window())
            }
        };
        let fast = |policy: &dyn Policy| policy.window(Told { facts, note }, &window);
        let (heard, _) = matter.consult(member, fast, own, |_| Ok(())).await;
        match heard {
            Heard::Said(verdict) => Ok(verdict),
            Heard::Builtin | Heard::Silence => Ok(Verdict::Pass),
            Heard::Closed(status, _) => Err(policy_failed(member.name.to_string(), status)),
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
