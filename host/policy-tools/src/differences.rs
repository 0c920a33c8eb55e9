//! What differs between what was expected and what came.
//!
//! An expectation says only what it cares for: fields that it does not name may be anything. Texts
//! that are times are compared as times. Where a plain value is, a table asks for less than
//! equality:
//!
//! ```toml
//! detail = { contains = "tokens" }
//! retry_after = { min = "1s", max = "1m" }
//! note = { present = false }
//! ```

use std::fmt;

use serde_json::Value;

/// Something that is not as expected.
#[derive(Debug, Clone, PartialEq)]
pub struct Difference {
    /// Where, as `plan.queue`.
    pub at: String,
    /// What should be there.
    pub expected: String,
    /// The value that is there.
    pub got: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: expected {}, got {}", self.at, self.expected, self.got)
    }
}

/// All of them.
pub fn differences(expected: &Value, got: &Value) -> Vec<Difference> {
    let mut found = vec![];
    compare("", expected, Some(got), &mut found);
    found
}

fn compare(at: &str, expected: &Value, got: Option<&Value>, found: &mut Vec<Difference>) {
    let mut differs = |expected: String| {
        let got = got.map_or_else(|| "nothing".to_owned(), Value::to_string);
        found.push(Difference { at: at.to_owned(), expected, got });
    };
    match (expected, got) {
        (Value::Object(wanted), Some(Value::Object(fields))) => {
            for (name, value) in wanted {
                let at = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
                compare(&at, value, fields.get(name), found);
            }
        }
        (Value::Object(asked), got) if !asked.is_empty() && asked.keys().all(|key| is_ask(key)) => {
            for (ask, value) in asked {
                if !holds(ask, value, got) {
                    differs(format!("{ask} {value}"));
                }
            }
        }
        (Value::Array(wanted), Some(Value::Array(items))) if wanted.len() == items.len() => {
            for (index, (value, item)) in wanted.iter().zip(items).enumerate() {
                compare(&format!("{at}[{index}]"), value, Some(item), found);
            }
        }
        (expected, Some(got)) if same(expected, got) => {}
        (expected, _) => differs(expected.to_string()),
    }
}

fn is_ask(key: &str) -> bool {
    ["contains", "min", "max", "present"].contains(&key)
}

fn holds(ask: &str, value: &Value, got: Option<&Value>) -> bool {
    match (ask, value, got) {
        ("present", Value::Bool(wanted), got) => got.is_some() == *wanted,
        ("contains", Value::String(part), Some(Value::String(text))) => text.contains(part),
        ("contains", part, Some(Value::Array(items))) => items.iter().any(|item| same(part, item)),
        ("min", least, Some(got)) => compared(got, least).is_some_and(|order| order.is_ge()),
        ("max", most, Some(got)) => compared(got, most).is_some_and(|order| order.is_le()),
        _ => false,
    }
}

fn same(a: &Value, b: &Value) -> bool {
    a == b || compared(a, b).is_some_and(|order| order.is_eq())
}

/// Numbers with numbers, times with times.
fn compared(a: &Value, b: &Value) -> Option<std::cmp::Ordering> {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64()?.partial_cmp(&b.as_f64()?),
        (Value::String(a), Value::String(b)) => {
            let time = |text: &str| humantime::parse_duration(text).ok();
            // A header's value is a text of digits.
            match (a.parse::<f64>(), b.parse::<f64>()) {
                (Ok(a), Ok(b)) => a.partial_cmp(&b),
                _ => Some(time(a)?.cmp(&time(b)?)),
            }
        }
        (Value::Number(_), Value::String(text)) => {
            compared(a, &serde_json::from_str(text).ok().filter(Value::is_number)?)
        }
        (Value::String(_), Value::Number(_)) => compared(b, a).map(std::cmp::Ordering::reverse),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use serde_json::json;

    use super::*;

    fn check(expected: &Value, got: &Value, differences: &Expect) {
        let found: Vec<_> =
            super::differences(expected, got).iter().map(ToString::to_string).collect();
        differences.assert_eq(&found.join("\n"));
    }

    #[test]
    fn what_is_not_named_may_be_anything() {
        let got = json!({"decision": "admit", "plan": {"queue": "30s", "total": "1m"}});
        check(&json!({"plan": {"queue": "30000ms"}}), &got, &expect![""]);
        check(
            &json!({"decision": "reject", "plan": {"queue": "31s", "priority": "batch"}}),
            &got,
            &expect![[r#"
                decision: expected "reject", got "admit"
                plan.queue: expected "31s", got "30s"
                plan.priority: expected "batch", got nothing"#]],
        );
    }

    #[test]
    fn a_table_asks_for_less_than_equality() {
        let got = json!({"detail": "too many tokens", "retry_after": "20s", "status": 429,
            "headers": {"x-left": "7"}, "removed": ["a", "b"]});
        let asked = json!({"detail": {"contains": "tokens"},
            "retry_after": {"min": "1s", "max": "1m"}, "status": {"min": 400},
            "headers": {"x-left": {"max": 7}}, "note": {"present": false},
            "removed": {"contains": "b"}});
        check(&asked, &got, &expect![""]);
        let asked = json!({"detail": {"contains": "requests"}, "retry_after": {"max": "10s"},
            "status": {"present": false}, "note": {"present": true}, "removed": ["a"]});
        check(
            &asked,
            &got,
            &expect![[r#"
                detail: expected contains "requests", got "too many tokens"
                retry_after: expected max "10s", got "20s"
                status: expected present false, got 429
                note: expected present true, got nothing
                removed: expected ["a"], got ["a","b"]"#]],
        );
    }

    #[test]
    fn a_text_of_digits_is_the_number_and_a_text_is_no_time() {
        check(&json!({"x": 60}), &json!({"x": "60"}), &expect![""]);
        check(
            &json!({"x": "stop"}),
            &json!({"x": "go"}),
            &expect![[r#"x: expected "stop", got "go""#]],
        );
    }
}
