//! What this crate tells the outside, besides what the chain tells of each call.

use interlock_metrics::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry};

use crate::host_functions::PluginMetrics;

/// How policies fare. Labels: the operator's policy names and closed sets.
#[derive(Clone)]
pub(crate) struct HostMetrics {
    instances: IntGaugeVec,
    recycles: IntCounterVec,
    memory: IntGaugeVec,
    quarantined: IntGaugeVec,
    pub(crate) plugins: PluginMetrics,
}

/// Why an instance was given up.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Recycled {
    /// The instance had its share of calls.
    Age,
    /// The memory of the instance had grown.
    Memory,
    /// A call of the instance failed.
    Failure,
    /// There were enough others.
    Surplus,
}

/// Those of one policy, looked up once.
pub(crate) struct PolicyMeters {
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
            instances: registry.gauges(
                "policy_instances",
                "Instances of a policy: live, and those of them that are busy with a call.",
                &["policy", "state"],
            ),
            recycles: registry.counters(
                "policy_recycles_total",
                "Instances that were given up, by reason: age, memory, failure or surplus.",
                &["policy", "reason"],
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
            plugins,
        }
    }

    pub(crate) fn policy(&self, policy: &str) -> PolicyMeters {
        let recycled = |why| self.recycles.with_label_values(&[policy, why]);
        PolicyMeters {
            live: self.instances.with_label_values(&[policy, "live"]),
            busy: self.instances.with_label_values(&[policy, "busy"]),
            recycles: ["age", "memory", "failure", "surplus"].map(recycled),
            memory: self.memory.with_label_values(&[policy]),
            quarantined: self.quarantined.with_label_values(&[policy]),
        }
    }
}

impl PolicyMeters {
    pub(crate) fn recycled(&self, why: Recycled) {
        self.recycles[why as usize].inc();
    }
}
