//! Where text goes when it is made: past the policies that guard it, to the client, and to the
//! shelf where results are kept.
//!
//! # How likely tokens were
//!
//! Tokens are told with their text, so behind a gate they wait for it. From the first place where a
//! policy puts other text in that of the model's, none are told: there would be no place for them.

use std::collections::VecDeque;

use interlock_policy_chain::{FilteredText, GuardEnd, StreamFilters};
use interlock_request::{CancelCause, Usage};
use tokio::time::Instant;

use super::asking::{Asking, Client};
use crate::failure::Failure;
use crate::pieces::{Done, Outlet, Said, Told};
use crate::results::Keeping;

/// Where one request's text goes.
pub(super) struct Outflow {
    guards: Option<StreamFilters>,
    gate: Gate,
    pub(super) client: Client,
    /// All that was given out, if anybody may ask for it later.
    said: Option<Said>,
    /// Who is told of the end when the client has left.
    keeping: Option<Keeping>,
}

/// What lies before a gate.
#[derive(Default)]
struct Gate {
    /// Text that was not passed yet, as far as it is known.
    text: String,
    /// Its tokens.
    tokens: VecDeque<Told>,
    /// Characters that were passed.
    passed: usize,
    /// Has a policy said something of its own?
    rewritten: bool,
}

impl Gate {
    fn put(&mut self, said: Said) {
        if !self.rewritten {
            self.text.push_str(&said.text);
            self.tokens.extend(said.tokens);
        }
    }

    /// The tokens that begin in text which was passed.
    fn tokens_of(&mut self, passed: &str) -> Vec<Told> {
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
        let begun = self.tokens.partition_point(|told| told.at < self.passed);
        self.tokens.drain(..begun).collect()
    }
}

impl Outflow {
    /// `keeps`: may anybody ask for the answer later?
    pub(super) fn new(
        guards: Option<StreamFilters>,
        client: Option<Outlet>,
        keeping: Option<Keeping>,
        keeps: bool,
    ) -> Self {
        let said = (keeps || keeping.is_some()).then(Said::default);
        Self { guards, gate: Gate::default(), client: Client::new(client), said, keeping }
    }

    /// Can the whole answer still be kept?
    pub(super) fn can_be_kept(&self) -> bool {
        self.said.is_some()
    }

    /// Its first pass begins.
    pub(super) fn started(&self) {
        if let Some(keeping) = &self.keeping {
            keeping.started();
        }
    }

    /// Is it kept already?
    pub(super) fn is_kept(&self) -> bool {
        self.keeping.is_some()
    }

    /// What comes is for whoever asks later, or for nobody.
    pub(super) fn leave(&mut self, keeping: Option<Keeping>) {
        if keeping.is_none() && self.keeping.is_none() {
            // Nobody will read it, so nobody need look at it.
            self.said = None;
            self.guards = None;
        }
        self.keeping = self.keeping.take().or(keeping);
    }

    /// When a window is due that waits for more text.
    pub(super) fn due_at(&self) -> Option<Instant> {
        self.guards.as_ref()?.due_at().map(Instant::from_std)
    }

    /// More text. If a policy ends the answer here, how.
    ///
    /// # Errors
    ///
    /// When the request has to stop before a policy has answered, and why; in the next two, too.
    pub(super) async fn push(
        &mut self,
        said: Said,
        usage: Usage,
        asking: &mut Asking<'_>,
    ) -> Result<Option<GuardEnd>, CancelCause> {
        let Some(guards) = &mut self.guards else {
            self.give(said);
            return Ok(None);
        };
        let text = said.text.clone();
        // Both sides of the gate know of it even if the call is dropped.
        self.gate.put(said);
        let passed = asking.wait(&mut self.client, guards.push(&text, usage, now())).await?;
        Ok(self.pass(passed))
    }

    /// A window is due.
    pub(super) async fn due(
        &mut self,
        usage: Usage,
        asking: &mut Asking<'_>,
    ) -> Result<Option<GuardEnd>, CancelCause> {
        let Some(guards) = &mut self.guards else { return Ok(None) };
        let passed = asking.wait(&mut self.client, guards.due(usage, now())).await?;
        Ok(self.pass(passed))
    }

    /// There is no more text after this.
    pub(super) async fn finish(
        &mut self,
        said: Said,
        usage: Usage,
        asking: &mut Asking<'_>,
    ) -> Result<Option<GuardEnd>, CancelCause> {
        let end = self.push(said, usage, asking).await?;
        let Some(guards) = self.guards.as_mut().filter(|_| end.is_none()) else { return Ok(end) };
        let passed = asking.wait(&mut self.client, guards.finish(usage, now())).await?;
        let end = self.pass(passed);
        let rest = std::mem::take(&mut self.gate.tokens).into();
        self.give(Said { text: String::new(), tokens: rest });
        Ok(end)
    }

    fn pass(&mut self, passed: FilteredText) -> Option<GuardEnd> {
        let FilteredText { text, end } = passed;
        let tokens = self.gate.tokens_of(&text);
        self.give(Said { text, tokens });
        if end.is_some() {
            self.guards = None;
            self.gate.tokens = VecDeque::new();
        }
        end
    }

    fn give(&mut self, said: Said) {
        if let Some(kept) = &mut self.said {
            kept.join(said.clone());
        }
        self.client.push(said);
    }

    /// Tells whoever wants to know how it ended. Again, nothing happens.
    pub(super) fn end(&mut self, how: Result<Done, Failure>) {
        self.end_kept(&how);
        self.client.end(how);
    }

    /// The same, but for the client.
    pub(super) fn end_kept(&mut self, how: &Result<Done, Failure>) {
        self.guards = None;
        if let Some(keeping) = self.keeping.take() {
            keeping.end(self.said.take().unwrap_or_default(), how.clone());
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

    fn said(text: &str, at: usize) -> Said {
        let told = |(nth, byte): (usize, u8)| Told {
            token: byte.into(),
            at: at + nth,
            logprobs: Box::new(Logprobs { drawn: 0.0, top: vec![] }),
        };
        Said { text: text.into(), tokens: text.bytes().enumerate().map(told).collect() }
    }

    fn letters(tokens: &[Told]) -> String {
        tokens.iter().map(|told| told.token as u8 as char).collect()
    }

    #[test]
    fn tokens_wait_for_their_text_at_the_gate() {
        let mut gate = Gate::default();
        gate.put(said("abc", 0));
        assert_eq!(letters(&gate.tokens_of("")), "");
        assert_eq!(letters(&gate.tokens_of("ab")), "ab");
        gate.put(said("d", 3));
        assert_eq!(letters(&gate.tokens_of("cd")), "cd");
    }

    #[test]
    fn what_a_policy_says_itself_has_no_tokens_and_nothing_behind_it() {
        let mut gate = Gate::default();
        gate.put(said("abcd", 0));
        assert_eq!(letters(&gate.tokens_of("a")), "a");
        assert_eq!(letters(&gate.tokens_of("***")), "");
        gate.put(said("e", 4));
        assert_eq!(letters(&gate.tokens_of("e")), "");
    }
}
