//! Model families. One file each, readable alone; attention and the MLP are repeated on purpose.

pub(crate) mod keys;
pub(crate) mod llama;
pub(crate) mod qwen2;
pub(crate) mod qwen3;
pub(crate) mod qwen3_moe;

use interlock_request::TokenId;
use mlx_rs::Dtype;
use mlx_rs::error::Exception;
use serde_json::{Map, Value};

use crate::cache::Batch;
use crate::error::LoadError;
use crate::leftover::Leftover;
use crate::rope::Scaling;
use crate::tensor::Tensor;
use crate::weights::Weights;
use keys::Keys;

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
    /// Reads a family's keys, and says which are left over.
    pub(crate) fn read(config: &Map<String, Value>) -> Result<(Self, Vec<Leftover>), NotOurs> {
        let keys = Keys::new(config);
        let family: Option<String> = keys.get("model_type").map_err(NotOurs::Wrong)?;
        let read = match family.as_deref().unwrap_or("(none)") {
            "llama" => llama::Config::read(&keys).map(Self::Llama),
            "qwen2" => qwen2::Config::read(&keys).map(Self::Qwen2),
            "qwen3" => qwen3::Config::read(&keys).map(Self::Qwen3),
            "qwen3_moe" => qwen3_moe::Config::read(&keys).map(Self::Qwen3Moe),
            other => return Err(NotOurs::Unsupported(format!("model type {other:?}"))),
        };
        let config = read.map_err(NotOurs::Wrong)?;
        config.dimensions().check().map_err(NotOurs::Wrong)?;
        // The weights' own reader accounts for these.
        keys.ignore("quantization");
        keys.ignore("quantization_config");
        Ok((config, keys.finish()))
    }

    /// Takes the family's weights, or in a survey looks whether they are there.
    pub(crate) fn load(&self, weights: &mut Weights<'_>) -> Result<Box<dyn Family>, LoadError> {
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
        if self.head_dim % 2 != 0 {
            return Err(format!(
                "head_dim is {}, must be even: the dimensions of a head are rotated in pairs",
                self.head_dim
            ));
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

/// The base of the rotation and how it is stretched. The base has a key of its own, or since
/// Transformers 5 lies within `rope_parameters`; who has both says the same twice.
fn rotation(keys: &Keys<'_>) -> Result<(Option<f64>, Option<Scaling>), String> {
    let read = |key, within| {
        let Some(table) = keys.table(key, within)? else { return Ok(None) };
        let scaling = Scaling::read(&table)?;
        keys.absorb(table.finish());
        Ok::<_, String>(Some(scaling))
    };
    let older = read("rope_scaling", "rope_scaling.")?;
    let newer = read("rope_parameters", "rope_parameters.")?;
    let own = keys.above_zero("rope_theta")?;
    let mut theta = own;
    for scaling in older.iter().chain(&newer) {
        match (theta, scaling.rope_theta) {
            (Some(one), Some(other)) if one != other => {
                return Err(format!("rope_theta is {one} in one place and {other} in another"));
            }
            (one, other) => theta = one.or(other),
        }
    }
    if let (Some(older), Some(newer)) = (&older, &newer)
        && !older.stretches_like(newer)
    {
        return Err("rope_scaling and rope_parameters differ, must be the same".to_owned());
    }
    Ok((theta, older.or(newer)))
}

/// The base where there must be one: for these families Transformers and mlx_lm assume different
/// ones where it is missing.
fn told_theta(theta: Option<f64>) -> Result<f64, String> {
    theta.ok_or_else(|| "rope_theta is missing, must be a number above zero".to_owned())
}

/// The width of a head: its own key, or the hidden size's equal part.
fn head_dim(keys: &Keys<'_>, hidden: i32, heads: i32) -> Result<i32, String> {
    match keys.get("head_dim")? {
        Some(own) => Ok(own),
        None if heads > 0 && hidden % heads != 0 => Err(format!(
            "hidden_size is {hidden}, no multiple of num_attention_heads, {heads}, and there is no \
             head_dim"
        )),
        None => Ok(hidden / heads.max(1)),
    }
}
