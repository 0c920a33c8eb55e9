//! Patterns: a small language of regular expressions, and how far one matches from a place.
//!
//! # Why not a crate
//!
//! A window ends anywhere, so the question is not "is there a match?" but "could what stands here
//! still become one?". Crates for regular expressions do not answer it for text that is not there
//! yet; this one does, in a fraction of their size.
//!
//! # Invariants
//!
//! - No pattern matches nothing, and none matches more than its limit of bytes. So what a window
//!   may hold back has a bound, and a pattern without end (`a+`) still ends.
//! - The longest match counts. It does not depend on where windows end.

use std::iter::Peekable;
use std::str::Chars;

/// How many states a pattern may have: repeats are written out, so `{1000}` counts a thousand.
const STATES_MAX: usize = 2_000;

/// A pattern, ready to match.
#[derive(Debug)]
pub(crate) struct Pattern {
    states: Vec<State>,
    /// Where it begins; each of them takes something.
    first: Vec<usize>,
    words: bool,
}

/// One step of the automaton.
#[derive(Debug)]
enum State {
    /// Takes a character of this kind.
    Take(Class, usize),
    /// Goes both ways, taking nothing.
    Fork(usize, usize),
    /// The pattern has matched.
    Done,
}

/// A kind of character.
#[derive(Debug, Clone, Default)]
struct Class {
    ranges: Vec<(char, char)>,
    negated: bool,
    ignore_case: bool,
}

/// How far a pattern matches from a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Not at all.
    Nowhere,
    /// So many bytes.
    Bytes(usize),
    /// It depends on what comes.
    Unknown,
}

/// How a pattern is to be read and matched.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Options {
    /// `ä` is `Ä`.
    pub(crate) ignore_case: bool,
    /// It begins and ends where words do.
    pub(crate) words: bool,
}

/// Is this a part of a word?
pub(crate) fn in_word(letter: char) -> bool {
    letter.is_alphanumeric() || letter == '_'
}

impl Pattern {
    /// A text that is what it is.
    pub(crate) fn text(text: &str, options: Options) -> Result<Self, String> {
        let letters = text.chars().map(|letter| Node::Class(Class::only(letter))).collect();
        Self::build(&Node::All(letters), options)
    }

    /// A regular expression.
    pub(crate) fn regex(text: &str, options: Options) -> Result<Self, String> {
        let mut parser = Parser { rest: text.chars().peekable() };
        let node = parser.either()?;
        match parser.rest.next() {
            None => Self::build(&node, options),
            Some(left) => Err(format!("there is a {left:?} too many")),
        }
    }

    fn build(node: &Node, options: Options) -> Result<Self, String> {
        let mut pattern = Self { states: vec![State::Done], first: vec![], words: options.words };
        let start = pattern.add(node, 0, options)?;
        pattern.first = pattern.closure(&[start]);
        if pattern.first.contains(&0) {
            return Err("it matches where nothing is".into());
        }
        Ok(pattern)
    }

    /// Adds the states of a node that goes on to `next`; where they begin.
    fn add(&mut self, node: &Node, next: usize, options: Options) -> Result<usize, String> {
        if self.states.len() > STATES_MAX {
            return Err(format!("it is longer than {STATES_MAX} characters, repeats written out"));
        }
        match node {
            Node::Class(class) => {
                let class = Class { ignore_case: options.ignore_case, ..class.clone() };
                Ok(self.state(State::Take(class, next)))
            }
            Node::All(nodes) => {
                nodes.iter().rev().try_fold(next, |next, node| self.add(node, next, options))
            }
            Node::Either(left, right) => {
                let left = self.add(left, next, options)?;
                let right = self.add(right, next, options)?;
                Ok(self.state(State::Fork(left, right)))
            }
            Node::Repeat(node, least, most) => {
                let mut start = next;
                match most {
                    Some(most) => {
                        for _ in *least..*most {
                            let once = self.add(node, start, options)?;
                            start = self.state(State::Fork(once, next));
                        }
                    }
                    None => {
                        let again = self.state(State::Done);
                        let once = self.add(node, again, options)?;
                        self.states[again] = State::Fork(once, next);
                        start = again;
                    }
                }
                (0..*least).try_fold(start, |next, _| self.add(node, next, options))
            }
        }
    }

    fn state(&mut self, state: State) -> usize {
        self.states.push(state);
        self.states.len() - 1
    }

    /// These states, and where they go without taking anything.
    fn closure(&self, from: &[usize]) -> Vec<usize> {
        let mut seen = vec![false; self.states.len()];
        let mut open = from.to_vec();
        let mut reached = vec![];
        while let Some(at) = open.pop() {
            if std::mem::replace(&mut seen[at], true) {
                continue;
            }
            match self.states[at] {
                State::Fork(left, right) => open.extend([right, left]),
                _ => reached.push(at),
            }
        }
        reached
    }

    /// How far it matches from the front of `text`, at most `limit` bytes. `fresh`: no word goes
    /// on here. `finished`: nothing comes after `text`.
    pub(crate) fn reach(&self, text: &str, fresh: bool, finished: bool, limit: usize) -> Reach {
        // Most of the time nothing begins here, and that costs nothing.
        let begins = |letter| self.first.iter().any(|&at| self.takes(at, letter).is_some());
        if self.words && !fresh || !text.starts_with(begins) {
            return Reach::Nowhere;
        }
        let mut found = Reach::Nowhere;
        let mut states = self.first.clone();
        let mut letters = text.char_indices();
        loop {
            let here = letters.offset();
            let letter = letters.next().map(|(_, letter)| letter);
            if states.contains(&0) {
                let word_goes_on = self.words && letter.is_some_and(in_word);
                let may_go_on = self.words && letter.is_none() && !finished;
                if may_go_on {
                    return Reach::Unknown;
                }
                if !word_goes_on {
                    found = Reach::Bytes(here);
                }
            }
            // Those that want more.
            if states.iter().all(|&at| at == 0) {
                return found;
            }
            let Some(letter) = letter else {
                return if finished { found } else { Reach::Unknown };
            };
            if here + letter.len_utf8() > limit {
                return found;
            }
            let next: Vec<usize> = states.iter().filter_map(|&at| self.takes(at, letter)).collect();
            if next.is_empty() {
                return found;
            }
            states = self.closure(&next);
        }
    }
}

impl Pattern {
    /// Where a state goes on that takes this letter.
    fn takes(&self, at: usize, letter: char) -> Option<usize> {
        match &self.states[at] {
            State::Take(class, next) if class.has(letter) => Some(*next),
            _ => None,
        }
    }
}

impl Class {
    fn only(letter: char) -> Self {
        Self { ranges: vec![(letter, letter)], ..Self::default() }
    }

    fn of(ranges: &[(char, char)], negated: bool) -> Self {
        Self { ranges: ranges.to_vec(), negated, ..Self::default() }
    }

    fn has(&self, letter: char) -> bool {
        let within = |letter| self.ranges.iter().any(|&(from, to)| from <= letter && letter <= to);
        let here = within(letter)
            || self.ignore_case
                && (letter.to_lowercase().any(within) || letter.to_uppercase().any(within));
        here != self.negated
    }
}

/// A pattern as it is written.
enum Node {
    Class(Class),
    All(Vec<Node>),
    Either(Box<Node>, Box<Node>),
    Repeat(Box<Node>, u32, Option<u32>),
}

struct Parser<'a> {
    rest: Peekable<Chars<'a>>,
}

impl Parser<'_> {
    /// `a|b|c`
    fn either(&mut self) -> Result<Node, String> {
        let left = self.all()?;
        if self.rest.next_if_eq(&'|').is_none() {
            return Ok(left);
        }
        Ok(Node::Either(Box::new(left), Box::new(self.either()?)))
    }

    /// `abc`
    fn all(&mut self) -> Result<Node, String> {
        let mut nodes = vec![];
        while let Some(letter) = self.rest.next_if(|letter| !matches!(letter, '|' | ')')) {
            let one = self.one(letter)?;
            nodes.push(self.repeated(one)?);
        }
        Ok(Node::All(nodes))
    }

    fn one(&mut self, letter: char) -> Result<Node, String> {
        Ok(match letter {
            '(' => {
                if self.rest.next_if_eq(&'?').is_some() {
                    return Err("(? is not known here".into());
                }
                let inner = self.either()?;
                self.rest.next_if_eq(&')').ok_or("a ( has no )")?;
                inner
            }
            '[' => Node::Class(self.class()?),
            '.' => Node::Class(Class::of(&[('\n', '\n')], true)),
            '\\' => Node::Class(self.escape()?),
            '?' | '*' | '+' | '{' => return Err(format!("a {letter:?} has nothing to repeat")),
            '^' | '$' => {
                return Err(format!(
                    "{letter:?} is not known here, {letter:?} itself is \\{letter}"
                ));
            }
            letter => Node::Class(Class::only(letter)),
        })
    }

    /// `a?`, `a*`, `a+`, `a{2}`, `a{2,}`, `a{2,5}`
    fn repeated(&mut self, node: Node) -> Result<Node, String> {
        let (least, most) =
            match self.rest.next_if(|letter| matches!(letter, '?' | '*' | '+' | '{')) {
                None => return Ok(node),
                Some('?') => (0, Some(1)),
                Some('*') => (0, None),
                Some('+') => (1, None),
                Some(_) => {
                    let least = self.number()?.ok_or("a { has no number")?;
                    let most = match self.rest.next_if_eq(&',') {
                        Some(_) => self.number()?,
                        None => Some(least),
                    };
                    self.rest.next_if_eq(&'}').ok_or("a { has no }")?;
                    (least, most)
                }
            };
        if most.is_some_and(|most| most < least || most == 0) {
            return Err(format!("a repeat of {least} to {} makes no sense", most.unwrap_or(0)));
        }
        if self.rest.next_if(|letter| matches!(letter, '?' | '*' | '+' | '{')).is_some() {
            return Err("a repeat is repeated; put the first one in ( )".into());
        }
        Ok(Node::Repeat(Box::new(node), least, most))
    }

    fn number(&mut self) -> Result<Option<u32>, String> {
        let mut digits = String::new();
        while let Some(digit) = self.rest.next_if(char::is_ascii_digit) {
            digits.push(digit);
        }
        if digits.is_empty() {
            return Ok(None);
        }
        digits.parse().map(Some).map_err(|_| format!("{digits} is too many"))
    }

    /// `[a-z_]`, `[^0-9]`, behind its bracket.
    fn class(&mut self) -> Result<Class, String> {
        let negated = self.rest.next_if_eq(&'^').is_some();
        let mut ranges = vec![];
        loop {
            let from = match self.rest.next().ok_or("a [ has no ]")? {
                ']' => break,
                '\\' => {
                    let class = self.escape()?;
                    match class.ranges[..] {
                        [(one, other)] if one == other && !class.negated => one,
                        _ if class.negated => return Err("a negated kind stands inside [ ]".into()),
                        _ => {
                            ranges.extend(class.ranges);
                            continue;
                        }
                    }
                }
                letter => letter,
            };
            let mut to = from;
            if self.rest.next_if_eq(&'-').is_some() {
                match self.rest.next().ok_or("a [ has no ]")? {
                    // The - stands for itself.
                    ']' => {
                        ranges.extend([(from, from), ('-', '-')]);
                        break;
                    }
                    letter => to = letter,
                }
            }
            if to < from {
                return Err(format!("from {from:?} to {to:?} is nothing"));
            }
            ranges.push((from, to));
        }
        if ranges.is_empty() {
            return Err("[] has nothing in it".into());
        }
        Ok(Class::of(&ranges, negated))
    }

    /// `\d`, `\.`, behind its backslash.
    fn escape(&mut self) -> Result<Class, String> {
        let word = [('a', 'z'), ('A', 'Z'), ('0', '9'), ('_', '_')];
        let space = [(' ', ' '), ('\t', '\r')];
        Ok(match self.rest.next().ok_or("a \\ is the last character")? {
            'd' => Class::of(&[('0', '9')], false),
            'D' => Class::of(&[('0', '9')], true),
            'w' => Class::of(&word, false),
            'W' => Class::of(&word, true),
            's' => Class::of(&space, false),
            'S' => Class::of(&space, true),
            'n' => Class::only('\n'),
            't' => Class::only('\t'),
            letter if letter.is_ascii_alphanumeric() => {
                return Err(format!("\\{letter} is not known here"));
            }
            letter => Class::only(letter),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reach(pattern: &str, text: &str, finished: bool) -> Reach {
        let pattern = Pattern::regex(pattern, Options::default()).expect("a pattern");
        pattern.reach(text, true, finished, 64)
    }

    #[test]
    fn the_longest_match_counts() {
        for (pattern, text, bytes) in [
            ("abc", "abcd", 3),
            ("a|ab|abc", "abd", 2),
            ("a+", "aaab", 3),
            ("a{2,3}", "aaaa", 3),
            ("a{2}", "aaaa", 2),
            ("(ab)*c", "ababc", 5),
            ("[a-c_-]+", "a_-d", 3),
            ("[^x]{3}", "äöüx", 6),
            (r"\d+\.\d+", "3.14x", 4),
            (r"sk-[\w]{4,}", "sk-abcde f", 8),
            (r"\(\s\)", "( )", 3),
        ] {
            assert_eq!(reach(pattern, text, true), Reach::Bytes(bytes), "{pattern} {text}");
        }
        for (pattern, text) in [("abc", "abd"), ("a{3}", "aa"), (".", "\n"), ("[^a]", "a")] {
            assert_eq!(reach(pattern, text, true), Reach::Nowhere, "{pattern} {text}");
        }
    }

    #[test]
    fn it_waits_only_for_what_could_matter() {
        for (pattern, text, expected) in [
            ("secret", "sec", Reach::Unknown),
            ("secret", "secret", Reach::Bytes(6)),
            ("secret", "sect", Reach::Nowhere),
            ("a+", "aaa", Reach::Unknown),
            ("a+", "aaab", Reach::Bytes(3)),
            ("ab?", "a", Reach::Unknown),
        ] {
            assert_eq!(reach(pattern, text, false), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn a_match_has_a_limit() {
        assert_eq!(reach("a+", &"a".repeat(100), false), Reach::Bytes(64));
    }

    #[test]
    fn words_are_whole_and_their_end_is_waited_for() {
        let ass = Pattern::text("Ass", Options { ignore_case: true, words: true }).expect("one");
        let reach = |text, fresh, finished| ass.reach(text, fresh, finished, 64);
        assert_eq!(reach("ass.", true, false), Reach::Bytes(3));
        assert_eq!(reach("assume", true, false), Reach::Nowhere);
        assert_eq!(reach("ass", false, true), Reach::Nowhere, "it is the end of another word");
        assert_eq!(reach("ass", true, false), Reach::Unknown);
        assert_eq!(reach("ass", true, true), Reach::Bytes(3));
    }

    #[test]
    fn what_is_no_pattern_says_why() {
        for (pattern, why) in [
            ("a*", "it matches where nothing is"),
            ("", "it matches where nothing is"),
            ("(a", "a ( has no )"),
            ("a)", "there is a ')' too many"),
            ("[a", "a [ has no ]"),
            ("+", "a '+' has nothing to repeat"),
            ("a{3,1}", "a repeat of 3 to 1 makes no sense"),
            ("a++", "a repeat is repeated; put the first one in ( )"),
            (r"\bword", r"\b is not known here"),
            ("(?i)a", "(? is not known here"),
            ("^a", r"'^' is not known here, '^' itself is \^"),
            ("[z-a]", "from 'z' to 'a' is nothing"),
            ("(a{1000}){1000}", "it is longer than 2000 characters, repeats written out"),
        ] {
            let refused = Pattern::regex(pattern, Options::default()).expect_err(pattern);
            assert_eq!(refused, why, "{pattern}");
        }
    }
}
