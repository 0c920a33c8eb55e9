//! What the host will enforce for a request, and how several policies' wishes become one.

use std::time::Duration;

use interlock_request::{Deadlines, DisconnectAction, DrainLimits, Priority};

/// What one policy asks for. `None` leaves it to the others.
#[derive(Debug, Clone, Copy, PartialEq, Default, serde::Deserialize, serde::Serialize)]
pub struct PlanProposal {
    /// How urgent the request is.
    pub priority: Option<Priority>,
    /// How long its parts may take.
    pub deadlines: Deadlines,
    /// What to do when the client leaves.
    pub on_disconnect: Option<DisconnectAction>,
    /// Most tokens to generate.
    pub tokens_max: Option<u32>,
}

/// What the host enforces for one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
pub struct Plan {
    /// Who goes first.
    pub priority: Priority,
    /// How long its parts may take.
    pub deadlines: Deadlines,
    /// What to do when the client leaves.
    pub on_disconnect: DisconnectAction,
}

/// The operator's limits on every plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ceilings {
    /// No plan's deadline is longer than these.
    pub deadlines: Deadlines,
    /// No drain goes further than this.
    pub drain: DrainLimits,
    /// Nor does anything whose answer is kept go further than this without its client.
    pub detach: DrainLimits,
}

impl PlanProposal {
    /// Merges another policy's wishes into these: whichever is tighter, field by field.
    ///
    /// Commutative and associative, so the order of the chain decides who may reject first but
    /// never what the plan is.
    #[must_use]
    pub fn tighten(self, other: Self) -> Self {
        Self {
            // Priority sorts from urgent to patient: the larger is the lower.
            priority: self.priority.max(other.priority),
            deadlines: shorter(self.deadlines, other.deadlines),
            on_disconnect: match (self.on_disconnect, other.on_disconnect) {
                (None, said) | (said, None) => said,
                (Some(a), Some(b)) => Some(stricter(a, b)),
            },
            tokens_max: match (self.tokens_max, other.tokens_max) {
                (None, said) | (said, None) => said,
                (Some(a), Some(b)) => Some(a.min(b)),
            },
        }
    }

    /// The plan that comes of it under the operator's ceilings.
    ///
    /// Where no policy said anything: standard priority, the ceilings' deadlines, and cancelling
    /// when the client leaves.
    pub fn clamp(self, ceilings: &Ceilings) -> Plan {
        use DisconnectAction::{Cancel, Detach, Drain};
        Plan {
            priority: self.priority.unwrap_or(Priority::Standard),
            deadlines: shorter(self.deadlines, ceilings.deadlines),
            on_disconnect: match self.on_disconnect.unwrap_or(Cancel) {
                Cancel => Cancel,
                Drain(limits) => Drain(smaller(limits, ceilings.drain)),
                Detach(limits) => Detach(smaller(limits, ceilings.detach)),
            },
        }
    }
}

impl Plan {
    /// The same, no more urgent than this.
    pub fn under(self, bound: Option<Priority>) -> Self {
        // Priority sorts from urgent to patient: the larger is the lower.
        Self { priority: bound.map_or(self.priority, |bound| self.priority.max(bound)), ..self }
    }
}

fn shorter(a: Deadlines, b: Deadlines) -> Deadlines {
    let min = |a: Option<Duration>, b: Option<Duration>| match (a, b) {
        (None, set) | (set, None) => set,
        (Some(a), Some(b)) => Some(a.min(b)),
    };
    Deadlines {
        queue: min(a.queue, b.queue),
        first_token: min(a.first_token, b.first_token),
        inter_token: min(a.inter_token, b.inter_token),
        total: min(a.total, b.total),
    }
}

/// The one that does less, within the smaller limits.
fn stricter(a: DisconnectAction, b: DisconnectAction) -> DisconnectAction {
    use DisconnectAction::{Cancel, Detach, Drain};
    match (a, b) {
        (Cancel, _) | (_, Cancel) => Cancel,
        (Detach(a), Detach(b)) => Detach(smaller(a, b)),
        (Drain(a) | Detach(a), Drain(b) | Detach(b)) => Drain(smaller(a, b)),
    }
}

fn smaller(a: DrainLimits, b: DrainLimits) -> DrainLimits {
    DrainLimits { time_max: a.time_max.min(b.time_max), tokens_max: a.tokens_max.min(b.tokens_max) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(n: u64) -> Option<Duration> {
        Some(Duration::from_secs(n))
    }

    fn drain(seconds: u64, tokens_max: u32) -> DisconnectAction {
        DisconnectAction::Drain(DrainLimits { time_max: Duration::from_secs(seconds), tokens_max })
    }

    fn ceilings() -> Ceilings {
        Ceilings {
            deadlines: Deadlines { total: seconds(60), ..Deadlines::default() },
            drain: DrainLimits { time_max: Duration::from_secs(10), tokens_max: 100 },
            detach: DrainLimits { time_max: Duration::from_secs(20), tokens_max: 200 },
        }
    }

    #[test]
    fn merging_takes_the_tighter_of_each_field_in_either_order() {
        let a = PlanProposal {
            priority: Some(Priority::Interactive),
            deadlines: Deadlines { queue: seconds(5), total: seconds(30), ..Deadlines::default() },
            on_disconnect: Some(drain(5, 10)),
            tokens_max: None,
        };
        let b = PlanProposal {
            priority: Some(Priority::Batch),
            deadlines: Deadlines {
                queue: seconds(9),
                first_token: seconds(2),
                ..Deadlines::default()
            },
            on_disconnect: Some(drain(2, 50)),
            tokens_max: Some(7),
        };
        let merged = PlanProposal {
            priority: Some(Priority::Batch),
            deadlines: Deadlines {
                queue: seconds(5),
                first_token: seconds(2),
                inter_token: None,
                total: seconds(30),
            },
            on_disconnect: Some(drain(2, 10)),
            tokens_max: Some(7),
        };
        assert_eq!(a.tighten(b), merged);
        assert_eq!(b.tighten(a), merged);
        assert_eq!(a.tighten(PlanProposal::default()), a);
    }

    #[test]
    fn no_plan_exceeds_the_operators_ceilings() {
        let wish = PlanProposal {
            deadlines: Deadlines { total: seconds(600), ..Deadlines::default() },
            on_disconnect: Some(drain(600, 1_000_000)),
            ..PlanProposal::default()
        };
        let plan = wish.clamp(&ceilings());
        assert_eq!(plan.deadlines.total, seconds(60));
        assert_eq!(plan.on_disconnect, drain(10, 100));
        let DisconnectAction::Drain(wish) = drain(600, 150) else { unreachable!("a drain") };
        let on_disconnect = Some(DisconnectAction::Detach(wish));
        let plan = PlanProposal { on_disconnect, ..PlanProposal::default() }.clamp(&ceilings());
        let kept = DrainLimits { time_max: Duration::from_secs(20), tokens_max: 150 };
        assert_eq!(plan.on_disconnect, DisconnectAction::Detach(kept));
    }

    #[test]
    fn a_plan_nobody_shaped_is_standard_and_cancels_on_disconnect() {
        let plan = PlanProposal::default().clamp(&ceilings());
        assert_eq!(plan.priority, Priority::Standard);
        assert_eq!(plan.on_disconnect, DisconnectAction::Cancel);
        assert_eq!(plan.deadlines, ceilings().deadlines);
    }
}
