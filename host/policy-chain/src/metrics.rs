//! What the chain tells the outside. Registered as `interlock_policy_*`.
//!
//! # Invariants
//!
//! - Labels are the operator's policy names, phases and other closed sets. A reason that the
//!   policy had not declared is counted under `__other__`, so no answer can make a new series.

use std::collections::HashSet;
use std::time::Duration;

use interlock_metrics::{
    Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry,
};

use interlock_policy_api::{Answer, Code, FailureKind, Phase, Policy, PolicyAnswer};

/// Calls into policies, what they decided, how long they took and how they failed.
#[derive(Debug, Clone)]
pub struct PolicyMetrics {
    calls: IntCounterVec,
    seconds: HistogramVec,
    soft_deadlines: IntCounterVec,
    failures: IntCounterVec,
    fallbacks: IntCounterVec,
    reasons: IntCounterVec,
    disagreements: IntCounterVec,
    windows: IntCounterVec,
    generation: IntGaugeVec,
    swaps: IntCounterVec,
    pub(crate) slow_running: IntGaugeVec,
    pub(crate) slow_waiting: IntGaugeVec,
    pub(crate) observing_running: IntGauge,
    pub(crate) records_dropped: IntCounter,
}

/// One policy's part of the families in one phase, looked up once.
#[derive(Debug)]
pub(crate) struct PhaseMeters {
    calls: Vec<(&'static str, IntCounter)>,
    seconds: Histogram,
    soft_deadlines: IntCounter,
    failures: Vec<IntCounter>,
    disagreements: IntCounter,
}

/// One policy's part of the families.
#[derive(Debug)]
pub(crate) struct MemberMeters {
    name: String,
    reasons_known: HashSet<String>,
    phases: [Option<PhaseMeters>; Phase::ALL.len()],
    soft_deadline: Option<Duration>,
    families: PolicyMetrics,
}

impl PolicyMetrics {
    /// 1 µs to 10 ms for those that decide at once, and up to 10 s for those that ask others.
    const SECONDS: &[f64] = &[
        1e-6, 2.5e-6, 5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 0.1,
        1.0, 10.0,
    ];

    /// Declares the families.
    pub fn register(registry: &Registry) -> Self {
        let swaps = registry.counters(
            "policy_swaps_total",
            "Changes of the generation of policies, by their result.",
            &["result"],
        );
        for result in ["swapped", "rolled_back", "restored", "failed"] {
            swaps.with_label_values(&[result]);
        }
        Self {
            calls: registry.counters(
                "policy_calls_total",
                "Policy calls by their result: a decision of the phase, or failed.",
                &["policy", "phase", "decision"],
            ),
            seconds: registry.histograms(
                "policy_call_duration_seconds",
                "Time of one policy call.",
                Self::SECONDS,
                &["policy", "phase"],
            ),
            soft_deadlines: registry.counters(
                "policy_soft_deadlines_missed_total",
                "Policy calls that took longer than the policy's soft deadline.",
                &["policy", "phase"],
            ),
            failures: registry.counters(
                "policy_failures_total",
                "Policy calls that gave no answer, by what went wrong.",
                &["policy", "phase", "kind"],
            ),
            fallbacks: registry.counters(
                "policy_fallbacks_total",
                "What was done in place of an answer that a policy failed to give.",
                &["policy", "phase", "action"],
            ),
            reasons: registry.counters(
                "policy_reasons_total",
                "Decisions by the reason that the policy gave.",
                &["policy", "phase", "code"],
            ),
            disagreements: registry.counters(
                "policy_shadow_disagreements_total",
                "Times that a policy in shadow mode would have changed what was decided.",
                &["policy", "phase"],
            ),
            windows: registry.counters(
                "policy_windows_total",
                "Windows of text by what a policy did with them: passed, held, replaced, or \
                 dropped because it was slower than the stream.",
                &["policy", "result"],
            ),
            generation: registry.gauges(
                "policy_generation",
                "Number of the generation of policies that new requests get.",
                &["policy"],
            ),
            swaps,
            slow_running: registry.gauges(
                "policy_slow_calls_running",
                "Calls of a policy that has threads of its own: those that run, and accounts that wait \
                 for one of these threads.",
                &["policy"],
            ),
            slow_waiting: registry.gauges(
                "policy_slow_calls_waiting",
                "Requests that wait for one of the threads of a policy that has its own.",
                &["policy"],
            ),
            observing_running: registry.gauge(
                "policy_observing_calls_running",
                "Streams whose windows an observing policy judges, or which wait for a thread to do so.",
            ),
            records_dropped: registry.counter(
                "policy_records_dropped_total",
                "Records of requests that were lost because their file took no more, or was too slow.",
            ),
        }
    }

    /// A policy's own meters. They are there before its first call, or a rate would miss that one.
    pub(crate) fn of(&self, policy: &dyn Policy, soft_deadline: Option<Duration>) -> MemberMeters {
        let name = policy.name();
        let phases = Phase::ALL.map(|phase| policy.takes(phase).then(|| self.phase(name, phase)));
        if policy.takes(Phase::StreamGuard) {
            for what in WindowFate::ALL {
                self.windows.with_label_values(&[name, what.as_str()]);
            }
        }
        let reasons_known = policy.reasons().iter().cloned().collect();
        let families = self.clone();
        MemberMeters { name: name.to_owned(), reasons_known, phases, soft_deadline, families }
    }

    fn phase(&self, policy: &str, phase: Phase) -> PhaseMeters {
        let decisions: &[&str] = match phase {
            Phase::Identify => &["known", "unknown", "reject", "failed"],
            Phase::Transform => &["keep", "edit", "reject", "failed"],
            Phase::Route => &["abstain", "scores", "pick", "reject", "failed"],
            Phase::Admit => &["admit", "reject", "failed"],
            Phase::StreamGuard => &["pass", "hold", "replace", "stop", "abort", "failed"],
            Phase::Events => &["keep", "cancel", "amend", "disconnect", "failed"],
            Phase::Account => &["done", "failed"],
        };
        let label = phase.as_str();
        let calls = decisions
            .iter()
            .map(|decision| (*decision, self.calls.with_label_values(&[policy, label, decision])));
        let failures = FailureKind::ALL
            .iter()
            .map(|kind| self.failures.with_label_values(&[policy, label, kind.as_str()]));
        PhaseMeters {
            calls: calls.collect(),
            seconds: self.seconds.with_label_values(&[policy, label]),
            soft_deadlines: self.soft_deadlines.with_label_values(&[policy, label]),
            failures: failures.collect(),
            disagreements: self.disagreements.with_label_values(&[policy, label]),
        }
    }

    /// New requests get this generation of these policies.
    pub(crate) fn serves(&self, policies: &[&str], generation: u64) {
        self.generation.reset();
        for policy in policies {
            let number = i64::try_from(generation).unwrap_or(i64::MAX);
            self.generation.with_label_values(&[policy]).set(number);
        }
    }

    /// An attempt to change the generation: `swapped`, `rolled_back`, `restored` or `failed`.
    pub(crate) fn swap(&self, result: &str) {
        self.swaps.with_label_values(&[result]).inc();
    }
}

impl MemberMeters {
    /// A call was made.
    pub(crate) fn called<T: PolicyAnswer>(
        &self,
        phase: Phase,
        elapsed: Duration,
        answer: &Answer<T>,
    ) {
        let Some(meters) = &self.phases[phase as usize] else { return };
        meters.seconds.observe(elapsed.as_secs_f64());
        if self.soft_deadline.is_some_and(|soft| elapsed > soft) {
            meters.soft_deadlines.inc();
        }
        let decision = match answer {
            Ok(ruling) => ruling.label(),
            Err(failure) => {
                meters.failures[failure.kind as usize].inc();
                "failed"
            }
        };
        if let Some((_, calls)) = meters.calls.iter().find(|(label, _)| *label == decision) {
            calls.inc();
        }
        if let Some(code) = answer.as_ref().ok().and_then(PolicyAnswer::code) {
            self.reason(phase, code);
        }
    }

    fn reason(&self, phase: Phase, code: &Code) {
        let known = self.reasons_known.contains(&*code.0);
        let code = if known { &*code.0 } else { "__other__" };
        self.families.reasons.with_label_values(&[&self.name, phase.as_str(), code]).inc();
    }

    /// This was done because it gave no answer.
    pub(crate) fn fell_back(&self, phase: Phase, action: &str) {
        self.families.fallbacks.with_label_values(&[&self.name, phase.as_str(), action]).inc();
    }

    /// In shadow mode: it would have decided otherwise.
    pub(crate) fn disagreed(&self, phase: Phase) {
        if let Some(meters) = &self.phases[phase as usize] {
            meters.disagreements.inc();
        }
    }

    /// This became of a window.
    pub(crate) fn window(&self, fate: WindowFate) {
        self.families.windows.with_label_values(&[&self.name, fate.as_str()]).inc();
    }
}

/// What became of a window of text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WindowFate {
    Passed,
    Held,
    Replaced,
    Dropped,
}

impl WindowFate {
    const ALL: [Self; 4] = [Self::Passed, Self::Held, Self::Replaced, Self::Dropped];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Held => "held",
            Self::Replaced => "replaced",
            Self::Dropped => "dropped",
        }
    }
}
