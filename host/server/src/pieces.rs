//! The way from a request's driver to its HTTP side: text and its tokens, then one end.
//!
//! # Invariants
//!
//! - The driver never waits for its client: what finds no room is kept and joined with what
//!   follows, so at most the whole answer (`tokens_max` tokens) is held for a slow reader.
//! - Tokens stay with their text, in order, and none is lost in the joining.
//! - The end needs no room: it has a place of its own and takes along what was kept.
//! - A driver that vanishes without an end is a failure, never silence.

use std::task::{Context, Poll};

use interlock_request::{Finish, Logprobs, TokenId, Usage};
use tokio::sync::{mpsc, oneshot};

use crate::client::Generation;
use crate::failure::Failure;

/// How many pieces may be on their way before they are joined.
const PIECES_MAX: usize = 16;

/// How an answer ends well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Done {
    /// Why the model stopped.
    pub(crate) finish: Finish,
    /// What it used.
    pub(crate) usage: Usage,
}

/// How a request ended, in one word: what `GET` shows, and what its cancelling answers. In ascending
/// order of what matters to whoever cancelled several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum EndKind {
    /// It came to its end.
    Completed,
    /// It was refused, or broke, or a policy ended it.
    Failed,
    /// It was stopped: by whoever asked, or by a deadline.
    Cancelled,
}

impl EndKind {
    pub(crate) fn of(how: &Result<Done, Failure>) -> Self {
        match how {
            Ok(_) => Self::Completed,
            Err(Failure::Cancelled(_)) => Self::Cancelled,
            Err(_) => Self::Failed,
        }
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// A part of an answer.
#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct Said {
    /// The text; empty only where tokens without any end the answer.
    pub(crate) text: String,
    /// The tokens that begin in this text; none unless the client asked how likely they were.
    pub(crate) tokens: Vec<Told>,
}

/// A token that the client is told of. Ids are spelled only when they are written out: twenty
/// spelled alternatives would take five times the room in which a slow reader's answer waits.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Told {
    /// Which.
    pub(crate) token: TokenId,
    /// Characters of the answer before it.
    pub(crate) at: usize,
    /// How likely it was.
    pub(crate) logprobs: Box<Logprobs>,
}

impl Said {
    /// About as much memory as it takes.
    pub(crate) fn bytes(&self) -> usize {
        let alternatives = |told: &Told| told.logprobs.top.len() * size_of::<(TokenId, f32)>();
        let told = |told: &Told| size_of::<Told>() + size_of::<Logprobs>() + alternatives(told);
        self.text.len() + self.tokens.iter().map(told).sum::<usize>()
    }

    fn is_empty(&self) -> bool {
        self.text.is_empty() && self.tokens.is_empty()
    }

    /// Goes on with what follows.
    pub(crate) fn join(&mut self, mut more: Self) {
        self.text.push_str(&more.text);
        self.tokens.append(&mut more.tokens);
    }
}

/// The driver's side.
#[derive(Debug)]
pub(crate) struct Outlet {
    said: mpsc::Sender<Said>,
    end: oneshot::Sender<End>,
    kept: Said,
}

/// The client's side. Dropping it is leaving.
#[derive(Debug)]
pub(crate) struct Inlet {
    said: mpsc::Receiver<Said>,
    end: Ending,
    /// Until the end has come: who closes the connection before it has left.
    generation: Option<Generation>,
}

/// What a client gets, in order: an answer in parts, then one end.
#[derive(Debug, PartialEq)]
pub(crate) enum Piece {
    /// More of the answer, never nothing.
    More(Said),
    /// Nothing follows.
    End(Result<Done, Failure>),
}

#[derive(Debug)]
struct End {
    kept: Said,
    how: Result<Done, Failure>,
}

#[derive(Debug)]
enum Ending {
    Awaited(oneshot::Receiver<End>),
    Known(Option<Result<Done, Failure>>),
}

/// Both sides of one answer.
pub(crate) fn pieces(generation: Option<Generation>) -> (Outlet, Inlet) {
    let (said_in, said) = mpsc::channel(PIECES_MAX);
    let (end_in, end) = oneshot::channel();
    (
        Outlet { said: said_in, end: end_in, kept: Said::default() },
        Inlet { said, end: Ending::Awaited(end), generation },
    )
}

impl Outlet {
    /// Sends this, or keeps it until there is room.
    pub(crate) fn push(&mut self, said: Said) {
        self.kept.join(said);
        if !self.kept.is_empty()
            && let Ok(room) = self.said.try_reserve()
        {
            room.send(std::mem::take(&mut self.kept));
        }
    }

    /// Returns once the client has left; sends what was kept meanwhile. Nothing is lost when the
    /// wait is given up.
    pub(crate) async fn left(&mut self) {
        while !self.kept.is_empty() {
            match self.said.reserve().await {
                Ok(room) => room.send(std::mem::take(&mut self.kept)),
                Err(_) => return,
            }
        }
        self.said.closed().await;
    }

    /// Tells how it ended. To a client that has left, nothing happens.
    pub(crate) fn end(self, how: Result<Done, Failure>) {
        let _left = self.end.send(End { kept: self.kept, how });
    }
}

impl Inlet {
    /// The next piece; `None` after the end.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Piece>> {
        match self.said.poll_recv(cx) {
            Poll::Ready(Some(said)) => return Poll::Ready(Some(Piece::More(said))),
            Poll::Ready(None) => {}
            Poll::Pending => return Poll::Pending,
        }
        if let Ending::Awaited(end) = &mut self.end {
            let (kept, how) = match std::task::ready!(std::pin::Pin::new(end).poll(cx)) {
                Ok(End { kept, how }) => (kept, how),
                // The driver panicked. Its ledger has said so.
                Err(_) => (Said::default(), Err(Failure::INTERNAL)),
            };
            self.end = Ending::Known(Some(how));
            self.generation = None;
            if !kept.is_empty() {
                return Poll::Ready(Some(Piece::More(kept)));
            }
        }
        match &mut self.end {
            Ending::Known(how) => Poll::Ready(how.take().map(Piece::End)),
            Ending::Awaited(_) => unreachable!("it was just replaced"),
        }
    }

    /// The whole answer and how it ended.
    pub(crate) async fn whole(mut self) -> Result<(Said, Done), Failure> {
        let mut whole = Said::default();
        loop {
            match std::future::poll_fn(|cx| self.poll_next(cx)).await {
                Some(Piece::More(said)) => whole.join(said),
                Some(Piece::End(Ok(done))) => return Ok((whole, done)),
                Some(Piece::End(Err(failure))) => return Err(failure),
                None => unreachable!("the end was returned when it came"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DONE: Done = Done {
        finish: Finish::Stop,
        usage: Usage { prompt_tokens: 1, cached_tokens: 0, generated_tokens: 100 },
    };

    /// One word and, as with every other word, a token that was told.
    fn word(n: u16) -> Said {
        let logprobs = Box::new(Logprobs { drawn: -f32::from(n), top: vec![] });
        let told = Told { token: n.into(), at: 0, logprobs };
        Said { text: format!("{n} "), tokens: vec![told; usize::from(n % 2)] }
    }

    #[tokio::test]
    async fn a_reader_that_sleeps_through_it_all_still_gets_every_character_and_token() {
        let (mut outlet, inlet) = pieces(None);
        let mut sent = Said::default();
        for n in 0..100 {
            outlet.push(word(n));
            sent.join(word(n));
        }
        assert_eq!(sent.tokens.len(), 50);
        outlet.end(Ok(DONE));
        assert_eq!(inlet.whole().await, Ok((sent, DONE)));
    }

    #[tokio::test]
    async fn tokens_stay_with_their_text_when_pieces_are_joined() {
        let (mut outlet, mut inlet) = pieces(None);
        let fits = u16::try_from(PIECES_MAX).expect("a few");
        for n in 0..fits + 3 {
            outlet.push(word(n));
        }
        outlet.end(Ok(DONE));
        for n in 0..fits {
            let piece = std::future::poll_fn(|cx| inlet.poll_next(cx)).await;
            assert_eq!(piece, Some(Piece::More(word(n))));
        }
        let mut joined = word(fits);
        joined.join(word(fits + 1));
        joined.join(word(fits + 2));
        assert_eq!(inlet.whole().await, Ok((joined, DONE)));
    }

    #[tokio::test]
    async fn a_token_without_text_is_told_all_the_same() {
        let (mut outlet, inlet) = pieces(None);
        let told = Said { text: String::new(), ..word(1) };
        outlet.push(told.clone());
        outlet.end(Ok(DONE));
        assert_eq!(inlet.whole().await, Ok((told, DONE)));
    }

    #[tokio::test]
    async fn a_driver_that_vanishes_is_a_failure() {
        let (mut outlet, inlet) = pieces(None);
        outlet.push(word(0));
        drop(outlet);
        assert_eq!(inlet.whole().await, Err(Failure::INTERNAL));
    }

    #[tokio::test]
    async fn a_client_that_leaves_is_noticed_with_and_without_kept_text() {
        let (mut outlet, inlet) = pieces(None);
        drop(inlet);
        outlet.left().await;

        let (mut outlet, inlet) = pieces(None);
        for _ in 0..=PIECES_MAX {
            outlet.push(word(0));
        }
        drop(inlet);
        outlet.left().await;
    }
}
