//! What the state tells the outside. Registered as `interlock_policy_state_*`.

use interlock_metrics::{IntCounter, IntCounterVec, IntGauge, Registry};

use crate::store::StateFault;

/// What policies ask of their state and what came of it. Labels: the operator's policy names and
/// closed sets.
#[derive(Debug, Clone)]
pub struct StateMetrics {
    ops: IntCounterVec,
    failures: IntCounterVec,
    /// Does the store answer?
    pub(crate) available: IntGauge,
    /// Slots and reservations that ended before their requests.
    pub(crate) leases_lost: IntCounter,
}

/// Why a store did not do what it was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StateFailureKind {
    /// There is no connection.
    Unreachable,
    /// The server did not answer within `state.timeout`.
    Late,
    /// Every connection was in use.
    Crowded,
    /// The server has no memory left (OOM).
    Memory,
    /// The server is a replica (READONLY).
    ReadOnly,
    /// The server cannot save, and takes no writes until it can (MISCONF).
    Persistence,
    /// The login is missing, wrong, or may not do this.
    Auth,
    /// The server has just started and reads its data.
    Loading,
    /// The server is part of a cluster that is not whole, or another part has the key.
    Cluster,
    /// The server lacks its replicas or its master.
    Replication,
    /// Somebody's script runs for too long.
    Busy,
    /// The server refused for another reason.
    Refused,
}

/// An operation that a policy, or the host on its behalf, asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    Take,
    Peek,
    Reserve,
    Extend,
    Settle,
    Abandon,
    Enter,
    Leave,
    Get,
    Set,
    Delete,
    CompareAndSet,
    Increment,
}

/// The result of an operation, as a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OpResult {
    /// The operation was done.
    Ok,
    /// Denied now: no tokens, no room in the window, no slot, or another value than expected.
    Denied,
    /// No such reservation (any more).
    Unknown,
    Quota,
    TooLarge,
    Unavailable,
    Invalid,
}

/// One policy's counters, looked up once.
pub(crate) struct Counts([[IntCounter; OpResult::ALL.len()]; Op::ALL.len()]);

impl StateMetrics {
    /// Declares the metrics.
    pub fn register(registry: &Registry) -> Self {
        Self {
            ops: registry.counters(
                "policy_state_ops_total",
                "What policies asked of their state, by what came of it: ok, denied, unknown \
                 (a reservation that is over) or a fault.",
                &["policy", "op", "result"],
            ),
            failures: registry.counters(
                "policy_state_failures_total",
                "Calls that the store of policies' state did not carry out, by why: unreachable, \
                 late, crowded (every connection in use), or what Redis said: memory (OOM), \
                 read_only, persistence (MISCONF), auth, loading, cluster, replication, busy, \
                 refused (anything else).",
                &["kind"],
            ),
            available: registry.gauge(
                "policy_state_available",
                "1 while the store of policies' state answers, 0 while it does not.",
            ),
            leases_lost: registry.counter(
                "policy_state_leases_lost_total",
                "Slots and reservations of running requests that ended since they were not renewed \
                 within state.lease.",
            ),
        }
    }

    /// One for each kind of failure, in its order.
    pub(crate) fn failures(&self) -> [IntCounter; StateFailureKind::ALL.len()] {
        StateFailureKind::ALL.map(|kind| self.failures.with_label_values(&[kind.as_str()]))
    }

    /// All of a policy's counters: they are there before the first call, or a rate would miss it.
    pub(crate) fn counts(&self, policy: &str) -> Counts {
        Counts(Op::ALL.map(|op| {
            OpResult::ALL
                .map(|said| self.ops.with_label_values(&[policy, op.as_str(), said.as_str()]))
        }))
    }
}

impl Counts {
    pub(crate) fn count(&self, op: Op, said: OpResult) {
        self.0[op as usize][said as usize].inc();
    }
}

impl StateFailureKind {
    /// In the order of the declaration.
    pub(crate) const ALL: [Self; 12] = [
        Self::Unreachable,
        Self::Late,
        Self::Crowded,
        Self::Memory,
        Self::ReadOnly,
        Self::Persistence,
        Self::Auth,
        Self::Loading,
        Self::Cluster,
        Self::Replication,
        Self::Busy,
        Self::Refused,
    ];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Late => "late",
            Self::Crowded => "crowded",
            Self::Memory => "memory",
            Self::ReadOnly => "read_only",
            Self::Persistence => "persistence",
            Self::Auth => "auth",
            Self::Loading => "loading",
            Self::Cluster => "cluster",
            Self::Replication => "replication",
            Self::Busy => "busy",
            Self::Refused => "refused",
        }
    }
}

impl Op {
    /// In the order of the declaration, which is that of [`Counts`].
    const ALL: [Self; 13] = [
        Self::Take,
        Self::Peek,
        Self::Reserve,
        Self::Extend,
        Self::Settle,
        Self::Abandon,
        Self::Enter,
        Self::Leave,
        Self::Get,
        Self::Set,
        Self::Delete,
        Self::CompareAndSet,
        Self::Increment,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Take => "take",
            Self::Peek => "peek",
            Self::Reserve => "reserve",
            Self::Extend => "extend",
            Self::Settle => "settle",
            Self::Abandon => "abandon",
            Self::Enter => "enter",
            Self::Leave => "leave",
            Self::Get => "get",
            Self::Set => "set",
            Self::Delete => "delete",
            Self::CompareAndSet => "compare_and_set",
            Self::Increment => "increment",
        }
    }
}

impl OpResult {
    /// In the order of the declaration, which is that of [`Counts`].
    const ALL: [Self; 7] = [
        Self::Ok,
        Self::Denied,
        Self::Unknown,
        Self::Quota,
        Self::TooLarge,
        Self::Unavailable,
        Self::Invalid,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Denied => "denied",
            Self::Unknown => "unknown",
            Self::Quota => "quota",
            Self::TooLarge => "too_large",
            Self::Unavailable => "unavailable",
            Self::Invalid => "invalid",
        }
    }
}

impl From<&StateFault> for OpResult {
    fn from(fault: &StateFault) -> Self {
        match fault {
            StateFault::Quota => Self::Quota,
            StateFault::TooLarge => Self::TooLarge,
            StateFault::Unavailable(_) => Self::Unavailable,
            StateFault::Invalid(_) => Self::Invalid,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_lie_where_they_are_looked_for() {
        for (at, op) in Op::ALL.into_iter().enumerate() {
            assert_eq!(op as usize, at, "{op:?}");
        }
        for (at, said) in OpResult::ALL.into_iter().enumerate() {
            assert_eq!(said as usize, at, "{said:?}");
        }
        for (at, kind) in StateFailureKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, at, "{kind:?}");
        }
    }
}
