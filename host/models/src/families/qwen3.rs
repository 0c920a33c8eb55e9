//! Qwen3, dense: grouped-query attention, SwiGLU, RMS norm before each.
//! Differs from Llama in: queries and keys are RMS-normed by head before they are turned; head_dim
//! is given, and not hidden_size / num_attention_heads.

use mlx_rs::error::Exception;
use mlx_rs::{Array, fast};
use serde::Deserialize;

use super::{Dimensions, Family, theta};
use crate::cache::{Batch, Projected};
use crate::error::LoadError;
use crate::linear::{Embedding, Linear};
use crate::rope::{Rope, Rotation, Scaling};
use crate::weights::Weights;

/// `config.json`. Keys that do not change what is computed are left out.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Config {
    hidden_size: i32,
    num_hidden_layers: i32,
    intermediate_size: i32,
    num_attention_heads: i32,
    num_key_value_heads: Option<i32>,
    head_dim: i32,
    rms_norm_eps: f32,
    vocab_size: i32,
    max_position_embeddings: Option<i32>,
    rope_theta: Option<f64>,
    #[serde(default)]
    rope_traditional: bool,
    rope_scaling: Option<Scaling>,
    rope_parameters: Option<Scaling>,
    tie_word_embeddings: Option<bool>,
}

struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    q_norm: Array,
    k_norm: Array,
    rope: Rope,
    heads: i32,
    kv_heads: i32,
    head_dim: i32,
    eps: f32,
}

struct Mlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
}

struct Block {
    input_layernorm: Array,
    self_attn: Attention,
    post_attention_layernorm: Array,
    mlp: Mlp,
    eps: f32,
}

pub(crate) struct Qwen3 {
    embed_tokens: Embedding,
    layers: Vec<Block>,
    norm: Array,
    /// None: the embedding is the head too.
    lm_head: Option<Linear>,
    eps: f32,
}

impl Family for Qwen3 {
    fn hidden(&self, tokens: &Array, batch: &mut Batch<'_>) -> Result<Array, Exception> {
        let mut x = self.embed_tokens.forward(tokens)?; // [1, total, hidden]
        for (number, layer) in self.layers.iter().enumerate() {
            x = layer.forward(&x, number, batch)?;
        }
        Ok(x)
    }

    fn logits(&self, hidden: &Array) -> Result<Array, Exception> {
        let x = fast::rms_norm(hidden, Some(&self.norm), self.eps)?;
        match &self.lm_head {
            Some(head) => head.forward(&x),
            None => self.embed_tokens.as_linear(&x),
        } // [1, total, vocabulary]
    }
}

impl Block {
    fn forward(&self, x: &Array, layer: usize, batch: &mut Batch<'_>) -> Result<Array, Exception> {
        let normed = fast::rms_norm(x, Some(&self.input_layernorm), self.eps)?;
        let x = x.add(self.self_attn.forward(&normed, layer, batch)?)?;
        let normed = fast::rms_norm(&x, Some(&self.post_attention_layernorm), self.eps)?;
        x.add(self.mlp.forward(&normed, batch)?)
    }
}

impl Attention {
    fn forward(&self, x: &Array, layer: usize, batch: &mut Batch<'_>) -> Result<Array, Exception> {
        let total = x.dim(1);
        let split = |x: Array, heads: i32| x.reshape(&[1, total, heads, self.head_dim]);
        let norm = |x: Array, weight: &Array| fast::rms_norm(x, Some(weight), self.eps);
        let queries = split(self.q_proj.forward(x)?, self.heads)?; // [1, total, heads, head_dim]
        let keys = split(self.k_proj.forward(x)?, self.kv_heads)?; // [1, total, kv_heads, head_dim]
        let values = split(self.v_proj.forward(x)?, self.kv_heads)?;
        let queries = norm(queries, &self.q_norm)?;
        let keys = norm(keys, &self.k_norm)?;

        let projected = Projected { queries: &queries, keys: &keys, values: &values };
        let scale = (self.head_dim as f32).powf(-0.5);
        let mixed = batch.attend(layer, projected, &self.rope, scale)?; // [1, total, heads * head_dim]
        self.o_proj.forward(&mixed)
    }
}

impl Mlp {
    fn forward(&self, x: &Array, batch: &Batch<'_>) -> Result<Array, Exception> {
        let (gate, up) = (self.gate_proj.forward(x)?, self.up_proj.forward(x)?);
        self.down_proj.forward(&batch.swiglu(&gate, &up)?)
    }
}

impl Config {
    pub(crate) fn dimensions(&self) -> Dimensions {
        Dimensions {
            layers: self.num_hidden_layers,
            hidden: self.hidden_size,
            intermediate: self.intermediate_size,
            heads: self.num_attention_heads,
            kv_heads: self.num_key_value_heads.unwrap_or(self.num_attention_heads),
            head_dim: self.head_dim,
            vocabulary: self.vocab_size,
            context: self.max_position_embeddings,
        }
    }

    fn rope(&self) -> Result<Rope, String> {
        let parameters = self.rope_parameters.as_ref();
        Rope::new(&Rotation {
            dimensions: self.dimensions().head_dim,
            theta: theta(self.rope_theta, parameters, 1_000_000.0),
            traditional: self.rope_traditional,
            scaling: self.rope_scaling.as_ref().or(parameters),
            divisors: None,
        })
    }
}

impl Qwen3 {
    pub(crate) fn load(config: &Config, weights: &mut Weights<'_>) -> Result<Self, LoadError> {
        let Dimensions { layers, hidden, vocabulary, .. } = config.dimensions();
        let eps = config.rms_norm_eps;
        let tied = config.tie_word_embeddings.unwrap_or_else(|| !weights.has("lm_head.weight"));
        Ok(Self {
            embed_tokens: weights.embedding("model.embed_tokens", vocabulary, hidden)?,
            layers: (0..layers)
                .map(|number| Block::load(config, weights, &format!("model.layers.{number}")))
                .collect::<Result<_, _>>()?,
            norm: weights.vector("model.norm.weight", hidden)?,
            lm_head: if tied {
                None
            } else {
                Some(weights.linear("lm_head", hidden, vocabulary, false)?)
            },
            eps,
        })
    }
}

impl Block {
    fn load(config: &Config, weights: &mut Weights<'_>, at: &str) -> Result<Self, LoadError> {
        let Dimensions { hidden, intermediate, heads, kv_heads, head_dim, .. } =
            config.dimensions();
        let rope = config.rope().map_err(|what| weights.unsupported(what))?;
        let q_norm = weights.vector(&format!("{at}.self_attn.q_norm.weight"), head_dim)?;
        let k_norm = weights.vector(&format!("{at}.self_attn.k_norm.weight"), head_dim)?;
        let mut linear = |name: &str, inputs: i32, outputs: i32, bias: bool| {
            weights.linear(&format!("{at}.{name}"), inputs, outputs, bias)
        };
        let self_attn = Attention {
            q_proj: linear("self_attn.q_proj", hidden, heads * head_dim, false)?,
            k_proj: linear("self_attn.k_proj", hidden, kv_heads * head_dim, false)?,
            v_proj: linear("self_attn.v_proj", hidden, kv_heads * head_dim, false)?,
            o_proj: linear("self_attn.o_proj", heads * head_dim, hidden, false)?,
            q_norm,
            k_norm,
            rope,
            heads,
            kv_heads,
            head_dim,
            eps: config.rms_norm_eps,
        };
        let mlp = Mlp {
            gate_proj: linear("mlp.gate_proj", hidden, intermediate, false)?,
            up_proj: linear("mlp.up_proj", hidden, intermediate, false)?,
            down_proj: linear("mlp.down_proj", intermediate, hidden, false)?,
        };
        Ok(Self {
            input_layernorm: weights.vector(&format!("{at}.input_layernorm.weight"), hidden)?,
            self_attn,
            post_attention_layernorm: weights
                .vector(&format!("{at}.post_attention_layernorm.weight"), hidden)?,
            mlp,
            eps: config.rms_norm_eps,
        })
    }
}
