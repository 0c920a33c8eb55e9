//! Qwen2 (and 2.5), dense: grouped-query attention, SwiGLU, RMS norm before each.
//! Differs from Llama in: biases on queries, keys and values, and there only; rope_theta 1,000,000.

use interlock_request::TokenId;

use super::{Architecture, common_keys};
use crate::cache::{Batch, Qkv};
use crate::compute_error::ComputeError;
use crate::config_keys::Keys;
use crate::dimensions::Dimensions;
use crate::error::LoadError;
use crate::linear::{self, Embedding, Linear};
use crate::norm::Norm;
use crate::rope::{Rope, RopeConfig, RopeScaling};
use crate::tensor::Tensor;
use crate::weights::WeightLoader;

/// The keys of `config.json` that say what is computed.
#[derive(Debug, Clone)]
pub(crate) struct Qwen2Config {
    hidden_size: i32,
    num_hidden_layers: i32,
    intermediate_size: i32,
    num_attention_heads: i32,
    num_key_value_heads: i32,
    head_dim: i32,
    rms_norm_eps: f32,
    vocab_size: i32,
    max_position_embeddings: Option<i32>,
    rope_theta: f64,
    rope_traditional: bool,
    rope_scaling: Option<RopeScaling>,
    tie_word_embeddings: Option<bool>,
}

struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    rope: Rope,
    head_dim: i32,
}

struct Mlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
}

struct Block {
    input_layernorm: Norm,
    self_attn: Attention,
    post_attention_layernorm: Norm,
    mlp: Mlp,
}

pub(crate) struct Qwen2 {
    embed_tokens: Embedding,
    layers: Vec<Block>,
    norm: Norm,
    /// None if the embedding is the output head too.
    lm_head: Option<Linear>,
}

impl Architecture for Qwen2 {
    fn hidden(&self, tokens: &[TokenId], batch: &mut Batch<'_>) -> Result<Tensor, ComputeError> {
        let mut x = self.embed_tokens.forward(tokens)?; // [1, total, hidden]
        for (number, layer) in self.layers.iter().enumerate() {
            x = layer.forward(&x, number, batch)?;
        }
        Ok(x)
    }

    fn logits(&self, hidden: &Tensor) -> Result<Tensor, ComputeError> {
        let x = self.norm.forward(hidden)?;
        match &self.lm_head {
            Some(head) => head.forward(&x),
            None => self.embed_tokens.as_linear(&x),
        } // [1, total, vocabulary]
    }
}

impl Block {
    fn forward(
        &self,
        x: &Tensor,
        layer: usize,
        batch: &mut Batch<'_>,
    ) -> Result<Tensor, ComputeError> {
        let mixed = self.self_attn.forward(&self.input_layernorm.forward(x)?, layer, batch)?;
        let x = self.self_attn.o_proj.with_residual(x, &mixed)?;
        let activated = self.mlp.forward(&self.post_attention_layernorm.forward(&x)?)?;
        self.mlp.down_proj.with_residual(&x, &activated)
    }
}

impl Attention {
    /// The input of `o_proj`.
    fn forward(
        &self,
        x: &Tensor,
        layer: usize,
        batch: &mut Batch<'_>,
    ) -> Result<Tensor, ComputeError> {
        let [queries, keys, values] = linear::qkv(x, [&self.q_proj, &self.k_proj, &self.v_proj])?; // [1, total, heads * head_dim]

        let qkv = Qkv { queries: &queries, keys: &keys, values: &values };
        let scale = (self.head_dim as f32).powf(-0.5);
        batch.attend(layer, qkv, &self.rope, scale) // [1, total, heads * head_dim]
    }
}

impl Mlp {
    /// The input of `down_proj`.
    fn forward(&self, x: &Tensor) -> Result<Tensor, ComputeError> {
        linear::swiglu(x, &self.gate_proj, &self.up_proj)
    }
}

impl Qwen2Config {
    pub(crate) fn read(keys: &Keys<'_>) -> Result<Self, String> {
        let (hidden_size, num_attention_heads) =
            (keys.need("hidden_size")?, keys.need("num_attention_heads")?);
        let (rope_theta, rope_scaling) = common_keys::rotation(keys)?;
        let config = Self {
            hidden_size,
            num_hidden_layers: keys.need("num_hidden_layers")?,
            intermediate_size: keys.need("intermediate_size")?,
            num_attention_heads,
            num_key_value_heads: keys.get("num_key_value_heads")?.unwrap_or(num_attention_heads),
            head_dim: common_keys::head_dim(keys, hidden_size, num_attention_heads)?,
            rms_norm_eps: keys.epsilon("rms_norm_eps")?,
            vocab_size: keys.need("vocab_size")?,
            max_position_embeddings: keys.get("max_position_embeddings")?,
            rope_theta: common_keys::required_theta(rope_theta)?,
            rope_traditional: keys.get("rope_traditional")?.unwrap_or(false),
            rope_scaling,
            tie_word_embeddings: keys.get("tie_word_embeddings")?,
        };
        // The architecture itself says which biases there are, so these keys change nothing.
        keys.ignore("attention_bias");
        keys.ignore("qkv_bias");
        let (layers, context) = (config.num_hidden_layers, config.max_position_embeddings);
        let windowed = keys.get("use_sliding_window")?.unwrap_or(false);
        let first = keys.get("max_window_layers")?.unwrap_or(common_keys::FULL_LAYERS);
        common_keys::window(keys, windowed, first, (layers, context))?;
        common_keys::layer_types(keys, layers)?;
        Ok(config)
    }

    pub(crate) fn dimensions(&self) -> Dimensions {
        Dimensions {
            layers: self.num_hidden_layers,
            hidden: self.hidden_size,
            intermediate: self.intermediate_size,
            heads: self.num_attention_heads,
            kv_heads: self.num_key_value_heads,
            head_dim: self.head_dim,
            vocabulary: self.vocab_size,
            context: self.max_position_embeddings,
        }
    }

    fn rope(&self) -> Result<Rope, String> {
        Rope::new(&RopeConfig {
            dimensions: self.dimensions().head_dim,
            theta: self.rope_theta,
            traditional: self.rope_traditional,
            scaling: self.rope_scaling.as_ref(),
            divisors: None,
        })
    }
}

impl Qwen2 {
    pub(crate) fn load(
        config: &Qwen2Config,
        weights: &mut WeightLoader<'_>,
    ) -> Result<Self, LoadError> {
        let Dimensions { layers, hidden, vocabulary, .. } = config.dimensions();
        let eps = config.rms_norm_eps;
        Ok(Self {
            embed_tokens: weights.embedding("model.embed_tokens", vocabulary, hidden)?,
            layers: (0..layers)
                .map(|number| Block::load(config, weights, &format!("model.layers.{number}")))
                .collect::<Result<_, _>>()?,
            norm: weights.norm("model.norm", hidden, eps)?,
            lm_head: weights.head(config.tie_word_embeddings, hidden, vocabulary)?,
        })
    }
}

impl Block {
    fn load(
        config: &Qwen2Config,
        weights: &mut WeightLoader<'_>,
        at: &str,
    ) -> Result<Self, LoadError> {
        let Dimensions { hidden, intermediate, heads, kv_heads, head_dim, .. } =
            config.dimensions();
        let eps = config.rms_norm_eps;
        let rope = config.rope().map_err(|what| weights.unsupported(what))?;
        let mut linear = |name: &str, inputs: i32, outputs: i32, bias: bool| {
            weights.linear(&format!("{at}.{name}"), inputs, outputs, bias)
        };
        let self_attn = Attention {
            q_proj: linear("self_attn.q_proj", hidden, heads * head_dim, true)?,
            k_proj: linear("self_attn.k_proj", hidden, kv_heads * head_dim, true)?,
            v_proj: linear("self_attn.v_proj", hidden, kv_heads * head_dim, true)?,
            o_proj: linear("self_attn.o_proj", heads * head_dim, hidden, false)?,
            rope,
            head_dim,
        };
        let mlp = Mlp {
            gate_proj: linear("mlp.gate_proj", hidden, intermediate, false)?,
            up_proj: linear("mlp.up_proj", hidden, intermediate, false)?,
            down_proj: linear("mlp.down_proj", intermediate, hidden, false)?,
        };
        Ok(Self {
            input_layernorm: weights.norm(&format!("{at}.input_layernorm"), hidden, eps)?,
            self_attn,
            post_attention_layernorm: weights.norm(
                &format!("{at}.post_attention_layernorm"),
                hidden,
                eps,
            )?,
            mlp,
        })
    }
}
