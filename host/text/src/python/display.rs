//! Values as Python prints them: `str` and `repr`.

use std::borrow::Cow;

use minijinja::value::ValueKind;
use minijinja::{Error, State, Value};

use super::paid::PaidText;
use crate::namespace::Namespace;

/// Python's `str(value)`. Jinja prints nothing for what is undefined.
pub(crate) fn text<'v>(state: &State, value: &'v Value) -> Result<Cow<'v, str>, Error> {
    if let Some(text) = value.as_str() {
        return Ok(Cow::Borrowed(text));
    }
    if value.is_undefined() {
        return Ok(Cow::Borrowed(""));
    }
    let mut out = PaidText::new(state);
    write_repr(&mut out, value)?;
    Ok(Cow::Owned(out.finish()))
}

/// Formats a value as Python's `repr(value)` does.
pub(crate) fn repr(state: &State, value: &Value) -> Result<String, Error> {
    let mut out = PaidText::new(state);
    write_repr(&mut out, value)?;
    Ok(out.finish())
}

/// The shortest digits that are this number, with an exponent where Python writes one.
pub(crate) fn float(value: f64) -> String {
    const PLAIN: std::ops::Range<i32> = -4..16;

    if value.is_nan() {
        return "nan".to_owned();
    }
    let scientific = format!("{value:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else { return scientific };
    match exponent.parse().unwrap_or(0) {
        exponent if PLAIN.contains(&exponent) => {
            let plain = value.to_string();
            if plain.contains('.') { plain } else { plain + ".0" }
        }
        exponent => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.abs())
        }
    }
}

/// The value of a float, and none for an integer.
pub(crate) fn as_float(value: &Value) -> Option<f64> {
    let is_float = value.kind() == ValueKind::Number && !value.is_integer();
    is_float.then(|| f64::try_from(value.clone()).ok()).flatten()
}

fn write_repr(out: &mut PaidText, value: &Value) -> Result<(), Error> {
    out.look()?;
    match value.kind() {
        ValueKind::Undefined => out.push("Undefined"),
        ValueKind::Number => match as_float(value) {
            Some(value) => out.push(&float(value)),
            None => out.push(&value.to_string()),
        },
        ValueKind::String => write_quoted(out, value.as_str().unwrap_or_default()),
        ValueKind::Map => {
            out.push("{")?;
            for (at, key) in value.try_iter()?.enumerate() {
                out.push(if at > 0 { ", " } else { "" })?;
                write_repr(out, &key)?;
                out.push(": ")?;
                write_repr(out, &value.get_item(&key)?)?;
            }
            out.push("}")
        }
        ValueKind::Seq | ValueKind::Iterable => write_list(out, value),
        _ => match value.downcast_object_ref::<Namespace>() {
            Some(namespace) => {
                out.push("<Namespace ")?;
                write_repr(out, &namespace.values())?;
                out.push(">")
            }
            None => out.push(&value.to_string()),
        },
    }
}

fn write_list(out: &mut PaidText, value: &Value) -> Result<(), Error> {
    let [open, close] = if value.is_tuple() { ["(", ")"] } else { ["[", "]"] };
    out.push(open)?;
    let mut count = 0;
    for item in value.try_iter()? {
        out.push(if count > 0 { ", " } else { "" })?;
        write_repr(out, &item)?;
        count += 1;
    }
    out.push(if count == 1 && value.is_tuple() { "," } else { "" })?;
    out.push(close)
}

/// A text in quotes: single ones, unless it has some and no double ones.
fn write_quoted(out: &mut PaidText, text: &str) -> Result<(), Error> {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push_char(quote)?;
    for letter in text.chars() {
        match letter {
            '\n' => out.push("\\n")?,
            '\r' => out.push("\\r")?,
            '\t' => out.push("\\t")?,
            '\\' => out.push("\\\\")?,
            _ if letter == quote => {
                out.push("\\")?;
                out.push_char(quote)?;
            }
            _ if is_printable(letter) => out.push_char(letter)?,
            _ => match u32::from(letter) {
                code @ 0..=0xff => out.push(&format!("\\x{code:02x}"))?,
                code @ 0..=0xffff => out.push(&format!("\\u{code:04x}"))?,
                code => out.push(&format!("\\U{code:08x}"))?,
            },
        }
    }
    out.push_char(quote)
}

/// Python's `isprintable` of a letter, which is what Rust's debug format goes by as well; behind
/// another letter, since a combining one is escaped only at the beginning of a text.
pub(crate) fn is_printable(letter: char) -> bool {
    match letter {
        ' '..='~' => true,
        '\0'..='\u{7f}' => false,
        _ => String::from_iter(['a', letter]).escape_debug().nth(1) != Some('\\'),
    }
}
