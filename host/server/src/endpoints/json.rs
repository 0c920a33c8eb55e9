//! Reads JSON field by field, so that every complaint names the field, its value and the limit.
//!
//! Values stay unparsed text until someone asks for them: fields that nobody asks for cost
//! nothing, and a hostile body cannot unfold into many times its size.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::num::IntErrorKind;
use std::ops::RangeInclusive;

use crate::failure::InvalidRequest;
use interlock_request::TokenId;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// A value and where it stands in the body, such as `messages[2].content`.
#[derive(Debug, Clone)]
pub(crate) struct FieldValue<'a> {
    path: String,
    raw: &'a RawValue,
}

/// An object and where it stands.
#[derive(Debug)]
pub(crate) struct JsonObject<'a> {
    path: String,
    fields: BTreeMap<String, &'a RawValue>,
}

/// The numbers that a field takes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Numbers {
    /// The smallest number.
    pub(crate) min: f64,
    /// Is `min` itself refused?
    pub(crate) above: bool,
    /// The largest number.
    pub(crate) most: f64,
}

impl Numbers {
    pub(crate) const fn from(min: f64, most: f64) -> Self {
        Self { min, above: false, most }
    }

    pub(crate) const fn above(min: f64, most: f64) -> Self {
        Self { min, above: true, most }
    }

    fn contains(self, number: f64) -> bool {
        let enough = if self.above { number > self.min } else { number >= self.min };
        enough && number <= self.most
    }
}

impl fmt::Display for Numbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { min, above, most } = self;
        if *above {
            write!(f, "above {min} and at most {most}")
        } else {
            write!(f, "from {min} to {most}")
        }
    }
}

impl<'a> JsonObject<'a> {
    /// The whole body.
    pub(crate) fn parse(body: &'a str) -> Result<Self, InvalidRequest> {
        let raw: &RawValue =
            serde_json::from_str(body).map_err(|e| InvalidRequest::malformed(&e))?;
        FieldValue { path: String::new(), raw }.object()
    }

    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// Takes a field out of it; `None` if it is absent or null.
    pub(crate) fn take(&mut self, name: &str) -> Option<FieldValue<'a>> {
        let raw = self.fields.remove(name)?;
        (raw.get() != "null").then(|| FieldValue::new(self.path_of(name), raw))
    }

    /// The names of the fields that are left.
    pub(crate) fn into_names(self) -> impl Iterator<Item = String> {
        self.fields.into_keys()
    }

    /// Fields in the order of their names, nulls included.
    pub(crate) fn items(&self) -> impl Iterator<Item = (&str, FieldValue<'a>)> {
        self.fields
            .iter()
            .map(|(name, raw)| (name.as_str(), FieldValue { path: self.path_of(name), raw }))
    }

    /// Where a field of this object stands.
    pub(crate) fn path_of(&self, name: &str) -> String {
        path_in(&self.path, name)
    }
}

/// Where a field stands of the object at `path`; that of the body is empty.
pub(crate) fn path_in(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

impl<'a> FieldValue<'a> {
    /// Longest part of a value that an error repeats, in characters.
    const SHOWN_MAX: usize = 64;

    pub(crate) fn new(path: String, raw: &'a RawValue) -> Self {
        Self { path, raw }
    }

    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    pub(crate) fn raw(&self) -> &'a RawValue {
        self.raw
    }

    /// The value as the client wrote it, cut to what an error message can hold.
    pub(crate) fn shown(&self) -> String {
        let text = self.raw.get();
        match text.char_indices().nth(Self::SHOWN_MAX) {
            Some((end, _)) => format!("{}...", &text[..end]),
            None => text.to_owned(),
        }
    }

    /// A number that may be a token's; whether the model has it is not known here. In quotes it is
    /// none: in prompts and biases, clients of llama.cpp write texts among the ids.
    pub(crate) fn token_id(&self) -> Result<TokenId, InvalidRequest> {
        if self.is_text() {
            return Err(self.wrong_type(&expected_integer(&(0..=i64::from(TokenId::MAX)))));
        }
        self.quoted_token_id()
    }

    /// As [`Self::token_id`], where no text can stand in its place, so that it may be in quotes as
    /// other numbers.
    pub(crate) fn quoted_token_id(&self) -> Result<TokenId, InvalidRequest> {
        let id = self.integer(0..=i64::from(TokenId::MAX))?;
        Ok(TokenId::try_from(id).expect("the range was checked"))
    }

    pub(crate) fn is_text(&self) -> bool {
        self.raw.get().starts_with('"')
    }

    pub(crate) fn is_list(&self) -> bool {
        self.raw.get().starts_with('[')
    }

    /// Is it a list whose first element is a number?
    pub(crate) fn is_list_of_numbers(&self) -> bool {
        self.raw.get().strip_prefix('[').is_some_and(|inner| begins_number(inner.trim_start()))
    }

    pub(crate) fn number(&self, allowed: Numbers) -> Result<f64, InvalidRequest> {
        let number = numeral(self.raw.get()).and_then(|numeral| numeral.parse::<f64>().ok());
        let number = number.ok_or_else(|| self.wrong_type(&format!("a number {allowed}")))?;
        if allowed.contains(number) {
            Ok(number)
        } else {
            Err(self.wrong_value(&format!("a number {allowed}")))
        }
    }

    pub(crate) fn integer(&self, allowed: RangeInclusive<i64>) -> Result<i64, InvalidRequest> {
        let expected = || expected_integer(&allowed);
        let whole = numeral(self.raw.get()).and_then(whole_number);
        let whole = whole.ok_or_else(|| self.wrong_type(&expected()))?;
        match whole.parse::<i64>() {
            Ok(number) if allowed.contains(&number) => Ok(number),
            // For a count without an upper limit here, more than 64 bits is just as many: who
            // knows the limit will name it.
            Err(why)
                if *why.kind() == IntErrorKind::PosOverflow
                    && *allowed.start() >= 0
                    && *allowed.end() == i64::MAX =>
            {
                Ok(*allowed.end())
            }
            Ok(_) | Err(_) => Err(self.wrong_value(&expected())),
        }
    }

    /// True or false, in any of the ways of [`truth`].
    pub(crate) fn boolean(&self) -> Result<bool, InvalidRequest> {
        truth(self.raw.get()).ok_or_else(|| self.wrong_type("true or false"))
    }

    pub(crate) fn text(&self) -> Result<String, InvalidRequest> {
        if !self.is_text() {
            return Err(self.wrong_type("a string"));
        }
        // Syntax was checked with the whole body; what is left to fail are half surrogates.
        serde_json::from_str(self.raw.get())
            .map_err(|_| self.wrong_value("a string of valid Unicode characters"))
    }

    /// What `read` makes of each element of a list, up to the first that it will not have.
    ///
    /// One element at a time: a list holds millions of them, and each has a path.
    pub(crate) fn list<T>(
        &self,
        read: impl FnMut(FieldValue<'a>) -> Result<T, InvalidRequest>,
    ) -> Result<Vec<T>, InvalidRequest> {
        let mut culprit = None;
        let each = Each { path: &self.path, read, culprit: &mut culprit };
        let list = serde_json::Deserializer::from_str(self.raw.get()).deserialize_seq(each);
        list.map_err(|_| culprit.unwrap_or_else(|| self.wrong_type("an array")))
    }

    pub(crate) fn object(&self) -> Result<JsonObject<'a>, InvalidRequest> {
        if !self.raw.get().starts_with('{') {
            return Err(self.wrong_type("an object"));
        }
        // Syntax was checked with the whole body; what is left to fail are too many fields, which
        // is our own complaint, and half surrogates in a field's name, which are serde's.
        let Fields(fields) = serde_json::from_str(self.raw.get()).map_err(|error| {
            if error.is_data() {
                self.wrong_value(&format!("an object of at most {} fields", Fields::MAX))
            } else {
                self.wrong_value("an object whose fields' names are valid Unicode characters")
            }
        })?;
        Ok(JsonObject { path: self.path.clone(), fields })
    }

    pub(crate) fn wrong_type(&self, expected: &str) -> InvalidRequest {
        InvalidRequest::wrong_type(&self.path, expected, &self.shown())
    }

    pub(crate) fn wrong_value(&self, expected: &str) -> InvalidRequest {
        InvalidRequest::wrong_value(&self.path, expected, &self.shown())
    }
}

/// The digits of an integer, which may be written as `8.0` or `1e3`: some clients know one kind of
/// number.
fn whole_number(json: &str) -> Option<Cow<'_, str>> {
    if !json.contains(['.', 'e', 'E']) {
        return Some(json.into());
    }
    let number: f64 = json.parse().ok()?;
    // What is infinite has no digits, and whoever reads them names the limit.
    (number.fract() == 0.0 || number.is_infinite()).then(|| format!("{number:.0}").into())
}

/// The number that a JSON text is, or that stands in its quotes: clients that take everything from
/// a form or the environment write `"0.5"`, which vLLM (pydantic) reads.
pub(super) fn numeral(json: &str) -> Option<&str> {
    let text = unquoted(json).unwrap_or(json).trim();
    let of_a_number = |c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.' | 'e' | 'E');
    // What begins like one may go on as `-inf`, in quotes.
    (begins_number(text) && text.chars().all(of_a_number)).then_some(text)
}

/// True and false, as vLLM (pydantic) reads them: also as 1 and 0, and in quotes as these, yes and
/// no, on and off, or their first letters.
pub(super) fn truth(json: &str) -> Option<bool> {
    let Some(word) = unquoted(json) else {
        return match json {
            "true" => Some(true),
            "false" => Some(false),
            number => match numeral(number)?.parse::<f64>() {
                Ok(1.0) => Some(true),
                Ok(0.0) => Some(false),
                _ => None,
            },
        };
    };
    match word.to_ascii_lowercase().as_str() {
        "true" | "t" | "yes" | "y" | "on" | "1" => Some(true),
        "false" | "f" | "no" | "n" | "off" | "0" => Some(false),
        _ => None,
    }
}

/// What stands in the quotes of a JSON text that is a string.
fn unquoted(json: &str) -> Option<&str> {
    json.strip_prefix('"')?.strip_suffix('"')
}

fn expected_integer(allowed: &RangeInclusive<i64>) -> String {
    match (*allowed.start(), *allowed.end()) {
        (i64::MIN, i64::MAX) => "an integer of at most 64 bits".to_owned(),
        (min, i64::MAX) => format!("an integer of at least {min}"),
        (min, most) => format!("an integer from {min} to {most}"),
    }
}

fn begins_number(json: &str) -> bool {
    json.starts_with(|c: char| c == '-' || c.is_ascii_digit())
}

/// Reads the elements of a list as they come.
struct Each<'s, F> {
    path: &'s str,
    read: F,
    /// Why the reading stopped, in our words; serde's error has no place for it.
    culprit: &'s mut Option<InvalidRequest>,
}

impl<'de, T, F: FnMut(FieldValue<'de>) -> Result<T, InvalidRequest>> Visitor<'de> for Each<'_, F> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut made = Vec::new();
        while let Some(raw) = list.next_element::<&'de RawValue>()? {
            let item = FieldValue { path: format!("{}[{}]", self.path, made.len()), raw };
            match (self.read)(item) {
                Ok(one) => made.push(one),
                Err(invalid) => {
                    *self.culprit = Some(invalid);
                    return Err(serde::de::Error::custom("an element will not do"));
                }
            }
        }
        Ok(made)
    }
}

/// The fields of one object; of a name that occurs twice, the last.
struct Fields<'a>(BTreeMap<String, &'a RawValue>);

impl Fields<'_> {
    /// No request that we understand comes near this.
    const MAX: usize = 1024;
}

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bounded;

        impl<'de> Visitor<'de> for Bounded {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "an object of at most {} fields", Fields::MAX)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = BTreeMap::new();
                while let Some((name, raw)) = map.next_entry::<String, &'de RawValue>()? {
                    fields.insert(name, raw);
                    if fields.len() > Fields::MAX {
                        return Err(serde::de::Error::invalid_length(fields.len(), &self));
                    }
                }
                Ok(Fields(fields))
            }
        }

        deserializer.deserialize_map(Bounded)
    }
}
