//! Server-sent events: frames, and the body that hyper polls.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame};
use interlock_request::RequestId;
use serde::Serialize;
use tokio::time::Instant;

use super::Voice;
use crate::alarm::Alarm;
use crate::pieces::{Inlet, Piece};

/// Frames on their way into one chunk of the body.
#[derive(Debug, Default)]
pub(crate) struct Frames(Vec<u8>);

/// A frame that is the same each time but for one text in it, written out once.
#[derive(Debug)]
pub(super) struct TextFrame {
    before: Vec<u8>,
    after: Vec<u8>,
}

impl TextFrame {
    /// What stands in `value` where texts are to go. Behind it no other text may stand.
    pub(super) const PLACE: &str = "";

    /// The frame of this value.
    pub(super) fn new(value: &impl Serialize) -> Self {
        const QUOTED: &[u8] = b"\"\"";

        let mut frames = Frames::default();
        frames.data(value);
        let place = frames.0.windows(QUOTED.len()).rposition(|two| two == QUOTED);
        let place = place.expect("the value holds a place for a text");
        let after = frames.0.split_off(place + QUOTED.len());
        frames.0.truncate(place);
        Self { before: frames.0, after }
    }
}

impl Frames {
    /// As much as a chunk with a token takes, so that it does not grow there step by step.
    const CHUNK_BYTES: usize = 320;

    /// A frame with only data.
    pub(super) fn data(&mut self, value: &impl Serialize) {
        self.0.reserve(Self::CHUNK_BYTES);
        self.0.extend_from_slice(b"data: ");
        self.json(value);
    }

    /// A frame with this text in its place.
    pub(super) fn text(&mut self, text: &str, TextFrame { before, after }: &TextFrame) {
        const QUOTES: usize = 2;
        let bytes = before.len() + text.len() + QUOTES + after.len();
        if self.0.is_empty() {
            // Mostly it goes out alone, and what is exactly full is not copied to its end.
            self.0.reserve_exact(bytes);
        } else {
            self.0.reserve(bytes);
        }
        self.0.extend_from_slice(before);
        serde_json::to_writer(&mut self.0, text).expect("a text is JSON, and a buffer takes it");
        self.0.extend_from_slice(after);
    }

    /// A frame with an event's name.
    pub(super) fn event(&mut self, name: &str, value: &impl Serialize) {
        self.0.reserve(Self::CHUNK_BYTES);
        self.0.extend_from_slice(b"event: ");
        self.0.extend_from_slice(name.as_bytes());
        self.0.extend_from_slice(b"\ndata: ");
        self.json(value);
    }

    /// The frame that ends a stream where the API has one.
    pub(super) fn end_mark(&mut self) {
        self.0.extend_from_slice(b"data: [DONE]\n\n");
    }

    /// JSON escapes line breaks, so a value is one line and a frame ends where it should.
    fn json(&mut self, value: &impl Serialize) {
        serde_json::to_writer(&mut self.0, value)
            .expect("our own types have string keys and no failing serializers");
        self.0.extend_from_slice(b"\n\n");
    }

    fn take(&mut self) -> Bytes {
        Bytes::from(std::mem::take(&mut self.0))
    }

    #[cfg(test)]
    pub(super) fn into_text(self) -> String {
        String::from_utf8(self.0).expect("JSON is UTF-8")
    }
}

/// The body of a streamed answer. Dropped by hyper as soon as the client has left.
pub(crate) struct Stream {
    request: RequestId,
    voice: Box<dyn Voice>,
    inlet: Inlet,
    frames: Frames,
    ended: bool,
    silence: Silence,
}

/// A comment, which readers of events pass over. It ends with an empty line, as an event does, since
/// some readers look for that.
const KEEP_ALIVE: &[u8] = b": keep-alive\n\n";

/// How long nothing was sent.
struct Silence {
    /// `server.stream_keepalive`; `None`: it may last.
    most: Option<Duration>,
    since: Instant,
    over: Alarm,
}

impl Silence {
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

impl Stream {
    /// A stream that is never silent for longer than this; 0: it may be.
    pub(crate) fn new(
        request: RequestId,
        mut voice: Box<dyn Voice>,
        inlet: Inlet,
        keepalive: Duration,
    ) -> Self {
        let mut frames = Frames::default();
        voice.open(&mut frames);
        let silence = Silence::new(keepalive);
        Self { request, voice, inlet, frames, ended: false, silence }
    }

    fn take(&mut self, piece: Piece) {
        match piece {
            Piece::More(said) => self.voice.text(said, &mut self.frames),
            Piece::End(Ok(done)) => {
                self.voice.done(&done, &mut self.frames);
                self.ended = true;
            }
            Piece::End(Err(failure)) => {
                self.voice.fail(&failure.complaint(&self.request), &mut self.frames);
                self.ended = true;
            }
        }
    }
}

impl Body for Stream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        // All that is there goes into one chunk: a client that was slow catches up at once.
        while !self.ended
            && let Poll::Ready(piece) = self.inlet.poll_next(cx)
        {
            match piece {
                Some(piece) => self.take(piece),
                None => self.ended = true,
            }
        }
        let mut chunk = self.frames.take();
        if chunk.is_empty() {
            if self.ended {
                return Poll::Ready(None);
            }
            ready!(self.silence.poll_over(cx));
            chunk = Bytes::from_static(KEEP_ALIVE);
        }
        self.silence.is_broken();
        Poll::Ready(Some(Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended && self.frames.0.is_empty()
    }
}
