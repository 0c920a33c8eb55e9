//! Weights as files have them, in the layouts of the CPU's kernels ([`crate::cpu`]).

use half::{bf16, f16};

use crate::cpu::dense::DenseType;
use crate::cpu::packed::{self, Packed};
use crate::quantization::Affine;
use crate::source::Encoding;
use crate::source::blocks::{BLOCK, BlockType};

/// Numbers as f32. `WeightLoader::fitting` has seen that they are numbers.
pub(super) fn widen(bytes: &[u8], encoding: &Encoding) -> Vec<f32> {
    let two = bytes.as_chunks::<2>().0.iter();
    match encoding {
        Encoding::F16 => two.map(|two| f16::from_le_bytes(*two).to_f32()).collect(),
        Encoding::Bf16 => two.map(|two| bf16::from_le_bytes(*two).to_f32()).collect(),
        _ => bytes.as_chunks::<4>().0.iter().map(|four| f32::from_le_bytes(*four)).collect(),
    }
}

pub(super) fn dense_type(encoding: &Encoding) -> DenseType {
    match encoding {
        Encoding::F16 => DenseType::F16,
        Encoding::Bf16 => DenseType::Bf16,
        _ => DenseType::F32,
    }
}

/// GGUF's blocks in our layout.
pub(super) fn pack_blocks(kind: BlockType, bytes: &[u8], outputs: usize, inputs: usize) -> Packed {
    let (size, blocks) = (kind.bytes(), inputs / BLOCK);
    let (mut scales, mut biases) = (Vec::new(), Vec::new());
    for block in bytes.chunks_exact(size) {
        let (scale, bias) = kind.affine(block);
        scales.extend(scale.to_le_bytes());
        biases.extend(bias.to_le_bytes());
    }
    let bits = if kind.bits() == 4 { packed::Bits::Four } else { packed::Bits::Eight };
    let affine = packed::AffineMatrix {
        outputs,
        inputs,
        group: BLOCK,
        codes: &|output, number, codes| {
            kind.codes(&bytes[(output * blocks + number) * size..][..size], codes);
        },
        scales: &scales,
        biases: &biases,
    };
    Packed::new(packed::PackedFormat { bits, scales: packed::ScaleType::F16 }, &affine)
}

/// MLX's codes in our layout: those of 2 and 3 bits as 4, those of 5 and 6 as 8.
pub(super) fn pack_affine(
    affine: Affine,
    words: &[u8],
    (scales, scale_type): (&[u8], &Encoding),
    (biases, bias_type): (&[u8], &Encoding),
    outputs: usize,
    inputs: usize,
) -> Packed {
    let own = match scale_type {
        Encoding::F16 => packed::ScaleType::F16,
        Encoding::Bf16 => packed::ScaleType::Bf16,
        _ => packed::ScaleType::F32,
    };
    let wide;
    let (kind, scales, biases) = if scale_type == bias_type {
        (own, scales, biases)
    } else {
        wide = [(scales, scale_type), (biases, bias_type)].map(|(bytes, encoding)| {
            widen(bytes, encoding).into_iter().flat_map(f32::to_le_bytes).collect::<Vec<u8>>()
        });
        (packed::ScaleType::F32, &wide[0][..], &wide[1][..])
    };
    // A row is a string of bits, lowest first; each code takes the next few.
    let each = affine.bits.unsigned_abs() as usize;
    let row_bytes = inputs * each / 8;
    let codes = |output: usize, number: usize, codes: &mut [u8]| {
        let row = &words[output * row_bytes..][..row_bytes];
        for (i, code) in codes.iter_mut().enumerate() {
            let bit = (number * BLOCK + i) * each;
            let next = row.get(bit / 8 + 1).copied().unwrap_or(0);
            let both = u16::from_le_bytes([row[bit / 8], next]);
            *code = (both >> (bit % 8)) as u8 & u8::MAX >> (8 - each);
        }
    };
    let bits = if each <= 4 { packed::Bits::Four } else { packed::Bits::Eight };
    let affine = packed::AffineMatrix {
        outputs,
        inputs,
        group: affine.group_size.unsigned_abs() as usize,
        codes: &codes,
        scales,
        biases,
    };
    Packed::new(packed::PackedFormat { bits, scales: kind }, &affine)
}
