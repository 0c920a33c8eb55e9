//! Answers that go on: `ignore_eos` and `min_tokens`.

use interlock_request::{Finish, Outcome};
use interlock_sim::SimSettings;
use serde_json::Value;

use crate::rig::{Rig, Setup};

/// Each endpoint, a request's words there, and what it calls its limit.
const ENDPOINTS: [(&str, &str, &str); 3] = [
    ("/v1/chat/completions", r#""messages":[{"role":"user","content":"hello"}]"#, "max_tokens"),
    ("/v1/completions", r#""prompt":"hello""#, "max_tokens"),
    ("/v1/responses", r#""input":"hello""#, "max_output_tokens"),
];

fn ask(words: &str, fields: &str) -> String {
    format!(r#"{{"model":"sim","temperature":0,{words},{fields}}}"#)
}

fn text(answer: &Value) -> &str {
    let text = answer["choices"][0]["message"]["content"].as_str();
    let text = text.or(answer["choices"][0]["text"].as_str());
    text.or(answer["output"][0]["content"][0]["text"].as_str()).expect("a text")
}

fn generated(answer: &Value) -> u64 {
    let usage = &answer["usage"];
    usage["completion_tokens"].as_u64().or(usage["output_tokens"].as_u64()).expect("a number")
}

/// A model that ends at once, if it may.
async fn terse() -> Rig {
    let model = SimSettings { stop: 1, ..SimSettings::default() };
    Rig::with(Setup { model, ..Setup::default() }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_whose_end_is_ignored_goes_on_to_the_limit() {
    let mut rig = terse().await;
    for (path, words, limit) in ENDPOINTS {
        let answer = rig.post(path, &ask(words, &format!(r#""{limit}":5"#))).await.json();
        assert_eq!((generated(&answer), text(&answer)), (1, ""), "{path}");
        assert_eq!(rig.ended().await.1.outcome, Outcome::Completed(Finish::Stop));

        let fields = format!(r#""{limit}":5,"ignore_eos":true"#);
        let answer = rig.post(path, &ask(words, &fields)).await.json();
        assert_eq!((generated(&answer), text(&answer)), (5, ""), "an end has no text, {path}");
        assert_eq!(rig.ended().await.1.outcome, Outcome::Completed(Finish::Length));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ignored_end_does_not_keep_a_stop_string_from_ending_the_text() {
    let rig = Rig::start().await;
    let (path, words, _) = ENDPOINTS[1];
    let whole = rig.post(path, &ask(words, r#""max_tokens":20"#)).await.json();
    let text = text(&whole);
    let stop = &text[5..8];
    let before = text.find(stop).expect("it is in there");
    let fields = format!(r#""max_tokens":20,"ignore_eos":true,"stop":"{stop}""#);
    let stopped = rig.post(path, &ask(words, &fields)).await.json();
    assert_eq!(stopped["choices"][0]["text"], text[..before]);
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_string_counts_once_the_least_tokens_are_generated() {
    let rig = Rig::start().await;
    let (path, words, _) = ENDPOINTS[0];
    let whole = rig.post(path, &ask(words, r#""max_tokens":20"#)).await.json();
    let whole = text(&whole);
    // One byte is one token, so this one is complete with token 8, if it does not come earlier.
    let stop = &whole[5..8];
    assert_eq!(whole.find(stop), Some(5), "of {whole:?}");
    let with = |least: u32| {
        ask(words, &format!(r#""max_tokens":20,"stop":"{stop}","min_tokens":{least}"#))
    };
    for least in [0, 7] {
        let answer = rig.post(path, &with(least)).await.json();
        assert_eq!(text(&answer), &whole[..5], "completed by token 8, after the first {least}");
        assert_eq!(generated(&answer), 8);
    }
    let answer = rig.post(path, &with(8)).await.json();
    let next = whole[6..].find(stop).map_or(20, |at| 6 + at);
    assert_eq!(text(&answer), &whole[..next], "complete within the first 8");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_would_end_is_kept_going_for_the_least_tokens() {
    let mut rig = terse().await;
    for (path, words, limit) in ENDPOINTS {
        let fields = format!(r#""{limit}":9,"min_tokens":5"#);
        let answer = rig.post(path, &ask(words, &fields)).await.json();
        assert_eq!((generated(&answer), text(&answer).len()), (6, 5), "five, then the end, {path}");
        assert_eq!(rig.ended().await.1.outcome, Outcome::Completed(Finish::Stop));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn more_at_least_than_at_most_is_refused_with_both_numbers() {
    let model = SimSettings { context: 32, stop: 0, ..SimSettings::default() };
    let rig = Rig::with(Setup { model, ..Setup::default() }).await;
    let refusal = async |path: &str, words: &str, fields: &str| {
        let answer = rig.post(path, &ask(words, fields)).await;
        assert_eq!((answer.status, answer.code().as_str()), (400, "invalid_value"), "{fields}");
        let error = answer.json()["error"].clone();
        assert_eq!(error["param"], "min_tokens");
        assert_eq!(error["type"], "invalid_request_error");
        error["message"].as_str().expect("a message").to_owned()
    };
    for (path, words, limit) in ENDPOINTS {
        let said = refusal(path, words, &format!(r#""{limit}":5,"min_tokens":6"#)).await;
        let expected = format!("min_tokens must be at most 5, {limit} of the same request, got 6");
        assert_eq!(said, expected);
        let good = ask(words, &format!(r#""{limit}":5,"min_tokens":5"#));
        assert_eq!(rig.post(path, &good).await.status, 200);
    }
    // Behind 9 tokens of prompt there is room for 23.
    let (chat, words, _) = ENDPOINTS[0];
    let room = "min_tokens must be at most 23, what this model's context leaves behind the prompt";
    for (fields, got) in [
        (r#""min_tokens":24"#, "24"),
        (r#""min_tokens":24,"max_tokens":30"#, "24"),
        (r#""min_tokens":99999999999999999999"#, "99999999999999999999"),
    ] {
        assert_eq!(refusal(chat, words, fields).await, format!("{room}, got {got}"));
    }
    assert_eq!(rig.post(chat, &ask(words, r#""min_tokens":23"#)).await.status, 200);
    // This endpoint ends after 16 tokens unless it is told otherwise.
    let (completions, words, _) = ENDPOINTS[1];
    assert_eq!(
        refusal(completions, words, r#""min_tokens":17"#).await,
        "min_tokens must be at most 16, max_tokens where a request does not say it, got 17"
    );
}
