//! Dot products of rows with rows of weights: what `x W^T` is made of. Written once over
//! [`pulp::Simd`]; AVX-512, AVX2, NEON or scalar code is chosen when it runs.
//!
//! Weights are f32, bf16 or f16, and widened in registers. Two of 16 bits share a word: input `i`
//! of each 32 the low half and `i + 16` the high one, so that widening needs no shuffle, whatever
//! the vector's length.
//!
//! # Invariants
//!
//! - A dot product depends on its two operands alone, to the bit: each has one vector of sums,
//!   filled from the front, and one way to add them up. How many rows and weights stand beside it,
//!   in which tile and on which thread, moves nothing. A request's tokens hang on this: its row is
//!   multiplied beside whatever rows the scheduler chose. Another machine, with other vectors, adds
//!   up in another order.

use half::{bf16, f16};
use pulp::{Arch, Simd, WithSimd};

/// Rows of weights that are read side by side.
const WEIGHTS: usize = 4;

/// Rows that share what was read of the weights, where 32 vector registers allow it: with four
/// weights that makes 24 sums, and less than half a load for each multiply-add.
const ROWS: usize = 6;

/// Rows that share what was read of the weights, where there are 16 registers of eight lanes (AVX2).
const ROWS_OF_SIXTEEN_REGISTERS: usize = 3;

/// Weights that stay in the nearest cache while all rows pass by.
const BLOCK: usize = 16;

/// Inputs whose halves share words.
const PAIRED: usize = 32;

/// A matrix of `[outputs, inputs]`, in the type it is stored in.
pub(crate) struct Dense {
    words: Vec<u32>,
    stored: DenseType,
    outputs: usize,
    inputs: usize,
}

/// The type of a dense matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DenseType {
    F32,
    Bf16,
    /// Finite numbers: an infinity would count as 65536 here.
    F16,
}

/// The address of the first row of f32; rows begin `stride` numbers apart.
#[derive(Clone, Copy)]
pub(super) struct RowsPointer {
    pub(super) at: *const f32,
    pub(super) stride: usize,
}

impl Dense {
    /// From numbers as a file has them, little-endian, output after output.
    ///
    /// # Panics
    ///
    /// If there are more or fewer bytes.
    pub(crate) fn new(stored: DenseType, outputs: usize, inputs: usize, bytes: &[u8]) -> Self {
        let size = if stored == DenseType::F32 { 4 } else { 2 };
        assert_eq!(bytes.len(), outputs * inputs * size, "{outputs} x {inputs}");
        let words = if stored == DenseType::F32 {
            bytes.as_chunks::<4>().0.iter().map(|four| u32::from_le_bytes(*four)).collect()
        } else {
            let mut words = vec![0; outputs * inputs.div_ceil(PAIRED) * PAIRED / 2];
            let rows = words.chunks_exact_mut((inputs.div_ceil(PAIRED) * PAIRED / 2).max(1));
            for (words, bytes) in rows.zip(bytes.chunks_exact((inputs * 2).max(1))) {
                for (input, two) in bytes.as_chunks::<2>().0.iter().enumerate() {
                    let (word, shift) = place(input);
                    words[word] |= u32::from(u16::from_le_bytes(*two)) << shift;
                }
            }
            words
        };
        Self { words, stored, outputs, inputs }
    }

    pub(crate) fn inputs(&self) -> usize {
        self.inputs
    }

    pub(crate) fn outputs(&self) -> usize {
        self.outputs
    }

    /// Words between two outputs' weights.
    fn stride(&self) -> usize {
        match self.stored {
            DenseType::F32 => self.inputs,
            DenseType::Bf16 | DenseType::F16 => self.inputs.div_ceil(PAIRED) * PAIRED / 2,
        }
    }

    /// Widens the weights of one output: a row of an embedding.
    pub(crate) fn row(&self, output: usize, into: &mut [f32]) {
        let words = &self.words[output * self.stride()..][..self.stride()];
        for (input, number) in into.iter_mut().enumerate() {
            *number = match self.stored {
                DenseType::F32 => F32::one(words, input),
                DenseType::Bf16 => Bf16::one(words, input),
                DenseType::F16 => F16::one(words, input),
            };
        }
    }

    /// `out[i][j] = rows[i] . weights[outputs.start + j]`.
    ///
    /// # Safety
    ///
    /// There must be `count` rows of this matrix's inputs, and `out`, whose rows are `stride`
    /// apart, must have room and be this call's alone.
    pub(super) unsafe fn multiply(
        &self,
        rows: RowsPointer,
        count: usize,
        outputs: std::ops::Range<usize>,
        out: *mut f32,
        stride: usize,
    ) {
        assert!(outputs.end <= self.outputs);
        let weights = &self.words[outputs.start * self.stride()..outputs.end * self.stride()];
        let args = DenseArgs {
            rows,
            row_count: count,
            weights: weights.as_ptr(),
            weights_stride: self.stride(),
            weight_count: outputs.len(),
            length: self.inputs,
            out,
            out_stride: stride,
        };
        let arch = Arch::new();
        match self.stored {
            DenseType::F32 => arch.dispatch(DenseKernel::<F32>(args, F32)),
            DenseType::Bf16 => arch.dispatch(DenseKernel::<Bf16>(args, Bf16)),
            DenseType::F16 => arch.dispatch(DenseKernel::<F16>(args, F16)),
        }
    }
}

/// The place of a 16-bit weight: the index of its word in the row, and its shift in the word.
fn place(input: usize) -> (usize, usize) {
    let (block, within) = (input / PAIRED, input % PAIRED);
    (block * PAIRED / 2 + within % (PAIRED / 2), within / (PAIRED / 2) * 16)
}

/// Converts weights of one stored type to f32, in vectors and one by one.
trait Widen {
    /// Vectors of f32 that a vector of words holds.
    const VECTORS: usize;

    /// The vectors of a vector of words; what is beyond `VECTORS` is not read.
    fn widen<S: Simd>(simd: S, words: S::u32s) -> [S::f32s; 2];

    /// An input of a row.
    fn one(words: &[u32], input: usize) -> f32;

    /// Inputs at which the vectors of the words from `word` on begin.
    #[inline(always)]
    fn inputs(word: usize) -> [usize; 2] {
        let half = PAIRED / 2;
        let first = word / half * PAIRED + word % half;
        [first, first + half]
    }
}

struct F32;
struct Bf16;
struct F16;

impl Widen for F32 {
    const VECTORS: usize = 1;

    #[inline(always)]
    fn widen<S: Simd>(simd: S, words: S::u32s) -> [S::f32s; 2] {
        [simd.transmute_f32s_u32s(words); 2]
    }

    #[inline(always)]
    fn one(words: &[u32], input: usize) -> f32 {
        f32::from_bits(words[input])
    }

    #[inline(always)]
    fn inputs(word: usize) -> [usize; 2] {
        [word; 2]
    }
}

impl Widen for Bf16 {
    const VECTORS: usize = 2;

    #[inline(always)]
    fn widen<S: Simd>(simd: S, words: S::u32s) -> [S::f32s; 2] {
        let low = simd.wrapping_dyn_shl_u32s(words, simd.splat_u32s(16));
        let high = simd.and_u32s(words, simd.splat_u32s(0xFFFF_0000));
        [simd.transmute_f32s_u32s(low), simd.transmute_f32s_u32s(high)]
    }

    #[inline(always)]
    fn one(words: &[u32], input: usize) -> f32 {
        let (word, shift) = place(input);
        bf16::from_bits((words[word] >> shift) as u16).to_f32()
    }
}

impl Widen for F16 {
    const VECTORS: usize = 2;

    /// Shifted into f32's place and multiplied by what the exponents' biases differ by: exact for
    /// all finite numbers, the smallest too.
    #[inline(always)]
    fn widen<S: Simd>(simd: S, words: S::u32s) -> [S::f32s; 2] {
        let by = simd.splat_f32s(f32::from_bits((127 + 112) << 23));
        let sign = simd.splat_u32s(0x8000_0000);
        let wide = |shifted: S::u32s, rest: S::u32s| {
            let size = simd.mul_f32s(simd.transmute_f32s_u32s(rest), by);
            let sign = simd.and_u32s(shifted, sign);
            simd.transmute_f32s_u32s(simd.or_u32s(sign, simd.transmute_u32s_f32s(size)))
        };
        let low = simd.wrapping_dyn_shl_u32s(words, simd.splat_u32s(16));
        let rest = simd.splat_u32s(0x7FFF_0000);
        let three = simd.splat_u32s(3);
        [
            wide(low, simd.wrapping_dyn_shr_u32s(simd.and_u32s(low, rest), three)),
            wide(words, simd.wrapping_dyn_shr_u32s(simd.and_u32s(words, rest), three)),
        ]
    }

    #[inline(always)]
    fn one(words: &[u32], input: usize) -> f32 {
        let (word, shift) = place(input);
        f16::from_bits((words[word] >> shift) as u16).to_f32()
    }
}

/// All that [`Dense::multiply`] needs.
struct DenseArgs {
    rows: RowsPointer,
    row_count: usize,
    weights: *const u32,
    weights_stride: usize,
    weight_count: usize,
    length: usize,
    out: *mut f32,
    out_stride: usize,
}

struct DenseKernel<W>(DenseArgs, W);

impl<W: Widen> WithSimd for DenseKernel<W> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let args = self.0;
        let most = if S::F32_LANES == 8 { ROWS_OF_SIXTEEN_REGISTERS } else { ROWS };
        for block in (0..args.weight_count).step_by(BLOCK) {
            let end = (block + BLOCK).min(args.weight_count);
            // Tiles as even as can be: a last one of one row would wait for its multiply-adds.
            let mut tiles = args.row_count.div_ceil(most);
            let mut row = 0;
            while row < args.row_count {
                let rows = (args.row_count - row).div_ceil(tiles);
                match rows {
                    1 => args.tiles::<S, W, 1>(simd, row, block, end),
                    2 => args.tiles::<S, W, 2>(simd, row, block, end),
                    3 => args.tiles::<S, W, 3>(simd, row, block, end),
                    4 => args.tiles::<S, W, 4>(simd, row, block, end),
                    5 => args.tiles::<S, W, 5>(simd, row, block, end),
                    _ => args.tiles::<S, W, ROWS>(simd, row, block, end),
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
impl DenseArgs {
    /// `A` rows from `row` with the weights `from..to`.
    #[inline(always)]
    fn tiles<S: Simd, W: Widen, const A: usize>(
        &self,
        simd: S,
        row: usize,
        from: usize,
        to: usize,
    ) {
        let mut weight = from;
        while weight + WEIGHTS <= to {
            self.tile::<S, W, A, WEIGHTS>(simd, row, weight);
            weight += WEIGHTS;
        }
        while weight < to {
            self.tile::<S, W, A, 1>(simd, row, weight);
            weight += 1;
        }
    }

    /// `A` rows with `B` weights.
    #[inline(always)]
    fn tile<S: Simd, W: Widen, const A: usize, const B: usize>(
        &self,
        simd: S,
        row: usize,
        weight: usize,
    ) {
        let lanes = S::F32_LANES;
        // Words that make whole vectors of inputs: of halves, those of whole pairs.
        let (words, whole) = if W::VECTORS == 1 {
            (self.length / lanes * lanes, self.length / lanes * lanes)
        } else {
            (self.length / PAIRED * PAIRED / 2, self.length / PAIRED * PAIRED)
        };
        let mut rows = [self.rows.at; A];
        for a in 0..A {
            rows[a] = self.rows.at.wrapping_add((row + a) * self.rows.stride);
        }
        let mut weights = [self.weights; B];
        for b in 0..B {
            weights[b] = self.weights.wrapping_add((weight + b) * self.weights_stride);
        }

        let mut sums = [[simd.splat_f32s(0.0); B]; A];
        let mut word = 0;
        while word < words {
            let inputs = W::inputs(word);
            let mut vectors = [[simd.splat_f32s(0.0); 2]; B];
            for b in 0..B {
                // SAFETY: `word` is below the whole vectors of each row (`Dense::multiply`); a
                // vector is plain numbers, unaligned reads are asked for.
                let words = unsafe { weights[b].add(word).cast::<S::u32s>().read_unaligned() };
                vectors[b] = W::widen::<S>(simd, words);
            }
            for v in 0..W::VECTORS {
                for a in 0..A {
                    // SAFETY: as above.
                    let row = unsafe { load::<S>(rows[a], inputs[v]) };
                    for b in 0..B {
                        sums[a][b] = simd.mul_add_f32s(row, vectors[b][v], sums[a][b]);
                    }
                }
            }
            word += lanes;
        }
        for a in 0..A {
            for b in 0..B {
                let mut sum = simd.reduce_sum_f32s(sums[a][b]);
                for at in whole..self.length {
                    // SAFETY: `at` is below the length of each row, and the weights have theirs.
                    sum += unsafe {
                        let weights = std::slice::from_raw_parts(weights[b], self.weights_stride);
                        *rows[a].add(at) * W::one(weights, at)
                    };
                }
                // SAFETY: the place is within `out`, and this call's alone.
                unsafe { *self.out.add((row + a) * self.out_stride + weight + b) = sum };
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::noise;

    /// A matrix in a type, and what it means.
    fn matrix(stored: DenseType, outputs: usize, inputs: usize) -> (Dense, Vec<f32>) {
        let numbers = noise((outputs + inputs) as u64, outputs * inputs);
        // Some that are subnormal in f16.
        let small = |(at, number): (usize, f32)| if at % 7 == 0 { number * 1e-5 } else { number };
        let numbers = numbers.into_iter().enumerate().map(small);
        let (mut bytes, mut meant) = (Vec::new(), Vec::new());
        for number in numbers {
            match stored {
                DenseType::F32 => {
                    bytes.extend(number.to_le_bytes());
                    meant.push(number);
                }
                DenseType::Bf16 => {
                    let number = bf16::from_f32(number);
                    bytes.extend(number.to_le_bytes());
                    meant.push(number.to_f32());
                }
                DenseType::F16 => {
                    let number = f16::from_f32(number);
                    bytes.extend(number.to_le_bytes());
                    meant.push(number.to_f32());
                }
            }
        }
        (Dense::new(stored, outputs, inputs, &bytes), meant)
    }

    fn multiply(matrix: &Dense, x: &[f32]) -> Vec<f32> {
        let (inputs, outputs) = (matrix.inputs(), matrix.outputs());
        let (count, stride) = (x.len() / inputs, outputs + 3);
        let mut out = vec![f32::NAN; count * stride];
        let rows = RowsPointer { at: x.as_ptr(), stride: inputs };
        // SAFETY: the vectors were made to these sizes just above.
        unsafe { matrix.multiply(rows, count, 0..outputs, out.as_mut_ptr(), stride) };
        assert!(out.chunks(stride).all(|row| row[outputs..].iter().all(|x| x.is_nan())));
        out.chunks(stride).flat_map(|row| &row[..outputs]).copied().collect()
    }

    const ALL: [DenseType; 3] = [DenseType::F32, DenseType::Bf16, DenseType::F16];

    #[test]
    fn dot_products_agree_with_sums_in_double_precision() {
        for stored in ALL {
            for (outputs, inputs) in
                [(1, 1), (3, 7), (5, 31), (9, 32), (17, 33), (35, 100), (70, 576), (4, 1000)]
            {
                let (matrix, meant) = matrix(stored, outputs, inputs);
                for count in [1, 2, 6, 7, 13] {
                    let x = noise(count as u64, count * inputs);
                    let got = multiply(&matrix, &x);
                    for (at, got) in got.into_iter().enumerate() {
                        let (row, output) = (at / outputs, at % outputs);
                        let pairs = x[row * inputs..][..inputs]
                            .iter()
                            .zip(&meant[output * inputs..][..inputs]);
                        let terms = pairs.map(|(x, w)| f64::from(*x) * f64::from(*w));
                        let (sum, size) = terms
                            .fold((0.0, 0.0), |(sum, size): (f64, f64), term| {
                                (sum + term, size + term.abs())
                            });
                        // Each of `inputs` additions rounds by half a unit at most.
                        let bound = size * f64::from(f32::EPSILON) * (inputs as f64 / 2.0 + 1.0);
                        let off = (f64::from(got) - sum).abs();
                        assert!(off <= bound, "{stored:?} {outputs}x{inputs}: {got}, want {sum}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_row_times_weights_is_the_same_in_any_company_bit_for_bit() {
        for stored in ALL {
            for (outputs, inputs) in [(9, 7), (35, 100), (192, 583)] {
                let (matrix, _) = matrix(stored, outputs, inputs);
                let x = noise(6, 40 * inputs);
                let alone: Vec<f32> =
                    x.chunks(inputs).flat_map(|row| multiply(&matrix, row)).collect();
                for count in 1..=40 {
                    let together = multiply(&matrix, &x[..count * inputs]);
                    assert_eq!(together, alone[..together.len()], "{stored:?}, {count} rows");
                }
            }
        }
    }

    #[test]
    fn a_row_of_the_table_is_what_was_stored() {
        for stored in ALL {
            let (matrix, meant) = matrix(stored, 5, 75);
            for (output, meant) in meant.chunks(75).enumerate() {
                let mut row = [f32::NAN; 75];
                matrix.row(output, &mut row);
                assert_eq!(row, *meant, "{stored:?}");
            }
        }
    }
}
