//! What follows a forward pass that failed: who ends, who tries again, and how large the next pass may be.

use interlock_request::{Fault, FaultKind, Outcome};
use interlock_scheduler::{PassBounds, PlannedRow};

use super::{Engine, pass_size};
use crate::limits::{PassSize, Reduction};
use crate::stages::{RunningRequest, WaitingRequest};
use crate::{Caches, EngineExit, EngineState, Forward, PassFailed, PassFault};

/// How the rows of a pass that failed are tried again.
struct RetryRule {
    /// The row that is not tried again.
    culprit: Option<usize>,
    /// Whether each row is tried alone.
    isolate: bool,
    /// Whether the rows keep their retries: it is known whose fault it was, or a larger pass was tried.
    free: bool,
}

impl<F: Forward> Engine<F> {
    /// Ends the requests that cannot be tried again, and lets the others try again: in the next pass if
    /// it is known whose fault it was; in a smaller pass if it was too large; or else each alone, so
    /// that the next failure is that row's own.
    pub(super) fn pass_failed(&mut self, table: &[PlannedRow], failed: &PassFailed) {
        self.metrics.pass_failed(failed.kind);
        if failed.caches == Caches::Gone {
            return self.close(failed);
        }
        let log = self.failures.failed();
        let alone = table.len() == 1;
        let (culprit, mut free) = match failed.kind {
            PassFault::TooLarge => match self.shrink(table, failed) {
                Reduction::Halved => (None, false),
                Reduction::TrialUndone => (None, true),
                Reduction::AtMinimum => (Some(0), false),
            },
            PassFault::Row(row) if row < table.len() => (Some(row), true),
            // A row that the pass did not have is at no fault. A row that was alone is, whatever was
            // reported.
            PassFault::Row(_) | PassFault::Broken => (alone.then_some(0), false),
        };
        let isolate = culprit.is_none() && failed.kind != PassFault::TooLarge;
        if isolate && table.iter().any(|row| self.running[row.index].was_cleared()) {
            // The rows run well alone and fail together: the pass is too large.
            free = self.shrink(table, failed) == Reduction::TrialUndone;
        }
        let rule = RetryRule { culprit, isolate, free };
        let retried = self.try_again(table, failed, &rule);
        if culprit.is_some() {
            self.running.iter_mut().for_each(RunningRequest::restore_retries);
            self.waiting.iter_mut().for_each(WaitingRequest::restore_retries);
        }
        if log && retried > 0 && failed.kind != PassFault::TooLarge {
            let failures = self.failures.count();
            let kind = failed.kind.as_str();
            tracing::error!(error = %failed, kind, requests = retried, failures,
                "pass failed; its other requests are tried again");
        }
        if failed.caches == Caches::Emptied {
            if log {
                let requests = self.running.len();
                tracing::warn!(requests, "the cache is lost; its contents are computed again");
            }
            self.lose_caches();
        }
    }

    /// Makes the next pass smaller, if it can be.
    fn shrink(&mut self, table: &[PlannedRow], failed: &PassFailed) -> Reduction {
        let size = pass_size(table);
        let reduction = self.limits.too_large(size);
        let PassBounds { rows, tokens } = self.limits.bounds();
        self.bounds_gauges.set(self.limits.bounds());
        let PassSize { rows: had_rows, tokens: had_tokens } = size;
        match reduction {
            Reduction::Halved => {
                tracing::warn!(error = %failed, had_rows, had_tokens, rows, tokens,
                "a pass was too large for the device; the next passes have at most `rows` and `tokens`");
            }
            Reduction::TrialUndone => {
                tracing::info!(error = %failed, had_rows, had_tokens, rows, tokens,
                "a larger pass was tried, and is too large for the device");
            }
            Reduction::AtMinimum => {}
        }
        reduction
    }

    /// Keeps the rows of a pass that failed for another try, and ends the culprit and those that have
    /// no retry left. Returns how many are tried again.
    fn try_again(&mut self, table: &[PlannedRow], failed: &PassFailed, rule: &RetryRule) -> usize {
        let mut rows = table.iter().enumerate().peekable();
        let mut retried = 0;
        let metrics = &self.metrics;
        let again = |(index, mut running): (usize, RunningRequest<_>)| {
            let Some((row, _)) = rows.next_if(|(_, row)| row.index == index) else {
                return Some(running);
            };
            let ends = if rule.culprit == Some(row) {
                Some(failure_reason(failed))
            } else if rule.free {
                None
            } else {
                running.try_again().err().map(|times| {
                    format!("tried again {times} times, and its pass failed again: {failed}")
                })
            };
            let Some(why) = ends else {
                retried += 1;
                if rule.isolate {
                    running.isolate();
                }
                return Some(running);
            };
            if running.cancelled().is_none() {
                tracing::error!(request = %running.id(), error = why, "pass failed");
            }
            running.end(Outcome::Failed(failed.fault(why)), metrics);
            None
        };
        self.running =
            std::mem::take(&mut self.running).into_iter().enumerate().filter_map(again).collect();
        self.metrics.retried(retried);
        retried
    }

    /// Preempts all, since the pages hold nothing any more.
    pub(super) fn lose_caches(&mut self) {
        self.preempt((0..self.running.len()).collect());
        self.pages.clear_contents();
    }

    /// Ends all requests and closes the inbox, since no pass can succeed any more.
    pub(super) fn close(&mut self, failed: &PassFailed) {
        self.closed = true;
        // Published before any request ends: a client that retries at once is refused by this name.
        self.state.send_replace(EngineState::Exited(EngineExit::DeviceFailed(failed.why.clone())));
        self.inbox.close();
        self.accept();
        let (running, waiting) = (self.running.len(), self.waiting.len());
        tracing::error!(error = %failed, running, waiting,
            "the device has failed: its caches are lost and cannot be made anew; all requests end");
        let ended = || {
            let why = format!("the device has failed: {failed}");
            Outcome::Failed(Fault { kind: FaultKind::DeviceFailed, why })
        };
        for running in std::mem::take(&mut self.running) {
            running.end(ended(), &self.metrics);
        }
        for waiting in std::mem::take(&mut self.waiting) {
            waiting.end(ended(), &self.metrics);
        }
        self.pages.clear_contents();
    }
}

/// Why the request at fault for a failed pass ends.
fn failure_reason(failed: &PassFailed) -> String {
    match failed.kind {
        PassFault::TooLarge => {
            format!("one token of it alone was too much for the device's memory: {failed}")
        }
        PassFault::Row(_) | PassFault::Broken => failed.to_string(),
    }
}
