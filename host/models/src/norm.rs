//! RMS norm.

use mlx_rs::{Array, fast};

use crate::compute_error::ComputeError;
use crate::cpu;
use crate::tensor::Tensor;

/// RMS norm: `x / sqrt(mean(x^2) + eps) * weight` (Zhang and Sennrich 2019).
pub(crate) struct Norm {
    pub(crate) weight: Vector,
    pub(crate) eps: f32,
}

/// A vector among the weights: a norm's, or a bias.
pub(crate) enum Vector {
    Cpu(Vec<f32>),
    Mlx(Array),
}

impl Norm {
    /// Normalizes each run of as many numbers as there are weights: the whole row, or each head of
    /// it. The result has the shape of `x`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor, ComputeError> {
        match &self.weight {
            Vector::Cpu(weight) => Ok(Tensor::Cpu(cpu::rms_norm(x.cpu()?, weight, self.eps))),
            Vector::Mlx(weight) => {
                let x = x.mlx()?;
                let (width, run) = (x.dim(-1), weight.dim(0));
                let norm = |x: &Array| fast::rms_norm(x, Some(weight), self.eps);
                if width == run {
                    return Ok(Tensor::Mlx(norm(x)?));
                }
                let (total, runs) = (x.dim(1), width / run);
                let normed = norm(&x.reshape(&[1, total, runs, run])?)?;
                Ok(Tensor::Mlx(normed.reshape(&[1, total, width])?))
            }
        }
    }
}
