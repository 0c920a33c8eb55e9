//! The bytes that each token stands for.
//!
//! A tokenizer's decoder is read once, when the model is loaded, and turned into a table from
//! token to bytes. Decoding is then concatenation, which is the same in pieces as at once.
//! A decoder that is not concatenation (BERT's WordPiece, CTC) is refused by name.
//!
//! Two differences to `tokenizers`' own decoding, both on text that is not well formed there:
//! a run of byte-fallback tokens that is not UTF-8 loses its broken characters only, not the
//! whole run; and an added token is its own spelling, even where that happens to consist of
//! the letters by which byte-level tokens spell bytes.

use std::collections::HashMap;

use interlock_request::TokenId;
use serde::Deserialize;
use tokenizers::Tokenizer;

/// Why a tokenizer's tokens cannot be turned into bytes one by one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecoderError {
    /// A kind of decoder that no supported architecture uses.
    #[error("decoder {0:?} is not supported (ByteLevel, ByteFallback, Metaspace and none are)")]
    Kind(String),
    /// A supported step where it would act across tokens, or with settings nobody uses.
    #[error("decoder step {0} is not supported at its place or with its settings")]
    DecoderJson(String),
}

/// Every token's bytes, one after another.
#[derive(Debug)]
pub(crate) struct Pieces {
    bytes: Vec<u8>,
    /// The end of each token's bytes.
    ends: Vec<usize>,
    lead: usize,
    between: &'static [u8],
}

impl Pieces {
    /// Reads the tokens and the decoder of a tokenizer.
    pub(crate) fn of(tokenizer: &Tokenizer) -> Result<Self, DecoderError> {
        let decoding = match tokenizer.get_decoder() {
            None => DecoderSettings { between: b" ", ..DecoderSettings::default() },
            Some(decoder) => {
                // Their fields are private; what they are saved as is not.
                let step = serde_json::to_value(decoder)
                    .and_then(serde_json::from_value)
                    .map_err(|error| DecoderError::DecoderJson(error.to_string()))?;
                DecoderSettings::read(step)?
            }
        };
        let added = tokenizer.get_added_tokens_decoder();
        let tokens: HashMap<TokenId, String> =
            tokenizer.get_vocab(true).into_iter().map(|(token, id)| (id, token)).collect();
        let size = tokens.keys().max().map_or(0, |&last| last as usize + 1);
        let mut pieces = Self::new(decoding.lead, decoding.between);
        for id in 0..size {
            let id = TokenId::try_from(id).expect("a token id came from the vocabulary");
            match (added.get(&id), tokens.get(&id)) {
                (Some(token), _) if token.special => pieces.add(&[]),
                (Some(token), _) => pieces.add(&decoding.added(&token.content)),
                (None, Some(token)) => pieces.add(&decoding.plain(token)),
                (None, None) => pieces.add(&[]),
            }
        }
        Ok(pieces)
    }

    /// No tokens yet; see [`Self::lead`] and [`Self::between`].
    pub(crate) fn new(lead: usize, between: &'static [u8]) -> Self {
        Self { bytes: Vec::new(), ends: Vec::new(), lead, between }
    }

    /// The next token's bytes.
    pub(crate) fn add(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.ends.push(self.bytes.len());
    }

    /// Empty for special tokens, holes in the vocabulary, and ids beyond it: a model's logits
    /// are often padded past its last token.
    pub(crate) fn bytes(&self, token: TokenId) -> &[u8] {
        let at = token as usize;
        let Some(&end) = self.ends.get(at) else { return &[] };
        let start = if at == 0 { 0 } else { self.ends[at - 1] };
        &self.bytes[start..end]
    }

    /// One more than the last token's id.
    pub(crate) fn vocabulary(&self) -> u32 {
        u32::try_from(self.ends.len()).expect("token ids are 32 bits wide")
    }

    /// How many spaces at the beginning of a text are not part of it.
    pub(crate) fn lead(&self) -> usize {
        self.lead
    }

    /// What stands between two tokens: a space in a tokenizer without decoder.
    pub(crate) fn between(&self) -> &'static [u8] {
        self.between
    }
}

/// One decoder as `tokenizer.json` spells it; which fields it has depends on its kind.
#[derive(Debug, Deserialize)]
struct DecoderJson {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    decoders: Vec<DecoderJson>,
    pattern: Option<Pattern>,
    content: Option<String>,
    start: Option<usize>,
    stop: Option<usize>,
    replacement: Option<String>,
    prepend_scheme: Option<String>,
}

/// What a step looks for, as `tokenizer.json` spells it.
#[derive(Debug, Deserialize)]
pub(crate) enum Pattern {
    String(String),
    Regex(serde::de::IgnoredAny),
}

/// What a decoder does, read from its steps.
#[derive(Debug, Default)]
struct DecoderSettings {
    byte_level: bool,
    byte_fallback: bool,
    replace: Vec<(String, String)>,
    lead: usize,
    between: &'static [u8],
    /// From here on the steps see one text, no longer tokens.
    fused: bool,
}

impl DecoderSettings {
    fn read(step: DecoderJson) -> Result<Self, DecoderError> {
        let mut decoding = Self::default();
        decoding.take(step)?;
        Ok(decoding)
    }

    fn take(&mut self, step: DecoderJson) -> Result<(), DecoderError> {
        match (step.kind.as_str(), self.fused) {
            ("Sequence", _) => step.decoders.into_iter().try_for_each(|step| self.take(step))?,
            ("ByteLevel", false) => (self.byte_level, self.fused) = (true, true),
            ("ByteFallback", false) => self.byte_fallback = true,
            ("Fuse", _) => self.fused = true,
            ("Replace", false) => match (step.pattern, step.content) {
                (Some(Pattern::String(pattern)), Some(content)) => {
                    self.replace.push((pattern, content));
                }
                _ => return Err(DecoderError::DecoderJson("Replace".to_owned())),
            },
            ("Strip", true) if step.content.as_deref() == Some(" ") && step.stop == Some(0) => {
                self.lead = step.start.unwrap_or(0);
            }
            ("Metaspace", false) => {
                let space = step.replacement.unwrap_or_else(|| "\u{2581}".to_owned());
                self.replace.push((space, " ".to_owned()));
                self.lead = usize::from(step.prepend_scheme.as_deref() != Some("never"));
            }
            ("ByteLevel" | "ByteFallback" | "Replace" | "Strip" | "Metaspace", _) => {
                return Err(DecoderError::DecoderJson(step.kind));
            }
            _ => return Err(DecoderError::Kind(step.kind)),
        }
        Ok(())
    }

    /// A token of the model's own vocabulary.
    fn plain(&self, token: &str) -> Vec<u8> {
        match (self.byte_fallback.then(|| byte_token(token)), self.byte_level) {
            (Some(Some(byte)), _) => vec![byte],
            (_, true) => spelled_bytes(token).unwrap_or_else(|| token.as_bytes().to_vec()),
            _ => self.added(token),
        }
    }

    /// A token added to the vocabulary as text.
    fn added(&self, token: &str) -> Vec<u8> {
        let replaced = self
            .replace
            .iter()
            .fold(token.to_owned(), |text, (pattern, content)| text.replace(pattern, content));
        replaced.into_bytes()
    }
}

/// SentencePiece spells the bytes that it has no pieces for as `<0x0A>`.
pub(crate) fn byte_token(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

/// GPT-2 spells bytes as letters: the printable ones of Latin-1 as themselves, the others, in
/// order, as the letters from U+0100 on (`bytes_to_unicode` in openai/gpt-2's `encoder.py`).
pub(crate) fn byte_letter(letter: char) -> Option<u8> {
    let code = u32::from(letter);
    let byte = match code {
        0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => code,
        0x100..=0x120 => code - 0x100,
        0x121..=0x142 => code - 0x121 + 0x7F,
        0x143 => 0xAD,
        _ => return None,
    };
    u8::try_from(byte).ok()
}

/// What a token that is spelled in letters for bytes stands for; `None` if it is not.
pub(crate) fn spelled_bytes(token: &str) -> Option<Vec<u8>> {
    token.chars().map(byte_letter).collect()
}

/// The letter that spells each byte; the other direction of [`byte_letter`].
pub(crate) fn letters() -> [char; 256] {
    let mut letters = ['\0'; 256];
    for letter in '\0'..='\u{143}' {
        if let Some(byte) = byte_letter(letter) {
            letters[usize::from(byte)] = letter;
        }
    }
    letters
}

/// The letter that spells a byte.
#[cfg(test)]
pub(crate) fn letter_of(byte: u8) -> char {
    letters()[usize::from(byte)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_a_letter_and_they_are_the_tokenizers() {
        let letters: std::collections::HashSet<char> = (0..=255).map(letter_of).collect();
        let theirs = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet();
        assert_eq!(letters, theirs.into_iter().collect());
        assert_eq!(letter_of(b' '), 'Ġ');
        assert_eq!(letter_of(b'\n'), 'Ċ');
    }

    #[test]
    fn a_decoder_that_is_not_concatenation_is_refused_by_name() {
        let read =
            |json: &str| DecoderSettings::read(serde_json::from_str(json).unwrap()).unwrap_err();
        assert_eq!(
            read(r###"{"type":"WordPiece","prefix":"##","cleanup":true}"###),
            DecoderError::Kind("WordPiece".into())
        );
        assert!(matches!(
            read(r#"{"type":"Sequence","decoders":[{"type":"Fuse"},{"type":"ByteFallback"}]}"#),
            DecoderError::DecoderJson(_)
        ));
    }
}
