//! Where a pass over MLX's arrays reads and writes, worked out once for all layers.

use std::collections::BTreeMap;
use std::ops::Range;

use mlx_rs::Array;

use super::kernel::{self, QueryRow};
use super::pool_shape::{PAGE, PoolShape, numbers};
use crate::span::Span;

/// The kernel computes a piece of a prompt that makes it at most so much work, in groups of threads
/// for each key head. It reads keys anew for each query, which MLX's attention does not, so beyond
/// some hundred tokens it loses what it saves. 1,024 are 512 tokens from the start of a prompt, or
/// 64 behind 2,000.
pub(super) const PAGED_PIECES_MAX: usize = 1024;

/// A piece of a prompt under MLX's attention is padded to begin and end at multiples of this.
const WINDOW: usize = 256;

/// Where a pass reads and writes, the same in all layers.
pub(super) struct PassPlan {
    /// `[total]`: each token's position in its sequence.
    pub(super) positions: Array,
    /// `[total * kv_heads]`: where new keys and values go.
    pub(super) slots: Array,
    /// The slots of newly entered pages that this pass does not write; none if there are none.
    pub(super) cleared: Option<Array>,
    pub(super) parts: Vec<AttentionCall>,
    /// Brings the parts' results into the table's order, unless they are.
    pub(super) order: Option<Array>,
}

/// Rows that are computed by one call.
pub(super) enum AttentionCall {
    /// Rows of one token each, over gathered pages.
    Decoding {
        /// The indices of the rows' tokens in the pass; none if these are all of its tokens.
        tokens: Option<Array>,
        rows: i32,
        /// `[rows * kv_heads * pages]`.
        gather: Array,
        length: i32,
        /// `[rows, 1, 1, length]`.
        mask: Array,
    },
    /// One token each, by our kernel.
    Paged { tokens: Option<Array>, rows: kernel::QueryRows },
    /// Several tokens of one sequence.
    Prompt {
        /// Of the padded piece's tokens, their places in the table; of those that only fill it up,
        /// the first's.
        tokens: Array,
        /// The part of the padded tokens that is the piece itself.
        piece: Range<i32>,
        gather: Array,
    },
}

impl PoolShape {
    /// `paged_pieces_max`: the kernel computes single tokens, and pieces of prompts that are at most so much
    /// work for it.
    pub(super) fn plan(self, spans: &[Span<'_>], paged_pieces_max: Option<usize>) -> PassPlan {
        let mut positions = Vec::new();
        let mut slots = Vec::new();
        let mut cleared = Vec::new();
        let mut decoding: BTreeMap<usize, Vec<&Span<'_>>> = BTreeMap::new();
        let mut paged = Vec::new();
        let mut parts = Vec::new();
        let mut order = Vec::new();
        for span in spans {
            let end = span.from + span.count;
            for position in span.from..end {
                positions.push(position as i32);
                self.slots(span, position, &mut slots);
            }
            if paged_pieces_max.is_some_and(|most| span.count == 1 || paged_pieces(span) <= most) {
                paged.push(span);
                continue;
            }
            // Who decodes did so when it entered its page. A piece of a prompt does so each time: what
            // came before it may have been the kernel's, which has no need to.
            let enters = span.from <= (end - 1) / PAGE as usize * PAGE as usize;
            if span.count > 1 || enters {
                for position in end..end.next_multiple_of(PAGE as usize) {
                    self.slots(span, position, &mut cleared);
                }
            }
            if span.count == 1 {
                let pages = end.div_ceil(PAGE as usize);
                decoding.entry(pages.next_power_of_two()).or_default().push(span);
            } else {
                order.extend(span.start..span.start + span.count);
                parts.push(self.prompt(span));
            }
        }
        let total = positions.len();
        if !paged.is_empty() {
            order.extend(paged.iter().flat_map(|span| span.start..span.start + span.count));
            parts.push(self.paged(&paged, total));
        }
        for (pages, rows) in decoding {
            order.extend(rows.iter().map(|span| span.start));
            parts.push(self.decoding(pages, &rows, rows.len() == total));
        }
        let mut back = vec![0; order.len()];
        for (now, &then) in order.iter().enumerate() {
            back[then] = now as i32;
        }
        PassPlan {
            positions: numbers(&positions),
            slots: numbers(&slots),
            cleared: (!cleared.is_empty()).then(|| numbers(&cleared)),
            parts,
            order: (!back.is_sorted()).then(|| numbers(&back)),
        }
    }

    /// A piece of a prompt, padded at both ends to multiples of [`WINDOW`].
    fn prompt(self, span: &Span<'_>) -> AttentionCall {
        let end = span.from + span.count;
        let begin = span.from / WINDOW * WINDOW;
        let padded = begin..end.next_multiple_of(WINDOW);
        let pages = padded.end / PAGE as usize;
        let place = |position: usize| match position.checked_sub(span.from) {
            Some(at) if at < span.count => span.start + at,
            _ => span.start,
        };
        let tokens: Vec<i32> = padded.map(|position| place(position) as i32).collect();
        AttentionCall::Prompt {
            tokens: numbers(&tokens),
            piece: (span.from - begin) as i32..(end - begin) as i32,
            gather: numbers(&self.pages_of(span, pages)),
        }
    }

    fn decoding(self, pages: usize, rows: &[&Span<'_>], all: bool) -> AttentionCall {
        let length = pages * PAGE as usize;
        let gather: Vec<i32> = rows.iter().flat_map(|span| self.pages_of(span, pages)).collect();
        let mask: Vec<bool> =
            rows.iter().flat_map(|span| (0..length).map(|at| at <= span.from)).collect();
        let tokens: Vec<i32> = rows.iter().map(|span| span.start as i32).collect();
        let rows = rows.len() as i32;
        AttentionCall::Decoding {
            tokens: (!all).then(|| numbers(&tokens)),
            rows,
            gather: numbers(&gather),
            length: length as i32,
            mask: Array::from_slice(&mask, &[rows, 1, 1, length as i32]),
        }
    }

    fn paged(self, spans: &[&Span<'_>], total: usize) -> AttentionCall {
        let mut query_rows = Vec::new();
        let mut tokens = Vec::new();
        let mut lists = Vec::new();
        for span in spans {
            let list = lists.len();
            for at in 0..span.count {
                query_rows.push(QueryRow { length: span.from + at + 1, list });
                tokens.push((span.start + at) as i32);
            }
            let pages = (span.from + span.count).div_ceil(PAGE as usize);
            lists.push((0..pages).map(|at| span.page(at) as i32).collect());
        }
        AttentionCall::Paged {
            tokens: (tokens.len() < total).then(|| numbers(&tokens)),
            rows: kernel::QueryRows::new(&query_rows, &lists, self.pages),
        }
    }

    /// A span's first `count` pages in the pool, head by head. For those that it has not entered
    /// its first one stands in, and the mask hides it.
    fn pages_of(self, span: &Span<'_>, count: usize) -> Vec<i32> {
        let entered = (span.from + span.count).div_ceil(PAGE as usize);
        let page = |at: usize| span.page(if at < entered { at } else { 0 }) as i32;
        (0..self.kv_heads)
            .flat_map(|head| (0..count).map(move |at| head * self.pages + page(at)))
            .collect()
    }

    /// Appends the slots of a position in the pool, one for each head.
    fn slots(self, span: &Span<'_>, position: usize, slots: &mut Vec<i32>) {
        let (page, at) = (span.page(position / PAGE as usize), position % PAGE as usize);
        slots.extend(
            (0..self.kv_heads).map(|head| (head * self.pages + page as i32) * PAGE + at as i32),
        );
    }
}

/// The work that a span's tokens would be for the kernel.
fn paged_pieces(span: &Span<'_>) -> usize {
    // The first and the last say enough, and a span may have a hundred thousand tokens.
    let (first, last) = (span.from + 1, span.from + span.count);
    span.count * (kernel::pieces(first) + kernel::pieces(last)) / 2
}

#[cfg(test)]
mod tests {
    use interlock_engine::PageId;

    use super::*;

    const HEADS: PoolShape = PoolShape { kv_heads: 2, head_dim: 16, pages: 100 };

    fn pages(count: u32) -> Vec<PageId> {
        (0..count).map(PageId).collect()
    }

    /// Rows of `(from, count)`, one behind the other.
    fn plan(rows: &[(usize, usize)], paged_pieces_max: Option<usize>) -> PassPlan {
        let pages = pages(100);
        let mut total = 0;
        let spans: Vec<_> = rows
            .iter()
            .map(|&(from, count)| {
                total += count;
                Span { start: total - count, count, from, pages: &pages }
            })
            .collect();
        HEADS.plan(&spans, paged_pieces_max)
    }

    #[test]
    fn streams_and_short_pieces_of_prompts_are_one_call_of_the_kernel() {
        let streams = [(70, 1), (31, 1), (32, 1)];
        let mixed = [(70, 1), (0, 90), (31, 1), (64, 20), (32, 1)];
        for rows in [&streams[..], &mixed[..]] {
            let plan = plan(rows, Some(PAGED_PIECES_MAX));
            assert!(matches!(&plan.parts[..], [AttentionCall::Paged { tokens: None, .. }]));
            assert!(plan.order.is_none() && plan.cleared.is_none(), "nothing else in each layer");
        }
        let long = plan(&[(70, 1), (0, 2000), (64, 20)], Some(PAGED_PIECES_MAX));
        assert!(matches!(
            &long.parts[..],
            [AttentionCall::Prompt { .. }, AttentionCall::Paged { .. }]
        ));
    }

    #[test]
    fn pieces_of_like_length_are_computed_in_the_same_shape() {
        let shape = |from: usize, count: usize| {
            let plan = plan(&[(from, count)], None);
            let [AttentionCall::Prompt { tokens, piece, gather }] = &plan.parts[..] else {
                panic!("one piece of a prompt is one part");
            };
            assert_eq!((piece.len(), piece.start as usize), (count, from % WINDOW));
            (tokens.dim(0), gather.dim(0))
        };
        assert_eq!(shape(0, 513), shape(0, 700));
        assert_eq!(shape(300, 500), shape(511, 513));
        assert_eq!(shape(0, 512), (512, 2 * 512 / PAGE), "what fits is not padded");
    }

    #[test]
    fn a_piece_of_a_prompt_leaves_nothing_of_others_behind_it_in_its_page() {
        // It enters no page, and its own page was entered by a pass that had no need to clear it.
        let plan = plan(&[(33, 3)], None);
        assert_eq!(plan.cleared.map(|slots| slots.dim(0)), Some(2 * (64 - 36)));
    }
}
