//! Pages as MLX arrays: attention is MLX's own, over copies of the pages that a pass gathers.
//!
//! ```text
//! pool, one for keys and one for values in each layer   [kv_heads * pages * PAGE_TOKENS, head_dim]
//!    writing    scatter of rows, in place: the array has no other owner
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
//! computed alone, under a causal mask, as if it began and ended at multiples of `WINDOW`: on
//! CUDA MLX has cuDNN plan each pair of lengths anew, which takes longer than computing it, and
//! keeps 256 plans.
//!
//! # Invariants
//!
//! - Between passes each pool is evaluated and held once, so that the next pass writes in place.
//! - A masked position weighs nothing, but zero times NaN is NaN. So a row that is computed under a
//!   mask clears the rest of its last page, and gathered lists are filled up with the row's own
//!   pages: one request's overflow never meets another's numbers. The kernel reads no further than a row goes.

use interlock_engine::PageId;
use mlx_rs::error::Exception;
use mlx_rs::fast::{self, ScaledDotProductAttentionMask};
use mlx_rs::ops::indexing::{TryIndexOp, scatter_single};
use mlx_rs::{Array, Dtype, ops, random, transforms};

use super::kernel::PagedAttention;
use super::plan::{AttentionCall, PAGED_PIECES_MAX, PassPlan};
use super::pool_shape::{PAGE, PoolShape};
use crate::dimensions::Dimensions;
use crate::rope::Rope;
use crate::span::Span;

/// Pages in MLX's arrays, and attention over them by MLX or by a kernel of our own.
pub(crate) struct MlxPages {
    layers: Vec<Option<KvArrays>>,
    heads: PoolShape,
    dtype: Dtype,
    plan: Option<PassPlan>,
    /// Single tokens by a kernel of our own, where it works.
    kernel: Result<PagedAttention, String>,
}

struct KvArrays {
    keys: Array,
    values: Array,
}

impl MlxPages {
    pub(crate) fn new(
        dimensions: &Dimensions,
        pages: i32,
        dtype: Dtype,
    ) -> Result<Self, Exception> {
        let Dimensions { layers, kv_heads, head_dim, heads: query_heads, .. } = *dimensions;
        let heads = PoolShape { kv_heads, head_dim, pages };
        let kernel = PagedAttention::find(heads, |kernel| heads.differ(kernel, query_heads, dtype));
        let layers = (0..layers).map(|_| None).collect();
        let mut made = Self { layers, heads, dtype, plan: None, kernel };
        made.clear()?;
        Ok(made)
    }

    /// What computes attention for decoding rows, for the log.
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
        let PoolShape { kv_heads, head_dim, pages } = self.heads;
        for pool in &mut self.layers {
            let empty = || ops::zeros_dtype(&[kv_heads * pages * PAGE, head_dim], self.dtype);
            let made = KvArrays { keys: empty()?, values: empty()? };
            transforms::eval([&made.keys, &made.values])?;
            *pool = Some(made);
        }
        Ok(())
    }

    /// Fills all pages with `value`, as if other sequences had left it there.
    #[cfg(test)]
    pub(super) fn fill(&mut self, value: f32) {
        for pool in self.layers.iter_mut().flatten() {
            let full = |like: &Array| ops::full_like(like, Array::from_f32(value), None).unwrap();
            *pool = KvArrays { keys: full(&pool.keys), values: full(&pool.values) };
        }
    }

    pub(crate) fn begin(&mut self, spans: &[Span<'_>]) {
        let paged_pieces_max = self.kernel.is_ok().then_some(PAGED_PIECES_MAX);
        self.plan = Some(self.heads.plan(spans, paged_pieces_max));
    }

    /// What must be computed before a pass has ended.
    pub(crate) fn arrays(&self) -> impl Iterator<Item = &Array> {
        self.layers.iter().flatten().flat_map(|pool| [&pool.keys, &pool.values])
    }

    /// Does what [`super::Batch::attend`] says, in MLX arrays.
    pub(crate) fn attend(
        &mut self,
        layer: usize,
        [queries, keys, values]: [&Array; 3],
        rope: &Rope,
        scale: f32,
    ) -> Result<Array, Exception> {
        let lost = || Exception::custom("a pass over pages that are lost");
        let plan = self.plan.as_ref().ok_or_else(lost)?;
        let pool = self.layers[layer].take().ok_or_else(lost)?;
        let PoolShape { kv_heads, head_dim, .. } = self.heads;
        let (total, heads) = (queries.dim(1), queries.dim(2) / head_dim);

        let by_token = |x: &Array, heads: i32| x.reshape(&[total, heads, 1, head_dim]);
        let queries = rope.forward(&by_token(queries, heads)?, &plan.positions)?;
        let keys = rope.forward(&by_token(keys, kv_heads)?, &plan.positions)?;
        let pool = KvArrays {
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

impl PassPlan {
    /// The pool with `new` of `[total, kv_heads, .., head_dim]` in it. Takes the old one, so that
    /// MLX finds no other owner of its memory.
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

impl AttentionCall {
    /// What this part's queries attend to, `[tokens, heads, head_dim]`. `queries` are the whole
    /// table's, `[total, heads, 1, head_dim]`.
    fn attend(
        &self,
        queries: &Array,
        pool: &KvArrays,
        heads: PoolShape,
        kernel: Option<&PagedAttention>,
        scale: f32,
    ) -> Result<Array, Exception> {
        let query_heads = queries.dim(1);
        let head_dim = heads.head_dim;
        let of = |tokens: &Option<Array>| match tokens {
            None => Ok(queries.clone()),
            Some(tokens) => queries.take_axis(tokens, 0),
        };
        match self {
            Self::Paged { tokens, rows } => {
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

impl PoolShape {
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

    /// The largest difference between what the kernel computes and what MLX's own operations do, for
    /// short rows and long ones, rows that end with a page and rows that do not, and a piece of a
    /// prompt.
    fn differ(
        self,
        kernel: &PagedAttention,
        query_heads: i32,
        dtype: Dtype,
    ) -> Result<f32, Exception> {
        /// The first position and the number of tokens of each row.
        const ROWS: [(usize, usize); 6] = [(255, 1), (0, 1), (32, 1), (31, 1), (699, 1), (100, 40)];
        let scale = (self.head_dim as f32).powf(-0.5);
        let heads = Self { pages: 64, ..self };
        let key = random::key(7)?;
        let noise = |shape: &[i32], salt: u32| -> Result<Array, Exception> {
            let key = key.add(Array::from_slice(&[0, salt], &[2]))?;
            random::normal::<f32>(shape, None, None, &key)?.as_dtype(dtype)
        };
        let size = [heads.kv_heads * heads.pages * PAGE, heads.head_dim];
        let pool = KvArrays { keys: noise(&size, 1)?, values: noise(&size, 2)? };
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
        let mixed = |paged_pieces_max: Option<usize>| -> Result<Array, Exception> {
            let plan = heads.plan(&spans, paged_pieces_max);
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
}
