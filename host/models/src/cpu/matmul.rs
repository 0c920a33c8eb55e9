//! Matrix products of a pass, shared out among the thread pool. Matrices that multiply the same rows
//! are one piece of work: three for queries, keys and values, two for SwiGLU. A bias, a residual or
//! SwiGLU is applied while the product is in the cache.
//!
//! # Invariants
//!
//! - A row's results depend on its own numbers alone, to the bit: where the work is cut moves
//!   nothing.

use std::cell::RefCell;
use std::ops::Range;

use super::dense::{self, Dense};
use super::output::OutputPointer;
use super::packed::activations::{Activations, RowPanel};
use super::packed::{InstructionSet, Packed, TILE};
use super::swiglu::swiglu;
use super::tensor::CpuTensor;
use super::thread_pool::{self, ThreadPool};

/// Multiply-adds below which asking for help costs more than it saves (some 4 microseconds).
const WORTH_SHARING: usize = 1 << 17;

/// Multiply-adds in one chunk of shared work: small enough that a late worker still finds some,
/// large enough that taking a chunk is free.
const CHUNK: usize = 1 << 16;

/// Bytes of rows that are multiplied with all weights before the next rows are: they are to stay in
/// a core's own cache.
const ROWS_BYTES: usize = 512 << 10;

/// Never fewer rows than this in a block: below, the weights are read too often.
const ROWS_LEAST: usize = 32;

/// Numbers that a thread encodes in fixed point at a time.
const ENCODED: usize = 1 << 14;

/// A matrix of `[outputs, inputs]` in our own memory.
pub(crate) enum CpuMatrix {
    Packed(Packed),
    Dense(Dense),
}

/// A matrix `W` and the bias `b` that is added to its product: `x W^T (+ b)`.
#[derive(Clone, Copy)]
pub(crate) struct CpuLinear<'a> {
    pub(crate) matrix: &'a CpuMatrix,
    pub(crate) bias: Option<&'a [f32]>,
}

/// A product of rows with one or two matrices, and what is done with it while it is in the cache.
#[derive(Clone, Copy)]
pub(crate) enum MatmulOp<'a> {
    /// `x W^T (+ b)`.
    Linear(CpuLinear<'a>),
    /// `residual + x W^T (+ b)`.
    Residual(CpuLinear<'a>, &'a CpuTensor),
    /// `silu(x G^T (+ b)) * (x U^T (+ b))`.
    Swiglu { gate: CpuLinear<'a>, up: CpuLinear<'a> },
}

impl CpuMatrix {
    pub(crate) fn inputs(&self) -> usize {
        match self {
            Self::Packed(matrix) => matrix.inputs(),
            Self::Dense(matrix) => matrix.inputs(),
        }
    }

    pub(crate) fn outputs(&self) -> usize {
        match self {
            Self::Packed(matrix) => matrix.outputs(),
            Self::Dense(matrix) => matrix.outputs(),
        }
    }

    /// Rows of a table.
    pub(crate) fn rows(&self, which: &[u32]) -> CpuTensor {
        let width = self.inputs();
        let mut numbers = vec![0.0; which.len() * width];
        for (row, into) in which.iter().zip(numbers.chunks_exact_mut(width)) {
            match self {
                Self::Packed(matrix) => matrix.row(*row as usize, into),
                Self::Dense(matrix) => matrix.row(*row as usize, into),
            }
        }
        CpuTensor { width, numbers }
    }
}

impl<'a> MatmulOp<'a> {
    fn parts(&self) -> [Option<CpuLinear<'a>>; 2] {
        match *self {
            Self::Linear(one) | Self::Residual(one, _) => [Some(one), None],
            Self::Swiglu { gate, up } => [Some(up), Some(gate)],
        }
    }

    fn outputs(&self) -> usize {
        self.parts()[0].map_or(0, |part| part.matrix.outputs())
    }
}

thread_local! {
    /// The rows of the product at hand in fixed point: room kept from product to product.
    static ACTIVATIONS: RefCell<Activations> = RefCell::new(Activations::new(InstructionSet::best()));
    /// The second product of a chunk.
    static SECOND: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// The result of each of `steps`, which all multiply the same rows.
///
/// # Panics
///
/// If a matrix has not as many inputs as a row has numbers.
pub(crate) fn multiply<const N: usize>(x: &CpuTensor, steps: [MatmulOp<'_>; N]) -> [CpuTensor; N] {
    ACTIVATIONS
        .with_borrow_mut(|activations| multiply_by(thread_pool::pool(), activations, x, steps))
}

fn multiply_by<const N: usize>(
    pool: &ThreadPool,
    activations: &mut Activations,
    x: &CpuTensor,
    steps: [MatmulOp<'_>; N],
) -> [CpuTensor; N] {
    let rows = x.rows();
    let mut results = steps.map(|step| {
        for part in step.parts().into_iter().flatten() {
            assert_eq!(part.matrix.inputs(), x.width, "a matrix for other rows");
        }
        CpuTensor { width: step.outputs(), numbers: Vec::with_capacity(rows * step.outputs()) }
    });
    let packed = |step: &MatmulOp<'_>| {
        let mut parts = step.parts().into_iter().flatten();
        parts.any(|part| matches!(part.matrix, CpuMatrix::Packed(_)))
    };
    let plain;
    let (panels, row_bytes) = if steps.iter().any(packed) {
        activations.clear(rows, x.width);
        encode(pool, activations, x);
        (activations.panels(), activations.row_bytes())
    } else {
        plain = RowPanel::of(rows, ROWS_LEAST);
        (&plain[..], size_of::<f32>() * x.width)
    };
    let blocks = blocks(panels, (ROWS_BYTES / row_bytes.max(1)).max(ROWS_LEAST));
    let most = blocks.iter().map(|block| block.rows.len()).max().unwrap_or(0);
    let product = Matmul {
        x,
        activations,
        steps: &steps,
        into: results.each_mut().map(|result| OutputPointer(result.numbers.as_mut_ptr())),
    };

    let mut columns = Vec::new();
    for (number, step) in steps.iter().enumerate() {
        let outputs = step.outputs();
        let parts = step.parts().into_iter().flatten().count();
        let wide = (CHUNK / (most * x.width * parts).max(1)).max(1).next_multiple_of(TILE);
        columns.extend(
            (0..outputs).step_by(wide).map(|from| (number, from..(from + wide).min(outputs))),
        );
    }
    // All threads work on one block of rows, which stays near each of them, while the weights pass.
    let chunk = |chunk: usize| {
        let (number, outputs) = &columns[chunk % columns.len()];
        // SAFETY: no two chunks have an output of a row in common, and all are within the results.
        unsafe { product.chunk(*number, &blocks[chunk / columns.len()], outputs.clone()) }
    };
    let chunks = blocks.len() * columns.len();
    let outputs: usize = steps.iter().map(MatmulOp::outputs).sum();
    if rows * x.width * outputs < WORTH_SHARING {
        (0..chunks).for_each(chunk);
    } else {
        pool.run(chunks, &chunk);
    }
    for result in &mut results {
        // SAFETY: the chunks wrote each output of each row.
        unsafe { result.numbers.set_len(rows * result.width) }
    }
    results
}

fn encode(pool: &ThreadPool, activations: &Activations, x: &CpuTensor) {
    let panels = activations.panels();
    let fill = |panel: &RowPanel| {
        // SAFETY: `x` has as many rows, of as many numbers; each panel is filled once.
        unsafe { activations.fill(*panel, &|row| x.numbers[row * x.width..].as_ptr()) }
    };
    if x.numbers.len() < 2 * ENCODED {
        panels.iter().for_each(fill);
    } else {
        let at_a_time = (ENCODED * panels.len() / x.numbers.len()).max(1);
        pool.run(panels.len().div_ceil(at_a_time), &|chunk| {
            panels.iter().skip(chunk * at_a_time).take(at_a_time).for_each(fill);
        });
    }
}

/// Rows that stay near while the weights pass.
struct RowBlock<'a> {
    panels: &'a [RowPanel],
    rows: Range<usize>,
}

fn blocks(panels: &[RowPanel], most: usize) -> Vec<RowBlock<'_>> {
    let rows = panels.first().map_or(1, |panel| panel.rows);
    let at_a_time = (most / rows).max(1);
    let block = |panels: &'_ [RowPanel]| {
        let last = panels[panels.len() - 1];
        panels[0].first..last.first + last.rows
    };
    panels.chunks(at_a_time).map(|panels| RowBlock { panels, rows: block(panels) }).collect()
}

struct Matmul<'a, const N: usize> {
    x: &'a CpuTensor,
    activations: &'a Activations,
    steps: &'a [MatmulOp<'a>; N],
    into: [OutputPointer; N],
}

impl<const N: usize> Matmul<'_, N> {
    /// # Safety
    ///
    /// Nobody else may write the same outputs of the same rows.
    unsafe fn chunk(&self, number: usize, block: &RowBlock<'_>, outputs: Range<usize>) {
        let step = &self.steps[number];
        let stride = step.outputs();
        let OutputPointer(into) = self.into[number];
        let at = into.wrapping_add(block.rows.start * stride + outputs.start);
        let width = outputs.len();
        // SAFETY: the caller's promise; the results have room for all rows.
        let line = |row: usize| unsafe {
            std::slice::from_raw_parts_mut(at.wrapping_add(row * stride), width)
        };
        let rows = block.rows.clone();
        match *step {
            MatmulOp::Linear(part) => {
                // SAFETY: the caller's promise; so below.
                unsafe { self.part(part, block, outputs.clone(), at, stride) };
                add_bias(part, &outputs, rows.len(), line);
            }
            MatmulOp::Residual(part, residual) => {
                // SAFETY: as above.
                unsafe { self.part(part, block, outputs.clone(), at, stride) };
                add_bias(part, &outputs, rows.len(), line);
                for (number, row) in rows.enumerate() {
                    let residual = &residual.numbers[row * stride..][outputs.clone()];
                    line(number).iter_mut().zip(residual).for_each(|(sum, x)| *sum += x);
                }
            }
            MatmulOp::Swiglu { gate, up } => SECOND.with_borrow_mut(|second| {
                if second.len() < rows.len() * width {
                    second.resize(rows.len() * width, 0.0);
                }
                let own = second.as_mut_ptr();
                // SAFETY: as above, and the second has room.
                unsafe {
                    self.part(up, block, outputs.clone(), at, stride);
                    self.part(gate, block, outputs.clone(), own, width);
                }
                add_bias(up, &outputs, rows.len(), line);
                let gates = |row: usize| {
                    // SAFETY: as above; one row at a time.
                    unsafe { std::slice::from_raw_parts_mut(own.wrapping_add(row * width), width) }
                };
                add_bias(gate, &outputs, rows.len(), gates);
                for row in 0..rows.len() {
                    swiglu(gates(row), line(row));
                }
            }),
        }
    }

    /// # Safety
    ///
    /// As for `chunk`, of `out`.
    unsafe fn part(
        &self,
        part: CpuLinear<'_>,
        block: &RowBlock<'_>,
        outputs: Range<usize>,
        out: *mut f32,
        stride: usize,
    ) {
        match part.matrix {
            // SAFETY: the activations were filled with `x`, whose width was compared; a chunk
            // begins and ends with a tile, or at the end; the rest is the caller's promise.
            CpuMatrix::Packed(matrix) => unsafe {
                matrix.multiply(self.activations, block.panels, outputs, out, stride);
            },
            CpuMatrix::Dense(matrix) => {
                let at = self.x.numbers[block.rows.start * self.x.width..].as_ptr();
                let rows = dense::RowsPointer { at, stride: self.x.width };
                // SAFETY: as above.
                unsafe { matrix.multiply(rows, block.rows.len(), outputs, out, stride) }
            }
        }
    }
}

fn add_bias<'a>(
    part: CpuLinear<'_>,
    outputs: &Range<usize>,
    rows: usize,
    line: impl Fn(usize) -> &'a mut [f32],
) {
    if let Some(bias) = part.bias {
        for row in 0..rows {
            let bias = &bias[outputs.clone()];
            line(row).iter_mut().zip(bias).for_each(|(sum, bias)| *sum += bias);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::super::dense::DenseType;
    use super::*;
    use crate::noise::noise;

    fn dense(stored: DenseType, outputs: usize, inputs: usize) -> CpuMatrix {
        let numbers = noise((outputs * 3 + inputs) as u64, outputs * inputs);
        let bytes: Vec<u8> = match stored {
            DenseType::F32 => numbers.into_iter().flat_map(f32::to_le_bytes).collect(),
            DenseType::Bf16 | DenseType::F16 => numbers
                .into_iter()
                .flat_map(|number| half::bf16::from_f32(number).to_le_bytes())
                .collect(),
        };
        CpuMatrix::Dense(Dense::new(stored, outputs, inputs, &bytes))
    }

    /// The bits that the three kinds of `MatmulOp` give at once, computed by a pool.
    fn computed(pool: &ThreadPool, x: &CpuTensor, matrices: [&CpuMatrix; 2]) -> Vec<u32> {
        let bias = noise(5, matrices[0].outputs());
        let [a, b] = matrices.map(|matrix| CpuLinear { matrix, bias: Some(&bias) });
        let residual = CpuTensor { width: bias.len(), numbers: noise(6, x.rows() * bias.len()) };
        let steps = [
            MatmulOp::Linear(a),
            MatmulOp::Residual(b, &residual),
            MatmulOp::Swiglu { gate: a, up: b },
        ];
        let results = multiply_by(pool, &mut Activations::new(InstructionSet::best()), x, steps);
        results.iter().flat_map(|result| &result.numbers).map(|number| number.to_bits()).collect()
    }

    /// `x W^T + bias` in double precision, and the sizes of what was added up.
    fn exact(x: &CpuTensor, matrix: &CpuMatrix, bias: &[f32]) -> Vec<(f64, f64)> {
        let all: Vec<u32> = (0..matrix.outputs() as u32).collect();
        let weights = matrix.rows(&all);
        let of = |row: &[f32], output: usize| {
            let weights = &weights.numbers[output * weights.width..][..weights.width];
            let terms = row.iter().zip(weights).map(|(x, w)| f64::from(*x) * f64::from(*w));
            let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), t| (sum + t, size + t.abs()));
            (sum + f64::from(bias[output]), size + 1.0)
        };
        let rows = x.numbers.chunks(x.width);
        rows.flat_map(|row| (0..bias.len()).map(move |output| of(row, output))).collect()
    }

    #[test]
    fn every_output_of_every_step_is_computed() {
        let pool = ThreadPool::new(NonZeroUsize::new(3).expect("not 0"));
        for (rows, outputs, inputs) in [(1, 1037, 576), (40, 300, 608), (97, 77, 1536)] {
            let x = CpuTensor { width: inputs, numbers: noise(rows as u64, rows * inputs) };
            let [a, b] = [
                CpuMatrix::Packed(Packed::any(outputs, inputs)),
                dense(DenseType::F32, outputs, inputs),
            ];
            let found = computed(&pool, &x, [&a, &b]);
            let (bias, residual) = (noise(5, outputs), noise(6, rows * outputs));
            let (gate, up) = (exact(&x, &a, &bias), exact(&x, &b, &bias));
            let gated = gate.iter().zip(&up).map(|((gate, size), (up, other))| {
                let most = (size + 1.0) * (other + 1.0);
                (gate / (1.0 + (-gate).exp()) * up, most)
            });
            let added = up
                .iter()
                .zip(&residual)
                .map(|((sum, size), residual)| (sum + f64::from(*residual), *size));
            let wanted: Vec<_> = gate.iter().copied().chain(added).chain(gated).collect();
            assert_eq!(found.len(), wanted.len());
            for (at, (found, (wanted, size))) in found.iter().zip(wanted).enumerate() {
                let found = f64::from(f32::from_bits(*found));
                assert!((found - wanted).abs() < 1e-4 * size, "{at}: {found}, not {wanted}");
            }
        }
    }

    #[test]
    fn many_threads_compute_what_one_does_to_the_bit() {
        let pool = |threads| ThreadPool::new(NonZeroUsize::new(threads).expect("not 0"));
        let (one, many) = (pool(1), pool(5));
        let packed = |outputs, inputs| CpuMatrix::Packed(Packed::any(outputs, inputs));
        for (rows, outputs, inputs) in
            [(1, 1037, 576), (5, 1037, 576), (40, 300, 608), (97, 77, 1536)]
        {
            let x = CpuTensor { width: inputs, numbers: noise(rows as u64, rows * inputs) };
            for matrices in [
                [packed(outputs, inputs), packed(outputs, inputs)],
                [dense(DenseType::Bf16, outputs, inputs), dense(DenseType::F32, outputs, inputs)],
            ] {
                let both = [&matrices[0], &matrices[1]];
                let alone = computed(&one, &x, both);
                assert_eq!(alone.len(), 3 * rows * outputs);
                for _ in 0..8 {
                    assert!(computed(&many, &x, both) == alone, "{rows} rows of {inputs}");
                }
            }
        }
    }
}
