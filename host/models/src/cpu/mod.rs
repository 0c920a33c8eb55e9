//! What MLX's CPU backend lacks on Linux: a fast matrix product, and attention over pages.
//!
//! The MLX wheel brings the reference BLAS, one thread and no SIMD. The executable defines
//! `cblas_sgemm` itself ([`blas`]) and the loader prefers that to the wheel's. The work is shared
//! out by a small [`team`] of threads.
//!
//! # Not here
//!
//! macOS: there Accelerate is MLX's BLAS, and this folder is not compiled.

pub(crate) mod attention;
pub(crate) mod blas;
mod dots;
pub(crate) mod gate;
#[cfg(test)]
mod invariance;
pub(crate) mod pages;
mod team;

use std::num::NonZeroUsize;

use mlx_rs::Array;
use mlx_rs::error::Exception;

/// Sets how many threads a matrix product may use, before the first one. Later calls change
/// nothing: the team is made once and serves the whole process.
pub(crate) fn prepare(threads: Option<NonZeroUsize>) {
    let chosen = team::assemble(threads.unwrap_or_else(team::physical_cores));
    tracing::debug!(threads = chosen, "matrix products on the CPU");
}

/// Whether MLX's matrix products really come to us.
///
/// They do not when the binary was linked so that it hides its symbols, and then every token takes
/// 20 times as long while nothing else looks wrong.
pub(crate) fn serves_mlx() -> bool {
    let before = blas::calls();
    let ones = Array::from_slice(&[1.0_f32; 16], &[4, 4]);
    let product = mlx_rs::ops::matmul(&ones, &ones).and_then(|product| product.eval());
    product.is_ok() && blas::calls() > before
}

/// What an evaluated array holds.
fn numbers(array: &Array) -> Result<&[f32], Exception> {
    array.try_as_slice().map_err(|error| Exception::custom(error.to_string()))
}
