//! The kinds of prompts.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A kind of prompts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WorkloadKind {
    /// A few dozen tokens: nearly all time is decoding.
    Short,
    /// `prompt_tokens` each, all different: nearly all time is prefill.
    LongPrompt,
    /// The same `prompt_tokens` first, then a short question: what a shared system prompt costs.
    SharedPrefix,
    /// Prompts and answers of all lengths: short requests beside long ones.
    Mixed,
    /// Short prompts, of which a share leaves before the answer is complete.
    Storm,
}

impl WorkloadKind {
    /// All of them, in the order in which they are explained.
    pub const ALL: [Self; 5] =
        [Self::Short, Self::LongPrompt, Self::SharedPrefix, Self::Mixed, Self::Storm];

    /// As on the command line and in reports.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Short => "short",
            Self::LongPrompt => "long-prompt",
            Self::SharedPrefix => "shared-prefix",
            Self::Mixed => "mixed",
            Self::Storm => "storm",
        }
    }
}

impl fmt::Display for WorkloadKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for WorkloadKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|workload| workload.as_str() == text).ok_or_else(|| {
            let names = Self::ALL.map(Self::as_str).join(", ");
            format!("a workload is one of {names}, got {text:?}")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workload_is_written_as_it_is_read() {
        for workload in WorkloadKind::ALL {
            assert_eq!(workload.to_string().parse(), Ok(workload));
        }
        assert!("fast".parse::<WorkloadKind>().expect_err("no workload").contains("shared-prefix"));
    }
}
