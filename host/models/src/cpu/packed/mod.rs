//! Quantized weights that stay packed, and their product with rows of activations.
//!
//! A weight is `scale * code + bias`, with a scale and a bias for each group of 32, 64 or 128
//! inputs: MLX's affine quantization, which covers GGUF's Q4_0, Q4_1 and Q8_0. Rows become fixed
//! point ([`activations`]), codes are multiplied with them as whole numbers, and each group's sum
//! is scaled in f32.
//!
//! ```text
//! tile = 16 outputs; for each group of its inputs:
//!    scales   16 of f16, bf16 or f32, as in the file
//!    biases   the same
//!    codes    4 bits: for each 8 inputs a line of 16 x 4 bytes, input i in the low half, i + 4 in the high
//!             8 bits: for each 4 inputs a line of 16 x 4 bytes
//! ```
//! So a vector's lane is an output and nothing is ever summed across; what one product reads lies
//! in one piece, in the order in which it is read; and it is no larger than in the file. Lanes as
//! outputs with inputs in fours is how oneDNN and MLAS lay out weights for the same instruction
//! (`vpdpbusd`); the codes are this layout's own only in that halves of 4 bits share a byte.
//!
//! # Invariants
//!
//! - An output depends on its weights and its row alone, to the bit, whatever the machine: see
//!   [`lanes`].
//!
//! # Not here
//!
//! Threads, and what is done with a product: [`super::matmul`].

pub(crate) mod activations;
mod lanes;
mod memory;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use half::{bf16, f16};

use self::activations::{Activations, RowPanel};
use self::lanes::{ScalarLanes, TileArgs, tile_products};
use self::memory::AlignedBytes;
use super::thread_pool;

/// Inputs that share a scale of activations. Every group size is a multiple.
pub(crate) const BLOCK: usize = 32;

/// Outputs that lie side by side.
pub(crate) const TILE: usize = 16;

/// Bytes of a tile's codes that are read at once.
const LINE: usize = 64;

/// Multiplies one tile of weights with one panel of rows.
type TileProduct = unsafe fn(TileArgs);

/// The instructions that compute the product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InstructionSet {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "aarch64")]
    Neon,
    Scalar,
}

impl InstructionSet {
    /// The ways that this machine has, the best first. The last works anywhere.
    pub(crate) fn all() -> Vec<Self> {
        let mut all = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vnni")
            {
                all.push(Self::Avx512);
            }
            if is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
            {
                all.push(Self::Avx2);
            }
        }
        #[cfg(target_arch = "aarch64")]
        if std::arch::is_aarch64_feature_detected!("neon") {
            all.push(Self::Neon);
        }
        all.push(Self::Scalar);
        all
    }

    pub(crate) fn best() -> Self {
        Self::all()[0]
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => "AVX-512 VNNI",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => "AVX2",
            #[cfg(target_arch = "aarch64")]
            Self::Neon => "NEON",
            Self::Scalar => "scalar code",
        }
    }

    /// Rows that share what was read of the weights: as many as there are registers for.
    fn rows_max(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => 8,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => 3,
            #[cfg(target_arch = "aarch64")]
            Self::Neon => 6,
            Self::Scalar => 1,
        }
    }

    fn product(self, bits: Bits, rows: usize) -> TileProduct {
        let product = match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => x86::avx512::product(bits, rows),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => x86::avx2::product(bits, rows),
            #[cfg(target_arch = "aarch64")]
            Self::Neon => neon::product(bits, rows),
            Self::Scalar => scalar::product(bits, rows),
        };
        product.expect("a panel has 1 to rows_max rows")
    }
}

/// The product in scalar code, which runs on any machine.
mod scalar {
    use super::lanes::tile;
    use super::{Bits, ScalarLanes, TileArgs, TileProduct, tile_products};
    tile_products!(ScalarLanes, [1]);
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bits {
    Four,
    Eight,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ScaleType {
    F16,
    Bf16,
    F32,
}

/// The types in which a packed matrix stores its codes and its scales.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PackedFormat {
    pub(crate) bits: Bits,
    pub(crate) scales: ScaleType,
}

impl ScaleType {
    fn bytes(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
        }
    }
}

impl PackedFormat {
    /// Bytes of a tile's codes of 32 inputs.
    fn codes_bytes(self) -> usize {
        match self.bits {
            Bits::Four => BLOCK * TILE / 2,
            Bits::Eight => BLOCK * TILE,
        }
    }

    /// Bytes of a tile's scales, or its biases, of one group.
    fn scales_bytes(self) -> usize {
        TILE * self.scales.bytes()
    }

    fn scale(self, bytes: &[u8], lane: usize) -> f32 {
        match self.scales {
            ScaleType::F16 => f16::from_le_bytes([bytes[2 * lane], bytes[2 * lane + 1]]).to_f32(),
            ScaleType::Bf16 => bf16::from_le_bytes([bytes[2 * lane], bytes[2 * lane + 1]]).to_f32(),
            ScaleType::F32 => {
                let at = 4 * lane;
                f32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
            }
        }
    }
}

/// A matrix of `[outputs, inputs]`.
pub(crate) struct Packed {
    stored: PackedFormat,
    outputs: usize,
    inputs: usize,
    group: usize,
    lines: AlignedBytes,
}

/// A matrix in order of its outputs, as files have it.
pub(crate) struct AffineMatrix<'a> {
    pub(crate) outputs: usize,
    pub(crate) inputs: usize,
    pub(crate) group: usize,
    /// Writes the codes of an output's 32 inputs, by the number of the 32, one to a byte.
    pub(crate) codes: &'a (dyn Fn(usize, usize, &mut [u8]) + Sync),
    /// `[outputs, groups]`, each as it is stored.
    pub(crate) scales: &'a [u8],
    pub(crate) biases: &'a [u8],
}

impl Packed {
    /// # Panics
    ///
    /// If inputs are no multiple of the group or the group none of 32, or scales are missing.
    pub(crate) fn new(stored: PackedFormat, affine: &AffineMatrix<'_>) -> Self {
        let AffineMatrix { outputs, inputs, group, scales, biases, .. } = *affine;
        assert!(inputs.is_multiple_of(group) && group.is_multiple_of(BLOCK) && group > 0);
        let size = stored.scales.bytes();
        assert!(scales.len() == outputs * (inputs / group) * size && biases.len() == scales.len());
        let packed = Self { stored, outputs, inputs, group, lines: AlignedBytes::default() };
        let tile_bytes = packed.tile_bytes().max(1);
        let mut lines = AlignedBytes::new(packed.tiles() * tile_bytes);
        let tiles: Vec<_> = lines.bytes().chunks_exact_mut(tile_bytes).map(Mutex::new).collect();
        thread_pool::pool().run(packed.tiles(), &|number| {
            // No two threads have a tile; a lock for each one proves that to the compiler.
            let mut tile = tiles[number].lock().unwrap_or_else(PoisonError::into_inner);
            packed.fill(affine, number, &mut tile);
        });
        drop(tiles);
        Self { lines, ..packed }
    }

    /// Writes a tile, which is all zero.
    fn fill(&self, affine: &AffineMatrix<'_>, number: usize, tile: &mut [u8]) {
        let Self { stored, group, .. } = *self;
        let (blocks, size) = (group / BLOCK, stored.scales.bytes());
        let outputs = number * TILE..((number + 1) * TILE).min(self.outputs);
        for (number, place) in tile.chunks_exact_mut(self.group_bytes()).enumerate() {
            let (numbers, lines) = place.split_at_mut(2 * stored.scales_bytes());
            let (scales, biases) = numbers.split_at_mut(stored.scales_bytes());
            for output in outputs.clone() {
                let lane = output % TILE;
                for (block, lines) in lines.chunks_exact_mut(stored.codes_bytes()).enumerate() {
                    let mut codes = [0; BLOCK];
                    (affine.codes)(output, number * blocks + block, &mut codes);
                    match stored.bits {
                        Bits::Four => {
                            for (line, codes) in
                                lines.chunks_exact_mut(LINE).zip(codes.as_chunks::<8>().0)
                            {
                                for i in 0..4 {
                                    line[lane * 4 + i] = codes[i] | codes[i + 4] << 4;
                                }
                            }
                        }
                        Bits::Eight => {
                            for (line, codes) in
                                lines.chunks_exact_mut(LINE).zip(codes.as_chunks::<4>().0)
                            {
                                line[lane * 4..][..4].copy_from_slice(codes);
                            }
                        }
                    }
                }
                let from = (output * (self.inputs / group) + number) * size;
                scales[lane * size..][..size].copy_from_slice(&affine.scales[from..][..size]);
                biases[lane * size..][..size].copy_from_slice(&affine.biases[from..][..size]);
            }
        }
    }

    pub(crate) fn inputs(&self) -> usize {
        self.inputs
    }

    pub(crate) fn outputs(&self) -> usize {
        self.outputs
    }

    fn tiles(&self) -> usize {
        self.outputs.div_ceil(TILE)
    }

    fn group_bytes(&self) -> usize {
        self.group / BLOCK * self.stored.codes_bytes() + 2 * self.stored.scales_bytes()
    }

    fn tile_bytes(&self) -> usize {
        self.inputs / self.group * self.group_bytes()
    }

    /// Widens the weights of one output: a row of an embedding.
    pub(crate) fn row(&self, output: usize, into: &mut [f32]) {
        let lane = output % TILE;
        let group_bytes = self.group_bytes();
        let start = output / TILE * self.tile_bytes();
        let tile = &self.lines.all()[start..start + self.tile_bytes()];
        for (place, into) in tile.chunks_exact(group_bytes).zip(into.chunks_exact_mut(self.group)) {
            let (numbers, codes) = place.split_at(2 * self.stored.scales_bytes());
            let (scales, biases) = numbers.split_at(self.stored.scales_bytes());
            let (scale, bias) = (self.stored.scale(scales, lane), self.stored.scale(biases, lane));
            let inputs = match self.stored.bits {
                Bits::Four => 8,
                Bits::Eight => 4,
            };
            for (line, into) in codes.chunks_exact(LINE).zip(into.chunks_exact_mut(inputs)) {
                for (i, number) in into.iter_mut().enumerate() {
                    let byte = line[lane * 4 + i % 4];
                    let code = match self.stored.bits {
                        Bits::Four => byte >> (i / 4 * 4) & 15,
                        Bits::Eight => byte,
                    };
                    *number = scale * f32::from(code) + bias;
                }
            }
        }
    }

    /// The outputs `outputs` of the rows in `panels`, to `out`, where rows are `stride` apart and
    /// the first of `outputs` of the first panel's first row is the first.
    ///
    /// # Safety
    ///
    /// `outputs` must begin with a tile, and end with one or at the last output; the activations
    /// must be filled and have this matrix's inputs; `out` must have room and be this call's alone.
    pub(crate) unsafe fn multiply(
        &self,
        activations: &Activations,
        panels: &[RowPanel],
        outputs: Range<usize>,
        out: *mut f32,
        stride: usize,
    ) {
        assert!(outputs.start.is_multiple_of(TILE) && outputs.end <= self.outputs);
        assert_eq!(activations.row_bytes() / activations::ACTIVATION_BYTES * BLOCK, self.inputs);
        let first = panels.first().map_or(0, |panel| panel.first);
        let mut rest = [0.0; TILE * 8];
        for output in outputs.clone().step_by(TILE) {
            let weights = self.lines.at().wrapping_add(output / TILE * self.tile_bytes());
            let wanted = (outputs.end - output).min(TILE);
            for &panel in panels {
                let place =
                    out.wrapping_add((panel.first - first) * stride + output - outputs.start);
                // The last tile may have more outputs than the matrix: those are dropped.
                let whole = wanted == TILE;
                let call = TileArgs {
                    weights,
                    scales: self.stored.scales,
                    groups: self.inputs / self.group,
                    blocks: self.group / BLOCK,
                    panel: activations.at(panel),
                    out: if whole { place } else { rest.as_mut_ptr() },
                    stride: if whole { stride } else { TILE },
                };
                // SAFETY: the layouts are as `Packed` and `Activations` make them, which have the
                // same inputs; the path was found on this machine; `rest` has eight rows, and the
                // rest is the caller's promise.
                unsafe {
                    activations.path().product(self.stored.bits, panel.rows)(call);
                    if !whole {
                        for r in 0..panel.rows {
                            let from = rest.as_ptr().add(r * TILE);
                            place.add(r * stride).copy_from_nonoverlapping(from, wanted);
                        }
                    }
                }
            }
        }
    }
}
