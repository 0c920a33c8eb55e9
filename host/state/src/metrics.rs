//! What the state tells the outside. Registered as `interlock_policy_state_*`.

use interlock_metrics::{IntCounter, IntCounterVec, Registry};

use crate::space::StateFault;

/// What policies ask of their state and what came of it. Labels: the operator's policy names and
/// closed sets.
#[derive(Debug, Clone)]
pub struct StateMetrics {
    ops: IntCounterVec,
}

/// Something that a policy, or the host on its behalf, asks.
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

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Said {
    /// Done.
    Ok,
    /// Not now: no tokens, no room in the window, no slot, another value than expected.
    Denied,
    /// No such reservation (any more).
    Unknown,
    Quota,
    TooLarge,
    Unavailable,
    Invalid,
}

/// One policy's counters, looked up once.
pub(crate) struct Counts([[IntCounter; Said::ALL.len()]; Op::ALL.len()]);

impl StateMetrics {
    /// Declares the family.
    pub fn register(registry: &Registry) -> Self {
        Self {
            ops: registry.counters(
                "policy_state_ops_total",
                "What policies asked of their state, by what came of it: ok, denied, unknown \
                 (a reservation that is over) or a fault.",
                &["policy", "op", "result"],
            ),
        }
    }

    /// All of a policy's counters: they are there before the first call, or a rate would miss it.
    pub(crate) fn counts(&self, policy: &str) -> Counts {
        Counts(Op::ALL.map(|op| {
            Said::ALL.map(|said| self.ops.with_label_values(&[policy, op.as_str(), said.as_str()]))
        }))
    }
}

impl Counts {
    pub(crate) fn count(&self, op: Op, said: Said) {
        self.0[op as usize][said as usize].inc();
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

impl Said {
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

impl From<&StateFault> for Said {
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
        for (at, said) in Said::ALL.into_iter().enumerate() {
            assert_eq!(said as usize, at, "{said:?}");
        }
    }
}
