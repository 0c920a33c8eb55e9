//! Reads server-sent events: as much of the format as OpenAI's streams use.
//!
//! Only `data` matters here; names, ids and comments are skipped. Bytes come in pieces of any
//! size, and an event is handed out as soon as the blank line after it is here.

/// More than any chunk of text needs. A server that sends no line ends would otherwise fill us up.
const EVENT_MAX: usize = 1 << 20;

/// An event, or a line, of more than [`EVENT_MAX`] bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct EventTooLong;

/// What of a stream has come and not been handed out.
#[derive(Debug, Default)]
pub(crate) struct SseParser {
    line: Vec<u8>,
    data: Vec<u8>,
    /// An event may have data that is empty; one without a `data` line is none.
    has_data: bool,
}

impl SseParser {
    /// Takes in a piece, and calls `event` with the data of each event that it completes.
    pub(crate) fn feed(
        &mut self,
        piece: &[u8],
        mut event: impl FnMut(&[u8]),
    ) -> Result<(), EventTooLong> {
        let mut rest = piece;
        while let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
            self.line.extend_from_slice(&rest[..end]);
            rest = &rest[end + 1..];
            self.end_line(&mut event);
        }
        self.line.extend_from_slice(rest);
        if self.line.len() + self.data.len() > EVENT_MAX { Err(EventTooLong) } else { Ok(()) }
    }

    fn end_line(&mut self, event: &mut impl FnMut(&[u8])) {
        let line = self.line.strip_suffix(b"\r").unwrap_or(&self.line);
        if line.is_empty() {
            if self.has_data {
                event(&self.data);
            }
            self.data.clear();
            self.has_data = false;
        } else if let Some(value) = line.strip_prefix(b"data:") {
            if self.has_data {
                self.data.push(b'\n');
            }
            self.data.extend_from_slice(value.strip_prefix(b" ").unwrap_or(value));
            self.has_data = true;
        }
        self.line.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(pieces: &[&str]) -> Vec<String> {
        let mut got = Vec::new();
        let mut events = SseParser::default();
        for piece in pieces {
            let take = |data: &[u8]| got.push(String::from_utf8(data.to_vec()).expect("is text"));
            events.feed(piece.as_bytes(), take).expect("is short");
        }
        got
    }

    #[test]
    fn only_data_is_handed_out() {
        assert_eq!(events(&[": hello\nevent: x\nid: 1\ndata: a\n\n\n\ndata:b\n\n"]), ["a", "b"]);
    }

    #[test]
    fn an_event_may_come_in_any_pieces() {
        let stream = "data: {\"a\": 1}\r\n\r\ndata: two\r\ndata: lines\r\n\r\ndata: [DONE]\n\n";
        let whole = events(&[stream]);
        assert_eq!(whole, ["{\"a\": 1}", "two\nlines", "[DONE]"]);
        for at in 0..stream.len() {
            assert_eq!(events(&[&stream[..at], &stream[at..]]), whole, "cut at {at}");
        }
    }

    #[test]
    fn an_event_without_its_blank_line_is_not_complete() {
        assert_eq!(events(&["data: a\n\ndata: b\n"]), ["a"]);
    }

    #[test]
    fn a_line_that_never_ends_is_refused() {
        let mut events = SseParser::default();
        let half = vec![b'x'; EVENT_MAX];
        assert_eq!(events.feed(&half, |_| {}), Ok(()));
        assert_eq!(events.feed(b"x", |_| {}), Err(EventTooLong));
    }
}
