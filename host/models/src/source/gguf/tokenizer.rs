//! A GGUF file's tokenizer, chat template and special tokens.

use std::path::Path;

use interlock_model_files::{GgufTokenizer, TextParts, TokenizerSource};
use serde_json::{Map, Value};

use super::super::eos::{self, NamedToken};
use super::metadata::{GgufMetadata, MetaValue};
use crate::error::LoadError;

type HasType = fn(&MetaValue) -> bool;

/// The text side's keys, and what each must hold.
const TOKENIZER: &[(&str, HasType, &str)] = &[
    ("tokenizer.chat_template", |meta| matches!(meta, MetaValue::Text(_)), "a text"),
    ("tokenizer.ggml.model", |meta| matches!(meta, MetaValue::Text(_)), "a text"),
    ("tokenizer.ggml.pre", |meta| matches!(meta, MetaValue::Text(_)), "a text"),
    ("tokenizer.ggml.tokens", |meta| matches!(meta, MetaValue::Texts(_)), "a list of texts"),
    ("tokenizer.ggml.merges", |meta| matches!(meta, MetaValue::Texts(_)), "a list of texts"),
    (
        "tokenizer.ggml.token_type",
        |meta| matches!(meta, MetaValue::Integers(_)),
        "a list of numbers",
    ),
    ("tokenizer.ggml.scores", |meta| matches!(meta, MetaValue::Floats(_)), "a list of numbers"),
    ("tokenizer.ggml.add_bos_token", |meta| matches!(meta, MetaValue::Bool(_)), "true or false"),
    ("tokenizer.ggml.add_eos_token", |meta| matches!(meta, MetaValue::Bool(_)), "true or false"),
    ("tokenizer.ggml.add_space_prefix", |meta| matches!(meta, MetaValue::Bool(_)), "true or false"),
    ("tokenizer.ggml.bos_token_id", MetaValue::is_token, "a token's number"),
    ("tokenizer.ggml.eos_token_id", MetaValue::is_token, "a token's number"),
    ("tokenizer.ggml.unknown_token_id", MetaValue::is_token, "a token's number"),
    ("tokenizer.ggml.padding_token_id", MetaValue::is_token, "a token's number"),
    ("tokenizer.ggml.seperator_token_id", MetaValue::is_token, "a token's number"),
    ("tokenizer.ggml.separator_token_id", MetaValue::is_token, "a token's number"),
    ("tokenizer.ggml.cls_token_id", MetaValue::is_token, "a token's number"),
    ("tokenizer.ggml.mask_token_id", MetaValue::is_token, "a token's number"),
    ("tokenizer.ggml.eot_token_id", MetaValue::is_token, "a token's number"),
    ("tokenizer.ggml.eom_token_id", MetaValue::is_token, "a token's number"),
];

/// Keys that name a special token, and what templates call it.
const SPECIAL_TOKENS: [(&str, &str); 8] = [
    ("tokenizer.ggml.bos_token_id", "bos_token"),
    ("tokenizer.ggml.eos_token_id", "eos_token"),
    ("tokenizer.ggml.unknown_token_id", "unk_token"),
    ("tokenizer.ggml.padding_token_id", "pad_token"),
    // Its usual spelling.
    ("tokenizer.ggml.seperator_token_id", "sep_token"),
    ("tokenizer.ggml.separator_token_id", "sep_token"),
    ("tokenizer.ggml.cls_token_id", "cls_token"),
    ("tokenizer.ggml.mask_token_id", "mask_token"),
];

/// Whether each of the text side's keys holds what it must; the error names one that does not.
pub(super) fn check(metadata: &GgufMetadata) -> Result<(), String> {
    let wrong = TOKENIZER
        .iter()
        .find(|(key, fits, _)| metadata.entries.get(*key).is_some_and(|meta| !fits(meta)));
    wrong.map_or(Ok(()), |(key, _, must)| Err(format!("metadata {key} is not {must}")))
}

/// The tokenizer, the chat template and the special tokens that the metadata hold.
pub(super) fn read(path: &Path, metadata: &mut GgufMetadata) -> Result<TextParts, LoadError> {
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let tokens = metadata.texts(&key("tokens"));
    if tokens.is_empty() {
        return Err(LoadError::Config {
            path: path.into(),
            what: "metadata tokenizer.ggml.tokens is missing: the file has no tokenizer".to_owned(),
        });
    }
    let token_types = match metadata.get(&key("token_type")) {
        Some(MetaValue::Integers(types)) => {
            types.iter().map(|&kind| i32::try_from(kind).unwrap_or(0)).collect()
        }
        _ => Vec::new(),
    };
    let scores = match metadata.get(&key("scores")) {
        Some(MetaValue::Floats(scores)) => scores.iter().map(|&score| score as f32).collect(),
        _ => Vec::new(),
    };
    let special_tokens = special_tokens(path, metadata, &tokens)?;
    let listed = (0..).zip(&tokens).map(|(id, spelling)| NamedToken {
        id,
        spelling: spelling.as_str(),
        special: token_types.get(id as usize) == Some(&CONTROL),
    });
    let named = ["eos_token_id", "eot_token_id", "eom_token_id"];
    let named = named.map(|name| metadata.token(&key(name)));
    let eos = eos::all(named.into_iter().flatten(), named[1].is_some(), listed);
    Ok(TextParts {
        special_tokens,
        eos,
        chat_template: metadata.text("tokenizer.chat_template").map(str::to_owned),
        tokenizer: TokenizerSource::Gguf(GgufTokenizer {
            model: metadata.text(&key("model")).unwrap_or_default().to_owned(),
            pre: metadata.text(&key("pre")).map(str::to_owned),
            add_bos: metadata.bool(&key("add_bos_token")),
            add_eos: metadata.bool(&key("add_eos_token")),
            add_space_prefix: metadata.bool(&key("add_space_prefix")),
            merges: metadata.texts(&key("merges")),
            tokens,
            token_types,
            scores,
        }),
    })
}

/// The kind of special tokens.
const CONTROL: i32 = 3;

/// The special tokens that the file names by id, as templates call them.
fn special_tokens(
    path: &Path,
    metadata: &GgufMetadata,
    tokens: &[String],
) -> Result<Map<String, Value>, LoadError> {
    let mut named = Map::new();
    for (key, name) in SPECIAL_TOKENS {
        let Some(id) = metadata.token(key) else { continue };
        let Some(token) = tokens.get(id as usize) else {
            // Tools that add such a token often leave the vocabulary as it was; nothing here pads or masks.
            if !["bos_token", "eos_token"].contains(&name) {
                tracing::warn!(
                    key,
                    id,
                    vocabulary = tokens.len(),
                    "the file names a token that it does not have"
                );
                continue;
            }
            let what = format!("metadata {key} is {id}, must be below {}", tokens.len());
            return Err(LoadError::Config { path: path.into(), what });
        };
        named.insert(name.to_owned(), token.as_str().into());
    }
    Ok(named)
}
