//! The settings that say which models to serve.

use std::collections::BTreeSet;
use std::num::{NonZeroU32, NonZeroUsize};

use interlock_request::ModelId;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ModelRef;

/// `[model]`: what is served, and how much of the machine it may use.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ModelConfig {
    /// The model: a built-in name, a folder, a GGUF file, `hf:org/name[@revision]` or `sim:...`.
    /// The default is small enough for any laptop, so that the first try works. What is not on
    /// this machine yet is pulled at start.
    pub reference: ModelRef,
    /// What clients call it. Set this when the reference says too much, or changes behind a name
    /// that stays; unset, the reference's own name.
    #[schemars(example = &"house-model")]
    pub name: Option<String>,
    /// Other names by which clients may ask for it: answers give its own.
    #[schemars(example = ["gpt-4o-mini"])]
    pub aliases: Vec<String>,
    /// Most tokens of prompt and output together. Turn this down when memory is short; unset, it
    /// is what the model was trained for.
    #[schemars(example = 8192)]
    pub context_max: Option<NonZeroU32>,
    /// CPU threads for the arithmetic of all models where there is no GPU. Turn this down when
    /// the machine has other work; unset, one for each physical core.
    #[schemars(example = 4)]
    pub threads: Option<NonZeroUsize>,
    /// What to do with a model whose files have keys or tensors of which this version knows nothing:
    /// `refuse` it, naming them, or `warn` and compute without them. Turn this to `warn` when you
    /// know that the model means the same without. What is known to change what is computed is
    /// refused in any case.
    pub unknown: Unknown,
}

/// What to do with a model of whose files not all is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Unknown {
    /// Do not serve the model.
    #[default]
    Refuse,
    /// Serve it without what is not known, and say so in the log.
    Warn,
}

/// `[[extra_model]]`: one more model that is served beside that of `[model]`.
///
/// One thread owns the device: the models take turns, one pass each, so each is slower while others
/// are busy. Each has a queue of its own (`waiting.requests_max`) and an equal share of the
/// memory for keys and values (`cache.memory_max`).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExtraModelConfig {
    /// The model, written as in `[model]`. It may be one that is served already, under another
    /// name: it is loaded twice then.
    #[schemars(example = &"./qwen3-4b")]
    pub reference: ModelRef,
    /// What clients call it, different from all other models' names; unset, the reference's own
    /// name.
    #[serde(default)]
    #[schemars(example = &"large")]
    pub name: Option<String>,
    /// Other names by which clients may ask for it: answers give its own.
    #[serde(default)]
    #[schemars(example = ["gpt-4o"])]
    pub aliases: Vec<String>,
    /// Most tokens of prompt and output together; unset, what the model was trained for.
    #[serde(default)]
    #[schemars(example = 8192)]
    pub context_max: Option<NonZeroU32>,
    /// What to do with a model whose files have keys or tensors of which this version knows nothing,
    /// as in `[model]`: `refuse` or `warn`.
    #[serde(default)]
    pub unknown: Unknown,
}

impl ModelConfig {
    /// No machine has more cores for one model.
    pub const THREADS_MAX: usize = 1024;

    /// The name by which clients ask for the model.
    pub fn model_id(&self) -> ModelId {
        self.name.as_ref().map_or_else(|| self.reference.model_id(), ModelId::new)
    }
}

impl ExtraModelConfig {
    /// The name by which clients ask for the model.
    pub fn model_id(&self) -> ModelId {
        self.name.as_ref().map_or_else(|| self.reference.model_id(), ModelId::new)
    }
}

/// Every problem of these models, alone and together, as key, relation, value.
pub fn problems(model: &ModelConfig, extra: &[ExtraModelConfig]) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let mut problems = Vec::new();
    let mut take = |section: &str, name: String, aliases: &[String]| {
        let aliases = aliases.iter().map(|alias| ("aliases", alias.clone()));
        for (key, name) in std::iter::once(("name", name)).chain(aliases) {
            if name.is_empty() {
                problems.push(format!("{section}.{key} must not be empty, got {name:?}"));
            } else if !seen.insert(name.clone()) {
                let unique = "must be unlike all other names of models";
                problems.push(format!("{section}.{key} {unique}, got {name:?} twice"));
            }
        }
    };
    take("model", model.model_id().to_string(), &model.aliases);
    for extra in extra {
        take("extra_model", extra.model_id().to_string(), &extra.aliases);
    }
    let most = ModelConfig::THREADS_MAX;
    if let Some(threads) = model.threads.filter(|threads| threads.get() > most) {
        problems.push(format!("model.threads must be at most {most}, got {threads}"));
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extra(reference: &str, name: Option<&str>, aliases: &[&str]) -> ExtraModelConfig {
        ExtraModelConfig {
            reference: reference.parse().expect("a reference"),
            name: name.map(str::to_owned),
            aliases: aliases.iter().map(ToString::to_string).collect(),
            context_max: None,
            unknown: Unknown::Refuse,
        }
    }

    #[test]
    fn the_same_model_may_be_served_twice_under_two_names() {
        let model = ModelConfig { reference: "sim".parse().expect("sim"), ..Default::default() };
        assert_eq!(problems(&model, &[extra("sim", Some("other"), &["more"])]), [""; 0]);
    }

    #[test]
    fn no_name_is_taken_twice_or_empty() {
        let model = ModelConfig { reference: "sim".parse().expect("sim"), ..Default::default() };
        let extras = [extra("sim", None, &[]), extra("sim:name=b", None, &["sim", "b", ""])];
        assert_eq!(
            problems(&model, &extras),
            [
                "extra_model.name must be unlike all other names of models, got \"sim\" twice",
                "extra_model.aliases must be unlike all other names of models, got \"sim\" twice",
                "extra_model.aliases must be unlike all other names of models, got \"b\" twice",
                "extra_model.aliases must not be empty, got \"\"",
            ]
        );
    }
}
