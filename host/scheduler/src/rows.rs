//! Plans what the next forward pass computes.

use std::num::NonZeroU32;

use crate::Rank;

/// A running request with tokens to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Runnable {
    /// How urgent the request is.
    pub rank: Rank,
    /// Tokens to compute before it can draw its next one; 1 once it decodes.
    pub left: NonZeroU32,
    /// Whether the request decodes: its next token is one step away, and its client has had a token before.
    pub streaming: bool,
    /// Whether the request must run alone, after a pass that failed, so that a second failure shows its cause.
    pub isolated: bool,
}

/// How many tokens of prompts a pass may compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrefillBudget {
    /// Tokens where no stream waits for the pass.
    pub alone: NonZeroU32,
    /// Tokens beside streams; 0 while these have been held up for long enough.
    pub beside: u32,
    /// A prompt is not cut into pieces of fewer tokens, except for the rest of it: the fixed cost of a
    /// piece would outweigh what it computes.
    pub piece_min: NonZeroU32,
    /// Whether another model has streams, which wait for the same device.
    pub others_streaming: bool,
}

/// The largest pass that the device has memory for, as far as is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PassBounds {
    /// Most rows of a pass.
    pub rows: NonZeroU32,
    /// Most tokens of a pass, those of streams included.
    pub tokens: NonZeroU32,
}

/// A row of the pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlannedRow {
    /// The index of the request among those that run.
    pub index: usize,
    /// How many of its tokens that are not in the cache yet are computed.
    pub tokens: NonZeroU32,
}

/// The rows of the next pass; empty when no request runs.
///
/// A request with one token left always has a row: that token is cheap, and a client waits for it.
/// Prompts share the budget in the order of rank, as many whole prompts as fit, so that they share the
/// fixed cost of a pass with prompts.
///
/// Requests beyond the bounds are left out, the last in rank first. Of the others every stream has room
/// for a token, and so has the first prompt, unless it waits for the budget.
pub fn plan_rows(
    running: &[Runnable],
    budget: &PrefillBudget,
    bounds: &PassBounds,
) -> Vec<PlannedRow> {
    let streaming = budget.others_streaming || running.iter().any(|runnable| runnable.streaming);
    let most = if streaming { budget.beside } else { budget.alone.get() };
    let isolated = running.iter().enumerate().filter(|(_, runnable)| runnable.isolated);
    if let Some((index, runnable)) = isolated.min_by_key(|(_, runnable)| runnable.rank) {
        // No other row runs before it, so it does not wait for the budget.
        let most = NonZeroU32::new(most).unwrap_or(budget.piece_min);
        return vec![PlannedRow { index, tokens: runnable.left.min(most).min(bounds.tokens) }];
    }
    let (mut table, mut prompts) = (vec![], vec![]);
    for index in within(running, bounds) {
        let runnable = &running[index];
        if runnable.left == NonZeroU32::MIN {
            table.push(PlannedRow { index, tokens: NonZeroU32::MIN });
        } else {
            prompts.push((runnable.rank, index));
        }
    }
    let streams = u32::try_from(table.len()).unwrap_or(u32::MAX);
    let most = most.min(bounds.tokens.get().saturating_sub(streams));
    let mut left = most;
    prompts.sort_unstable();
    for (_, index) in prompts {
        let Some(tokens) = NonZeroU32::new(running[index].left.get().min(left)) else { break };
        let fragment = tokens < running[index].left.min(budget.piece_min);
        if fragment && left < most {
            break;
        }
        left -= tokens.get();
        table.push(PlannedRow { index, tokens });
    }
    table
}

/// The indices of the requests that have room in a pass: all, or the first in rank.
fn within(running: &[Runnable], bounds: &PassBounds) -> Vec<usize> {
    let most = usize::try_from(bounds.rows.min(bounds.tokens).get()).unwrap_or(usize::MAX);
    let mut within: Vec<_> = (0..running.len()).collect();
    if running.len() > most {
        within.sort_unstable_by_key(|&index| running[index].rank);
        within.truncate(most);
        within.sort_unstable();
    }
    within
}

#[cfg(test)]
mod tests {
    use interlock_request::Priority::{self, Interactive, Standard};

    use super::*;

    fn number(n: u32) -> NonZeroU32 {
        NonZeroU32::new(n).unwrap()
    }

    fn decoding(arrival: u64) -> Runnable {
        let rank = Rank::new(Standard, arrival, 0);
        Runnable { rank, left: NonZeroU32::MIN, streaming: true, isolated: false }
    }

    fn prefilling(priority: Priority, arrival: u64, left: u32) -> Runnable {
        let rank = Rank::new(priority, arrival, 0);
        Runnable { rank, left: number(left), streaming: false, isolated: false }
    }

    fn table(running: &[Runnable]) -> Vec<(usize, u32)> {
        bounded(running, 1000, 1000)
    }

    const BUDGET: PrefillBudget = PrefillBudget {
        alone: NonZeroU32::new(100).unwrap(),
        beside: 10,
        piece_min: NonZeroU32::MIN,
        others_streaming: false,
    };

    fn bounded(running: &[Runnable], rows: u32, tokens: u32) -> Vec<(usize, u32)> {
        let bounds = PassBounds { rows: number(rows), tokens: number(tokens) };
        shown(super::plan_rows(running, &BUDGET, &bounds))
    }

    fn budgeted(running: &[Runnable], budget: &PrefillBudget) -> Vec<(usize, u32)> {
        let bounds = PassBounds { rows: NonZeroU32::MAX, tokens: NonZeroU32::MAX };
        shown(super::plan_rows(running, budget, &bounds))
    }

    fn shown(table: Vec<PlannedRow>) -> Vec<(usize, u32)> {
        table.into_iter().map(|row| (row.index, row.tokens.get())).collect()
    }

    #[test]
    fn a_prompt_waits_while_streams_have_been_held_up_for_long_enough() {
        let none = PrefillBudget { beside: 0, ..BUDGET };
        assert_eq!(budgeted(&[decoding(1), prefilling(Standard, 2, 50)], &none), [(0, 1)]);
        assert_eq!(budgeted(&[prefilling(Standard, 2, 50)], &none), [(0, 50)], "nobody streams");
        let isolated = Runnable { isolated: true, ..prefilling(Standard, 7, 50) };
        assert_eq!(
            budgeted(&[decoding(1), isolated], &none),
            [(1, 1)],
            "nobody else runs before it"
        );
    }

    #[test]
    fn a_stream_of_another_model_is_one_too() {
        let running = [prefilling(Standard, 1, 50)];
        assert_eq!(
            budgeted(&running, &PrefillBudget { others_streaming: true, ..BUDGET }),
            [(0, 10)]
        );
        assert_eq!(
            budgeted(&running, &PrefillBudget { others_streaming: true, beside: 0, ..BUDGET }),
            []
        );
    }

    #[test]
    fn a_prompt_is_not_cut_into_fragments() {
        let budget = PrefillBudget { piece_min: number(5), ..BUDGET };
        let two = |first, second| {
            let running =
                [decoding(1), prefilling(Standard, 2, first), prefilling(Standard, 3, second)];
            budgeted(&running, &budget).split_off(1)
        };
        assert_eq!(two(6, 50), [(1, 6)], "four tokens would cost more than they are worth");
        assert_eq!(two(5, 50), [(1, 5), (2, 5)]);
        assert_eq!(two(6, 3), [(1, 6), (2, 3)], "a whole one is no fragment");
        let small = PrefillBudget { beside: 3, ..budget };
        assert_eq!(budgeted(&[decoding(1), prefilling(Standard, 2, 9)], &small), [(0, 1), (1, 3)]);
    }

    #[test]
    fn every_stream_gets_its_token_and_prompts_what_is_left_of_the_budget() {
        let running = [
            decoding(1),
            prefilling(Standard, 2, 4),
            decoding(3),
            prefilling(Standard, 4, 50),
            prefilling(Standard, 5, 50),
        ];
        assert_eq!(table(&running), [(0, 1), (2, 1), (1, 4), (3, 6)]);
    }

    #[test]
    fn a_prompt_alone_takes_all_it_may() {
        assert_eq!(table(&[prefilling(Standard, 1, 500)]), [(0, 100)]);
        let two = [prefilling(Standard, 1, 60), prefilling(Standard, 2, 60)];
        assert_eq!(table(&two), [(0, 60), (1, 40)]);
    }

    #[test]
    fn the_more_urgent_prompt_is_computed_first() {
        let running = [prefilling(Standard, 1, 80), prefilling(Interactive, 2, 80)];
        assert_eq!(table(&running), [(1, 80), (0, 20)]);
    }

    #[test]
    fn an_isolated_row_runs_alone() {
        let isolated = Runnable { isolated: true, ..decoding(7) };
        assert_eq!(table(&[decoding(1), isolated, decoding(2)]), [(1, 1)]);
        let isolated = Runnable { isolated: true, ..prefilling(Standard, 7, 50) };
        assert_eq!(table(&[decoding(1), isolated]), [(1, 10)], "a stream waits for it");
    }

    #[test]
    fn a_pass_has_no_more_rows_and_tokens_than_there_is_memory_for() {
        let running =
            [decoding(4), prefilling(Standard, 2, 50), decoding(3), prefilling(Interactive, 5, 50)];
        assert_eq!(bounded(&running, 4, 6), [(0, 1), (2, 1), (3, 4)]);
        assert_eq!(bounded(&running, 3, 1000), [(2, 1), (3, 10)], "the last in rank is left out");
        assert_eq!(bounded(&running, 1000, 2), [(3, 2)], "as are those without a token");
        let isolated = Runnable { isolated: true, ..prefilling(Standard, 7, 50) };
        assert_eq!(bounded(&[decoding(1), isolated], 9, 3), [(1, 3)]);
    }

    #[test]
    fn the_first_in_rank_advances_however_small_a_pass_must_be() {
        let prompt_first = [decoding(2), prefilling(Standard, 1, 50)];
        assert_eq!(bounded(&prompt_first, 1, 1), [(1, 1)]);
        assert_eq!(bounded(&prompt_first, 9, 1), [(1, 1)]);
        let stream_first = [decoding(1), prefilling(Standard, 2, 50)];
        assert_eq!(bounded(&stream_first, 9, 1), [(0, 1)]);
        assert_eq!(bounded(&stream_first, 9, 2), [(0, 1), (1, 1)]);
    }

    #[test]
    fn nobody_runs_and_nothing_is_computed() {
        assert_eq!(table(&[]), []);
    }
}
