//! Tokenizers small enough to read, for the tests of this crate.

use std::sync::Arc;

use interlock_request::TokenId;
use serde_json::{Map, Value, json};

use crate::pieces::letter_of;
use crate::{GgufTokenizer, TextModel, TextParts, TokenizerSource};

/// Two control tokens, a user-defined one, 256 bytes, then what these merges make.
const MERGES: [&str; 7] = ["h e", "l l", "he ll", "hell o", "Ġ w", "Ã ©", "1 2"];
pub(crate) const START: TokenId = 0;
pub(crate) const END: TokenId = 1;

/// Byte-level BPE, as `tokenizer.ggml.*` has it.
pub(crate) fn byte_level(pre: Option<&str>) -> GgufTokenizer {
    let mut tokens: Vec<String> = ["<|start|>", "<|end|>", "<tool>"].map(str::to_owned).into();
    let mut token_types = vec![3, 3, 4];
    tokens.extend((0..=255).map(|byte| letter_of(byte).to_string()));
    tokens.extend(MERGES.iter().map(|merge| merge.replace(' ', "")));
    token_types.resize(tokens.len(), 1);
    GgufTokenizer {
        model: "gpt2".to_owned(),
        pre: pre.map(str::to_owned),
        tokens,
        token_types,
        merges: MERGES.map(str::to_owned).into(),
        ..GgufTokenizer::default()
    }
}

/// The same tokenizer as a `tokenizer.json`, which puts `<|start|>` in front of a plain prompt.
pub(crate) fn tokenizer_json() -> serde_json::Value {
    let gguf = byte_level(None);
    let vocab: serde_json::Map<_, _> =
        gguf.tokens.iter().zip(0..).map(|(token, id)| (token.clone(), json!(id))).collect();
    let added: Vec<_> = [("<|start|>", true), ("<|end|>", true), ("<tool>", false)]
        .iter()
        .zip(0..)
        .map(|((content, special), id)| {
            json!({"id": id, "content": content, "special": special, "normalized": false,
                   "single_word": false, "lstrip": false, "rstrip": false})
        })
        .collect();
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    json!({
        "version": "1.0",
        // Left over from training; must not cut prompts.
        "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<|start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<|start|>": {"id": "<|start|>", "ids": [0], "tokens": ["<|start|>"]}},
        },
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": gguf.merges},
    })
}

/// SentencePiece BPE: `<unk>`, `<s>`, `</s>`, 256 bytes, then pieces, the more urgent the
/// higher their score.
pub(crate) fn sentence_piece() -> GgufTokenizer {
    let pieces = ["▁", "a", "b", "c", "▁a", "ab", "bc", "abc", "▁ab", "▁▁"];
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(str::to_owned).into();
    let mut token_types = vec![2, 3, 3];
    tokens.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    token_types.resize(tokens.len(), 6);
    tokens.extend(pieces.map(str::to_owned));
    token_types.resize(tokens.len(), 1);
    let mut scores = vec![0.0; 259];
    // Letters are never merged into; "bc" is more urgent than "ab", "▁a" than neither.
    scores.extend([-9.0, -9.0, -9.0, -9.0, -3.0, -2.0, -1.0, -4.0, -5.0, -6.0]);
    GgufTokenizer {
        model: "llama".to_owned(),
        tokens,
        token_types,
        scores,
        ..GgufTokenizer::default()
    }
}

/// The special tokens of the byte-level ones, by name.
pub(crate) fn special_tokens() -> Map<String, Value> {
    named("<|start|>", "<|end|>")
}

fn named(bos: &str, eos: &str) -> Map<String, Value> {
    let token = |name: &str, token: &str| (name.to_owned(), json!(token));
    Map::from_iter([token("bos_token", bos), token("eos_token", eos)])
}

/// A model with a tokenizer and nothing else.
pub(crate) fn model(tokenizer: TokenizerSource) -> Arc<TextModel> {
    let special_tokens = match &tokenizer {
        TokenizerSource::Gguf(gguf) if gguf.model == "llama" => named("<s>", "</s>"),
        _ => special_tokens(),
    };
    let parts = TextParts { tokenizer, chat_template: None, special_tokens, eos: vec![END] };
    Arc::new(TextModel::new(parts).expect("the tiny tokenizers are supported"))
}
