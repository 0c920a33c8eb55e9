//! Reads a configuration by key and keeps book of what was asked for.
//!
//! # Invariants
//!
//! - A key that is neither asked for, nor known to change nothing, nor known to mean what we
//!   compute, is a [`Leftover`] when [`Keys::finish`] is called.
//! - `null` means that a key is not there; `false` means not, for every key but those of
//!   [`COMPUTED`] that say otherwise.

use std::cell::RefCell;
use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::leftover::{Computed, Leftover, shown};

/// Keys that change what is computed, in these families or in their relatives, for those families
/// that do not read them.
const COMPUTED: &[(&str, Computed)] = &[
    ("hidden_act", Computed::Text(&["silu", "swish"])),
    ("hidden_activation", Computed::Text(&["silu", "swish"])),
    ("activation_function", Computed::Text(&["silu", "swish"])),
    ("mlp_activation", Computed::Text(&["silu", "swish"])),
    ("position_embedding_type", Computed::Text(&["rope"])),
    ("norm_type", Computed::Text(&["rms", "rmsnorm", "RMSNorm"])),
    ("scoring_func", Computed::Text(&["softmax"])),
    // Rotation.
    ("partial_rotary_factor", Computed::Number(1.0)),
    ("rotary_pct", Computed::Number(1.0)),
    ("rotary_percent", Computed::Number(1.0)),
    ("rope_percent", Computed::Number(1.0)),
    ("rope_pct", Computed::Number(1.0)),
    ("use_mrope", Computed::Bool(false)),
    ("use_rope", Computed::Bool(true)),
    ("use_rotary_embeddings", Computed::Bool(true)),
    ("rope_interleaved", Computed::Bool(false)),
    ("alibi", Computed::Bool(false)),
    ("no_rope_layers", Computed::Nothing),
    ("no_rope_layer_interval", Computed::Nothing),
    // Attention.
    ("is_causal", Computed::Bool(true)),
    ("causal", Computed::Bool(true)),
    ("use_sliding_window", Computed::Bool(false)),
    ("sliding_window", Computed::Nothing),
    ("sliding_window_pattern", Computed::Nothing),
    ("attention_chunk_size", Computed::Nothing),
    ("attn_logit_softcapping", Computed::Nothing),
    ("final_logit_softcapping", Computed::Nothing),
    ("query_pre_attn_scalar", Computed::Nothing),
    ("attention_multiplier", Computed::Nothing),
    ("clip_qkv", Computed::Nothing),
    ("v_head_dim", Computed::Nothing),
    ("attention_sinks", Computed::Nothing),
    ("kv_lora_rank", Computed::Nothing),
    ("q_lora_rank", Computed::Nothing),
    ("attention_bias", Computed::Bool(false)),
    ("attention_out_bias", Computed::Bool(false)),
    ("qkv_bias", Computed::Bool(false)),
    ("mlp_bias", Computed::Bool(false)),
    ("lm_head_bias", Computed::Bool(false)),
    ("use_qk_norm", Computed::Bool(false)),
    ("qk_norm", Computed::Bool(false)),
    ("qk_layernorm", Computed::Bool(false)),
    // Scales.
    ("logit_scale", Computed::Number(1.0)),
    ("logits_scaling", Computed::Number(1.0)),
    ("embedding_multiplier", Computed::Number(1.0)),
    ("residual_multiplier", Computed::Number(1.0)),
    ("lm_head_multiplier", Computed::Number(1.0)),
    ("routed_scaling_factor", Computed::Number(1.0)),
    ("scale_emb", Computed::Number(1.0)),
    ("scale_depth", Computed::Nothing),
    ("dim_model_base", Computed::Nothing),
    // Other structures.
    ("parallel_attn", Computed::Bool(false)),
    ("use_parallel_residual", Computed::Bool(false)),
    ("is_encoder_decoder", Computed::Bool(false)),
    ("add_cross_attention", Computed::Bool(false)),
    ("num_experts", Computed::Nothing),
    ("num_local_experts", Computed::Nothing),
    ("n_routed_experts", Computed::Nothing),
    ("n_shared_experts", Computed::Nothing),
    ("shared_expert_intermediate_size", Computed::Nothing),
    ("num_nextn_predict_layers", Computed::Nothing),
    ("per_layer_config", Computed::Nothing),
    ("vision_config", Computed::Nothing),
    ("audio_config", Computed::Nothing),
    ("text_config", Computed::Nothing),
    ("pruned_heads", Computed::Nothing),
];

/// Keys that change nothing that is computed for a next token, and why.
const IGNORED: &[(&str, &[&str])] = &[
    (
        "names, versions and where it came from",
        &[
            "_commit_hash",
            "_name_or_path",
            "architectures",
            "auto_map",
            "custom_pipelines",
            "is_llama_config",
            "library_name",
            "license",
            "name_or_path",
            "quantization_note",
            "task_specific_params",
            "transformers.js_config",
            "transformers_version",
            "unsloth_fixed",
            "unsloth_version",
            "model_name",
        ],
    ),
    (
        "the type in which others compute: ours is that of the weights",
        &["dtype", "torch_dtype", "use_bfloat16"],
    ),
    (
        "how others compute the same",
        &[
            "_attn_implementation",
            "_attn_implementation_autoset",
            "_attn_implementation_internal",
            "_experts_implementation",
            "_flash_attn_2_enabled",
            "attn_implementation",
            "cache_implementation",
            "chunk_size_feed_forward",
            "pretraining_tp",
            "torchscript",
            "use_cache",
            "use_flash_attention",
            "use_flash_attention_2",
            "use_flash_attn",
            "use_return_dict",
            "return_dict",
            "return_dict_in_generate",
            "tf_legacy_loss",
            "base_model_tp_plan",
        ],
    ),
    (
        "training",
        &[
            "attention_dropout",
            "attn_dropout",
            "attn_pdrop",
            "classifier_dropout",
            "embd_pdrop",
            "embedding_dropout",
            "gradient_checkpointing",
            "hidden_dropout",
            "hidden_dropout_prob",
            "attention_probs_dropout_prob",
            "loss_type",
            "neftune_noise_alpha",
            "initializer_range",
            "output_router_logits",
            "resid_pdrop",
            "router_aux_loss_coef",
            "router_jitter_noise",
            "z_loss_coefficient",
        ],
    ),
    (
        "heads that classify, which have tensors of their own",
        &["finetuning_task", "id2label", "label2id", "num_labels", "problem_type"],
    ),
    (
        "outputs other than the logits",
        &["output_attentions", "output_hidden_states", "output_scores"],
    ),
    (
        "encoders and decoders, which need is_encoder_decoder",
        &["cross_attention_hidden_size", "is_decoder", "tie_encoder_decoder"],
    ),
    (
        "tokens: the text side's",
        &[
            "bos_token_id",
            "decoder_start_token_id",
            "eos_token_id",
            "pad_token_id",
            "prefix",
            "sep_token_id",
            "unk_token_id",
            "tokenizer_class",
            "tokenizer_model_max_length",
        ],
    ),
    (
        "lengths that bound and do not compute",
        &["max_length", "max_sequence_length", "min_length", "model_max_length"],
    ),
    (
        "sampling, for which generation_config.json is read",
        &[
            "bad_words_ids",
            "begin_suppress_tokens",
            "diversity_penalty",
            "do_sample",
            "early_stopping",
            "encoder_no_repeat_ngram_size",
            "exponential_decay_length_penalty",
            "forced_bos_token_id",
            "forced_eos_token_id",
            "length_penalty",
            "no_repeat_ngram_size",
            "num_beam_groups",
            "num_beams",
            "num_return_sequences",
            "remove_invalid_values",
            "repetition_penalty",
            "suppress_tokens",
            "temperature",
            "top_k",
            "top_p",
            "typical_p",
        ],
    ),
];

/// A type that a key's value can have, and what it is called.
pub(crate) trait Read: Sized {
    const KIND: &str;
    fn read(value: &Value) -> Option<Self>;
}

impl Read for i32 {
    const KIND: &str = "a whole number below 2^31";
    fn read(value: &Value) -> Option<Self> {
        Self::try_from(value.as_i64()?).ok()
    }
}

impl Read for f64 {
    const KIND: &str = "a number";
    fn read(value: &Value) -> Option<Self> {
        value.as_f64().filter(|number| number.is_finite())
    }
}

impl Read for bool {
    const KIND: &str = "true or false";
    fn read(value: &Value) -> Option<Self> {
        value.as_bool()
    }
}

impl Read for String {
    const KIND: &str = "a text";
    fn read(value: &Value) -> Option<Self> {
        value.as_str().map(str::to_owned)
    }
}

impl<T: Read> Read for Vec<T> {
    const KIND: &str = "a list";
    fn read(value: &Value) -> Option<Self> {
        value.as_array()?.iter().map(T::read).collect()
    }
}

/// A configuration, or a table in one.
pub(crate) struct Keys<'a> {
    map: &'a Map<String, Value>,
    /// What stands before a key in messages: nothing, or `rope_scaling.`.
    within: &'static str,
    asked: RefCell<BTreeSet<&'static str>>,
    leftovers: RefCell<Vec<Leftover>>,
}

impl<'a> Keys<'a> {
    pub(crate) fn new(map: &'a Map<String, Value>) -> Self {
        Self { map, within: "", asked: RefCell::default(), leftovers: RefCell::default() }
    }

    /// A key's value, if it is there and not null. From then on it counts as used.
    pub(crate) fn value(&self, key: &'static str) -> Option<&'a Value> {
        self.asked.borrow_mut().insert(key);
        self.map.get(key).filter(|value| !value.is_null())
    }

    pub(crate) fn get<T: Read>(&self, key: &'static str) -> Result<Option<T>, String> {
        let read = |value| {
            T::read(value).ok_or_else(|| self.wrong(key, value, &format!("must be {}", T::KIND)))
        };
        self.value(key).map(read).transpose()
    }

    pub(crate) fn need<T: Read>(&self, key: &'static str) -> Result<T, String> {
        self.get(key)?
            .ok_or_else(|| format!("{}{key} is missing, must be {}", self.within, T::KIND))
    }

    /// A number above zero.
    pub(crate) fn above_zero(&self, key: &'static str) -> Result<Option<f64>, String> {
        match self.get::<f64>(key)? {
            Some(number) if number <= 0.0 => {
                Err(format!("{}{key} is {number}, not above zero", self.within))
            }
            number => Ok(number),
        }
    }

    /// What keeps a norm from dividing by zero.
    pub(crate) fn epsilon(&self, key: &'static str) -> Result<f32, String> {
        let told: f64 = self.need(key)?;
        let epsilon = told as f32;
        if epsilon.is_finite() && epsilon >= 0.0 {
            return Ok(epsilon);
        }
        Err(format!("{}{key} is {told}, must be a small number and not below zero", self.within))
    }

    /// A key that has two names: both may be there, if they say the same.
    pub(crate) fn either(&self, key: &'static str, other: &'static str) -> Result<i32, String> {
        match (self.get::<i32>(key)?, self.get::<i32>(other)?) {
            (Some(one), Some(two)) if one != two => {
                Err(format!("{key} is {one} and {other} is {two}, must be the same"))
            }
            (None, Some(value)) => Ok(value),
            (Some(value), _) => Ok(value),
            (None, None) => self.need(key),
        }
    }

    /// A table within, whose keys are its reader's to account for.
    pub(crate) fn table(
        &self,
        key: &'static str,
        within: &'static str,
    ) -> Result<Option<Keys<'a>>, String> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Keys { within, ..Keys::new(map) })),
            Some(other) => Err(self.wrong(key, other, "must be an object")),
        }
    }

    /// Whether a key is there, if only as null.
    pub(crate) fn mentions(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// A key changes what is computed, in a way that we do not have.
    pub(crate) fn differs(&self, key: &str, value: &Value, computed: impl Into<String>) {
        let key = format!("{}{key}", self.within);
        self.leftovers.borrow_mut().push(Leftover::differs(&key, value, computed));
    }

    /// Changes nothing for this family.
    pub(crate) fn ignore(&self, key: &'static str) {
        self.asked.borrow_mut().insert(key);
    }

    pub(crate) fn wrong(&self, key: &str, value: &Value, must: &str) -> String {
        format!("{}{key} is {}, {must}", self.within, shown(value))
    }

    /// Takes over what a table had left.
    pub(crate) fn absorb(&self, leftovers: Vec<Leftover>) {
        self.leftovers.borrow_mut().extend(leftovers);
    }

    /// All that was not asked for, and is not known to change nothing.
    pub(crate) fn finish(self) -> Vec<Leftover> {
        let Self { map, within, asked, leftovers } = self;
        let (asked, mut leftovers) = (asked.into_inner(), leftovers.into_inner());
        let top = within.is_empty();
        for (key, value) in map {
            if value.is_null() || asked.contains(&**key) {
                continue;
            }
            let computed = COMPUTED.iter().find(|(known, _)| known == key);
            let computed = computed.map(|(_, computed)| computed);
            let ignored = top && IGNORED.iter().any(|(_, keys)| keys.contains(&&**key));
            let shown = format!("{within}{key}");
            leftovers.extend(Leftover::of(&shown, value, computed, ignored));
        }
        leftovers
    }
}

/// Layers of Qwen2 and Qwen3 that look at everything, where `max_window_layers` does not say.
pub(crate) const FULL_LAYERS: i32 = 28;
/// Width of Qwen3's heads, where `head_dim` does not say.
pub(crate) const QWEN3_HEAD_DIM: i32 = 128;

/// Notes if queries and keys are said not to be normed by head: in Qwen3 they are.
pub(crate) fn head_norms(keys: &Keys<'_>) -> Result<(), String> {
    for key in ["use_qk_norm", "qk_norm", "qk_layernorm"] {
        if keys.get(key)? == Some(false) {
            keys.differs(key, &Value::Bool(false), "computed is true alone");
        }
    }
    Ok(())
}

/// Notes if some layer looks only at a window of what came before: ours look at all of it.
///
/// `first` is the first layer that may, and what the window is if the key is not there at all.
pub(crate) fn window(
    keys: &Keys<'_>,
    used: bool,
    first: i32,
    (layers, context): (i32, Option<i32>),
) -> Result<(), String> {
    /// Transformers' default.
    const OTHERWISE: i32 = 4096;
    let window: Option<i32> = keys.get("sliding_window")?;
    let window = match window {
        None if keys.mentions("sliding_window") => None,
        None => Some(OTHERWISE),
        window => window,
    };
    let Some(window) = window.filter(|_| used && first < layers) else { return Ok(()) };
    // What looks at as much as there ever is looks at all of it.
    if context.is_none_or(|context| window < context) {
        let computed =
            format!("from layer {first} on; computed is attention to all that came before");
        keys.differs("sliding_window", &Value::from(window), computed);
    }
    Ok(())
}

/// Notes if `layer_types` names another kind of layer than those that look at all before them.
pub(crate) fn layer_types(keys: &Keys<'_>, layers: i32) -> Result<(), String> {
    let Some(types) = keys.get::<Vec<String>>("layer_types")? else { return Ok(()) };
    if types.len() != layers.unsigned_abs() as usize {
        return Err(format!(
            "layer_types has {} entries, num_hidden_layers is {layers}",
            types.len()
        ));
    }
    if let Some((layer, other)) =
        types.iter().enumerate().find(|(_, kind)| *kind != "full_attention")
    {
        let computed = format!("that of layer {layer}; computed is \"full_attention\" alone");
        keys.differs("layer_types", &Value::from(other.as_str()), computed);
    }
    Ok(())
}
