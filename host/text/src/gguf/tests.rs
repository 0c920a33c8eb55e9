use expect_test::{Expect, expect};

use super::*;
use crate::tiny;

/// The tokens' spellings, with `|` between.
fn check(gguf: &GgufTokenizer, text: &str, expected: Expect) {
    let built = build(gguf).unwrap();
    let encoding = built.tokenizer.encode_fast(text, false).unwrap();
    let spelling = |&id: &TokenId| built.tokenizer.id_to_token(id).unwrap();
    let tokens: Vec<_> = encoding.get_ids().iter().map(spelling).collect();
    expected.assert_eq(&tokens.join("|"));
}

const TEXT: &str = "hello world 1234  x\n\n it'S it's é <|end|><tool>!!\n";

#[test]
fn each_pre_tokenizer_cuts_words_as_its_model_does() {
    // GPT-2: digits together, "12" merges.
    check(
        &tiny::byte_level(Some("gpt-2")),
        TEXT,
        expect![
            "hello|Ġw|o|r|l|d|Ġ|12|3|4|Ġ|Ġ|x|Ċ|Ċ|Ġ|i|t|'|S|Ġ|i|t|'|s|Ġ|Ã©|Ġ|<|end|>|<tool>|!|!|Ċ"
        ],
    );
    // SmolLM: digits one by one, so nothing merges.
    check(&tiny::byte_level(Some("smollm")), "x 1234", expect!["x|Ġ|1|2|3|4"]);
    // Llama 3: digits in threes from the left; 34 would not merge, 12 does.
    check(&tiny::byte_level(Some("llama-bpe")), "x 1234 12", expect!["x|Ġ|12|3|4|Ġ|12"]);
    // Qwen 2: digits one by one, and NFC: e with a combining accent is é.
    check(&tiny::byte_level(Some("qwen2")), "x 12 e\u{301}", expect!["x|Ġ|1|2|Ġ|Ã©"]);
}

/// The words themselves, which the tiny vocabulary's tokens hardly show.
fn words(pre: &str, text: &str) -> Vec<String> {
    use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};
    let mut pieces = PreTokenizedString::from(text);
    PreTokenizerName::named(Some(pre)).unwrap().steps().pre_tokenize(&mut pieces).unwrap();
    let splits = pieces.get_splits(OffsetReferential::Original, OffsetType::Byte);
    splits.iter().map(|(_, (start, end), _)| text[*start..*end].to_owned()).collect()
}

#[test]
fn words_are_cut_as_the_original_expressions_say() {
    let text = "I'll\tsay (12345) a\n\n  b  ";
    let all: String = ["gpt-2", "smollm", "llama-bpe", "qwen2"]
        .map(|pre| format!("{pre}: {:?}\n", words(pre, text)))
        .concat();
    expect![[r#"
        gpt-2: ["I", "'ll", "\t", "say", " (", "12345", ")", " a", "\n\n ", " b", "  "]
        smollm: ["I", "'ll", "\t", "say", " (", "1", "2", "3", "4", "5", ")", " a", "\n\n ", " b", "  "]
        llama-bpe: ["I", "'ll", "\tsay", " (", "123", "45", ")", " a", "\n\n", " ", " b", "  "]
        qwen2: ["I", "'ll", "\tsay", " (", "1", "2", "3", "4", "5", ")", " a", "\n\n", " ", " b", "  "]
    "#]].assert_eq(&all);
}

#[test]
fn sentence_piece_merges_by_score_and_spells_what_it_does_not_know_in_bytes() {
    // "bc" before "ab": not "▁ab|c", although that begins further left.
    check(&tiny::sentence_piece(), "abc", expect!["▁a|bc"]);
    check(&tiny::sentence_piece(), "ab  é\n<s>a", expect!["▁ab|▁▁|<0xC3>|<0xA9>|<0x0A>|<s>|▁a"]);
}

#[test]
fn merges_come_from_scores_in_the_converters_order() {
    // Computed with transformers' generate_merges for the same vocabulary and scores.
    let merges = merges_by_score(&tiny::sentence_piece());
    let merges: Vec<_> = merges.iter().map(|(l, r)| format!("{l}+{r}")).collect();
    expect!["b+c a+b ▁+a ab+c a+bc ▁a+b ▁+ab ▁+▁"].assert_eq(&merges.join(" "));
}

#[test]
fn what_we_cannot_build_is_refused_by_name() {
    let refusal = |gguf: GgufTokenizer| build(&gguf).unwrap_err().to_string();
    let bert = GgufTokenizer { model: "bert".into(), ..GgufTokenizer::default() };
    expect![[r#"tokenizer model "bert" is not supported (gpt2 and llama are)"#]]
        .assert_eq(&refusal(bert));
    expect![[r#"pre-tokenizer "tekken" is not supported (smollm, llama-bpe, qwen2, gpt-2 and default are)"#]]
        .assert_eq(&refusal(tiny::byte_level(Some("tekken"))));
    let mut short = tiny::byte_level(None);
    short.token_types.pop();
    expect!["token_type has 265 entries for 266 tokens"].assert_eq(&refusal(short));
    let mut unscored = tiny::sentence_piece();
    unscored.scores.clear();
    expect!["scores has 0 entries for 269 tokens"].assert_eq(&refusal(unscored));
    let mut merge = tiny::byte_level(None);
    merge.merges.push("he".into());
    expect![[r#"merge "he" is not two tokens"#]].assert_eq(&refusal(merge));
    let mut unknown = tiny::byte_level(None);
    unknown.merges.push("x yz".into());
    expect!["vocabulary and merges do not fit: Token `yz` out of vocabulary"]
        .assert_eq(&refusal(unknown));
}

#[test]
fn bos_is_added_where_the_file_or_its_kind_says_so() {
    let adds = |gguf| build(&gguf).unwrap().add_bos;
    assert!(!adds(tiny::byte_level(Some("smollm"))));
    assert!(adds(tiny::byte_level(Some("llama-bpe"))));
    assert!(adds(tiny::sentence_piece()));
    assert!(!adds(GgufTokenizer { add_bos: Some(false), ..tiny::sentence_piece() }));
}
