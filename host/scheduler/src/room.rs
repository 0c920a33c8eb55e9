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

/// A running request, as a holder of pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holder {
    /// How urgent it is.
    pub rank: Rank,
    /// Pages that come free if it gives way: those that it shares with nobody.
    pub pages: u32,
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

/// Who must give way, by index, so that the rest can take their next step; usually nobody.
///
/// The last in rank goes first, whether or not it is the one that needs more: it is the one whose
/// loss costs least, and the others go on undisturbed. The first in rank never goes: alone it
/// always has room, since no request is longer than the cache.
pub fn overdrawn(room: &Room, running: &[Holder]) -> Vec<usize> {
    let mut free = u64::from(room.pages_free);
    let mut needs: u64 = running.iter().map(|holder| u64::from(holder.needs)).sum();
    let mut leaving = vec![];
    let mut by_rank = last_first(running);
    while needs > free && leaving.len() + 1 < running.len() {
        let Some(index) = by_rank.pop() else { break };
        free += u64::from(running[index].pages);
        needs -= u64::from(running[index].needs);
        leaving.push(index);
    }
    leaving
}

/// Whether `newcomer` may start beside those that run.
///
/// It starts if there is a place in the batch and its pages are free, with one page in reserve for
/// each that runs: or the next few tokens would drive someone out again. If something is missing,
/// it displaces those that it outranks, the last in rank first, but only if that is enough.
pub fn place(room: &Room, running: &[Holder], newcomer: &Newcomer) -> Place {
    let mut free = u64::from(room.pages_free);
    let mut runs = running.len();
    let mut leaving = vec![];
    let mut by_rank = last_first(running);
    loop {
        let reserve = u64::try_from(runs).unwrap_or(u64::MAX);
        let pages = runs == 0 || u64::from(newcomer.needs).saturating_add(reserve) <= free;
        let seats = u64::try_from(runs).unwrap_or(u64::MAX) < u64::from(room.running_max);
        if pages && seats {
            return Place::Now(leaving);
        }
        match by_rank.pop() {
            Some(index) if room.displace && newcomer.rank.outranks(&running[index].rank) => {
                free += u64::from(running[index].pages);
                runs -= 1;
                leaving.push(index);
            }
            _ => return Place::Later,
        }
    }
}

/// Indices, so that the last in rank is the last in the list.
fn last_first(running: &[Holder]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..running.len()).collect();
    order.sort_unstable_by_key(|&index| running[index].rank);
    order
}

#[cfg(test)]
mod tests {
    use interlock_request::Priority::{self, Batch, Critical, Standard};

    use super::*;

    fn holder(priority: Priority, arrival: u64, pages: u32, needs: u32) -> Holder {
        Holder { rank: Rank::new(priority, arrival, 0), pages, needs }
    }

    fn newcomer(priority: Priority, arrival: u64, needs: u32) -> Newcomer {
        Newcomer { rank: Rank::new(priority, arrival, 0), needs }
    }

    const fn room(pages_free: u32) -> Room {
        Room { pages_free, running_max: 3, displace: true }
    }

    #[test]
    fn nobody_gives_way_while_there_are_pages() {
        let running = [holder(Standard, 1, 4, 1), holder(Standard, 2, 4, 1)];
        assert_eq!(overdrawn(&room(2), &running), [0; 0]);
    }

    #[test]
    fn the_lowest_priority_and_in_it_the_youngest_gives_way() {
        let running = [
            holder(Batch, 1, 4, 1),
            holder(Standard, 9, 4, 1),
            holder(Batch, 3, 4, 0),
            holder(Standard, 2, 4, 1),
        ];
        assert_eq!(overdrawn(&room(2), &running), [2], "its pages are enough");
        let shares_all = [running[0], running[1], holder(Batch, 3, 0, 0), running[3]];
        assert_eq!(overdrawn(&room(2), &shares_all), [2, 0], "the first to go freed nothing");
    }

    #[test]
    fn the_first_in_rank_never_gives_way() {
        let running = [holder(Standard, 1, 4, 3), holder(Standard, 2, 1, 0)];
        assert_eq!(overdrawn(&room(0), &running), [1]);
        assert_eq!(overdrawn(&room(0), &running[..1]), [0; 0]);
    }

    #[test]
    fn a_newcomer_leaves_a_page_in_reserve_for_each_that_runs() {
        let running = [holder(Standard, 1, 4, 0), holder(Standard, 2, 4, 0)];
        let newcomer = newcomer(Standard, 3, 5);
        assert_eq!(place(&room(7), &running, &newcomer), Place::Now(vec![]));
        assert_eq!(place(&room(6), &running, &newcomer), Place::Later);
        assert_eq!(place(&room(5), &[], &newcomer), Place::Now(vec![]));
    }

    #[test]
    fn a_full_batch_makes_room_only_for_a_higher_priority() {
        let running =
            [holder(Standard, 1, 4, 0), holder(Batch, 2, 4, 0), holder(Standard, 3, 4, 0)];
        assert_eq!(place(&room(99), &running, &newcomer(Batch, 4, 1)), Place::Later);
        assert_eq!(place(&room(99), &running, &newcomer(Standard, 4, 1)), Place::Now(vec![1]));
        let stays = Room { displace: false, ..room(99) };
        assert_eq!(place(&stays, &running, &newcomer(Critical, 4, 1)), Place::Later);
    }

    #[test]
    fn nobody_is_displaced_when_that_would_not_be_enough() {
        let running = [holder(Standard, 1, 4, 0), holder(Batch, 2, 4, 0)];
        assert_eq!(place(&room(0), &running, &newcomer(Standard, 3, 5)), Place::Later);
        assert_eq!(place(&room(0), &running, &newcomer(Standard, 3, 3)), Place::Now(vec![1]));
    }
}
