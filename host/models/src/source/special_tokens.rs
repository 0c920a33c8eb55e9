//! Special tokens by the names under which a chat template writes them: `bos_token`, `eos_token`, ..
//!
//! A folder's names are those that transformers gives to a template (`tokenization_utils_base.py`,
//! 4.57): of `tokenizer_config.json`, of `special_tokens_map.json`, which older folders have, and of
//! the tokenizer's class, which has names of its own for what neither says. A name that is `null` is
//! given to no template.
//!
//! # Not here
//!
//! Which tokens end a generation (`eos.rs`): what a template writes and what ends a text are two
//! things. The ids in `config.json` are no names.

use serde_json::{Map, Value};

const NAMES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
/// A list of texts.
const ADDITIONAL: &str = "additional_special_tokens";
/// An object of names that one model alone has.
const EXTRA: &str = "extra_special_tokens";

/// The special tokens of a folder with these files and this `model_type`. A file that is absent is
/// an empty map.
pub(super) fn of_folder(
    tokenizer_config: &Map<String, Value>,
    special_tokens_map: &Map<String, Value>,
    model_type: &str,
) -> Map<String, Value> {
    // A newer folder has its added tokens in the first file, and the second says the same.
    let older = !tokenizer_config.contains_key("added_tokens_decoder");
    let (first, then) = match older {
        true => (special_tokens_map, tokenizer_config),
        false => (tokenizer_config, special_tokens_map),
    };
    let told = |name: &str| first.get(name).or_else(|| then.get(name));
    let class = tokenizer_config.get("tokenizer_class").and_then(Value::as_str);
    let own = own_names(class.unwrap_or(model_type));
    let mut named = Map::new();
    for name in NAMES {
        let own =
            own.iter().find(|(known, _)| *known == name).map(|(_, token)| (*token).to_owned());
        let token = told(name).map_or(own, spelling);
        named.extend(token.map(|token| (name.to_owned(), token.into())));
    }
    if let Some(Value::Array(tokens)) = told(ADDITIONAL) {
        let tokens: Vec<Value> = tokens.iter().filter_map(spelling).map(Value::from).collect();
        named.extend((!tokens.is_empty()).then(|| (ADDITIONAL.to_owned(), tokens.into())));
    }
    if let Some(Value::Object(extra)) = tokenizer_config.get(EXTRA) {
        let extra = extra.iter().filter_map(|(name, token)| Some((name, spelling(token)?)));
        named.extend(extra.map(|(name, token)| (name.clone(), token.into())));
    }
    named
}

/// A token given as its text, or as an object with its text. An empty one is none.
pub(super) fn spelling(token: &Value) -> Option<String> {
    let text = token.as_str().or_else(|| token.get("content")?.as_str())?;
    (!text.is_empty()).then(|| text.to_owned())
}

/// What a tokenizer's class calls its tokens where the files say nothing, by the class or the kind
/// of model that has it.
fn own_names(class: &str) -> &'static [(&'static str, &'static str)] {
    const END_OF_TEXT: &str = "<|endoftext|>";

    match class.strip_suffix("Fast").unwrap_or(class) {
        "LlamaTokenizer" | "CodeLlamaTokenizer" | "llama" => {
            &[("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>")]
        }
        "Qwen2Tokenizer" | "qwen2" | "qwen3" | "qwen3_moe" => {
            &[("eos_token", END_OF_TEXT), ("unk_token", END_OF_TEXT), ("pad_token", END_OF_TEXT)]
        }
        "GPT2Tokenizer" => {
            &[("bos_token", END_OF_TEXT), ("eos_token", END_OF_TEXT), ("unk_token", END_OF_TEXT)]
        }
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn named(tokenizer_config: &Value, special_tokens_map: &Value, expected: &Value) {
        let object = |value: &Value| value.as_object().expect("an object").clone();
        let named = of_folder(&object(tokenizer_config), &object(special_tokens_map), "other");
        assert_eq!(&Value::Object(named), expected);
    }

    // Each as transformers 4.57's `special_tokens_map` has it.
    #[test]
    fn names_are_texts_or_objects_and_null_is_no_name() {
        named(
            &json!({"bos_token": null, "eos_token": {"content": "</s>", "lstrip": false},
                    "pad_token": "<pad>", "unk_token": "", "added_tokens_decoder": {},
                    "additional_special_tokens": ["<a>", {"content": "<b>"}],
                    "extra_special_tokens": {"image_token": "<image>"}}),
            &json!({}),
            &json!({"eos_token":"</s>","pad_token":"<pad>","additional_special_tokens":["<a>","<b>"],"image_token":"<image>"}),
        );
    }

    #[test]
    fn the_map_of_an_older_folder_goes_before_its_configuration() {
        let map = json!({"bos_token": "<map>", "eos_token": {"content": "</map>"}});
        named(
            &json!({"bos_token": "<config>", "pad_token": "<pad>"}),
            &map,
            &json!({"bos_token":"<map>","eos_token":"</map>","pad_token":"<pad>"}),
        );
        named(
            &json!({"bos_token": "<config>", "eos_token": null, "added_tokens_decoder": {}}),
            &map,
            &json!({"bos_token":"<config>"}),
        );
    }

    #[test]
    fn what_no_file_says_the_tokenizers_class_does() {
        named(
            &json!({"tokenizer_class": "LlamaTokenizerFast", "bos_token": null}),
            &json!({}),
            &json!({"eos_token":"</s>","unk_token":"<unk>"}),
        );
        named(
            &json!({"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>"}),
            &json!({}),
            &json!({"eos_token":"<|im_end|>","unk_token":"<|endoftext|>","pad_token":"<|endoftext|>"}),
        );
        named(&json!({"tokenizer_class": "PreTrainedTokenizerFast"}), &json!({}), &json!({}));
        let qwen = of_folder(&Map::new(), &Map::new(), "qwen3");
        assert_eq!(qwen.get("eos_token"), Some(&json!("<|endoftext|>")));
    }
}
