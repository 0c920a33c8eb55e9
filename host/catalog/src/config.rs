//! The settings that say which model to serve.

use std::num::{NonZeroU32, NonZeroUsize};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ModelRef;

/// `[model]`: what is served, and how much of the machine it may use.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ModelConfig {
    /// The model: a built-in name, a folder, a `.gguf` file, `hf:org/name[@revision]` or `sim:...`.
    /// The default is small enough for any laptop, so that the first try works. What is not on
    /// this machine yet is pulled at start.
    pub reference: ModelRef,
    /// Most tokens of prompt and output together. Turn this down when memory is short; unset, it
    /// is what the model was trained for.
    #[schemars(example = 8192)]
    pub context_max: Option<NonZeroU32>,
    /// CPU threads for the model's arithmetic where there is no GPU. Turn this down when the
    /// machine has other work; unset, one for each physical core.
    #[schemars(example = 4)]
    pub threads: Option<NonZeroUsize>,
}

impl ModelConfig {
    /// Every problem, as key, relation, value. The types leave none.
    pub fn problems(&self) -> Vec<String> {
        Vec::new()
    }
}
