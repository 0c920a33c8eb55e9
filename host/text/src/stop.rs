//! Finds stop strings in text that arrives in pieces.
//!
//! # Invariants
//!
//! - The stop that is complete first ends the text, wherever the pieces were cut; of two
//!   complete at the same character, the longer. What was emitted until then is exactly the
//!   text before that stop.
//! - A stop that is complete within text that was passed is no stop; one may begin there.
//! - Between pushes, what is held back is the longest end of the text that could still become
//!   a stop, and nothing more: a stream waits for nothing that cannot matter.
//! - Time is linear in the text, times the number of stops.
//!
//! # Stop strings with special tokens
//!
//! A special token has a name and no text: `<|eot_id|>` is never given out. A stop string that holds
//! such a name is looked for twice: in the text, like any other, and in the text with the names of
//! special tokens where they were drawn. Other stop strings are looked for in the text alone, so that
//! a special token between two of its letters hides none, and a name that happens to hold one is none.
//!
//! # Not here
//!
//! Stop tokens: the engine ends on those before they come here.

use std::collections::VecDeque;

/// The text that can be given out after one piece, and whether a stop string was met.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Stopped {
    /// Text that no stop string can claim any more.
    pub emit: String,
    /// A stop string is complete: nothing more will be emitted.
    pub stopped: bool,
}

/// Watches one choice's text for its stop strings.
#[derive(Debug, Clone)]
pub struct StopMatcher {
    /// Looked for in the text.
    in_text: Vec<StopProgress>,
    /// Looked for in the text with the names of special tokens in it.
    in_named: Vec<StopProgress>,
    held: String,
    /// The special tokens that a stop string may hold the names of, in order.
    specials: VecDeque<HeldSpecial>,
    stopped: bool,
}

/// A special token in the text.
#[derive(Debug, Clone)]
struct HeldSpecial {
    /// The position: so many bytes of `held` come before.
    at: usize,
    /// The length of the special token's spelling, in bytes.
    bytes: usize,
}

impl StopMatcher {
    /// Watches for these strings; of those that hold the name of a special token, `holds_special`
    /// says so. Empty ones are left out: they would end every text before its first character,
    /// which nobody means.
    pub fn new(stops: Vec<String>, holds_special: impl Fn(&str) -> bool) -> Self {
        let stops = stops.into_iter().filter(|stop| !stop.is_empty());
        let (mut in_text, mut in_named) = (Vec::new(), Vec::new());
        for stop in stops {
            let named = holds_special(&stop);
            let progress = StopProgress::new(stop);
            in_named.extend(named.then(|| progress.clone()));
            in_text.push(progress);
        }
        Self { in_text, in_named, held: String::new(), specials: VecDeque::new(), stopped: false }
    }

    /// Is there no stop string? Then all text may be given out as it comes.
    pub fn is_empty(&self) -> bool {
        self.in_text.is_empty()
    }

    /// Takes the next piece of the text. Once stopped, further text is ignored.
    pub fn push(&mut self, text: &str) -> Stopped {
        if self.stopped {
            return Stopped { emit: String::new(), stopped: true };
        }
        let seen = self.held.len();
        self.held.push_str(text);
        for (at, byte) in text.bytes().enumerate() {
            let end = seen + at + 1;
            let named = longest(&mut self.in_named, byte).map(|named| self.text_in(named, end));
            let found = longest(&mut self.in_text, byte).max(named);
            if let Some(length) = found {
                return self.stop(end - length);
            }
        }
        Stopped { emit: self.give_safe(), stopped: false }
    }

    /// Takes a special token of this name, which comes next and has no text.
    pub fn push_special(&mut self, name: &str) -> Stopped {
        if self.stopped {
            return Stopped { emit: String::new(), stopped: true };
        }
        self.note(name);
        let end = self.held.len();
        for (at, byte) in name.bytes().enumerate() {
            if let Some(named) = longest(&mut self.in_named, byte) {
                // As if the stop string went on to the end of the name.
                let length = self.text_in(named + name.len() - at - 1, end);
                return self.stop(end - length);
            }
        }
        Stopped { emit: self.give_safe(), stopped: false }
    }

    /// Takes the next piece of the text, in which no stop may be complete; what is given out.
    pub fn pass(&mut self, text: &str) -> String {
        if self.stopped {
            return String::new();
        }
        self.held.push_str(text);
        for byte in text.bytes() {
            pass(&mut self.in_text, byte);
            pass(&mut self.in_named, byte);
        }
        self.give_safe()
    }

    /// Does what `pass` does, for a special token.
    pub fn pass_special(&mut self, name: &str) -> String {
        if self.stopped {
            return String::new();
        }
        self.note(name);
        name.bytes().for_each(|byte| pass(&mut self.in_named, byte));
        self.give_safe()
    }

    /// The text has ended: gives out what was held back, which can no longer become a stop.
    pub fn flush(&mut self) -> String {
        for stop in self.in_text.iter_mut().chain(&mut self.in_named) {
            stop.matched = 0;
        }
        self.specials.clear();
        std::mem::take(&mut self.held)
    }

    /// A stop string begins behind so many bytes of what is held.
    fn stop(&mut self, at: usize) -> Stopped {
        self.stopped = true;
        self.held.truncate(at);
        Stopped { emit: std::mem::take(&mut self.held), stopped: true }
    }

    fn note(&mut self, name: &str) {
        let longest = self.in_named.iter().map(|stop| stop.stop.len()).max().unwrap_or(0);
        self.specials.push_back(HeldSpecial { at: self.held.len(), bytes: name.len() });
        // A name has a byte at least, so no stop string holds more of them.
        while self.specials.len() > longest {
            self.specials.pop_front();
        }
    }

    /// Gives out everything but the longest end that could still become a stop.
    fn give_safe(&mut self) -> String {
        let end = self.held.len();
        let in_text = self.in_text.iter().map(|stop| stop.matched);
        let in_named = self.in_named.iter().map(|stop| self.text_in(stop.matched, end));
        let pending = in_text.chain(in_named).max().unwrap_or(0);
        // A matched prefix begins where its stop begins, at a character: the cut is on one too.
        let given = end - pending;
        let kept = self.held.split_off(given);
        while self.specials.front().is_some_and(|special| special.at < given) {
            self.specials.pop_front();
        }
        self.specials.iter_mut().for_each(|special| special.at -= given);
        std::mem::replace(&mut self.held, kept)
    }

    /// How much text is in the last `named` bytes of the text with names in it, whose text ends at
    /// `end` of what is held.
    fn text_in(&self, named: usize, end: usize) -> usize {
        let (mut left, mut from) = (named, end);
        for special in self.specials.iter().rev() {
            let text = from - special.at;
            if left <= text {
                break;
            }
            from = special.at;
            left = (left - text).saturating_sub(special.bytes);
        }
        (end - from) + left.min(from)
    }
}

/// Moves every stop by one byte; the length of the longest one that is now complete.
fn longest(stops: &mut [StopProgress], byte: u8) -> Option<usize> {
    stops.iter_mut().filter_map(|stop| stop.advance(byte)).max()
}

/// Advances all stop strings by a byte with which none may be complete.
fn pass(stops: &mut [StopProgress], byte: u8) {
    longest(stops, byte);
    stops.iter_mut().for_each(StopProgress::unless_complete);
}

/// How much of one stop string the text now ends with (Knuth, Morris and Pratt 1977).
#[derive(Debug, Clone)]
struct StopProgress {
    stop: Vec<u8>,
    /// For each length matched, the next shorter one that the same text also ends with.
    shorter: Vec<usize>,
    matched: usize,
}

impl StopProgress {
    fn new(stop: String) -> Self {
        let stop = stop.into_bytes();
        let mut shorter = vec![0; stop.len()];
        let mut matched = 0;
        for at in 1..stop.len() {
            while matched > 0 && stop[at] != stop[matched] {
                matched = shorter[matched - 1];
            }
            matched += usize::from(stop[at] == stop[matched]);
            shorter[at] = matched;
        }
        Self { stop, shorter, matched: 0 }
    }

    fn advance(&mut self, byte: u8) -> Option<usize> {
        while self.matched > 0 && self.stop[self.matched] != byte {
            self.matched = self.shorter[self.matched - 1];
        }
        self.matched += usize::from(self.stop[self.matched] == byte);
        (self.matched == self.stop.len()).then_some(self.matched)
    }

    /// A complete match becomes the next shorter one, which may go on.
    fn unless_complete(&mut self) {
        if self.matched == self.stop.len() {
            self.matched = self.shorter[self.matched - 1];
        }
    }
}

#[cfg(test)]
mod tests;
