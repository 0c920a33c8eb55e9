//! The way from a request's driver to its HTTP side: text, then one end.
//!
//! # Invariants
//!
//! - The driver never waits for its client: text that finds no room is kept and joined with what
//!   follows, so at most the whole answer (`tokens_max` tokens) is held for a slow reader.
//! - The end needs no room: it has a place of its own and takes the kept text along.
//! - A driver that vanishes without an end is a failure, never silence.

use std::task::{Context, Poll};

use interlock_request::{Finish, Usage};
use tokio::sync::{mpsc, oneshot};

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

/// The driver's side.
#[derive(Debug)]
pub(crate) struct Outlet {
    text: mpsc::Sender<String>,
    end: oneshot::Sender<End>,
    kept: String,
}

/// The client's side. Dropping it is leaving.
#[derive(Debug)]
pub(crate) struct Inlet {
    text: mpsc::Receiver<String>,
    end: Ending,
}

/// What a client gets, in order: text, then one end.
#[derive(Debug, PartialEq)]
pub(crate) enum Piece {
    /// More text, never empty.
    Text(String),
    /// Nothing follows.
    End(Result<Done, Failure>),
}

#[derive(Debug)]
struct End {
    kept: String,
    how: Result<Done, Failure>,
}

#[derive(Debug)]
enum Ending {
    Awaited(oneshot::Receiver<End>),
    Known(Option<Result<Done, Failure>>),
}

/// Both sides of one answer.
pub(crate) fn pieces() -> (Outlet, Inlet) {
    let (text_in, text) = mpsc::channel(PIECES_MAX);
    let (end_in, end) = oneshot::channel();
    (
        Outlet { text: text_in, end: end_in, kept: String::new() },
        Inlet { text, end: Ending::Awaited(end) },
    )
}

impl Outlet {
    /// Sends text, or keeps it until there is room.
    pub(crate) fn push(&mut self, text: &str) {
        self.kept.push_str(text);
        if !self.kept.is_empty()
            && let Ok(room) = self.text.try_reserve()
        {
            room.send(std::mem::take(&mut self.kept));
        }
    }

    /// Returns once the client has left; sends kept text meanwhile. Nothing is lost when the
    /// wait is given up.
    pub(crate) async fn left(&mut self) {
        while !self.kept.is_empty() {
            match self.text.reserve().await {
                Ok(room) => room.send(std::mem::take(&mut self.kept)),
                Err(_) => return,
            }
        }
        self.text.closed().await;
    }

    /// Tells how it ended. To a client that has left, nothing happens.
    pub(crate) fn end(self, how: Result<Done, Failure>) {
        let _left = self.end.send(End { kept: self.kept, how });
    }
}

impl Inlet {
    /// The next piece; `None` after the end.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Piece>> {
        match self.text.poll_recv(cx) {
            Poll::Ready(Some(text)) => return Poll::Ready(Some(Piece::Text(text))),
            Poll::Ready(None) => {}
            Poll::Pending => return Poll::Pending,
        }
        if let Ending::Awaited(end) = &mut self.end {
            let (kept, how) = match std::task::ready!(std::pin::Pin::new(end).poll(cx)) {
                Ok(End { kept, how }) => (kept, how),
                // The driver panicked. Its ledger has said so.
                Err(_) => (String::new(), Err(Failure::Failed)),
            };
            self.end = Ending::Known(Some(how));
            if !kept.is_empty() {
                return Poll::Ready(Some(Piece::Text(kept)));
            }
        }
        match &mut self.end {
            Ending::Known(how) => Poll::Ready(how.take().map(Piece::End)),
            Ending::Awaited(_) => unreachable!("it was just replaced"),
        }
    }

    /// All text and how it ended.
    pub(crate) async fn whole(mut self) -> Result<(String, Done), Failure> {
        let mut whole = String::new();
        loop {
            match std::future::poll_fn(|cx| self.poll_next(cx)).await {
                Some(Piece::Text(text)) => whole.push_str(&text),
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

    #[tokio::test]
    async fn a_reader_that_sleeps_through_it_all_still_gets_every_character() {
        let (mut outlet, inlet) = pieces();
        let mut sent = String::new();
        for n in 0..100 {
            outlet.push(&format!("{n} "));
            sent.push_str(&format!("{n} "));
        }
        outlet.end(Ok(DONE));
        assert_eq!(inlet.whole().await, Ok((sent, DONE)));
    }

    #[tokio::test]
    async fn a_driver_that_vanishes_is_a_failure() {
        let (mut outlet, inlet) = pieces();
        outlet.push("half an ans");
        drop(outlet);
        assert_eq!(inlet.whole().await, Err(Failure::Failed));
    }

    #[tokio::test]
    async fn a_client_that_leaves_is_noticed_with_and_without_kept_text() {
        let (mut outlet, inlet) = pieces();
        drop(inlet);
        outlet.left().await;

        let (mut outlet, inlet) = pieces();
        for _ in 0..=PIECES_MAX {
            outlet.push("x");
        }
        drop(inlet);
        outlet.left().await;
    }
}
