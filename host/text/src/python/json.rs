//! `tojson` as transformers has it: Python's `json.dumps`.
//!
//! Not minijinja's own filter: that one is made for HTML and escapes `<`, `>`, `&` and `'`,
//! which a model would then see. Transformers replaces Jinja's filter for the same reason.

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, State, Value};

use super::args::{Arguments, bind, integer, name_of, type_error};
use super::display;
use super::paid::PaidText;

/// Deepest value written as JSON, so that a template cannot nest one to the stack's end.
const DEPTH_MAX: usize = 64;

pub(crate) fn tojson(state: &State, value: &Value, args: Arguments) -> Result<Value, Error> {
    let names = ["ensure_ascii", "indent", "separators", "sort_keys"];
    let [ascii, indent, separators, sorted] = bind("tojson", names, &args.into_values())?;
    let indent = match indent.filter(|indent| !indent.is_none()) {
        Some(indent) => Some(indentation(state, &indent)?),
        None => None,
    };
    let [comma, colon] = match separators.filter(|separators| !separators.is_none()) {
        Some(separators) => both(&separators)?,
        None => [if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()],
    };
    let is_true = |value: Option<Value>| value.is_some_and(|value| value.is_true());
    let (ascii, sorted) = (is_true(ascii), is_true(sorted));
    let mut json = Json { out: PaidText::new(state), indent, comma, colon, ascii, sorted };
    json.value(value, 0)?;
    Ok(Value::from(json.out.finish()))
}

/// A number of spaces, or the text itself.
fn indentation(state: &State, indent: &Value) -> Result<String, Error> {
    if let Some(indent) = indent.as_str() {
        return Ok(indent.to_owned());
    }
    let mut spaces = PaidText::new(state);
    spaces.push_times(" ", integer(indent, "tojson")?)?;
    Ok(spaces.finish())
}

fn both(separators: &Value) -> Result<[String; 2], Error> {
    let wrong = || type_error("tojson() takes two texts as separators");
    let texts = separators.try_iter().map_err(|_| wrong())?;
    let texts: Option<Vec<_>> = texts.map(|text| text.as_str().map(str::to_owned)).collect();
    texts.and_then(|texts| texts.try_into().ok()).ok_or_else(wrong)
}

struct Json<'a, 'b, 'c> {
    out: PaidText<'a, 'b, 'c>,
    /// One level's, where each value has a line.
    indent: Option<String>,
    comma: String,
    colon: String,
    ascii: bool,
    sorted: bool,
}

impl Json<'_, '_, '_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        self.out.state().consume_fuel(1)?;
        if depth > DEPTH_MAX {
            let error = format!("tojson: value is nested deeper than {DEPTH_MAX}");
            return Err(Error::new(ErrorKind::BadSerialization, error));
        }
        match value.kind() {
            ValueKind::String => self.text(value.as_str().unwrap_or_default()),
            ValueKind::Map => self.map(value, depth),
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter()?.map(|item| (None, item));
                self.list(['[', ']'], items, depth)
            }
            _ => {
                let plain = scalar(value).ok_or_else(|| unserializable(value))?;
                self.out.push(&plain)
            }
        }
    }

    fn map(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        let mut keys: Vec<_> = value.try_iter()?.collect();
        if self.sorted {
            let kinds = keys.first().map(Value::kind);
            if keys.iter().any(|key| Some(key.kind()) != kinds) {
                return Err(type_error("tojson() cannot sort keys of several types"));
            }
            keys.sort();
        }
        let mut entries = Vec::with_capacity(keys.len());
        for key in keys {
            let name = match key.as_str() {
                Some(name) => name.to_owned(),
                None => scalar(&key).ok_or_else(|| unserializable(&key))?,
            };
            entries.push((Some(name), value.get_item(&key)?));
        }
        self.list(['{', '}'], entries.into_iter(), depth)
    }

    fn list(
        &mut self,
        [open, close]: [char; 2],
        items: impl Iterator<Item = (Option<String>, Value)>,
        depth: usize,
    ) -> Result<(), Error> {
        self.out.push_char(open)?;
        let mut empty = true;
        for (key, item) in items {
            if !empty {
                self.out.push(&self.comma)?;
            }
            empty = false;
            self.line(depth + 1)?;
            if let Some(key) = key {
                self.text(&key)?;
                self.out.push(&self.colon)?;
            }
            self.value(&item, depth + 1)?;
        }
        if !empty {
            self.line(depth)?;
        }
        self.out.push_char(close)
    }

    fn line(&mut self, depth: usize) -> Result<(), Error> {
        let Some(indent) = &self.indent else { return Ok(()) };
        self.out.push("\n")?;
        self.out.push_times(indent, i64::try_from(depth).unwrap_or(i64::MAX))
    }

    fn text(&mut self, text: &str) -> Result<(), Error> {
        // The escapes are Python's; beyond ASCII it has none of its own.
        let quoted = serde_json::Value::from(text).to_string();
        if !self.ascii {
            return self.out.push(&quoted);
        }
        for letter in quoted.chars() {
            match letter {
                ' '..='~' => self.out.push_char(letter)?,
                _ => {
                    for unit in letter.encode_utf16(&mut [0; 2]) {
                        self.out.push(&format!("\\u{unit:04x}"))?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// What is neither text nor list nor dict, as a value or, within quotes, as a key.
fn scalar(value: &Value) -> Option<String> {
    match value.kind() {
        ValueKind::None => Some("null".to_owned()),
        ValueKind::Bool => Some(if value.is_true() { "true" } else { "false" }.to_owned()),
        ValueKind::Number => Some(match display::as_float(value) {
            Some(float) if float.is_nan() => "NaN".to_owned(),
            Some(f64::INFINITY) => "Infinity".to_owned(),
            Some(f64::NEG_INFINITY) => "-Infinity".to_owned(),
            Some(float) => display::float(float),
            None => value.to_string(),
        }),
        _ => None,
    }
}

fn unserializable(value: &Value) -> Error {
    let error = format!("{} is not JSON serializable", name_of(value));
    Error::new(ErrorKind::BadSerialization, error)
}
