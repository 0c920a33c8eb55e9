//! Tokenizer, template and special tokens of a model folder.

use std::fs;
use std::path::Path;

use interlock_request::TokenId;
use serde_json::{Map, Value};

use super::safetensors::object;
use crate::error::LoadError;
use crate::text_source::{TextSource, TokenizerSource};

pub(super) fn read(folder: &Path, config: &Map<String, Value>) -> Result<TextSource, LoadError> {
    let tokenizer_path = folder.join("tokenizer.json");
    let tokenizer = fs::read(&tokenizer_path)
        .map_err(|cause| LoadError::Read { path: tokenizer_path.clone(), cause })?;

    let optional = |name: &str| {
        let path = folder.join(name);
        if path.is_file() { object(&path) } else { Ok(Map::new()) }
    };
    let tokenizer_config = optional("tokenizer_config.json")?;
    let generation = optional("generation_config.json")?;

    // A template in a file of its own is the newer way and wins, as in Transformers.
    let chat_template = fs::read_to_string(folder.join("chat_template.jinja"))
        .ok()
        .or_else(|| template(tokenizer_config.get("chat_template")?));

    let ids = |source: &Map<String, Value>, key: &str| source.get(key).map_or(vec![], token_ids);
    let added = added_tokens(&tokenizer);
    let named = |key: &str| added_id(&added, tokenizer_config.get(key)?);

    let mut eos = ids(&generation, "eos_token_id");
    eos.extend(ids(config, "eos_token_id"));
    eos.extend(named("eos_token"));
    let mut unique = Vec::new();
    for id in eos {
        if !unique.contains(&id) {
            unique.push(id);
        }
    }
    let bos = named("bos_token").or_else(|| ids(config, "bos_token_id").first().copied());
    Ok(TextSource { tokenizer: TokenizerSource::Json(tokenizer), chat_template, bos, eos: unique })
}

/// One id or several.
fn token_ids(value: &Value) -> Vec<TokenId> {
    let id = |value: &Value| TokenId::try_from(value.as_u64()?).ok();
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
fn added_tokens(tokenizer: &[u8]) -> Vec<Value> {
    let parsed: Option<Value> = serde_json::from_slice(tokenizer).ok();
    let added = parsed.and_then(|parsed| parsed.get("added_tokens")?.as_array().cloned());
    added.unwrap_or_default()
}

/// The id of a special token given as text, or as an object with its text.
fn added_id(added: &[Value], token: &Value) -> Option<TokenId> {
    let text = token.as_str().or_else(|| token.get("content")?.as_str())?;
    let entry =
        added.iter().find(|entry| entry.get("content").and_then(Value::as_str) == Some(text))?;
    TokenId::try_from(entry.get("id")?.as_u64()?).ok()
}
