//! What the chain tells the outside. Registered as `interlock_policy_*`.

use std::time::Duration;

use interlock_metrics::{HistogramVec, IntCounterVec, Registry};

use crate::{Decision, FailureKind, Phase, PolicyFailure};

/// Calls into policies, how long they took and how they failed. Labels: the operator's policy
/// names and closed sets.
#[derive(Debug, Clone)]
pub struct PolicyMetrics {
    calls: IntCounterVec,
    seconds: HistogramVec,
    failures: IntCounterVec,
}

impl PolicyMetrics {
    /// 1 µs to 10 ms: a warm call takes microseconds, a deadline strikes at milliseconds.
    const SECONDS: &[f64] =
        &[1e-6, 2.5e-6, 5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2];

    /// Declares the families.
    pub fn register(registry: &Registry) -> Self {
        Self {
            calls: registry.counters(
                "policy_calls_total",
                "Policy calls by what came of them: admit, reject, done or failed.",
                &["policy", "phase", "decision"],
            ),
            seconds: registry.histograms(
                "policy_duration_seconds",
                "Time of one policy call.",
                Self::SECONDS,
                &["policy", "phase"],
            ),
            failures: registry.counters(
                "policy_failures_total",
                "Policy calls that gave no answer, by what went wrong.",
                &["policy", "phase", "kind"],
            ),
        }
    }

    /// A policy that takes part in these phases: its counters are there before its first call, or
    /// a rate would miss that one.
    pub(crate) fn expects(&self, policy: &str, phase: Phase) {
        let decisions: &[&str] = match phase {
            Phase::Admit => &["admit", "reject", "failed"],
            Phase::Account => &["done", "failed"],
            _ => &["failed"],
        };
        let phase = phase.as_str();
        for decision in decisions {
            self.calls.with_label_values(&[policy, phase, decision]);
        }
        self.seconds.with_label_values(&[policy, phase]);
        for kind in FailureKind::ALL {
            self.failures.with_label_values(&[policy, phase, kind.as_str()]);
        }
    }

    pub(crate) fn admitted(
        &self,
        policy: &str,
        elapsed: Duration,
        answer: &Result<Decision, PolicyFailure>,
    ) {
        let decision = match answer {
            Ok(decision) => decision.as_str(),
            Err(_) => "failed",
        };
        self.called(policy, Phase::Admit, decision, elapsed, answer.as_ref().err());
    }

    pub(crate) fn accounted(
        &self,
        policy: &str,
        elapsed: Duration,
        answer: &Result<(), PolicyFailure>,
    ) {
        let decision = if answer.is_ok() { "done" } else { "failed" };
        self.called(policy, Phase::Account, decision, elapsed, answer.as_ref().err());
    }

    fn called(
        &self,
        policy: &str,
        phase: Phase,
        decision: &str,
        elapsed: Duration,
        failure: Option<&PolicyFailure>,
    ) {
        let phase = phase.as_str();
        self.calls.with_label_values(&[policy, phase, decision]).inc();
        self.seconds.with_label_values(&[policy, phase]).observe(elapsed.as_secs_f64());
        if let Some(failure) = failure {
            self.failures.with_label_values(&[policy, phase, failure.kind.as_str()]).inc();
        }
    }
}
