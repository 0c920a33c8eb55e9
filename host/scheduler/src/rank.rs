//! The order in which requests are served.

use interlock_request::Priority;

/// A request that this many later ones have overtaken is overdue. The number is high enough that
/// priorities matter, and low enough that the lowest of them is served within a minute or so on a host
/// that completes one request a second.
pub const OVERTAKEN_MAX: u32 = 64;

/// How urgent a request is. The smaller rank goes first. Arrivals differ, so no two ranks are equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    // The order of the fields is the order of the comparison.
    not_overdue: bool,
    priority: Priority,
    arrival: u64,
}

impl Rank {
    /// `arrival` is the request's unique place in the order of arrival. `overtaken` is how many requests
    /// that arrived later have started while this one waited (also after it was preempted), or had a row
    /// and had drawn nothing with it.
    pub fn new(priority: Priority, arrival: u64, overtaken: u32) -> Self {
        Self { not_overdue: overtaken < OVERTAKEN_MAX, priority, arrival }
    }

    /// Whether this rank goes first for another reason than an earlier arrival.
    pub fn outranks(&self, other: &Self) -> bool {
        (self.not_overdue, self.priority) < (other.not_overdue, other.priority)
    }
}

/// The index of the most urgent waiting request.
pub fn most_urgent(waiting: impl IntoIterator<Item = Rank>) -> Option<usize> {
    waiting.into_iter().enumerate().min_by_key(|(_, rank)| *rank).map(|(index, _)| index)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAST: u32 = OVERTAKEN_MAX - 1;

    #[test]
    fn the_urgent_go_first_and_within_a_priority_the_first_to_arrive() {
        let rank = |priority, arrival| Rank::new(priority, arrival, 0);
        let waiting = [
            rank(Priority::Standard, 1),
            rank(Priority::Interactive, 3),
            rank(Priority::Interactive, 2),
            rank(Priority::Batch, 0),
        ];
        assert_eq!(most_urgent(waiting), Some(2));
        assert_eq!(most_urgent([]), None);
    }

    #[test]
    fn who_was_overtaken_often_enough_goes_before_everyone() {
        let critical = Rank::new(Priority::Critical, 100, 0);
        assert_eq!(most_urgent([critical, Rank::new(Priority::Sheddable, 1, LAST)]), Some(0));
        assert_eq!(most_urgent([critical, Rank::new(Priority::Sheddable, 1, LAST + 1)]), Some(1));
    }

    #[test]
    fn coming_earlier_is_not_outranking() {
        let rank = |priority, arrival| Rank::new(priority, arrival, 0);
        assert!(!rank(Priority::Standard, 1).outranks(&rank(Priority::Standard, 2)));
        assert!(rank(Priority::Critical, 2).outranks(&rank(Priority::Standard, 1)));
        let overdue = Rank::new(Priority::Sheddable, 9, OVERTAKEN_MAX);
        assert!(overdue.outranks(&rank(Priority::Critical, 1)));
    }
}
