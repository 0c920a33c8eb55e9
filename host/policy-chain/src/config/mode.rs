//! Whether a policy decides, is only compared, or decides for a part of the requests.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Whether a policy decides. Written `enforce`, `shadow` or `canary:5`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub enum PolicyMode {
    /// It decides.
    #[default]
    Enforce,
    /// It is asked and compared with what is decided without it, and nothing follows.
    Shadow,
    /// It decides for so many of a hundred requests. The others get the generation of it that was
    /// there before, if there was one.
    Canary(u8),
}

/// A mode that is none.
#[derive(Debug, thiserror::Error)]
#[error(
    "a policy's mode is \"enforce\", \"shadow\" or \"canary:PERCENT\" with a whole number of 1 to 99, \
     got {0:?}"
)]
pub struct BadPolicyMode(String);

impl FromStr for PolicyMode {
    type Err = BadPolicyMode;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || BadPolicyMode(text.to_owned());
        match text {
            "enforce" => Ok(Self::Enforce),
            "shadow" => Ok(Self::Shadow),
            _ => {
                let percent = text.strip_prefix("canary:").and_then(|text| text.parse().ok());
                percent
                    .filter(|percent| (1..=99).contains(percent))
                    .map(Self::Canary)
                    .ok_or_else(bad)
            }
        }
    }
}

impl TryFrom<String> for PolicyMode {
    type Error = BadPolicyMode;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl fmt::Display for PolicyMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Enforce => f.write_str("enforce"),
            Self::Shadow => f.write_str("shadow"),
            Self::Canary(percent) => write!(f, "canary:{percent}"),
        }
    }
}

impl From<PolicyMode> for String {
    fn from(mode: PolicyMode) -> Self {
        mode.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_reads_as_it_is_written() {
        for text in ["enforce", "shadow", "canary:5", "canary:99"] {
            assert_eq!(text.parse::<PolicyMode>().expect(text).to_string(), text);
        }
        for text in ["", "canary", "canary:0", "canary:100", "canary:x"] {
            assert!(text.parse::<PolicyMode>().is_err(), "{text:?} was taken");
        }
    }
}
