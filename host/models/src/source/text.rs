//! Tokenizer, template and special tokens of a model folder.

use std::path::Path;

use interlock_model_files::{self as files, TextParts, TokenizerSource};
use interlock_request::{SamplingDefaults, TokenId};
use serde_json::{Map, Value};

use super::eos::{self, NamedToken};
use super::json::read_object;
use super::special_tokens;
use crate::error::LoadError;

/// Longer than any tokenizer: the largest known take 35 MB.
const TOKENIZER_BYTES_MAX: u64 = 512 << 20;
/// Longer than any template.
const TEMPLATE_BYTES_MAX: u64 = 16 << 20;

pub(super) fn read(folder: &Path, config: &Map<String, Value>) -> Result<TextParts, LoadError> {
    let tokenizer_path = folder.join("tokenizer.json");
    let tokenizer = files::read(&tokenizer_path, TOKENIZER_BYTES_MAX)
        .map_err(|cause| LoadError::Read { path: tokenizer_path.clone(), cause })?;

    let optional = |name: &str| {
        let path = folder.join(name);
        if path.exists() { read_object(&path) } else { Ok(Map::new()) }
    };
    let tokenizer_config = optional("tokenizer_config.json")?;
    let special_tokens_map = optional("special_tokens_map.json")?;
    let generation = optional("generation_config.json")?;

    // A template in a file of its own is the newer way and wins, as in Transformers.
    let chat_template = template_file(&folder.join("chat_template.jinja"))?
        .or_else(|| template(tokenizer_config.get("chat_template")?));

    let model_type = config.get("model_type").and_then(Value::as_str).unwrap_or_default();
    let special_tokens =
        special_tokens::of_folder(&tokenizer_config, &special_tokens_map, model_type);

    let parsed = serde_json::from_slice(&tokenizer).unwrap_or_default();
    let added = added_tokens(&parsed);
    let eos_token = special_tokens.get("eos_token").and_then(Value::as_str);
    let ids = |source: &Map<String, Value>| source.get("eos_token_id").map_or(vec![], token_ids);
    let named = [ids(&generation), ids(config)].concat();
    let named = named.into_iter().chain(eos_token.and_then(|token| id_of(&parsed, &added, token)));
    let eos = eos::all(named, !ids(&generation).is_empty(), added.iter().copied());
    let tokenizer = TokenizerSource::Json(tokenizer);
    Ok(TextParts { tokenizer, chat_template, special_tokens, eos })
}

/// What a `generation_config.json` says of sampling. What it does not say, or says wrong, is as
/// OpenAI has it: advice that cannot be read should not keep a model from being served.
pub(crate) fn sampling(generation_config: &[u8]) -> SamplingDefaults {
    let config: Map<String, Value> = serde_json::from_slice(generation_config).unwrap_or_default();
    let number = |key: &str, allowed: std::ops::RangeInclusive<f64>, otherwise: f32| {
        let said = config.get(key).and_then(Value::as_f64).filter(|n| allowed.contains(n));
        said.map_or(otherwise, |n| n as f32)
    };
    let otherwise = SamplingDefaults::OPENAI;
    let top_k = config.get("top_k").and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok());
    SamplingDefaults {
        temperature: number("temperature", 0.0..=2.0, otherwise.temperature),
        top_p: number("top_p", 0.0..=1.0, otherwise.top_p),
        top_k: top_k.unwrap_or(otherwise.top_k),
        min_p: number("min_p", 0.0..=1.0, otherwise.min_p),
        repetition_penalty: number("repetition_penalty", 0.01..=2.0, otherwise.repetition_penalty),
    }
}

/// A template in a file of its own, if there is one.
fn template_file(path: &Path) -> Result<Option<String>, LoadError> {
    let read = files::read_if_there(path, TEMPLATE_BYTES_MAX);
    let Some(bytes) = read.map_err(|cause| LoadError::Read { path: path.into(), cause })? else {
        return Ok(None);
    };
    let damaged = |_| LoadError::Damaged { path: path.into(), what: "it is not UTF-8".to_owned() };
    String::from_utf8(bytes).map(Some).map_err(damaged)
}

/// One id or several.
fn token_ids(value: &Value) -> Vec<TokenId> {
    match value {
        Value::Array(values) => values.iter().filter_map(id).collect(),
        value => id(value).into_iter().collect(),
    }
}

/// The template, or of several named ones that called `default`.
fn template(value: &Value) -> Option<String> {
    match value {
        Value::String(template) => Some(template.clone()),
        Value::Array(named) => named
            .iter()
            .find(|entry| entry.get("name").and_then(Value::as_str) == Some("default"))
            .and_then(|entry| Some(entry.get("template")?.as_str()?.to_owned())),
        _ => None,
    }
}

/// `added_tokens` of `tokenizer.json`. Whether the rest of it is sound is the tokenizer's business.
fn added_tokens(tokenizer: &Value) -> Vec<NamedToken<'_>> {
    let added = tokenizer.get("added_tokens").and_then(Value::as_array);
    added.into_iter().flatten().filter_map(listed).collect()
}

fn listed(entry: &Value) -> Option<NamedToken<'_>> {
    let special = entry.get("special").and_then(Value::as_bool).unwrap_or(false);
    Some(NamedToken {
        id: id(entry.get("id")?)?,
        spelling: entry.get("content")?.as_str()?,
        special,
    })
}

/// The id of a token by its text: an added one, or one of the vocabulary.
fn id_of(tokenizer: &Value, added: &[NamedToken<'_>], token: &str) -> Option<TokenId> {
    let added = added.iter().find(|listed| listed.spelling == token).map(|listed| listed.id);
    added.or_else(|| id(tokenizer.get("model")?.get("vocab")?.get(token)?))
}

fn id(value: &Value) -> Option<TokenId> {
    TokenId::try_from(value.as_u64()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_models_advice_on_sampling_is_taken_where_it_makes_sense() {
        let advice = sampling(br#"{"temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 7}"#);
        let wanted = SamplingDefaults {
            temperature: 0.6,
            top_p: 0.95,
            top_k: 20,
            ..SamplingDefaults::OPENAI
        };
        assert_eq!(advice, wanted);
        assert_eq!(sampling(b"not JSON"), SamplingDefaults::OPENAI);
    }
}
