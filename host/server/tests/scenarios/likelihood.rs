//! How likely tokens were, over the wire.

use serde_json::Value;

use crate::rig::Rig;

/// Each endpoint and a request there that asks for two alternatives at each place.
const ASKED: [(&str, &str); 3] = [
    (
        "/v1/chat/completions",
        r#""messages":[{"role":"user","content":"hello"}],"max_tokens":12,"logprobs":true,"top_logprobs":2"#,
    ),
    ("/v1/completions", r#""prompt":"hello","max_tokens":12,"logprobs":2"#),
    (
        "/v1/responses",
        r#""input":"hello","max_output_tokens":12,"top_logprobs":2,"include":["message.output_text.logprobs"]"#,
    ),
];

fn body(fields: &str, stream: bool) -> String {
    format!(r#"{{"model":"sim","temperature":0,"stream":{stream},{fields}}}"#)
}

/// The tokens that a whole answer, a chunk or an event tells of.
fn tokens(value: &Value) -> Vec<String> {
    let choice = &value["choices"][0]["logprobs"];
    let strings = |list: &Value| -> Option<Vec<String>> {
        let token = |one: &Value| one.as_str().or(one["token"].as_str()).map(str::to_owned);
        list.as_array()?.iter().map(token).collect()
    };
    strings(&choice["content"])
        .or_else(|| strings(&choice["tokens"]))
        .or_else(|| strings(&value["output"][0]["content"][0]["logprobs"]))
        .or_else(|| strings(&value["logprobs"]))
        .unwrap_or_default()
}

fn text(value: &Value) -> &str {
    let choice = &value["choices"][0];
    let text = choice["message"]["content"].as_str().or(choice["delta"]["content"].as_str());
    let text = text.or(choice["text"].as_str()).or(value["delta"].as_str());
    text.or(value["output"][0]["content"][0]["text"].as_str()).unwrap_or("")
}

/// Everything in a stream that is or has text.
fn chunks(events: &[&str]) -> Vec<Value> {
    let values = events.iter().filter_map(|event| serde_json::from_str::<Value>(event).ok());
    values.filter(|value| value["choices"][0].is_object() || value["delta"].is_string()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_token_of_the_text_is_told_whole_and_streamed() {
    let rig = Rig::start().await;
    for (path, fields) in ASKED {
        let whole = rig.post(path, &body(fields, false)).await.json();
        assert_eq!(tokens(&whole).len(), 12, "{whole}");
        assert_eq!(tokens(&whole).concat(), text(&whole), "{path}");
        let streamed = rig.post(path, &body(fields, true)).await;
        let chunks = chunks(&streamed.events());
        for chunk in &chunks {
            assert_eq!(tokens(chunk).concat(), text(chunk), "{chunk}");
        }
        let all: Vec<String> = chunks.iter().flat_map(tokens).collect();
        assert_eq!(all, tokens(&whole), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_comes_with_its_bytes_and_as_many_alternatives_as_were_asked_for() {
    let rig = Rig::start().await;
    let chat = rig.post(ASKED[0].0, &body(ASKED[0].1, false)).await.json();
    let response = rig.post(ASKED[2].0, &body(ASKED[2].1, false)).await.json();
    for told in [
        &chat["choices"][0]["logprobs"]["content"],
        &response["output"][0]["content"][0]["logprobs"],
    ] {
        for token in told.as_array().expect("a list") {
            assert_eq!(token["bytes"][0], token["token"].as_str().expect("a text").as_bytes()[0]);
            assert!(token["logprob"].as_f64().is_some_and(|logprob| logprob < 0.0), "{token}");
            let top = token["top_logprobs"].as_array().expect("a list");
            assert_eq!(top.len(), 2);
            assert_eq!(
                (&top[0]["token"], &top[0]["logprob"]),
                (&token["token"], &token["logprob"])
            );
            assert!(top[1]["logprob"].as_f64() < top[0]["logprob"].as_f64(), "{token}");
        }
    }
    assert_eq!(response["top_logprobs"], 2);
    let columns = &rig.post(ASKED[1].0, &body(ASKED[1].1, false)).await.json()["choices"][0];
    let columns = &columns["logprobs"];
    for place in 0..12 {
        assert_eq!(columns["text_offset"][place], place);
        let token = columns["tokens"][place].as_str().expect("a text");
        let top = columns["top_logprobs"][place].as_object().expect("alternatives");
        assert_eq!((top.len(), &top[token]), (2, &columns["token_logprobs"][place]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_string_takes_its_tokens_along() {
    let rig = Rig::start().await;
    let (path, fields) = ASKED[0];
    let whole = rig.post(path, &body(fields, false)).await.json();
    let stop = &text(&whole)[5..8];
    for stream in [false, true] {
        let asked = body(&format!(r#"{fields},"stop":"{stop}""#), stream);
        let answer = rig.post(path, &asked).await;
        let parts = if stream { chunks(&answer.events()) } else { vec![answer.json()] };
        let said: String = parts.iter().map(text).collect();
        let told: Vec<String> = parts.iter().flat_map(tokens).collect();
        assert_eq!(said, text(&whole)[..text(&whole).find(stop).expect("it is in there")]);
        assert_eq!(told.concat(), said);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_ask_is_told_nothing_of_it() {
    let rig = Rig::start().await;
    for (path, fields) in [
        (ASKED[0].0, r#""messages":[{"role":"user","content":"hello"}],"max_tokens":3"#),
        (ASKED[1].0, r#""prompt":"hello","max_tokens":3"#),
        (ASKED[2].0, r#""input":"hello","max_output_tokens":3"#),
    ] {
        let whole = rig.post(path, &body(fields, false)).await.json();
        assert_eq!(text(&whole).len(), 3);
        assert_eq!(tokens(&whole), [] as [&str; 0], "{path}");
        for chunk in chunks(&rig.post(path, &body(fields, true)).await.events()) {
            assert_eq!(tokens(&chunk), [] as [&str; 0], "{path}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn more_alternatives_than_the_limit_are_refused_with_it() {
    let rig = Rig::start().await;
    for (path, fields) in ASKED {
        let fields = fields.replace(r#"logprobs":2"#, r#"logprobs":21"#);
        let answer = rig.post(path, &body(&fields, false)).await;
        assert_eq!((answer.status, answer.code().as_str()), (400, "invalid_value"), "{path}");
        let error = answer.json()["error"].clone();
        let param = error["param"].as_str().expect("a field");
        assert_eq!(
            error["message"],
            format!("{param} must be an integer from 0 to 20, got 21"),
            "{path}"
        );
    }
}
