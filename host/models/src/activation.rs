//! Activations, as plain operations.
//!
//! Not `mlx_rs::nn::silu`: it compiles its two operations anew at every call, and on the CPU MLX's
//! compiler runs g++.

use mlx_rs::error::Exception;
use mlx_rs::{Array, ops};

/// `silu(gate) * up`.
pub(crate) fn swiglu(gate: &Array, up: &Array) -> Result<Array, Exception> {
    gate.multiply(ops::sigmoid(gate)?)?.multiply(up)
}
