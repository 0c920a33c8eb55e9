//! What a model's files say of its texts: what a template writes, and what ends a generation.

#[expect(dead_code, reason = "these tests take apart less than others")]
mod files;

use std::fs;

use files::{Copy, whole, word};
use interlock_model_files::{TextParts, TokenizerSource};
use interlock_models::{LoadOptions, inspect, load};
use serde_json::{Value, json};

fn text(copy: &Copy) -> TextParts {
    let loaded = load(&copy.model(), &LoadOptions::default(), &mut |_| {});
    loaded.unwrap_or_else(|error| panic!("{error}")).text
}

fn folder() -> Copy {
    Copy::of("llama-f32")
}

impl Copy {
    /// With this file in it.
    fn with_file(self, name: &str, contents: &Value) -> Self {
        fs::write(self.0.join(name), contents.to_string()).unwrap();
        self
    }

    /// Adds tokens to `tokenizer.json`, from 90 on; special ones, unless they begin with a letter.
    fn with_tokens(self, tokens: &[&str]) -> Self {
        let path = self.0.join("tokenizer.json");
        let mut tokenizer: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let added = tokens.iter().zip(90..).map(|(token, id)| {
            let special = !token.starts_with(char::is_alphabetic);
            json!({"id": id, "content": token, "special": special})
        });
        tokenizer["added_tokens"].as_array_mut().unwrap().extend(added);
        fs::write(&path, tokenizer.to_string()).unwrap();
        self
    }
}

#[test]
fn what_ends_a_text_is_not_what_a_template_writes() {
    let copy = folder()
        .with_keys(&json!({"eos_token_id": [7, 8], "bos_token_id": 9}))
        .with_file("generation_config.json", &json!({"eos_token_id": [8, 11]}))
        .with_file("tokenizer_config.json", &json!({"bos_token": null, "eos_token": "</s>"}));
    let text = text(&copy);
    assert_eq!(text.eos, [8, 11, 7, 2]);
    assert_eq!(text.special_tokens.get("eos_token"), Some(&json!("</s>")));
    assert_eq!(text.special_tokens.get("bos_token"), None, "null is no name, whatever the id is");
}

#[test]
fn a_token_of_the_vocabulary_can_be_the_end_as_well_as_an_added_one() {
    let copy = folder()
        .with_file(
            "tokenizer.json",
            &json!({"model": {"vocab": {"<end>": 44}}, "added_tokens": []}),
        )
        .with_file("generation_config.json", &json!({"eos_token_id": 5}))
        .with_file("tokenizer_config.json", &json!({"eos_token": {"content": "<end>"}}));
    assert_eq!(text(&copy).eos, [5, 2, 44]);
}

#[test]
fn a_folder_that_does_not_say_what_ends_a_turn_stops_at_the_usual_names() {
    let usual = ["<|eot_id|>", "<|im_end|>", "<|im_start|>", "end", "<end_of_turn>"];
    let copy = || folder().with_tokens(&usual).with_keys(&json!({"eos_token_id": 2}));
    assert_eq!(text(&copy()).eos, [2, 90, 91, 94]);
    let named = copy().with_file("generation_config.json", &json!({"eos_token_id": 2}));
    assert_eq!(text(&named).eos, [2], "its makers say what ends a generation");
    let silent = copy().with_file("generation_config.json", &json!({"temperature": 0.5}));
    assert_eq!(text(&silent).eos, [2, 90, 91, 94]);
}

const TOKENS: [&str; 6] = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "a"];

/// A list of texts as GGUF stores one.
fn words(values: &[&str]) -> Vec<u8> {
    let mut bytes = [9_u32.to_le_bytes(), 8_u32.to_le_bytes()].concat();
    bytes.extend((values.len() as u64).to_le_bytes());
    // A text alone has its type in front.
    bytes.extend(values.iter().flat_map(|value| word(value).split_off(4)));
    bytes
}

/// A GGUF file with these tokens, and no ids of special ones but these.
fn gguf(ids: &[(&str, u32)]) -> Copy {
    Copy::of("gguf-llama-q4_0").with_gguf(|gguf| {
        gguf.entries.retain(|(key, _)| !key.ends_with("_token_id") && !key.ends_with("token_type"));
        gguf.set("tokenizer.ggml.tokens", words(&TOKENS));
        for (name, id) in ids {
            gguf.set(&format!("tokenizer.ggml.{name}"), whole(*id));
        }
    })
}

#[test]
fn a_gguf_that_names_no_end_of_turn_stops_at_one_by_its_usual_name() {
    assert_eq!(text(&gguf(&[])).eos, [4]);
    assert_eq!(text(&gguf(&[("eos_token_id", 5)])).eos, [5, 4]);
    assert_eq!(text(&gguf(&[("eos_token_id", 5), ("eot_token_id", 3)])).eos, [5, 3]);
    assert_eq!(text(&gguf(&[("eot_token_id", u32::MAX)])).eos, [4], "that is how some say: none");
}

#[test]
fn a_word_of_html_ends_a_text_only_where_it_is_a_special_token() {
    let typed = |kind: u32| {
        gguf(&[]).with_gguf(|gguf| {
            gguf.set("tokenizer.ggml.token_type", files::wholes(&[2, 3, kind, 3, 1, 1]));
        })
    };
    assert_eq!(text(&typed(1)).eos, [4]);
    assert_eq!(text(&typed(3)).eos, [2, 4]);
}

#[test]
fn a_gguf_gives_templates_the_tokens_that_it_names_and_no_others() {
    let ids = [("bos_token_id", 1), ("padding_token_id", 0), ("eot_token_id", 4)];
    let named = text(&gguf(&ids)).special_tokens;
    assert_eq!(Value::Object(named), json!({"bos_token": "<s>", "pad_token": "<unk>"}));
}

#[test]
fn a_special_token_that_the_vocabulary_does_not_have_is_refused_with_the_bound() {
    let refusal =
        |copy: Copy| inspect(&copy.model(), Default::default()).err().unwrap().to_string();
    let says = refusal(gguf(&[("bos_token_id", 6)]));
    assert!(says.ends_with("metadata tokenizer.ggml.bos_token_id is 6, must be below 6"), "{says}");
    let padded = text(&gguf(&[("bos_token_id", 1), ("padding_token_id", 6)])).special_tokens;
    assert_eq!(Value::Object(padded), json!({"bos_token": "<s>"}), "nothing here pads");
    let prefix = gguf(&[]).with_gguf(|gguf| {
        gguf.set("tokenizer.ggml.add_space_prefix", word("no"));
    });
    let says = refusal(prefix);
    assert!(says.ends_with("tokenizer.ggml.add_space_prefix is not true or false"), "{says}");
}

#[test]
fn a_gguf_says_whether_a_text_gets_a_space_in_front() {
    let copy = gguf(&[]).with_gguf(|gguf| {
        gguf.set("tokenizer.ggml.add_space_prefix", files::yes(false));
    });
    let TokenizerSource::Gguf(tokenizer) = text(&copy).tokenizer else {
        panic!("it is a GGUF file")
    };
    assert_eq!(tokenizer.add_space_prefix, Some(false));
}
