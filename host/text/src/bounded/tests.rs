use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::pieces::letter_of;
use crate::{gguf, tiny};

fn bounded(tokenizer: &Tokenizer) -> Bounded {
    Bounded::new(Box::new(tokenizer.clone()))
}

fn walks(bounded: &Bounded) -> bool {
    matches!(bounded.mode, EncodeMode::Streaming(_))
}

/// Byte-level BPE with merges for runs of letters, spaces, digits and one emoji.
fn byte_level_bpe() -> Value {
    let merges = [
        "a a",
        "aa aa",
        "h e",
        "l l",
        "he ll",
        "hell o",
        "Ġ Ġ",
        "ĠĠ ĠĠ",
        "Ġ a",
        "Ċ Ċ",
        "1 2",
        "12 1",
        "Ã ©",
        "ð Ł",
        "ðŁ ĺ",
        "ðŁĺ Ģ",
        "' s",
        "Ġ hello",
    ];
    let mut tokens: Vec<String> = (0..=255).map(|byte| letter_of(byte).to_string()).collect();
    tokens.extend(merges.map(|merge| merge.replace(' ', "")));
    let vocab: serde_json::Map<_, _> =
        tokens.iter().zip(0..).map(|(token, id)| (token.clone(), json!(id))).collect();
    json!({"type": "BPE", "vocab": vocab, "merges": merges})
}

/// SentencePiece's BPE, with a token for each byte.
fn byte_fallback_bpe() -> Value {
    let merges = ["▁ a", "a a", "▁ ▁", "▁▁ ▁▁", "a b", "b c", "ab c", "▁a b", "1 2"];
    let mut tokens = vec!["<unk>".to_owned()];
    tokens.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    tokens.extend(["▁", "a", "b", "c", "1", "2", "é"].map(str::to_owned));
    tokens.extend(merges.map(|merge| merge.replace(' ', "")));
    let vocab: serde_json::Map<_, _> =
        tokens.iter().zip(0..).map(|(token, id)| (token.clone(), json!(id))).collect();
    json!({"type": "BPE", "vocab": vocab, "merges": merges, "unk_token": "<unk>",
           "fuse_unk": true, "byte_fallback": true})
}

fn unigram() -> Value {
    let pieces = json!([
        ["<unk>", 0.0],
        ["▁", -2.0],
        ["a", -3.0],
        ["▁a", -2.5],
        ["b", -3.5],
        ["ab", -4.0],
        ["1", -5.0],
        ["hello", -6.0]
    ]);
    json!({"type": "Unigram", "unk_id": 0, "vocab": pieces, "byte_fallback": false})
}

fn word_level() -> Value {
    let vocab = json!({"<unk>": 0, "a": 1, "hello": 2, "12": 3, "'": 4, "s": 5});
    json!({"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"})
}

fn added(content: &str, settings: &str) -> Value {
    let has = |setting: &str| settings.contains(setting);
    json!({"id": 0, "content": content, "special": !has("plain"), "normalized": has("normalized"),
           "single_word": has("single"), "lstrip": has("lstrip"), "rstrip": has("rstrip")})
}

/// `<|end|>` in the middle of words is one, `<s>` takes white space along; a text may also
/// contain the beginning of one.
fn usual_added() -> Vec<Value> {
    vec![
        added("<|end|>", ""),
        added("<|end|>x", ""),
        added("<s>", "rstrip"),
        added("<m>", "lstrip"),
        added("\n\n\n", "plain"),
    ]
}

fn tokenizer(
    model: Value,
    normalizer: Value,
    pre_tokenizer: Value,
    mut added: Vec<Value>,
) -> Tokenizer {
    // Behind the vocabulary.
    let size = model["vocab"].as_object().map_or(8, serde_json::Map::len);
    for (token, id) in added.iter_mut().zip(size..) {
        token["id"] = json!(id);
    }
    let json = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "post_processor": null,
        "decoder": null, "model": model});
    Tokenizer::from_bytes(json.to_string()).unwrap()
}

fn byte_step(space_first: bool, words: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": space_first, "trim_offsets": true, "use_regex": words})
}

fn split(regex: &str, behavior: &str, invert: bool) -> Value {
    json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": invert})
}

fn sequence(steps: &[Value]) -> Value {
    json!({"type": "Sequence", "pretokenizers": steps, "normalizers": steps})
}

fn metaspace(scheme: &str, split: bool) -> Value {
    json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split})
}

// Of models' tokenizer.json: openai/gpt-oss-20b and deepseek-ai/DeepSeek-V3 (its second step).
const O200K: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK: &str = "[一-龥\u{3040}-ゟ゠-ヿ]+";

/// Every kind of tokenizer that is walked, by name.
fn walked() -> Vec<(&'static str, Tokenizer)> {
    let gguf = |pre| gguf::build(&tiny::byte_level(Some(pre))).unwrap().tokenizer;
    let bytes = |normalizer, pre, added| tokenizer(byte_level_bpe(), normalizer, pre, added);
    let sentence = |normalizer, pre, added| tokenizer(byte_fallback_bpe(), normalizer, pre, added);
    let nfc = json!({"type": "NFC"});
    let prepend = json!({"type": "Prepend", "prepend": "▁"});
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let last = byte_step(false, false);
    let mut kinds = vec![
        ("gguf gpt-2", gguf("gpt-2")),
        ("gguf smollm", gguf("smollm")),
        ("gguf llama 3", gguf("llama-bpe")),
        ("gguf qwen 2", gguf("qwen2")),
        ("gguf llama 2", gguf::build(&tiny::sentence_piece()).unwrap().tokenizer),
        ("gpt-2", bytes(Value::Null, byte_step(false, true), usual_added())),
        ("roberta", bytes(Value::Null, byte_step(true, true), usual_added())),
        (
            "o200k",
            bytes(
                nfc.clone(),
                sequence(&[split(O200K, "Isolated", false), last.clone()]),
                usual_added(),
            ),
        ),
        (
            "gpt-4",
            bytes(
                Value::Null,
                sequence(&[split(O200K, "Removed", true), last.clone()]),
                usual_added(),
            ),
        ),
        (
            "removes",
            bytes(
                Value::Null,
                sequence(&[split(r"\s", "Removed", false), last.clone()]),
                usual_added(),
            ),
        ),
        (
            "deepseek",
            bytes(
                Value::Null,
                sequence(&[
                    split(r"\p{N}{1,3}", "Isolated", false),
                    split(DEEPSEEK, "Isolated", false),
                    split(O200K, "Isolated", false),
                    last.clone(),
                ]),
                usual_added(),
            ),
        ),
        (
            "digits",
            bytes(
                Value::Null,
                sequence(&[
                    json!({"type": "Digits", "individual_digits": false}),
                    byte_step(false, true),
                ]),
                vec![],
            ),
        ),
        ("no words", bytes(Value::Null, last.clone(), usual_added())),
        (
            "behind bytes",
            bytes(Value::Null, sequence(&[last.clone(), split("a", "Contiguous", false)]), vec![]),
        ),
        (
            "looks back",
            bytes(
                Value::Null,
                sequence(&[split(r"(?<=a)\s|\b1|^a|\G-", "Isolated", false), last.clone()]),
                vec![],
            ),
        ),
        (
            "normalized",
            bytes(
                nfc.clone(),
                byte_step(false, true),
                vec![
                    added("e\u{301}e", "normalized"),
                    added("hell", "normalized plain"),
                    added("<|end|>", ""),
                ],
            ),
        ),
        (
            "normalized, strips",
            bytes(
                nfc,
                byte_step(false, true),
                vec![added("<t>", "normalized lstrip rstrip"), added("<|end|>", "lstrip")],
            ),
        ),
        (
            "llama 2",
            sentence(sequence(&[prepend.clone(), replace.clone()]), Value::Null, usual_added()),
        ),
        (
            "llama 2, normalized",
            sentence(
                sequence(&[prepend, replace.clone()]),
                Value::Null,
                vec![added("<s>", "normalized")],
            ),
        ),
        ("gemma", sentence(replace, Value::Null, usual_added())),
        ("not all bytes", tokenizer(tiny_bpe(), Value::Null, Value::Null, usual_added())),
        ("t5", tokenizer(unigram(), Value::Null, metaspace("always", true), usual_added())),
    ];
    let steps = sequence(&[split(r"[ab]+", "Isolated", false), metaspace("first", true)]);
    kinds.push(("metaspace behind words", sentence(Value::Null, steps, usual_added())));
    for scheme in ["always", "first", "never"] {
        for whole in [true, false] {
            kinds.push((
                "metaspace",
                sentence(Value::Null, metaspace(scheme, whole), usual_added()),
            ));
        }
    }
    for behavior in ["Isolated", "Removed", "Contiguous", "MergedWithPrevious", "MergedWithNext"] {
        for invert in [false, true] {
            let steps = sequence(&[split("[ a]", behavior, invert), byte_step(false, false)]);
            kinds.push((behavior, bytes(Value::Null, steps, vec![])));
        }
    }
    kinds
}

/// A BPE that drops what it does not know.
fn tiny_bpe() -> Value {
    json!({"type": "BPE", "vocab": {"a": 0, "b": 1, " ": 2, "aa": 3}, "merges": ["a a"]})
}

/// Kinds that are left to the tokenizers crate.
fn whole() -> Vec<(&'static str, Tokenizer)> {
    let white = json!({"type": "Whitespace"});
    let bytes = byte_step(false, true);
    let lower = json!({"type": "Lowercase"});
    let single = vec![added("hello", "single plain"), added("<|end|>", "")];
    vec![
        ("word level", tokenizer(word_level(), Value::Null, white, usual_added())),
        ("lower", tokenizer(byte_level_bpe(), lower, bytes.clone(), usual_added())),
        ("single word", tokenizer(byte_level_bpe(), Value::Null, bytes, single)),
    ]
}

/// Texts of what tokenizers look at, and any letters at all.
fn texts() -> impl Strategy<Value = String> {
    let parts = [
        "a",
        "aa",
        "aaaaaaaa",
        " ",
        "  ",
        "     ",
        "\n",
        "\r\n",
        "\n\n\n",
        "\t",
        "1",
        "12",
        "1212121",
        "hello",
        "HELLO",
        "'s",
        "'S",
        "'LL",
        "e\u{301}",
        "é",
        "\u{301}",
        "\u{212B}",
        "\u{1FBE}\u{308}\u{341}",
        "\u{1100}\u{1161}\u{11A8}",
        "😀",
        "😀😀",
        "日本語",
        "ひらがな",
        "▁",
        "▁▁",
        "<|end|>",
        "<|end|>x",
        "<|end|",
        "<s>",
        "<m>",
        "<t>",
        "\u{3000}",
        "\u{A0}",
        "-",
        "--",
        "½",
        "²",
        "b",
        "bc",
        ".",
        "e\u{301}e",
        "\u{0}",
    ];
    let part = prop_oneof![
        8 => proptest::sample::select(parts.to_vec()).prop_map(str::to_owned),
        1 => any::<char>().prop_map(String::from),
    ];
    proptest::collection::vec(part, 0..40).prop_map(|parts| parts.concat())
}

fn by_the_crate(tokenizer: &Tokenizer, text: &str) -> Vec<TokenId> {
    tokenizer.encode_fast(text, true).unwrap().get_ids().to_vec()
}

/// The same tokens as the crate, at any limit that lets them through; an error at any other.
fn check(name: &str, tokenizer: &Tokenizer, bounded: &Bounded, text: &str) {
    let tokens = by_the_crate(tokenizer, text);
    assert_eq!(bounded.encode(text, true, usize::MAX).as_ref(), Ok(&tokens), "{name}: {text:?}");
    let count = tokens.len();
    for tokens_max in [count, count.saturating_sub(1), count / 2, count / 4, 0] {
        match bounded.encode(text, true, tokens_max) {
            Ok(got) => assert_eq!((&got, tokens_max), (&tokens, count), "{name}: {text:?}"),
            Err(RenderError::TooLong { tokens_min, .. }) => assert!(
                tokens_max < tokens_min && tokens_min <= count.max(1) || by_size(bounded),
                "{name}: {count} tokens, at least {tokens_min}, limit {tokens_max}: {text:?}"
            ),
            Err(other) => panic!("{name}: {other}: {text:?}"),
        }
    }
}

/// Whether a text may be refused by its size although it has few tokens.
fn by_size(bounded: &Bounded) -> bool {
    match &bounded.mode {
        EncodeMode::Streaming(walk) => walk.pairs.is_none(),
        EncodeMode::Whole => true,
    }
}

#[test]
fn the_tokens_are_those_of_the_whole_text_for_every_kind_of_tokenizer() {
    let kinds: Vec<_> = walked().into_iter().map(|(n, t)| (n, bounded(&t), t, true)).collect();
    let whole = whole().into_iter().map(|(n, t)| (n, bounded(&t), t, false));
    let kinds: Vec<_> = kinds.into_iter().chain(whole).collect();
    for (name, bounded, _, walked) in &kinds {
        assert_eq!(walks(bounded), *walked, "{name}");
    }
    proptest!(ProptestConfig::with_cases(300), |(text in texts())| {
        for (name, bounded, tokenizer, _) in &kinds {
            check(name, tokenizer, bounded, &text);
        }
    });
}

#[test]
fn a_tokenizer_that_panics_fails_one_prompt() {
    let error = caught(|| panic!("Onig: {}", "limit over")).map(|(): ()| ()).unwrap_err();
    assert_eq!(error, RenderError::Tokenizer("Onig: limit over".into()));
}
