//! Normalizing: what a tokenizer changes in a text before it cuts it into words.

use std::borrow::Cow;

use crate::pieces::Pattern;
use serde::Deserialize;
use tokenizers::{NormalizedString, Normalizer, Tokenizer};
use unicode_normalization_alignments::UnicodeNormalization;

use super::EncodeStop;

/// A tokenizer's normalizer, as far as it is one that changes letter by letter.
pub(super) struct TextNormalizer {
    steps: Vec<NormalizerStep>,
}

enum NormalizerStep {
    Nfc,
    /// In front of a text that is not empty.
    Prepend(String),
    Replace(char, String),
}

/// One normalizer as `tokenizer.json` spells it.
#[derive(Deserialize)]
struct NormalizerJson {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    normalizers: Vec<NormalizerJson>,
    prepend: Option<String>,
    pattern: Option<Pattern>,
    content: Option<String>,
}

impl TextNormalizer {
    pub(super) fn of(tokenizer: &Tokenizer) -> Option<Self> {
        let mut normalizing = Self { steps: Vec::new() };
        if let Some(normalizer) = tokenizer.get_normalizer() {
            // Its fields are private; what it is saved as is not.
            let spelled = serde_json::to_value(normalizer).ok()?;
            normalizing.take(serde_json::from_value(spelled).ok()?)?;
        }
        Some(normalizing)
    }

    fn take(&mut self, spelled: NormalizerJson) -> Option<()> {
        match (spelled.kind.as_str(), spelled.pattern, spelled.content) {
            ("Sequence", ..) => spelled.normalizers.into_iter().try_for_each(|s| self.take(s))?,
            ("NFC", ..) => self.steps.push(NormalizerStep::Nfc),
            ("Prepend", ..) => self.steps.push(NormalizerStep::Prepend(spelled.prepend?)),
            ("Replace", Some(Pattern::String(pattern)), Some(content)) => {
                let mut letters = pattern.chars();
                let letter = letters.next()?;
                letters.next().is_none().then_some(())?;
                self.steps.push(NormalizerStep::Replace(letter, content));
            }
            _ => return None,
        }
        Some(())
    }

    /// Whether a text may become shorter.
    pub(super) fn shrinks(&self) -> bool {
        let shrinks = |step: &NormalizerStep| match step {
            NormalizerStep::Nfc => true,
            NormalizerStep::Prepend(_) => false,
            NormalizerStep::Replace(letter, content) => content.len() < letter.len_utf8(),
        };
        self.steps.iter().any(shrinks)
    }

    /// Normalizes a text, and shows it to `fits` as it grows.
    pub(super) fn normalize<'t>(
        &self,
        text: &'t str,
        fits: &mut dyn FnMut(&str) -> Result<(), EncodeStop>,
    ) -> Result<Cow<'t, str>, EncodeStop> {
        /// Letters that are written before they are shown.
        const BYTES_SHOWN: usize = 256;

        if self.steps.is_empty() {
            fits(text)?;
            return Ok(Cow::Borrowed(text));
        }
        let mut letters: Box<dyn Iterator<Item = char> + '_> = Box::new(text.chars());
        for step in &self.steps {
            letters = match step {
                NormalizerStep::Nfc => Box::new(letters.nfc().map(|(letter, _)| letter)),
                NormalizerStep::Prepend(prefix) => {
                    let mut letters = letters.peekable();
                    let prefix = if letters.peek().is_some() { prefix } else { "" };
                    Box::new(prefix.chars().chain(letters))
                }
                NormalizerStep::Replace(from, to) => Box::new(letters.flat_map(move |letter| {
                    let (kept, put) = match letter == *from {
                        true => (None, to.as_str()),
                        false => (Some(letter), ""),
                    };
                    kept.into_iter().chain(put.chars())
                })),
            };
        }
        let (mut out, mut shown) = (String::new(), 0);
        for letter in letters {
            out.push(letter);
            if out.len() - shown >= BYTES_SHOWN {
                fits(&out[shown..])?;
                shown = out.len();
            }
        }
        fits(&out[shown..])?;
        Ok(Cow::Owned(out))
    }
}

/// What the tokenizers crate makes of a short text.
pub(super) fn by_the_crate(tokenizer: &Tokenizer, text: &str) -> tokenizers::Result<String> {
    let mut normalized = NormalizedString::from(text);
    if let Some(normalizer) = tokenizer.get_normalizer() {
        normalizer.normalize(&mut normalized)?;
    }
    Ok(normalized.get().to_owned())
}
