//! Dot products of rows with rows of weights: what `x W^T` is made of. Written once over
//! [`pulp::Simd`]; AVX-512, AVX2, NEON or scalar code is chosen when it runs.
//!
//! # Invariants
//!
//! - A dot product depends on its two operands alone, to the bit: each has one vector of sums,
//!   filled from the front, and one way to add them up. How many rows and weights stand beside it,
//!   in which tile and on which thread, moves nothing. A request's tokens hang on this: its row is
//!   multiplied in whatever company the scheduler finds.

use pulp::{Arch, Simd, WithSimd};

/// Rows of weights that are read side by side.
pub(super) const WEIGHTS: usize = 4;

/// Rows that share what was read of the weights, where 32 vector registers allow it: with four
/// weights that makes 24 sums, and less than half a load for each multiply-add.
const ROWS: usize = 6;

/// The same where there are 16 registers of eight lanes (AVX2).
const ROWS_OF_SIXTEEN_REGISTERS: usize = 3;

/// Weights that stay in the nearest cache while all rows pass by.
const BLOCK: usize = 16;

/// Rows, `length` numbers each, `stride` numbers apart.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    pub(super) at: *const f32,
    pub(super) stride: usize,
}

/// `out[i][j] = alpha * rows[i] . weights[j] + beta * out[i][j]`. What was in `out` is not read when
/// `beta` is zero.
pub(super) struct Dots {
    pub(super) rows: Rows,
    pub(super) row_count: usize,
    pub(super) weights: Rows,
    pub(super) weight_count: usize,
    pub(super) length: usize,
    pub(super) alpha: f32,
    pub(super) beta: f32,
    pub(super) out: *mut f32,
    pub(super) out_stride: usize,
}

impl Dots {
    /// # Safety
    ///
    /// The counts, strides and the length must describe numbers that may be read, and those of
    /// `out` be this call's alone.
    pub(super) unsafe fn compute(self) {
        Arch::new().dispatch(self);
    }
}

impl WithSimd for Dots {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let most = if S::F32_LANES == 8 { ROWS_OF_SIXTEEN_REGISTERS } else { ROWS };
        for block in (0..self.weight_count).step_by(BLOCK) {
            let end = (block + BLOCK).min(self.weight_count);
            // Tiles as even as can be: a last one of one row would wait for its multiply-adds.
            let mut tiles = self.row_count.div_ceil(most);
            let mut row = 0;
            while row < self.row_count {
                let rows = (self.row_count - row).div_ceil(tiles);
                match rows {
                    1 => self.tiles::<S, 1>(simd, row, block, end),
                    2 => self.tiles::<S, 2>(simd, row, block, end),
                    3 => self.tiles::<S, 3>(simd, row, block, end),
                    4 => self.tiles::<S, 4>(simd, row, block, end),
                    5 => self.tiles::<S, 5>(simd, row, block, end),
                    _ => self.tiles::<S, ROWS>(simd, row, block, end),
                }
                row += rows;
                tiles -= 1;
            }
        }
    }
}

// Plain loops with plain indices on purpose: a closure (`map`, `from_fn`) is a function of its own,
// compiled without the caller's AVX-512, and the vector operations in it become calls.
#[expect(clippy::needless_range_loop, reason = "see above")]
impl Dots {
    /// `A` rows from `row` with the weights `from..to`.
    #[inline(always)]
    fn tiles<S: Simd, const A: usize>(&self, simd: S, row: usize, from: usize, to: usize) {
        let mut weight = from;
        while weight + WEIGHTS <= to {
            self.tile::<S, A, WEIGHTS>(simd, row, weight);
            weight += WEIGHTS;
        }
        while weight < to {
            self.tile::<S, A, 1>(simd, row, weight);
            weight += 1;
        }
    }

    /// `A` rows with `B` weights.
    #[inline(always)]
    fn tile<S: Simd, const A: usize, const B: usize>(&self, simd: S, row: usize, weight: usize) {
        let lanes = S::F32_LANES;
        let whole = self.length / lanes;
        let mut rows = [self.rows.at; A];
        for a in 0..A {
            rows[a] = self.rows.at.wrapping_add((row + a) * self.rows.stride);
        }
        let mut weights = [self.weights.at; B];
        for b in 0..B {
            weights[b] = self.weights.at.wrapping_add((weight + b) * self.weights.stride);
        }

        let mut sums = [[simd.splat_f32s(0.0); B]; A];
        for at in 0..whole {
            let mut vectors = [simd.splat_f32s(0.0); B];
            for b in 0..B {
                // SAFETY: `at` is below the whole vectors of each row (`Dots::compute`).
                vectors[b] = unsafe { load::<S>(weights[b], at * lanes) };
            }
            for a in 0..A {
                // SAFETY: as above.
                let row = unsafe { load::<S>(rows[a], at * lanes) };
                for b in 0..B {
                    sums[a][b] = simd.mul_add_f32s(row, vectors[b], sums[a][b]);
                }
            }
        }
        for a in 0..A {
            for b in 0..B {
                let mut sum = simd.reduce_sum_f32s(sums[a][b]);
                for at in whole * lanes..self.length {
                    // SAFETY: `at` is below the length of each row.
                    sum += unsafe { *rows[a].add(at) * *weights[b].add(at) };
                }
                // SAFETY: the place is within `out`, and this call's alone.
                let place = unsafe { &mut *self.out.add((row + a) * self.out_stride + weight + b) };
                let sum = self.alpha * sum;
                *place = if self.beta == 0.0 { sum } else { sum + self.beta * *place };
            }
        }
    }
}

/// # Safety
///
/// A vector's numbers from `at + offset` on must be readable.
#[inline(always)]
pub(super) unsafe fn load<S: Simd>(at: *const f32, offset: usize) -> S::f32s {
    // SAFETY: a vector is plain numbers; unaligned reads are asked for.
    unsafe { at.add(offset).cast::<S::f32s>().read_unaligned() }
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
