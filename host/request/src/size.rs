//! How much memory something may take.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::Serialize;
use serde::de::{self, Deserialize, Deserializer, Visitor};

/// A number of bytes. Written `8MiB`, `512KiB` or `1000B`; a plain number counts bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(into = "String")]
#[schemars(with = "String")]
pub struct ByteSize(pub u64);

/// A text that is not a number of bytes.
#[derive(Debug, thiserror::Error)]
#[error("a size is a whole number followed by B, KiB, MiB or GiB, got {0:?}")]
pub struct BadByteSize(String);

const UNITS: [(&str, u64); 5] =
    [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1), ("", 1)];

impl ByteSize {
    /// The number of bytes as a `usize`, for what is held in memory.
    pub fn in_memory(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl FromStr for ByteSize {
    type Err = BadByteSize;

    fn from_str(text: &str) -> Result<Self, BadByteSize> {
        UNITS
            .iter()
            .find_map(|(unit, bytes)| Some((text.strip_suffix(unit)?, bytes)))
            .and_then(|(number, bytes)| number.trim_end().parse::<u64>().ok()?.checked_mul(*bytes))
            .map(Self)
            .ok_or_else(|| BadByteSize(text.to_owned()))
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextOrNumber;

        impl Visitor<'_> for TextOrNumber {
            type Value = ByteSize;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of bytes, such as 8MiB")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<ByteSize, E> {
                text.parse().map_err(E::custom)
            }

            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<ByteSize, E> {
                Ok(ByteSize(bytes))
            }

            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<ByteSize, E> {
                let size = u64::try_from(bytes).map(ByteSize);
                size.map_err(|_| E::custom(BadByteSize(bytes.to_string())))
            }
        }

        deserializer.deserialize_any(TextOrNumber)
    }
}

impl From<ByteSize> for String {
    fn from(size: ByteSize) -> Self {
        size.to_string()
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = |(_, bytes): &&(&str, u64)| self.0 >= *bytes && self.0.is_multiple_of(*bytes);
        let (unit, bytes) = UNITS.iter().find(whole).unwrap_or(&("B", 1));
        write!(f, "{}{unit}", self.0 / bytes)
    }
}

#[cfg(test)]
mod tests {
    use serde::de::IntoDeserializer;
    use serde::de::value::Error;

    use super::*;

    #[test]
    fn a_size_reads_as_it_is_written() {
        for text in ["0B", "1000B", "512KiB", "8MiB", "3GiB"] {
            assert_eq!(text.parse::<ByteSize>().expect(text).to_string(), text);
        }
        for text in ["", "MiB", "8MB", "-1B", "1.5KiB", "99999999999999GiB"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn a_plain_number_counts_bytes() {
        type Read = Result<ByteSize, Error>;
        assert_eq!("8192".parse::<ByteSize>().expect("a number"), ByteSize(8192));
        let read: [Read; 3] = [
            ByteSize::deserialize(8192_u64.into_deserializer()),
            ByteSize::deserialize(8192_i64.into_deserializer()),
            ByteSize::deserialize("8KiB".into_deserializer()),
        ];
        assert_eq!(read, [Ok(ByteSize(8192)), Ok(ByteSize(8192)), Ok(ByteSize(8192))]);
        let negative: Read = ByteSize::deserialize((-1_i64).into_deserializer());
        let why = "a size is a whole number followed by B, KiB, MiB or GiB, got \"-1\"";
        assert_eq!(negative.expect_err("less than nothing").to_string(), why);
    }
}
