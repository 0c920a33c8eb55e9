//! What the packed product asks of a machine: a vector of outputs, and four operations on it.
//!
//! The product itself ([`tile`]) is written once over [`Lanes`]; `scalar` below, `x86` and `neon`
//! say how a machine does it. A lane is one output, so no sum ever runs across a vector.
//!
//! # Invariants
//!
//! - Sums of products are sums of whole numbers that fit 32 bits, so their order is free.
//! - What follows is in f32, one rounding each, in one order: `fma(sum, scale * x_scale, total)`,
//!   then `fma(bias, x_sum, total)`, group by group from the front. Every implementation rounds
//!   the same, so all of them agree to the bit, whatever rows are beside a row.

use half::{bf16, f16};

use super::activations::{ACTIVATION_BYTES, CODES_BYTES};
use super::{BLOCK, LINE, ScaleType, TILE};

/// Some of a tile's outputs, side by side.
///
/// # Safety
///
/// All of it may be called only where the machine has what the implementation is named for, and
/// with addresses of as many numbers as there are lanes.
pub(super) trait Lanes {
    /// A whole number of 32 bits, or four codes, for each output.
    type Ints: Copy;
    /// A number for each output.
    type Floats: Copy;
    /// How many outputs one vector holds.
    const COUNT: usize;

    unsafe fn none() -> Self::Ints;
    unsafe fn codes(at: *const u8) -> Self::Ints;
    /// The low half of each byte, or the high half.
    unsafe fn low(codes: Self::Ints) -> Self::Ints;
    unsafe fn high(codes: Self::Ints) -> Self::Ints;
    /// Adds to each sum the products of its four codes, below 16, with four signed bytes.
    unsafe fn dot_halves(sum: Self::Ints, codes: Self::Ints, x: u32) -> Self::Ints;
    /// Does what `dot_halves` does, for codes below 256.
    unsafe fn dot_bytes(sum: Self::Ints, codes: Self::Ints, x: u32) -> Self::Ints;
    /// `256 * high + low`, rounded to f32 once.
    unsafe fn join(high: Self::Ints, low: Self::Ints) -> Self::Floats;

    unsafe fn splat(value: f32) -> Self::Floats;
    unsafe fn multiply(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a * b + c`, rounded once.
    unsafe fn multiply_add(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    unsafe fn f32s(at: *const u8) -> Self::Floats;
    unsafe fn f16s(at: *const u8) -> Self::Floats;
    unsafe fn bf16s(at: *const u8) -> Self::Floats;
    unsafe fn store(value: Self::Floats, at: *mut f32);
}

/// One tile of weights with one panel of rows.
#[derive(Clone, Copy)]
pub(super) struct TileArgs {
    pub(super) weights: *const u8,
    pub(super) scales: ScaleType,
    /// Groups in a row of weights, and activation blocks in a group.
    pub(super) groups: usize,
    pub(super) blocks: usize,
    pub(super) panel: *const u8,
    /// The address of the first row's outputs, and the numbers between two rows.
    pub(super) out: *mut f32,
    pub(super) stride: usize,
}

/// `R` rows with the outputs of one tile: `R * TILE` numbers are written.
///
/// # Safety
///
/// `weights` and `panel` must be laid out as [`super::Packed`] and
/// [`super::activations::Activations`] say, with `R` rows in the panel; `out` must have room.
// Plain loops with plain indices: see `dense`.
#[expect(clippy::needless_range_loop, reason = "see above")]
#[inline(always)]
pub(super) unsafe fn tile<L: Lanes, const BITS: usize, const R: usize>(call: TileArgs) {
    let codes_bytes = BLOCK * TILE * BITS / 8;
    // SAFETY: all addresses lie within the tile, the panel and the output, which the caller vouches
    // for; the machine has what `L` needs, which is the caller's promise too.
    unsafe {
        for lane in (0..TILE).step_by(L::COUNT) {
            let mut at = call.weights;
            let mut x = call.panel;
            let mut totals = [L::splat(0.0); R];
            for _ in 0..call.groups {
                let size = call.scales.bytes();
                let scale = scales::<L>(call.scales, at.add(lane * size));
                let bias = scales::<L>(call.scales, at.add((TILE + lane) * size));
                at = at.add(2 * TILE * size);
                for _ in 0..call.blocks {
                    let mut high = [L::none(); R];
                    let mut low = [L::none(); R];
                    for step in 0..codes_bytes / LINE {
                        let codes = L::codes(at.add(step * LINE + lane * 4));
                        if BITS == 4 {
                            let halves = [L::low(codes), L::high(codes)];
                            for half in 0..2 {
                                let word = x.add(step * 8 + half * 4);
                                for r in 0..R {
                                    let [a, b] = words(word.add(r * CODES_BYTES));
                                    high[r] = L::dot_halves(high[r], halves[half], a);
                                    low[r] = L::dot_halves(low[r], halves[half], b);
                                }
                            }
                        } else {
                            for r in 0..R {
                                let [a, b] = words(x.add(r * CODES_BYTES + step * 4));
                                high[r] = L::dot_bytes(high[r], codes, a);
                                low[r] = L::dot_bytes(low[r], codes, b);
                            }
                        }
                    }
                    let numbers = x.add(R * CODES_BYTES).cast::<f32>();
                    for r in 0..R {
                        let x_scale = L::splat(numbers.add(r).read_unaligned());
                        let x_sum = L::splat(numbers.add(R + r).read_unaligned());
                        let sum = L::join(high[r], low[r]);
                        totals[r] = L::multiply_add(sum, L::multiply(scale, x_scale), totals[r]);
                        totals[r] = L::multiply_add(bias, x_sum, totals[r]);
                    }
                    at = at.add(codes_bytes);
                    x = x.add(R * ACTIVATION_BYTES);
                }
            }
            for r in 0..R {
                L::store(totals[r], call.out.add(r * call.stride + lane));
            }
        }
    }
}

/// A tile's scales, or biases, as they are stored. Which type is the same all along, so the branch
/// costs nothing, and each type an instance of all products would take minutes to compile.
#[inline(always)]
unsafe fn scales<L: Lanes>(kind: ScaleType, at: *const u8) -> L::Floats {
    // SAFETY: the caller's promise.
    unsafe {
        match kind {
            ScaleType::F16 => L::f16s(at),
            ScaleType::Bf16 => L::bf16s(at),
            ScaleType::F32 => L::f32s(at),
        }
    }
}

/// Four high bytes and four low bytes of a block's codes.
#[inline(always)]
unsafe fn words(at: *const u8) -> [u32; 2] {
    // SAFETY: the caller is within a block's codes, of which the low bytes follow the high ones.
    unsafe { [at.cast::<u32>().read_unaligned(), at.add(BLOCK).cast::<u32>().read_unaligned()] }
}

/// Makes a machine's products: one function for each number of bits and rows, compiled for it.
macro_rules! tile_products {
    ($lanes:ty, [$($rows:literal),*] $(, $attribute:meta)?) => {
        $(#[$attribute])?
        unsafe fn compiled<const BITS: usize, const R: usize>(call: TileArgs) {
            // SAFETY: the caller's promise, passed on.
            unsafe { tile::<$lanes, BITS, R>(call) }
        }

        /// The product for a panel of `rows`, and none if a panel has fewer at most.
        pub(in super::super) fn product(bits: Bits, rows: usize) -> Option<TileProduct> {
            match (bits, rows) {
                $((Bits::Four, $rows) => Some(compiled::<4, $rows>),)*
                $((Bits::Eight, $rows) => Some(compiled::<8, $rows>),)*
                _ => None,
            }
        }
    };
}
pub(super) use tile_products;

/// One output at a time, on any machine.
pub(super) struct ScalarLanes;

impl Lanes for ScalarLanes {
    type Ints = i32;
    type Floats = f32;
    const COUNT: usize = 1;

    #[inline(always)]
    unsafe fn none() -> i32 {
        0
    }

    #[inline(always)]
    unsafe fn codes(at: *const u8) -> i32 {
        // SAFETY: the caller's promise; so below.
        unsafe { at.cast::<i32>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn low(codes: i32) -> i32 {
        codes & 0x0F0F_0F0F
    }

    #[inline(always)]
    unsafe fn high(codes: i32) -> i32 {
        (codes >> 4) & 0x0F0F_0F0F
    }

    #[inline(always)]
    unsafe fn dot_halves(sum: i32, codes: i32, x: u32) -> i32 {
        let mut sum = sum;
        for (code, x) in codes.to_le_bytes().into_iter().zip(x.to_le_bytes()) {
            sum += i32::from(code) * i32::from(x.cast_signed());
        }
        sum
    }

    #[inline(always)]
    unsafe fn dot_bytes(sum: i32, codes: i32, x: u32) -> i32 {
        // SAFETY: this one asks nothing.
        unsafe { Self::dot_halves(sum, codes, x) }
    }

    #[inline(always)]
    unsafe fn join(high: i32, low: i32) -> f32 {
        (high * 256 + low) as f32
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> f32 {
        value
    }

    #[inline(always)]
    unsafe fn multiply(a: f32, b: f32) -> f32 {
        a * b
    }

    #[inline(always)]
    unsafe fn multiply_add(a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }

    #[inline(always)]
    unsafe fn f32s(at: *const u8) -> f32 {
        // SAFETY: as above.
        unsafe { at.cast::<f32>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn f16s(at: *const u8) -> f32 {
        // SAFETY: as above.
        f16::from_bits(unsafe { at.cast::<u16>().read_unaligned() }).to_f32()
    }

    #[inline(always)]
    unsafe fn bf16s(at: *const u8) -> f32 {
        // SAFETY: as above.
        bf16::from_bits(unsafe { at.cast::<u16>().read_unaligned() }).to_f32()
    }

    #[inline(always)]
    unsafe fn store(value: f32, at: *mut f32) {
        // SAFETY: as above.
        unsafe { *at = value }
    }
}
