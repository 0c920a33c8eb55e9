//! A model's sizes: what the cache, the checks and `inspect` need of its configuration.

use mlx_rs::Dtype;

/// The sizes of a model, as its configuration has them.
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

impl Dimensions {
    /// Everything above zero and within bounds that keep products of two inside an i32.
    pub(crate) fn check(&self) -> Result<(), String> {
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
