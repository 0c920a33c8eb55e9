//! One generating request: asked, timed, and left when it should be.

use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{Method, Request};

use crate::ask::{self, AnswerPayload, ReportedUsage};
use crate::exchange::{Reply, UnusedConnection};
use crate::failure::RequestFailure;
use crate::plan::BenchPlan;
use crate::question::Question;
use crate::sse::SseParser;
use crate::target::{Target, ok};

/// A request with an open connection, ready to be sent.
pub(crate) struct Ready {
    line: UnusedConnection,
    request: Request<Full<Bytes>>,
    stream: bool,
    timeout: Duration,
}

/// The point at which a client leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LeavePoint {
    /// The client waits for the whole answer.
    Never,
    /// At the first token, or after this time if none has come.
    BeforeText(Duration),
    /// After so many pieces of text.
    AfterText(u32),
}

/// How a request ended that did not fail.
#[derive(Debug)]
pub(crate) enum RequestEnd {
    Whole(CompleteAnswer),
    Left,
}

/// The times and tokens of a whole answer.
#[derive(Debug, Default)]
pub(crate) struct CompleteAnswer {
    /// From sending to the first text. None without a stream, or without text.
    pub(crate) first: Option<Duration>,
    /// From sending to the end.
    pub(crate) took: Duration,
    /// Between pieces of text, one after the other.
    pub(crate) gaps: Vec<Duration>,
    /// Pieces of text.
    pub(crate) chunks: u32,
    /// The answer's tokens, if the server counted them.
    pub(crate) tokens: Option<u32>,
    pub(crate) prompt_tokens: Option<u32>,
}

impl CompleteAnswer {
    /// The tokens that the server counted, or else the pieces of text.
    pub(crate) fn tokens_or_chunks(&self) -> u32 {
        self.tokens.unwrap_or(self.chunks)
    }
}

impl Ready {
    /// Writes the request and opens its connection.
    pub(crate) async fn open(
        target: &Target,
        plan: &BenchPlan,
        question: &Question,
    ) -> Result<Self, RequestFailure> {
        let body = ask::body(plan, &target.facts.model, question);
        let path = format!("{}{}", target.address.base, plan.api.path());
        let request = target.request(Method::POST, &path, body);
        Ok(Self { line: target.line().await?, request, stream: plan.stream, timeout: plan.timeout })
    }

    /// Sends the request and reads the answer, or leaves.
    pub(crate) async fn ask(self, leave: LeavePoint) -> Result<RequestEnd, RequestFailure> {
        let timeout = self.timeout;
        let asked = tokio::time::timeout(timeout, async {
            match leave {
                LeavePoint::BeforeText(patience) => {
                    tokio::time::timeout(patience, self.ask_in_time(leave))
                        .await
                        // The time is over and the connection dropped, before any text.
                        .unwrap_or(Ok(RequestEnd::Left))
                }
                LeavePoint::Never | LeavePoint::AfterText(_) => self.ask_in_time(leave).await,
            }
        });
        asked.await.unwrap_or(Err(RequestFailure::Timeout(timeout)))
    }

    async fn ask_in_time(self, leave: LeavePoint) -> Result<RequestEnd, RequestFailure> {
        let sent = Instant::now();
        let mut reply = self.line.send(self.request).await?;
        ok(&mut reply).await?;
        if self.stream { streamed(reply, sent, leave).await } else { whole(reply, sent).await }
    }
}

async fn whole(mut reply: Reply, sent: Instant) -> Result<RequestEnd, RequestFailure> {
    let body = reply.whole().await?;
    let took = sent.elapsed();
    let answer: AnswerPayload = serde_json::from_slice(&body)
        .map_err(|error| RequestFailure::Nonsense(format!("an answer: {error}")))?;
    if answer.failed() {
        return Err(RequestFailure::InStream(ask::complaint(&body)));
    }
    let usage = answer.usage();
    let tokens = usage.and_then(ReportedUsage::answer);
    if tokens.is_none() {
        let why = "an answer whose usage has no completion_tokens or output_tokens: its length \
                   is not known";
        return Err(RequestFailure::Nonsense(why.to_owned()));
    }
    let prompt_tokens = usage.and_then(ReportedUsage::prompt);
    let chunks = u32::from(answer.says_something());
    Ok(RequestEnd::Whole(CompleteAnswer {
        took,
        chunks,
        tokens,
        prompt_tokens,
        ..CompleteAnswer::default()
    }))
}

async fn streamed(
    mut reply: Reply,
    sent: Instant,
    leave: LeavePoint,
) -> Result<RequestEnd, RequestFailure> {
    let mut stream = AnswerStream::new(sent);
    let mut events = SseParser::default();
    while let Some(piece) = reply.bytes().await? {
        let now = Instant::now();
        let mut taken = Ok(());
        let fed = events.feed(&piece, |data| {
            if taken.is_ok() {
                taken = stream.take(data, now);
            }
        });
        taken?;
        fed.map_err(|_| RequestFailure::Nonsense("an event that does not end".to_owned()))?;
        if stream.done {
            break;
        }
        let enough = match leave {
            LeavePoint::Never => false,
            LeavePoint::BeforeText(_) => stream.answered.chunks > 0,
            LeavePoint::AfterText(chunks) => stream.answered.chunks >= chunks,
        };
        if enough {
            return Ok(RequestEnd::Left);
        }
    }
    stream.end()
}

/// The part of a streamed answer that has come so far.
struct AnswerStream {
    sent: Instant,
    last: Instant,
    answered: CompleteAnswer,
    /// The stream gave a finish reason.
    finished: bool,
    /// The stream sent `[DONE]`, or that the response is complete.
    done: bool,
}

impl AnswerStream {
    fn new(sent: Instant) -> Self {
        Self { sent, last: sent, answered: CompleteAnswer::default(), finished: false, done: false }
    }

    fn take(&mut self, data: &[u8], now: Instant) -> Result<(), RequestFailure> {
        if data == b"[DONE]" {
            self.done = true;
            self.answered.took = now - self.sent;
            return Ok(());
        }
        let chunk: AnswerPayload = serde_json::from_slice(data).map_err(|error| {
            RequestFailure::Nonsense(format!("{error} in {:?}", String::from_utf8_lossy(data)))
        })?;
        if chunk.failed() {
            return Err(RequestFailure::InStream(ask::complaint(data)));
        }
        if chunk.says_something() {
            match self.answered.first {
                None => self.answered.first = Some(now - self.sent),
                Some(_) => self.answered.gaps.push(now - self.last),
            }
            self.answered.chunks += 1;
            self.last = now;
        }
        if let Some(usage) = chunk.usage() {
            self.answered.tokens = usage.answer().or(self.answered.tokens);
            self.answered.prompt_tokens = usage.prompt().or(self.answered.prompt_tokens);
        }
        self.finished |= chunk.finishes();
        self.done |= chunk.is_last();
        self.answered.took = now - self.sent;
        Ok(())
    }

    fn end(self) -> Result<RequestEnd, RequestFailure> {
        if self.done || self.finished {
            return Ok(RequestEnd::Whole(self.answered));
        }
        let chunks = self.answered.chunks;
        Err(RequestFailure::Cut(format!(
            "the stream ended after {chunks} pieces of text, unfinished"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stream whose events come a millisecond apart.
    fn take(events: &[&str]) -> Result<CompleteAnswer, RequestFailure> {
        let sent = Instant::now();
        let mut stream = AnswerStream::new(sent);
        for (at, event) in (1..).zip(events) {
            stream.take(event.as_bytes(), sent + Duration::from_millis(at))?;
        }
        match stream.end()? {
            RequestEnd::Whole(answered) => Ok(answered),
            RequestEnd::Left => unreachable!("a stream does not leave by itself"),
        }
    }

    const ROLE: &str = r#"{"choices":[{"delta":{"role":"assistant","content":""}}]}"#;
    const TEXT: &str = r#"{"choices":[{"delta":{"content":"a"}}]}"#;
    const FINISH: &str = r#"{"choices":[{"delta":{},"finish_reason":"length"}]}"#;
    const USAGE: &str = r#"{"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":9}}"#;

    #[test]
    fn the_clock_of_the_first_token_ignores_what_has_no_text() {
        let answered = take(&[ROLE, TEXT, ROLE, TEXT, TEXT, FINISH, "[DONE]"]).expect("is whole");
        let ms = Duration::from_millis;
        assert_eq!(answered.first, Some(ms(2)));
        assert_eq!(answered.gaps, [ms(2), ms(1)]);
        assert_eq!(answered.took, ms(7));
        assert_eq!((answered.chunks, answered.tokens), (3, None));
        assert_eq!(answered.tokens_or_chunks(), 3);
    }

    #[test]
    fn the_server_counts_better_than_we() {
        let answered = take(&[TEXT, TEXT, FINISH, USAGE, "[DONE]"]).expect("is whole");
        assert_eq!(answered.tokens_or_chunks(), 9);
        assert_eq!(answered.prompt_tokens, Some(7));
    }

    #[test]
    fn a_stream_that_does_not_finish_is_cut_off() {
        assert!(matches!(take(&[TEXT, TEXT]), Err(RequestFailure::Cut(_))));
        assert!(take(&[TEXT, FINISH]).is_ok());
    }

    #[test]
    fn a_response_ends_with_its_last_event() {
        const DELTA: &str = r#"{"type":"response.output_text.delta","delta":"a"}"#;
        const CREATED: &str = r#"{"type":"response.created","response":{"usage":null}}"#;
        const LAST: &str = r#"{"type":"response.completed","response":{"error":null,
            "usage":{"input_tokens":7,"output_tokens":9}}}"#;
        let answered = take(&[CREATED, DELTA, DELTA, LAST]).expect("is whole");
        let ms = Duration::from_millis;
        assert_eq!((answered.first, answered.took), (Some(ms(2)), ms(4)));
        assert_eq!((answered.chunks, answered.tokens), (2, Some(9)));
        assert_eq!(answered.prompt_tokens, Some(7));
        assert!(matches!(take(&[CREATED, DELTA, DELTA]), Err(RequestFailure::Cut(_))));
        let failed = r#"{"type":"response.failed","response":{"error":{"message":"it broke"}}}"#;
        let failed = take(&[CREATED, DELTA, failed]).expect_err("it failed");
        assert_eq!(failed, RequestFailure::InStream("it broke".to_owned()));
    }

    #[test]
    fn an_error_in_the_stream_is_a_failure_with_its_message() {
        let failed = take(&[TEXT, r#"{"error":{"message":"deadline","code":"x"}}"#, "[DONE]"]);
        assert_eq!(failed.expect_err("it failed"), RequestFailure::InStream("deadline".to_owned()));
        assert!(matches!(take(&["nonsense"]), Err(RequestFailure::Nonsense(_))));
    }
}
