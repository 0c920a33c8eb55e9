//! What a client reads of an answer, token by token.

use std::borrow::Cow;
use std::ops::Deref;
use std::time::Duration;

use serde::Deserialize;
use tokio::time::Instant;

use super::end::SimulatedEnd;

/// Reads an answer.
pub(super) struct AnswerReader {
    at: Duration,
    began: Instant,
    /// The beginning of an event whose end has not come.
    unfinished: Vec<u8>,
    pub(super) first_token: Option<Duration>,
    pub(super) first_at: Duration,
    pub(super) last_token: Duration,
    pub(super) longest_pause: Duration,
    pub(super) pieces: u32,
    pub(super) usage: Option<(u32, u32)>,
    pub(super) retry_after: Duration,
    finish: Option<String>,
    shape: ChunkShape,
    pub(super) end: Option<SimulatedEnd>,
}

impl AnswerReader {
    pub(super) fn new(at: Duration, began: Instant) -> Self {
        Self {
            at,
            began,
            unfinished: vec![],
            first_token: None,
            first_at: Duration::ZERO,
            last_token: Duration::ZERO,
            longest_pause: Duration::ZERO,
            pieces: 0,
            usage: None,
            retry_after: Duration::ZERO,
            finish: None,
            shape: ChunkShape::default(),
            end: None,
        }
    }

    /// Takes the events that are whole with these bytes. A client that leaves with a token reads
    /// none after it.
    pub(super) fn read(&mut self, data: &[u8], leaves_with: Option<u32>) {
        if self.unfinished.is_empty() && self.shape.is_piece(data) {
            self.piece();
        } else if self.unfinished.is_empty() {
            let read = self.events(data, leaves_with);
            self.unfinished.extend_from_slice(&data[read..]);
        } else {
            let mut all = std::mem::take(&mut self.unfinished);
            all.extend_from_slice(data);
            let read = self.events(&all, leaves_with);
            self.unfinished.extend_from_slice(&all[read..]);
        }
    }

    /// How many bytes of it are events that are whole.
    fn events(&mut self, data: &[u8], leaves_with: Option<u32>) -> usize {
        let mut read = 0;
        for end in memchr::memmem::find_iter(data, END) {
            if self.shape.is_piece(&data[read..end + END.len()]) {
                self.piece();
            } else {
                for line in data[read..end].split(|byte| *byte == b'\n') {
                    let Some(data) = line.strip_prefix(DATA) else { continue };
                    self.event(data);
                }
            }
            read = end + END.len();
            if leaves_with.is_some_and(|with| self.pieces >= with) {
                break;
            }
        }
        read
    }

    fn event(&mut self, data: &[u8]) {
        if data == b"[DONE]" {
            let finish = self.finish.take().unwrap_or_default();
            self.end.get_or_insert(SimulatedEnd::Answered { finish });
            return;
        }
        let Ok(event) = serde_json::from_slice::<StreamEvent<'_>>(data) else { return };
        if let Some(error) = &event.error {
            self.end = Some(SimulatedEnd::Broken { code: error.code() });
            return;
        }
        let kind = event.kind.as_deref().unwrap_or_default();
        if let Some(text) = event.text(kind) {
            self.shape = if event.is_only_text() {
                ChunkShape::of(data, text)
            } else {
                ChunkShape::default()
            };
            self.piece();
        }
        if let Some(finish) =
            event.choices.first().and_then(|choice| choice.finish_reason.as_deref())
        {
            self.finish = Some(finish.to_owned());
        }
        self.note_usage(event.usage);
        let Some(response) = event.response else { return };
        match kind {
            "response.completed" | "response.incomplete" => {
                self.note_usage(response.usage);
                let why = response.incomplete_details.and_then(|details| details.reason);
                let finish = why.unwrap_or_else(|| "stop".to_owned());
                self.end = Some(SimulatedEnd::Answered { finish });
            }
            "response.failed" | "response.cancelled" => {
                let code = response.error.map_or_else(unknown, |error| error.code());
                self.end = Some(SimulatedEnd::Broken { code });
            }
            _ => {}
        }
    }

    /// An answer in one piece.
    pub(super) fn whole(&mut self, answer: WholeAnswer) -> SimulatedEnd {
        self.note_usage(answer.usage);
        let finish = answer.choices.into_iter().next().and_then(|choice| choice.finish_reason);
        let incomplete = answer.incomplete_details.and_then(|details| details.reason);
        SimulatedEnd::Answered {
            finish: finish.or(incomplete).unwrap_or_else(|| "stop".to_owned()),
        }
    }

    fn note_usage(&mut self, usage: Option<AnswerUsage>) {
        if let Some(usage) = usage {
            self.usage = Some((usage.prompt, usage.generated));
        }
    }

    fn piece(&mut self) {
        let now = self.began.elapsed();
        match self.first_token {
            None => {
                self.first_token = Some(now - self.at);
                self.first_at = now;
            }
            Some(_) => {
                self.longest_pause = self.longest_pause.max(now - self.last_token);
            }
        }
        self.last_token = now;
        self.pieces += 1;
    }
}

/// What an event's data begins with.
const DATA: &[u8] = b"data: ";
/// What an event ends with.
const END: &[u8] = b"\n\n";

/// What an event with a piece of text looked like around the text. The next one mostly looks the
/// same, and need not be parsed to know that.
#[derive(Default)]
struct ChunkShape {
    before: Vec<u8>,
    after: Vec<u8>,
}

impl ChunkShape {
    fn of(data: &[u8], text: &str) -> Self {
        // Text that had escapes in it was copied, and lies somewhere else.
        let at = (text.as_ptr() as usize).checked_sub(data.as_ptr() as usize);
        match at.and_then(|at| Some((data.get(..at)?, data.get(at + text.len()..)?))) {
            Some((before, after)) => {
                Self { before: [DATA, before].concat(), after: [after, END].concat() }
            }
            None => Self::default(),
        }
    }

    /// Is this one whole event like that, with another text that is not empty?
    fn is_piece(&self, data: &[u8]) -> bool {
        let text = data.strip_prefix(self.before.as_slice());
        let text = text.and_then(|text| text.strip_suffix(self.after.as_slice()));
        let plain =
            |text: &[u8]| !text.is_empty() && !text.iter().any(|byte| b"\"\\".contains(byte));
        !self.before.is_empty() && text.is_some_and(plain)
    }
}

/// One event of a stream, of any endpoint: what a client needs of it. There is one for each token
/// of a simulated day, so nothing of it is copied.
#[derive(Deserialize)]
struct StreamEvent<'a> {
    error: Option<AnswerError>,
    #[serde(borrow, default)]
    choices: Vec<ChunkChoice<'a>>,
    usage: Option<AnswerUsage>,
    #[serde(borrow, rename = "type")]
    kind: Option<BorrowedText<'a>>,
    /// Of `/v1/responses`.
    #[serde(borrow)]
    delta: Option<BorrowedText<'a>>,
    response: Option<WholeAnswer>,
}

/// A text where it lies, unless it has escapes in it. An optional `Cow` would be copied each time:
/// serde borrows only what is one by itself.
#[derive(Deserialize)]
struct BorrowedText<'a>(#[serde(borrow)] Cow<'a, str>);

impl Deref for BorrowedText<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

#[derive(Deserialize)]
struct ChunkChoice<'a> {
    #[serde(borrow)]
    delta: Option<ChunkDelta<'a>>,
    #[serde(borrow)]
    text: Option<BorrowedText<'a>>,
    #[serde(borrow)]
    finish_reason: Option<BorrowedText<'a>>,
}

#[derive(Deserialize)]
struct ChunkDelta<'a> {
    #[serde(borrow)]
    content: Option<BorrowedText<'a>>,
}

impl StreamEvent<'_> {
    fn text(&self, kind: &str) -> Option<&str> {
        let choice = self.choices.first();
        let chat = choice.and_then(|choice| choice.delta.as_ref()?.content.as_deref());
        let text = chat.or_else(|| choice?.text.as_deref());
        let delta = self.delta.as_deref().filter(|_| kind == "response.output_text.delta");
        text.or(delta).filter(|text| !text.is_empty())
    }

    fn is_only_text(&self) -> bool {
        let finishes = self.choices.iter().any(|choice| choice.finish_reason.is_some());
        self.usage.is_none() && self.response.is_none() && !finishes
    }
}

/// An answer in one piece, or the response that a stream of `/v1/responses` ends with.
#[derive(Default, Deserialize)]
pub(super) struct WholeAnswer {
    #[serde(default)]
    choices: Vec<WholeAnswerChoice>,
    usage: Option<AnswerUsage>,
    incomplete_details: Option<Incomplete>,
    pub(super) error: Option<AnswerError>,
}

#[derive(Deserialize)]
struct WholeAnswerChoice {
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Incomplete {
    reason: Option<String>,
}

#[derive(Clone, Copy, Deserialize)]
struct AnswerUsage {
    #[serde(alias = "prompt_tokens", alias = "input_tokens")]
    prompt: u32,
    #[serde(alias = "completion_tokens", alias = "output_tokens")]
    generated: u32,
}

/// An error in the API's own shape.
#[derive(Deserialize)]
pub(super) struct AnswerError {
    code: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
}

impl AnswerError {
    pub(super) fn code(&self) -> String {
        self.code.clone().or_else(|| self.kind.clone()).unwrap_or_else(unknown)
    }
}

pub(super) fn unknown() -> String {
    "unknown".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(text: &str, finish: &str) -> String {
        let text = serde_json::to_string(text).expect("a text");
        format!(
            "data: {{\"id\":\"chatcmpl-1\",\"choices\":[{{\"index\":0,\"delta\":{{\"content\":{text}}},\
             \"logprobs\":null,\"finish_reason\":{finish}}}],\"usage\":null}}\n\n"
        )
    }

    fn answer() -> String {
        let texts = ["", "a", "b", "a \"quoted\"\n line", "\\", "c", "{\"error\":{}}", "é", "d"];
        let chunks: String = texts.iter().map(|text| chunk(text, "null")).collect();
        let usage = r#"{"prompt_tokens":3,"completion_tokens":8}"#;
        let usage = format!("data: {{\"id\":\"chatcmpl-1\",\"choices\":[],\"usage\":{usage}}}\n\n");
        format!(": keep-alive\n\n{chunks}{}{usage}data: [DONE]\n\n", chunk("", "\"length\""))
    }

    fn reader() -> AnswerReader {
        AnswerReader::new(Duration::ZERO, Instant::now())
    }

    #[test]
    fn an_answer_is_the_same_however_its_bytes_were_cut() {
        let answer = answer();
        for bytes in 1..=answer.len() {
            let mut reader = reader();
            answer.as_bytes().chunks(bytes).for_each(|data| reader.read(data, None));
            let end = SimulatedEnd::Answered { finish: "length".into() };
            let seen = (reader.pieces, reader.usage, reader.end);
            assert_eq!(seen, (8, Some((3, 8)), Some(end)), "{bytes} bytes at a time");
        }
    }

    #[test]
    fn a_client_that_leaves_with_a_token_reads_none_after_it() {
        let mut reader = reader();
        reader.read(answer().as_bytes(), Some(2));
        assert_eq!((reader.pieces, reader.usage), (2, None));
    }

    /// A simulated day has millions of them.
    #[test]
    fn what_looks_like_the_chunk_before_is_not_parsed() {
        let mut reader = reader();
        reader.read(chunk("a", "null").as_bytes(), None);
        for like in ["b", "several words", "é"] {
            assert!(reader.shape.is_piece(chunk(like, "null").as_bytes()), "{like}");
        }
        for (text, finish) in [("", "null"), ("a \"b\"", "null"), ("b", "\"stop\"")] {
            assert!(!reader.shape.is_piece(chunk(text, finish).as_bytes()), "{text} {finish}");
        }
        let two = chunk("b", "null") + &chunk("c", "null");
        assert!(!reader.shape.is_piece(two.as_bytes()));
    }
}
