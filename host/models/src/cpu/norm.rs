//! RMS norm, of each row alone.

use pulp::{Arch, Simd, WithSimd};

use super::tensor::CpuTensor;
use super::thread_pool;

/// Numbers below which asking for help costs more than it saves.
const WORTH_SHARING: usize = 1 << 15;

/// Each run of as many numbers as there are weights, over its root mean square, times the weights.
pub(crate) fn rms_norm(x: &CpuTensor, weight: &[f32], eps: f32) -> CpuTensor {
    let count = x.numbers.len();
    let mut normed = CpuTensor { width: x.width, numbers: vec![0.0; count] };
    let width = weight.len();
    let runs = count / width.max(1);
    if count < WORTH_SHARING {
        Arch::new().dispatch(RmsNormKernel {
            x: &x.numbers,
            weight,
            eps,
            into: &mut normed.numbers,
        });
    } else {
        let at_a_time = (WORTH_SHARING / 4 / width).max(1) * width;
        let parts: Vec<_> = x
            .numbers
            .chunks(at_a_time)
            .zip(normed.numbers.chunks_mut(at_a_time))
            // No two threads have a part; a lock for each one proves that to the compiler.
            .map(|(x, into)| std::sync::Mutex::new(RmsNormKernel { x, weight, eps, into }))
            .collect();
        debug_assert!(runs > 0, "there are numbers");
        thread_pool::pool().run(parts.len(), &|part| {
            let mut part = parts[part].lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let RmsNormKernel { x, weight, eps, ref mut into } = *part;
            Arch::new().dispatch(RmsNormKernel { x, weight, eps, into });
        });
    }
    normed
}

struct RmsNormKernel<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    into: &'a mut [f32],
}

impl WithSimd for RmsNormKernel<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let width = self.weight.len();
        let (weights, last_weights) = S::as_simd_f32s(self.weight);
        for (x, into) in self.x.chunks_exact(width).zip(self.into.chunks_exact_mut(width)) {
            let (vectors, last) = S::as_simd_f32s(x);
            let mut sum = simd.splat_f32s(0.0);
            for vector in vectors {
                sum = simd.mul_add_f32s(*vector, *vector, sum);
            }
            let mut sum = simd.reduce_sum_f32s(sum);
            for x in last {
                sum += x * x;
            }
            let by = 1.0 / (sum / width as f32 + self.eps).sqrt();
            let bys = simd.splat_f32s(by);
            let (into, last_into) = S::as_mut_simd_f32s(into);
            for ((into, x), weight) in into.iter_mut().zip(vectors).zip(weights) {
                *into = simd.mul_f32s(simd.mul_f32s(*x, bys), *weight);
            }
            for ((into, x), weight) in last_into.iter_mut().zip(last).zip(last_weights) {
                *into = x * by * weight;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::noise;

    #[test]
    fn norms_agree_with_double_precision_in_any_company() {
        for (rows, width) in [(1, 5), (3, 64), (40, 576), (70, 577)] {
            let x = CpuTensor { width, numbers: noise(2, rows * width) };
            let weight = noise(3, width);
            let all = rms_norm(&x, &weight, 1e-5);
            for (row, (x, got)) in
                x.numbers.chunks(width).zip(all.numbers.chunks(width)).enumerate()
            {
                let squares: f64 = x.iter().map(|x| f64::from(*x).powi(2)).sum();
                let by = 1.0 / (squares / width as f64 + 1e-5).sqrt();
                for ((x, weight), got) in x.iter().zip(&weight).zip(got) {
                    let want = f64::from(*x) * by * f64::from(*weight);
                    assert!((f64::from(*got) - want).abs() <= 3e-7 * want.abs(), "{got}, {want}");
                }
                let alone = rms_norm(&CpuTensor { width, numbers: x.to_vec() }, &weight, 1e-5);
                assert_eq!(alone.numbers, got, "row {row} of {rows}");
            }
        }
    }
}
