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
            let weights: [&[f32]; SIDE_BY_SIDE] = std::array::from_fn(|i| (self.weights)(at + i));
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

/// `A` rows with `B` weights, `UNROLL` vectors of each at a time.
#[inline(always)]
fn dots<S: Simd, const A: usize, const B: usize, const UNROLL: usize>(
    simd: S,
    rows: [&[f32]; A],
    weights: [&[f32]; B],
) -> [[f32; B]; A] {
    let length = rows[0].len();
    let rows = rows.map(|row| S::as_simd_f32s(&row[..length]));
    let weights = weights.map(|weight| S::as_simd_f32s(&weight[..length]));
    let vectors = rows[0].0.len();

    let mut sums = [[[simd.splat_f32s(0.0); UNROLL]; B]; A];
    let mut at = 0;
    while at + UNROLL <= vectors {
        for u in 0..UNROLL {
            for a in 0..A {
                for b in 0..B {
                    sums[a][b][u] =
                        simd.mul_add_f32s(rows[a].0[at + u], weights[b].0[at + u], sums[a][b][u]);
                }
            }
        }
        at += UNROLL;
    }
    while at < vectors {
        for a in 0..A {
            for b in 0..B {
                sums[a][b][0] = simd.mul_add_f32s(rows[a].0[at], weights[b].0[at], sums[a][b][0]);
            }
        }
        at += 1;
    }

    std::array::from_fn(|a| {
        std::array::from_fn(|b| {
            let mut sum = sums[a][b][0];
            for more in &sums[a][b][1..] {
                sum = simd.add_f32s(sum, *more);
            }
            let rest: f32 = rows[a].1.iter().zip(weights[b].1).map(|(x, w)| x * w).sum();
            simd.reduce_sum_f32s(sum) + rest
        })
    })
}
