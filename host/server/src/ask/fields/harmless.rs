//! Values that ask for nothing.

use serde_json::Value;

/// Empty in any way: for fields where that is how a feature is not asked for.
pub(super) const NOTHING: &[&str] = &["\"\"", "false", "[]", "{}"];

/// For fields that are switched off by `false`.
pub(super) const OFF: &[&str] = &["false", "0", "\"false\""];

/// For fields that are switched off by 0.
pub(super) const ZERO: &[&str] = &["0"];

/// For fields that mean something whatever they say.
pub(super) const NULL_ONLY: &[&str] = &[];

/// Does a JSON text ask for nothing? Null never asks for anything. Where `{}` is harmless, so is an
/// object of which every member is empty: clients that write out a whole type send such ones.
pub(super) fn is_harmless(json: &str, harmless: &[&str]) -> bool {
    /// No harmless value comes near this.
    const BYTES_MAX: usize = 4096;

    if json == "null" {
        return true;
    }
    if json.len() > BYTES_MAX {
        return false;
    }
    let Ok(value) = serde_json::from_str::<Value>(json) else { return false };
    harmless.iter().any(|&one| match one {
        "{}" => value.is_object() && is_empty(&value),
        one => serde_json::from_str(one).is_ok_and(|one: Value| are_equal(&value, &one)),
    })
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) | Value::Number(_) => false,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        // Within something, an object may be a schema, and an empty one takes any JSON.
        Value::Object(members) => {
            members.values().all(|member| !member.is_object() && is_empty(member))
        }
    }
}

/// Numbers are equal whichever way they are written.
fn are_equal(one: &Value, other: &Value) -> bool {
    match (one.as_f64(), other.as_f64()) {
        (Some(one), Some(other)) => one == other,
        _ => one == other,
    }
}
