use expect_test::expect;

use super::*;
use crate::{Detokenizer, tiny};

fn parts(tokenizer: TokenizerSource, template: Option<&str>) -> TextParts {
    let chat_template = template.map(str::to_owned);
    let special_tokens = tiny::special_tokens();
    TextParts { tokenizer, chat_template, special_tokens, eos: vec![tiny::END] }
}

fn json() -> TokenizerSource {
    TokenizerSource::Json(tiny::tokenizer_json().to_string().into())
}

fn user(content: &str) -> Message {
    Message { role: "user".into(), content: content.into(), name: None }
}

const TEMPLATE: &str = "{{ bos_token }}{% for m in messages %}{{ m.content }}<|end|>{% endfor %}";

#[test]
fn the_templates_bos_is_not_doubled_by_the_tokenizers() {
    let model = TextModel::new(parts(json(), Some(TEMPLATE))).unwrap();
    let hello = 3 + 256 + 3;
    assert_eq!(
        model.render_chat(&[user("hello")], &ChatOptions::default(), 99).unwrap(),
        [tiny::START, hello, tiny::END]
    );
    assert_eq!(model.encode("hello", 99).unwrap(), [tiny::START, hello]);
}

#[test]
fn a_special_token_in_a_message_is_one() {
    let model = TextModel::new(parts(json(), Some(TEMPLATE))).unwrap();
    let ids = model.render_chat(&[user("<|end|>")], &ChatOptions::default(), 99).unwrap();
    assert_eq!(ids, [tiny::START, tiny::END, tiny::END]);
}

#[test]
fn a_truncation_left_in_the_file_cuts_no_prompt() {
    // The tiny tokenizer.json says at most 4 tokens.
    let model = TextModel::new(parts(json(), None)).unwrap();
    assert_eq!(model.encode("xyzxyz", 99).unwrap().len(), 7);
}

#[test]
fn a_gguf_prompt_has_bos_and_eos_as_its_flags_say() {
    let mut gguf = tiny::byte_level(None);
    (gguf.add_bos, gguf.add_eos) = (Some(true), Some(true));
    let model = TextModel::new(parts(TokenizerSource::Gguf(gguf), Some(TEMPLATE))).unwrap();
    assert_eq!(model.encode("", 99).unwrap(), [tiny::START, tiny::END]);
    assert_eq!(model.render_chat(&[], &ChatOptions::default(), 99).unwrap(), [tiny::START]);
}

#[test]
fn a_base_model_says_what_works_instead_of_chat() {
    let model = TextModel::new(parts(json(), None)).unwrap();
    let error = model.render_chat(&[user("hello")], &ChatOptions::default(), 99).unwrap_err();
    expect!["this model has no chat template: /v1/completions works, chat does not"]
        .assert_eq(&error.to_string());
}

#[test]
fn broken_files_are_named_when_the_model_is_loaded() {
    let refusal = |parts| TextModel::new(parts).unwrap_err().to_string();
    expect!["tokenizer.json is not valid: expected value at line 1 column 1"]
        .assert_eq(&refusal(parts(TokenizerSource::Json(b"<html>".to_vec()), None)));
    expect![
        "chat template: syntax error: unexpected end of block, expected in (in chat_template:1)"
    ]
    .assert_eq(&refusal(parts(json(), Some("{% for %}"))));
    let mut gguf = tiny::byte_level(None);
    gguf.add_bos = Some(true);
    let mut around = parts(TokenizerSource::Gguf(gguf), None);
    around.special_tokens.insert("bos_token".into(), "<|begin|>".into());
    expect![[r#"bos_token "<|begin|>" is not in the vocabulary"#]].assert_eq(&refusal(around));
}

#[test]
fn the_simulated_model_is_bytes_and_markers() {
    let model = TextModel::new(parts(TokenizerSource::Sim, None)).unwrap();
    assert_eq!((model.vocabulary(), model.eos()), (512, &[256][..]));
    assert_eq!(model.encode("é", 99).unwrap(), [257, 0xC3, 0xA9]);
    let system = Message { role: "system".into(), content: "S".into(), name: None };
    let ids = model.render_chat(&[system, user("<end>")], &ChatOptions::default(), 99).unwrap();
    expect!["[257, 260, 83, 261, 258, 60, 101, 110, 100, 62, 261, 259]"]
        .assert_eq(&format!("{ids:?}"));
    assert_eq!(model.decode(&ids), "S<end>");
}

#[test]
fn a_token_has_its_bytes_and_a_special_one_its_name() {
    let simulated = TextModel::new(parts(TokenizerSource::Sim, None)).unwrap();
    let real = TextModel::new(parts(json(), None)).unwrap();
    assert_eq!(simulated.token_bytes(0xC3), [0xC3]);
    assert_eq!(real.token_bytes(3 + 0xC3), [0xC3]);
    assert_eq!(real.token_bytes(3 + 256 + 3), b"hello");
    assert_eq!(simulated.token_bytes(256), b"<eos>");
    assert_eq!(real.token_bytes(tiny::END), b"<|end|>");
    for model in [simulated, real] {
        assert_eq!(model.token_bytes(300), b"", "no such token");
    }
}

#[test]
fn the_text_side_is_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<TextModel>();
    shared::<Detokenizer>();
}
