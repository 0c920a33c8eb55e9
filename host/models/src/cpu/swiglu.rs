//! SwiGLU: `silu(gate) * up`, element by element, with SIMD.

use pulp::{Arch, Simd, WithSimd};

use super::attention::exponential;

/// Replaces each `up` with `silu(gate) * up`, where `silu(x) = x / (1 + e^-x)` (Shazeer 2020).
/// A result depends on its own gate and up alone, to the bit.
pub(super) fn swiglu(gate: &[f32], up: &mut [f32]) {
    Arch::new().dispatch(SwigluKernel { gate, up });
}

struct SwigluKernel<'a> {
    gate: &'a [f32],
    up: &'a mut [f32],
}

impl WithSimd for SwigluKernel<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (gates, last_gates) = S::as_simd_f32s(self.gate);
        let (ups, last_ups) = S::as_mut_simd_f32s(self.up);
        for (gate, up) in gates.iter().zip(ups) {
            *up = swiglu_vector::<S>(simd, *gate, *up);
        }
        // The rest by vectors too: a number must not depend on how many stand before it.
        if !last_gates.is_empty() {
            let (gate, up) = (simd.partial_load_f32s(last_gates), simd.partial_load_f32s(last_ups));
            simd.partial_store_f32s(last_ups, swiglu_vector::<S>(simd, gate, up));
        }
    }
}

/// `gate / (1 + e^-gate) * up`, with an exponential that never overflows.
#[inline(always)]
fn swiglu_vector<S: Simd>(simd: S, gate: S::f32s, up: S::f32s) -> S::f32s {
    let zero = simd.splat_f32s(0.0);
    let one = simd.splat_f32s(1.0);
    let power = exponential::<S>(simd, simd.sub_f32s(zero, simd.abs_f32s(gate)));
    let above = simd.select_f32s(simd.less_than_f32s(gate, zero), power, one);
    let likely = simd.div_f32s(above, simd.add_f32s(one, power));
    simd.mul_f32s(simd.mul_f32s(gate, likely), up)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_agree_with_double_precision_wherever_they_stand() {
        let gates: Vec<f32> = (-400_i16..401).map(|i| f32::from(i) * 0.25).collect();
        let mut all = vec![1.5; gates.len()];
        swiglu(&gates, &mut all);
        for (at, got) in all.iter().enumerate() {
            let gate = f64::from(gates[at]);
            let want = gate / (1.0 + (-gate).exp()) * 1.5;
            // Below e^-87 ours is zero.
            let off = (f64::from(*got) - want).abs();
            assert!(off <= want.abs() * 6e-7 + 1e-35, "{gate}: {got}, want {want}");
            let mut alone = [1.5];
            swiglu(&gates[at..=at], &mut alone);
            assert_eq!(alone[0].to_bits(), got.to_bits(), "{gate} alone");
        }
    }
}
