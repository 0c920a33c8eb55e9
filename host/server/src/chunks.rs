//! The channel from a request's driver to its HTTP side: chunks of text with their tokens, then one
//! end.
//!
//! # Invariants
//!
//! - The driver never waits for its client: what finds no room is kept and joined with what
//!   follows, so at most the whole answer (`tokens_max` tokens) is held for a slow reader.
//! - Tokens stay with their text, in order, and none is lost in the joining.
//! - The end needs no room: it has a place of its own and takes along what was kept.
//! - A driver that vanishes without an end is a failure, never silence.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use interlock_request::{Finish, Logprobs, TokenId, Usage};

use crate::connection::ActiveGeneration;
use crate::failure::Failure;

/// How many chunks may be in the channel before more are joined with the last.
const CHUNKS_MAX: usize = 16;

/// How an answer ends well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Done {
    /// What ended the text.
    pub(crate) finish: Finish,
    /// The tokens that it took.
    pub(crate) usage: Usage,
}

/// How a request ended, in one word: what `GET` shows, and what its cancelling answers. In ascending
/// order of what matters to whoever cancelled several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum EndKind {
    /// The answer is complete.
    Completed,
    /// The request was refused, or failed, or a policy ended it.
    Failed,
    /// The request was stopped: by whoever cancelled it, or by a deadline.
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
pub(crate) struct TextChunk {
    /// The text; empty only where tokens without any end the answer.
    pub(crate) text: String,
    /// The tokens that begin in this text; none unless the client asked how likely they were.
    pub(crate) tokens: Vec<TokenLogprob>,
}

/// A token and how likely it was, for a client that asked for that. Ids are spelled only when they
/// are written out: twenty spelled alternatives would take five times the room in which a slow
/// reader's answer waits.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TokenLogprob {
    pub(crate) token: TokenId,
    /// Characters of the answer before it.
    pub(crate) at: usize,
    pub(crate) logprobs: Box<Logprobs>,
}

impl TextChunk {
    /// About how many bytes of memory the chunk takes.
    pub(crate) fn bytes(&self) -> usize {
        let alternatives =
            |logprob: &TokenLogprob| logprob.logprobs.top.len() * size_of::<(TokenId, f32)>();
        let size = |logprob: &TokenLogprob| {
            size_of::<TokenLogprob>() + size_of::<Logprobs>() + alternatives(logprob)
        };
        self.text.len() + self.tokens.iter().map(size).sum::<usize>()
    }

    fn is_empty(&self) -> bool {
        self.text.is_empty() && self.tokens.is_empty()
    }

    /// Appends what follows.
    pub(crate) fn join(&mut self, mut more: Self) {
        self.text.push_str(&more.text);
        self.tokens.append(&mut more.tokens);
    }
}

/// The driver's side. Dropping it without an end means that the request failed.
#[derive(Debug)]
pub(crate) struct ChunkSender(Arc<ChunkQueue>);

/// The client's side. Dropping it means that the client has left.
#[derive(Debug)]
pub(crate) struct ChunkReceiver {
    queue: Arc<ChunkQueue>,
    /// Until the end has come: who closes the connection before it has left.
    generation: Option<ActiveGeneration>,
}

/// What a client gets, in order: an answer in parts, then one end.
#[derive(Debug, PartialEq)]
pub(crate) enum AnswerItem {
    /// More of the answer, never empty.
    More(TextChunk),
    /// Nothing follows.
    End(Result<Done, Failure>),
}

/// What both sides share.
///
/// Not a channel: each token would take and give back a permit of it, and a place among those who
/// wait for its closing.
#[derive(Debug, Default)]
struct ChunkQueue {
    // Both sides write here: there is no single owner. The lock is held to move one chunk and never
    // across an await.
    state: Mutex<ChunkQueueState>,
}

#[derive(Debug, Default)]
struct ChunkQueueState {
    /// Chunks to be read; the last takes what finds no room.
    chunks: VecDeque<TextChunk>,
    end: EndState,
    /// Has the client's side been dropped?
    left: bool,
    /// Wakes the side that waits for a chunk or the end.
    reader: Option<Waker>,
    /// Wakes the driver that waits for the client to leave.
    driver: Option<Waker>,
}

#[derive(Debug, Default)]
enum EndState {
    #[default]
    Awaited,
    Known(Result<Done, Failure>),
    Taken,
}

/// Both sides of one answer.
pub(crate) fn answer_channel(generation: Option<ActiveGeneration>) -> (ChunkSender, ChunkReceiver) {
    let queue = Arc::<ChunkQueue>::default();
    (ChunkSender(Arc::clone(&queue)), ChunkReceiver { queue, generation })
}

impl ChunkQueue {
    fn state(&self) -> MutexGuard<'_, ChunkQueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what the reader sees, and wakes it.
    fn put(&self, change: impl FnOnce(&mut ChunkQueueState)) {
        let reader = {
            let mut state = self.state();
            change(&mut state);
            state.reader.take()
        };
        if let Some(reader) = reader {
            reader.wake();
        }
    }
}

impl ChunkSender {
    /// Sends a chunk; where too many wait already, joined with the last of them.
    pub(crate) fn push(&mut self, chunk: TextChunk) {
        if chunk.is_empty() {
            return;
        }
        self.0.put(|state| {
            let crowded = state.chunks.len() > CHUNKS_MAX;
            match state.chunks.back_mut() {
                _ if state.left => {}
                Some(last) if crowded => last.join(chunk),
                _ => state.chunks.push_back(chunk),
            }
        });
    }

    /// Returns once the client has left.
    pub(crate) async fn left(&mut self) {
        std::future::poll_fn(|cx| {
            let mut state = self.0.state();
            if state.left {
                return Poll::Ready(());
            }
            wait(&mut state.driver, cx);
            Poll::Pending
        })
        .await;
    }

    /// Tells how it ended. To a client that has left, nothing happens.
    pub(crate) fn end(self, how: Result<Done, Failure>) {
        self.0.put(|state| state.end = EndState::Known(how));
    }
}

impl Drop for ChunkSender {
    fn drop(&mut self) {
        self.0.put(|state| {
            // The driver panicked. Its accounting has logged that.
            if matches!(state.end, EndState::Awaited) {
                state.end = EndState::Known(Err(Failure::INTERNAL));
            }
        });
    }
}

/// Wakes this task when something happens.
fn wait(waker: &mut Option<Waker>, cx: &Context<'_>) {
    match waker {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *waker = Some(cx.waker().clone()),
    }
}

impl Drop for ChunkReceiver {
    fn drop(&mut self) {
        let (driver, _unread) = {
            let mut state = self.queue.state();
            state.left = true;
            (state.driver.take(), std::mem::take(&mut state.chunks))
        };
        if let Some(driver) = driver {
            driver.wake();
        }
    }
}

impl ChunkReceiver {
    /// The next item; `None` after the end.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<AnswerItem>> {
        let mut state = self.queue.state();
        if !matches!(state.end, EndState::Awaited) {
            self.generation = None;
        }
        if let Some(chunk) = state.chunks.pop_front() {
            return Poll::Ready(Some(AnswerItem::More(chunk)));
        }
        match std::mem::replace(&mut state.end, EndState::Taken) {
            EndState::Known(how) => Poll::Ready(Some(AnswerItem::End(how))),
            EndState::Taken => Poll::Ready(None),
            EndState::Awaited => {
                state.end = EndState::Awaited;
                wait(&mut state.reader, cx);
                Poll::Pending
            }
        }
    }

    /// The whole answer and how it ended.
    pub(crate) async fn whole(mut self) -> Result<(TextChunk, Done), Failure> {
        let mut whole = TextChunk::default();
        loop {
            match std::future::poll_fn(|cx| self.poll_next(cx)).await {
                Some(AnswerItem::More(chunk)) => whole.join(chunk),
                Some(AnswerItem::End(Ok(done))) => return Ok((whole, done)),
                Some(AnswerItem::End(Err(failure))) => return Err(failure),
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
    fn word(n: u16) -> TextChunk {
        let logprobs = Box::new(Logprobs { drawn: -f32::from(n), top: vec![] });
        let logprob = TokenLogprob { token: n.into(), at: 0, logprobs };
        TextChunk { text: format!("{n} "), tokens: vec![logprob; usize::from(n % 2)] }
    }

    #[tokio::test]
    async fn a_reader_that_sleeps_through_it_all_still_gets_every_character_and_token() {
        let (mut sender, receiver) = answer_channel(None);
        let mut sent = TextChunk::default();
        for n in 0..100 {
            sender.push(word(n));
            sent.join(word(n));
        }
        assert_eq!(sent.tokens.len(), 50);
        sender.end(Ok(DONE));
        assert_eq!(receiver.whole().await, Ok((sent, DONE)));
    }

    #[tokio::test]
    async fn tokens_stay_with_their_text_when_chunks_are_joined() {
        let (mut sender, mut receiver) = answer_channel(None);
        let fits = u16::try_from(CHUNKS_MAX).expect("a few");
        for n in 0..fits + 3 {
            sender.push(word(n));
        }
        sender.end(Ok(DONE));
        for n in 0..fits {
            let item = std::future::poll_fn(|cx| receiver.poll_next(cx)).await;
            assert_eq!(item, Some(AnswerItem::More(word(n))));
        }
        let mut joined = word(fits);
        joined.join(word(fits + 1));
        joined.join(word(fits + 2));
        assert_eq!(receiver.whole().await, Ok((joined, DONE)));
    }

    #[tokio::test]
    async fn a_token_without_text_is_told_all_the_same() {
        let (mut sender, receiver) = answer_channel(None);
        let chunk = TextChunk { text: String::new(), ..word(1) };
        sender.push(chunk.clone());
        sender.end(Ok(DONE));
        assert_eq!(receiver.whole().await, Ok((chunk, DONE)));
    }

    #[tokio::test]
    async fn a_driver_that_vanishes_is_a_failure() {
        let (mut sender, receiver) = answer_channel(None);
        sender.push(word(0));
        drop(sender);
        assert_eq!(receiver.whole().await, Err(Failure::INTERNAL));
    }

    #[tokio::test]
    async fn a_client_that_leaves_is_noticed_with_and_without_kept_text() {
        let (mut sender, receiver) = answer_channel(None);
        drop(receiver);
        sender.left().await;

        let (mut sender, receiver) = answer_channel(None);
        for _ in 0..=CHUNKS_MAX {
            sender.push(word(0));
        }
        drop(receiver);
        sender.left().await;
    }
}
