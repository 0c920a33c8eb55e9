//! Values that ask for nothing.

use serde_json::Value;

use crate::endpoints::json::{numeral, truth};

/// Empty in any way: for fields where that is how a feature is not asked for.
pub(super) const NOTHING: &[&str] = &["\"\"", "false", "[]", "{}"];

/// For fields that are switched off by `false`.
pub(super) const OFF: &[&str] = &["false"];

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
    // Where a field takes texts, "false" and "0" are two of them.
    let takes_texts = harmless.iter().any(|one| one.starts_with('"'));
    harmless.iter().any(|&one| match one {
        "{}" => value.is_object() && is_empty(&value),
        "true" | "false" if !takes_texts => truth(json) == truth(one),
        one => serde_json::from_str(one)
            .is_ok_and(|it: Value| value == it || (!takes_texts && are_one_number(json, one))),
    })
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) | Value::Number(_) => false,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(members) => members.iter().all(|(name, member)| match member {
            // `false` is a schema that takes nothing, and an empty one takes any JSON.
            Value::Bool(_) | Value::Array(_) => !SCHEMAS.contains(&&**name) && is_empty(member),
            Value::Object(_) => false,
            member => is_empty(member),
        }),
    }
}

/// Members that hold a JSON schema or, as the last, what is made of some.
const SCHEMAS: &[&str] = &["json", "json_schema", "schema", "structural_tag"];

/// Numbers are equal whichever way they are written.
fn are_one_number(one: &str, other: &str) -> bool {
    let number = |json| numeral(json)?.parse::<f64>().ok();
    number(one).is_some_and(|one| number(other) == Some(one))
}
