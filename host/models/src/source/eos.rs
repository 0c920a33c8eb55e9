//! The tokens that end a generation.
//!
//! The files name them by id; which of them a chat template writes is another matter
//! (`special_tokens.rs`). Where no file says which token ends a turn, one that has its usual name
//! does: without it a model would go on to write the other side's turn.

use interlock_request::TokenId;

/// Usual names of tokens that end a turn or a text. No ordinary token is called so, and some files get
/// the kind of these wrong; so their kind does not matter.
const USUAL: [&str; 15] = [
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|eot|>",
    "<|end_of_turn|>",
    "<|END_OF_TURN_TOKEN|>",
    "<end_of_turn>",
    "<end_of_utterance>",
    "<EOT>",
    "\u{2581}<EOT>",
    "[EOT]",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<\u{ff5c}end\u{2581}of\u{2581}sentence\u{ff5c}>",
];
/// Usual names that ordinary tokens for HTML may have too: only a special token of such a name ends
/// a turn or a text.
const USUAL_OF_SPECIAL: [&str; 2] = ["</s>", "<eos>"];

/// A token of the vocabulary.
#[derive(Debug, Clone, Copy)]
pub(super) struct NamedToken<'a> {
    pub(super) id: TokenId,
    pub(super) spelling: &'a str,
    /// Do the files say that it is no ordinary text?
    pub(super) special: bool,
}

/// The ids that the files name, each once, and if none of them is for the end of a turn, those with
/// its usual names.
pub(super) fn all<'a>(
    named: impl IntoIterator<Item = TokenId>,
    turn_is_named: bool,
    tokens: impl IntoIterator<Item = NamedToken<'a>>,
) -> Vec<TokenId> {
    let usual = tokens.into_iter().filter(|token| !turn_is_named && is_usual(token));
    let mut ends = Vec::new();
    for id in named.into_iter().chain(usual.map(|token| token.id)) {
        if !ends.contains(&id) {
            ends.push(id);
        }
    }
    ends
}

fn is_usual(token: &NamedToken<'_>) -> bool {
    USUAL.contains(&token.spelling) || token.special && USUAL_OF_SPECIAL.contains(&token.spelling)
}
