//! What good requests get.

use interlock_request::{Finish, Outcome, Usage};
use interlock_sim::SimSettings;

use crate::rig::{Rig, Script, Setup, within};

const CHAT: &str = r#"{"model":"sim","messages":[{"role":"user","content":"hello"}],"temperature":0,"max_tokens":20"#;

/// `<bos>`, `<user>`, five bytes, `<end>`, `<assistant>`.
const CHAT_TOKENS: u32 = 9;

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_says_the_same_as_the_whole_on_every_endpoint() {
    let rig = Rig::start().await;
    let ways = [
        (
            "/v1/chat/completions",
            r#""messages":[{"role":"user","content":"hello"}],"max_tokens":20"#,
        ),
        ("/v1/completions", r#""prompt":"hello","max_tokens":20"#),
        ("/v1/responses", r#""input":"hello","max_output_tokens":20"#),
    ];
    for (path, fields) in ways {
        let whole = rig.post(path, &format!(r#"{{"model":"sim","temperature":0,{fields}}}"#)).await;
        assert_eq!(whole.status, 200, "{whole:?}");
        let whole = whole.json();
        let text = whole["choices"][0]["message"]["content"]
            .as_str()
            .or(whole["choices"][0]["text"].as_str())
            .or(whole["output"][0]["content"][0]["text"].as_str())
            .expect("a text");
        assert_eq!(text.len(), 20, "one byte a token");
        let body = format!(r#"{{"model":"sim","temperature":0,"stream":true,{fields}}}"#);
        let streamed = rig.post(path, &body).await;
        let mut joined = String::new();
        for event in streamed.events() {
            let Ok(event) = serde_json::from_str::<serde_json::Value>(event) else { continue };
            let choice = &event["choices"][0];
            let piece = choice["delta"]["content"].as_str().or(choice["text"].as_str());
            joined.push_str(piece.or(event["delta"].as_str()).unwrap_or(""));
        }
        assert_eq!(joined, text, "{path}");
        let done = streamed.body.ends_with("data: [DONE]\n\n");
        assert_eq!(done, path != "/v1/responses", "{}", streamed.body);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_is_what_the_model_saw_and_everyone_is_told_the_same() {
    let mut rig = Rig::start().await;
    let body = format!(r#"{CHAT},"stream":true,"stream_options":{{"include_usage":true}}}}"#);
    let answer = rig.post("/v1/chat/completions", &body).await;
    let events = answer.events();
    let [.., last, "[DONE]"] = events[..] else { panic!("no [DONE] in {events:?}") };
    assert!(
        last.contains(r#""prompt_tokens":9,"completion_tokens":20,"total_tokens":29"#),
        "{last}"
    );
    let (_, summary) = rig.ended().await;
    assert_eq!(summary.outcome, Outcome::Completed(Finish::Length));
    assert_eq!(
        summary.usage,
        Usage { prompt_tokens: CHAT_TOKENS, cached_tokens: 0, generated_tokens: 20 }
    );
    assert!(summary.time_to_first_token <= Some(summary.total), "{summary:?}");
    assert_eq!(rig.metric("prompt_tokens_total"), 9.0);
    assert_eq!(rig.metric("generated_tokens_total"), 20.0);
    let ended = r#"requests_total{endpoint="chat",model="sim",outcome="completed"}"#;
    assert_eq!(rig.metric(ended), 1.0);
    assert_eq!(rig.metric("inter_token_latency_seconds_count"), 19.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_string_ends_the_text_before_it_and_is_counted_to_its_end() {
    let mut rig = Rig::start().await;
    let whole = rig.post("/v1/chat/completions", &format!("{CHAT}}}")).await.json();
    let text = whole["choices"][0]["message"]["content"].as_str().expect("a text");
    let stop = &text[5..8];
    let before = &text[..text.find(stop).expect("it is in there")];
    let stop = serde_json::to_string(stop).expect("a string");
    rig.ended().await;
    let stopped = rig.post("/v1/chat/completions", &format!(r#"{CHAT},"stop":{stop}}}"#)).await;
    let stopped = stopped.json();
    assert_eq!(stopped["choices"][0]["message"]["content"], before);
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
    assert_eq!(stopped["usage"]["completion_tokens"], before.len() + 3);
    let (_, summary) = rig.ended().await;
    assert_eq!(summary.outcome, Outcome::Completed(Finish::Stop));
    assert_eq!(summary.usage.generated_tokens as usize, before.len() + 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn generation_ends_where_the_context_does() {
    let model = SimSettings { context: 16, stop: 0, ..SimSettings::default() };
    let rig = Rig::with(Setup { model, ..Setup::default() }).await;
    let ask = |fields: &str| format!(r#"{{"model":"sim","prompt":"0123456789",{fields}}}"#);
    for fields in [r#""max_tokens":16"#, r#""temperature":0"#] {
        let answer = rig.post("/v1/completions", &ask(fields)).await.json();
        assert_eq!(answer["choices"][0]["finish_reason"], "length");
        assert_eq!(answer["usage"]["prompt_tokens"], 11);
        assert_eq!(answer["usage"]["completion_tokens"], 5);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_id_is_the_clients_own_or_ours_and_in_every_answer() {
    let rig = Rig::start().await;
    for path in ["/health/live", "/v1/models", "/nowhere", "/metrics"] {
        let answer = rig.get(path).await;
        assert!(answer.header("x-request-id").is_some_and(|id| id.len() == 32), "{answer:?}");
    }
    let mut connection = rig.begin("/v1/chat/completions", "mine.1", &format!("{CHAT}}}")).await;
    let answer = connection.answer().await;
    assert_eq!(answer.header("x-request-id"), Some("mine.1"));
    assert_eq!(answer.json()["id"], "chatcmpl-mine.1");
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_see_the_headers_they_may_in_the_order_in_which_they_came() {
    let headers = vec!["x-tenant".into(), "x-tag".into(), "x-unsent".into()];
    let script = Script { headers, ..Script::default() };
    let mut rig = Rig::with(Setup::scripted(script)).await;
    let head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n";
    let sent = "X-Tag: b\r\nauthorization: secret\r\nx-tag: a\r\nx-tenant: \u{e9}\r\nx-tag: ";
    let body = r#"{"model":"sim","prompt":"x","max_tokens":1}"#;
    let rest = format!("\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let mut connection = rig.connect().await;
    connection.raw(&[head.as_bytes(), sent.as_bytes(), b"\xff", rest.as_bytes()].concat()).await;
    assert_eq!(connection.answer().await.status, 200);
    let seen = [("x-tag", "b"), ("x-tag", "a"), ("x-tenant", "\u{e9}")];
    assert_eq!(rig.facts().await.headers.0, seen.map(|(name, value)| (name.into(), value.into())));
}

#[tokio::test(flavor = "multi_thread")]
async fn models_are_listed_and_found_by_name() {
    let rig = Rig::start().await;
    assert_eq!(rig.get("/v1/models").await.json()["data"][0]["id"], "sim");
    assert_eq!(rig.get("/v1/models/sim").await.json()["object"], "model");
    assert_eq!(rig.get("/v1/models/org/other").await.code(), "model_not_found");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_may_be_used_again_as_soon_as_its_answer_is_there() {
    let rig = Rig::start().await;
    within(async {
        for _ in 0..50 {
            let mut connection =
                rig.begin("/v1/chat/completions", "again", &format!("{CHAT}}}")).await;
            assert_eq!(connection.answer().await.status, 200);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_serves_one_request_after_another() {
    let rig = Rig::start().await;
    let mut connection = rig.connect().await;
    for _ in 0..3 {
        let head = "GET /health/live HTTP/1.1\r\nhost: localhost\r\n\r\n";
        connection.raw(head.as_bytes()).await;
        assert_eq!(connection.line().await, "HTTP/1.1 200 OK");
        while !connection.line().await.is_empty() {}
        let body = r#"{"status":"live"}"#;
        assert_eq!(connection.exactly(body.len()).await, body);
    }
}
