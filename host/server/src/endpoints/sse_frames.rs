//! Frames of server-sent events.

use bytes::Bytes;
use serde::Serialize;

/// Frames on their way into one chunk of the body.
#[derive(Debug, Default)]
pub(crate) struct SseFrames(Vec<u8>);

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

        let mut frames = SseFrames::default();
        frames.data(value);
        let place = frames.0.windows(QUOTED.len()).rposition(|two| two == QUOTED);
        let place = place.expect("the value holds a place for a text");
        let after = frames.0.split_off(place + QUOTED.len());
        frames.0.truncate(place);
        Self { before: frames.0, after }
    }
}

impl SseFrames {
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

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn take(&mut self) -> Bytes {
        Bytes::from(std::mem::take(&mut self.0))
    }

    #[cfg(test)]
    pub(super) fn into_text(self) -> String {
        String::from_utf8(self.0).expect("JSON is UTF-8")
    }
}
