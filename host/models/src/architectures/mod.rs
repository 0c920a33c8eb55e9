//! Model architectures: one file for each, which can be read alone. Attention and the MLP are
//! repeated in each on purpose.

mod common_keys;
pub(crate) mod llama;
pub(crate) mod qwen2;
pub(crate) mod qwen3;
pub(crate) mod qwen3_moe;

use interlock_request::TokenId;
use serde_json::{Map, Value};

use crate::cache::Batch;
use crate::compute_error::ComputeError;
use crate::config_keys::Keys;
use crate::dimensions::Dimensions;
use crate::error::LoadError;
use crate::leftover::Leftover;
use crate::tensor::Tensor;
use crate::weights::WeightLoader;

/// The computation of one architecture, with its weights.
pub(crate) trait Architecture {
    /// Computes the hidden states, `[1, total, hidden]`, of the tokens of all rows, which lie one row
    /// after another. The batch knows each row's tokens, positions and pages.
    fn hidden(&self, tokens: &[TokenId], batch: &mut Batch<'_>) -> Result<Tensor, ComputeError>;

    /// Computes the logits, `[1, total, vocabulary]`, of hidden states.
    fn logits(&self, hidden: &Tensor) -> Result<Tensor, ComputeError>;
}

/// An architecture's configuration, read from `config.json`'s keys.
pub(crate) enum ArchitectureConfig {
    Llama(llama::LlamaConfig),
    Qwen2(qwen2::Qwen2Config),
    Qwen3(qwen3::Qwen3Config),
    Qwen3Moe(qwen3_moe::Qwen3MoeConfig),
}

pub(crate) const SUPPORTED: &str = "model types llama, qwen2, qwen3 and qwen3_moe";

/// Why a configuration is not one of ours.
pub(crate) enum NotOurs {
    /// An architecture that this crate does not compute. The text names what was found.
    Unsupported(String),
    /// A supported architecture whose configuration has a key that is missing or wrong, which the
    /// text names.
    Wrong(String),
}

impl ArchitectureConfig {
    /// Reads the keys that `model_type` calls for, and returns the keys that were left over.
    pub(crate) fn read(config: &Map<String, Value>) -> Result<(Self, Vec<Leftover>), NotOurs> {
        let keys = Keys::new(config);
        let model_type: Option<String> = keys.get("model_type").map_err(NotOurs::Wrong)?;
        let read = match model_type.as_deref().unwrap_or("(none)") {
            "llama" => llama::LlamaConfig::read(&keys).map(Self::Llama),
            "qwen2" => qwen2::Qwen2Config::read(&keys).map(Self::Qwen2),
            "qwen3" => qwen3::Qwen3Config::read(&keys).map(Self::Qwen3),
            "qwen3_moe" => qwen3_moe::Qwen3MoeConfig::read(&keys).map(Self::Qwen3Moe),
            other => return Err(NotOurs::Unsupported(format!("model type {other:?}"))),
        };
        let config = read.map_err(NotOurs::Wrong)?;
        config.dimensions().check().map_err(NotOurs::Wrong)?;
        // The weights' own reader accounts for these.
        keys.ignore("quantization");
        keys.ignore("quantization_config");
        Ok((config, keys.finish()))
    }

    /// Loads the architecture's weights, or in a survey checks that they are there.
    pub(crate) fn load(
        &self,
        weights: &mut WeightLoader<'_>,
    ) -> Result<Box<dyn Architecture>, LoadError> {
        Ok(match self {
            Self::Llama(config) => Box::new(llama::Llama::load(config, weights)?),
            Self::Qwen2(config) => Box::new(qwen2::Qwen2::load(config, weights)?),
            Self::Qwen3(config) => Box::new(qwen3::Qwen3::load(config, weights)?),
            Self::Qwen3Moe(config) => Box::new(qwen3_moe::Qwen3Moe::load(config, weights)?),
        })
    }

    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Llama(_) => "llama",
            Self::Qwen2(_) => "qwen2",
            Self::Qwen3(_) => "qwen3",
            Self::Qwen3Moe(_) => "qwen3_moe",
        }
    }

    pub(crate) fn dimensions(&self) -> Dimensions {
        match self {
            Self::Llama(config) => config.dimensions(),
            Self::Qwen2(config) => config.dimensions(),
            Self::Qwen3(config) => config.dimensions(),
            Self::Qwen3Moe(config) => config.dimensions(),
        }
    }
}
