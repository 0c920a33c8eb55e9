//! From TOML to the values that are merged, and what TOML can say that no setting can be.
//!
//! A number is read when it is wanted, and not before: that is where one is found that does not fit.
//! TOML has dates, infinities and NaN besides, which JSON does not; a policy's settings would get
//! something else in their place.

use figment::value::{Dict, Value};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::keys::spoken;
use interlock_request::is_secret;

/// Longest text that a message repeats.
const SHOWN_CHARS_MAX: usize = 200;

/// A value that cannot be one of ours.
pub(crate) struct Unreadable {
    pub(crate) key: Vec<String>,
    /// What is wrong with it, as key, relation, value.
    pub(crate) text: String,
    /// The offset of the value in the text.
    pub(crate) at: usize,
}

/// A table without what cannot be read in it.
pub(crate) fn values(
    table: &DeTable<'_>,
    path: &mut Vec<String>,
    unreadable: &mut Vec<Unreadable>,
) -> Dict {
    let mut dict = Dict::new();
    for (key, inside) in table {
        path.push(key.get_ref().clone().into_owned());
        if let Some(value) = value(inside, path, unreadable) {
            dict.insert(key.get_ref().clone().into_owned(), value);
        }
        path.pop();
    }
    dict
}

/// A value, or nothing where it cannot be read. In a list its text stands in its place, since what
/// follows is known by its number.
pub(crate) fn value(
    from: &Spanned<DeValue<'_>>,
    path: &mut Vec<String>,
    unreadable: &mut Vec<Unreadable>,
) -> Option<Value> {
    let secret = path.iter().any(|name| is_secret(name));
    let got = |written: String| match secret {
        true => "a secret that is not shown".to_owned(),
        false => shortened(&written),
    };
    let must = match from.get_ref() {
        DeValue::String(text) => return Some(text.clone().into_owned().into()),
        DeValue::Boolean(flag) => return Some((*flag).into()),
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => return Some(number.into()),
            Err(_) => {
                let got = got(number.to_string());
                format!("be a whole number from {} to {}, got {got}", i64::MIN, i64::MAX)
            }
        },
        DeValue::Float(number) => match number.as_str().parse::<f64>() {
            Ok(float) if float.is_finite() => return Some(float.into()),
            _ => format!("be a finite number, got {}", got(number.to_string())),
        },
        DeValue::Datetime(date) => {
            let got = got(date.to_string());
            format!("be no date, since no setting is one (a text is in quotes), got {got}")
        }
        DeValue::Table(table) => return Some(values(table, path, unreadable).into()),
        DeValue::Array(items) => {
            let items = items.iter().enumerate().map(|(at, item)| {
                path.push(at.to_string());
                let read = value(item, path, unreadable);
                path.pop();
                read.unwrap_or_else(|| "unreadable".into())
            });
            return Some(items.collect::<Vec<Value>>().into());
        }
    };
    let (key, at) = (path.clone(), from.span().start);
    unreadable.push(Unreadable { text: format!("{} must {must}", spoken(&key)), key, at });
    None
}

/// A text as a message repeats it: whole, unless it is longer than anybody reads.
pub(crate) fn shortened(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}... ({} bytes)", &text[..end], text.len()),
    }
}
