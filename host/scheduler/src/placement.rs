//! Which requests have room in the cache and in the batch, and which give way.

use crate::Rank;

/// The room that requests share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Pages that no request holds, including those that only the prefix cache keeps.
    pub pages_free: u32,
    /// Most requests that may run at once.
    pub running_max: u32,
    /// Whether a candidate may displace a request of a lower priority.
    pub displace: bool,
}

/// A running request whose next step may take pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GrowingRequest {
    /// How urgent the request is.
    pub rank: Rank,
    /// Further pages that its next step needs.
    pub needs: u32,
}

/// The waiting request that is next to start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StartCandidate {
    /// How urgent the request is.
    pub rank: Rank,
    /// Free pages that it takes until its first token.
    pub needs: u32,
}

/// Whether a candidate may start, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placement {
    /// Once these running requests, by index, have given way; usually none.
    Now(Vec<usize>),
    /// After others have ended.
    Later,
}

/// The index of the request that must give way because more run than may; usually `None`. The caller
/// asks again when that request has given way. The last in rank goes first, the first in rank never.
pub fn pick_victim_for_rows(
    running_max: u32,
    running: impl ExactSizeIterator<Item = Rank>,
) -> Option<usize> {
    let runs = u64::try_from(running.len()).unwrap_or(u64::MAX);
    if runs <= u64::from(running_max.max(1)) {
        return None;
    }
    running.enumerate().max_by_key(|(_, rank)| *rank).map(|(index, _)| index)
}

/// The index of the request that must give way so that the rest have pages for their next step; usually
/// `None`. The caller asks again when that request has given way, since how many of its pages come free
/// is known only then: it may share some.
///
/// The last in rank goes first, whether or not it is the one that needs more: its loss costs least, and
/// the others go on undisturbed. The first in rank never goes: alone it always has room, since no
/// request is longer than the cache.
pub fn pick_victim_for_pages(
    pages_free: u32,
    running: impl ExactSizeIterator<Item = GrowingRequest> + Clone,
) -> Option<usize> {
    let needs: u64 = running.clone().map(|growing| u64::from(growing.needs)).sum();
    if needs <= u64::from(pages_free) || running.len() <= 1 {
        return None;
    }
    running.enumerate().max_by_key(|(_, growing)| growing.rank).map(|(index, _)| index)
}

/// Whether `candidate` may start beside those that run.
///
/// It starts if there is a row in the batch and its pages are free, with one page in reserve for each
/// running request, or the next few tokens would preempt one again. If something is missing, it displaces
/// those that it outranks, the last in rank first, but only if that is enough.
///
/// `frees` says how many pages come free if the request with this index gives way: those that it shares
/// with no other. It is called only for requests that could give way, since it reads each page.
pub fn place(
    capacity: &Capacity,
    running: impl ExactSizeIterator<Item = Rank>,
    frees: impl Fn(usize) -> u32,
    candidate: &StartCandidate,
) -> Placement {
    let fits = |runs: usize, free: u64| {
        let runs = u64::try_from(runs).unwrap_or(u64::MAX);
        let pages = runs == 0 || u64::from(candidate.needs).saturating_add(runs) <= free;
        pages && runs < u64::from(capacity.running_max)
    };
    let mut runs = running.len();
    let mut free = u64::from(capacity.pages_free);
    if fits(runs, free) {
        return Placement::Now(vec![]);
    }
    if !capacity.displace {
        return Placement::Later;
    }
    let outranked = running.enumerate().filter(|(_, rank)| candidate.rank.outranks(rank));
    let mut by_rank: Vec<_> = outranked.collect();
    by_rank.sort_unstable_by_key(|(_, rank)| *rank);
    let mut leaving = vec![];
    while let Some((index, _)) = by_rank.pop() {
        free += u64::from(frees(index));
        runs -= 1;
        leaving.push(index);
        if fits(runs, free) {
            return Placement::Now(leaving);
        }
    }
    Placement::Later
}

#[cfg(test)]
mod tests {
    use interlock_request::Priority::{self, Batch, Critical, Standard};

    use super::*;

    /// A running request, and the pages that come free with it.
    fn holder(priority: Priority, arrival: u64, pages: u32) -> (Rank, u32) {
        (Rank::new(priority, arrival, 0), pages)
    }

    fn placed(
        capacity: &Capacity,
        running: &[(Rank, u32)],
        candidate: &StartCandidate,
    ) -> Placement {
        let ranks = running.iter().map(|(rank, _)| *rank);
        place(capacity, ranks, |index| running[index].1, candidate)
    }

    fn growing(priority: Priority, arrival: u64, needs: u32) -> GrowingRequest {
        GrowingRequest { rank: Rank::new(priority, arrival, 0), needs }
    }

    fn candidate(priority: Priority, arrival: u64, needs: u32) -> StartCandidate {
        StartCandidate { rank: Rank::new(priority, arrival, 0), needs }
    }

    const fn capacity(pages_free: u32) -> Capacity {
        Capacity { pages_free, running_max: 3, displace: true }
    }

    #[test]
    fn nobody_gives_way_while_there_are_pages() {
        let running = [growing(Standard, 1, 1), growing(Standard, 2, 1)];
        assert_eq!(pick_victim_for_pages(2, running.into_iter()), None);
        assert_eq!(pick_victim_for_pages(1, running.into_iter()), Some(1));
    }

    #[test]
    fn the_lowest_priority_and_in_it_the_youngest_gives_way() {
        let mut running = vec![
            growing(Batch, 1, 1),
            growing(Standard, 9, 1),
            growing(Batch, 3, 0),
            growing(Standard, 2, 1),
        ];
        assert_eq!(
            pick_victim_for_pages(2, running.iter().copied()),
            Some(2),
            "though it needs none"
        );
        running.remove(2);
        assert_eq!(
            pick_victim_for_pages(2, running.iter().copied()),
            Some(0),
            "if that freed nothing"
        );
    }

    #[test]
    fn when_fewer_may_run_than_do_the_last_in_rank_gives_way_and_the_first_never() {
        let ranks = [holder(Standard, 1, 0).0, holder(Batch, 2, 0).0, holder(Critical, 3, 0).0];
        assert_eq!(pick_victim_for_rows(3, ranks.into_iter()), None);
        assert_eq!(pick_victim_for_rows(2, ranks.into_iter()), Some(1));
        assert_eq!(pick_victim_for_rows(1, [ranks[0], ranks[2]].into_iter()), Some(0));
        assert_eq!(pick_victim_for_rows(0, [ranks[2]].into_iter()), None);
    }

    #[test]
    fn the_first_in_rank_never_gives_way() {
        let running = [growing(Standard, 1, 3), growing(Standard, 2, 0)];
        assert_eq!(pick_victim_for_pages(0, running.into_iter()), Some(1));
        assert_eq!(pick_victim_for_pages(0, running[..1].iter().copied()), None);
    }

    #[test]
    fn a_candidate_leaves_a_page_in_reserve_for_each_that_runs() {
        let running = [holder(Standard, 1, 4), holder(Standard, 2, 4)];
        let candidate = candidate(Standard, 3, 5);
        assert_eq!(placed(&capacity(7), &running, &candidate), Placement::Now(vec![]));
        assert_eq!(placed(&capacity(6), &running, &candidate), Placement::Later);
        assert_eq!(placed(&capacity(5), &[], &candidate), Placement::Now(vec![]));
    }

    #[test]
    fn a_full_batch_makes_room_only_for_a_higher_priority() {
        let running = [holder(Standard, 1, 4), holder(Batch, 2, 4), holder(Standard, 3, 4)];
        assert_eq!(placed(&capacity(99), &running, &candidate(Batch, 4, 1)), Placement::Later);
        assert_eq!(
            placed(&capacity(99), &running, &candidate(Standard, 4, 1)),
            Placement::Now(vec![1])
        );
        let stays = Capacity { displace: false, ..capacity(99) };
        assert_eq!(placed(&stays, &running, &candidate(Critical, 4, 1)), Placement::Later);
    }

    #[test]
    fn nobody_is_displaced_when_that_would_not_be_enough() {
        let running = [holder(Standard, 1, 4), holder(Batch, 2, 4)];
        assert_eq!(placed(&capacity(0), &running, &candidate(Standard, 3, 5)), Placement::Later);
        assert_eq!(
            placed(&capacity(0), &running, &candidate(Standard, 3, 3)),
            Placement::Now(vec![1])
        );
    }
}
