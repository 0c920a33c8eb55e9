//! Keys and values in pages, and attention over them: what makes a table of rows one pass.
//!
//! The engine hands out pages and says with each row which are its; [`Batch::attend`] writes the
//! pass's new keys and values into them and lets each query look at its own sequence. Two stores
//! do that, chosen when the model is loaded: [`CpuPages`](crate::cpu::pages::CpuPages) on the CPU,
//! [`MlxPages`] where MLX computes attention.
//!
//! # Invariants
//!
//! - Keys and values never move: joining, leaving, preempting and sharing a prefix are changes
//!   to a row's list of pages.
//! - A pass writes only positions from each row's `from` on.
//! - On the CPU a row's numbers are the same to the bit whatever rows are beside it, however its prompt was
//!   cut and wherever its pages lie. On a GPU they are not: MLX picks kernels by shape.
//!
//! # Not here
//!
//! Which page is free, shared or to be evicted: the engine's.
//!
//! State that is not by position, which a recurrent layer has (a convolution's last inputs, a
//! linear attention's matrix). Pages do not fit it: it is overwritten at each step, so a prefix
//! cannot be shared by pointing at it. It would be a pool of *slots* beside the pages, one in each
//! [`Sequence`](crate::Sequence) from `open` on, and `attend`'s sibling would gather the rows'
//! slots, step them and scatter them back. A prefix hit at a page border needs a snapshot of the
//! slot taken when the prompt passed that border; a pass that fails needs the slots as they were,
//! so it writes new ones and swaps after its last evaluation.

mod arrays;
mod kernel;
mod plan;
mod pool_shape;

use mlx_rs::Dtype;
use mlx_rs::error::Exception;

pub(crate) use arrays::MlxPages;

use crate::compute_error::ComputeError;
use crate::cpu::pages::CpuPages;
use crate::dimensions::Dimensions;
use crate::error::{LoadError, size};
use crate::rope::Rope;
use crate::span::{PAGE_TOKENS, Span};
use crate::tensor::Tensor;

/// The projected queries of a pass's tokens, `[1, total, heads * head_dim]`, and their keys and
/// values, `[1, total, kv_heads * head_dim]`, all before the rotary embedding.
#[derive(Clone, Copy)]
pub(crate) struct Qkv<'a> {
    pub(crate) queries: &'a Tensor,
    pub(crate) keys: &'a Tensor,
    pub(crate) values: &'a Tensor,
}

/// The rows of one pass, and the pages that hold their keys and values.
pub(crate) struct Batch<'a> {
    spans: Vec<Span<'a>>,
    pages: &'a mut KvPages,
}

/// All pages of a model.
pub(crate) enum KvPages {
    Cpu(CpuPages),
    Mlx(MlxPages),
}

impl<'a> Batch<'a> {
    /// The rows' tokens lie one after another in the order of `spans`.
    pub(crate) fn new(spans: Vec<Span<'a>>, pages: &'a mut KvPages) -> Self {
        match pages {
            KvPages::Cpu(pages) => pages.begin(),
            KvPages::Mlx(pages) => pages.begin(&spans),
        }
        Self { spans, pages }
    }

    /// Rotates queries and keys by their positions, writes keys and values into the rows' pages, and
    /// returns the values that each query attends to, `[1, total, heads * head_dim]`: those of its
    /// own sequence, up to its own position.
    pub(crate) fn attend(
        &mut self,
        layer: usize,
        qkv: Qkv<'_>,
        rope: &Rope,
        scale: f32,
    ) -> Result<Tensor, ComputeError> {
        let Qkv { queries, keys, values } = qkv;
        match self.pages {
            KvPages::Cpu(pages) => {
                let qkv = [queries.cpu()?, keys.cpu()?, values.cpu()?];
                Ok(Tensor::Cpu(pages.attend(layer, &self.spans, qkv, rope, scale)))
            }
            KvPages::Mlx(pages) => {
                let qkv = [queries.mlx()?, keys.mlx()?, values.mlx()?];
                Ok(Tensor::Mlx(pages.attend(layer, qkv, rope, scale)?))
            }
        }
    }
}

/// The bytes that all keys and values may take, and who set that limit.
#[derive(Debug, Clone, Copy)]
pub(crate) enum CacheBudget {
    /// The bytes that the configuration sets.
    Configured(u64),
    /// A share of the memory that is free.
    FromFreeMemory(u64),
}

/// How many pages a model gets, and the context that fits in them, in tokens.
#[derive(Debug)]
pub(crate) struct CacheSize {
    pub(crate) pages: u32,
    pub(crate) context: u32,
}

impl CacheSize {
    /// Sequences beyond which no more pages are taken, however much memory there is: tiny models
    /// would otherwise be given millions.
    const SEQUENCES_MAX: u64 = 256;

    /// Tokens that there is always room for, if a sequence may be that long: a model that cannot
    /// answer one question is of no use to anyone.
    const TOKENS_LEAST: u64 = 4096;

    /// Computes the pages that the budget holds, and cuts the context to what these hold.
    ///
    /// # Errors
    ///
    /// When a budget that was given does not hold what there must be room for. One that was found is
    /// only advice, and gives way.
    pub(crate) fn new(
        budget: CacheBudget,
        bytes_per_token: u64,
        context: u32,
    ) -> Result<Self, LoadError> {
        let page_tokens = u64::from(PAGE_TOKENS);
        let page_bytes = bytes_per_token.max(1) * page_tokens;
        let pages = |tokens: u64| tokens.div_ceil(page_tokens).max(1);
        let tokens_least = u64::from(context).min(Self::TOKENS_LEAST);
        let least = pages(tokens_least);
        let most = pages(u64::from(context)) * Self::SEQUENCES_MAX;
        let fit = match budget {
            CacheBudget::Configured(given) if given / page_bytes < least => {
                return Err(LoadError::Cache {
                    given,
                    tokens: u32::try_from(tokens_least).unwrap_or(u32::MAX),
                    needed: least * page_bytes,
                    held: given / page_bytes * page_tokens,
                });
            }
            CacheBudget::Configured(bytes) | CacheBudget::FromFreeMemory(bytes) => {
                bytes / page_bytes
            }
        };
        // MLX counts in i32.
        let pages = fit.clamp(least, most).min(u64::from(i32::MAX.unsigned_abs() / PAGE_TOKENS));
        let held = pages * page_tokens;
        Ok(Self {
            pages: u32::try_from(pages).unwrap_or(u32::MAX),
            context: context.min(u32::try_from(held).unwrap_or(u32::MAX)),
        })
    }

    /// In words, if the context had to be cut to what there is room for.
    pub(crate) fn cut(
        &self,
        budget: CacheBudget,
        bytes_per_token: u64,
        wanted: u32,
    ) -> Option<String> {
        if self.context >= wanted {
            return None;
        }
        let bytes = |tokens: u32| size(u64::from(tokens) * bytes_per_token);
        let held = match budget {
            CacheBudget::Configured(given) => format!("cache.memory_max gives it {}", size(given)),
            CacheBudget::FromFreeMemory(found) => {
                format!("its part of a quarter of the free memory is {}", size(found))
            }
        };
        let (context, needed) = (self.context, bytes(wanted));
        Some(format!(
            "a request may have {context} tokens and not {wanted}, which take {needed}: {held}; raise \
             cache.memory_max, or set model.context_max to {context}"
        ))
    }
}

impl KvPages {
    /// Pages in our own memory, for f32 on the CPU.
    pub(crate) fn on_cpu(dimensions: &Dimensions, pages: u32) -> Self {
        let size = |value: i32| value.unsigned_abs() as usize;
        let Dimensions { layers, kv_heads, head_dim, .. } = *dimensions;
        Self::Cpu(CpuPages::new(size(layers), size(kv_heads), size(head_dim), pages as usize))
    }

    /// Pages in MLX's arrays.
    pub(crate) fn in_mlx(
        dimensions: &Dimensions,
        pages: u32,
        dtype: Dtype,
    ) -> Result<Self, Exception> {
        MlxPages::new(dimensions, pages.cast_signed(), dtype).map(Self::Mlx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::CpuTensor;
    use crate::noise::noise;
    use crate::rope::RopeConfig;
    use interlock_engine::PageId;
    use mlx_rs::Array;

    #[test]
    fn there_is_room_for_one_sequence_and_no_more_than_anyone_could_use() {
        let sizes = |budget, bytes_per_token, context| {
            let cache_size = CacheSize::new(budget, bytes_per_token, context).unwrap();
            (cache_size.pages, cache_size.context)
        };
        use CacheBudget::{Configured, FromFreeMemory};
        assert_eq!(sizes(FromFreeMemory(0), 1000, 100_000), (4096 / PAGE_TOKENS, 4096));
        assert_eq!(sizes(FromFreeMemory(0), 1000, 100), (100_u32.div_ceil(PAGE_TOKENS), 100));
        assert_eq!(sizes(Configured(u64::MAX), 1, 64), (2 * 256, 64));
        assert_eq!(sizes(Configured(1000 * 10_000), 1000, 8192), (10_000 / PAGE_TOKENS, 8192));
        assert_eq!(sizes(Configured(1000 * 4096), 1000, 8192), (4096 / PAGE_TOKENS, 4096));
    }

    #[test]
    fn a_bound_that_does_not_hold_one_sequence_is_refused_with_both_numbers() {
        // The default model's: 30 layers, 3 heads of 64, f32.
        let bytes_per_token = 2 * 30 * 3 * 64 * 4;
        let refused =
            CacheSize::new(CacheBudget::Configured(64 << 20), bytes_per_token, 8192).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "cache.memory_max gives this model 64MiB, and 4096 tokens take 180MiB; raise it, or set \
             model.context_max to 1440 or less"
        );
        let fits =
            CacheSize::new(CacheBudget::Configured(64 << 20), bytes_per_token, 1440).unwrap();
        assert_eq!((fits.pages, fits.context), (1440 / PAGE_TOKENS, 1440));
        // And no page more than the bound holds.
        assert!(u64::from(fits.pages * PAGE_TOKENS) * bytes_per_token <= 64 << 20);
    }

    #[test]
    fn a_context_that_is_cut_is_said_with_both_numbers() {
        let cut =
            |budget| CacheSize::new(budget, 1 << 10, 8192).unwrap().cut(budget, 1 << 10, 8192);
        assert_eq!(
            cut(CacheBudget::Configured(5 << 20)).unwrap(),
            "a request may have 5120 tokens and not 8192, which take 8MiB: cache.memory_max gives it \
             5MiB; raise cache.memory_max, or set model.context_max to 5120"
        );
        assert!(
            cut(CacheBudget::FromFreeMemory(0))
                .unwrap()
                .contains("a quarter of the free memory is 0B")
        );
        assert_eq!(cut(CacheBudget::Configured(8 << 20)), None);
    }

    const SIZES: Dimensions = Dimensions {
        layers: 1,
        hidden: 1,
        intermediate: 1,
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
        vocabulary: 1,
        context: None,
    };

    fn rope() -> Rope {
        Rope::new(&RopeConfig {
            dimensions: 16,
            theta: 10_000.0,
            traditional: false,
            scaling: None,
            divisors: None,
        })
        .unwrap()
    }

    /// What `attend` makes of rows `(from, count, pages)`, whose numbers depend on the row and the
    /// position alone.
    fn attend(pages: &mut KvPages, table: &[(usize, usize, &[PageId])], heads: i32) -> Vec<f32> {
        let mut spans = Vec::new();
        let mut start = 0;
        let [mut queries, mut keys, mut values] = [const { Vec::new() }; 3];
        for &(from, count, pages) in table {
            spans.push(Span { start, count, from, pages });
            start += count;
            for position in from..from + count {
                let seed = u64::from(pages[0].0) * 1000 + position as u64;
                queries.extend(noise(seed, 4 * 16));
                keys.extend(noise(seed + 500, 2 * 16));
                values.extend(noise(seed + 900, 2 * 16));
            }
        }
        let on_cpu = matches!(pages, KvPages::Cpu(_));
        let tensor = |numbers: Vec<f32>| {
            let width = numbers.len() / start;
            if on_cpu {
                Tensor::Cpu(CpuTensor { width, numbers })
            } else {
                Tensor::Mlx(Array::from_slice(&numbers, &[1, start as i32, width as i32]))
            }
        };
        let keys = if heads == 2 { keys } else { noise(1, start * 16) };
        let (queries, keys, values) = (tensor(queries), tensor(keys), tensor(values));
        let qkv = Qkv { queries: &queries, keys: &keys, values: &values };
        match Batch::new(spans, pages).attend(0, qkv, &rope(), 0.25) {
            Ok(Tensor::Cpu(mixed)) => mixed.numbers,
            Ok(Tensor::Mlx(mixed)) => mixed.to_vec_exact().unwrap_or_default(),
            Err(_) => Vec::new(),
        }
    }

    /// Pages that others left full of NaN, which zero times a masked value would let through; rows
    /// of lengths in different buckets; prompts before, between and after decoding rows.
    #[test]
    fn both_stores_answer_alike_whatever_the_pages_held() {
        let count = 40;
        let mut cpu = KvPages::on_cpu(&SIZES, count);
        let mut mlx = KvPages::in_mlx(&SIZES, count, Dtype::Float32).unwrap();
        if let KvPages::Mlx(pages) = &mut mlx {
            pages.fill(f32::NAN);
        }
        let pages: [Vec<PageId>; 4] = [
            [7, 3].map(PageId).to_vec(),
            [30, 1, 9, 12, 2].map(PageId).to_vec(),
            [39, 0].map(PageId).to_vec(),
            [20, 21, 22, 23].map(PageId).to_vec(),
        ];
        let passes: [&[(usize, usize, usize)]; 5] = [
            &[(0, 0, 20), (1, 0, 70)],
            &[(0, 20, 1), (2, 0, 31), (1, 70, 1)],
            &[(2, 31, 1), (0, 21, 1), (3, 0, 1), (1, 71, 1)],
            &[(1, 72, 40), (3, 1, 99), (2, 32, 1)],
            &[(0, 22, 1), (1, 112, 1), (2, 33, 2), (3, 100, 1)],
        ];
        for table in passes {
            let table: Vec<_> =
                table.iter().map(|&(row, from, count)| (from, count, &pages[row][..])).collect();
            let (on_cpu, in_mlx) = (attend(&mut cpu, &table, 2), attend(&mut mlx, &table, 2));
            assert_eq!(on_cpu.len(), in_mlx.len());
            for (a, b) in on_cpu.iter().zip(&in_mlx) {
                assert!((a - b).abs() < 2e-5, "{a} on the CPU, {b} by MLX");
            }
        }
    }

    #[test]
    fn arrays_lost_in_a_pass_that_failed_are_made_anew() {
        let mut pages = KvPages::in_mlx(&SIZES, 2, Dtype::Float32).unwrap();
        let table: [(usize, usize, &[PageId]); 1] = [(0, 3, &[PageId(1)])];
        let right = attend(&mut pages, &table, 2);
        assert_eq!(right.len(), 3 * 4 * 16);
        // One key head where there are two: MLX refuses, and the pool is gone with the graph.
        assert!(attend(&mut pages, &table, 1).is_empty());
        assert!(attend(&mut pages, &table, 2).is_empty());
        let KvPages::Mlx(arrays) = &mut pages else { unreachable!("as made above") };
        arrays.clear().unwrap();
        assert_eq!(attend(&mut pages, &table, 2), right);
    }
}
