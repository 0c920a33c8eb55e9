//! Where text goes when it is made: past the policies that guard it, to the client, and to the
//! store where results are kept.
//!
//! # How likely tokens were
//!
//! Tokens are told with their text, so behind a gate they wait for it. From the first place where a
//! policy puts other text in that of the model's, none are told: there would be no place for them.

use std::collections::VecDeque;

use interlock_policy_chain::{FilteredText, GuardEnd, StreamFilters};
use interlock_request::{CancelCause, Usage};
use tokio::time::Instant;

use super::policy_wait::{ClientLink, PolicyWait};
use crate::chunks::{ChunkSender, Done, TextChunk, TokenLogprob};
use crate::failure::Failure;
use crate::result_store::PendingResult;

/// Where one request's text goes.
pub(super) struct OutputPipeline {
    filters: Option<StreamFilters>,
    gate: GatedText,
    pub(super) client: ClientLink,
    /// All that was given out, if anybody may ask for it later.
    given: Option<TextChunk>,
    /// The store's side, for an answer that is stored.
    pending: Option<PendingResult>,
}

/// What lies before a gate.
#[derive(Default)]
struct GatedText {
    /// Text that was not passed yet, as far as it is known.
    text: String,
    /// The tokens of that text.
    tokens: VecDeque<TokenLogprob>,
    /// Characters that were passed.
    passed: usize,
    /// Has a policy said something of its own?
    rewritten: bool,
}

impl GatedText {
    fn put(&mut self, chunk: TextChunk) {
        if !self.rewritten {
            self.text.push_str(&chunk.text);
            self.tokens.extend(chunk.tokens);
        }
    }

    /// The tokens that begin in text which was passed.
    fn tokens_of(&mut self, passed: &str) -> Vec<TokenLogprob> {
        if !self.text.starts_with(passed) {
            self.rewritten = true;
            self.text = String::new();
            self.tokens = VecDeque::new();
        }
        if self.rewritten {
            return vec![];
        }
        self.text.drain(..passed.len());
        self.passed += passed.chars().count();
        let begun = self.tokens.partition_point(|logprob| logprob.at < self.passed);
        self.tokens.drain(..begun).collect()
    }
}

impl OutputPipeline {
    /// `keeps`: may anybody ask for the answer later?
    pub(super) fn new(
        filters: Option<StreamFilters>,
        client: Option<ChunkSender>,
        pending: Option<PendingResult>,
        keeps: bool,
    ) -> Self {
        let given = (keeps || pending.is_some()).then(TextChunk::default);
        Self {
            filters,
            gate: GatedText::default(),
            client: ClientLink::new(client),
            given,
            pending,
        }
    }

    /// Can the whole answer still be kept?
    pub(super) fn can_be_kept(&self) -> bool {
        self.given.is_some()
    }

    /// The request's first step begins.
    pub(super) fn started(&self) {
        if let Some(pending) = &self.pending {
            pending.started();
        }
    }

    /// Is the answer being stored already?
    pub(super) fn is_kept(&self) -> bool {
        self.pending.is_some()
    }

    /// What comes is for whoever asks later, or for nobody.
    pub(super) fn leave(&mut self, pending: Option<PendingResult>) {
        if pending.is_none() && self.pending.is_none() {
            // Nobody will read it, so nobody need look at it.
            self.given = None;
            self.filters = None;
        }
        self.pending = self.pending.take().or(pending);
    }

    /// When a window is due that waits for more text.
    pub(super) fn due_at(&self) -> Option<Instant> {
        self.filters.as_ref()?.due_at().map(Instant::from_std)
    }

    /// More text. If a policy ends the answer here, how.
    ///
    /// # Errors
    ///
    /// When the request has to stop before a policy has answered, and why; in the next two, too.
    pub(super) async fn push(
        &mut self,
        chunk: TextChunk,
        usage: Usage,
        policy_wait: &mut PolicyWait<'_>,
    ) -> Result<Option<GuardEnd>, CancelCause> {
        let Some(filters) = &mut self.filters else {
            self.give(chunk);
            return Ok(None);
        };
        let text = chunk.text.clone();
        // Both sides of the gate know of it even if the call is dropped.
        self.gate.put(chunk);
        let passed = policy_wait.wait(&mut self.client, filters.push(&text, usage, now())).await?;
        Ok(self.pass(passed))
    }

    /// A window is due.
    pub(super) async fn due(
        &mut self,
        usage: Usage,
        policy_wait: &mut PolicyWait<'_>,
    ) -> Result<Option<GuardEnd>, CancelCause> {
        let Some(filters) = &mut self.filters else { return Ok(None) };
        let passed = policy_wait.wait(&mut self.client, filters.due(usage, now())).await?;
        Ok(self.pass(passed))
    }

    /// There is no more text after this.
    pub(super) async fn finish(
        &mut self,
        chunk: TextChunk,
        usage: Usage,
        policy_wait: &mut PolicyWait<'_>,
    ) -> Result<Option<GuardEnd>, CancelCause> {
        let end = self.push(chunk, usage, policy_wait).await?;
        let Some(filters) = self.filters.as_mut().filter(|_| end.is_none()) else { return Ok(end) };
        let passed = policy_wait.wait(&mut self.client, filters.finish(usage, now())).await?;
        let end = self.pass(passed);
        let rest = std::mem::take(&mut self.gate.tokens).into();
        self.give(TextChunk { text: String::new(), tokens: rest });
        Ok(end)
    }

    fn pass(&mut self, passed: FilteredText) -> Option<GuardEnd> {
        let FilteredText { text, end } = passed;
        let tokens = self.gate.tokens_of(&text);
        self.give(TextChunk { text, tokens });
        if end.is_some() {
            self.filters = None;
            self.gate.tokens = VecDeque::new();
        }
        end
    }

    fn give(&mut self, chunk: TextChunk) {
        if let Some(kept) = &mut self.given {
            kept.join(chunk.clone());
        }
        self.client.push(chunk);
    }

    /// Tells whoever wants to know how it ended. Again, nothing happens.
    pub(super) fn end(&mut self, how: Result<Done, Failure>) {
        self.end_kept(&how);
        self.client.end(how);
    }

    /// As [`Self::end`], but the client is not told.
    pub(super) fn end_kept(&mut self, how: &Result<Done, Failure>) {
        self.filters = None;
        if let Some(pending) = self.pending.take() {
            pending.end(self.given.take().unwrap_or_default(), how.clone());
        }
    }
}

/// The clock that tests can stop, as std has it.
fn now() -> std::time::Instant {
    Instant::now().into_std()
}

#[cfg(test)]
mod tests {
    use interlock_request::Logprobs;

    use super::*;

    fn chunk(text: &str, at: usize) -> TextChunk {
        let logprob = |(nth, byte): (usize, u8)| TokenLogprob {
            token: byte.into(),
            at: at + nth,
            logprobs: Box::new(Logprobs { drawn: 0.0, top: vec![] }),
        };
        TextChunk { text: text.into(), tokens: text.bytes().enumerate().map(logprob).collect() }
    }

    fn letters(tokens: &[TokenLogprob]) -> String {
        tokens.iter().map(|logprob| logprob.token as u8 as char).collect()
    }

    #[test]
    fn tokens_wait_for_their_text_at_the_gate() {
        let mut gate = GatedText::default();
        gate.put(chunk("abc", 0));
        assert_eq!(letters(&gate.tokens_of("")), "");
        assert_eq!(letters(&gate.tokens_of("ab")), "ab");
        gate.put(chunk("d", 3));
        assert_eq!(letters(&gate.tokens_of("cd")), "cd");
    }

    #[test]
    fn what_a_policy_says_itself_has_no_tokens_and_nothing_behind_it() {
        let mut gate = GatedText::default();
        gate.put(chunk("abcd", 0));
        assert_eq!(letters(&gate.tokens_of("a")), "a");
        assert_eq!(letters(&gate.tokens_of("***")), "");
        gate.put(chunk("e", 4));
        assert_eq!(letters(&gate.tokens_of("e")), "");
    }
}
