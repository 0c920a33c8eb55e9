//! Keys that several architectures read in the same way.

use serde_json::Value;

use crate::config_keys::Keys;
use crate::rope::RopeScaling;

/// The base of the rotation and how it is stretched. The base has a key of its own, or since
/// Transformers 5 lies within `rope_parameters`; who has both says the same twice.
pub(super) fn rotation(keys: &Keys<'_>) -> Result<(Option<f64>, Option<RopeScaling>), String> {
    let read = |key, within| {
        let Some(table) = keys.table(key, within)? else { return Ok(None) };
        let scaling = RopeScaling::read(&table)?;
        keys.absorb(table.finish());
        Ok::<_, String>(Some(scaling))
    };
    let older = read("rope_scaling", "rope_scaling.")?;
    let newer = read("rope_parameters", "rope_parameters.")?;
    let own = keys.above_zero("rope_theta")?;
    let mut theta = own;
    for scaling in older.iter().chain(&newer) {
        match (theta, scaling.rope_theta) {
            (Some(one), Some(other)) if one != other => {
                return Err(format!("rope_theta is {one} in one place and {other} in another"));
            }
            (one, other) => theta = one.or(other),
        }
    }
    if let (Some(older), Some(newer)) = (&older, &newer)
        && !older.scales_like(newer)
    {
        return Err("rope_scaling and rope_parameters differ, must be the same".to_owned());
    }
    Ok((theta, older.or(newer)))
}

/// The base where there must be one: for these architectures Transformers and mlx_lm assume different
/// ones where it is missing.
pub(super) fn required_theta(theta: Option<f64>) -> Result<f64, String> {
    theta.ok_or_else(|| "rope_theta is missing, must be a number above zero".to_owned())
}

/// The width of a head: its own key, or the hidden size's equal part.
pub(super) fn head_dim(keys: &Keys<'_>, hidden: i32, heads: i32) -> Result<i32, String> {
    match keys.get("head_dim")? {
        Some(own) => Ok(own),
        None if heads > 0 && hidden % heads != 0 => Err(format!(
            "hidden_size is {hidden}, no multiple of num_attention_heads, {heads}, and there is no \
             head_dim"
        )),
        None => Ok(hidden / heads.max(1)),
    }
}

/// Layers of Qwen2 and Qwen3 that look at everything, where `max_window_layers` does not say.
pub(super) const FULL_LAYERS: i32 = 28;
/// Width of Qwen3's heads, where `head_dim` does not say.
pub(super) const QWEN3_HEAD_DIM: i32 = 128;

/// Notes if queries and keys are said not to be normed by head: in Qwen3 they are.
pub(super) fn head_norms(keys: &Keys<'_>) -> Result<(), String> {
    for key in ["use_qk_norm", "qk_norm", "qk_layernorm"] {
        if keys.get(key)? == Some(false) {
            keys.differs(key, &Value::Bool(false), "computed is true alone");
        }
    }
    Ok(())
}

/// Notes if some layer looks only at a window of what came before: ours look at all of it.
///
/// `first` is the first layer that may, and what the window is if the key is not there at all.
pub(super) fn window(
    keys: &Keys<'_>,
    used: bool,
    first: i32,
    (layers, context): (i32, Option<i32>),
) -> Result<(), String> {
    /// What Transformers assumes where the key is missing.
    const OTHERWISE: i32 = 4096;
    let window: Option<i32> = keys.get("sliding_window")?;
    let window = match window {
        None if keys.mentions("sliding_window") => None,
        None => Some(OTHERWISE),
        window => window,
    };
    let Some(window) = window.filter(|_| used && first < layers) else { return Ok(()) };
    // What looks at as much as there ever is looks at all of it.
    if context.is_none_or(|context| window < context) {
        let computed =
            format!("from layer {first} on; computed is attention to all that came before");
        keys.differs("sliding_window", &Value::from(window), computed);
    }
    Ok(())
}

/// Notes if `layer_types` names another kind of layer than those that look at all before them.
pub(super) fn layer_types(keys: &Keys<'_>, layers: i32) -> Result<(), String> {
    let Some(types) = keys.get::<Vec<String>>("layer_types")? else { return Ok(()) };
    if types.len() != layers.unsigned_abs() as usize {
        return Err(format!(
            "layer_types has {} entries, num_hidden_layers is {layers}",
            types.len()
        ));
    }
    if let Some((layer, other)) =
        types.iter().enumerate().find(|(_, kind)| *kind != "full_attention")
    {
        let computed = format!("that of layer {layer}; computed is \"full_attention\" alone");
        keys.differs("layer_types", &Value::from(other.as_str()), computed);
    }
    Ok(())
}
