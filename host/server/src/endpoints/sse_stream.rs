//! A streamed answer as the body that hyper polls.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame};
use tokio::time::Instant;

use super::error::ApiError;
use super::sse_frames::SseFrames;
use super::writer::ResponseWriter;
use crate::alarm::Alarm;
use crate::chunks::{AnswerItem, ChunkReceiver};
use crate::request_info::RequestInfo;

/// The body of a streamed answer. Dropped by hyper as soon as the client has left.
pub(crate) struct SseStream {
    info: Arc<RequestInfo>,
    writer: Box<dyn ResponseWriter>,
    receiver: ChunkReceiver,
    frames: SseFrames,
    ended: bool,
    silence_timer: SilenceTimer,
}

/// A comment, which readers of events pass over. It ends with an empty line, as an event does, since
/// some readers look for that.
const KEEP_ALIVE: &[u8] = b": keep-alive\n\n";

/// How long nothing was sent.
struct SilenceTimer {
    /// `server.stream_keepalive`; `None`: it may last.
    most: Option<Duration>,
    since: Instant,
    over: Alarm,
}

impl SilenceTimer {
    /// From now on.
    fn new(most: Duration) -> Self {
        let most = Some(most).filter(|most| !most.is_zero());
        Self { most, since: Instant::now(), over: Alarm::default() }
    }

    /// Something is sent.
    fn is_broken(&mut self) {
        self.since = Instant::now();
    }

    /// Ready when it has lasted too long.
    fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let due = self.most.and_then(|most| self.since.checked_add(most));
        self.over.poll(due, cx)
    }
}

impl SseStream {
    /// A stream that is never silent for longer than this; 0: it may be.
    pub(crate) fn new(
        info: Arc<RequestInfo>,
        mut writer: Box<dyn ResponseWriter>,
        receiver: ChunkReceiver,
        keepalive: Duration,
    ) -> Self {
        let mut frames = SseFrames::default();
        writer.open(&mut frames);
        let silence_timer = SilenceTimer::new(keepalive);
        Self { info, writer, receiver, frames, ended: false, silence_timer }
    }

    fn take(&mut self, item: AnswerItem) {
        match item {
            AnswerItem::More(chunk) => self.writer.text(chunk, &mut self.frames),
            AnswerItem::End(Ok(done)) => {
                self.writer.done(&done, &mut self.frames);
                self.ended = true;
            }
            AnswerItem::End(Err(failure)) => {
                self.writer.fail(&ApiError::of(&failure, &self.info.id), &mut self.frames);
                self.ended = true;
            }
        }
    }
}

impl Body for SseStream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        // All that is there goes into one chunk: a client that was slow catches up at once.
        while !self.ended
            && let Poll::Ready(item) = self.receiver.poll_next(cx)
        {
            match item {
                Some(item) => self.take(item),
                None => self.ended = true,
            }
        }
        let mut chunk = self.frames.take();
        if chunk.is_empty() {
            if self.ended {
                return Poll::Ready(None);
            }
            ready!(self.silence_timer.poll_over(cx));
            chunk = Bytes::from_static(KEEP_ALIVE);
        }
        self.silence_timer.is_broken();
        Poll::Ready(Some(Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended && self.frames.is_empty()
    }
}
