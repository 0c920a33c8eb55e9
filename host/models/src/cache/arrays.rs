//! Pages as MLX arrays: attention is MLX's own, over copies of the pages that a pass gathers.
//!
//! ```text
//! pool, one for keys and one for values in each layer   [kv_heads * pages * PAGE_TOKENS, head_dim]
//!    writing    scatter of rows, in place: nobody else holds the array
//!    reading    the same memory as [kv_heads * pages, PAGE_TOKENS, head_dim]; take by
//!               (head, page) makes [rows, kv_heads, length, head_dim], which the kernels take as is
//! ```
//!
//! Rows of one token (decoding), and short pieces of prompts, are computed together by a kernel that
//! reads their pages where they lie ([`super::kernel`]): each token of a piece is a query of its own.
//! Where it does not work, MLX's attention computes rows of one token and about the same length
//! together: lengths are rounded up to powers of two of pages, so that a row's attention costs at
//! most twice what its own length calls for, and so that there are few shapes.
//!
//! A long piece of a prompt is computed alone by MLX's attention, under a mask, in one of few shapes
//! too: on CUDA cuDNN plans each new shape, which takes tens of milliseconds, and pieces of prompts
//! have a new one in every pass.
//!
//! # Invariants
//!
//! - Between passes each pool is evaluated and held once, so that the next pass writes in place.
//! - A masked position weighs nothing, but zero times NaN is NaN. So whoever enters a page clears
//!   the rest of it, and a table is filled up with the row's own pages: one request's overflow
//!   never meets another's numbers.

use std::collections::BTreeMap;

use interlock_engine::PageId;
use mlx_rs::error::Exception;
use mlx_rs::fast::{self, ScaledDotProductAttentionMask};
use mlx_rs::ops::indexing::{TryIndexOp, scatter_single};
use mlx_rs::{Array, Dtype, ops, random, transforms};

use super::kernel::{self, Attention};
use super::{PAGE_TOKENS, Projected, Span};
use crate::families::Dimensions;
use crate::rope::Rope;

pub(super) const PAGE: i32 = PAGE_TOKENS.cast_signed();

/// A piece of a prompt is followed by our kernel while its tokens times the length behind them are
/// no more than this: the kernel reads keys and values again for each token, MLX's attention once
/// for many, but behind a copy and in shapes that have to be planned.
const FOLLOWED_MAX: usize = 1 << 16;

pub(crate) struct ArrayPages {
    layers: Vec<Option<Pool>>,
    heads: Heads,
    dtype: Dtype,
    plan: Option<Plan>,
    /// Decoding rows by a kernel of our own, where it works.
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
    pub(super) shapes: Shapes,
}

/// In which shapes MLX's attention is given long pieces of prompts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shapes {
    /// As long as they are, under MLX's own causal mask.
    Exact,
    /// In few, filled up, under a mask that is an array.
    Few,
}

impl Shapes {
    /// On CUDA cuDNN plans each new shape, 60 to 100 ms on an H200. Metal's kernels take any.
    const HERE: Self = if cfg!(target_os = "macos") { Self::Exact } else { Self::Few };
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
    /// Single tokens, by our kernel.
    Followed { tokens: Option<Array>, rows: kernel::Rows },
    /// Several tokens of one sequence.
    Prompt(Prompt),
}

/// A piece of a prompt that MLX's attention computes.
struct Prompt {
    start: i32,
    count: i32,
    /// Queries with those that fill the shape up.
    queries: i32,
    /// Positions with those that fill the shape up.
    length: i32,
    /// `[kv_heads * pages]`: those in which `length` positions lie.
    gather: Array,
    /// What is added to the scores, `[1, 1, queries, length]`: 0, or minus infinity where a query
    /// must not look. None: it is causal, the last query sees all.
    mask: Option<Array>,
}

impl ArrayPages {
    pub(crate) fn new(
        dimensions: &Dimensions,
        pages: i32,
        dtype: Dtype,
    ) -> Result<Self, Exception> {
        let Dimensions { layers, kv_heads, head_dim, heads: query_heads, .. } = *dimensions;
        let heads = Heads { kv_heads, head_dim, pages, shapes: Shapes::HERE };
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
        let Heads { kv_heads, head_dim, pages, .. } = self.heads;
        for pool in &mut self.layers {
            let empty = || ops::zeros_dtype(&[kv_heads * pages * PAGE, head_dim], self.dtype);
            let made = Pool { keys: empty()?, values: empty()? };
            transforms::eval([&made.keys, &made.values])?;
            *pool = Some(made);
        }
        Ok(())
    }

    /// As on another platform.
    #[cfg(test)]
    pub(super) fn with_shapes(mut self, shapes: Shapes) -> Self {
        self.heads.shapes = shapes;
        self
    }

    /// As if others had left this everywhere.
    #[cfg(test)]
    pub(super) fn fill(&mut self, value: f32) {
        for pool in self.layers.iter_mut().flatten() {
            let full = |like: &Array| ops::full_like(like, Array::from_f32(value), None).unwrap();
            *pool = Pool { keys: full(&pool.keys), values: full(&pool.values) };
        }
    }

    pub(crate) fn begin(&mut self, spans: &[Span<'_>]) -> Result<(), Exception> {
        self.plan = Some(self.heads.plan(spans, self.kernel.is_ok(), self.dtype)?);
        Ok(())
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
            Self::Prompt(prompt) => prompt.attend(queries, pool, heads, scale),
        }
    }
}

impl Prompt {
    /// Shapes beyond this are whole multiples of it: rounding up further would cost more than the
    /// plans that it saves.
    const QUERIES_STEP: usize = 256;

    /// How many queries are computed in place of so many.
    fn queries(count: usize) -> usize {
        if count <= Self::QUERIES_STEP {
            count.next_power_of_two().max(PAGE as usize)
        } else {
            count.next_multiple_of(Self::QUERIES_STEP)
        }
    }

    /// How many pages are looked at in place of so many: four sizes from one power of two to the
    /// next.
    fn pages(count: usize) -> usize {
        count.next_multiple_of((count.next_power_of_two() / 8).max(8))
    }

    /// See [`Part::attend`].
    fn attend(
        &self,
        queries: &Array,
        pool: &Pool,
        heads: Heads,
        scale: f32,
    ) -> Result<Array, Exception> {
        let Self { start, count, length, gather, mask, .. } = self;
        let (query_heads, head_dim) = (queries.dim(1), heads.head_dim);
        let own = queries.try_index((*start..start + count, .., .., ..))?.reshape(&[
            1,
            *count,
            query_heads,
            head_dim,
        ])?;
        let missing = self.queries - count;
        let all = if missing == 0 {
            own
        } else {
            let none = ops::zeros_dtype(&[1, missing, query_heads, head_dim], own.dtype())?;
            ops::concatenate(&[own, none], 1)?
        };
        let seen = |pool: &Array| {
            let entered = gather.dim(0) / heads.kv_heads * PAGE;
            heads.gather(pool, gather, 1, entered)?.try_index((.., .., ..*length, ..))
        };
        let mask = match mask {
            Some(mask) => mask.into(),
            None => ScaledDotProductAttentionMask::Causal,
        };
        fast::scaled_dot_product_attention(
            all.transpose_axes(&[0, 2, 1, 3])?,
            seen(&pool.keys)?,
            seen(&pool.values)?,
            scale,
            mask,
            None,
        )? // [1, heads, queries, head_dim]
        .transpose_axes(&[0, 2, 1, 3])?
        .try_index((0, ..*count, .., ..)) // [count, heads, head_dim]
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

    /// Where these rows read and write. `follow`: our kernel works here.
    fn plan(self, spans: &[Span<'_>], follow: bool, dtype: Dtype) -> Result<Plan, Exception> {
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
            // If its last page is new to it: what was there before is someone else's.
            if span.from <= (end - 1) / PAGE as usize * PAGE as usize {
                for position in end..end.next_multiple_of(PAGE as usize) {
                    self.slots(span, position, &mut cleared);
                }
            }
            if follow && (span.count == 1 || span.count * end <= FOLLOWED_MAX) {
                followed.push(span);
            } else if span.count == 1 {
                let pages = end.div_ceil(PAGE as usize).next_power_of_two();
                decoding.entry(pages).or_default().push(span);
            } else {
                order.extend(span.start..span.start + span.count);
                parts.push(Part::Prompt(self.prompt(span, dtype)?));
            }
        }
        if !followed.is_empty() {
            order.extend(followed.iter().flat_map(|span| span.start..span.start + span.count));
            parts.push(self.followed(&followed, followed.len() == spans.len()));
        }
        for (pages, rows) in decoding {
            order.extend(rows.iter().map(|span| span.start));
            parts.push(self.decoding(pages, &rows, rows.len() == spans.len()));
        }
        let mut back = vec![0; order.len()];
        for (now, &then) in order.iter().enumerate() {
            back[then] = now as i32;
        }
        Ok(Plan {
            positions: numbers(&positions),
            slots: numbers(&slots),
            cleared: (!cleared.is_empty()).then(|| numbers(&cleared)),
            parts,
            order: (!back.is_sorted()).then(|| numbers(&back)),
        })
    }

    fn prompt(self, span: &Span<'_>, dtype: Dtype) -> Result<Prompt, Exception> {
        let (count, end) = (span.count as i32, span.from as i32 + span.count as i32);
        let entered = end.unsigned_abs().div_ceil(PAGE_TOKENS) as usize;
        let (queries, pages, length) = match self.shapes {
            Shapes::Exact => (count, entered, end),
            Shapes::Few => {
                let pages = Prompt::pages(entered);
                (Prompt::queries(span.count) as i32, pages, pages as i32 * PAGE)
            }
        };
        let mask = || {
            // Queries that only fill up see what the last one does: of nothing at all they would
            // make NaN.
            let sees: Vec<i32> =
                (0..queries).map(|at| (span.from as i32 + at).min(end - 1)).collect();
            let sees = Array::from_slice(&sees, &[1, 1, queries, 1]);
            let positions: Vec<i32> = (0..length).collect();
            let hidden = Array::from_slice(&positions, &[1, 1, 1, length]).gt(sees)?;
            let (none, all) = (Array::from_f32(f32::NEG_INFINITY), Array::from_f32(0.0));
            ops::select(hidden, none, all)?.as_dtype(dtype)
        };
        Ok(Prompt {
            start: span.start as i32,
            count,
            queries,
            length,
            gather: numbers(&self.pages_of(span, pages)),
            mask: if self.shapes == Shapes::Few { Some(mask()?) } else { None },
        })
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

    fn followed(self, spans: &[&Span<'_>], all: bool) -> Part {
        let mut rows = Vec::new();
        let mut tokens = Vec::new();
        for span in spans {
            for at in 0..span.count {
                rows.push((span.from + at + 1, span.pages));
                tokens.push((span.start + at) as i32);
            }
        }
        Part::Followed {
            tokens: (!all).then(|| numbers(&tokens)),
            rows: kernel::Rows::new(&rows, self.pages),
        }
    }

    /// The largest difference between what the kernel computes and what MLX's own operations do, for
    /// short rows and long ones, rows that end with a page and rows that do not, and a piece of a
    /// prompt.
    fn differ(self, kernel: &Attention, query_heads: i32, dtype: Dtype) -> Result<f32, Exception> {
        /// Positions before a row's tokens, and how many tokens.
        const ROWS: [(usize, usize); 6] = [(255, 1), (0, 1), (32, 1), (70, 45), (31, 1), (699, 1)];
        let scale = (self.head_dim as f32).powf(-0.5);
        let heads = Self { pages: 64, ..self };
        let key = random::key(7)?;
        let noise = |shape: &[i32], salt: u32| -> Result<Array, Exception> {
            let key = key.add(Array::from_slice(&[0, salt], &[2]))?;
            random::normal::<f32>(shape, None, None, &key)?.as_dtype(dtype)
        };
        let size = [heads.kv_heads * heads.pages * PAGE, heads.head_dim];
        let pool = Pool { keys: noise(&size, 1)?, values: noise(&size, 2)? };
        let total: usize = ROWS.iter().map(|(_, count)| count).sum();
        let queries = noise(&[total as i32, query_heads, 1, heads.head_dim], 3)?;
        let mut pages = (0..heads.pages as u32).rev().map(PageId);
        let pages: Vec<Vec<_>> = ROWS
            .iter()
            .map(|(from, count)| {
                pages.by_ref().take((from + count).div_ceil(PAGE as usize)).collect()
            })
            .collect();
        let mut start = 0;
        let mut spans = Vec::new();
        for ((from, count), pages) in ROWS.into_iter().zip(&pages) {
            spans.push(Span { start, count, from, pages });
            start += count;
        }
        let mixed = |follow: bool| -> Result<Array, Exception> {
            let plan = heads.plan(&spans, follow, dtype)?;
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
        let apart = mixed(true)?.subtract(mixed(false)?)?.as_dtype(Dtype::Float32)?.abs()?;
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

pub(super) fn numbers(numbers: &[i32]) -> Array {
    Array::from_slice(numbers, &[numbers.len() as i32])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// A server meets pieces of every length; cuDNN would plan each.
    #[test]
    fn pieces_of_every_length_have_few_shapes_that_are_little_larger() {
        let queries: BTreeSet<_> = (2..=2048).map(Prompt::queries).collect();
        assert_eq!(queries.len(), 11, "{queries:?}");
        let pages: BTreeSet<_> = (1..=1024).map(Prompt::pages).collect();
        assert_eq!(pages.len(), 24, "{pages:?}");
        for count in 1..=4096 {
            assert!(Prompt::queries(count) >= count && Prompt::pages(count) >= count);
            if count > 32 {
                assert!(Prompt::queries(count) < 2 * count, "{count} queries");
                assert!(4 * Prompt::pages(count) <= 5 * count + 4, "{count} pages");
            }
        }
    }
}
