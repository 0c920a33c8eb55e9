//! Added tokens, which are cut out of a text before everything else.

use std::ops::Range;

use aho_corasick::{AhoCorasick, MatchKind};
use interlock_request::TokenId;
use tokenizers::{AddedToken, Tokenizer};

use super::{EncodeStop, normalize};

/// The added tokens that are looked for in one form of the text: as it is, or normalized.
pub(super) struct AddedTokens {
    search: AhoCorasick,
    tokens: Vec<(TokenId, AddedToken)>,
}

impl AddedTokens {
    /// The added tokens that are looked for before normalizing, and those after it. None where
    /// one has a setting that no architecture uses, or two cannot be told apart.
    pub(super) fn of(tokenizer: &Tokenizer) -> Option<(Self, Self)> {
        if tokenizer.get_encode_special_tokens() {
            return None;
        }
        let mut tokens: Vec<_> = tokenizer.get_added_tokens_decoder().into_iter().collect();
        if tokens.iter().any(|(_, token)| token.single_word || token.content.is_empty()) {
            return None;
        }
        tokens.sort_unstable_by_key(|(id, _)| *id);
        let (normalized, plain): (Vec<_>, Vec<_>) =
            tokens.into_iter().partition(|(_, token)| token.normalized);
        let spelled = normalized.iter().map(|(_, token)| {
            normalize::by_the_crate(tokenizer, &token.content).ok().filter(|text| !text.is_empty())
        });
        let spelled: Vec<_> = spelled.collect::<Option<_>>()?;
        let contents = plain.iter().map(|(_, token)| token.content.clone()).collect();
        Some((Self::new(plain, contents)?, Self::new(normalized, spelled)?))
    }

    fn new(tokens: Vec<(TokenId, AddedToken)>, spelled: Vec<String>) -> Option<Self> {
        let mut sorted: Vec<_> = spelled.iter().collect();
        sorted.sort_unstable();
        if sorted.windows(2).any(|pair| pair[0] == pair[1]) {
            return None;
        }
        let search = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(spelled);
        Some(Self { search: search.ok()?, tokens })
    }

    /// Whether one of them takes the white space around it along.
    pub(super) fn strips(&self) -> bool {
        self.tokens.iter().any(|(_, token)| token.lstrip || token.rstrip)
    }

    /// Hands out the text's parts in order: added tokens, and what is between them.
    pub(super) fn each(
        &self,
        text: &str,
        part: &mut dyn FnMut(Range<usize>, Option<TokenId>) -> Result<(), EncodeStop>,
    ) -> Result<(), EncodeStop> {
        let mut done = 0;
        if self.tokens.is_empty() {
            return if text.is_empty() { Ok(()) } else { part(0..text.len(), None) };
        }
        for found in self.search.find_iter(text) {
            let (id, token) = &self.tokens[found.pattern().as_usize()];
            let (mut start, mut end) = (found.start(), found.end());
            if token.lstrip {
                // What the token before has taken is gone.
                start = text[..start].trim_end().len().max(done);
            }
            if token.rstrip {
                end += text.len() - end - text[end..].trim_start().len();
            }
            if done < start {
                part(done..start, None)?;
            }
            part(start..end, Some(*id))?;
            done = end;
        }
        if done < text.len() { part(done..text.len(), None) } else { Ok(()) }
    }
}
