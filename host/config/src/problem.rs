//! What is wrong with a configuration.

use std::fmt;

/// One thing wrong: key, relation, value, and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Such as `server.body_max must be 1 to 268435456, got 0`.
    pub text: String,
    /// Such as `interlock.toml:3`; `None` when no single place is to blame.
    pub origin: Option<String>,
}

/// Everything wrong, in the order of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)?;
        match &self.origin {
            Some(origin) => write!(f, " ({origin})"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            1 => write!(f, "the configuration has a problem:")?,
            n => write!(f, "the configuration has {n} problems:")?,
        }
        self.0.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl Problem {
    pub(crate) fn new(text: impl Into<String>, origin: Option<String>) -> Self {
        Self { text: text.into(), origin }
    }
}
