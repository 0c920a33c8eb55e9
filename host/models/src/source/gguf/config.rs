//! A GGUF file's metadata in `config.json`'s terms.

use serde_json::{Map, Value, json};

use super::metadata::{GgufMetadata, MetaValue};
use crate::leftover::Leftover;

/// The metadata in `config.json`'s terms, so that an architecture reads one kind of configuration; and what
/// there is no such term for, because it is not computed.
pub(super) fn read(metadata: &GgufMetadata) -> Result<(Map<String, Value>, Vec<Leftover>), String> {
    let told = metadata.told("general.architecture", GgufMetadata::text, "a text")?;
    let architecture = told.ok_or("metadata general.architecture is missing")?;
    let key = |name: &str| format!("{architecture}.{name}");
    let missing = |name: &str| format!("metadata {} is missing, must be a number", key(name));
    let whole = |name: &str| metadata.whole(&key(name));
    let number = |name: &str| metadata.number(&key(name));
    let need = |name: &str| whole(name)?.ok_or_else(|| missing(name));

    let mut config = Map::new();
    let mut set = |name: &str, value: Value| config.insert(name.to_owned(), value);
    let (hidden, heads) = (need("embedding_length")?, need("attention.head_count")?);
    let head_dim = whole("attention.key_length")?;
    let context = whole("context_length")?;
    set("model_type", json!(architecture));
    set("hidden_size", json!(hidden));
    set("num_hidden_layers", json!(need("block_count")?));
    set("intermediate_size", json!(need("feed_forward_length")?));
    set("num_attention_heads", json!(heads));
    if let Some(heads) = whole("attention.head_count_kv")? {
        set("num_key_value_heads", json!(heads));
    }
    if let Some(dimension) = head_dim {
        set("head_dim", json!(dimension));
    }
    let epsilon = "attention.layer_norm_rms_epsilon";
    set("rms_norm_eps", json!(number(epsilon)?.ok_or_else(|| missing(epsilon))?));
    if let Some(context) = context {
        set("max_position_embeddings", json!(context));
    }
    if let Some(size) = whole("vocab_size")? {
        set("vocab_size", json!(size));
    } else if let Some(MetaValue::Texts(tokens)) = metadata.entries.get("tokenizer.ggml.tokens") {
        set("vocab_size", json!(tokens.len()));
    }
    if let Some(theta) = number("rope.freq_base")? {
        set("rope_theta", json!(theta));
    }
    // llama.cpp's converter permutes Llama's query and key rows so that the two halves of each
    // rotation lie side by side; other architectures keep Hugging Face's order.
    set("rope_traditional", json!(architecture == "llama"));
    if let Some(scaling) = scaling(metadata, &key)? {
        set("rope_scaling", Value::Object(scaling));
    }

    let mut leftovers = Vec::new();
    let mut differs = |name: &str, value: i64, computed: String| {
        leftovers.push(Leftover::differs(&key(name), &json!(value), computed));
    };
    let head_dim = head_dim.unwrap_or_else(|| hidden / heads.max(1));
    for name in ["rope.dimension_count", "attention.value_length"] {
        if let Some(told) = whole(name)?.filter(|told| *told != head_dim) {
            differs(name, told, format!("computed is {head_dim} alone, the width of a head"));
        }
    }
    let name = "attention.sliding_window";
    let shorter = |window: &i64| *window != 0 && context.is_none_or(|context| *window < context);
    if let Some(window) = whole(name)?.filter(shorter) {
        differs(name, window, "computed is attention to all that came before".to_owned());
    }
    Ok((config, leftovers))
}

/// The scaling of the rotary embedding, in the terms of `rope_scaling`; none if there is none.
fn scaling(
    metadata: &GgufMetadata,
    key: &dyn Fn(&str) -> String,
) -> Result<Option<Map<String, Value>>, String> {
    let kind = metadata.told(&key("rope.scaling.type"), GgufMetadata::text, "a text")?;
    let factor = metadata.number(&key("rope.scaling.factor"))?;
    // Nothing is stretched by 0 or 1, and a factor alone is that of the linear kind, as in llama.cpp.
    let stretched = factor.is_some_and(|factor| factor != 0.0 && factor != 1.0);
    let kind = match kind {
        Some("none") => None,
        None => stretched.then_some("linear"),
        kind => kind,
    };
    let numbers = [
        ("rope.scaling.original_context_length", "original_max_position_embeddings"),
        ("rope.scaling.yarn_beta_fast", "beta_fast"),
        ("rope.scaling.yarn_beta_slow", "beta_slow"),
    ];
    let mut scaling = Map::new();
    for (name, called) in numbers {
        if let Some(number) = metadata.number(&key(name))?.filter(|_| kind == Some("yarn")) {
            scaling.insert(called.to_owned(), json!(number));
        }
    }
    let Some(kind) = kind else { return Ok(None) };
    scaling.insert("rope_type".to_owned(), json!(kind));
    if let Some(factor) = factor {
        scaling.insert("factor".to_owned(), json!(factor));
    }
    Ok(Some(scaling))
}
