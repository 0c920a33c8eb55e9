//! Qwen3 as a mixture of experts.
//! Differs from Qwen3 in: most layers have a mixture of experts in the place of the MLP.

use interlock_request::TokenId;

use super::{Architecture, common_keys};
use crate::cache::{Batch, Qkv};
use crate::compute_error::ComputeError;
use crate::config_keys::Keys;
use crate::dimensions::Dimensions;
use crate::error::LoadError;
use crate::linear::{self, Embedding, Linear};
use crate::mixture::MoeBlock;
use crate::norm::Norm;
use crate::rope::{Rope, RopeConfig, RopeScaling};
use crate::tensor::Tensor;
use crate::weights::WeightLoader;

/// The keys of `config.json` that say what is computed.
#[derive(Debug, Clone)]
pub(crate) struct Qwen3MoeConfig {
    hidden_size: i32,
    num_hidden_layers: i32,
    intermediate_size: i32,
    num_attention_heads: i32,
    num_key_value_heads: i32,
    head_dim: i32,
    rms_norm_eps: f32,
    attention_bias: bool,
    vocab_size: i32,
    max_position_embeddings: Option<i32>,
    rope_theta: f64,
    rope_traditional: bool,
    rope_scaling: Option<RopeScaling>,
    tie_word_embeddings: Option<bool>,
    num_experts: i32,
    num_experts_per_tok: i32,
    moe_intermediate_size: i32,
    /// A layer `l` has experts if `l + 1` is a multiple of this.
    decoder_sparse_step: i32,
    /// Layers that have a dense MLP all the same.
    mlp_only_layers: Vec<i32>,
    norm_topk_prob: bool,
}

struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    q_norm: Norm,
    k_norm: Norm,
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
    mlp: FeedForward,
}

enum FeedForward {
    Dense(Mlp),
    Sparse(MoeBlock),
}

pub(crate) struct Qwen3Moe {
    embed_tokens: Embedding,
    layers: Vec<Block>,
    norm: Norm,
    /// None if the embedding is the output head too.
    lm_head: Option<Linear>,
}

impl Architecture for Qwen3Moe {
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
        let normed = self.post_attention_layernorm.forward(&x)?;
        match &self.mlp {
            FeedForward::Dense(mlp) => mlp.down_proj.with_residual(&x, &mlp.forward(&normed)?),
            FeedForward::Sparse(experts) => experts.with_residual(&x, &normed),
        }
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
        let (queries, keys) = (self.q_norm.forward(&queries)?, self.k_norm.forward(&keys)?); // by head

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

impl Qwen3MoeConfig {
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
            head_dim: keys.get("head_dim")?.unwrap_or(common_keys::QWEN3_HEAD_DIM),
            rms_norm_eps: keys.epsilon("rms_norm_eps")?,
            vocab_size: keys.need("vocab_size")?,
            max_position_embeddings: keys.get("max_position_embeddings")?,
            attention_bias: keys.get("attention_bias")?.unwrap_or(false),
            rope_theta: common_keys::required_theta(rope_theta)?,
            rope_traditional: keys.get("rope_traditional")?.unwrap_or(false),
            rope_scaling,
            tie_word_embeddings: keys.get("tie_word_embeddings")?,
            num_experts: keys.either("num_experts", "num_local_experts")?,
            num_experts_per_tok: keys.need("num_experts_per_tok")?,
            moe_intermediate_size: keys.need("moe_intermediate_size")?,
            decoder_sparse_step: keys.get("decoder_sparse_step")?.unwrap_or(1),
            mlp_only_layers: keys.get("mlp_only_layers")?.unwrap_or_default(),
            norm_topk_prob: keys.get("norm_topk_prob")?.unwrap_or(false),
        };
        config.check()?;
        let (layers, context) = (config.num_hidden_layers, config.max_position_embeddings);
        let windowed = keys.get("use_sliding_window")?.unwrap_or(false);
        // Transformers does not ask from which layer on, in this architecture.
        keys.ignore("max_window_layers");
        common_keys::window(keys, windowed, 0, (layers, context))?;
        common_keys::layer_types(keys, layers)?;
        common_keys::head_norms(keys)?;
        Ok(config)
    }

    /// The mixture's own sizes; the others' are checked as everyone's.
    fn check(&self) -> Result<(), String> {
        let sides = [
            ("num_experts", self.num_experts, 1 << 12),
            ("num_experts_per_tok", self.num_experts_per_tok, self.num_experts),
            ("moe_intermediate_size", self.moe_intermediate_size, 1 << 20),
            ("decoder_sparse_step", self.decoder_sparse_step, 1 << 10),
        ];
        for (key, value, most) in sides {
            if !(1..=most).contains(&value) {
                return Err(format!("{key} is {value}, must be 1 to {most}"));
            }
        }
        Ok(())
    }

    fn sparse(&self, layer: i32) -> bool {
        !self.mlp_only_layers.contains(&layer) && (layer + 1) % self.decoder_sparse_step == 0
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

impl Qwen3Moe {
    pub(crate) fn load(
        config: &Qwen3MoeConfig,
        weights: &mut WeightLoader<'_>,
    ) -> Result<Self, LoadError> {
        let Dimensions { layers, hidden, vocabulary, .. } = config.dimensions();
        let eps = config.rms_norm_eps;
        Ok(Self {
            embed_tokens: weights.embedding("model.embed_tokens", vocabulary, hidden)?,
            layers: (0..layers)
                .map(|number| Block::load(config, weights, number))
                .collect::<Result<_, _>>()?,
            norm: weights.norm("model.norm", hidden, eps)?,
            lm_head: weights.head(config.tie_word_embeddings, hidden, vocabulary)?,
        })
    }
}

impl Block {
    fn load(
        config: &Qwen3MoeConfig,
        weights: &mut WeightLoader<'_>,
        layer: i32,
    ) -> Result<Self, LoadError> {
        let at = format!("model.layers.{layer}");
        let Dimensions { hidden, intermediate, heads, kv_heads, head_dim, .. } =
            config.dimensions();
        let eps = config.rms_norm_eps;
        let rope = config.rope().map_err(|what| weights.unsupported(what))?;
        let q_norm = weights.norm(&format!("{at}.self_attn.q_norm"), head_dim, eps)?;
        let k_norm = weights.norm(&format!("{at}.self_attn.k_norm"), head_dim, eps)?;
        let bias = config.attention_bias;
        let mut linear = |name: &str, inputs: i32, outputs: i32, bias: bool| {
            weights.linear(&format!("{at}.{name}"), inputs, outputs, bias)
        };
        let self_attn = Attention {
            q_proj: linear("self_attn.q_proj", hidden, heads * head_dim, bias)?,
            k_proj: linear("self_attn.k_proj", hidden, kv_heads * head_dim, bias)?,
            v_proj: linear("self_attn.v_proj", hidden, kv_heads * head_dim, bias)?,
            o_proj: linear("self_attn.o_proj", heads * head_dim, hidden, bias)?,
            q_norm,
            k_norm,
            rope,
            head_dim,
        };
        let mlp = if config.sparse(layer) {
            let router = linear("mlp.gate", hidden, config.num_experts, false)?;
            let (module, apart) = (format!("{at}.mlp.switch_mlp"), format!("{at}.mlp.experts"));
            let sizes = [hidden, config.moe_intermediate_size];
            FeedForward::Sparse(MoeBlock {
                router,
                mlps: weights.mlps(&module, &apart, config.num_experts, sizes)?,
                experts_per_token: config.num_experts_per_tok.unsigned_abs() as usize,
                normalize: config.norm_topk_prob,
            })
        } else {
            FeedForward::Dense(Mlp {
                gate_proj: linear("mlp.gate_proj", hidden, intermediate, false)?,
                up_proj: linear("mlp.up_proj", hidden, intermediate, false)?,
                down_proj: linear("mlp.down_proj", intermediate, hidden, false)?,
            })
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
