//! Cutting a text into words, one after another.
//!
//! The tokenizers crate's pre-tokenizers, walked lazily: each step cuts a part and hands every
//! piece to the next step, and what comes out of the last is a word. An expression is searched
//! in the whole part, so that what it sees before and behind a match is what it sees there.

use std::ops::Range;

use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::metaspace::PrependScheme;
use tokenizers::utils::SysRegex;
use tokenizers::{SplitDelimiterBehavior, Tokenizer};

use super::EncodeStop;
use crate::pieces::letters;

/// A pre-tokenizer that gives out one word at a time, so that a long text can be cut off.
pub(super) struct WordSplitter {
    steps: Vec<PreTokenizerStep>,
    /// The letter by which byte-level tokens spell each byte.
    letters: Box<[char; 256]>,
}

enum PreTokenizerStep {
    Split {
        regex: SysRegex,
        behavior: SplitDelimiterBehavior,
        invert: bool,
    },
    Digits {
        behavior: SplitDelimiterBehavior,
    },
    /// Spells bytes as letters.
    ByteLevel {
        space_first: bool,
        words: Option<SysRegex>,
    },
    Metaspace {
        space: String,
        scheme: PrependScheme,
        split: bool,
    },
}

/// GPT-2's words (openai/gpt-2, encoder.py), which the crate has in its ByteLevel step.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

type Emit<'a> = &'a mut dyn FnMut(&str) -> Result<(), EncodeStop>;

impl WordSplitter {
    pub(super) fn of(tokenizer: &Tokenizer) -> Option<Self> {
        let mut words = Self { steps: Vec::new(), letters: Box::new(letters()) };
        if let Some(pre_tokenizer) = tokenizer.get_pre_tokenizer() {
            words.take(pre_tokenizer)?;
        }
        // Behind either of them other letters stand for the text's.
        let spells = |step: &PreTokenizerStep| {
            matches!(step, PreTokenizerStep::ByteLevel { .. } | PreTokenizerStep::Metaspace { .. })
        };
        (words.steps.iter().filter(|step| spells(step)).count() <= 1).then_some(words)
    }

    fn take(&mut self, step: &PreTokenizerWrapper) -> Option<()> {
        use SplitDelimiterBehavior::{Contiguous, Isolated};
        self.steps.push(match step {
            PreTokenizerWrapper::Sequence(steps) => {
                return steps.as_ref().iter().try_for_each(|step| self.take(step));
            }
            PreTokenizerWrapper::Split(split) => {
                let split = split.clone();
                PreTokenizerStep::Split {
                    regex: split.regex,
                    behavior: split.behavior,
                    invert: split.invert,
                }
            }
            PreTokenizerWrapper::Digits(digits) => PreTokenizerStep::Digits {
                behavior: if digits.individual_digits { Isolated } else { Contiguous },
            },
            PreTokenizerWrapper::ByteLevel(bytes) => {
                let words = bytes.use_regex.then(|| SysRegex::new(GPT2));
                PreTokenizerStep::ByteLevel {
                    space_first: bytes.add_prefix_space,
                    words: words.transpose().ok()?,
                }
            }
            PreTokenizerWrapper::Metaspace(metaspace) => PreTokenizerStep::Metaspace {
                space: metaspace.get_replacement().to_string(),
                scheme: metaspace.get_prepend_scheme(),
                split: metaspace.get_split(),
            },
            _ => return None,
        });
        Some(())
    }

    /// Whether nothing of a text is left out.
    pub(super) fn keeps_all(&self) -> bool {
        let removes = |step: &PreTokenizerStep| {
            matches!(
                step,
                PreTokenizerStep::Split { behavior: SplitDelimiterBehavior::Removed, .. }
            )
        };
        !self.steps.iter().any(removes)
    }

    /// Whether words are spelled in [`Self::letters`].
    pub(super) fn spells_bytes(&self) -> bool {
        self.steps.iter().any(|step| matches!(step, PreTokenizerStep::ByteLevel { .. }))
    }

    pub(super) fn letters(&self) -> &[char; 256] {
        &self.letters
    }

    /// How a space is spelled, if not as one.
    pub(super) fn space(&self) -> Option<&str> {
        self.steps.iter().find_map(|step| match step {
            PreTokenizerStep::Metaspace { space, .. } => Some(space.as_str()),
            _ => None,
        })
    }

    /// Hands out the words of a text. `first`: it begins where the prompt begins.
    pub(super) fn each(&self, text: &str, first: bool, emit: Emit<'_>) -> Result<(), EncodeStop> {
        self.step(0, text, first, emit)
    }

    fn step(&self, at: usize, text: &str, first: bool, emit: Emit<'_>) -> Result<(), EncodeStop> {
        if text.is_empty() {
            return Ok(());
        }
        let Some(step) = self.steps.get(at) else { return emit(text) };
        let next = at + 1;
        match step {
            PreTokenizerStep::Split { regex, behavior, invert } => {
                let mut cutter = Cutter::new(*behavior, *invert);
                let mut piece = |range: Range<usize>| {
                    let first = first && range.start == 0;
                    self.step(next, &text[range], first, emit)
                };
                matches(regex, text, &mut |range, matched| {
                    cutter.take(range, matched, &mut piece)
                })?;
                cutter.end(&mut piece)
            }
            PreTokenizerStep::Digits { behavior } => {
                let mut cutter = Cutter::new(*behavior, false);
                let mut piece = |range: Range<usize>| {
                    let first = first && range.start == 0;
                    self.step(next, &text[range], first, emit)
                };
                letters_of(text, char::is_numeric, &mut |range, matched| {
                    cutter.take(range, matched, &mut piece)
                })?;
                cutter.end(&mut piece)
            }
            PreTokenizerStep::ByteLevel { space_first, words } => {
                let spaced;
                let text = match *space_first && !text.starts_with(' ') {
                    true => {
                        spaced = format!(" {text}");
                        spaced.as_str()
                    }
                    false => text,
                };
                let mut piece = |range: Range<usize>| {
                    let first = first && range.start == 0;
                    let word = &text[range];
                    let mut spelled = String::with_capacity(word.len() * 2);
                    spelled.extend(word.bytes().map(|byte| self.letters[usize::from(byte)]));
                    self.step(next, &spelled, first, emit)
                };
                match words {
                    Some(regex) => matches(regex, text, &mut |range, _| piece(range)),
                    None => piece(0..text.len()),
                }
            }
            PreTokenizerStep::Metaspace { space, scheme, split } => {
                let mut spelled = text.replace(' ', space);
                let prepends = match scheme {
                    PrependScheme::Always => true,
                    PrependScheme::First => first,
                    PrependScheme::Never => false,
                };
                if prepends && !spelled.starts_with(space.as_str()) {
                    spelled.insert_str(0, space);
                }
                let mut piece = |range: Range<usize>| {
                    let first = first && range.start == 0;
                    self.step(next, &spelled[range], first, emit)
                };
                if !split {
                    return piece(0..spelled.len());
                }
                let mut cutter = Cutter::new(SplitDelimiterBehavior::MergedWithNext, false);
                letters_of(&spelled, |letter| space.starts_with(letter), &mut |range, matched| {
                    cutter.take(range, matched, &mut piece)
                })?;
                cutter.end(&mut piece)
            }
        }
    }
}

/// An expression's matches and what is between them, in order; together the whole text.
fn matches(
    regex: &SysRegex,
    text: &str,
    part: &mut dyn FnMut(Range<usize>, bool) -> Result<(), EncodeStop>,
) -> Result<(), EncodeStop> {
    let mut done = 0;
    for (start, end) in regex.find_iter(text) {
        if done != start {
            part(done..start, false)?;
        }
        part(start..end, true)?;
        done = end;
    }
    if done == text.len() { Ok(()) } else { part(done..text.len(), false) }
}

/// The letters of a kind, one by one, and what is between them.
fn letters_of(
    text: &str,
    kind: impl Fn(char) -> bool,
    part: &mut dyn FnMut(Range<usize>, bool) -> Result<(), EncodeStop>,
) -> Result<(), EncodeStop> {
    let mut done = 0;
    for (start, letter) in text.char_indices().filter(|&(_, letter)| kind(letter)) {
        if done != start {
            part(done..start, false)?;
        }
        done = start + letter.len_utf8();
        part(start..done, true)?;
    }
    if done == text.len() { Ok(()) } else { part(done..text.len(), false) }
}

/// Puts matches and what is between them together to pieces, as a behaviour says.
struct Cutter {
    behavior: SplitDelimiterBehavior,
    invert: bool,
    /// A piece that may still grow, and whether its last part is a match.
    open: Option<(Range<usize>, bool)>,
}

impl Cutter {
    fn new(behavior: SplitDelimiterBehavior, invert: bool) -> Self {
        Self { behavior, invert, open: None }
    }

    fn take(
        &mut self,
        range: Range<usize>,
        matched: bool,
        piece: &mut dyn FnMut(Range<usize>) -> Result<(), EncodeStop>,
    ) -> Result<(), EncodeStop> {
        use SplitDelimiterBehavior::{
            Contiguous, Isolated, MergedWithNext, MergedWithPrevious, Removed,
        };
        let matched = matched != self.invert;
        let joins = match (self.behavior, &self.open) {
            (Isolated, _) => return piece(range),
            (Removed, _) => return if matched { Ok(()) } else { piece(range) },
            (_, None) => false,
            (Contiguous, Some((_, last))) => *last == matched,
            (MergedWithPrevious, Some((_, last))) => matched && !last,
            (MergedWithNext, Some((_, last))) => *last && !matched,
        };
        match &mut self.open {
            Some((open, last)) if joins => {
                open.end = range.end;
                *last = matched;
                Ok(())
            }
            open => {
                let before = open.replace((range, matched));
                before.map_or(Ok(()), |(before, _)| piece(before))
            }
        }
    }

    fn end(
        self,
        piece: &mut dyn FnMut(Range<usize>) -> Result<(), EncodeStop>,
    ) -> Result<(), EncodeStop> {
        self.open.map_or(Ok(()), |(open, _)| piece(open))
    }
}
