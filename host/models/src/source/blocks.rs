//! GGUF's quantized blocks: 32 numbers that share a scale (and, in Q4_1, a smallest value).
//!
//! ```text
//! Q4_0  d: f16            nibble[16]   w = d * (q - 8)      18 bytes
//! Q4_1  d: f16  m: f16    nibble[16]   w = d * q + m        20 bytes
//! Q8_0  d: f16            i8[32]       w = d * q            34 bytes
//! ```
//! A nibble pair holds number `i` (low) and number `i + 16` (high).
//!
//! MLX's affine groups say `w = scale * q + bias` with unsigned `q`, packed eight or four to a
//! word, lowest bits first. So each block becomes one group exactly, but for the rounding of
//! `-8 d` and `-128 d`, which f16 represents whenever it represents `d` (a power of two away) and
//! the product does not overflow.

use half::f16;

/// Numbers in one block.
pub(crate) const BLOCK: usize = 32;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum BlockType {
    Q4_0,
    Q4_1,
    Q8_0,
}

impl BlockType {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q8_0 => "Q8_0",
        }
    }

    /// Bytes of one block.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q8_0 => 34,
        }
    }

    pub(crate) fn bits(self) -> i32 {
        match self {
            Self::Q4_0 | Self::Q4_1 => 4,
            Self::Q8_0 => 8,
        }
    }

    /// A block's scale and bias.
    pub(crate) fn affine(self, block: &[u8]) -> (f16, f16) {
        let scale = half(block, 0);
        let bias = match self {
            Self::Q4_0 => f16::from_f32(-8.0 * scale.to_f32()),
            Self::Q4_1 => half(block, 2),
            Self::Q8_0 => f16::from_f32(-128.0 * scale.to_f32()),
        };
        (scale, bias)
    }

    /// A block's 32 codes, one to a byte.
    pub(crate) fn codes(self, block: &[u8], codes: &mut [u8]) {
        match self {
            Self::Q4_0 | Self::Q4_1 => {
                let (low, high) = codes.split_at_mut(BLOCK / 2);
                let bytes = &block[self.bytes() - BLOCK / 2..];
                for ((byte, low), high) in bytes.iter().zip(low).zip(high) {
                    (*low, *high) = (byte & 15, byte >> 4);
                }
            }
            // From signed to unsigned: the sign bit is worth -128, flipped it is worth the bias.
            Self::Q8_0 => {
                codes.iter_mut().zip(&block[2..]).for_each(|(code, q)| *code = q ^ 0x80);
            }
        }
    }
}

fn half(bytes: &[u8], at: usize) -> f16 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// Whole blocks in MLX's affine layout: packed words, scales and biases, in order of the blocks.
pub(crate) fn repack(kind: BlockType, bytes: &[u8]) -> (Vec<u32>, Vec<f16>, Vec<f16>) {
    let blocks = bytes.len() / kind.bytes();
    let mut words = Vec::with_capacity(blocks * BLOCK * kind.bits().unsigned_abs() as usize / 32);
    let (mut scales, mut biases) = (Vec::with_capacity(blocks), Vec::with_capacity(blocks));
    for block in bytes.chunks_exact(kind.bytes()) {
        let (scale, bias) = kind.affine(block);
        scales.push(scale);
        biases.push(bias);
        match kind {
            BlockType::Q4_0 | BlockType::Q4_1 => {
                let (mut word, mut filled) = (0_u32, 0);
                nibbles(&block[kind.bytes() - 16..], |q| {
                    word |= u32::from(q) << (4 * filled);
                    filled += 1;
                    if filled == 8 {
                        words.push(word);
                        (word, filled) = (0, 0);
                    }
                });
            }
            // As in `BlockType::codes`.
            BlockType::Q8_0 => {
                for q in block[2..].as_chunks::<4>().0 {
                    words.push(u32::from_le_bytes(q.map(|q| q ^ 0x80)));
                }
            }
        }
    }
    (words, scales, biases)
}

/// The 32 nibbles of 16 bytes, in order of the numbers.
fn nibbles(bytes: &[u8], mut each: impl FnMut(u8)) {
    for byte in bytes {
        each(byte & 0x0F);
    }
    for byte in bytes {
        each(byte >> 4);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers themselves. `bytes` is whole blocks.
    fn widen(kind: BlockType, bytes: &[u8]) -> Vec<f32> {
        let mut numbers = Vec::with_capacity(bytes.len() / kind.bytes() * BLOCK);
        for block in bytes.chunks_exact(kind.bytes()) {
            let d = half(block, 0).to_f32();
            match kind {
                BlockType::Q4_0 => nibbles(&block[2..], |q| numbers.push(d * (f32::from(q) - 8.0))),
                BlockType::Q4_1 => {
                    let m = half(block, 2).to_f32();
                    nibbles(&block[4..], |q| numbers.push(d * f32::from(q) + m));
                }
                BlockType::Q8_0 => {
                    numbers.extend(block[2..].iter().map(|&q| d * f32::from(q.cast_signed())));
                }
            }
        }
        numbers
    }

    /// What MLX makes of the packed form.
    fn unpack(kind: BlockType, words: &[u32], scale: f16, bias: f16) -> Vec<f32> {
        let bits = kind.bits().unsigned_abs();
        let mask = (1_u32 << bits) - 1;
        let per_word = 32 / bits;
        words
            .iter()
            .flat_map(|word| (0..per_word).map(move |i| (word >> (bits * i)) & mask))
            .map(|q| scale.to_f32() * q as f32 + bias.to_f32())
            .collect()
    }

    #[test]
    fn a_repacked_block_means_the_same_numbers() {
        for kind in [BlockType::Q4_0, BlockType::Q4_1, BlockType::Q8_0] {
            let mut block: Vec<u8> =
                (0..kind.bytes()).map(|i| (i * 37 + 11).to_le_bytes()[0]).collect();
            block[..2].copy_from_slice(&f16::from_f32(0.0625).to_le_bytes());
            if kind == BlockType::Q4_1 {
                block[2..4].copy_from_slice(&f16::from_f32(-0.5).to_le_bytes());
            }
            let (words, scales, biases) = repack(kind, &block);
            let widened = widen(kind, &block);
            assert_eq!(unpack(kind, &words, scales[0], biases[0]), widened, "{kind:?}");
            let mut codes = [0; BLOCK];
            kind.codes(&block, &mut codes);
            let mean = |code: u8| scales[0].to_f32() * f32::from(code) + biases[0].to_f32();
            assert_eq!(codes.map(mean)[..], widened, "{kind:?}");
        }
    }

    #[test]
    fn the_low_nibbles_come_first() {
        let mut block = vec![0_u8; 18];
        block[..2].copy_from_slice(&f16::from_f32(1.0).to_le_bytes());
        block[2] = 0x9F; // number 0 is 15, number 16 is 9
        let numbers = widen(BlockType::Q4_0, &block);
        assert_eq!((numbers[0], numbers[16], numbers[1]), (7.0, 1.0, -8.0));
    }
}
