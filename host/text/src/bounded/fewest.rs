//! How few tokens a text can have, told from its pairs of bytes.
//!
//! A token of `n` bytes has `n - 1` pairs of neighbouring bytes, and each of them occurs in a
//! token of at least `n` bytes: itself. So from any place on, a token reaches at most as far as
//! each pair on the way occurs in some token that long. Taking the furthest reach again and
//! again gives the fewest pieces of this kind, because a part of such a piece is one too; the
//! text's tokens are such pieces, so they are no fewer.
//!
//! For digits, which many vocabularies have one by one, that is the exact number; for letters
//! it is a third or a quarter of it. It costs a look into a table for each byte.

use super::{EncodeStop, words::WordSplitter};

/// For each pair of bytes the length of the longest token that contains it.
pub(super) struct Pairs {
    longest: Box<[u16]>,
}

impl Pairs {
    pub(super) fn new() -> Self {
        Self { longest: vec![0; 1 << 16].into() }
    }

    /// Takes note of a token's bytes.
    pub(super) fn add(&mut self, token: &[u8]) {
        let length = u16::try_from(token.len()).unwrap_or(u16::MAX);
        for pair in token.windows(2) {
            let longest = &mut self.longest[at(pair[0], pair[1])];
            *longest = length.max(*longest);
        }
    }

    /// Bytes of the longest token with this pair. More than can be told are as good as endless.
    fn longest(&self, left: u8, right: u8) -> usize {
        match self.longest[at(left, right)] {
            u16::MAX => usize::MAX,
            length => usize::from(length),
        }
    }
}

fn at(left: u8, right: u8) -> usize {
    usize::from(left) << 8 | usize::from(right)
}

/// Counts the fewest tokens of a text that comes in parts.
pub(super) struct TokenLowerBound<'p> {
    pairs: Option<&'p Pairs>,
    max: usize,
    tokens: usize,
    /// Bytes of the piece that is being extended; none at a text's beginning.
    length: usize,
    /// The longest that it may become, by its pairs so far.
    reach: usize,
    last: u8,
}

impl<'p> TokenLowerBound<'p> {
    pub(super) fn new(pairs: Option<&'p Pairs>, max: usize) -> Self {
        Self { pairs, max, tokens: 0, length: 0, reach: 0, last: 0 }
    }

    /// A token as such.
    pub(super) fn token(&mut self) -> Result<(), EncodeStop> {
        self.length = 0;
        self.count()
    }

    /// More of the text, as it is before it is cut into words.
    pub(super) fn text(&mut self, text: &str, words: &WordSplitter) -> Result<(), EncodeStop> {
        let Some(pairs) = self.pairs else { return Ok(()) };
        match words.space() {
            None => text.bytes().try_for_each(|byte| self.byte(pairs, byte)),
            Some(space) => text.split_inclusive(' ').try_for_each(|part| {
                let (part, spaced) = match part.strip_suffix(' ') {
                    Some(part) => (part, space),
                    None => (part, ""),
                };
                part.bytes().chain(spaced.bytes()).try_for_each(|byte| self.byte(pairs, byte))
            }),
        }
    }

    fn byte(&mut self, pairs: &Pairs, byte: u8) -> Result<(), EncodeStop> {
        let reach = self.reach.min(pairs.longest(self.last, byte));
        self.last = byte;
        if self.length > 0 && self.length < reach {
            (self.length, self.reach) = (self.length + 1, reach);
            return Ok(());
        }
        (self.length, self.reach) = (1, usize::MAX);
        self.count()
    }

    fn count(&mut self) -> Result<(), EncodeStop> {
        self.tokens += 1;
        match self.tokens > self.max {
            true => Err(EncodeStop::TooLong { tokens_min: self.tokens }),
            false => Ok(()),
        }
    }
}
