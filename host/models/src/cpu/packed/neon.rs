//! NEON, as every 64-bit ARM has it: 4 outputs. Products of bytes are 16 bits wide and added up in
//! pairs; codes of 8 bits are taken as two halves, because there is no product of unsigned with
//! signed bytes.

use std::arch::aarch64::*;

use super::lanes::*;
use super::{Bits, TileProduct};

pub(super) struct NeonLanes;

// SAFETY in all of this file: as in `x86`.
#[expect(clippy::undocumented_unsafe_blocks, reason = "see above")]
impl Lanes for NeonLanes {
    type Ints = int32x4_t;
    type Floats = float32x4_t;
    const COUNT: usize = 4;

    #[inline(always)]
    unsafe fn none() -> int32x4_t {
        unsafe { vdupq_n_s32(0) }
    }

    #[inline(always)]
    unsafe fn codes(at: *const u8) -> int32x4_t {
        unsafe { vreinterpretq_s32_u8(vld1q_u8(at)) }
    }

    #[inline(always)]
    unsafe fn low(codes: int32x4_t) -> int32x4_t {
        unsafe { vandq_s32(codes, vdupq_n_s32(0x0F0F_0F0F)) }
    }

    #[inline(always)]
    unsafe fn high(codes: int32x4_t) -> int32x4_t {
        unsafe { vreinterpretq_s32_u8(vshrq_n_u8::<4>(vreinterpretq_u8_s32(codes))) }
    }

    #[inline(always)]
    unsafe fn dot_halves(sum: int32x4_t, codes: int32x4_t, x: u32) -> int32x4_t {
        unsafe {
            let codes = vreinterpretq_s8_s32(codes);
            let x = vreinterpretq_s8_u32(vdupq_n_u32(x));
            let first = vpaddlq_s16(vmull_s8(vget_low_s8(codes), vget_low_s8(x)));
            let second = vpaddlq_s16(vmull_high_s8(codes, x));
            vaddq_s32(sum, vpaddq_s32(first, second))
        }
    }

    #[inline(always)]
    unsafe fn dot_bytes(sum: int32x4_t, codes: int32x4_t, x: u32) -> int32x4_t {
        unsafe {
            let high = Self::dot_halves(vdupq_n_s32(0), Self::high(codes), x);
            let sum = vaddq_s32(sum, vshlq_n_s32::<4>(high));
            Self::dot_halves(sum, Self::low(codes), x)
        }
    }

    #[inline(always)]
    unsafe fn join(high: int32x4_t, low: int32x4_t) -> float32x4_t {
        unsafe { vcvtq_f32_s32(vaddq_s32(vshlq_n_s32::<8>(high), low)) }
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> float32x4_t {
        unsafe { vdupq_n_f32(value) }
    }

    #[inline(always)]
    unsafe fn multiply(a: float32x4_t, b: float32x4_t) -> float32x4_t {
        unsafe { vmulq_f32(a, b) }
    }

    #[inline(always)]
    unsafe fn multiply_add(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
        unsafe { vfmaq_f32(c, a, b) }
    }

    #[inline(always)]
    unsafe fn f32s(at: *const u8) -> float32x4_t {
        unsafe { vld1q_f32(at.cast()) }
    }

    #[inline(always)]
    unsafe fn f16s(at: *const u8) -> float32x4_t {
        // Shifted into f32's place and multiplied by what the exponents' biases differ by, which
        // is exact for all finite numbers, the smallest too.
        unsafe {
            let wide = vmovl_u16(vld1_u16(at.cast()));
            let sign = vshlq_n_u32::<16>(vandq_u32(wide, vdupq_n_u32(0x8000)));
            let rest = vshlq_n_u32::<13>(vandq_u32(wide, vdupq_n_u32(0x7FFF)));
            let size = vmulq_f32(vreinterpretq_f32_u32(rest), vdupq_n_f32(5.192_297e33));
            vreinterpretq_f32_u32(vorrq_u32(vreinterpretq_u32_f32(size), sign))
        }
    }

    #[inline(always)]
    unsafe fn bf16s(at: *const u8) -> float32x4_t {
        unsafe { vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(at.cast()))) }
    }

    #[inline(always)]
    unsafe fn store(value: float32x4_t, at: *mut f32) {
        unsafe { vst1q_f32(at, value) }
    }
}

// With 32 registers, six rows share what was unpacked of the weights.
tile_products!(NeonLanes, [1, 2, 3, 4, 5, 6], target_feature(enable = "neon"));
