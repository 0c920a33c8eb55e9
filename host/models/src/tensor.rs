//! What flows through a pass: a CPU tensor in our own memory, or an MLX array.
//!
//! An architecture does not look which. All layers of a model were made of weights of one kind
//! ([`crate::linear`], [`crate::norm`], [`crate::cache`]), and their inputs are of the same kind.

use mlx_rs::Array;

use crate::compute_error::ComputeError;
use crate::cpu::CpuTensor;

/// A table of numbers, a row for each token of the pass.
pub(crate) enum Tensor {
    /// f32, `[rows, width]`.
    Cpu(CpuTensor),
    /// In the model's own type, `[1, rows, width]`.
    Mlx(Array),
}

impl Tensor {
    /// Copies the rows whose indices are given, in the order given. Each must be below the number
    /// of rows.
    pub(crate) fn rows(&self, indices: &[u32]) -> Result<Self, ComputeError> {
        match self {
            Self::Cpu(CpuTensor { width, numbers }) => {
                let rows = indices.iter().map(|row| &numbers[*row as usize * width..][..*width]);
                let numbers = rows.flatten().copied().collect();
                Ok(Self::Cpu(CpuTensor { width: *width, numbers }))
            }
            Self::Mlx(array) => {
                let indices = Array::from_slice(indices, &[indices.len() as i32]);
                Ok(Self::Mlx(array.take_axis(indices, 1)?))
            }
        }
    }

    pub(crate) fn cpu(&self) -> Result<&CpuTensor, ComputeError> {
        match self {
            Self::Cpu(tensor) => Ok(tensor),
            Self::Mlx(_) => Err(ComputeError::MLX_TENSOR),
        }
    }

    pub(crate) fn mlx(&self) -> Result<&Array, ComputeError> {
        match self {
            Self::Mlx(array) => Ok(array),
            Self::Cpu(_) => Err(ComputeError::CPU_TENSOR),
        }
    }
}
