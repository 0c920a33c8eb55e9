//! Spans of time in settings, written as everywhere else in the host's configuration.

use std::borrow::Cow;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, de};

/// A span of time: `250ms`, `30s`, `1m 30s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Span {
    /// The same in microseconds.
    pub micros: u64,
}

impl Span {
    /// None at all.
    pub const ZERO: Self = Self { micros: 0 };

    /// This many milliseconds.
    pub const fn from_millis(n: u64) -> Self {
        Self { micros: n * 1_000 }
    }

    /// This many seconds.
    pub const fn from_secs(n: u64) -> Self {
        Self { micros: n * 1_000_000 }
    }

    /// This much and that much; as much as there can be where that overflows.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self { micros: self.micros.saturating_add(other.micros) }
    }

    /// This much so many times; as much as there can be where that overflows.
    #[must_use]
    pub const fn times(self, n: u64) -> Self {
        Self { micros: self.micros.saturating_mul(n) }
    }
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("a time is written like 250ms, 30s or 1m 30s, got {text:?}");
        let mut span = Self::ZERO;
        let mut rest = text.trim();
        if rest.is_empty() {
            return Err(bad());
        }
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
            let number: u64 = rest[..digits].parse().map_err(|_| bad())?;
            rest = rest[digits..].trim_start();
            let letters = rest.find(|c: char| !c.is_alphabetic()).unwrap_or(rest.len());
            let unit = match &rest[..letters] {
                "us" | "µs" => 1,
                "ms" => 1_000,
                "s" | "sec" => 1_000_000,
                "m" | "min" => 60_000_000,
                "h" => 3_600_000_000,
                _ => return Err(bad()),
            };
            span = span.plus(Self { micros: unit }.times(number));
            rest = rest[letters..].trim_start();
        }
        Ok(span)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for Span {
    fn schema_name() -> Cow<'static, str> {
        "Span".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "A span of time: 250ms, 30s, 1m 30s.",
            "pattern": "^\\s*(\\d+\\s*(us|µs|ms|s|sec|m|min|h)\\s*)+$",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_adds_up() {
        for (text, micros) in [
            ("0s", 0),
            ("7us", 7),
            ("250ms", 250_000),
            ("1m 30s", 90_000_000),
            ("2h1m", 7_260_000_000),
        ] {
            assert_eq!(text.parse(), Ok(Span { micros }), "{text}");
        }
        for text in ["", "5", "s", "-1s", "1.5s", "1 fortnight", "1s,"] {
            assert!(text.parse::<Span>().is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn more_than_there_can_be_is_as_much_as_there_can_be() {
        assert_eq!("99999999999999h".parse(), Ok(Span { micros: u64::MAX }));
    }
}
