//! One policy's view of a text: windows out of it, verdicts into it.
//!
//! # Invariants
//!
//! - What is let through is, in order, what came in or what a verdict put in its place: nothing is
//!   lost, doubled or moved.
//! - No cut falls into a character.
//! - What is held back by a verdict is at most [`HOLD_BYTES_MAX`]; what is held back because its
//!   window is not full is less than a window, and at most [`NEW_BYTES_MAX`] and one piece.
//!
//! # Not here
//!
//! No clock and no policy: the time comes with each call, and who judges is not known.

use std::time::Instant;

use interlock_request::Usage;

use interlock_policy_api::{Reason, Verdict, Window, WindowSize};

/// Most that a verdict can hold back.
pub(super) const HOLD_BYTES_MAX: usize = 16 << 10;
/// A window that is not full but this long goes as it is.
pub(super) const NEW_BYTES_MAX: usize = 16 << 10;

/// Text on its way past one policy.
#[derive(Debug)]
pub(super) struct WindowBuffer {
    size: WindowSize,
    index: u32,
    /// What was held back, and behind it what is new.
    text: String,
    /// Bytes at its front that were held back by the last verdict.
    held: usize,
    /// When the first of what is new came.
    since: Option<Instant>,
    /// Tokens at the last window.
    tokens: u32,
}

/// What a verdict lets through.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Released {
    pub(super) text: String,
    pub(super) end: Option<BufferEnd>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum BufferEnd {
    Stop(Reason),
    Abort(Reason),
}

impl WindowBuffer {
    pub(super) fn new(size: WindowSize) -> Self {
        Self { size, index: 0, text: String::new(), held: 0, since: None, tokens: 0 }
    }

    /// Adds text that is to be shown.
    pub(super) fn accept(&mut self, text: &str, now: Instant) {
        if !text.is_empty() {
            self.since.get_or_insert(now);
            self.text.push_str(text);
        }
    }

    /// Whether the window is full or old enough to be shown.
    pub(super) fn is_due(&self, usage: Usage, now: Instant) -> bool {
        let full = usage.generated_tokens.saturating_sub(self.tokens) >= self.size.tokens
            || self.text.len() - self.held >= NEW_BYTES_MAX;
        self.since.is_some() && (full || self.due_at().is_some_and(|at| at <= now))
    }

    /// When the window is due if no more text comes.
    pub(super) fn due_at(&self) -> Option<Instant> {
        self.since.and_then(|since| since.checked_add(self.size.delay_max))
    }

    /// The window as the policy sees it.
    pub(super) fn window(&self, usage: Usage, finished: bool) -> Window<'_> {
        // At most `HOLD_BYTES_MAX`.
        let held = u32::try_from(self.held).unwrap_or(u32::MAX);
        Window { index: self.index, text: &self.text, held, finished, usage }
    }

    /// Does with the window what the verdict says. When nothing comes after it, nothing stays.
    pub(super) fn apply(&mut self, verdict: Verdict, usage: Usage, finished: bool) -> Released {
        self.index += 1;
        self.tokens = usage.generated_tokens;
        self.since = None;
        let whole = std::mem::take(&mut self.text);
        let hold = |hold: u32| if finished { whole.len() } else { cut(&whole, hold) };
        let (at, replacement) = match verdict {
            Verdict::Pass => (whole.len(), None),
            Verdict::Hold(bytes) => (hold(bytes), None),
            // What the policy wanted to look at again but cannot any more is passed on.
            Verdict::Replace { text, hold: bytes, .. } if finished => {
                (whole.len(), Some(text + &whole[cut(&whole, bytes)..]))
            }
            Verdict::Replace { text, hold: bytes, .. } => (hold(bytes), Some(text)),
            Verdict::Stop { text, reason } => {
                self.held = 0;
                return Released { text, end: Some(BufferEnd::Stop(reason)) };
            }
            Verdict::Abort(reason) => {
                self.held = 0;
                return Released { text: String::new(), end: Some(BufferEnd::Abort(reason)) };
            }
        };
        whole[at..].clone_into(&mut self.text);
        self.held = self.text.len();
        let text = replacement.unwrap_or_else(|| {
            let mut text = whole;
            text.truncate(at);
            text
        });
        Released { text, end: None }
    }
}

/// Where all but the last so many bytes end: never inside a character (it moves to the
/// character's front), and never further from the end than may be held back.
fn cut(text: &str, hold: u32) -> usize {
    let hold = usize::try_from(hold).unwrap_or(usize::MAX);
    let wanted = floor(text, text.len().saturating_sub(hold));
    let bound = text.len().saturating_sub(HOLD_BYTES_MAX);
    let bound = (bound..=text.len()).find(|&at| text.is_char_boundary(at)).unwrap_or(text.len());
    wanted.max(bound)
}

fn floor(text: &str, at: usize) -> usize {
    (0..=at).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn buffer(tokens: u32) -> WindowBuffer {
        WindowBuffer::new(WindowSize { tokens, delay_max: Duration::from_millis(50) })
    }

    fn used(generated_tokens: u32) -> Usage {
        Usage { generated_tokens, ..Usage::default() }
    }

    fn reason() -> Reason {
        Reason { code: "r".into(), detail: None }
    }

    #[test]
    fn a_window_is_due_when_it_is_full_or_old_and_never_when_it_is_empty() {
        let (mut buffer, now) = (buffer(3), Instant::now());
        let later = now + Duration::from_millis(50);
        assert!(!buffer.is_due(used(9), later), "a window without text");
        buffer.accept("a", now);
        assert!(!buffer.is_due(used(2), now));
        assert!(buffer.is_due(used(3), now));
        assert!(buffer.is_due(used(2), later));
        buffer.apply(Verdict::Hold(1), used(3), false);
        assert!(!buffer.is_due(used(9), later), "what is held back alone makes no window");
        buffer.accept(&"b".repeat(NEW_BYTES_MAX), now);
        assert!(buffer.is_due(used(3), now), "a window without bound");
    }

    #[test]
    fn what_is_held_back_stands_at_the_front_of_the_next_window() {
        let (mut buffer, now) = (buffer(1), Instant::now());
        buffer.accept("grün", now);
        // Two bytes from the end lies inside the ü: it moves to its front.
        assert_eq!(buffer.apply(Verdict::Hold(2), used(1), false).text, "gr");
        buffer.accept("e", now);
        let Window { index, text, held, .. } = buffer.window(used(2), false);
        assert_eq!((index, text, held), (1, "üne", 3));
        let replace = Verdict::Replace { text: "*".into(), hold: 1, reason: reason() };
        assert_eq!(buffer.apply(replace, used(2), false).text, "*");
        assert_eq!(buffer.window(used(2), false).text, "e");
    }

    #[test]
    fn nothing_stays_behind_at_the_end() {
        let (mut buffer, now) = (buffer(1), Instant::now());
        buffer.accept("abc", now);
        assert_eq!(buffer.apply(Verdict::Hold(2), used(1), true).text, "abc");
        buffer.accept("def", now);
        let replace = Verdict::Replace { text: "*".into(), hold: 1, reason: reason() };
        assert_eq!(buffer.apply(replace, used(1), true).text, "*f");
        assert_eq!(buffer.window(used(1), true).text, "");
    }

    proptest! {
        #[test]
        fn whatever_is_held_back_nothing_is_lost_and_the_bound_holds(
            pieces in prop::collection::vec(("\\PC{0,40}", any::<u32>()), 0..40),
            long in prop::option::of(1_usize..40_000),
        ) {
            let (mut buffer, now) = (buffer(1), Instant::now());
            let (mut came, mut passed) = (String::new(), String::new());
            let long = "ß".repeat(long.unwrap_or(0));
            for (number, (piece, hold)) in pieces.iter().map(|(p, h)| (p.as_str(), *h))
                .chain([(long.as_str(), u32::MAX)]).enumerate()
            {
                came.push_str(piece);
                buffer.accept(piece, now);
                let released = buffer.apply(Verdict::Hold(hold), used(number as u32), false);
                passed.push_str(&released.text);
                prop_assert!(came.starts_with(&passed));
                prop_assert!(buffer.text.len() <= HOLD_BYTES_MAX);
                prop_assert_eq!(buffer.held, buffer.text.len());
            }
            passed.push_str(&buffer.apply(Verdict::Hold(9), used(99), true).text);
            prop_assert_eq!(came, passed);
        }
    }
}
