//! The API's bodies: the request we send, and what we read of the answer.
//!
//! Reading takes no copy of the text: a client of 2000 streams does this 2000 times a token.

use std::fmt;

use hyper::body::Bytes;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

use crate::plan::{Api, Plan};
use crate::workload::Question;

#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    messages: Option<Vec<Message<'a>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt: Option<String>,
    max_tokens: u32,
    temperature: f32,
    stream: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream_options: Option<StreamOptions>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    full_length: Option<FullLength>,
}

#[derive(Serialize)]
struct Message<'a> {
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
pub(crate) fn body(plan: &Plan, model: &str, question: &Question) -> Bytes {
    let system = question.system.as_deref();
    let max_tokens = question.max_tokens.get();
    let (messages, prompt) = match plan.api {
        Api::Chat => {
            let system = system.map(|content| Message { role: "system", content });
            let user = Message { role: "user", content: &question.user };
            (Some(system.into_iter().chain([user]).collect()), None)
        }
        Api::Completions => {
            let parts: Vec<&str> = system.into_iter().chain([question.user.as_str()]).collect();
            (None, Some(parts.join("\n\n")))
        }
    };
    let body = Body {
        model,
        messages,
        prompt,
        max_tokens,
        temperature: 0.0,
        stream: plan.stream,
        stream_options: plan.stream.then_some(StreamOptions { include_usage: true }),
        full_length: plan
            .ignore_eos
            .then_some(FullLength { ignore_eos: true, min_tokens: max_tokens }),
    };
    serde_json::to_vec(&body).expect("texts and numbers are JSON").into()
}

/// A chunk of a stream, or a whole answer: both have these fields, where they have them.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Answer {
    #[serde(default)]
    choices: Vec<Choice>,
    #[serde(default)]
    pub(crate) usage: Option<Usage>,
    #[serde(default)]
    pub(crate) error: Option<serde_json::Value>,
}

#[derive(Debug, Deserialize)]
struct Choice {
    #[serde(default)]
    delta: Option<Said>,
    #[serde(default)]
    message: Option<Said>,
    #[serde(default)]
    text: Filled,
    #[serde(default)]
    finish_reason: Filled,
}

/// What a model said, thought included: both are tokens.
#[derive(Debug, Deserialize)]
struct Said {
    #[serde(default)]
    content: Filled,
    #[serde(default)]
    reasoning_content: Filled,
    #[serde(default)]
    reasoning: Filled,
}

/// What the server counted.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(crate) struct Usage {
    #[serde(default)]
    pub(crate) prompt_tokens: Option<u32>,
    #[serde(default)]
    pub(crate) completion_tokens: Option<u32>,
}

impl Answer {
    /// Is there text in it?
    pub(crate) fn says_something(&self) -> bool {
        let filled = |said: &Option<Said>| {
            said.as_ref().is_some_and(|s| s.content.0 || s.reasoning_content.0 || s.reasoning.0)
        };
        self.choices.iter().any(|c| c.text.0 || filled(&c.delta) || filled(&c.message))
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
        let error = &json["error"];
        [&error["message"], error, &json["message"], &json["detail"]]
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

    fn check_body(plan: &Plan, expected: &Expect) {
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
            &Plan { api: Api::Completions, stream: false, ignore_eos: false, ..plan() },
            &expect![[
                r#"{"model":"m","prompt":"be\n\nhi","max_tokens":5,"temperature":0.0,"stream":false}"#
            ]],
        );
    }

    fn says(json: &str) -> bool {
        serde_json::from_str::<Answer>(json).expect("is an answer").says_something()
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
