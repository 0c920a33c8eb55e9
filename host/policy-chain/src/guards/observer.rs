//! A policy that reads what the client already has, on a thread beside the stream.
//!
//! # Invariants
//!
//! - The stream never waits for it: a window that does not fit pushes out the oldest, counted.
//! - Windows of one request come to it one after the other, in order, each when a thread is free;
//!   its account and all that comes after wait for the last one ([`Lane`]).

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use interlock_request::{RequestId, Usage};

use super::sieve::Sieve;
use super::{GuardEnd, policy_failed};
use crate::chain::{Commons, Member};
use crate::consult::{Heard, Matter, guarded};
use crate::duty::Duty;
use crate::lane::Lane;
use crate::metrics::WindowFate;
use interlock_policy_api::{Facts, Phase, Told, Verdict, Window, WindowSize};

/// Windows that wait for a policy that is slower than the stream. More would only make its word
/// come later.
const WAITING_MAX: usize = 8;

/// A window that owns its text.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    index: u32,
    text: String,
    held: u32,
    finished: bool,
    usage: Usage,
}

impl Kept {
    pub(super) fn window(&self) -> Window<'_> {
        let Self { index, text, held, finished, usage } = self;
        Window { index: *index, text, held: *held, finished: *finished, usage: *usage }
    }
}

impl From<Window<'_>> for Kept {
    fn from(window: Window<'_>) -> Self {
        let Window { index, text, held, finished, usage } = window;
        Self { index, text: text.to_owned(), held, finished, usage }
    }
}

/// One that observes, or is in shadow mode.
pub(super) struct Observer {
    pub(super) sieve: Sieve,
    beside: Arc<Beside>,
}

/// What the thread needs.
struct Beside {
    member: Member,
    note: Arc<str>,
    facts: Arc<Facts>,
    commons: Commons,
    lane: Arc<Lane>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Kept>,
    end: Option<GuardEnd>,
}

impl Observer {
    pub(super) fn new(
        member: Member,
        note: Arc<str>,
        facts: Arc<Facts>,
        (duty, at): (&Duty, usize),
        size: WindowSize,
    ) -> Option<Self> {
        let lane = Arc::clone(duty.parties[at].lane.as_ref()?);
        let beside = Beside {
            member,
            note,
            facts,
            commons: duty.commons.clone(),
            lane,
            state: Mutex::default(),
        };
        Some(Self { sieve: Sieve::new(size), beside: Arc::new(beside) })
    }

    /// More text that the client got.
    pub(super) fn push(&mut self, text: &str, usage: Usage, now: Instant) {
        self.sieve.accept(text, now);
        if self.sieve.is_due(usage, now) {
            self.show(usage, false);
        }
    }

    /// The last text that the client got.
    pub(super) fn finish(&mut self, text: &str, usage: Usage, now: Instant) {
        self.sieve.accept(text, now);
        self.show(usage, true);
    }

    /// Shows what there is, without waiting.
    fn show(&mut self, usage: Usage, finished: bool) {
        let kept = Kept::from(self.sieve.window(usage, finished));
        self.sieve.apply(Verdict::Pass, usage, finished);
        let mut state = self.beside.lock();
        if state.end.is_some() {
            // It has said its last word.
            return;
        }
        state.waiting.push_back(kept);
        let full = state.waiting.len() > WAITING_MAX;
        if full {
            // The next job takes the one behind it.
            state.waiting.pop_front();
        }
        drop(state);
        let beside = Arc::clone(&self.beside);
        if full || !self.beside.lane.push(move || beside.look()) {
            self.beside.member.meters.window(WindowFate::Dropped);
            if !full {
                // There is no job for it. If its fellow took it, that one's finds nothing.
                self.beside.lock().waiting.pop_back();
            }
        }
    }

    /// How it has ended the answer, if it has.
    pub(super) fn end(&self) -> Option<GuardEnd> {
        self.beside.lock().end.clone()
    }
}

impl Beside {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Never held while the policy is asked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows it the next window.
    fn look(&self) {
        let Some(kept) = self.lock().waiting.pop_front() else { return };
        if let Some(end) = self.ask(&kept) {
            let mut state = self.lock();
            state.end.get_or_insert(end);
            state.waiting.clear();
        }
    }

    fn ask(&self, kept: &Kept) -> Option<GuardEnd> {
        let id: &RequestId = &self.facts.request_id;
        let matter = Matter {
            commons: &self.commons,
            calls: None,
            large: false,
            id,
            phase: Phase::StreamGuard,
            gates: false,
            about: Some((&self.facts.identity.tenant, self.facts.model.as_str())),
        };
        let note = self.lane.note.get().unwrap_or(&self.note);
        let told = Told { facts: &self.facts, note };
        let asked_at = Instant::now();
        let answer = guarded(|| self.member.policy.window(told, &kept.window()));
        let (heard, _) = matter.weigh(&self.member, answer, asked_at.elapsed());
        let policy = || self.member.name.to_string();
        if self.member.shadow {
            // To hold back is to wait, not to change.
            if let Heard::Said(verdict) = heard
                && !matches!(verdict, Verdict::Pass | Verdict::Hold(_))
            {
                self.member.meters.disagreed(Phase::StreamGuard);
            }
            return None;
        }
        match heard {
            Heard::Said(Verdict::Stop { reason, .. }) => {
                Some(GuardEnd::Stop { policy: policy(), reason })
            }
            Heard::Said(Verdict::Abort(reason)) => {
                Some(GuardEnd::Abort { policy: policy(), reason, failed: None })
            }
            Heard::Closed(status, _) => Some(policy_failed(policy(), status)),
            Heard::Said(Verdict::Pass | Verdict::Hold(_) | Verdict::Replace { .. })
            | Heard::Builtin
            | Heard::Silence => {
                self.member.meters.window(WindowFate::Passed);
                None
            }
        }
    }
}
