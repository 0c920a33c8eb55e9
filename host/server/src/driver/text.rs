//! Tokens in, text out, until a stop string ends it.
//!
//! # When a token is told
//!
//! With the first of its text, if the client asked how likely tokens were. What is held back, be
//! it part of a character or what may become a stop string, holds its tokens back too. A token
//! without text, such as an end marker that was to be ignored, is told with the text behind it or
//! at the end. When a stop string cuts the text, tokens that begin behind the cut are not told;
//! one that begins before it is, though its own end was cut.
//!
//! # Special tokens
//!
//! They have no text, but a stop string may hold their names: it ends the text at the place of the
//! token. So may one that is drawn because the model's end is ignored.
//!
//! # At least so many tokens
//!
//! A stop string counts when the token that completes it comes after the first `tokens_min`; it
//! may begin in one of those, and is then cut from there. One that is complete within them is
//! text like any other. This is what vLLM does.

use std::collections::VecDeque;

use interlock_request::Drawn;
use interlock_text::{Detokenizer, StopMatcher, Stopped};

use crate::chunks::{TextChunk, TokenLogprob};

/// One answer's text in the making.
pub(crate) struct AnswerDecoder {
    detokenizer: Detokenizer,
    stops: StopMatcher,
    tokens_min: u32,
    /// Tokens so far.
    drawn: u32,
    /// Characters made of them.
    made: usize,
    /// Characters that were given out.
    given: usize,
    /// Tokens whose text was not given out yet.
    held: VecDeque<TokenLogprob>,
    /// Tokens drawn when a stop string was complete.
    stopped_after: Option<u32>,
}

impl AnswerDecoder {
    pub(crate) fn new(detokenizer: Detokenizer, stops: Vec<String>, tokens_min: u32) -> Self {
        Self {
            stops: detokenizer.model().stop_matcher(stops),
            detokenizer,
            tokens_min,
            drawn: 0,
            made: 0,
            given: 0,
            held: VecDeque::new(),
            stopped_after: None,
        }
    }

    /// How many tokens had been drawn when a stop string was complete.
    pub(crate) fn stopped_after(&self) -> Option<u32> {
        self.stopped_after
    }

    /// Text that cannot be part of a stop string any more, and its tokens.
    pub(crate) fn push(&mut self, drawn: Drawn) -> TextChunk {
        let Drawn { token, logprobs } = drawn;
        self.drawn += 1;
        if let Some(logprobs) = logprobs {
            self.held.push_back(TokenLogprob { token, at: self.made, logprobs });
        }
        match self.detokenizer.model().special_name(token) {
            Some(name) => self.take_special(&name),
            None => {
                let text = self.detokenizer.push(token);
                self.take(text)
            }
        }
    }

    /// What was held back, now that nothing follows.
    pub(crate) fn flush(&mut self) -> TextChunk {
        let text = self.detokenizer.flush();
        let mut chunk = self.take(text);
        if self.stopped_after.is_none() {
            let rest = self.stops.flush();
            chunk.join(self.give(rest));
            chunk.tokens.extend(self.held.drain(..));
        }
        chunk
    }

    fn take(&mut self, text: String) -> TextChunk {
        self.made += text.chars().count();
        if self.stops.is_empty() {
            return self.give(text);
        }
        if self.drawn <= self.tokens_min {
            let emit = self.stops.pass(&text);
            return self.give(emit);
        }
        let stopped = self.stops.push(&text);
        self.stop(stopped)
    }

    fn take_special(&mut self, name: &str) -> TextChunk {
        if self.drawn <= self.tokens_min {
            let emit = self.stops.pass_special(name);
            return self.give(emit);
        }
        let stopped = self.stops.push_special(name);
        self.stop(stopped)
    }

    fn stop(&mut self, Stopped { emit, stopped }: Stopped) -> TextChunk {
        if stopped {
            self.stopped_after = Some(self.drawn);
        }
        self.give(emit)
    }

    fn give(&mut self, text: String) -> TextChunk {
        self.given += text.chars().count();
        let begun = self.held.partition_point(|logprob| logprob.at < self.given);
        TextChunk { text, tokens: self.held.drain(..begun).collect() }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use expect_test::{Expect, expect};
    use interlock_request::{Logprobs, TokenId};
    use interlock_text::{GgufTokenizer, TextModel, TextParts, TokenizerSource};

    use super::*;

    /// Bytes are tokens here, and 256 is one without text. One line for each token, then one for
    /// the flush: what text came out, and which tokens with it, each at its place.
    fn check(stops: &[&str], tokens_min: u32, tokens: &[&[u8]], expected: &Expect) {
        let ids = tokens.iter().flat_map(|bytes| match bytes {
            [] => vec![256],
            bytes => bytes.iter().map(|&byte| u32::from(byte)).collect(),
        });
        check_with(&model(TokenizerSource::Sim), stops, tokens_min, ids, expected);
    }

    fn model(tokenizer: TokenizerSource) -> Arc<TextModel> {
        let parts = TextParts {
            tokenizer,
            chat_template: None,
            special_tokens: Default::default(),
            eos: vec![],
        };
        Arc::new(TextModel::new(parts).expect("a text model"))
    }

    fn check_with(
        model: &Arc<TextModel>,
        stops: &[&str],
        tokens_min: u32,
        ids: impl Iterator<Item = TokenId>,
        expected: &Expect,
    ) {
        let stops = stops.iter().map(ToString::to_string).collect();
        let mut text = AnswerDecoder::new(model.detokenizer(&[]), stops, tokens_min);
        let mut story = String::new();
        let mut tell = |what: &str, chunk: &TextChunk, stopped: Option<u32>| {
            let tokens: Vec<String> = chunk
                .tokens
                .iter()
                .map(|logprob| format!(" {}@{}", named(model, logprob.token), logprob.at))
                .collect();
            let stopped = stopped.map(|n| format!(", stopped after {n}")).unwrap_or_default();
            story.push_str(&format!("{what} -> {:?}{}{stopped}\n", chunk.text, tokens.concat()));
        };
        for token in ids {
            let logprobs = Some(Box::new(Logprobs { drawn: -0.5, top: vec![] }));
            let chunk = text.push(Drawn { token, logprobs });
            tell(&named(model, token), &chunk, text.stopped_after());
            if text.stopped_after().is_some() {
                break;
            }
        }
        if text.stopped_after().is_none() {
            tell("flush", &text.flush(), None);
        }
        expected.assert_eq(&story);
    }

    fn named(model: &TextModel, token: u32) -> String {
        let bytes = model.token_bytes(token);
        std::str::from_utf8(&bytes)
            .map_or_else(|_| format!("{bytes:x?}"), |text| format!("{text:?}"))
    }

    #[test]
    fn a_token_is_told_with_its_text() {
        check(
            &[],
            0,
            &[b"ab"],
            &expect![[r#"
                "a" -> "a" "a"@0
                "b" -> "b" "b"@1
                flush -> ""
            "#]],
        );
    }

    #[test]
    fn the_tokens_of_a_character_are_told_with_it() {
        check(
            &[],
            0,
            &["é€x".as_bytes()],
            &expect![[r#"
                [c3] -> ""
                [a9] -> "é" [c3]@0 [a9]@0
                [e2] -> ""
                [82] -> ""
                [ac] -> "€" [e2]@1 [82]@1 [ac]@1
                "x" -> "x" "x"@2
                flush -> ""
            "#]],
        );
    }

    #[test]
    fn what_may_become_a_stop_holds_its_tokens_back_and_a_stop_takes_them_along() {
        check(
            &["xyz"],
            0,
            &[b"axybxyzc"],
            &expect![[r#"
                "a" -> "a" "a"@0
                "x" -> ""
                "y" -> ""
                "b" -> "xyb" "x"@1 "y"@2 "b"@3
                "x" -> ""
                "y" -> ""
                "z" -> "", stopped after 7
            "#]],
        );
    }

    #[test]
    fn a_token_without_text_is_told_with_what_follows_or_at_the_end() {
        check(
            &[],
            0,
            &[b"", b"a", b"", b"", b"b", b""],
            &expect![[r#"
                "<eos>" -> ""
                "a" -> "a" "<eos>"@0 "a"@0
                "<eos>" -> ""
                "<eos>" -> ""
                "b" -> "b" "<eos>"@1 "<eos>"@1 "b"@1
                "<eos>" -> ""
                flush -> "" "<eos>"@2
            "#]],
        );
    }

    #[test]
    fn a_character_that_never_became_whole_is_told_at_the_end() {
        check(
            &[],
            0,
            &[b"a\xe2\x82"],
            &expect![[r#"
                "a" -> "a" "a"@0
                [e2] -> ""
                [82] -> ""
                flush -> "�" [e2]@1 [82]@1
            "#]],
        );
    }

    /// The same with words for tokens.
    fn check_words(stops: &[&str], input: &[&str], expected: &Expect) {
        let vocabulary = GgufTokenizer {
            model: "gpt2".into(),
            tokens: input.iter().map(ToString::to_string).collect(),
            token_types: vec![1; input.len()],
            ..GgufTokenizer::default()
        };
        let model = model(TokenizerSource::Gguf(vocabulary));
        check_with(&model, stops, 0, 0..u32::try_from(input.len()).expect("a few"), expected);
    }

    #[test]
    fn a_token_that_begins_before_a_stop_is_told_and_one_that_begins_in_it_is_not() {
        check_words(
            &["xyz"],
            &["a", "bx", "yz"],
            &expect![[r#"
            "a" -> "a" "a"@0
            "bx" -> "b" "bx"@1
            "yz" -> "", stopped after 3
        "#]],
        );
        check_words(
            &["xyz"],
            &["ab", "xyzc"],
            &expect![[r#"
            "ab" -> "ab" "ab"@0
            "xyzc" -> "", stopped after 2
        "#]],
        );
    }

    #[test]
    fn a_token_is_told_with_the_first_of_its_text() {
        check_words(
            &["xyz"],
            &["ax", "y", "x"],
            &expect![[r#"
            "ax" -> "a" "ax"@0
            "y" -> ""
            "x" -> "xy" "y"@2
            flush -> "x" "x"@3
        "#]],
        );
    }

    #[test]
    fn a_stop_that_is_complete_within_the_least_tokens_is_text() {
        check(
            &["ab"],
            2,
            &[b"ababc"],
            &expect![[r#"
                "a" -> ""
                "b" -> "ab" "a"@0 "b"@1
                "a" -> ""
                "b" -> "", stopped after 4
            "#]],
        );
    }

    #[test]
    fn a_stop_that_is_complete_after_the_least_tokens_may_begin_within_them() {
        check(
            &["ab"],
            3,
            &[b"ababc"],
            &expect![[r#"
                "a" -> ""
                "b" -> "ab" "a"@0 "b"@1
                "a" -> ""
                "b" -> "", stopped after 4
            "#]],
        );
        check(
            &["ab"],
            4,
            &[b"ababc"],
            &expect![[r#"
                "a" -> ""
                "b" -> "ab" "a"@0 "b"@1
                "a" -> ""
                "b" -> "ab" "a"@2 "b"@3
                "c" -> "c" "c"@4
                flush -> ""
            "#]],
        );
    }

    #[test]
    fn a_special_token_is_a_stop_once_the_least_tokens_are_generated() {
        check(
            &["b<eos>"],
            2,
            &[b"b", b"", b"ab", b"", b"c"],
            &expect![[r#"
                "b" -> ""
                "<eos>" -> ""
                "a" -> "ba" "b"@0 "<eos>"@1 "a"@1
                "b" -> ""
                "<eos>" -> "", stopped after 5
            "#]],
        );
    }

    #[test]
    fn an_answer_shorter_than_its_least_is_whole() {
        check(
            &["ab"],
            9,
            &[b"cab"],
            &expect![[r#"
                "c" -> "c" "c"@0
                "a" -> ""
                "b" -> "ab" "a"@1 "b"@2
                flush -> ""
            "#]],
        );
    }
}
