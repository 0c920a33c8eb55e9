//! A policy that reads what the client already has, on a thread beside the stream.
//!
//! # Invariants
//!
//! - The stream never waits for it: a window that does not fit pushes out the oldest, counted.
//! - Windows of one request come to it one after the other, in order, each when a thread is free;
//!   its account and all that comes after wait for the last one ([`SerialQueue`]).

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use interlock_request::{RequestId, Usage};

use super::window_buffer::WindowBuffer;
use super::{GuardEnd, policy_failed};
use crate::ChainShared;
use crate::call::{CallContext, CallOutcome};
use crate::completion::CompletionGuard;
use crate::metrics::WindowFate;
use crate::panics::guarded;
use crate::policy_set::PolicyMember;
use crate::serial_queue::SerialQueue;
use interlock_policy_api::{Facts, Phase, RequestContext, Verdict, Window, WindowSize};

/// Windows that wait for a policy that is slower than the stream. More would only make its word
/// come later.
const WAITING_MAX: usize = 8;

/// A window that owns its text.
#[derive(Debug, Clone)]
pub(super) struct OwnedWindow {
    index: u32,
    text: String,
    held: u32,
    finished: bool,
    usage: Usage,
}

impl OwnedWindow {
    pub(super) fn window(&self) -> Window<'_> {
        let Self { index, text, held, finished, usage } = self;
        Window { index: *index, text, held: *held, finished: *finished, usage: *usage }
    }
}

impl From<Window<'_>> for OwnedWindow {
    fn from(window: Window<'_>) -> Self {
        let Window { index, text, held, finished, usage } = window;
        Self { index, text: text.to_owned(), held, finished, usage }
    }
}

/// A policy that observes the stream, or is in shadow mode.
pub(super) struct Observer {
    pub(super) buffer: WindowBuffer,
    task: Arc<ObserverTask>,
}

/// What a thread needs to show windows to the policy.
struct ObserverTask {
    member: PolicyMember,
    note: Arc<str>,
    facts: Arc<Facts>,
    shared: ChainShared,
    background: Arc<SerialQueue>,
    state: Mutex<ObserverState>,
}

#[derive(Default)]
struct ObserverState {
    waiting: VecDeque<OwnedWindow>,
    end: Option<GuardEnd>,
}

impl Observer {
    pub(super) fn new(
        member: PolicyMember,
        note: Arc<str>,
        facts: Arc<Facts>,
        (completion, at): (&CompletionGuard, usize),
        size: WindowSize,
    ) -> Option<Self> {
        let background = Arc::clone(completion.member_states[at].background.as_ref()?);
        let task = ObserverTask {
            member,
            note,
            facts,
            shared: completion.shared.clone(),
            background,
            state: Mutex::default(),
        };
        Some(Self { buffer: WindowBuffer::new(size), task: Arc::new(task) })
    }

    /// More text that the client got.
    pub(super) fn push(&mut self, text: &str, usage: Usage, now: Instant) {
        self.buffer.accept(text, now);
        if self.buffer.is_due(usage, now) {
            self.show(usage, false);
        }
    }

    /// The last text that the client got.
    pub(super) fn finish(&mut self, text: &str, usage: Usage, now: Instant) {
        self.buffer.accept(text, now);
        self.show(usage, true);
    }

    /// Shows what there is, without waiting.
    fn show(&mut self, usage: Usage, finished: bool) {
        let kept = OwnedWindow::from(self.buffer.window(usage, finished));
        self.buffer.apply(Verdict::Pass, usage, finished);
        let mut state = self.task.lock();
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
        let task = Arc::clone(&self.task);
        if full || !self.task.background.push(move || task.look()) {
            self.task.member.meters.window(WindowFate::Dropped);
            if !full {
                // There is no job for it. If its fellow took it, that one's finds nothing.
                self.task.lock().waiting.pop_back();
            }
        }
    }

    /// How it has ended the answer, if it has.
    pub(super) fn end(&self) -> Option<GuardEnd> {
        self.task.lock().end.clone()
    }
}

impl ObserverTask {
    fn lock(&self) -> MutexGuard<'_, ObserverState> {
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

    fn ask(&self, kept: &OwnedWindow) -> Option<GuardEnd> {
        let id: &RequestId = &self.facts.request_id;
        let context = CallContext {
            shared: &self.shared,
            calls: None,
            large: false,
            id,
            phase: Phase::StreamGuard,
            gates: false,
            about: Some((&self.facts.identity.tenant, self.facts.model.as_str())),
        };
        let note = self.background.note.get().unwrap_or(&self.note);
        let request = RequestContext { facts: &self.facts, note };
        let asked_at = Instant::now();
        let answer = guarded(|| self.member.policy.window(request, &kept.window()));
        let (outcome, _) = context.conclude(&self.member, answer, asked_at.elapsed());
        let policy = || self.member.name.to_string();
        if self.member.shadow {
            // To hold back is to wait, not to change.
            if let CallOutcome::Answered(verdict) = outcome
                && !matches!(verdict, Verdict::Pass | Verdict::Hold(_))
            {
                self.member.meters.disagreed(Phase::StreamGuard);
            }
            return None;
        }
        match outcome {
            CallOutcome::Answered(Verdict::Stop { reason, .. }) => {
                Some(GuardEnd::Stop { policy: policy(), reason })
            }
            CallOutcome::Answered(Verdict::Abort(reason)) => {
                Some(GuardEnd::Abort { policy: policy(), reason, failed: None })
            }
            CallOutcome::Closed(status, _) => Some(policy_failed(policy(), status)),
            CallOutcome::Answered(Verdict::Pass | Verdict::Hold(_) | Verdict::Replace { .. })
            | CallOutcome::Builtin
            | CallOutcome::NoAnswer => {
                self.member.meters.window(WindowFate::Passed);
                None
            }
        }
    }
}
