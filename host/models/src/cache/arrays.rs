//! Pages as MLX arrays: attention is MLX's own, over copies of the pages that a pass gathers.
//!
//! ```text
//! pool, one for keys and one for values in each layer   [kv_heads * pages * PAGE_TOKENS, head_dim]
//!    writing    scatter of rows, in place: nobody else holds the array
//!    reading    the same memory as [kv_heads * pages, PAGE_TOKENS, head_dim]; take by
//!               (head, page) makes [rows, kv_heads, length, head_dim], which the kernels take as is
//! ```
//!
//! Rows of one token (decoding) are computed together by a kernel that reads their pages where they
//! lie ([`super::kernel`]), and so are the tokens of a short piece of a prompt, each as a row of its
//! own: keys and values are written before anyone reads, so each sees those before it. A pass of
//! streams and short pieces is then the same graph as one of streams alone, and MLX finds it again;
//! a call for each prompt is a dozen more operations in each layer, and another graph.
//!
//! Where the kernel does not work, MLX's attention computes rows of about the same length together:
//! lengths are rounded up to powers of two of pages, so that a row's attention costs at most twice
//! what its own length calls for, and so that there are few shapes. A longer piece of a prompt is
//! computed alone, under a causal mask, as if it began and ended at multiples of [`WINDOW`]: on
//! CUDA MLX has cuDNN plan each pair of lengths anew, which takes longer than computing it, and
//! keeps 256 plans.
//!
//! # Invariants
//!
//! - Between passes each pool is evaluated and held once, so that the next pass writes in place.
//! - A masked position weighs nothing, but zero times NaN is NaN. So whoever is computed under a
//!   mask clears the rest of its last page, and a table is filled up with the row's own pages: one
//!   request's overflow never meets another's numbers. The kernel reads no further than a row goes.

use std::collections::BTreeMap;
use std::ops::Range;

use interlock_engine::PageId;
use mlx_rs::error::Exception;
use mlx_rs::fast::{self, ScaledDotProductAttentionMask};
use mlx_rs::ops::indexing::{TryIndexOp, scatter_single};
use mlx_rs::{Array, Dtype, ops, random, transforms};

use super::kernel::{self, Attention, Follower};
use super::{PAGE_TOKENS, Projected, Span};
use crate::families::Dimensions;
use crate::rope::Rope;

pub(super) const PAGE: i32 = PAGE_TOKENS.cast_signed();

/// A piece of a prompt under MLX's attention is padded to begin and end at multiples of this.
const WINDOW: usize = 256;

/// The kernel computes a piece of a prompt that makes it at most so much work, in groups of threads
/// for each key head. It reads keys anew for each query, which MLX's attention does not, so beyond
/// some hundred tokens it loses what it saves. 1,024 are 512 tokens from the start of a prompt, or
/// 64 behind 2,000.
const FOLLOWED_PIECES_MAX: usize = 1024;

pub(crate) struct ArrayPages {
    layers: Vec<Option<Pool>>,
    heads: Heads,
    dtype: Dtype,
    plan: Option<Plan>,
    /// Single tokens by a kernel of our own, where it works.
    kernel: Result<Attention, String>,
}

struct Pool {
    keys: Array,
    values: Array,
}

#[derive(Clone, Copy)]
pub(super) struct Heads {
    pub(super) kv_heads: i32,
    pub(super) head_dim: i32,
    pub(super) pages: i32,
}

/// Where a pass reads and writes, the same in all layers.
struct Plan {
    /// `[total]`.
    positions: Array,
    /// `[total * kv_heads]`: where new keys and values go.
    slots: Array,
    /// What of newly entered pages stays unwritten.
    cleared: Option<Array>,
    parts: Vec<Part>,
    /// Brings the parts' results into the table's order, unless they are.
    order: Option<Array>,
}

/// Rows that are computed by one call.
enum Part {
    /// One token each.
    Decoding {
        /// Their places in the table, unless they are all there is.
        tokens: Option<Array>,
        rows: i32,
        /// `[rows * kv_heads * pages]`.
        gather: Array,
        length: i32,
        /// `[rows, 1, 1, length]`.
        mask: Array,
    },
    /// One token each, by our kernel.
    Followed { tokens: Option<Array>, rows: kernel::Rows },
    /// Several tokens of one sequence.
    Prompt {
        /// Of the padded piece's tokens, their places in the table; of those that only fill it up,
        /// the first's.
        tokens: Array,
        /// Which of them are the piece.
        piece: Range<i32>,
        gather: Array,
    },
}

impl ArrayPages {
    pub(crate) fn new(
        dimensions: &Dimensions,
        pages: i32,
        dtype: Dtype,
    ) -> Result<Self, Exception> {
        let Dimensions { layers, kv_heads, head_dim, heads: query_heads, .. } = *dimensions;
        let heads = Heads { kv_heads, head_dim, pages };
        let kernel = Attention::find(heads, |kernel| heads.differ(kernel, query_heads, dtype));
        let layers = (0..layers).map(|_| None).collect();
        let mut made = Self { layers, heads, dtype, plan: None, kernel };
        made.clear()?;
        Ok(made)
    }

    /// Who computes attention for decoding rows.
    pub(crate) fn attention(&self) -> String {
        match &self.kernel {
            Ok(_) => "our GPU kernel, over pages".to_owned(),
            Err(why) => format!("MLX's, over gathered pages ({why})"),
        }
    }

    /// Makes all pages anew, empty.
    pub(crate) fn clear(&mut self) -> Result<(), Exception> {
        self.plan = None;
        // The old go first: there may be no room for both.
        self.layers.iter_mut().for_each(|pool| *pool = None);
        let Heads { kv_heads, head_dim, pages } = self.heads;
        for pool in &mut self.layers {
            let empty = || ops::zeros_dtype(&[kv_heads * pages * PAGE, head_dim], self.dtype);
            let made = Pool { keys: empty()?, values: empty()? };
            transforms::eval([&made.keys, &made.values])?;
            *pool = Some(made);
        }
        Ok(())
    }

    /// As if others had left this everywhere.
    #[cfg(test)]
    pub(super) fn fill(&mut self, value: f32) {
        for pool in self.layers.iter_mut().flatten() {
            let full = |like: &Array| ops::full_like(like, Array::from_f32(value), None).unwrap();
            *pool = Pool { keys: full(&pool.keys), values: full(&pool.values) };
        }
    }

    pub(crate) fn begin(&mut self, spans: &[Span<'_>]) {
        let follow = self.kernel.is_ok().then_some(FOLLOWED_PIECES_MAX);
        self.plan = Some(self.heads.plan(spans, follow));
    }

    /// What must be computed before a pass has ended.
    pub(crate) fn arrays(&self) -> impl Iterator<Item = &Array> {
        self.layers.iter().flatten().flat_map(|pool| [&pool.keys, &pool.values])
    }

    /// See [`super::Batch::attend`].
    pub(crate) fn attend(
        &mut self,
        layer: usize,
        projected: Projected<'_>,
        rope: &Rope,
        scale: f32,
    ) -> Result<Array, Exception> {
        let lost = || Exception::custom("a pass over pages that are lost");
        let plan = self.plan.as_ref().ok_or_else(lost)?;
        let pool = self.layers[layer].take().ok_or_else(lost)?;
        let Projected { queries, keys, values } = projected;
        let (queries, keys, values) = (queries.device()?, keys.device()?, values.device()?);
        let Heads { kv_heads, head_dim, .. } = self.heads;
        let (total, heads) = (queries.dim(1), queries.dim(2) / head_dim);

        let by_token = |x: &Array, heads: i32| x.reshape(&[total, heads, 1, head_dim]);
        let queries = rope.forward(&by_token(queries, heads)?, &plan.positions)?;
        let keys = rope.forward(&by_token(keys, kv_heads)?, &plan.positions)?;
        let pool = Pool {
            keys: plan.write(pool.keys, &keys, head_dim)?,
            values: plan.write(pool.values, values, head_dim)?,
        };
        let mut mixed = Vec::with_capacity(plan.parts.len());
        for part in &plan.parts {
            mixed.push(part.attend(
                &queries,
                &pool,
                self.heads,
                self.kernel.as_ref().ok(),
                scale,
            )?);
        }
        self.layers[layer] = Some(pool);
        let mixed = match &mixed[..] {
            [one] => one.clone(),
            several => ops::concatenate(several, 0)?,
        }; // [total, heads, head_dim]
        let mixed = match &plan.order {
            None => mixed,
            Some(order) => mixed.take_axis(order, 0)?,
        };
        mixed.reshape(&[1, total, heads * head_dim])
    }
}

impl Plan {
    /// The pool with `new` of `[total, kv_heads, .., head_dim]` in it. Takes the old one, so that
    /// MLX finds nobody else at its memory.
    fn write(&self, pool: Array, new: &Array, head_dim: i32) -> Result<Array, Exception> {
        let rows = |slots: &Array| [slots.dim(0), 1, head_dim];
        let pool = match &self.cleared {
            None => pool,
            Some(slots) => {
                let zeros = ops::zeros_dtype(&rows(slots), pool.dtype())?;
                scatter_single(pool, slots, zeros, 0)?
            }
        };
        let new = new.reshape(&rows(&self.slots))?.as_dtype(pool.dtype())?;
        scatter_single(pool, &self.slots, new, 0)
    }
}

impl Part {
    /// What this part's queries attend to, `[tokens, heads, head_dim]`. `queries` are the whole
    /// table's, `[total, heads, 1, head_dim]`.
    fn attend(
        &self,
        queries: &Array,
        pool: &Pool,
        heads: Heads,
        kernel: Option<&Attention>,
        scale: f32,
    ) -> Result<Array, Exception> {
        let query_heads = queries.dim(1);
        let head_dim = heads.head_dim;
        let of = |tokens: &Option<Array>| match tokens {
            None => Ok(queries.clone()),
            Some(tokens) => queries.take_axis(tokens, 0),
        };
        match self {
            Self::Followed { tokens, rows } => {
                let kernel = kernel.ok_or_else(|| Exception::custom("a plan for no kernel"))?;
                kernel.attend(rows, &of(tokens)?, &pool.keys, &pool.values, scale)
            }
            Self::Decoding { tokens, rows, gather, length, mask } => {
                let queries = of(tokens)?;
                fast::scaled_dot_product_attention(
                    queries,
                    heads.gather(&pool.keys, gather, *rows, *length)?,
                    heads.gather(&pool.values, gather, *rows, *length)?,
                    scale,
                    mask,
                    None,
                )? // [rows, heads, 1, head_dim]
                .reshape(&[*rows, query_heads, head_dim])
            }
            Self::Prompt { tokens, piece, gather } => {
                let (padded, length) = (tokens.dim(0), gather.dim(0) / heads.kv_heads * PAGE);
                let queries = queries
                    .take_axis(tokens, 0)?
                    .reshape(&[1, padded, query_heads, head_dim])?
                    .transpose_axes(&[0, 2, 1, 3])?;
                fast::scaled_dot_product_attention(
                    queries,
                    heads.gather(&pool.keys, gather, 1, length)?,
                    heads.gather(&pool.values, gather, 1, length)?,
                    scale,
                    // Aligned with the last key: right in the middle of a prompt too, and whatever
                    // fills up the end, since queries and keys have equally much of it.
                    ScaledDotProductAttentionMask::Causal,
                    None,
                )? // [1, heads, padded, head_dim]
                .transpose_axes(&[0, 2, 1, 3])?
                .reshape(&[padded, query_heads, head_dim])?
                .try_index((piece.clone(), .., ..))
            }
        }
    }
}

impl Heads {
    /// `[rows, kv_heads, length, head_dim]`.
    fn gather(
        self,
        pool: &Array,
        pages: &Array,
        rows: i32,
        length: i32,
    ) -> Result<Array, Exception> {
        pool.reshape(&[self.kv_heads * self.pages, PAGE, self.head_dim])?
            .take_axis(pages, 0)?
            .reshape(&[rows, self.kv_heads, length, self.head_dim])
    }

    /// `follow`: the kernel computes single tokens, and pieces of prompts that are at most so much
    /// work for it.
    fn plan(self, spans: &[Span<'_>], follow: Option<usize>) -> Plan {
        let mut positions = Vec::new();
        let mut slots = Vec::new();
        let mut cleared = Vec::new();
        let mut decoding: BTreeMap<usize, Vec<&Span<'_>>> = BTreeMap::new();
        let mut followed = Vec::new();
        let mut parts = Vec::new();
        let mut order = Vec::new();
        for span in spans {
            let end = span.from + span.count;
            for position in span.from..end {
                positions.push(position as i32);
                self.slots(span, position, &mut slots);
            }
            if follow.is_some_and(|most| span.count == 1 || followed_pieces(span) <= most) {
                followed.push(span);
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
        if !followed.is_empty() {
            order.extend(followed.iter().flat_map(|span| span.start..span.start + span.count));
            parts.push(self.followed(&followed, total));
        }
        for (pages, rows) in decoding {
            order.extend(rows.iter().map(|span| span.start));
            parts.push(self.decoding(pages, &rows, rows.len() == total));
        }
        let mut back = vec![0; order.len()];
        for (now, &then) in order.iter().enumerate() {
            back[then] = now as i32;
        }
        Plan {
            positions: numbers(&positions),
            slots: numbers(&slots),
            cleared: (!cleared.is_empty()).then(|| numbers(&cleared)),
            parts,
            order: (!back.is_sorted()).then(|| numbers(&back)),
        }
    }

    /// A piece of a prompt, padded at both ends to multiples of [`WINDOW`].
    fn prompt(self, span: &Span<'_>) -> Part {
        let end = span.from + span.count;
        let begin = span.from / WINDOW * WINDOW;
        let padded = begin..end.next_multiple_of(WINDOW);
        let pages = padded.end / PAGE as usize;
        let place = |position: usize| match position.checked_sub(span.from) {
            Some(at) if at < span.count => span.start + at,
            _ => span.start,
        };
        let tokens: Vec<i32> = padded.map(|position| place(position) as i32).collect();
        Part::Prompt {
            tokens: numbers(&tokens),
            piece: (span.from - begin) as i32..(end - begin) as i32,
            gather: numbers(&self.pages_of(span, pages)),
        }
    }

    fn decoding(self, pages: usize, rows: &[&Span<'_>], all: bool) -> Part {
        let length = pages * PAGE as usize;
        let gather: Vec<i32> = rows.iter().flat_map(|span| self.pages_of(span, pages)).collect();
        let mask: Vec<bool> =
            rows.iter().flat_map(|span| (0..length).map(|at| at <= span.from)).collect();
        let tokens: Vec<i32> = rows.iter().map(|span| span.start as i32).collect();
        let rows = rows.len() as i32;
        Part::Decoding {
            tokens: (!all).then(|| numbers(&tokens)),
            rows,
            gather: numbers(&gather),
            length: length as i32,
            mask: Array::from_slice(&mask, &[rows, 1, 1, length as i32]),
        }
    }

    fn followed(self, spans: &[&Span<'_>], total: usize) -> Part {
        let mut followers = Vec::new();
        let mut tokens = Vec::new();
        let mut lists = Vec::new();
        for span in spans {
            let list = lists.len();
            for at in 0..span.count {
                followers.push(Follower { length: span.from + at + 1, list });
                tokens.push((span.start + at) as i32);
            }
            let pages = (span.from + span.count).div_ceil(PAGE as usize);
            lists.push((0..pages).map(|at| span.page(at) as i32).collect());
        }
        Part::Followed {
            tokens: (tokens.len() < total).then(|| numbers(&tokens)),
            rows: kernel::Rows::new(&followers, &lists, self.pages),
        }
    }

    /// The largest difference between what the kernel computes and what MLX's own operations do, for
    /// short rows and long ones, rows that end with a page and rows that do not, and a piece of a
    /// prompt.
    fn differ(self, kernel: &Attention, query_heads: i32, dtype: Dtype) -> Result<f32, Exception> {
        /// Where each row begins, and its tokens.
        const ROWS: [(usize, usize); 6] = [(255, 1), (0, 1), (32, 1), (31, 1), (699, 1), (100, 40)];
        let scale = (self.head_dim as f32).powf(-0.5);
        let heads = Self { pages: 64, ..self };
        let key = random::key(7)?;
        let noise = |shape: &[i32], salt: u32| -> Result<Array, Exception> {
            let key = key.add(Array::from_slice(&[0, salt], &[2]))?;
            random::normal::<f32>(shape, None, None, &key)?.as_dtype(dtype)
        };
        let size = [heads.kv_heads * heads.pages * PAGE, heads.head_dim];
        let pool = Pool { keys: noise(&size, 1)?, values: noise(&size, 2)? };
        let mut pages = (0..heads.pages as u32).rev().map(PageId);
        let pages: Vec<Vec<_>> = ROWS
            .iter()
            .map(|(from, count)| {
                pages.by_ref().take((from + count).div_ceil(PAGE as usize)).collect()
            })
            .collect();
        let mut total = 0;
        let mut spans = Vec::with_capacity(ROWS.len());
        for (&(from, count), pages) in ROWS.iter().zip(&pages) {
            spans.push(Span { start: total, count, from, pages });
            total += count;
        }
        let queries = noise(&[total as i32, query_heads, 1, heads.head_dim], 3)?;
        let mixed = |follow: Option<usize>| -> Result<Array, Exception> {
            let plan = heads.plan(&spans, follow);
            let parts: Vec<_> = plan
                .parts
                .iter()
                .map(|part| part.attend(&queries, &pool, heads, Some(kernel), scale))
                .collect::<Result<_, _>>()?;
            let mixed = ops::concatenate(&parts, 0)?;
            match &plan.order {
                None => Ok(mixed),
                Some(order) => mixed.take_axis(order, 0),
            }
        };
        let apart =
            mixed(Some(usize::MAX))?.subtract(mixed(None)?)?.as_dtype(Dtype::Float32)?.abs()?;
        ops::max(&apart, false)?
            .try_item_exact()
            .map_err(|error| Exception::custom(error.to_string()))
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

    /// Where a position's keys lie in the pool, one for each head.
    fn slots(self, span: &Span<'_>, position: usize, slots: &mut Vec<i32>) {
        let (page, at) = (span.page(position / PAGE as usize), position % PAGE as usize);
        slots.extend(
            (0..self.kv_heads).map(|head| (head * self.pages + page as i32) * PAGE + at as i32),
        );
    }
}

/// The work that a span's tokens would be for the kernel.
fn followed_pieces(span: &Span<'_>) -> usize {
    // The first and the last say enough, and a span may have a hundred thousand tokens.
    let (first, last) = (span.from + 1, span.from + span.count);
    span.count * (kernel::pieces(first) + kernel::pieces(last)) / 2
}

pub(super) fn numbers(numbers: &[i32]) -> Array {
    Array::from_slice(numbers, &[numbers.len() as i32])
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADS: Heads = Heads { kv_heads: 2, head_dim: 16, pages: 100 };

    fn pages(count: u32) -> Vec<PageId> {
        (0..count).map(PageId).collect()
    }

    /// Rows of `(from, count)`, one behind the other.
    fn plan(rows: &[(usize, usize)], follow: Option<usize>) -> Plan {
        let pages = pages(100);
        let mut total = 0;
        let spans: Vec<_> = rows
            .iter()
            .map(|&(from, count)| {
                total += count;
                Span { start: total - count, count, from, pages: &pages }
            })
            .collect();
        HEADS.plan(&spans, follow)
    }

    #[test]
    fn streams_and_short_pieces_of_prompts_are_one_call_of_the_kernel() {
        let streams = [(70, 1), (31, 1), (32, 1)];
        let mixed = [(70, 1), (0, 90), (31, 1), (64, 20), (32, 1)];
        for rows in [&streams[..], &mixed[..]] {
            let plan = plan(rows, Some(FOLLOWED_PIECES_MAX));
            assert!(matches!(&plan.parts[..], [Part::Followed { tokens: None, .. }]));
            assert!(plan.order.is_none() && plan.cleared.is_none(), "nothing else in each layer");
        }
        let long = plan(&[(70, 1), (0, 2000), (64, 20)], Some(FOLLOWED_PIECES_MAX));
        assert!(matches!(&long.parts[..], [Part::Prompt { .. }, Part::Followed { .. }]));
    }

    #[test]
    fn pieces_of_like_length_are_computed_in_the_same_shape() {
        let shape = |from: usize, count: usize| {
            let plan = plan(&[(from, count)], None);
            let [Part::Prompt { tokens, piece, gather }] = &plan.parts[..] else {
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
