//! Model families. One file each, readable alone; attention and the MLP are repeated on purpose.

pub(crate) mod llama;
pub(crate) mod qwen2;
pub(crate) mod qwen3;
pub(crate) mod qwen3_moe;

use interlock_request::TokenId;
use mlx_rs::Dtype;
use mlx_rs::error::Exception;
use serde_json::{Map, Value};

use crate::cache::Batch;
use crate::rope::Scaling;
use crate::tensor::Tensor;

/// What every family can do.
pub(crate) trait Family {
    /// Tokens, all rows' one after another, to hidden states of `[1, total, hidden]`. Which token is
    /// whose, and where, the batch knows.
    fn hidden(&self, tokens: &[TokenId], batch: &mut Batch<'_>) -> Result<Tensor, Exception>;

    /// Hidden states to logits of `[1, total, vocabulary]`.
    fn logits(&self, hidden: &Tensor) -> Result<Tensor, Exception>;
}

/// A family's sizes, for caches, checks and `inspect`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Dimensions {
    pub(crate) layers: i32,
    pub(crate) hidden: i32,
    pub(crate) intermediate: i32,
    pub(crate) heads: i32,
    pub(crate) kv_heads: i32,
    pub(crate) head_dim: i32,
    pub(crate) vocabulary: i32,
    /// By the configuration; none if it does not say.
    pub(crate) context: Option<i32>,
}

/// A family's configuration, read from `config.json`'s keys.
pub(crate) enum Config {
    Llama(llama::Config),
    Qwen2(qwen2::Config),
    Qwen3(qwen3::Config),
    Qwen3Moe(qwen3_moe::Config),
}

pub(crate) const SUPPORTED: &str = "model types llama, qwen2, qwen3 and qwen3_moe";

/// Why a configuration is not one of ours.
pub(crate) enum NotOurs {
    /// Nothing we have.
    Unsupported(String),
    /// One of ours, but something in it is wrong.
    Wrong(String),
}

impl Config {
    pub(crate) fn read(config: &Map<String, Value>) -> Result<Self, NotOurs> {
        let family = config.get("model_type").and_then(Value::as_str).unwrap_or("(none)");
        let whole = Value::Object(config.clone());
        let wrong = |bad: serde_json::Error| NotOurs::Wrong(bad.to_string());
        let config = match family {
            "llama" => Self::Llama(serde_json::from_value(whole).map_err(wrong)?),
            "qwen2" => Self::Qwen2(serde_json::from_value(whole).map_err(wrong)?),
            "qwen3" => Self::Qwen3(serde_json::from_value(whole).map_err(wrong)?),
            "qwen3_moe" => {
                let config: qwen3_moe::Config = serde_json::from_value(whole).map_err(wrong)?;
                config.check().map_err(NotOurs::Wrong)?;
                Self::Qwen3Moe(config)
            }
            other => return Err(NotOurs::Unsupported(format!("model type {other:?}"))),
        };
        config.dimensions().check().map_err(NotOurs::Wrong)?;
        Ok(config)
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

impl Dimensions {
    /// Everything above zero and within bounds that keep products of two inside an i32.
    fn check(&self) -> Result<(), String> {
        let sides = [
            ("num_hidden_layers", self.layers, 1 << 10),
            ("hidden_size", self.hidden, 1 << 17),
            ("intermediate_size", self.intermediate, 1 << 20),
            ("num_attention_heads", self.heads, 1 << 12),
            ("num_key_value_heads", self.kv_heads, 1 << 12),
            ("head_dim", self.head_dim, 1 << 12),
            ("vocab_size", self.vocabulary, 1 << 24),
            ("max_position_embeddings", self.context.unwrap_or(1), i32::MAX),
        ];
        for (key, value, most) in sides {
            if !(1..=most).contains(&value) {
                return Err(format!("{key} is {value}, must be 1 to {most}"));
            }
        }
        if self.heads % self.kv_heads != 0 {
            return Err(format!(
                "num_attention_heads is {}, no multiple of num_key_value_heads, {}",
                self.heads, self.kv_heads
            ));
        }
        Ok(())
    }

    /// Bytes of keys and values for one position.
    pub(crate) fn kv_bytes_per_token(&self, dtype: Dtype) -> u64 {
        let numbers = 2 * i64::from(self.layers) * i64::from(self.kv_heads * self.head_dim);
        let size = if dtype == Dtype::Float32 { 4 } else { 2 };
        numbers.unsigned_abs() * size
    }
}

/// The base of the rotation: its own key, or since Transformers 5 one within `rope_parameters`.
fn theta(own: Option<f64>, parameters: Option<&Scaling>, otherwise: f64) -> f64 {
    own.or_else(|| parameters?.rope_theta).unwrap_or(otherwise)
}
