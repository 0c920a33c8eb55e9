//! Who has room in the cache and in the batch, and who gives way.

use crate::Rank;

/// What there is to share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Pages that nobody holds, those that only the prefix cache remembers included.
    pub pages_free: u32,
    /// Most requests that may run at once.
    pub running_max: u32,
    /// May a newcomer displace someone of a lower priority?
    pub displace: bool,
}

/// A running request, as one whose next step may take pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grower {
    /// How urgent it is.
    pub rank: Rank,
    /// Pages it needs more for its next step.
    pub needs: u32,
}

/// A waiting request that is next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Newcomer {
    /// How urgent it is.
    pub rank: Rank,
    /// Pages it takes out of the free ones, to its first token.
    pub needs: u32,
}

/// Whether a newcomer may start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Once these holders, by index, have given way; usually none.
    Now(Vec<usize>),
    /// When others have ended.
    Later,
}

/// Who must give way, by index, because fewer may run at once than do; usually nobody. Ask again when
/// it has. The last in rank goes first, the first in rank never.
pub fn crowded(running_max: u32, running: impl ExactSizeIterator<Item = Rank>) -> Option<usize> {
    let runs = u64::try_from(running.len()).unwrap_or(u64::MAX);
    if runs <= u64::from(running_max.max(1)) {
        return None;
    }
    running.enumerate().max_by_key(|(_, rank)| *rank).map(|(index, _)| index)
}

/// Who must give way, by index, so that the rest can take their next step; usually nobody. Ask
/// again when it has: what comes free with it, of pages that it shares, nobody can say before.
///
/// The last in rank goes first, whether or not it is the one that needs more: it is the one whose
/// loss costs least, and the others go on undisturbed. The first in rank never goes: alone it
/// always has room, since no request is longer than the cache.
pub fn overdrawn(
    pages_free: u32,
    running: impl ExactSizeIterator<Item = Grower> + Clone,
) -> Option<usize> {
    let needs: u64 = running.clone().map(|grower| u64::from(grower.needs)).sum();
    if needs <= u64::from(pages_free) || running.len() <= 1 {
        return None;
    }
    running.enumerate().max_by_key(|(_, grower)| grower.rank).map(|(index, _)| index)
}

/// Whether `newcomer` may start beside those that run.
///
/// It starts if there is a place in the batch and its pages are free, with one page in reserve for
/// each that runs: or the next few tokens would drive someone out again. If something is missing,
/// it displaces those that it outranks, the last in rank first, but only if that is enough.
///
/// `frees` says how many pages come free if the one with this index gives way: those that it shares
/// with nobody. It is asked only of those that could, since it takes a look at each page.
pub fn place(
    room: &Room,
    running: impl ExactSizeIterator<Item = Rank>,
    frees: impl Fn(usize) -> u32,
    newcomer: &Newcomer,
) -> Place {
    let fits = |runs: usize, free: u64| {
        let runs = u64::try_from(runs).unwrap_or(u64::MAX);
        let pages = runs == 0 || u64::from(newcomer.needs).saturating_add(runs) <= free;
        pages && runs < u64::from(room.running_max)
    };
    let mut runs = running.len();
    let mut free = u64::from(room.pages_free);
    if fits(runs, free) {
        return Place::Now(vec![]);
    }
    if !room.displace {
        return Place::Later;
    }
    let outranked = running.enumerate().filter(|(_, rank)| newcomer.rank.outranks(rank));
    let mut by_rank: Vec<_> = outranked.collect();
    by_rank.sort_unstable_by_key(|(_, rank)| *rank);
    let mut leaving = vec![];
    while let Some((index, _)) = by_rank.pop() {
        free += u64::from(frees(index));
        runs -= 1;
        leaving.push(index);
        if fits(runs, free) {
            return Place::Now(leaving);
        }
    }
    Place::Later
}

#[cfg(test)]
mod tests {
    use interlock_request::Priority::{self, Batch, Critical, Standard};

    use super::*;

    /// One that runs, and the pages that come free with it.
    fn holder(priority: Priority, arrival: u64, pages: u32) -> (Rank, u32) {
        (Rank::new(priority, arrival, 0), pages)
    }

    fn placed(room: &Room, running: &[(Rank, u32)], newcomer: &Newcomer) -> Place {
        let ranks = running.iter().map(|(rank, _)| *rank);
        place(room, ranks, |index| running[index].1, newcomer)
    }

    fn grower(priority: Priority, arrival: u64, needs: u32) -> Grower {
        Grower { rank: Rank::new(priority, arrival, 0), needs }
    }

    fn newcomer(priority: Priority, arrival: u64, needs: u32) -> Newcomer {
        Newcomer { rank: Rank::new(priority, arrival, 0), needs }
    }

    const fn room(pages_free: u32) -> Room {
        Room { pages_free, running_max: 3, displace: true }
    }

    #[test]
    fn nobody_gives_way_while_there_are_pages() {
        let running = [grower(Standard, 1, 1), grower(Standard, 2, 1)];
        assert_eq!(overdrawn(2, running.into_iter()), None);
        assert_eq!(overdrawn(1, running.into_iter()), Some(1));
    }

    #[test]
    fn the_lowest_priority_and_in_it_the_youngest_gives_way() {
        let mut running = vec![
            grower(Batch, 1, 1),
            grower(Standard, 9, 1),
            grower(Batch, 3, 0),
            grower(Standard, 2, 1),
        ];
        assert_eq!(overdrawn(2, running.iter().copied()), Some(2), "though it needs none");
        running.remove(2);
        assert_eq!(overdrawn(2, running.iter().copied()), Some(0), "if that freed nothing");
    }

    #[test]
    fn when_fewer_may_run_than_do_the_last_in_rank_gives_way_and_the_first_never() {
        let ranks = [holder(Standard, 1, 0).0, holder(Batch, 2, 0).0, holder(Critical, 3, 0).0];
        assert_eq!(crowded(3, ranks.into_iter()), None);
        assert_eq!(crowded(2, ranks.into_iter()), Some(1));
        assert_eq!(crowded(1, [ranks[0], ranks[2]].into_iter()), Some(0));
        assert_eq!(crowded(0, [ranks[2]].into_iter()), None);
    }

    #[test]
    fn the_first_in_rank_never_gives_way() {
        let running = [grower(Standard, 1, 3), grower(Standard, 2, 0)];
        assert_eq!(overdrawn(0, running.into_iter()), Some(1));
        assert_eq!(overdrawn(0, running[..1].iter().copied()), None);
    }

    #[test]
    fn a_newcomer_leaves_a_page_in_reserve_for_each_that_runs() {
        let running = [holder(Standard, 1, 4), holder(Standard, 2, 4)];
        let newcomer = newcomer(Standard, 3, 5);
        assert_eq!(placed(&room(7), &running, &newcomer), Place::Now(vec![]));
        assert_eq!(placed(&room(6), &running, &newcomer), Place::Later);
        assert_eq!(placed(&room(5), &[], &newcomer), Place::Now(vec![]));
    }

    #[test]
    fn a_full_batch_makes_room_only_for_a_higher_priority() {
        let running = [holder(Standard, 1, 4), holder(Batch, 2, 4), holder(Standard, 3, 4)];
        assert_eq!(placed(&room(99), &running, &newcomer(Batch, 4, 1)), Place::Later);
        assert_eq!(placed(&room(99), &running, &newcomer(Standard, 4, 1)), Place::Now(vec![1]));
        let stays = Room { displace: false, ..room(99) };
        assert_eq!(placed(&stays, &running, &newcomer(Critical, 4, 1)), Place::Later);
    }

    #[test]
    fn nobody_is_displaced_when_that_would_not_be_enough() {
        let running = [holder(Standard, 1, 4), holder(Batch, 2, 4)];
        assert_eq!(placed(&room(0), &running, &newcomer(Standard, 3, 5)), Place::Later);
        assert_eq!(placed(&room(0), &running, &newcomer(Standard, 3, 3)), Place::Now(vec![1]));
    }
}
