//! The exponential of what is not positive, in a form that compilers turn into SIMD: no table, no
//! call, no branch. The standard library's is a call for each number.

/// e^z for z up to 0, to within 2e-7 of it; 0 below -87, where f32 runs out, and for NaN.
///
/// After Cephes' `expf`: z is a multiple of ln 2 and a rest between -ln 2 / 2 and ln 2 / 2, for
/// which a polynomial does.
#[inline(always)]
pub(super) fn exp(z: f32) -> f32 {
    const LEAST: f32 = -87.0;
    /// 1.5 * 2^23. Added to a number of less than 22 bits it leaves the nearest integer in the
    /// last bits.
    const ROUND: f32 = 12_582_912.0;
    /// ln 2, the first part so short that its product with an exponent is exact.
    const LN2: (f32, f32) = (0.693_359_4, -2.121_944_4e-4);

    let within = z >= LEAST;
    let z = if within { z } else { LEAST };
    let rounded = z * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = z - n * LN2.0 - n * LN2.1;

    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let p = p * r * r + r + 1.0;

    // 2^n, by its exponent bits.
    let exponent = rounded.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127);
    let e = p * f32::from_bits(exponent << 23);
    if within { e } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_the_exponential() {
        for i in 0..870_000 {
            let z = i as f32 * -1e-4;
            let exact = f64::from(z).exp();
            assert!((f64::from(exp(z)) / exact - 1.0).abs() < 2e-7, "e^{z} = {}", exp(z));
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!([exp(-88.0), exp(f32::NEG_INFINITY), exp(f32::NAN)], [0.0; 3]);
    }
}
