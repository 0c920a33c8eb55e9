//! RMS norm.

use mlx_rs::error::Exception;
use mlx_rs::{Array, fast};

use crate::cpu;
use crate::tensor::Tensor;

/// A norm's weights.
pub(crate) struct Norm {
    pub(crate) weight: Vector,
    pub(crate) eps: f32,
}

/// A row of numbers that came with the weights.
pub(crate) enum Vector {
    Host(Vec<f32>),
    Device(Array),
}

impl Norm {
    /// Each run of as many numbers as there are weights, over its root mean square: a row, or each
    /// head of a row.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor, Exception> {
        match &self.weight {
            Vector::Host(weight) => Ok(Tensor::Host(cpu::rms_norm(x.host()?, weight, self.eps))),
            Vector::Device(weight) => {
                let x = x.device()?;
                let (width, run) = (x.dim(-1), weight.dim(0));
                let norm = |x: &Array| fast::rms_norm(x, Some(weight), self.eps);
                if width == run {
                    return norm(x).map(Tensor::Device);
                }
                let (total, runs) = (x.dim(1), width / run);
                let normed = norm(&x.reshape(&[1, total, runs, run])?)?;
                normed.reshape(&[1, total, width]).map(Tensor::Device)
            }
        }
    }
}
