//! AVX-512 with VNNI: 16 outputs, four products to an instruction that adds them up. AVX2: 8
//! outputs; its products of bytes are added in pairs in 16 bits, which codes below 16 cannot
//! overflow (2 * 15 * 128), so codes of 8 bits are taken as two halves.

use std::arch::x86_64::*;

use super::lanes::*;
use super::{Bits, TileProduct};

pub(super) struct Avx512Lanes;

// SAFETY in all of this file: registers in, registers out; loads and stores are at addresses that
// the caller vouches for, and the caller has seen that the machine has the instructions (`Lanes`).
#[expect(clippy::undocumented_unsafe_blocks, reason = "see above")]
impl Lanes for Avx512Lanes {
    type Ints = __m512i;
    type Floats = __m512;
    const COUNT: usize = 16;

    #[inline(always)]
    unsafe fn none() -> __m512i {
        unsafe { _mm512_setzero_si512() }
    }

    #[inline(always)]
    unsafe fn codes(at: *const u8) -> __m512i {
        unsafe { _mm512_loadu_si512(at.cast()) }
    }

    #[inline(always)]
    unsafe fn low(codes: __m512i) -> __m512i {
        unsafe { _mm512_and_si512(codes, _mm512_set1_epi8(15)) }
    }

    #[inline(always)]
    unsafe fn high(codes: __m512i) -> __m512i {
        unsafe { _mm512_and_si512(_mm512_srli_epi16::<4>(codes), _mm512_set1_epi8(15)) }
    }

    #[inline(always)]
    unsafe fn dot_halves(sum: __m512i, codes: __m512i, x: u32) -> __m512i {
        unsafe { _mm512_dpbusd_epi32(sum, codes, _mm512_set1_epi32(x.cast_signed())) }
    }

    #[inline(always)]
    unsafe fn dot_bytes(sum: __m512i, codes: __m512i, x: u32) -> __m512i {
        unsafe { Self::dot_halves(sum, codes, x) }
    }

    #[inline(always)]
    unsafe fn join(high: __m512i, low: __m512i) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32::<8>(high), low)) }
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> __m512 {
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn multiply(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn multiply_add(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn f32s(at: *const u8) -> __m512 {
        unsafe { _mm512_loadu_ps(at.cast()) }
    }

    #[inline(always)]
    unsafe fn f16s(at: *const u8) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())) }
    }

    #[inline(always)]
    unsafe fn bf16s(at: *const u8) -> __m512 {
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(at.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }

    #[inline(always)]
    unsafe fn store(value: __m512, at: *mut f32) {
        unsafe { _mm512_storeu_ps(at, value) }
    }
}

pub(super) struct Avx2Lanes;

#[expect(clippy::undocumented_unsafe_blocks, reason = "see above")]
impl Lanes for Avx2Lanes {
    type Ints = __m256i;
    type Floats = __m256;
    const COUNT: usize = 8;

    #[inline(always)]
    unsafe fn none() -> __m256i {
        unsafe { _mm256_setzero_si256() }
    }

    #[inline(always)]
    unsafe fn codes(at: *const u8) -> __m256i {
        unsafe { _mm256_loadu_si256(at.cast()) }
    }

    #[inline(always)]
    unsafe fn low(codes: __m256i) -> __m256i {
        unsafe { _mm256_and_si256(codes, _mm256_set1_epi8(15)) }
    }

    #[inline(always)]
    unsafe fn high(codes: __m256i) -> __m256i {
        unsafe { _mm256_and_si256(_mm256_srli_epi16::<4>(codes), _mm256_set1_epi8(15)) }
    }

    #[inline(always)]
    unsafe fn dot_halves(sum: __m256i, codes: __m256i, x: u32) -> __m256i {
        unsafe {
            let pairs = _mm256_maddubs_epi16(codes, _mm256_set1_epi32(x.cast_signed()));
            _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        }
    }

    #[inline(always)]
    unsafe fn dot_bytes(sum: __m256i, codes: __m256i, x: u32) -> __m256i {
        unsafe {
            let high = Self::dot_halves(_mm256_setzero_si256(), Self::high(codes), x);
            let sum = _mm256_add_epi32(sum, _mm256_slli_epi32::<4>(high));
            Self::dot_halves(sum, Self::low(codes), x)
        }
    }

    #[inline(always)]
    unsafe fn join(high: __m256i, low: __m256i) -> __m256 {
        unsafe { _mm256_cvtepi32_ps(_mm256_add_epi32(_mm256_slli_epi32::<8>(high), low)) }
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> __m256 {
        unsafe { _mm256_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn multiply(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_mul_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn multiply_add(a: __m256, b: __m256, c: __m256) -> __m256 {
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn f32s(at: *const u8) -> __m256 {
        unsafe { _mm256_loadu_ps(at.cast()) }
    }

    #[inline(always)]
    unsafe fn f16s(at: *const u8) -> __m256 {
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(at.cast())) }
    }

    #[inline(always)]
    unsafe fn bf16s(at: *const u8) -> __m256 {
        unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(at.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
    }

    #[inline(always)]
    unsafe fn store(value: __m256, at: *mut f32) {
        unsafe { _mm256_storeu_ps(at, value) }
    }
}

/// With 32 registers, eight rows share what was unpacked of the weights.
pub(super) mod avx512 {
    use super::*;
    tile_products!(
        Avx512Lanes,
        [1, 2, 3, 4, 5, 6, 7, 8],
        target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")
    );
}

/// With 16 registers, three.
pub(super) mod avx2 {
    use super::*;
    tile_products!(Avx2Lanes, [1, 2, 3], target_feature(enable = "avx2,fma,f16c"));
}
