//! Finds all patterns in a text that comes in pieces.
//!
//! [`Filter::scan`] is given a window and says what to release of it, and how much to hold back.
//! What was released comes out the same wherever windows end: that is a test below.
//!
//! # Invariants
//!
//! - What is held back begins where no match is in progress and no word goes on. So a scan needs
//!   no memory of the windows before: policies have none.
//! - At most twice the limit is held back: one possible match, in one word.

use crate::pattern::{Pattern, Reach, in_word};

/// What happens to a match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// This stands in its place.
    Redact(String),
    /// The answer ends before it, with these words.
    Stop(String),
}

/// A pattern and what it is for.
#[derive(Debug)]
pub(crate) struct Rule {
    pub(crate) name: String,
    pub(crate) pattern: Pattern,
    pub(crate) action: Action,
}

/// All rules.
#[derive(Debug)]
pub(crate) struct Filter {
    /// Of matches as long as each other, the first rule's counts.
    pub(crate) rules: Vec<Rule>,
    /// Most bytes that a match has.
    pub(crate) limit: usize,
    /// Does any rule ask where words begin?
    pub(crate) words: bool,
}

/// What became of a window.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Scanned {
    /// What the client may have.
    pub(crate) text: String,
    /// How many bytes, from the back of the window, it may not have yet.
    pub(crate) hold: usize,
    /// Does the answer end here?
    pub(crate) stopped: bool,
    /// The rules that matched, in the order of their matches.
    pub(crate) matched: Vec<usize>,
}

impl Filter {
    /// Scans a window: what was held back, and behind it what is new.
    pub(crate) fn scan(&self, text: &str, finished: bool) -> Scanned {
        let mut scanned = Scanned::default();
        // `released`: up to here it is decided. `word`: where the word began that goes on at `at`.
        let (mut at, mut released, mut word) = (0, 0, None);
        while let Some(letter) = text[at..].chars().next() {
            match self.match_at(&text[at..], word.is_none(), finished) {
                Err(()) => {
                    let from = word.filter(|_| self.words).unwrap_or(at);
                    scanned.text.push_str(&text[released..from]);
                    scanned.hold = text.len() - from;
                    return scanned;
                }
                Ok(Some((rule, bytes))) => {
                    scanned.text.push_str(&text[released..at]);
                    scanned.matched.push(rule);
                    match &self.rules[rule].action {
                        Action::Redact(with) => scanned.text.push_str(with),
                        Action::Stop(with) => {
                            scanned.text.push_str(with);
                            scanned.stopped = true;
                            return scanned;
                        }
                    }
                    at += bytes;
                    released = at;
                    word = None;
                }
                Ok(None) => {
                    let after = at + letter.len_utf8();
                    // A word longer than the limit counts as several, or all of it would be held.
                    word = in_word(letter)
                        .then(|| word.unwrap_or(at))
                        .filter(|&began| after - began < self.limit);
                    at = after;
                }
            }
        }
        let from = word.filter(|_| self.words && !finished).unwrap_or(text.len());
        scanned.text.push_str(&text[released..from]);
        scanned.hold = text.len() - from;
        scanned
    }

    /// The rule with the longest match here, and how long it is; `Err`: it depends on what comes.
    fn match_at(
        &self,
        text: &str,
        fresh: bool,
        finished: bool,
    ) -> Result<Option<(usize, usize)>, ()> {
        let mut longest = None;
        for (index, rule) in self.rules.iter().enumerate() {
            match rule.pattern.reach(text, fresh, finished, self.limit) {
                Reach::Unknown => return Err(()),
                Reach::Bytes(bytes) if longest.is_none_or(|(_, most)| bytes > most) => {
                    longest = Some((index, bytes));
                }
                _ => {}
            }
        }
        Ok(longest)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::pattern::Options;

    fn filter(limit: usize) -> Filter {
        let plain = Options::default();
        let words = Options { ignore_case: true, words: true };
        let rule = |name: &str, pattern: Result<Pattern, String>, with: &str| Rule {
            name: name.into(),
            pattern: pattern.expect("a pattern"),
            action: Action::Redact(with.into()),
        };
        let rules = vec![
            rule("literal", Pattern::text("abca", plain), "<1>"),
            rule("overlapping", Pattern::text("caba", plain), "<2>"),
            rule("regex", Pattern::regex("a(b|ü)+ ?c", plain), "<3>"),
            rule("word", Pattern::text("bb", words), "<4>"),
            rule("no ascii", Pattern::text("äü", plain), ""),
            rule("endless", Pattern::regex("cc[ab]*", plain), "<6>"),
        ];
        Filter { rules, limit, words: true }
    }

    /// What a client gets when the text comes in these pieces, and the most that was held back.
    fn streamed(filter: &Filter, pieces: &[&str]) -> (String, usize) {
        let (mut got, mut held, mut most) = (String::new(), String::new(), 0);
        for (index, piece) in pieces.iter().enumerate() {
            let window = held.clone() + piece;
            let scanned = filter.scan(&window, index + 1 == pieces.len());
            got.push_str(&scanned.text);
            held = window[window.len() - scanned.hold..].to_owned();
            most = most.max(scanned.hold);
            if scanned.stopped {
                return (got, most);
            }
        }
        assert_eq!(held, "", "nothing is held back at the end");
        (got, most)
    }

    /// The text cut where the numbers say, in pieces that may be empty.
    fn cut<'a>(text: &'a str, cuts: &[usize]) -> Vec<&'a str> {
        let mut places: Vec<usize> = cuts
            .iter()
            .map(|cut| cut % (text.len() + 1))
            .filter(|&place| text.is_char_boundary(place))
            .chain([0, text.len()])
            .collect();
        places.sort_unstable();
        places.windows(2).map(|pair| &text[pair[0]..pair[1]]).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn what_comes_out_does_not_depend_on_the_windows(
            text in "[abcü ä.]{0,60}",
            cuts in prop::collection::vec(any::<usize>(), 0..20),
            limit in 4_usize..20,
        ) {
            let filter = filter(limit);
            let whole = filter.scan(&text, true);
            let (got, held) = streamed(&filter, &cut(&text, &cuts));
            prop_assert_eq!(got, whole.text);
            prop_assert!(held <= 2 * limit, "held {} of limit {}", held, limit);
        }

        #[test]
        fn an_answer_is_stopped_at_the_same_place_in_any_windows(
            text in "[abcü ä.]{0,60}",
            cuts in prop::collection::vec(any::<usize>(), 0..20),
        ) {
            let mut filter = filter(16);
            filter.rules[1].action = Action::Stop("!".into());
            let whole = filter.scan(&text, true);
            prop_assert_eq!(streamed(&filter, &cut(&text, &cuts)).0, whole.text);
        }

        #[test]
        fn one_letter_at_a_time_is_a_window_as_well(text in "[abcü ä.]{0,60}") {
            let filter = filter(12);
            let pieces: Vec<&str> =
                text.split_inclusive(|_: char| true).chain([""]).collect();
            prop_assert_eq!(streamed(&filter, &pieces).0, filter.scan(&text, true).text);
        }
    }

    #[test]
    fn ordinary_text_is_not_held_back() {
        let rules = vec![Rule {
            name: "key".into(),
            pattern: Pattern::regex("sk-[a-z]{4,}", Options::default()).expect("a pattern"),
            action: Action::Redact("[key]".into()),
        }];
        let filter = Filter { rules, limit: 64, words: false };
        let scanned = filter.scan("all is said, nothing sk", false);
        assert_eq!((scanned.text.as_str(), scanned.hold), ("all is said, nothing ", 2));
        let scanned = filter.scan("sky is blue sk-abcdef", false);
        assert_eq!((scanned.text.as_str(), scanned.hold), ("sky is blue ", 9));
        let scanned = filter.scan("sk-abcdef, sk-gh", true);
        assert_eq!((scanned.text.as_str(), scanned.hold), ("[key], sk-gh", 0));
    }

    #[test]
    fn a_word_longer_than_the_limit_is_not_held_for_ever() {
        let filter = filter(8);
        let (got, held) = streamed(&filter, &cut(&"d".repeat(100), &[9, 20, 31, 50, 77]));
        assert_eq!(got, "d".repeat(100));
        assert!(held <= 16, "{held}");
    }
}
