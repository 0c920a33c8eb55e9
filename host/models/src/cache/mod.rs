//! Keys and values in pages, and attention over them: what makes a table of rows one pass.
//!
//! The engine hands out pages and says with each row which are its; [`Batch::attend`] writes the
//! pass's new keys and values into them and lets each query look at its own sequence. Two stores
//! do that, chosen when the model is loaded: [`HostPages`](crate::cpu::pages::HostPages) on the CPU,
//! [`ArrayPages`] where MLX computes attention.
//!
//! # Invariants
//!
//! - Nobody's keys and values move: joining, leaving, preempting and sharing a prefix are changes
//!   to a row's list of pages.
//! - A pass writes only positions from each row's `from` on.
//! - On the CPU a row's numbers are the same to the bit whatever its company, however its prompt was
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

use interlock_engine::PageId;
use mlx_rs::Dtype;
use mlx_rs::error::Exception;

pub(crate) use arrays::ArrayPages;

use crate::cpu::pages::HostPages;
use crate::families::Dimensions;
use crate::rope::Rope;
use crate::tensor::Tensor;

/// Positions in one page. On the CPU a page's keys are read by whole vectors of positions, so it is
/// a multiple of 16; smaller pages waste less memory at each sequence's end and share prefixes more
/// finely, larger ones make longer reads.
pub(crate) const PAGE_TOKENS: u32 = 32;

const _: () = assert!(PAGE_TOKENS as usize == crate::cpu::attention::PAGE);

/// One row of the table, seen from the cache.
#[derive(Clone, Copy)]
pub(crate) struct Span<'a> {
    /// Its first token's place in the table, and how many it has.
    pub(crate) start: usize,
    pub(crate) count: usize,
    /// Its first token's position in the sequence.
    pub(crate) from: usize,
    pub(crate) pages: &'a [PageId],
}

impl Span<'_> {
    /// The page in which the sequence's `at`th page lies.
    pub(crate) fn page(&self, at: usize) -> usize {
        self.pages[at].0 as usize
    }
}

/// What a layer makes of the table before attention: `[1, total, heads * head_dim]`, and as many
/// `kv_heads` for the other two. Not turned yet.
#[derive(Clone, Copy)]
pub(crate) struct Projected<'a> {
    pub(crate) queries: &'a Tensor,
    pub(crate) keys: &'a Tensor,
    pub(crate) values: &'a Tensor,
}

/// The table of one pass.
pub(crate) struct Batch<'a> {
    spans: Vec<Span<'a>>,
    pages: &'a mut Pages,
}

/// All pages of a model.
pub(crate) enum Pages {
    Host(HostPages),
    Arrays(ArrayPages),
}

impl<'a> Batch<'a> {
    /// The rows' tokens lie one after another in the order of `spans`.
    pub(crate) fn new(spans: Vec<Span<'a>>, pages: &'a mut Pages) -> Self {
        match pages {
            Pages::Host(pages) => pages.begin(),
            Pages::Arrays(pages) => pages.begin(&spans),
        }
        Self { spans, pages }
    }

    /// Turns queries and keys by their positions, writes keys and values into the rows' pages, and
    /// returns the values that each query attends to, `[1, total, heads * head_dim]`: those of its
    /// own sequence, up to its own position.
    pub(crate) fn attend(
        &mut self,
        layer: usize,
        projected: Projected<'_>,
        rope: &Rope,
        scale: f32,
    ) -> Result<Tensor, Exception> {
        match self.pages {
            Pages::Host(pages) => {
                pages.attend(layer, &self.spans, projected, rope, scale).map(Tensor::Host)
            }
            Pages::Arrays(pages) => pages.attend(layer, projected, rope, scale).map(Tensor::Device),
        }
    }
}

/// How many pages a model gets and where they lie.
pub(crate) struct Room {
    pub(crate) pages: u32,
    pub(crate) context: u32,
}

impl Room {
    /// Sequences beyond which no more pages are taken, however much memory there is: tiny models
    /// would otherwise be given millions.
    const SEQUENCES_MAX: u64 = 256;

    /// Tokens that there is always room for, if a sequence may be that long: a model that cannot
    /// answer one question is of no use to anyone.
    const TOKENS_LEAST: u64 = 4096;

    /// As many pages as `bytes` hold; and the context is cut to what they hold.
    pub(crate) fn new(bytes: u64, bytes_per_token: u64, context: u32) -> Self {
        let page_tokens = u64::from(PAGE_TOKENS);
        let pages = |tokens: u64| tokens.div_ceil(page_tokens).max(1);
        let least = pages(u64::from(context).min(Self::TOKENS_LEAST));
        let most = pages(u64::from(context)) * Self::SEQUENCES_MAX;
        let fit = bytes / (bytes_per_token.max(1) * page_tokens);
        // MLX counts in i32.
        let pages = fit.clamp(least, most).min(u64::from(i32::MAX.unsigned_abs() / PAGE_TOKENS));
        let held = pages * page_tokens;
        Self {
            pages: u32::try_from(pages).unwrap_or(u32::MAX),
            context: context.min(u32::try_from(held).unwrap_or(u32::MAX)),
        }
    }
}

impl Pages {
    /// Pages in our own memory, for f32 on the CPU.
    pub(crate) fn on_host(dimensions: &Dimensions, pages: u32) -> Self {
        let size = |value: i32| value.unsigned_abs() as usize;
        let Dimensions { layers, kv_heads, head_dim, .. } = *dimensions;
        Self::Host(HostPages::new(size(layers), size(kv_heads), size(head_dim), pages as usize))
    }

    /// Pages in MLX's arrays.
    pub(crate) fn in_arrays(
        dimensions: &Dimensions,
        pages: u32,
        dtype: Dtype,
    ) -> Result<Self, Exception> {
        ArrayPages::new(dimensions, pages.cast_signed(), dtype).map(Self::Arrays)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Host;
    use crate::noise::noise;
    use mlx_rs::Array;

    #[test]
    fn there_is_room_for_one_sequence_and_no_more_than_anyone_could_use() {
        let room = Room::new(0, 1000, 100_000);
        assert_eq!((room.pages, room.context), (4096 / PAGE_TOKENS, 4096));
        let room = Room::new(0, 1000, 100);
        assert_eq!((room.pages, room.context), (100_u32.div_ceil(PAGE_TOKENS), 100));
        let room = Room::new(u64::MAX, 1, 64);
        assert_eq!((room.pages, room.context), (2 * 256, 64));
        let room = Room::new(1000 * 10_000, 1000, 8192);
        assert_eq!((room.pages, room.context), (10_000 / PAGE_TOKENS, 8192));
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
        Rope::new(&crate::rope::Rotation {
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
    fn attend(pages: &mut Pages, table: &[(usize, usize, &[PageId])], heads: i32) -> Vec<f32> {
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
        let on_host = matches!(pages, Pages::Host(_));
        let tensor = |numbers: Vec<f32>| {
            let width = numbers.len() / start;
            if on_host {
                Tensor::Host(Host { width, numbers })
            } else {
                Tensor::Device(Array::from_slice(&numbers, &[1, start as i32, width as i32]))
            }
        };
        let keys = if heads == 2 { keys } else { noise(1, start * 16) };
        let (queries, keys, values) = (tensor(queries), tensor(keys), tensor(values));
        let projected = Projected { queries: &queries, keys: &keys, values: &values };
        match Batch::new(spans, pages).attend(0, projected, &rope(), 0.25) {
            Ok(Tensor::Host(mixed)) => mixed.numbers,
            Ok(Tensor::Device(mixed)) => mixed.to_vec_exact().unwrap_or_default(),
            Err(_) => Vec::new(),
        }
    }

    /// Pages that others left full of NaN, which zero times a masked value would let through; rows
    /// of lengths in different buckets; prompts before, between and after decoding rows.
    #[test]
    fn both_stores_answer_alike_whatever_the_pages_held() {
        let count = 40;
        let mut host = Pages::on_host(&SIZES, count);
        let mut arrays = Pages::in_arrays(&SIZES, count, Dtype::Float32).unwrap();
        if let Pages::Arrays(pages) = &mut arrays {
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
            let (on_host, in_arrays) =
                (attend(&mut host, &table, 2), attend(&mut arrays, &table, 2));
            assert_eq!(on_host.len(), in_arrays.len());
            for (a, b) in on_host.iter().zip(&in_arrays) {
                assert!((a - b).abs() < 2e-5, "{a} on the host, {b} in arrays");
            }
        }
    }

    #[test]
    fn arrays_lost_in_a_pass_that_failed_are_made_anew() {
        let mut pages = Pages::in_arrays(&SIZES, 2, Dtype::Float32).unwrap();
        let table: [(usize, usize, &[PageId]); 1] = [(0, 3, &[PageId(1)])];
        let right = attend(&mut pages, &table, 2);
        assert_eq!(right.len(), 3 * 4 * 16);
        // One key head where there are two: MLX refuses, and the pool is gone with the graph.
        assert!(attend(&mut pages, &table, 1).is_empty());
        assert!(attend(&mut pages, &table, 2).is_empty());
        let Pages::Arrays(arrays) = &mut pages else { unreachable!("as made above") };
        arrays.clear().unwrap();
        assert_eq!(attend(&mut pages, &table, 2), right);
    }
}
