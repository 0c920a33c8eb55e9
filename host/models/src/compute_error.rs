//! Why a pass was not computed, on the CPU or by MLX.

use mlx_rs::error::Exception;

/// Why a layer was not computed.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum ComputeError {
    /// MLX failed. Its text is all that it says.
    Mlx(String),
    /// A layer met a tensor of the other kind than its weights. A model's layers are all of one
    /// kind, so this would be a fault of this crate.
    Mixed(&'static str),
}

impl ComputeError {
    /// The tensor is MLX's, the weights are in our own memory.
    pub(crate) const MLX_TENSOR: Self = Self::Mixed("an MLX array met weights in the CPU's layout");
    /// The tensor is in our own memory, the weights are MLX's.
    pub(crate) const CPU_TENSOR: Self = Self::Mixed("a CPU tensor met weights in MLX arrays");
}

impl From<Exception> for ComputeError {
    fn from(error: Exception) -> Self {
        Self::Mlx(error.what().to_owned())
    }
}
