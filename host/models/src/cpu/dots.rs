//! Dot products of a few rows with many: the shape of decoding, where each weight is read once
//! and memory is the limit. Written once over [`pulp::Simd`]; AVX-512, AVX2, NEON or scalar code
//! is chosen when it runs.

use pulp::{Arch, Simd, WithSimd};

/// Rows of weights that are read side by side: enough independent sums to hide the latency of a
/// multiply-add.
pub(super) const SIDE_BY_SIDE: usize = 4;

/// For each of `rows` and each of `weights`, their dot product goes to `out(row, weight)`.
///
/// All slices have one length.
pub(super) struct Dots<'a, Out> {
    pub(super) rows: &'a [&'a [f32]],
    pub(super) weights: &'a dyn Fn(usize) -> &'a [f32],
    pub(super) range: std::ops::Range<usize>,
    pub(super) out: Out,
}

impl<Out: FnMut(usize, usize, f32)> Dots<'_, Out> {
    pub(super) fn compute(self) {
        Arch::new().dispatch(self);
    }
}

impl<Out: FnMut(usize, usize, f32)> WithSimd for Dots<'_, Out> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let mut at = self.range.start;
        while at + SIDE_BY_SIDE <= self.range.end {
            let mut weights: [&[f32]; SIDE_BY_SIDE] = [&[]; SIDE_BY_SIDE];
            for (i, weight) in weights.iter_mut().enumerate() {
                *weight = (self.weights)(at + i);
            }
            let mut row = 0;
            while row + 2 <= self.rows.len() {
                let sums = dots::<S, 2, SIDE_BY_SIDE, 1>(
                    simd,
                    [self.rows[row], self.rows[row + 1]],
                    weights,
                );
                for (i, sums) in sums.into_iter().enumerate() {
                    for (j, sum) in sums.into_iter().enumerate() {
                        (self.out)(row + i, at + j, sum);
                    }
                }
                row += 2;
            }
            if row < self.rows.len() {
                let [sums] = dots::<S, 1, SIDE_BY_SIDE, 2>(simd, [self.rows[row]], weights);
                for (j, sum) in sums.into_iter().enumerate() {
                    (self.out)(row, at + j, sum);
                }
            }
            at += SIDE_BY_SIDE;
        }
        for at in at..self.range.end {
            let weight = (self.weights)(at);
            for (i, row) in self.rows.iter().enumerate() {
                let [[sum]] = dots::<S, 1, 1, 2>(simd, [row], [weight]);
                (self.out)(i, at, sum);
            }
        }
    }
}

/// Adds `count` rows, each times its factor, to `target`. All have its length.
pub(super) struct AddScaled<'a> {
    pub(super) target: &'a mut [f32],
    pub(super) count: usize,
    pub(super) row: &'a dyn Fn(usize) -> (f32, &'a [f32]),
}

impl AddScaled<'_> {
    pub(super) fn compute(self) {
        Arch::new().dispatch(self);
    }
}

impl WithSimd for AddScaled<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (sums, rest) = S::as_mut_simd_f32s(self.target);
        for at in 0..self.count {
            let (factor, row) = (self.row)(at);
            let factors = simd.splat_f32s(factor);
            let (vectors, tail) = S::as_simd_f32s(row);
            for (sum, vector) in sums.iter_mut().zip(vectors) {
                *sum = simd.mul_add_f32s(factors, *vector, *sum);
            }
            for (sum, value) in rest.iter_mut().zip(tail) {
                *sum += factor * value;
            }
        }
    }
}

/// `A` rows with `B` weights, `UNROLL` vectors of each at a time.
///
/// Plain loops with plain indices on purpose: a closure (`map`, `from_fn`) is a function of its own,
/// compiled without the caller's AVX-512, and the vector operations in it become calls.
#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "see above")]
fn dots<S: Simd, const A: usize, const B: usize, const UNROLL: usize>(
    simd: S,
    rows: [&[f32]; A],
    weights: [&[f32]; B],
) -> [[f32; B]; A] {
    let length = rows[0].len();
    let mut row_vectors: [(&[S::f32s], &[f32]); A] = [(&[], &[]); A];
    for a in 0..A {
        row_vectors[a] = S::as_simd_f32s(&rows[a][..length]);
    }
    let mut weight_vectors: [(&[S::f32s], &[f32]); B] = [(&[], &[]); B];
    for b in 0..B {
        weight_vectors[b] = S::as_simd_f32s(&weights[b][..length]);
    }
    let vectors = row_vectors[0].0.len();

    let mut sums = [[[simd.splat_f32s(0.0); UNROLL]; B]; A];
    let mut at = 0;
    while at + UNROLL <= vectors {
        for u in 0..UNROLL {
            for a in 0..A {
                let row = row_vectors[a].0[at + u];
                for b in 0..B {
                    let weight = weight_vectors[b].0[at + u];
                    sums[a][b][u] = simd.mul_add_f32s(row, weight, sums[a][b][u]);
                }
            }
        }
        at += UNROLL;
    }
    while at < vectors {
        for a in 0..A {
            let row = row_vectors[a].0[at];
            for b in 0..B {
                let weight = weight_vectors[b].0[at];
                sums[a][b][0] = simd.mul_add_f32s(row, weight, sums[a][b][0]);
            }
        }
        at += 1;
    }

    let mut results = [[0.0; B]; A];
    for a in 0..A {
        for b in 0..B {
            let mut sum = sums[a][b][0];
            for u in 1..UNROLL {
                sum = simd.add_f32s(sum, sums[a][b][u]);
            }
            let mut rest = 0.0;
            let tail = row_vectors[a].1.len();
            for i in 0..tail {
                rest += row_vectors[a].1[i] * weight_vectors[b].1[i];
            }
            results[a][b] = simd.reduce_sum_f32s(sum) + rest;
        }
    }
    results
}
