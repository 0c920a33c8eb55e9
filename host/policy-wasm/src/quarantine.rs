//! A policy that keeps failing is left alone for a while.
//!
//! A trap costs an instance, a loop costs its deadline, and what the chain does without an answer
//! is the same as without a call. So after a few failures in a row of seconds nobody calls it for
//! a second; then one call tries, and either it is back or the pause doubles.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use interlock_metrics::IntGauge;
use interlock_policy_api::{FailureKind, PolicyFailure};

const WITHIN: Duration = Duration::from_secs(10);
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// Whether a policy may be called.
pub(crate) struct Quarantine {
    policy: String,
    /// Failures within [`WITHIN`] that are too many; 0: none are.
    budget: usize,
    gauge: IntGauge,
    // Does the gauge speak of this one? Of the generations of a policy, which share it, one does.
    shown: AtomicBool,
    // Read before each call; everything else is only looked at when something failed.
    closed: AtomicBool,
    history: Mutex<CrashHistory>,
}

#[derive(Default)]
struct CrashHistory {
    failures: VecDeque<Instant>,
    /// Nobody calls it before then.
    until: Option<Instant>,
    pause: Duration,
    /// When it was last let back in.
    released: Option<Instant>,
    /// A call is trying.
    probing: bool,
    /// How often it was put here.
    times: u64,
}

/// The permission for one call, to be given back with what came of it.
#[must_use]
pub(crate) struct CallPass<'a> {
    quarantine: &'a Quarantine,
    probe: bool,
}

impl Quarantine {
    pub(crate) fn new(policy: &str, budget: u32, gauge: IntGauge) -> Self {
        let (shown, closed) = (AtomicBool::new(false), AtomicBool::new(false));
        let (policy, budget) = (policy.to_owned(), budget as usize);
        Self { policy, budget, gauge, shown, closed, history: Mutex::default() }
    }

    /// Whether the gauge speaks of this one from now on.
    pub(crate) fn show(&self, shown: bool) {
        let history = self.history();
        self.shown.store(shown, Ordering::Relaxed);
        self.tell(history.until.is_some());
    }

    fn tell(&self, quarantined: bool) {
        if self.shown.load(Ordering::Relaxed) {
            self.gauge.set(quarantined.into());
        }
    }

    /// May it be called?
    pub(crate) fn pass(&self) -> Result<CallPass<'_>, PolicyFailure> {
        if !self.closed.load(Ordering::Relaxed) {
            return Ok(CallPass { quarantine: self, probe: false });
        }
        self.pass_at(Instant::now())
    }

    fn pass_at(&self, now: Instant) -> Result<CallPass<'_>, PolicyFailure> {
        let mut history = self.history();
        let Some(until) = history.until else {
            return Ok(CallPass { quarantine: self, probe: false });
        };
        if now < until || history.probing {
            let left = until.saturating_duration_since(now);
            return Err(PolicyFailure {
                kind: FailureKind::Quarantined,
                message: format!("it failed too often; not asked for another {left:.1?}"),
            });
        }
        history.probing = true;
        Ok(CallPass { quarantine: self, probe: true })
    }

    /// How often it was quarantined so far: who replaced it wants to know.
    pub(crate) fn times(&self) -> u64 {
        self.history().times
    }

    fn failed(&self, probe: bool, now: Instant) {
        let mut history = self.history();
        if history.until.is_some() && !probe {
            // A call that had begun before.
            return;
        }
        while history.failures.front().is_some_and(|at| now.duration_since(*at) > WITHIN) {
            history.failures.pop_front();
        }
        history.failures.push_back(now);
        if !probe && (self.budget == 0 || history.failures.len() < self.budget) {
            if self.budget == 0 {
                history.failures.clear();
            }
            return;
        }
        let lately = history.released.is_some_and(|at| now.duration_since(at) < PAUSE_MAX);
        history.pause = if probe || lately {
            (history.pause * 2).clamp(PAUSE_MIN, PAUSE_MAX)
        } else {
            PAUSE_MIN
        };
        history.until = Some(now + history.pause);
        history.probing = false;
        history.failures.clear();
        history.times += 1;
        self.closed.store(true, Ordering::Relaxed);
        self.tell(true);
        tracing::error!(
            policy = self.policy, pause = ?history.pause,
            "policy quarantined: it failed too often and is not asked for a while"
        );
    }

    fn recovered(&self, now: Instant) {
        let mut history = self.history();
        history.until = None;
        history.probing = false;
        history.released = Some(now);
        history.failures.clear();
        self.closed.store(false, Ordering::Relaxed);
        self.tell(false);
        tracing::info!(policy = self.policy, "policy released from quarantine");
    }

    fn history(&self) -> MutexGuard<'_, CrashHistory> {
        // Nothing in here panics half-way.
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CallPass<'_> {
    /// It answered, and the answer made sense.
    pub(crate) fn answered(mut self) {
        if std::mem::take(&mut self.probe) {
            self.quarantine.recovered(Instant::now());
        }
    }

    /// It gave no answer, or none that is one, and it is its own fault: what it costs, an instance
    /// and the host's own decision, is the same in whatever way it failed.
    pub(crate) fn failed(mut self) {
        let probe = std::mem::take(&mut self.probe);
        self.quarantine.failed(probe, Instant::now());
    }
}

impl Drop for CallPass<'_> {
    /// A probe that panicked said nothing: another one may try.
    fn drop(&mut self) {
        if self.probe {
            self.quarantine.history().probing = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use interlock_metrics::Registry;

    use super::*;

    fn quarantine(budget: u32) -> Quarantine {
        let gauges = Registry::new().gauges("q", "Q.", &["policy"]);
        let quarantine = Quarantine::new("p", budget, gauges.with_label_values(&["p"]));
        quarantine.show(true);
        quarantine
    }

    fn after(start: Instant, seconds: f64) -> Instant {
        start + Duration::from_secs_f64(seconds)
    }

    #[test]
    fn five_failures_in_ten_seconds_are_too_many() {
        let (q, start) = (quarantine(5), Instant::now());
        (0..4).for_each(|n| q.failed(false, after(start, f64::from(n))));
        // The first one is too long ago by then.
        q.failed(false, after(start, 10.5));
        assert!(q.pass().is_ok());
        q.failed(false, after(start, 10.6));
        assert!(q.pass_at(after(start, 11.5)).is_err());
        assert_eq!(q.gauge.get(), 1);
    }

    #[test]
    fn one_call_tries_and_then_it_is_back_or_the_pause_doubles() {
        let (q, start) = (quarantine(1), Instant::now());
        q.failed(false, start);
        assert!(q.pass_at(after(start, 0.9)).is_err());
        let mut at = 1.0;
        for pause in [2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0] {
            let probe = q.pass_at(after(start, at)).expect("one may try");
            assert!(q.pass_at(after(start, at)).is_err(), "two tried at once");
            q.failed(true, after(start, at));
            std::mem::forget(probe);
            assert!(q.pass_at(after(start, at + pause - 0.1)).is_err());
            at += pause;
        }
        let mut probe = q.pass_at(after(start, at)).expect("one may try");
        probe.probe = false;
        q.recovered(after(start, at));
        drop(probe);
        assert!(q.pass().is_ok());
        assert_eq!((q.gauge.get(), q.times()), (0, 8));
    }

    #[test]
    fn a_probe_that_came_to_nothing_leaves_its_place() {
        let (q, start) = (quarantine(1), Instant::now());
        q.failed(false, start);
        drop(q.pass_at(after(start, 2.0)).expect("one may try"));
        assert!(q.pass_at(after(start, 2.0)).is_ok());
    }

    #[test]
    fn a_policy_without_a_budget_is_always_asked() {
        let (q, start) = (quarantine(0), Instant::now());
        (0..100).for_each(|_| q.failed(false, start));
        assert!(q.pass().is_ok());
    }

    #[test]
    fn the_gauge_speaks_of_who_is_in_place() {
        let gauge = Registry::new().gauges("q", "Q.", &["policy"]).with_label_values(&["p"]);
        let [old, new] = [(); 2].map(|()| Quarantine::new("p", 1, gauge.clone()));
        old.show(true);
        old.failed(false, Instant::now());
        assert_eq!(gauge.get(), 1);
        // The new one may yet come to nothing.
        drop(Quarantine::new("p", 1, gauge.clone()));
        assert_eq!(gauge.get(), 1);
        old.show(false);
        new.show(true);
        old.failed(true, Instant::now());
        assert_eq!(gauge.get(), 0);
        old.show(true);
        assert_eq!(gauge.get(), 1);
    }
}
