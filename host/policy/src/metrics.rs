//! What this crate tells the outside, besides what the chain tells of each call.

use interlock_metrics::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry};
use interlock_admission::Phase;

use crate::reach::PluginMetrics;

/// How policies fare. Labels: the operator's policy names and closed sets.
#[derive(Clone)]
pub(crate) struct HostMetrics {
    soft_deadlines: IntCounterVec,
    instances: IntGaugeVec,
    recycles: IntCounterVec,
    memory: IntGaugeVec,
    quarantined: IntGaugeVec,
    pub(crate) generations: IntGaugeVec,
    pub(crate) swaps: IntCounterVec,
    pub(crate) plugins: PluginMetrics,
}

/// Why an instance was given up.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Recycled {
    /// It had its share of calls.
    Age,
    /// Its memory had grown.
    Memory,
    /// It failed.
    Failure,
    /// There were enough others.
    Surplus,
}

/// Those of one policy, looked up once.
pub(crate) struct PolicyMeters {
    soft_deadlines: [IntCounter; Phase::ALL.len()],
    pub(crate) live: IntGauge,
    pub(crate) busy: IntGauge,
    recycles: [IntCounter; 4],
    pub(crate) memory: IntGauge,
    pub(crate) quarantined: IntGauge,
}

impl HostMetrics {
    pub(crate) fn register(registry: &Registry) -> Self {
        let plugins = PluginMetrics::default();
        registry.collect(Box::new(plugins.clone()));
        Self {
            soft_deadlines: registry.counters(
                "policy_soft_deadline_total",
                "Policy calls that took longer than soft_deadline.",
                &["policy", "phase"],
            ),
            instances: registry.gauges(
                "policy_instances",
                "Instances of a policy: live, and those of them that are busy with a call.",
                &["policy", "state"],
            ),
            recycles: registry.counters(
                "policy_recycles_total",
                "Instances that were given up, by why: age, memory, failure or surplus.",
                &["policy", "why"],
            ),
            memory: registry.gauges(
                "policy_memory_bytes",
                "Memory of a policy's live instances.",
                &["policy"],
            ),
            quarantined: registry.gauges(
                "policy_quarantined",
                "1 while a policy is not asked, since it failed too often.",
                &["policy"],
            ),
            generations: registry.gauges(
                "policy_generation",
                "The generation of the chain in which a policy last changed.",
                &["policy"],
            ),
            swaps: registry.counters(
                "policy_swaps_total",
                "Changes of policies while the host runs, by what came of them: swapped, failed, rolled_back or restored.",
                &["result"],
            ),
            plugins,
        }
    }

    pub(crate) fn policy(&self, policy: &str) -> PolicyMeters {
        let recycled = |why| self.recycles.with_label_values(&[policy, why]);
        PolicyMeters {
            soft_deadlines: Phase::ALL.map(|phase| {
                self.soft_deadlines.with_label_values(&[policy, phase.as_str()])
            }),
            live: self.instances.with_label_values(&[policy, "live"]),
            busy: self.instances.with_label_values(&[policy, "busy"]),
            recycles: ["age", "memory", "failure", "surplus"].map(recycled),
            memory: self.memory.with_label_values(&[policy]),
            quarantined: self.quarantined.with_label_values(&[policy]),
        }
    }
}

impl PolicyMeters {
    pub(crate) fn late(&self, phase: Phase) {
        self.soft_deadlines[phase as usize].inc();
    }

    pub(crate) fn recycled(&self, why: Recycled) {
        self.recycles[why as usize].inc();
    }
}
