//! The shape of a pool of pages in MLX's arrays.

use mlx_rs::Array;

use crate::span::PAGE_TOKENS;

/// Tokens in a page, as MLX counts.
pub(super) const PAGE: i32 = PAGE_TOKENS.cast_signed();

#[derive(Clone, Copy)]
pub(super) struct PoolShape {
    pub(super) kv_heads: i32,
    pub(super) head_dim: i32,
    pub(super) pages: i32,
}

/// A one-dimensional array of these numbers.
pub(super) fn numbers(numbers: &[i32]) -> Array {
    Array::from_slice(numbers, &[numbers.len() as i32])
}
