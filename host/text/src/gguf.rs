//! A tokenizer out of a GGUF file's metadata.
//!
//! GGUF keeps vocabulary, merges and scores, and names the rest: `tokenizer.ggml.model` says
//! how words become tokens, `tokenizer.ggml.pre` how text becomes words. What the names mean
//! is a fact of the original tokenizers, written down here: the pre-tokenizers and regular
//! expressions are those of the models' own `tokenizer.json`, and llama.cpp's
//! `src/llama-vocab.cpp` says which name goes with which.
//!
//! # Not here
//!
//! `bert`, `t5`, `rwkv` and the other models, and pre-tokenizers not listed, are refused by
//! name: a wrong split gives plausible, worse answers, which is harder to see than an error.

use std::collections::HashMap;

use interlock_model_files::GgufTokenizer;
use interlock_request::TokenId;
use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as Decoders;
use tokenizers::decoders::strip::Strip;
use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::{NFC, Prepend, Replace, Sequence as Normalizers};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, SplitDelimiterBehavior, Tokenizer};

/// Why a GGUF file's tokenizer was not built. Retrying cannot work; the model's
/// `tokenizer.json`, if it has one, may.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GgufError {
    /// `tokenizer.ggml.model` is none that we build.
    #[error("tokenizer model {0:?} is not supported (gpt2 and llama are)")]
    Model(String),
    /// `tokenizer.ggml.pre` is none whose rules are written down here.
    #[error(
        "pre-tokenizer {0:?} is not supported (smollm, llama-bpe, qwen2, gpt-2 and default are)"
    )]
    Pre(String),
    /// A list that goes by token id has another length than the tokens.
    #[error("{list} has {got} entries for {tokens} tokens")]
    Length {
        /// The name of the list.
        list: &'static str,
        /// The length of the list.
        got: usize,
        /// The number of tokens, which is the length that the list must have.
        tokens: usize,
    },
    /// A merge is not two tokens with a space between.
    #[error("merge {0:?} is not two tokens")]
    Merge(String),
    /// The tokenizers crate did not take the vocabulary.
    #[error("vocabulary and merges do not fit: {0}")]
    Vocabulary(String),
}

/// A tokenizer, and whether a plain prompt begins with bos and ends with eos.
#[derive(Debug)]
pub(crate) struct BuiltTokenizer {
    pub(crate) tokenizer: Tokenizer,
    pub(crate) add_bos: bool,
    pub(crate) add_eos: bool,
}

// llama.cpp's `llama_token_type`.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;

pub(crate) fn build(gguf: &GgufTokenizer) -> Result<BuiltTokenizer, GgufError> {
    same_length("token_type", gguf.token_types.len(), gguf)?;
    let (mut tokenizer, adds_bos) = match gguf.model.as_str() {
        "gpt2" => byte_level(gguf)?,
        "llama" => (sentence_piece(gguf)?, true),
        _ => return Err(GgufError::Model(gguf.model.clone())),
    };
    add_tokens(&mut tokenizer, gguf);
    Ok(BuiltTokenizer {
        tokenizer,
        add_bos: gguf.add_bos.unwrap_or(adds_bos),
        add_eos: gguf.add_eos.unwrap_or(false),
    })
}

/// Empty lists are absent ones; what needs them says so itself.
fn same_length(list: &'static str, got: usize, gguf: &GgufTokenizer) -> Result<(), GgufError> {
    let tokens = gguf.tokens.len();
    if got == 0 || got == tokens { Ok(()) } else { Err(GgufError::Length { list, got, tokens }) }
}

/// Marks the tokens that are cut out of a text before anything else sees it.
fn add_tokens(tokenizer: &mut Tokenizer, gguf: &GgufTokenizer) {
    let added = gguf.tokens.iter().zip(&gguf.token_types).filter_map(|(token, &kind)| {
        let special = match kind {
            CONTROL | UNKNOWN => true,
            USER_DEFINED => false,
            _ => return None,
        };
        Some(AddedToken::from(token.clone(), special).normalized(false))
    });
    // They are in the vocabulary already, so each keeps its id.
    tokenizer.add_tokens(&added.collect::<Vec<_>>());
}

fn vocabulary(gguf: &GgufTokenizer) -> Vec<(String, TokenId)> {
    gguf.tokens.iter().cloned().zip(0..).collect()
}

/// GPT-2's kind: words cut by a regular expression, spelled in bytes, merged by rank.
fn byte_level(gguf: &GgufTokenizer) -> Result<(Tokenizer, bool), GgufError> {
    let pre = PreTokenizerName::named(gguf.pre.as_deref())?;
    let merges = gguf.merges.iter().map(|merge| {
        let (left, right) = merge.split_once(' ').ok_or_else(|| GgufError::Merge(merge.clone()))?;
        Ok((left.to_owned(), right.to_owned()))
    });
    let model = BPE::builder()
        .vocab_and_merges(
            vocabulary(gguf).into_iter().collect::<Vocabulary>(),
            merges.collect::<Result<_, _>>()?,
        )
        .ignore_merges(pre == PreTokenizerName::Llama3)
        .build()
        .map_err(|error| GgufError::Vocabulary(error.to_string()))?;
    let mut tokenizer = Tokenizer::new(model);
    tokenizer.with_pre_tokenizer(Some(pre.steps()));
    tokenizer.with_normalizer((pre == PreTokenizerName::Qwen2).then_some(NFC));
    tokenizer.with_decoder(Some(ByteLevel::new(false, true, true)));
    // llama.cpp adds bos for this one when the file does not say.
    Ok((tokenizer, pre == PreTokenizerName::Llama3))
}

/// What the tokenizers crate keeps a vocabulary in.
type Vocabulary = tokenizers::models::bpe::Vocab;

/// How a byte-level model cuts text into words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PreTokenizerName {
    Gpt2,
    SmolLm,
    Llama3,
    Qwen2,
}

// meta-llama/Meta-Llama-3-8B, tokenizer.json: pre_tokenizer.pretokenizers[0].pattern.Regex.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
// Qwen/Qwen2-7B, the same place: digits one by one.
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

impl PreTokenizerName {
    fn named(name: Option<&str>) -> Result<Self, GgufError> {
        match name {
            None | Some("default" | "gpt-2") => Ok(Self::Gpt2),
            Some("smollm") => Ok(Self::SmolLm),
            Some("llama-bpe" | "llama3" | "llama-v3") => Ok(Self::Llama3),
            Some("qwen2") => Ok(Self::Qwen2),
            Some(other) => Err(GgufError::Pre(other.to_owned())),
        }
    }

    fn steps(self) -> PreTokenizers {
        // GPT-2's expression is built into the ByteLevel step (openai/gpt-2, encoder.py):
        // 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
        let gpt2_words = ByteLevel::new(false, true, true);
        let bytes = ByteLevel::new(false, true, false);
        PreTokenizers::new(match self {
            Self::Gpt2 => vec![gpt2_words.into()],
            // HuggingFaceTB/SmolLM2-135M, tokenizer.json: pre_tokenizer.
            Self::SmolLm => vec![Digits::new(true).into(), gpt2_words.into()],
            Self::Llama3 => vec![words(LLAMA3).into(), bytes.into()],
            Self::Qwen2 => vec![words(QWEN2).into(), bytes.into()],
        })
    }
}

fn words(regex: &str) -> Split {
    let pattern = SplitPattern::Regex(regex.to_owned());
    Split::new(pattern, SplitDelimiterBehavior::Isolated, false)
        .expect("the expressions are constants of this file, and tests compile each")
}

/// SentencePiece's kind: the whole text is one word with `▁` for spaces, merged by score;
/// what has no piece is spelled in bytes.
fn sentence_piece(gguf: &GgufTokenizer) -> Result<Tokenizer, GgufError> {
    let tokens = gguf.tokens.len();
    if gguf.scores.len() != tokens {
        return Err(GgufError::Length { list: "scores", got: gguf.scores.len(), tokens });
    }
    let mut builder = BPE::builder()
        .vocab_and_merges(
            vocabulary(gguf).into_iter().collect::<Vocabulary>(),
            merges_by_score(gguf),
        )
        .fuse_unk(true)
        .byte_fallback(true);
    let unknown = gguf.token_types.iter().position(|&kind| kind == UNKNOWN);
    if let Some(at) = unknown {
        builder = builder.unk_token(gguf.tokens[at].clone());
    }
    let model = builder.build().map_err(|error| GgufError::Vocabulary(error.to_string()))?;
    let replace = |pattern: &str, content: &str| {
        Replace::new(pattern, content).expect("a plain string is a valid pattern")
    };
    let mut tokenizer = Tokenizer::new(model);
    // As transformers converts Llama's (convert_slow_tokenizer.py, LlamaConverter, legacy), and
    // without the space in front, Gemma's.
    let space = gguf.add_space_prefix.unwrap_or(true);
    let prepend = space.then(|| Prepend::new("▁".to_owned()).into());
    let normalizers = prepend.into_iter().chain([replace(" ", "▁").into()]).collect();
    tokenizer.with_normalizer(Some(Normalizers::new(normalizers)));
    let strip = space.then(|| Strip::new(' ', 1, 0).into());
    let decoders =
        [replace("▁", " ").into(), ByteFallback::new().into(), Fuse::new().into()].into_iter();
    tokenizer.with_decoder(Some(Decoders::new(decoders.chain(strip).collect())));
    Ok(tokenizer)
}

/// The merges that a vocabulary with scores implies: every way to cut a normal token into two
/// tokens, best score first, then longer left part, then longer right part; what is still
/// equal stays in order of ids (`generate_merges` in transformers' convert_slow_tokenizer.py).
fn merges_by_score(gguf: &GgufTokenizer) -> Vec<(String, String)> {
    let ids: HashMap<&str, usize> =
        gguf.tokens.iter().enumerate().map(|(id, token)| (token.as_str(), id)).collect();
    let mut merges = Vec::new();
    for (id, token) in gguf.tokens.iter().enumerate() {
        if gguf.token_types.get(id).is_some_and(|&kind| kind != NORMAL) {
            continue;
        }
        let cuts = token.char_indices().skip(1).map(|(at, _)| token.split_at(at));
        let mut parts: Vec<_> = cuts
            .filter_map(|(left, right)| Some(((ids.get(left)?, ids.get(right)?), (left, right))))
            .collect();
        parts.sort_by_key(|&(ids, _)| ids);
        merges.extend(parts.into_iter().map(|(_, parts)| (gguf.scores[id], parts)));
    }
    let length = |text: &str| text.chars().count();
    merges.sort_by(|(score_a, a), (score_b, b)| {
        let by_score = score_b.total_cmp(score_a);
        let by_left = || length(b.0).cmp(&length(a.0));
        let by_right = || length(b.1).cmp(&length(a.1));
        by_score.then_with(by_left).then_with(by_right)
    });
    merges.into_iter().map(|(_, (left, right))| (left.to_owned(), right.to_owned())).collect()
}

#[cfg(test)]
mod tests;
