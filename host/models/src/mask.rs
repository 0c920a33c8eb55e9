//! Who may look at whom.

use mlx_rs::fast::ScaledDotProductAttentionMask;

/// Each of `time` new positions looks at itself and all before it. MLX aligns the mask with the
/// last key, so it is right for a chunk in the middle of a prompt; and one position alone may look
/// at everything there is.
pub(crate) fn causal(time: i32) -> Option<ScaledDotProductAttentionMask<'static>> {
    (time > 1).then_some(ScaledDotProductAttentionMask::Causal)
}
