//! Attention of one group of query heads over the pages of one sequence, with SIMD.
//!
//! Queries attend to every position up to their own: scores, a softmax over all of them, and the
//! values' weighted sum. Nothing here knows which queries were asked for together.
//!
//! # Invariants
//!
//! A query's result depends on its own numbers, its position and the keys and values below it, to
//! the bit. So no sum's order depends on anything else:
//!
//! - a score is summed dimension by dimension; keys lie transposed in their page, so that the
//!   vector's lanes are positions, and none is summed across;
//! - the softmax's sum has one lane for each position modulo the lanes, filled from position 0, and
//!   one way to add the lanes up; the largest score is the same in any order;
//! - values are summed position by position; the lanes are dimensions.
//!
//! Chunks, tiles, pages and threads cut between these, never through one.

use pulp::{Arch, Simd, WithSimd};

use super::dense::load;
use crate::span::PAGE_TOKENS;

/// Positions in a page: a multiple of every machine's lanes.
pub(crate) const PAGE: usize = PAGE_TOKENS as usize;

/// Queries computed side by side, two vectors each: twelve sums, which hide the latency of a
/// multiply-add and fit sixteen registers.
const QUERIES: usize = 6;

/// Queries of one key head, and where all they need lies.
pub(super) struct HeadGroup<'a> {
    /// The first position's first query, rotated and scaled; a position's queries lie side by side.
    pub(super) queries: *const f32,
    /// Numbers between two positions' queries, and between two positions' results.
    pub(super) stride: usize,
    /// Queries that a position has for this key head.
    pub(super) heads: usize,
    /// Positions, and the first one's number.
    pub(super) positions: usize,
    pub(super) from: usize,
    pub(super) head_dim: usize,
    /// `[head_dim][PAGE]` of a page by its place in the sequence, and `[PAGE][head_dim]`.
    pub(super) keys: &'a dyn Fn(usize) -> *const f32,
    pub(super) values: &'a dyn Fn(usize) -> *const f32,
    /// The results, laid out as `queries` are.
    pub(super) out: *mut f32,
    /// Scratch memory of [`scores_needed`] numbers.
    pub(super) scores: &'a mut [f32],
}

/// Numbers that a group needs for the scores of `queries` queries up to position `last`.
pub(super) fn scores_needed(queries: usize, last: usize) -> usize {
    queries * (last + 1).next_multiple_of(PAGE)
}

impl HeadGroup<'_> {
    /// # Safety
    ///
    /// Queries, pages up to the last position's, and results must be there, and the results be
    /// this call's alone.
    pub(super) unsafe fn compute(self) {
        Arch::new().dispatch(self);
    }

    fn rows(&self) -> usize {
        self.positions * self.heads
    }

    /// The position of a query by its number.
    #[inline(always)]
    fn position(&self, row: usize) -> usize {
        self.from + row / self.heads
    }

    /// The offset of a query's numbers from those of the first query.
    #[inline(always)]
    fn offset(&self, row: usize) -> usize {
        row / self.heads * self.stride + row % self.heads * self.head_dim
    }

    /// Scores of one query.
    #[inline(always)]
    fn line(&self) -> usize {
        (self.from + self.positions).next_multiple_of(PAGE)
    }
}

impl WithSimd for HeadGroup<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        assert!(self.scores.len() >= self.rows() * self.line(), "room for all scores");
        let mut row = 0;
        while row < self.rows() {
            let queries = (self.rows() - row).min(QUERIES);
            match queries {
                1 => self.tile::<S, 1>(simd, row),
                2 => self.tile::<S, 2>(simd, row),
                3 => self.tile::<S, 3>(simd, row),
                4 => self.tile::<S, 4>(simd, row),
                5 => self.tile::<S, 5>(simd, row),
                _ => self.tile::<S, QUERIES>(simd, row),
            }
            row += queries;
        }
    }
}

// Plain loops with plain indices: see `dense`.
#[expect(clippy::needless_range_loop, reason = "see above")]
impl HeadGroup<'_> {
    #[inline(always)]
    fn tile<S: Simd, const A: usize>(&mut self, simd: S, row: usize) {
        for page in 0..=self.position(row + A - 1) / PAGE {
            self.score_page::<S, A>(simd, row, page);
        }
        let mut shares = [0.0; A];
        for a in 0..A {
            let (position, line) = (self.position(row + a), self.line());
            let scores = &mut self.scores[(row + a) * line..][..line];
            shares[a] = softmax::<S>(simd, scores, position + 1);
        }
        let vectors = self.head_dim / S::F32_LANES;
        let mut vector = 0;
        while vector + 2 <= vectors {
            self.mix::<S, A, 2>(simd, row, vector * S::F32_LANES, shares);
            vector += 2;
        }
        if vector < vectors {
            self.mix::<S, A, 1>(simd, row, vector * S::F32_LANES, shares);
        }
        for dimension in vectors * S::F32_LANES..self.head_dim {
            self.mix_dimension::<A>(row, dimension, shares);
        }
    }

    /// Scores of `A` queries with all positions of a page.
    #[inline(always)]
    fn score_page<S: Simd, const A: usize>(&mut self, simd: S, row: usize, page: usize) {
        let keys = (self.keys)(page);
        let line = self.line();
        let mut queries = [self.queries; A];
        for a in 0..A {
            queries[a] = self.queries.wrapping_add(self.offset(row + a));
        }
        for first in (0..PAGE).step_by(2 * S::F32_LANES) {
            let mut sums = [[simd.splat_f32s(0.0); 2]; A];
            for dimension in 0..self.head_dim {
                // SAFETY: a page has `PAGE` keys for each dimension, and lanes divide half of it.
                let low = unsafe { load::<S>(keys, dimension * PAGE + first) };
                // SAFETY: as above.
                let high = unsafe { load::<S>(keys, dimension * PAGE + first + S::F32_LANES) };
                for a in 0..A {
                    // SAFETY: a query has `head_dim` numbers.
                    let query = simd.splat_f32s(unsafe { *queries[a].add(dimension) });
                    sums[a][0] = simd.mul_add_f32s(query, low, sums[a][0]);
                    sums[a][1] = simd.mul_add_f32s(query, high, sums[a][1]);
                }
            }
            for a in 0..A {
                let at = (row + a) * line + page * PAGE + first;
                let (vectors, _) = S::as_mut_simd_f32s(&mut self.scores[at..at + 2 * S::F32_LANES]);
                vectors[0] = sums[a][0];
                vectors[1] = sums[a][1];
            }
        }
    }

    /// The weighted sum of values in `V` vectors of dimensions from `dimension`, for `A` queries.
    #[inline(always)]
    fn mix<S: Simd, const A: usize, const V: usize>(
        &mut self,
        simd: S,
        row: usize,
        dimension: usize,
        shares: [f32; A],
    ) {
        let line = self.line();
        let weights = self.scores.as_ptr();
        let mut sums = [[simd.splat_f32s(0.0); V]; A];
        // All queries of the tile look at the positions up to the first one's.
        let common = self.position(row) + 1;
        for page in 0..common.div_ceil(PAGE) {
            let values = (self.values)(page);
            for position in page * PAGE..((page + 1) * PAGE).min(common) {
                let at = (position - page * PAGE) * self.head_dim + dimension;
                let mut vectors = [simd.splat_f32s(0.0); V];
                for v in 0..V {
                    // SAFETY: a page has `PAGE` times `head_dim` values, and these are within it.
                    vectors[v] = unsafe { load::<S>(values, at + v * S::F32_LANES) };
                }
                for a in 0..A {
                    // SAFETY: a query has a score for each position up to its own.
                    let weight =
                        simd.splat_f32s(unsafe { *weights.add((row + a) * line + position) });
                    for v in 0..V {
                        sums[a][v] = simd.mul_add_f32s(weight, vectors[v], sums[a][v]);
                    }
                }
            }
        }
        for a in 0..A {
            for position in common..=self.position(row + a) {
                let values = (self.values)(position / PAGE);
                let at = position % PAGE * self.head_dim + dimension;
                // SAFETY: as above.
                let weight = simd.splat_f32s(unsafe { *weights.add((row + a) * line + position) });
                for v in 0..V {
                    // SAFETY: as above.
                    let vector = unsafe { load::<S>(values, at + v * S::F32_LANES) };
                    sums[a][v] = simd.mul_add_f32s(weight, vector, sums[a][v]);
                }
            }
            let share = simd.splat_f32s(shares[a]);
            for v in 0..V {
                let at = self.offset(row + a) + dimension + v * S::F32_LANES;
                // SAFETY: the result's place is this call's alone; a vector is plain numbers.
                unsafe {
                    let place = self.out.add(at).cast::<S::f32s>();
                    place.write_unaligned(simd.mul_f32s(sums[a][v], share));
                }
            }
        }
    }

    /// Does what `mix` does, for one dimension beyond the last whole vector.
    #[inline(always)]
    fn mix_dimension<const A: usize>(&mut self, row: usize, dimension: usize, shares: [f32; A]) {
        for a in 0..A {
            let mut sum = 0.0;
            for position in 0..=self.position(row + a) {
                let values = (self.values)(position / PAGE);
                let at = position % PAGE * self.head_dim + dimension;
                // SAFETY: as in `mix`.
                let value = unsafe { *values.add(at) };
                sum += self.scores[(row + a) * self.line() + position] * value;
            }
            // SAFETY: as in `mix`.
            unsafe { *self.out.add(self.offset(row + a) + dimension) = sum * shares[a] };
        }
    }
}

/// Makes the first `count` scores their exponentials relative to the largest. Returns what makes
/// shares of them: one over their sum. What follows `count` in its last vector becomes zero.
#[inline(always)]
fn softmax<S: Simd>(simd: S, scores: &mut [f32], count: usize) -> f32 {
    let whole = count.next_multiple_of(S::F32_LANES);
    // The page's earlier owner left keys there, whose scores must not count.
    scores[count..whole].fill(f32::NEG_INFINITY);
    let (vectors, _) = S::as_mut_simd_f32s(&mut scores[..whole]);
    let mut largest = simd.splat_f32s(f32::NEG_INFINITY);
    for vector in &*vectors {
        largest = simd.max_f32s(largest, *vector);
    }
    let largest = simd.splat_f32s(simd.reduce_max_f32s(largest));
    let mut sum = simd.splat_f32s(0.0);
    for vector in vectors {
        *vector = exponential::<S>(simd, simd.sub_f32s(*vector, largest));
        sum = simd.add_f32s(sum, *vector);
    }
    1.0 / simd.reduce_sum_f32s(sum)
}

/// `e^x` for `x` up to 0, within 2 units in the last place; below -87, where f32 has no normal
/// numbers left, 0.
///
/// `x` is split into `n ln 2 + r`. Adding 1.5 * 2^23 rounds to the nearest `n` and leaves it in the
/// low bits, from where it is shifted into the exponent. The polynomial is Cephes's `expf`.
#[inline(always)]
pub(super) fn exponential<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    const ROUND: f32 = 12_582_912.0;
    let splat = |value: f32| simd.splat_f32s(value);
    let rounded = simd.mul_add_f32s(x, splat(std::f32::consts::LOG2_E), splat(ROUND));
    let n = simd.sub_f32s(rounded, splat(ROUND));
    // ln 2 in two parts, the first with so few digits that its product with `n` is exact.
    let r = simd.mul_add_f32s(n, splat(-0.693_359_4), x);
    let r = simd.mul_add_f32s(n, splat(2.121_944_4e-4), r);
    let mut sum = splat(1.987_569_1e-4);
    for coefficient in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_6e-1, 0.5] {
        sum = simd.mul_add_f32s(sum, r, splat(coefficient));
    }
    let power = simd.add_f32s(simd.mul_add_f32s(sum, simd.mul_f32s(r, r), r), splat(1.0));
    let shift = simd.wrapping_dyn_shl_u32s(
        simd.transmute_u32s_f32s(rounded),
        simd.splat_u32s(f32::MANTISSA_DIGITS - 1),
    );
    let power = simd.transmute_f32s_u32s(simd.add_u32s(simd.transmute_u32s_f32s(power), shift));
    simd.select_f32s(simd.less_than_f32s(x, splat(-87.0)), splat(0.0), power)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Exponentials<'a>(&'a mut [f32]);

    impl WithSimd for Exponentials<'_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            let (vectors, _) = S::as_mut_simd_f32s(self.0);
            for vector in vectors {
                *vector = exponential::<S>(simd, *vector);
            }
        }
    }

    #[test]
    fn exponentials_are_within_two_units_in_the_last_place() {
        let inputs: Vec<f32> =
            (0..1 << 20).map(|i| i as f32 * (-87.0 / (1 << 20) as f32)).collect();
        let mut outputs = inputs.clone();
        Arch::new().dispatch(Exponentials(&mut outputs));
        for (x, got) in inputs.into_iter().zip(outputs) {
            let want = f64::from(x).exp();
            let unit = f64::from(f32::EPSILON) * want;
            assert!((f64::from(got) - want).abs() <= 2.0 * unit, "e^{x}: {got}, want {want}");
        }
        let mut edges = [f32::NEG_INFINITY; 16];
        edges[1] = 0.0;
        edges[2] = -1e30;
        Arch::new().dispatch(Exponentials(&mut edges));
        assert_eq!(edges[..3], [0.0, 1.0, 0.0]);
    }
}
