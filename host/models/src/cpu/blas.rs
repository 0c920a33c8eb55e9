//! `cblas_sgemm`, as MLX's CPU backend calls it, in place of the reference BLAS in its wheel.
//!
//! libmlx.so leaves the symbol undefined, and the loader looks for it in the executable before it
//! looks in the wheel's libblas. Three ways through, by shape:
//!
//! - rows times rows of weights (`x W^T`, every layer of every model): dot products, of which each
//!   is the same to the bit whatever the others are, see [`super::dots`];
//! - one row times columns of weights (attention's sum over values): scaled rows added up;
//! - all else: the `gemm` crate, the larger side shared out.
//!
//! # Not here
//!
//! The other BLAS functions. MLX calls `cblas_dgemm` and `cblas_cgemm` too, but no language model
//! does; those stay the wheel's.

use std::ffi::c_int;
use std::sync::atomic::{AtomicU64, Ordering};

use gemm::Parallelism;

use super::dots::{AddScaled, Dots, Rows, WEIGHTS};
use super::team;

const COLUMN_MAJOR: c_int = 102;
const NOT_TRANSPOSED: c_int = 111;

/// Bytes of rows that are multiplied with all weights before the next rows are: they are to stay in
/// a core's own cache.
const ROWS_BYTES: usize = 512 << 10;

/// Never fewer rows than this in a block: below, the weights are read too often.
const ROWS_LEAST: usize = 24;

/// Multiply-adds below which asking for help costs more than it saves (some 8 microseconds).
const WORTH_SHARING: usize = 1 << 17;

/// Multiply-adds in one chunk of shared work: small enough that a late helper still finds some,
/// large enough that taking a chunk is free.
const CHUNK: usize = 1 << 16;

static CALLS: AtomicU64 = AtomicU64::new(0);

/// How often MLX came to us.
pub(crate) fn calls() -> u64 {
    CALLS.load(Ordering::Relaxed)
}

/// A matrix of which only its corner, size and strides are known.
#[derive(Clone, Copy)]
struct View {
    at: *const f32,
    row: usize,
    column: usize,
}

#[derive(Clone, Copy)]
struct Target {
    at: *mut f32,
    row: usize,
}

/// An address that the threads of a product share.
#[derive(Clone, Copy)]
struct Shared(Rows);

// SAFETY: an address that is only read; who dereferences it says why that is right.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}
// SAFETY: both are addresses; who dereferences them on another thread says why that is right.
unsafe impl Send for View {}
// SAFETY: as above.
unsafe impl Sync for View {}
// SAFETY: as above.
unsafe impl Send for Target {}
// SAFETY: as above.
unsafe impl Sync for Target {}

/// `c = alpha * op(a) * op(b) + beta * c`, as the CBLAS standard has it. `c` is not read when
/// `beta` is zero.
///
/// # Safety
///
/// As for every BLAS: `a`, `b` and `c` must point to matrices of the sizes and leading dimensions
/// given, and `c` must not overlap the others.
// SAFETY: no other crate in our binary defines the name; that ours wins over the wheel's is the
// purpose.
#[unsafe(no_mangle)]
#[expect(unreachable_pub, reason = "MLX reaches it, by its name")]
pub unsafe extern "C" fn cblas_sgemm(
    order: c_int,
    transpose_a: c_int,
    transpose_b: c_int,
    m: c_int,
    n: c_int,
    k: c_int,
    alpha: f32,
    a: *const f32,
    lda: c_int,
    b: *const f32,
    ldb: c_int,
    beta: f32,
    c: *mut f32,
    ldc: c_int,
) {
    CALLS.fetch_add(1, Ordering::Relaxed);
    let size = |value: c_int| usize::try_from(value).unwrap_or(0);
    let view = |at, transpose, ld: c_int| {
        // ConjTrans is Trans for real numbers.
        if transpose == NOT_TRANSPOSED {
            View { at, row: size(ld), column: 1 }
        } else {
            View { at, row: 1, column: size(ld) }
        }
    };
    let (a, b) = (view(a, transpose_a, lda), view(b, transpose_b, ldb));
    let c = Target { at: c, row: size(ldc) };
    let (m, n, k) = (size(m), size(n), size(k));
    let product = if order == COLUMN_MAJOR {
        // What is column-major to the caller is, read by rows, its transpose; and the transpose of
        // a product is the product of the transposes in reverse.
        Product { m: n, n: m, k, alpha, a: b, b: a, beta, c }
    } else {
        Product { m, n, k, alpha, a, b, beta, c }
    };
    // SAFETY: the sizes and strides are the caller's, who promises that they fit.
    unsafe { product.compute() }
}

#[derive(Clone, Copy)]
struct Product {
    m: usize,
    n: usize,
    k: usize,
    alpha: f32,
    a: View,
    b: View,
    beta: f32,
    c: Target,
}

impl Product {
    /// # Safety
    ///
    /// The views must cover `m` by `k`, `k` by `n` and `m` by `n` numbers.
    unsafe fn compute(self) {
        if self.m == 0 || self.n == 0 {
            return;
        }
        if self.k == 0 || self.alpha == 0.0 {
            // SAFETY: the caller's promise, passed on; so in the other arms.
            unsafe { self.scale_target() }
        } else if self.b.row == 1 {
            // SAFETY: as above, and the columns of `b` are contiguous.
            unsafe { self.by_weights() }
        } else if self.m == 1 && self.b.column == 1 && self.work() < WORTH_SHARING {
            // SAFETY: as above, and the rows of `b` are contiguous.
            unsafe { self.one_row_by_columns() }
        } else {
            // SAFETY: as above.
            unsafe { self.blocks() }
        }
    }

    fn work(&self) -> usize {
        self.m.saturating_mul(self.n).saturating_mul(self.k)
    }

    /// # Safety
    ///
    /// As for [`Product::compute`].
    unsafe fn scale_target(&self) {
        for i in 0..self.m {
            // SAFETY: row `i` of `c` has `n` numbers.
            let row = unsafe { self.target_row(i, 0, self.n) };
            for value in row {
                *value = if self.beta == 0.0 { 0.0 } else { self.beta * *value };
            }
        }
    }

    /// # Safety
    ///
    /// As for [`Product::compute`]; `i` below `m`, the columns within `n` and nobody else's.
    unsafe fn target_row<'a>(&self, i: usize, from: usize, columns: usize) -> &'a mut [f32] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.c.at.add(i * self.c.row + from), columns) }
    }

    /// Rows of `a` with columns of `b` that are contiguous: `x W^T`, whatever the number of rows.
    ///
    /// # Safety
    ///
    /// As for [`Product::compute`]; columns of `b` are contiguous.
    unsafe fn by_weights(&self) {
        let Self { m, n, k, alpha, beta, .. } = *self;
        let mut gathered = Vec::new();
        let rows = if self.a.column == 1 {
            Rows { at: self.a.at, stride: self.a.row }
        } else {
            gathered.reserve(m * k);
            for i in 0..m {
                for p in 0..k {
                    // SAFETY: (i, p) lies within `a`.
                    gathered.push(unsafe { *self.a.at.add(i * self.a.row + p * self.a.column) });
                }
            }
            Rows { at: gathered.as_ptr(), stride: k }
        };
        let rows = Shared(rows);
        let compute = |rows_from: usize, rows_to: usize, from: usize, to: usize| {
            let Shared(rows) = { rows };
            let dots = Dots {
                rows: Rows { at: rows.at.wrapping_add(rows_from * rows.stride), ..rows },
                row_count: rows_to - rows_from,
                weights: Rows {
                    at: self.b.at.wrapping_add(from * self.b.column),
                    stride: self.b.column,
                },
                weight_count: to - from,
                length: k,
                alpha,
                beta,
                out: self.c.at.wrapping_add(rows_from * self.c.row + from),
                out_stride: self.c.row,
            };
            // SAFETY: rows and columns within the caller's matrices; the block of `c` is this
            // chunk's alone.
            unsafe { dots.compute() }
        };
        if self.work() < WORTH_SHARING {
            return compute(0, m, 0, n);
        }
        // All threads work on one block of rows, which stays near each of them, while the weights
        // pass by.
        let rows_step = (ROWS_BYTES / (size_of::<f32>() * k)).max(ROWS_LEAST).min(m);
        let grain = if m <= ROWS_LEAST { WEIGHTS } else { WEIGHTS * 4 };
        let step = (CHUNK / (rows_step * k)).max(1).next_multiple_of(grain);
        let across = n.div_ceil(step);
        team::team().run(m.div_ceil(rows_step) * across, &|chunk| {
            let (row, column) = (chunk / across * rows_step, chunk % across * step);
            compute(row, (row + rows_step).min(m), column, (column + step).min(n));
        });
    }

    /// Attention: one row of scores, a few dozen columns of values; far too little to share.
    ///
    /// # Safety
    ///
    /// As for [`Product::compute`]; rows of `b` are contiguous and `m` is 1.
    unsafe fn one_row_by_columns(&self) {
        // SAFETY: there is a row 0, of `n` numbers.
        unsafe { self.scale_target() }
        // SAFETY: as above.
        let target = unsafe { self.target_row(0, 0, self.n) };
        let row = |p: usize| {
            // SAFETY: (0, p) lies within `a`, and row `p` of `b` is `n` numbers side by side.
            unsafe {
                (
                    self.alpha * *self.a.at.add(p * self.a.column),
                    std::slice::from_raw_parts(self.b.at.add(p * self.b.row), self.n),
                )
            }
        };
        AddScaled { target, count: self.k, row: &row }.compute();
    }

    /// # Safety
    ///
    /// As for [`Product::compute`].
    unsafe fn blocks(&self) {
        let compute_columns = |from: usize, to: usize| {
            let part = Self {
                n: to - from,
                b: View { at: self.b.at.wrapping_add(from * self.b.column), ..self.b },
                c: Target { at: self.c.at.wrapping_add(from), ..self.c },
                ..*self
            };
            // SAFETY: a block of columns within the caller's matrices, this chunk's alone.
            unsafe { part.one_block() }
        };
        let compute_rows = |from: usize, to: usize| {
            let part = Self {
                m: to - from,
                a: View { at: self.a.at.wrapping_add(from * self.a.row), ..self.a },
                c: Target { at: self.c.at.wrapping_add(from * self.c.row), ..self.c },
                ..*self
            };
            // SAFETY: a block of rows within the caller's matrices, this chunk's alone.
            unsafe { part.one_block() }
        };
        // A block packs its operands anew, so blocks are as large as sharing allows.
        let threads = team::team().size();
        let side = self.m.max(self.n);
        let step = if self.work() < WORTH_SHARING { side } else { side.div_ceil(threads * 2) };
        let step = step.next_multiple_of(16);
        let by = |compute: &(dyn Fn(usize, usize) + Sync)| {
            team::team().run(side.div_ceil(step), &|chunk| {
                compute(chunk * step, (chunk * step + step).min(side));
            });
        };
        if self.n >= self.m { by(&compute_columns) } else { by(&compute_rows) }
    }

    /// # Safety
    ///
    /// As for [`Product::compute`].
    unsafe fn one_block(&self) {
        let stride = usize::cast_signed;
        // SAFETY: the sizes and strides describe matrices that the caller vouches for.
        unsafe {
            gemm::gemm(
                self.m,
                self.n,
                self.k,
                self.c.at,
                1,
                stride(self.c.row),
                self.beta != 0.0,
                self.a.at,
                stride(self.a.column),
                stride(self.a.row),
                self.b.at,
                stride(self.b.column),
                stride(self.b.row),
                self.beta,
                self.alpha,
                false,
                false,
                false,
                Parallelism::None,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Half as large as elsewhere: the tolerances here are for numbers in [-1, 1).
    fn noise(seed: u64, count: usize) -> Vec<f32> {
        crate::noise::noise(seed, count).into_iter().map(|number| number / 2.0).collect()
    }

    struct Case {
        column_major: bool,
        transpose: (bool, bool),
        size: (usize, usize, usize),
        padding: usize,
        alpha: f32,
        beta: f32,
    }

    /// Compares with sums in f64, element by element, and checks that padding stays as it was.
    fn check(case: &Case) {
        let (m, n, k) = case.size;
        let stored = |rows: usize, columns: usize, transposed: bool| {
            let (rows, columns) = if transposed { (columns, rows) } else { (rows, columns) };
            let (lines, line) = if case.column_major { (columns, rows) } else { (rows, columns) };
            (lines, line + case.padding)
        };
        let at = |i: usize, j: usize, transposed: bool, ld: usize| {
            let (i, j) = if transposed { (j, i) } else { (i, j) };
            if case.column_major { j * ld + i } else { i * ld + j }
        };
        let (a_lines, lda) = stored(m, k, case.transpose.0);
        let (b_lines, ldb) = stored(k, n, case.transpose.1);
        let (c_lines, ldc) = stored(m, n, false);
        let a = noise(1, a_lines * lda);
        let b = noise(2, b_lines * ldb);
        // With beta zero, c must not be read: what is there may be anything.
        let old =
            if case.beta == 0.0 { vec![f32::NAN; c_lines * ldc] } else { noise(3, c_lines * ldc) };
        let mut c = old.clone();

        let code = |transposed| if transposed { 112 } else { NOT_TRANSPOSED };
        let int = |value: usize| c_int::try_from(value).unwrap();
        // SAFETY: the vectors were made to these sizes just above.
        unsafe {
            cblas_sgemm(
                if case.column_major { COLUMN_MAJOR } else { 101 },
                code(case.transpose.0),
                code(case.transpose.1),
                int(m),
                int(n),
                int(k),
                case.alpha,
                a.as_ptr(),
                int(lda),
                b.as_ptr(),
                int(ldb),
                case.beta,
                c.as_mut_ptr(),
                int(ldc),
            );
        }

        let mut touched = vec![false; c.len()];
        for i in 0..m {
            for j in 0..n {
                let sum: f64 = (0..k)
                    .map(|p| {
                        f64::from(a[at(i, p, case.transpose.0, lda)])
                            * f64::from(b[at(p, j, case.transpose.1, ldb)])
                    })
                    .sum();
                let place = at(i, j, false, ldc);
                touched[place] = true;
                let before = if case.beta == 0.0 { 0.0 } else { f64::from(old[place]) };
                let want = f64::from(case.alpha) * sum + f64::from(case.beta) * before;
                let got = f64::from(c[place]);
                let tolerance = 1e-6 * (k as f64).sqrt().max(1.0) * 4.0;
                assert!(
                    (got - want).abs() <= tolerance,
                    "({i}, {j}) of {m}x{n}x{k}, transposed {:?}, padding {}, column major {}, \
                     alpha {}, beta {}: got {got}, want {want}",
                    case.transpose,
                    case.padding,
                    case.column_major,
                    case.alpha,
                    case.beta,
                );
            }
        }
        for place in (0..c.len()).filter(|&place| !touched[place]) {
            assert_eq!(c[place].to_bits(), old[place].to_bits(), "padding at {place} written");
        }
    }

    #[test]
    fn products_agree_with_sums_in_double_precision() {
        let sizes = [
            (1, 1, 1),
            (1, 7, 5),
            (1, 64, 33),
            (1, 576, 576),
            (2, 9, 17),
            (3, 130, 70),
            (5, 31, 64),
            (8, 200, 100),
            (9, 65, 47),
            (33, 17, 129),
            (70, 40, 3),
            (4, 5, 0),
            (64, 300, 64),
        ];
        for size in sizes {
            for transpose in [(false, false), (false, true), (true, false), (true, true)] {
                for column_major in [false, true] {
                    for (alpha, beta, padding) in [
                        (1.0, 0.0, 0),
                        (0.5, 0.0, 3),
                        (-1.5, 1.0, 1),
                        (2.0, 0.25, 0),
                        (0.0, 0.5, 2),
                    ] {
                        check(&Case { column_major, transpose, size, padding, alpha, beta });
                    }
                }
            }
        }
    }

    #[test]
    fn mlx_multiplies_matrices_with_this_code() {
        assert!(crate::cpu::serves_mlx());
    }

    /// `x W^T` as MLX asks for it.
    fn by_weights(x: &[f32], weights: &[f32], (m, n, k): (usize, usize, usize)) -> Vec<f32> {
        let mut c = vec![0.0_f32; m * n];
        let int = |value: usize| c_int::try_from(value).unwrap();
        // SAFETY: the callers' slices have these sizes.
        unsafe {
            cblas_sgemm(
                101,
                NOT_TRANSPOSED,
                112,
                int(m),
                int(n),
                int(k),
                1.0,
                x.as_ptr(),
                int(k),
                weights.as_ptr(),
                int(k),
                0.0,
                c.as_mut_ptr(),
                int(n),
            );
        }
        c
    }

    /// Which rows are multiplied beside it depends on who else is being served. Sizes around tiles
    /// and blocks, with and without numbers beyond the last vector, shared out and not.
    #[test]
    fn a_row_times_weights_is_the_same_in_any_company_bit_for_bit() {
        for (n, k) in [(9, 7), (35, 100), (192, 576), (500, 583)] {
            let (x, weights) = (noise(6, 400 * k), noise(7, n * k));
            let alone: Vec<Vec<f32>> =
                x.chunks(k).map(|row| by_weights(row, &weights, (1, n, k))).collect();
            for m in (1..=40).chain([63, 400]) {
                let together = by_weights(&x[..m * k], &weights, (m, n, k));
                for (row, together) in together.chunks(n).enumerate() {
                    assert_eq!(together, &alone[row][..], "row {row} of {m}, {k} by {n}");
                }
            }
        }
    }

    /// Two sums of the same numbers, one shared out and one not, must not differ: a request's
    /// tokens may not depend on who else is busy.
    #[test]
    fn a_product_is_the_same_each_time() {
        let (n, k) = (4096, 576);
        let (a, b) = (noise(4, k), noise(5, n * k));
        let product = || by_weights(&a, &b, (1, n, k));
        let first = product();
        for _ in 0..20 {
            assert_eq!(product(), first);
        }
    }
}
