//! `silu(gate) * up`, of which a prompt of 256 tokens has 400,000 in each layer of the default
//! model. MLX computes it one number at a time on one thread, a fifth of the prompt's time.

use std::sync::{Mutex, PoisonError};

use mlx_rs::error::Exception;
use mlx_rs::{Array, transforms};
use pulp::{Arch, Simd, WithSimd};

use super::attention::exponential;
use super::{numbers, team};

/// Numbers that one thread computes at a time: some ten microseconds.
const CHUNK: usize = 1 << 14;

/// See [`crate::cache::Batch::swiglu`].
pub(crate) fn swiglu(gate: &Array, up: &Array) -> Result<Array, Exception> {
    transforms::eval([gate, up])?;
    let shape = gate.shape();
    let (gate, up) = (numbers(gate)?, numbers(up)?);
    let mut out = vec![0.0; gate.len()];
    // A lock for each part says to the compiler what is so: nobody else has it.
    let parts: Vec<_> = out
        .chunks_mut(CHUNK)
        .zip(gate.chunks(CHUNK).zip(up.chunks(CHUNK)))
        .map(|(out, (gate, up))| Mutex::new(Swiglu { gate, up, out }))
        .collect();
    team::team().run(parts.len(), &|part| {
        let mut part = parts[part].lock().unwrap_or_else(PoisonError::into_inner);
        Arch::new().dispatch(&mut *part);
    });
    drop(parts);
    Ok(Array::from_slice(&out, shape))
}

struct Swiglu<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    out: &'a mut [f32],
}

impl WithSimd for &mut Swiglu<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (gates, last_gates) = S::as_simd_f32s(self.gate);
        let (ups, last_ups) = S::as_simd_f32s(self.up);
        let (outs, last_outs) = S::as_mut_simd_f32s(self.out);
        for ((gate, up), out) in gates.iter().zip(ups).zip(outs) {
            *out = gated::<S>(simd, *gate, *up);
        }
        // The rest by vectors too: a number must not depend on how many stand before it.
        if !last_gates.is_empty() {
            let (gate, up) = (simd.partial_load_f32s(last_gates), simd.partial_load_f32s(last_ups));
            simd.partial_store_f32s(last_outs, gated::<S>(simd, gate, up));
        }
    }
}

/// `gate / (1 + e^-gate) * up`, with an exponential that never overflows.
#[inline(always)]
fn gated<S: Simd>(simd: S, gate: S::f32s, up: S::f32s) -> S::f32s {
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
        let array = |numbers: &[f32]| Array::from_slice(numbers, &[1, numbers.len() as i32]);
        let ups = vec![1.5; gates.len()];
        let all = swiglu(&array(&gates), &array(&ups)).unwrap();
        for (at, got) in numbers(&all).unwrap().iter().enumerate() {
            let gate = f64::from(gates[at]);
            let want = gate / (1.0 + (-gate).exp()) * 1.5;
            // Below e^-87 ours is zero.
            let off = (f64::from(*got) - want).abs();
            assert!(off <= want.abs() * 6e-7 + 1e-35, "{gate}: {got}, want {want}");
            let alone = swiglu(&array(&gates[at..=at]), &array(&ups[at..=at])).unwrap();
            assert_eq!(numbers(&alone).unwrap()[0].to_bits(), got.to_bits(), "{gate} alone");
        }
    }
}
