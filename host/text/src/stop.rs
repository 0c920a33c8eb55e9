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
//! # Not here
//!
//! Stop tokens: the engine ends on those before they become text.

/// What one piece of text came to.
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
    stops: Vec<Progress>,
    held: String,
    stopped: bool,
}

impl StopMatcher {
    /// Watches for these strings. Empty ones are left out: they would end every text before
    /// its first character, which nobody means.
    pub fn new(stops: Vec<String>) -> Self {
        let stops = stops.into_iter().filter(|stop| !stop.is_empty()).map(Progress::new).collect();
        Self { stops, held: String::new(), stopped: false }
    }

    /// Takes the next piece of the text. Once stopped, further text is ignored.
    pub fn push(&mut self, text: &str) -> Stopped {
        if self.stopped {
            return Stopped { emit: String::new(), stopped: true };
        }
        let seen = self.held.len();
        self.held.push_str(text);
        for (at, byte) in text.bytes().enumerate() {
            if let Some(length) = self.advance(byte) {
                self.stopped = true;
                self.held.truncate(seen + at + 1 - length);
                return Stopped { emit: std::mem::take(&mut self.held), stopped: true };
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
            self.advance(byte);
            self.stops.iter_mut().for_each(Progress::unless_complete);
        }
        self.give_safe()
    }

    /// Gives out everything but the longest end that could still become a stop.
    fn give_safe(&mut self) -> String {
        let pending = self.stops.iter().map(|stop| stop.matched).max().unwrap_or(0);
        // A matched prefix begins where its stop begins, at a character: the cut is on one too.
        let kept = self.held.split_off(self.held.len() - pending);
        std::mem::replace(&mut self.held, kept)
    }

    /// The text has ended: gives out what was held back, which can no longer become a stop.
    pub fn flush(&mut self) -> String {
        for stop in &mut self.stops {
            stop.matched = 0;
        }
        std::mem::take(&mut self.held)
    }

    /// Moves every stop by one byte; the length of the longest one that is now complete.
    fn advance(&mut self, byte: u8) -> Option<usize> {
        self.stops.iter_mut().filter_map(|stop| stop.advance(byte)).max()
    }
}

/// How much of one stop string the text now ends with (Knuth, Morris and Pratt 1977).
#[derive(Debug, Clone)]
struct Progress {
    stop: Vec<u8>,
    /// For each length matched, the next shorter one that the same text also ends with.
    shorter: Vec<usize>,
    matched: usize,
}

impl Progress {
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
