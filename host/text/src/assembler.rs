//! Whole characters out of the bytes that tokens stand for.

use interlock_request::TokenId;

use crate::pieces::Pieces;

/// What is known of a text in the middle of it.
#[derive(Debug)]
pub(crate) struct TextAssembler {
    /// Bytes of a character whose end has not come yet.
    pending: Vec<u8>,
    /// Spaces that the tokenizer would have put in front and that are still to be dropped.
    lead: usize,
    /// No token has given any bytes yet.
    empty: bool,
    /// `pending` begins with bytes of the prompt.
    from_prompt: bool,
}

impl TextAssembler {
    pub(crate) fn new(pieces: &Pieces) -> Self {
        Self { pending: Vec::new(), lead: pieces.lead(), empty: true, from_prompt: false }
    }

    /// The middle of a text that begins with these tokens. Of a long one, only the tokens at both
    /// ends are looked at: the first decide on the space in front, the last may be part of a character.
    pub(crate) fn after(pieces: &Pieces, prompt: &[TokenId]) -> Self {
        let (mut text, mut given) = (Self::new(pieces), String::new());
        let mut tokens = prompt.iter();
        while text.empty || text.lead > 0 {
            let Some(&token) = tokens.next() else { break };
            text.push(pieces, token, &mut given);
        }
        let rest = tokens.as_slice();
        let last = &rest[tail(pieces, rest)..];
        if last.len() < rest.len() {
            text.pending.clear();
        }
        for &token in last {
            text.push(pieces, token, &mut given);
        }
        text.from_prompt = !text.pending.is_empty();
        text
    }

    pub(crate) fn push(&mut self, pieces: &Pieces, token: TokenId, out: &mut String) {
        let mut bytes = pieces.bytes(token);
        if bytes.is_empty() {
            return;
        }
        if !self.empty {
            self.pending.extend_from_slice(pieces.between());
        }
        self.empty = false;
        while self.lead > 0 {
            match bytes.strip_prefix(b" ") {
                Some(rest) => (bytes, self.lead) = (rest, self.lead - 1),
                None if bytes.is_empty() => break,
                None => self.lead = 0,
            }
        }
        if self.pending.is_empty()
            && let Ok(whole) = std::str::from_utf8(bytes)
        {
            // As nearly all tokens are: nothing is held back, and nothing was.
            out.push_str(whole);
            return;
        }
        self.pending.extend_from_slice(bytes);
        self.give_whole(out);
    }

    pub(crate) fn flush(&mut self, out: &mut String) {
        // What is pending is the beginning of one character.
        if !std::mem::take(&mut self.from_prompt) {
            out.push_str(&String::from_utf8_lossy(&self.pending));
        }
        self.pending.clear();
    }

    /// Moves everything but the beginning of a character from `pending` to `out`.
    fn give_whole(&mut self, out: &mut String) {
        let mut given = 0;
        for chunk in self.pending.utf8_chunks() {
            out.push_str(chunk.valid());
            given += chunk.valid().len();
            let rest = &self.pending[given..];
            if is_beginning(rest) {
                break;
            }
            if !chunk.invalid().is_empty() {
                if given > 0 || !self.from_prompt {
                    out.push(char::REPLACEMENT_CHARACTER);
                }
                given += chunk.invalid().len();
            }
        }
        self.from_prompt &= given == 0;
        self.pending.drain(..given);
    }
}

/// From where on these tokens have as many bytes as a character has at most, if they have so many:
/// what came before cannot be part of a character that is not yet whole.
fn tail(pieces: &Pieces, tokens: &[TokenId]) -> usize {
    let mut bytes = 0;
    let enough = |&token: &TokenId| {
        bytes += pieces.bytes(token).len();
        bytes >= char::MAX.len_utf8()
    };
    tokens.iter().rposition(enough).unwrap_or(0)
}

/// More bytes could make a character of all of these.
fn is_beginning(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes)
        .is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none())
}
