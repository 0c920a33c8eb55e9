//! What a client reads of an answer, token by token.

use std::borrow::Cow;
use std::time::Duration;

use serde::Deserialize;
use tokio::time::Instant;

use super::client::End;

/// Reads an answer.
pub(super) struct Reader {
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
    shape: Shape,
    pub(super) end: Option<End>,
}

impl Reader {
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
            shape: Shape::default(),
            end: None,
        }
    }

    /// Takes the events that are whole with these bytes. A client that leaves with a token reads
    /// none after it.
    pub(super) fn read(&mut self, data: &[u8], leaves_with: Option<u32>) {
        if self.unfinished.is_empty() {
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
        for end in memchr::memmem::find_iter(data, b"\n\n") {
            for line in data[read..end].split(|byte| *byte == b'\n') {
                let Some(data) = line.strip_prefix(b"data: ") else { continue };
                self.event(data);
            }
            read = end + 2;
            if leaves_with.is_some_and(|with| self.pieces >= with) {
                break;
            }
        }
        read
    }

    fn event(&mut self, data: &[u8]) {
        if data == b"[DONE]" {
            let finish = self.finish.take().unwrap_or_default();
            self.end.get_or_insert(End::Answered { finish });
            return;
        }
        if self.shape.is_piece(data) {
            return self.piece();
        }
        let Ok(event) = serde_json::from_slice::<Event<'_>>(data) else { return };
        if let Some(error) = &event.error {
            self.end = Some(End::Broken { code: error.code() });
            return;
        }
        let kind = event.kind.as_deref().unwrap_or_default();
        if let Some(text) = event.text(kind) {
            self.shape =
                if event.is_only_text() { Shape::of(data, text) } else { Shape::default() };
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
                self.end = Some(End::Answered { finish });
            }
            "response.failed" | "response.cancelled" => {
                let code = response.error.map_or_else(unknown, |error| error.code());
                self.end = Some(End::Broken { code });
            }
            _ => {}
        }
    }

    /// An answer in one piece.
    pub(super) fn whole(&mut self, answer: Answer) -> End {
        self.note_usage(answer.usage);
        let finish = answer.choices.into_iter().next().and_then(|choice| choice.finish_reason);
        let incomplete = answer.incomplete_details.and_then(|details| details.reason);
        End::Answered { finish: finish.or(incomplete).unwrap_or_else(|| "stop".to_owned()) }
    }

    fn note_usage(&mut self, usage: Option<Usage>) {
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

/// What an event with a piece of text looked like around the text. The next one mostly looks the
/// same, and need not be parsed to know that.
#[derive(Default)]
struct Shape {
    before: Vec<u8>,
    after: Vec<u8>,
}

impl Shape {
    fn of(data: &[u8], text: &str) -> Self {
        // Text that had escapes in it was copied, and lies somewhere else.
        let at = (text.as_ptr() as usize).checked_sub(data.as_ptr() as usize);
        match at.and_then(|at| Some((data.get(..at)?, data.get(at + text.len()..)?))) {
            Some((before, after)) => Self { before: before.to_vec(), after: after.to_vec() },
            None => Self::default(),
        }
    }

    /// Is this one like that, with another text that is not empty?
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
struct Event<'a> {
    error: Option<ApiError>,
    #[serde(borrow, default)]
    choices: Vec<Choice<'a>>,
    usage: Option<Usage>,
    #[serde(borrow, rename = "type")]
    kind: Option<Cow<'a, str>>,
    /// Of `/v1/responses`.
    #[serde(borrow)]
    delta: Option<Cow<'a, str>>,
    response: Option<Answer>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(borrow)]
    delta: Option<Delta<'a>>,
    #[serde(borrow)]
    text: Option<Cow<'a, str>>,
    #[serde(borrow)]
    finish_reason: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct Delta<'a> {
    #[serde(borrow)]
    content: Option<Cow<'a, str>>,
}

impl Event<'_> {
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
pub(super) struct Answer {
    #[serde(default)]
    choices: Vec<WholeChoice>,
    usage: Option<Usage>,
    incomplete_details: Option<Incomplete>,
    pub(super) error: Option<ApiError>,
}

#[derive(Deserialize)]
struct WholeChoice {
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Incomplete {
    reason: Option<String>,
}

#[derive(Clone, Copy, Deserialize)]
struct Usage {
    #[serde(alias = "prompt_tokens", alias = "input_tokens")]
    prompt: u32,
    #[serde(alias = "completion_tokens", alias = "output_tokens")]
    generated: u32,
}

/// An error in the API's own shape.
#[derive(Deserialize)]
pub(super) struct ApiError {
    code: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
}

impl ApiError {
    pub(super) fn code(&self) -> String {
        self.code.clone().or_else(|| self.kind.clone()).unwrap_or_else(unknown)
    }
}

pub(super) fn unknown() -> String {
    "unknown".to_owned()
}
