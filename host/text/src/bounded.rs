//! Encoding a text up to a limit of tokens, with work and memory that go by the limit.
//!
//! The tokenizers crate encodes a text as a whole, step by step: 4 MiB of digits are four million
//! strings with their offsets before the first of them becomes a token, 1.5 GB in all. Here the
//! same steps, read from the same tokenizer, are walked along the text:
//!
//! 1. The added tokens are cut out of it ([`added`]), the rest is normalized ([`normalize`]),
//!    and the fewest tokens that this can be are counted ([`fewest`]), until they are too many.
//! 2. What is left is short. It is cut into words ([`words`]), and each becomes tokens by the
//!    tokenizer's own model, until they are too many.
//!
//! # Invariants
//!
//! - The tokens are those that the tokenizers crate makes of the whole text, whatever the text:
//!   property tests compare. A tokenizer with a step that is not known here, or that gives
//!   other tokens for a probe when it is loaded, is left to that crate ([`EncodeMode::Whole`]).
//! - A text that is refused has more tokens than the limit. The exceptions are tokenizers that
//!   turn a long text into few tokens, by dropping what they do not know or by making one token
//!   of it: their texts are refused by size as well, from [`Bounded::bytes_max`] on.

mod added;
mod fewest;
mod normalize;
mod words;

use std::borrow::Cow;
use std::panic::{AssertUnwindSafe, catch_unwind};

use interlock_request::TokenId;
use tokenizers::{
    Encoding, Model, ModelWrapper, OffsetReferential, OffsetType, PreTokenizer, Token, Tokenizer,
};

use crate::RenderError;
use crate::pieces::{byte_token, spelled_bytes};
use added::AddedTokens;
use fewest::{Pairs, TokenLowerBound};
use normalize::TextNormalizer;
use words::WordSplitter;

/// A tokenizer that stops at a limit.
pub(crate) struct Bounded {
    tokenizer: Box<Tokenizer>,
    mode: EncodeMode,
    /// Bytes of the longest token, as it is spelled in a text.
    longest: usize,
}

/// How a text is split into tokens.
enum EncodeMode {
    /// Piece by piece, as far as needed.
    Streaming(Box<StreamingEncoder>),
    /// By the tokenizers crate, up to the last step: its memory is hundreds of times the text's.
    Whole,
}

struct StreamingEncoder {
    /// The tokens that are looked for in the text as it is.
    added: AddedTokens,
    normalizing: TextNormalizer,
    /// The tokens that are looked for in the normalized text.
    added_normalized: AddedTokens,
    words: WordSplitter,
    /// `None` if a token may stand for any number of bytes.
    pairs: Option<Pairs>,
}

/// A part of a text, on its way to tokens.
enum Section<'t> {
    Token(TokenId),
    /// `first`: begins where the text begins.
    Text {
        text: Cow<'t, str>,
        first: bool,
    },
}

/// Why encoding stopped before the end of the text.
#[derive(Debug)]
enum EncodeStop {
    TooLong { tokens_min: usize },
    Failed(String),
}

/// NFC makes no text shorter than a quarter (U+1FBE U+0308 U+0341 are 7 bytes and become 2).
const SHRINKS_MAX: usize = 4;

impl Bounded {
    pub(crate) fn new(tokenizer: Box<Tokenizer>) -> Self {
        let longest = longest(&tokenizer);
        let mut bounded = Self { tokenizer, mode: EncodeMode::Whole, longest };
        if let Some(walk) = StreamingEncoder::of(&bounded.tokenizer) {
            let probe = probe(&bounded.tokenizer);
            let whole = bounded.encode(&probe, true, usize::MAX);
            bounded.mode = EncodeMode::Streaming(Box::new(walk));
            if bounded.encode(&probe, true, usize::MAX) != whole {
                bounded.mode = EncodeMode::Whole;
            }
        }
        bounded
    }

    pub(crate) fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The longest text that may have as few tokens, as it stands and after normalizing.
    pub(crate) fn bytes_max(&self, tokens_max: usize) -> usize {
        tokens_max.saturating_mul(self.longest)
    }

    /// The most memory that encoding takes for a moment.
    pub(crate) fn working_bytes(&self, text_bytes: usize, tokens_max: usize) -> usize {
        /// Of a word that is merged: its letters, their list, the heap of merges, the tokens.
        const OF_A_BYTE: usize = 320;
        /// Of a text that the tokenizers crate cuts: a string, another, offsets, tokens.
        const OF_A_BYTE_WHOLE: usize = 640;
        /// An id; for the step that adds special tokens, what an [`Encoding`] has of it.
        const OF_A_TOKEN: usize = 160;

        let bytes = text_bytes.min(self.bytes_max(tokens_max).saturating_mul(SHRINKS_MAX));
        let tokens = text_bytes.min(tokens_max).saturating_mul(OF_A_TOKEN);
        let of_a_byte = match self.mode {
            EncodeMode::Streaming(_) => OF_A_BYTE,
            EncodeMode::Whole => OF_A_BYTE_WHOLE,
        };
        bytes.saturating_mul(of_a_byte).saturating_add(tokens)
    }

    /// The text's tokens, with those around a plain prompt if `special`.
    pub(crate) fn encode(
        &self,
        text: &str,
        special: bool,
        tokens_max: usize,
    ) -> Result<Vec<TokenId>, RenderError> {
        let encoded = caught(|| {
            let mut ids = Ids { ids: Vec::new(), max: tokens_max };
            match &self.mode {
                EncodeMode::Streaming(walk) => {
                    let bytes_max = self.bytes_max(tokens_max).saturating_mul(walk.shrinks());
                    // Before anything is looked at, unless much of it may be cut away.
                    if text.len() > bytes_max && !walk.added.strips() {
                        return Err(ids.too_long_by_size(text.len(), bytes_max));
                    }
                    walk.encode(self.tokenizer.get_model(), text, bytes_max, &mut ids)?;
                }
                EncodeMode::Whole => self.encode_whole(text, &mut ids)?,
            }
            self.around(ids, special)
        })?;
        encoded.map_err(|stop| match stop {
            EncodeStop::TooLong { tokens_min } => RenderError::TooLong { tokens_min, tokens_max },
            EncodeStop::Failed(why) => RenderError::Tokenizer(why),
        })
    }

    /// What the tokenizers crate does, but for keeping all tokens of a text that is too long.
    fn encode_whole(&self, text: &str, ids: &mut Ids) -> Result<(), EncodeStop> {
        let bytes_max = self.bytes_max(ids.max).saturating_mul(SHRINKS_MAX);
        if text.len() > bytes_max {
            return Err(ids.too_long_by_size(text.len(), bytes_max));
        }
        let tokenizer = &*self.tokenizer;
        let added = tokenizer.get_added_vocabulary();
        let mut cut = added.extract_and_normalize(tokenizer.get_normalizer(), text);
        if let Some(pre_tokenizer) = tokenizer.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut cut).map_err(failed)?;
        }
        for (word, _, tokens) in cut.get_splits(OffsetReferential::Normalized, OffsetType::None) {
            match tokens {
                Some(tokens) => ids.extend(tokens)?,
                None => ids.extend(&tokenizer.get_model().tokenize(word).map_err(failed)?)?,
            }
        }
        Ok(())
    }

    /// With what the tokenizer puts around a text.
    fn around(&self, ids: Ids, special: bool) -> Result<Vec<TokenId>, EncodeStop> {
        if self.tokenizer.get_post_processor().is_none() {
            return Ok(ids.ids);
        }
        let bare = |id| (id, String::new(), (0, 0), None, 0);
        let encoding: Encoding = ids.ids.iter().copied().map(bare).collect();
        let max = ids.max;
        drop(ids);
        let encoding = self.tokenizer.post_process(encoding, None, special).map_err(failed)?;
        match encoding.len() {
            tokens_min if tokens_min > max => Err(EncodeStop::TooLong { tokens_min }),
            _ => Ok(encoding.get_ids().to_vec()),
        }
    }
}

impl StreamingEncoder {
    /// The steps of this tokenizer, if they are known.
    fn of(tokenizer: &Tokenizer) -> Option<Self> {
        let normalizing = TextNormalizer::of(tokenizer)?;
        let (added, added_normalized) = AddedTokens::of(tokenizer)?;
        let words = WordSplitter::of(tokenizer)?;
        // What is cut off around an added token is not in its spelling.
        let pairs = (!added_normalized.strips()).then(|| pairs(tokenizer, &words)).flatten();
        Some(Self { added, normalizing, added_normalized, words, pairs })
    }

    /// How many times shorter its tokens' spellings may be than the text.
    fn shrinks(&self) -> usize {
        match self.pairs.is_some() && !self.normalizing.shrinks() {
            true => 1,
            false => SHRINKS_MAX,
        }
    }

    fn encode(
        &self,
        model: &ModelWrapper,
        text: &str,
        bytes_max: usize,
        ids: &mut Ids,
    ) -> Result<(), EncodeStop> {
        for section in self.sections(text, bytes_max, ids.max)? {
            match section {
                Section::Token(id) => ids.push(id)?,
                Section::Text { text, first } => self.words.each(&text, first, &mut |word| {
                    ids.extend(&model.tokenize(word).map_err(failed)?)
                })?,
            }
        }
        Ok(())
    }

    /// Cuts the added tokens out and normalizes the rest, as long as it may be short enough.
    fn sections<'t>(
        &self,
        text: &'t str,
        bytes_max: usize,
        tokens_max: usize,
    ) -> Result<Vec<Section<'t>>, EncodeStop> {
        let mut sections = Vec::new();
        let mut fewest = TokenLowerBound::new(self.pairs.as_ref(), tokens_max);
        let mut bytes = 0_usize;
        self.added.each(text, &mut |range, token| {
            if let Some(id) = token {
                sections.push(Section::Token(id));
                return fewest.token();
            }
            bytes += range.len();
            if bytes > bytes_max {
                return Err(EncodeStop::TooLong { tokens_min: tokens_max.saturating_add(1) });
            }
            let part = &text[range.clone()];
            let begins = range.start == 0;
            let mut fits = |letters: &str| fewest.text(letters, &self.words);
            match self.normalizing.normalize(part, &mut fits)? {
                Cow::Borrowed(part) => self.added_normalized.each(part, &mut |range, token| {
                    let first = begins && range.start == 0;
                    sections.push(section(Cow::Borrowed(&part[range]), token, first));
                    Ok(())
                }),
                Cow::Owned(part) => self.added_normalized.each(&part, &mut |range, token| {
                    let first = begins && range.start == 0;
                    sections.push(section(Cow::Owned(part[range].to_owned()), token, first));
                    Ok(())
                }),
            }
        })?;
        Ok(sections)
    }
}

fn section(text: Cow<'_, str>, token: Option<TokenId>, first: bool) -> Section<'_> {
    match token {
        Some(id) => Section::Token(id),
        None => Section::Text { text, first },
    }
}

/// Tokens so far, at most `max`.
struct Ids {
    ids: Vec<TokenId>,
    max: usize,
}

impl Ids {
    fn push(&mut self, id: TokenId) -> Result<(), EncodeStop> {
        if self.ids.len() >= self.max {
            return Err(EncodeStop::TooLong { tokens_min: self.max.saturating_add(1) });
        }
        self.ids.push(id);
        Ok(())
    }

    fn extend(&mut self, tokens: &[Token]) -> Result<(), EncodeStop> {
        tokens.iter().try_for_each(|token| self.push(token.id))
    }

    fn too_long_by_size(&self, bytes: usize, bytes_max: usize) -> EncodeStop {
        // As many times the limit as the bytes are, rounded down.
        let times = bytes / bytes_max.max(1);
        EncodeStop::TooLong {
            tokens_min: self.max.saturating_mul(times).max(self.max.saturating_add(1)),
        }
    }
}

fn failed(error: tokenizers::Error) -> EncodeStop {
    EncodeStop::Failed(error.to_string())
}

/// Bytes of the longest token.
fn longest(tokenizer: &Tokenizer) -> usize {
    let added = tokenizer.get_added_tokens_decoder();
    let added = added.values().map(|token| token.content.len()).max();
    let vocabulary = tokenizer.get_model().get_vocab();
    let plain = vocabulary.keys().map(String::len).max();
    added.max(plain).unwrap_or(1).max(1)
}

/// The pairs of bytes in this tokenizer's tokens, if each token is a part of the text: every
/// byte has a token, and no word is cut away.
fn pairs(tokenizer: &Tokenizer, words: &WordSplitter) -> Option<Pairs> {
    let ModelWrapper::BPE(model) = tokenizer.get_model() else { return None };
    if model.dropout.is_some() || !words.keeps_all() {
        return None;
    }
    let vocabulary = model.get_vocab();
    let has = |token: &str| vocabulary.contains_key(token);
    let bytewise = words.spells_bytes();
    let whole = match bytewise {
        true => words.letters().iter().all(|letter| has(&letter.to_string())),
        false => model.byte_fallback && (0..=u8::MAX).all(|b| has(&format!("<0x{b:02X}>"))),
    };
    if !whole {
        return None;
    }
    let mut pairs = Pairs::new();
    for token in vocabulary.keys() {
        match bytewise {
            true => spelled_bytes(token).iter().for_each(|bytes| pairs.add(bytes)),
            false if byte_token(token).is_some() => {}
            false => pairs.add(token.as_bytes()),
        }
    }
    for token in tokenizer.get_added_tokens_decoder().values().filter(|token| token.normalized) {
        let Ok(content) = normalize::by_the_crate(tokenizer, &token.content) else { return None };
        pairs.add(content.as_bytes());
    }
    Some(pairs)
}

/// A text in which each step has something to do.
fn probe(tokenizer: &Tokenizer) -> String {
    /// Enough to see their settings; some vocabularies have thousands.
    const ADDED_MAX: usize = 64;

    let text = "Hello wörld's  12345 ½ ²³ e\u{301} \u{212B} \u{1F468}\u{200D}\u{1F469} don't I'LL\t\n\n x\u{3000}y ▁z ,.;!? 日本語 \r\n  a";
    let mut probe = text.to_owned();
    let added = tokenizer.get_added_tokens_decoder();
    let mut ids: Vec<_> = added.keys().copied().collect();
    ids.sort_unstable();
    for id in ids.into_iter().take(ADDED_MAX) {
        probe.push_str(&added[&id].content);
        probe.push_str(if id % 2 == 0 { " a  " } else { text });
    }
    probe
}

/// Makes a panic of the tokenizer an error of this prompt.
///
/// The onig crate panics when one match takes more than ten million steps ("retry-limit-in-match
/// over"): ten million spaces do it to Llama's expression. The tokenizer is only read, and
/// splits words before it takes any lock, so what is left behind is whole.
fn caught<T>(work: impl FnOnce() -> T) -> Result<T, RenderError> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref().copied());
        RenderError::Tokenizer(text.unwrap_or("it panicked").to_owned())
    })
}

#[cfg(test)]
mod tests;
