//! The API's bodies: the request we send, and what we read of the answer.
//!
//! Reading takes no copy of the text: a client of 2000 streams does this 2000 times a token.

use std::fmt;

use hyper::body::Bytes;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

use crate::plan::{Api, BenchPlan};
use crate::question::Question;

#[derive(Default, Serialize)]
struct RequestBody<'a> {
    model: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    messages: Option<Vec<ChatMessage<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    instructions: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    input: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_output_tokens: Option<u32>,
    temperature: f32,
    stream: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream_options: Option<StreamOptions>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    full_length: Option<FullLength>,
}

#[derive(Serialize)]
struct ChatMessage<'a> {
    role: &'static str,
    content: &'a str,
}

#[derive(Serialize)]
struct StreamOptions {
    include_usage: bool,
}

/// vLLM's extensions, which several servers heed.
#[derive(Serialize)]
struct FullLength {
    ignore_eos: bool,
    min_tokens: u32,
}

/// The body of a request.
pub(crate) fn body(plan: &BenchPlan, model: &str, question: &Question) -> Bytes {
    let system = question.system.as_deref();
    let max_tokens = question.max_tokens.get();
    let full_length = FullLength { ignore_eos: true, min_tokens: max_tokens };
    let mut body = RequestBody {
        model,
        temperature: 0.0,
        stream: plan.stream,
        full_length: plan.ignore_eos.then_some(full_length),
        ..RequestBody::default()
    };
    match plan.api {
        Api::Chat => {
            let system = system.map(|content| ChatMessage { role: "system", content });
            let user = ChatMessage { role: "user", content: &question.user };
            body.messages = Some(system.into_iter().chain([user]).collect());
        }
        Api::Completions => {
            let parts: Vec<&str> = system.into_iter().chain([question.user.as_str()]).collect();
            body.prompt = Some(parts.join("\n\n"));
        }
        Api::Responses => {
            body.instructions = system;
            body.input = Some(&question.user);
        }
    }
    if plan.api == Api::Responses {
        // Its last event always has the usage.
        body.max_output_tokens = Some(max_tokens);
    } else {
        body.max_tokens = Some(max_tokens);
        body.stream_options = plan.stream.then_some(StreamOptions { include_usage: true });
    }
    serde_json::to_vec(&body).expect("texts and numbers are JSON").into()
}

/// A piece of a stream, or a whole answer, of any endpoint: each has these fields, where it has
/// them.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct AnswerPayload {
    #[serde(default)]
    choices: Vec<AnswerChoice>,
    #[serde(default)]
    usage: Option<ReportedUsage>,
    #[serde(default)]
    error: Option<serde_json::Value>,
    /// What an event of `/v1/responses` is.
    #[serde(default, rename = "type")]
    event: Option<ResponsesEvent>,
    /// The text of such an event.
    #[serde(default)]
    delta: Filled,
    /// The whole answer, in the first and the last event of such a stream.
    #[serde(default)]
    response: Option<Box<AnswerPayload>>,
    /// What a whole answer of `/v1/responses` says.
    #[serde(default)]
    output: Vec<OutputItem>,
}

/// The events of `/v1/responses` that matter here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
enum ResponsesEvent {
    #[serde(
        rename = "response.output_text.delta",
        alias = "response.reasoning_text.delta",
        alias = "response.reasoning_summary_text.delta"
    )]
    Text,
    #[serde(rename = "response.completed", alias = "response.incomplete")]
    End,
    #[serde(rename = "response.failed", alias = "error")]
    Failed,
    #[serde(other)]
    Other,
}

#[derive(Debug, Deserialize)]
struct OutputItem {
    #[serde(default)]
    content: Filled,
    #[serde(default)]
    summary: Filled,
}

#[derive(Debug, Deserialize)]
struct AnswerChoice {
    #[serde(default)]
    delta: Option<AnswerText>,
    #[serde(default)]
    message: Option<AnswerText>,
    #[serde(default)]
    text: Filled,
    #[serde(default)]
    finish_reason: Filled,
}

/// What a model said, thought included: both are tokens.
#[derive(Debug, Deserialize)]
struct AnswerText {
    #[serde(default)]
    content: Filled,
    #[serde(default)]
    reasoning_content: Filled,
    #[serde(default)]
    reasoning: Filled,
}

/// What the server counted.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(crate) struct ReportedUsage {
    #[serde(default)]
    prompt_tokens: Option<u32>,
    #[serde(default)]
    completion_tokens: Option<u32>,
    /// What `/v1/responses` calls the prompt's.
    #[serde(default)]
    input_tokens: Option<u32>,
    /// And the answer's.
    #[serde(default)]
    output_tokens: Option<u32>,
}

impl ReportedUsage {
    /// Tokens of the prompt.
    pub(crate) fn prompt(self) -> Option<u32> {
        self.prompt_tokens.or(self.input_tokens)
    }

    /// Tokens of the answer.
    pub(crate) fn answer(self) -> Option<u32> {
        self.completion_tokens.or(self.output_tokens)
    }
}

impl AnswerPayload {
    /// Is there text in it?
    pub(crate) fn says_something(&self) -> bool {
        let filled = |said: &Option<AnswerText>| {
            said.as_ref().is_some_and(|s| s.content.0 || s.reasoning_content.0 || s.reasoning.0)
        };
        self.choices.iter().any(|c| c.text.0 || filled(&c.delta) || filled(&c.message))
            || (self.event == Some(ResponsesEvent::Text) && self.delta.0)
            || self.output.iter().any(|item| item.content.0 || item.summary.0)
    }

    /// What the server counted, where it says so.
    pub(crate) fn usage(&self) -> Option<ReportedUsage> {
        self.usage.or_else(|| self.response.as_ref()?.usage)
    }

    /// Is it word of a failure instead?
    pub(crate) fn failed(&self) -> bool {
        let within = self.response.as_ref().is_some_and(|response| response.error.is_some());
        self.error.is_some() || within || self.event == Some(ResponsesEvent::Failed)
    }

    /// Is it the last event of a stream of `/v1/responses`?
    pub(crate) fn is_last(&self) -> bool {
        self.event == Some(ResponsesEvent::End)
    }

    /// Does it say why the answer ended?
    pub(crate) fn finishes(&self) -> bool {
        self.choices.iter().any(|choice| choice.finish_reason.0)
    }
}

/// What a server says of what went wrong, in few words: OpenAI's `error.message`, FastAPI's
/// `detail`, or the text itself.
pub(crate) fn complaint(body: &[u8]) -> String {
    const CHARS_MAX: usize = 200;
    let json: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let said = json.as_ref().and_then(|json| {
        let (error, within) = (&json["error"], &json["response"]["error"]["message"]);
        [&error["message"], error, within, &json["message"], &json["detail"]]
            .into_iter()
            .find_map(|v| v.as_str())
    });
    let text = said.map_or_else(|| String::from_utf8_lossy(body).into_owned(), str::to_owned);
    text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(CHARS_MAX).collect()
}

/// Whether a text is there and not empty. The text itself is not kept.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Filled(bool);

impl<'de> Deserialize<'de> for Filled {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(IsFilled)
    }
}

struct IsFilled;

impl<'de> Visitor<'de> for IsFilled {
    type Value = Filled;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text or null")
    }

    fn visit_str<E>(self, text: &str) -> Result<Filled, E> {
        Ok(Filled(!text.is_empty()))
    }

    fn visit_unit<E>(self) -> Result<Filled, E> {
        Ok(Filled(false))
    }

    // Content in parts, as some servers send it.
    fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Filled, A::Error> {
        let mut any = false;
        while parts.next_element::<IgnoredAny>()?.is_some() {
            any = true;
        }
        Ok(Filled(any))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Filled, A::Error> {
        while fields.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Filled(true))
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;
    use crate::plan::tests::{nonzero, plan};

    fn check_body(plan: &BenchPlan, expected: &Expect) {
        let question =
            Question { system: Some("be".into()), user: "hi".into(), max_tokens: nonzero(5) };
        let body = body(plan, "m", &question);
        expected.assert_eq(std::str::from_utf8(&body).expect("is text"));
    }

    #[test]
    fn a_chat_asks_for_the_full_length_and_its_count() {
        check_body(
            &plan(),
            &expect![[
                r#"{"model":"m","messages":[{"role":"system","content":"be"},{"role":"user","content":"hi"}],"max_tokens":5,"temperature":0.0,"stream":true,"stream_options":{"include_usage":true},"ignore_eos":true,"min_tokens":5}"#
            ]],
        );
    }

    #[test]
    fn a_completion_for_a_strict_server_has_only_what_openai_knows() {
        check_body(
            &BenchPlan { api: Api::Completions, stream: false, ignore_eos: false, ..plan() },
            &expect![[
                r#"{"model":"m","prompt":"be\n\nhi","max_tokens":5,"temperature":0.0,"stream":false}"#
            ]],
        );
    }

    #[test]
    fn a_response_asks_in_its_own_words() {
        let responses = BenchPlan { api: Api::Responses, ..plan() };
        check_body(
            &responses,
            &expect![[
                r#"{"model":"m","instructions":"be","input":"hi","max_output_tokens":5,"temperature":0.0,"stream":true,"ignore_eos":true,"min_tokens":5}"#
            ]],
        );
        check_body(
            &BenchPlan { stream: false, ignore_eos: false, ..responses },
            &expect![[
                r#"{"model":"m","instructions":"be","input":"hi","max_output_tokens":5,"temperature":0.0,"stream":false}"#
            ]],
        );
    }

    fn says(json: &str) -> bool {
        serde_json::from_str::<AnswerPayload>(json).expect("is an answer").says_something()
    }

    #[test]
    fn a_role_alone_says_nothing_and_a_thought_does() {
        assert!(!says(r#"{"choices":[{"delta":{"role":"assistant","content":""}}],"usage":null}"#));
        assert!(!says(r#"{"choices":[{"delta":{"content":null},"finish_reason":"stop"}]}"#));
        assert!(!says(r#"{"choices":[],"usage":{"completion_tokens":3}}"#));
        assert!(says(r#"{"choices":[{"delta":{"content":"a \"b\""}}]}"#));
        assert!(says(r#"{"choices":[{"delta":{"content":null,"reasoning_content":"hm"}}]}"#));
        assert!(says(r#"{"choices":[{"text":" a","logprobs":null}]}"#));
        assert!(says(r#"{"choices":[{"message":{"role":"assistant","content":"a"}}]}"#));
    }

    #[test]
    fn of_the_events_of_a_response_only_deltas_of_text_say_something() {
        assert!(says(r#"{"type":"response.output_text.delta","delta":"a","logprobs":[]}"#));
        assert!(says(r#"{"type":"response.reasoning_text.delta","delta":"hm"}"#));
        assert!(!says(r#"{"type":"response.output_text.delta","delta":""}"#));
        assert!(!says(r#"{"type":"response.function_call_arguments.delta","delta":"{"}"#));
        // All the text once more, which came before.
        assert!(!says(r#"{"type":"response.output_text.done","text":"all of it"}"#));
        assert!(!says(
            r#"{"type":"response.completed","response":{"output":[{"content":[{"text":"a"}]}]}}"#
        ));
        // A whole answer.
        assert!(says(r#"{"object":"response","output":[{"type":"message","content":[{}]}]}"#));
        assert!(!says(r#"{"object":"response","output":[{"type":"message","content":[]}]}"#));
    }

    #[test]
    fn a_response_counts_in_its_own_words_and_says_when_it_failed() {
        let read = |json: &str| serde_json::from_str::<AnswerPayload>(json).expect("is an answer");
        let counted = |json: &str| {
            let usage = read(json).usage().expect("it counts");
            (usage.prompt(), usage.answer())
        };
        let usage = r#""usage":{"input_tokens":3,"output_tokens":9,"total_tokens":12}"#;
        assert_eq!(counted(&format!("{{{usage}}}")), (Some(3), Some(9)));
        let last =
            format!(r#"{{"type":"response.incomplete","response":{{"error":null,{usage}}}}}"#);
        assert_eq!(counted(&last), (Some(3), Some(9)));
        assert!(read(&last).is_last() && !read(&last).failed());
        let failed = r#"{"type":"response.failed","response":{"error":{"message":"it broke"}}}"#;
        assert!(read(failed).failed() && !read(failed).is_last());
        assert_eq!(complaint(failed.as_bytes()), "it broke");
        let error = r#"{"type":"error","code":"x","message":"too late"}"#;
        assert!(read(error).failed());
        assert_eq!(complaint(error.as_bytes()), "too late");
    }

    #[test]
    fn a_complaint_is_found_where_servers_put_it() {
        assert_eq!(
            complaint(br#"{"error":{"message":"no such model","code":"x"}}"#),
            "no such model"
        );
        assert_eq!(complaint(br#"{"error":"busy"}"#), "busy");
        assert_eq!(complaint(br#"{"detail":"Not Found"}"#), "Not Found");
        assert_eq!(complaint(b"<h1>Bad\n Gateway</h1>"), "<h1>Bad Gateway</h1>");
    }
}
