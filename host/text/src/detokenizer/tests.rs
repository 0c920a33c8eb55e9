use expect_test::{Expect, expect};
use proptest::prelude::*;

use super::*;
use crate::{GgufTokenizer, TokenizerSource, tiny};

/// One line per token: what it gave.
fn check(model: &Arc<TextModel>, ids: &[TokenId], expected: Expect) {
    let mut detokenizer = model.detokenizer(&[]);
    let mut story = String::new();
    for &id in ids {
        story.push_str(&format!("{id} -> {:?}\n", detokenizer.push(id)));
    }
    story.push_str(&format!("flush -> {:?}\n", detokenizer.flush()));
    expected.assert_eq(&story);
}

fn sim() -> Arc<TextModel> {
    tiny::model(TokenizerSource::Sim)
}

#[test]
fn a_character_is_given_out_whole_with_its_last_byte() {
    check(
        &sim(),
        &[0x61, 0xF0, 0x9F, 0xA6, 0x80, 0xC3, 0xA9],
        expect![[r#"
            97 -> "a"
            240 -> ""
            159 -> ""
            166 -> ""
            128 -> "🦀"
            195 -> ""
            169 -> "é"
            flush -> ""
        "#]],
    );
}

#[test]
fn bytes_that_cannot_become_a_character_do_not_stall_the_stream() {
    check(
        &sim(),
        &[0xFF, 0xE2, 0x82, 0x61, 0xF0, 0x9F],
        expect![[r#"
            255 -> "�"
            226 -> ""
            130 -> ""
            97 -> "�a"
            240 -> ""
            159 -> ""
            flush -> "�"
        "#]],
    );
}

#[test]
fn special_tokens_and_ids_beyond_the_vocabulary_give_nothing() {
    check(
        &tiny::model(TokenizerSource::Gguf(tiny::byte_level(None))),
        &[tiny::START, 2, tiny::END, 99_999],
        expect![[r#"
            0 -> ""
            2 -> "<tool>"
            1 -> ""
            99999 -> ""
            flush -> ""
        "#]],
    );
}

#[test]
fn the_space_that_sentence_piece_put_in_front_is_not_part_of_the_text() {
    let model = tiny::model(TokenizerSource::Gguf(tiny::sentence_piece()));
    let ids = model.encode(" a b", 99).unwrap();
    assert_eq!(model.decode(&ids), " a b");
}

fn models() -> [Arc<TextModel>; 4] {
    [
        sim(),
        tiny::model(TokenizerSource::Gguf(tiny::byte_level(Some("smollm")))),
        tiny::model(TokenizerSource::Gguf(tiny::sentence_piece())),
        tiny::model(TokenizerSource::Json(tiny::tokenizer_json().to_string().into())),
    ]
}

/// Ids of all kinds, and runs of byte tokens that are the UTF-8 of something. Bytes begin at
/// id 0 in the simulated vocabulary and at 3 in the others.
fn ids() -> impl Strategy<Value = Vec<TokenId>> {
    let text = ("[aé€🦀\\PC]{1,3}", 0..=3_u32).prop_map(|(text, shift)| {
        text.bytes().map(|byte| TokenId::from(byte) + shift).collect::<Vec<_>>()
    });
    let anything = prop::collection::vec(0..300_u32, 1..4);
    prop::collection::vec(prop_oneof![text, anything], 0..12).prop_map(|runs| runs.concat())
}

proptest! {
    #[test]
    fn the_pieces_concatenated_are_the_whole(ids in ids()) {
        for model in models_once() {
            let mut detokenizer = model.detokenizer(&[]);
            let mut text: String = ids.iter().map(|&id| detokenizer.push(id)).collect();
            text.push_str(&detokenizer.flush());
            prop_assert_eq!(text, model.decode(&ids));
        }
    }

    // The reference does not know our table: it is the tokenizers crate's own decoder.
    #[test]
    fn the_whole_is_what_the_tokenizers_crate_decodes(ids in ids()) {
        let theirs = tiny_tokenizer().decode(&ids, true).unwrap();
        prop_assert_eq!(models_once()[1].decode(&ids), theirs);
    }

    // Theirs gives up a whole run of byte tokens for one broken byte, so: well-formed text.
    #[test]
    fn what_was_encoded_decodes_to_itself(text in "[abc é€🦀\\PC]{0,20}") {
        for model in models_once() {
            prop_assert_eq!(model.decode(&model.encode(&text, 9999).unwrap()), text.clone());
        }
    }
}

fn models_once() -> &'static [Arc<TextModel>; 4] {
    static MODELS: std::sync::LazyLock<[Arc<TextModel>; 4]> = std::sync::LazyLock::new(models);
    &MODELS
}

fn tiny_tokenizer() -> &'static tokenizers::Tokenizer {
    static TOKENIZER: std::sync::LazyLock<tokenizers::Tokenizer> = std::sync::LazyLock::new(|| {
        crate::gguf::build(&tiny::byte_level(Some("smollm"))).unwrap().tokenizer
    });
    &TOKENIZER
}

/// The text of the tokens that follow a prompt.
fn after(model: &Arc<TextModel>, prompt: &[TokenId], answer: &[TokenId]) -> String {
    let mut detokenizer = model.detokenizer(prompt);
    let mut text: String = answer.iter().map(|&token| detokenizer.push(token)).collect();
    text.push_str(&detokenizer.flush());
    text
}

fn sentence_piece() -> Arc<TextModel> {
    tiny::model(TokenizerSource::Gguf(tiny::sentence_piece()))
}

/// Of `▁a`, which is what SentencePiece calls a word with the space before it.
const SPACE_A: TokenId = 263;

#[test]
fn an_answers_first_space_is_there_unless_the_answer_is_all_the_text() {
    let model = sentence_piece();
    let prompt = model.encode("ab", 99).unwrap();
    assert_eq!(after(&model, &prompt, &[SPACE_A]), " a");
    // `<s>` has no text, so the text begins with the answer.
    assert_eq!(after(&model, &[1], &[SPACE_A, SPACE_A]), "a a");
}

#[test]
fn a_character_that_the_prompt_began_is_the_answers() {
    let byte = |byte: u8| TokenId::from(byte) + 3;
    for model in [sentence_piece(), tiny::model(TokenizerSource::Gguf(tiny::byte_level(None)))] {
        let prompt = [byte(b'a'), byte(0xE2), byte(0x82)];
        assert_eq!(after(&model, &prompt, &[byte(0xAC), byte(b'b')]), "€b");
        // What the prompt began and nobody ends is the prompt's U+FFFD.
        assert_eq!(after(&model, &prompt, &[byte(b'b')]), "b");
        assert_eq!(after(&model, &prompt[..2], &[byte(0x82)]), "");
        assert_eq!(after(&model, &prompt, &[byte(0xE2)]), "\u{FFFD}");
    }
}

#[test]
fn a_gguf_without_a_space_prefix_neither_adds_one_nor_drops_one() {
    let gguf = GgufTokenizer { add_space_prefix: Some(false), ..tiny::sentence_piece() };
    let model = tiny::model(TokenizerSource::Gguf(gguf));
    let [bos, rest @ ..] = &model.encode("ab a", 99).unwrap()[..] else { panic!("no tokens") };
    assert_eq!((*bos, model.decode(rest)), (1, "ab a".to_owned()));
    assert_eq!(model.token_bytes(rest[0]), b"ab");
    assert_eq!(after(&model, &[1], &[SPACE_A]), " a");
}

/// What a text begins with, in the terms of what follows it: everything up to the first letter in
/// which both differ.
fn rest<'t>(whole: &'t str, begins: &str) -> &'t str {
    let same = whole.chars().zip(begins.chars()).take_while(|(a, b)| a == b);
    &whole[same.map(|(letter, _)| letter.len_utf8()).sum()..]
}

proptest! {
    #[test]
    fn prompt_and_answer_together_are_the_text_that_the_model_wrote(
        prompt in ids(), answer in ids(),
    ) {
        for model in models_once() {
            let both = [&prompt[..], &answer].concat();
            let expected = model.decode(&both);
            let expected = rest(&expected, &model.decode(&prompt));
            prop_assert_eq!(&after(model, &prompt, &answer), expected);
        }
    }
}

/// SentencePiece's tokenizers, each with the model that we make of it: with and without a space in
/// front, and with Metaspace for a decoder.
fn sentence_pieces() -> Vec<(tokenizers::Tokenizer, Arc<TextModel>)> {
    use tokenizers::decoders::metaspace::{Metaspace, PrependScheme};

    let build = |add_space_prefix| {
        let gguf = GgufTokenizer { add_space_prefix, ..tiny::sentence_piece() };
        crate::gguf::build(&gguf).unwrap().tokenizer
    };
    let metaspace = |scheme| {
        let mut tokenizer = build(Some(scheme != PrependScheme::Never));
        tokenizer.with_decoder(Some(Metaspace::new('\u{2581}', scheme, false)));
        tokenizer
    };
    let tokenizers = [
        build(None),
        build(Some(false)),
        metaspace(PrependScheme::Always),
        metaspace(PrependScheme::First),
        metaspace(PrependScheme::Never),
    ];
    let model = |tokenizer: tokenizers::Tokenizer| {
        let json = tokenizer.to_string(false).unwrap().into_bytes();
        (tokenizer, tiny::model(TokenizerSource::Json(json)))
    };
    tokenizers.map(model).into()
}

proptest! {
    // The reference is the tokenizers crate's decoding of prompt and answer, less that of the prompt.
    // It gives up all characters in a run of byte tokens for one that is cut, so: one in each.
    #[test]
    fn an_answer_is_what_the_tokenizers_crate_decodes_beyond_the_prompt(
        plain in "[abc ]{1,12}", any in "([ab ][é€🦀]?){1,6}", cut in any::<prop::sample::Index>(),
    ) {
        static MODELS: std::sync::LazyLock<Vec<(tokenizers::Tokenizer, Arc<TextModel>)>> =
            std::sync::LazyLock::new(sentence_pieces);
        for (number, (tokenizer, model)) in MODELS.iter().enumerate() {
            // Metaspace's decoder knows no bytes.
            for text in [Some(&plain), Some(&any).filter(|_| number < 2)].into_iter().flatten() {
                let encoding = tokenizer.encode_fast(text.as_str(), false).unwrap();
                let ids = encoding.get_ids();
                let (prompt, answer) = ids.split_at(1 + cut.index(ids.len()));
                let decode = |ids: &[TokenId]| tokenizer.decode(ids, true).unwrap();
                let whole = decode(ids);
                prop_assert_eq!(&after(model, prompt, answer), rest(&whole, &decode(prompt)));
            }
        }
    }
}
