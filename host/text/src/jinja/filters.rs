//! Filters as Jinja2 has them.

use std::borrow::Cow;

use minijinja::value::{Tuple, ValueKind};
use minijinja::{Environment, Error, State, Value};

use super::named;
use crate::python::args::{Arguments, bind, integer, required, text, type_error};
use crate::python::display::{self, as_float};
use crate::python::paid::PaidText;
use crate::python::{format, json, methods, text as python};

/// Filters of minijinja's that Jinja2 has not.
const FOREIGN: [&str; 5] = ["bool", "chain", "lines", "split", "zip"];

pub(super) fn teach(environment: &mut Environment<'_>) {
    for name in FOREIGN {
        environment.remove_filter(name);
    }
    environment.add_filter("tojson", json::tojson);
    environment.add_filter("string", |state: &State, value: &Value| string(state, value));
    environment.add_filter("upper", |state: &State, value: &Value| {
        Ok::<_, Error>(display::text(state, value)?.to_uppercase())
    });
    environment.add_filter("lower", |state: &State, value: &Value| {
        Ok::<_, Error>(display::text(state, value)?.to_lowercase())
    });
    environment.add_filter("capitalize", |state: &State, value: &Value| {
        Ok::<_, Error>(python::capitalize(&display::text(state, value)?))
    });
    environment.add_filter("title", |state: &State, value: &Value| {
        Ok::<_, Error>(title(&display::text(state, value)?))
    });
    environment.add_filter("wordcount", |state: &State, value: &Value| {
        let text = display::text(state, value)?;
        let words = text.split(|letter: char| letter != '_' && !letter.is_alphanumeric());
        Ok::<_, Error>(words.filter(|word| !word.is_empty()).count())
    });
    for name in ["e", "escape"] {
        environment.add_filter(name, |state: &State, value: &Value| match value.is_safe() {
            true => Ok(value.clone()),
            false => escape(state, value),
        });
    }
    environment.add_filter("forceescape", escape);
    environment.add_filter("safe", |state: &State, value: &Value| {
        Ok::<_, Error>(Value::from_safe_string(display::text(state, value)?.into_owned()))
    });
    environment.add_filter("urlencode", urlencode);
    environment.add_filter("trim", trim);
    environment.add_filter("replace", replace);
    environment.add_filter("indent", indent);
    environment.add_filter("center", center);
    environment.add_filter("truncate", truncate);
    environment.add_filter("format", percent);
    environment.add_filter("join", join);
    environment.add_filter("int", int);
    environment.add_filter("float", float);
    environment.add_filter("round", round);
    for name in ["d", "default"] {
        environment.add_filter(name, default);
    }
}

fn string(state: &State, value: &Value) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::String => Ok(value.clone()),
        _ => Ok(Value::from(display::text(state, value)?)),
    }
}

/// Jinja's own idea of a title: words begin after white space, dashes and brackets.
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut begins = true;
    for letter in text.chars() {
        match begins {
            true => out.extend(letter.to_uppercase()),
            false => out.extend(letter.to_lowercase()),
        }
        begins = python::is_space(letter) || "-({[<".contains(letter);
    }
    out
}

fn escape(state: &State, value: &Value) -> Result<Value, Error> {
    let mut out = PaidText::new(state);
    for letter in display::text(state, value)?.chars() {
        match letter {
            '&' => out.push("&amp;")?,
            '<' => out.push("&lt;")?,
            '>' => out.push("&gt;")?,
            '\'' => out.push("&#39;")?,
            '"' => out.push("&#34;")?,
            _ => out.push_char(letter)?,
        }
    }
    Ok(Value::from_safe_string(out.finish()))
}

/// Of a text its bytes, of a dict or of pairs a query.
fn urlencode(state: &State, value: &Value) -> Result<Value, Error> {
    let mut out = PaidText::new(state);
    let pairs: Vec<(Value, Value)> = match value.kind() {
        ValueKind::Map => {
            let entry = |key: Value| Ok((key.clone(), value.get_item(&key)?));
            value.try_iter()?.map(entry).collect::<Result<_, Error>>()?
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let pair = |pair: Value| {
                Ok((pair.get_item(&Value::from(0))?, pair.get_item(&Value::from(1))?))
            };
            value.try_iter()?.map(pair).collect::<Result<_, Error>>()?
        }
        _ => {
            percent_encode(&mut out, &display::text(state, value)?, b"/")?;
            return Ok(Value::from(out.finish()));
        }
    };
    for (at, (key, value)) in pairs.iter().enumerate() {
        out.push(if at > 0 { "&" } else { "" })?;
        percent_encode(&mut out, &display::text(state, key)?, b"")?;
        out.push("=")?;
        percent_encode(&mut out, &display::text(state, value)?, b"")?;
    }
    Ok(Value::from(out.finish()))
}

/// `kept`: stands for itself, beside letters, digits and `_.-~`. A query has `+` for a space.
fn percent_encode(out: &mut PaidText, text: &str, kept: &[u8]) -> Result<(), Error> {
    for &byte in text.as_bytes() {
        match byte {
            b' ' if kept.is_empty() => out.push("+")?,
            _ if byte.is_ascii_alphanumeric()
                || b"_.-~".contains(&byte)
                || kept.contains(&byte) =>
            {
                out.push_char(char::from(byte))?;
            }
            _ => out.push(&format!("%{byte:02X}"))?,
        }
    }
    Ok(())
}

fn trim(state: &State, value: &Value, args: Arguments) -> Result<Value, Error> {
    let [chars] = bind("trim", ["chars"], &args.into_values())?;
    let chars = chars.filter(|chars| !chars.is_none());
    let chars = chars.as_ref().map(|chars| text(chars, "trim")).transpose()?;
    let value = display::text(state, value)?;
    Ok(Value::from(python::strip(&value, chars, python::Ends::Both)))
}

fn replace(state: &State, value: &Value, args: Arguments) -> Result<Value, Error> {
    let [old, new, count] = bind("replace", ["old", "new", "count"], &args.into_values())?;
    let (old, new) = (required(old, "replace", "old")?, required(new, "replace", "new")?);
    let count = count.filter(|count| !count.is_none());
    let count = count.map_or(Ok(-1), |count| integer(&count, "replace"))?;
    let parts = [&*display::text(state, &old)?, &*display::text(state, &new)?];
    methods::replace(state, &display::text(state, value)?, parts, count)
}

fn indent(state: &State, value: &Value, args: Arguments) -> Result<Value, Error> {
    let [width, first, blank] = bind("indent", ["width", "first", "blank"], &args.into_values())?;
    let is_true = |flag: Option<Value>| flag.is_some_and(|flag| flag.is_true());
    let (first, blank) = (is_true(first), is_true(blank));
    let width = width.unwrap_or_else(|| Value::from(4));
    let (spaces, times) = match width.as_str() {
        Some(indentation) => (indentation, 1),
        None => (" ", integer(&width, "indent")?),
    };
    // As in Jinja2, so that a text that ends in a line's end keeps it.
    let value = text(value, "indent")?.to_owned() + "\n";
    let mut out = PaidText::new(state);
    for (at, line) in python::lines(&value, false).into_iter().enumerate() {
        out.push(if at > 0 { "\n" } else { "" })?;
        if if at == 0 { first } else { blank || !line.is_empty() } {
            out.push_times(spaces, times)?;
        }
        out.push(line)?;
    }
    Ok(Value::from(out.finish()))
}

fn center(state: &mut State, value: &Value, args: Arguments) -> Result<Value, Error> {
    let [width] = bind("center", ["width"], &args.into_values())?;
    let width = width.unwrap_or_else(|| Value::from(80));
    let value = string(state, value)?;
    methods::call(state, &value, "center", &[width])
}

fn truncate(value: &Value, args: Arguments) -> Result<Value, Error> {
    let names = ["length", "killwords", "end", "leeway"];
    let [length, kill_words, end, leeway] = bind("truncate", names, &args.into_values())?;
    let number = |value: Option<Value>, default| {
        value.filter(|value| !value.is_none()).map_or(Ok(default), |v| integer(&v, "truncate"))
    };
    let (length, leeway) = (number(length, 255)?, number(leeway, 5)?);
    let end = end.unwrap_or_else(|| Value::from("..."));
    let end = text(&end, "truncate")?;
    let is_short = |items: usize| items as i64 <= length.saturating_add(leeway);
    if value.is_undefined() || (value.as_str().is_none() && value.len().is_some_and(is_short)) {
        return Ok(value.clone());
    }
    let value = text(value, "truncate")?;
    let count = |text: &str| i64::try_from(text.chars().count()).unwrap_or(i64::MAX);
    if length < count(end) || leeway < 0 {
        return Err(type_error("truncate(): the length has to be at least that of the end"));
    }
    if count(value) <= length.saturating_add(leeway) {
        return Ok(Value::from(value));
    }
    let kept: String = value.chars().take((length - count(end)) as usize).collect();
    let kept = match kill_words.is_some_and(|kill| kill.is_true()) {
        true => &*kept,
        false => kept.rsplit_once(' ').map_or(&*kept, |(before, _)| before),
    };
    Ok(Value::from(format!("{kept}{end}")))
}

fn percent(state: &State, value: &Value, args: Arguments) -> Result<Value, Error> {
    let args = args.into_values();
    let values = match args.last() {
        Some(last) if last.is_kwargs() && args.len() == 1 => last.clone(),
        Some(last) if last.is_kwargs() => {
            return Err(type_error("format: values have names, or they have none"));
        }
        _ => Value::from(Tuple::from(args)),
    };
    Ok(Value::from(format::percent(state, &display::text(state, value)?, &values)?))
}

fn join(state: &mut State, value: &Value, args: Arguments) -> Result<Value, Error> {
    let [between, attribute] = bind("join", ["d", "attribute"], &args.into_values())?;
    let items = match attribute.filter(|attribute| !attribute.is_none()) {
        Some(attribute) => {
            state.apply_filter("map", &[value.clone(), named([("attribute", attribute)])])?
        }
        None => value.clone(),
    };
    let between = between.unwrap_or_else(|| Value::from(""));
    let between = display::text(state, &between)?;
    let mut out = PaidText::new(state);
    for (at, item) in items.try_iter()?.enumerate() {
        out.push(if at > 0 { &between } else { "" })?;
        out.push(&display::text(state, &item)?)?;
    }
    Ok(Value::from(out.finish()))
}

fn int(value: &Value, args: Arguments) -> Result<Value, Error> {
    let [default, base] = bind("int", ["default", "base"], &args.into_values())?;
    let default = default.unwrap_or_else(|| Value::from(0));
    let base = base.map_or(Ok(10), |base| integer(&base, "int"))?;
    let number = match value.kind() {
        ValueKind::Bool => Some(i128::from(value.is_true())),
        ValueKind::Number => match as_float(value) {
            Some(float) => whole(float),
            None => return Ok(value.clone()),
        },
        ValueKind::String => {
            let text = value.as_str().unwrap_or_default();
            parsed_int(text, base).or_else(|| parsed_float(text).and_then(whole))
        }
        ValueKind::Undefined => return Err(type_error("int: the value is undefined")),
        _ => None,
    };
    Ok(number.map_or(default, Value::from))
}

#[expect(clippy::cast_possible_truncation, reason = "to cut is what it is for")]
fn whole(float: f64) -> Option<i128> {
    float.is_finite().then_some(float as i128)
}

fn parsed_int(text: &str, base: i64) -> Option<i128> {
    let text = python::strip(text, None, python::Ends::Both);
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", text.strip_prefix('+').unwrap_or(text)),
    };
    let prefixed = match digits.get(..2).map(str::to_ascii_lowercase).as_deref() {
        Some("0x") if matches!(base, 0 | 16) => Some(16),
        Some("0o") if matches!(base, 0 | 8) => Some(8),
        Some("0b") if matches!(base, 0 | 2) => Some(2),
        _ => None,
    };
    let digits = if prefixed.is_some() { &digits[2..] } else { digits };
    let radix = prefixed.unwrap_or(if base == 0 { 10 } else { u32::try_from(base).ok()? });
    if !(2..=36).contains(&radix) || digits.starts_with(['+', '-']) {
        return None;
    }
    i128::from_str_radix(&format!("{sign}{}", without_underscores(digits)?), radix).ok()
}

/// Single ones between digits are for the eye.
fn without_underscores(digits: &str) -> Option<Cow<'_, str>> {
    if !digits.contains('_') {
        return Some(Cow::Borrowed(digits));
    }
    let lone = !digits.starts_with('_') && !digits.ends_with('_') && !digits.contains("__");
    lone.then(|| Cow::Owned(digits.replace('_', "")))
}

fn parsed_float(text: &str) -> Option<f64> {
    let text = python::strip(text, None, python::Ends::Both);
    without_underscores(text)?.parse().ok()
}

fn float(value: &Value, args: Arguments) -> Result<Value, Error> {
    let [default] = bind("float", ["default"], &args.into_values())?;
    let number = match value.kind() {
        ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        ValueKind::Number => f64::try_from(value.clone()).ok(),
        ValueKind::String => parsed_float(value.as_str().unwrap_or_default()),
        ValueKind::Undefined => return Err(type_error("float: the value is undefined")),
        _ => None,
    };
    Ok(number.map_or_else(|| default.unwrap_or_else(|| Value::from(0.0)), Value::from))
}

/// To a precision, half to even; or always up or down.
fn round(value: &Value, args: Arguments) -> Result<Value, Error> {
    let [precision, method] = bind("round", ["precision", "method"], &args.into_values())?;
    let precision = precision.map_or(Ok(0), |precision| integer(&precision, "round"))?;
    let method = method.unwrap_or_else(|| Value::from("common"));
    if !matches!(value.kind(), ValueKind::Number | ValueKind::Bool) {
        return Err(type_error("round(): a number is required"));
    }
    let as_is = integer(value, "round").ok();
    let number = as_is.map_or_else(|| as_float(value).unwrap_or(0.0), |number| number as f64);
    let scale = 10_f64.powi(i32::try_from(precision.clamp(-400, 400)).unwrap_or(0));
    match (text(&method, "round")?, as_is) {
        ("floor", _) => Ok(Value::from((number * scale).floor() / scale)),
        ("ceil", _) => Ok(Value::from((number * scale).ceil() / scale)),
        ("common", Some(integer)) if precision >= 0 => Ok(Value::from(integer)),
        ("common", Some(_)) => {
            Ok(Value::from(whole((number * scale).round_ties_even() / scale).unwrap_or(0)))
        }
        ("common", None) if precision < 0 => {
            Ok(Value::from((number * scale).round_ties_even() / scale))
        }
        ("common", None) => {
            // Beyond these digits there is nothing to round.
            let digits = usize::try_from(precision.min(330)).unwrap_or(0);
            Ok(Value::from(format!("{number:.digits$}").parse().unwrap_or(number)))
        }
        _ => Err(type_error("round(): method must be common, ceil or floor")),
    }
}

/// `boolean`: in place of all that is false, and not only of what is undefined.
fn default(value: &Value, args: Arguments) -> Result<Value, Error> {
    let [default, boolean] = bind("default", ["default_value", "boolean"], &args.into_values())?;
    let boolean = boolean.is_some_and(|boolean| boolean.is_true());
    match value.is_undefined() || (boolean && !value.is_true()) {
        true => Ok(default.unwrap_or_else(|| Value::from(""))),
        false => Ok(value.clone()),
    }
}
