//! Prompts and answers as texts: where an answer's text begins, what ends it, and how a chat becomes a
//! prompt.

use std::sync::Arc;

use interlock_request::{Finish, Outcome};
use interlock_sim::SimSettings;
use interlock_text::{GgufTokenizer, TextModel, TextParts, TokenizerSource};
use serde_json::{Map, Value, json};

use crate::rig::{Rig, Setup};

/// A vocabulary in SentencePiece's way. The letters that the simulated model draws are words with
/// the space before them, all else is spelled in bytes, and 256 is special.
fn words() -> GgufTokenizer {
    let mut tokens: Vec<String> = (0..512).map(|id| format!("unused {id}")).collect();
    let mut token_types = vec![1; 512];
    for letter in b'a'..=b'z' {
        tokens[usize::from(letter)] = format!("\u{2581}{}", char::from(letter));
    }
    for byte in 0..=u8::MAX {
        let id = if byte < b' ' { usize::from(byte) } else { 256 + usize::from(byte) };
        tokens[id] = format!("<0x{byte:02X}>");
        token_types[id] = 6;
    }
    tokens[usize::from(b' ')] = "\u{2581}".to_owned();
    tokens[256] = "<|end|>".to_owned();
    token_types[256] = 3;
    let scores = vec![0.0; 512];
    let model = "llama".to_owned();
    GgufTokenizer { model, tokens, token_types, scores, ..GgufTokenizer::default() }
}

fn text_model(template: &str) -> Arc<TextModel> {
    let parts = TextParts {
        tokenizer: TokenizerSource::Gguf(words()),
        chat_template: Some(template.to_owned()),
        special_tokens: Map::new(),
        eos: vec![256],
    };
    Arc::new(TextModel::new(parts).expect("a text model"))
}

async fn rig_of_words() -> Rig {
    let template = "{{ messages[-1].content }}{% if add_generation_prompt %}>>{% endif %}{% if \
                    thinking is defined and not thinking %}no thoughts{% endif %}";
    Rig::with(Setup { text: text_model(template), ..Setup::default() }).await
}

fn body(fields: &str) -> String {
    format!(r#"{{"model":"sim","temperature":0,{fields}}}"#)
}

fn text(answer: &Value) -> String {
    let choice = &answer["choices"][0];
    let text = choice["message"]["content"].as_str().or(choice["delta"]["content"].as_str());
    text.or(choice["text"].as_str()).unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn prompt_and_answer_together_are_the_text_that_the_model_wrote() {
    let rig = rig_of_words().await;
    for prompt in [json!("The capital is"), json!([340, 104, 105])] {
        let fields = format!(r#""prompt":{prompt},"max_tokens":4,"logprobs":0"#);
        let answer = rig.post("/v1/completions", &body(&fields)).await.json();
        let told = &answer["choices"][0]["logprobs"];
        let tokens: Vec<&str> = told["tokens"]
            .as_array()
            .unwrap()
            .iter()
            .map(|token| token.as_str().unwrap())
            .collect();
        assert!(tokens[0].starts_with(' '), "{tokens:?}");
        assert_eq!(text(&answer), tokens.concat(), "after {prompt}");
        let mut at = 0;
        for (token, offset) in tokens.iter().zip(told["text_offset"].as_array().unwrap()) {
            assert_eq!(offset, at, "{told}");
            at += token.len();
        }
        let streamed =
            rig.post("/v1/completions", &body(&format!(r#"{fields},"stream":true"#))).await;
        let events = streamed.events();
        let chunks = events.iter().filter_map(|event| serde_json::from_str::<Value>(event).ok());
        assert_eq!(chunks.map(|chunk| self::text(&chunk)).collect::<String>(), text(&answer));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_in_a_chat_is_what_the_model_wrote_behind_the_prompt() {
    let rig = rig_of_words().await;
    let fields = r#""messages":[{"role":"user","content":"hi"}],"max_tokens":2"#;
    let answer = rig.post("/v1/chat/completions", &body(fields)).await.json();
    assert!(text(&answer).starts_with(' '), "{answer}");
}

/// Each endpoint and a request there, up to twelve tokens long.
const ENDPOINTS: [(&str, &str); 3] = [
    ("/v1/chat/completions", r#""messages":[{"role":"user","content":"hello"}],"max_tokens":12"#),
    ("/v1/completions", r#""prompt":"hello","max_tokens":12"#),
    ("/v1/responses", r#""input":"hello","max_output_tokens":12"#),
];

fn whole(answer: &Value) -> String {
    let text = answer["output"][0]["content"][0]["text"].as_str();
    text.map_or_else(|| self::text(answer), str::to_owned)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_token_ends_the_answer_and_is_not_part_of_it() {
    let mut rig = Rig::start().await;
    for (path, fields) in ENDPOINTS {
        let plain = whole(&rig.post(path, &body(fields)).await.json());
        rig.ended().await;
        let stop = plain.as_bytes()[6];
        let before = &plain[..plain.find(char::from(stop)).unwrap()];
        for more in ["", r#","ignore_eos":true"#] {
            let fields = format!(r#"{fields},"stop_token_ids":[400,{stop}]{more}"#);
            let answer = rig.post(path, &body(&fields)).await.json();
            assert_eq!(whole(&answer), before, "{path}{more}");
            let (_, account) = rig.ended().await;
            assert_eq!(account.outcome, Outcome::Completed(Finish::Stop));
            assert_eq!(account.usage.generated_tokens as usize, before.len() + 1);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_token_is_not_drawn_before_the_least_tokens_are() {
    let rig = Rig::start().await;
    let (path, fields) = ENDPOINTS[1];
    let plain = whole(&rig.post(path, &body(fields)).await.json());
    let stop = plain.as_bytes()[1];
    let fields = format!(r#"{fields},"stop_token_ids":[{stop}],"min_tokens":5"#);
    let answer = whole(&rig.post(path, &body(&fields)).await.json());
    assert!(answer.len() >= 5 && !answer.contains(char::from(stop)), "{answer:?} of {plain:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_token_that_the_model_has_not_is_refused_with_the_bound() {
    let rig = Rig::start().await;
    for (given, code, message) in [
        (
            "[7,512]",
            "invalid_value",
            "stop_token_ids[1] must be a token id below 512, this model's vocabulary, got 512",
        ),
        (
            "[-1]",
            "invalid_value",
            "stop_token_ids[0] must be an integer from 0 to 4294967295, got -1",
        ),
        (
            r#"["seven"]"#,
            "invalid_type",
            r#"stop_token_ids[0] must be an integer from 0 to 4294967295, got "seven""#,
        ),
        ("7", "invalid_type", "stop_token_ids must be an array, got 7"),
    ] {
        for (path, fields) in ENDPOINTS {
            let fields = format!(r#"{fields},"stop_token_ids":{given}"#);
            let answer = rig.post(path, &body(&fields)).await;
            assert_eq!((answer.status, answer.code().as_str()), (400, code), "{path}");
            assert_eq!(answer.json()["error"]["message"], message, "{path}");
        }
    }
    let many = format!("{:?}", [1; 65]);
    let (path, fields) = ENDPOINTS[1];
    let answer = rig.post(path, &body(&format!(r#"{fields},"stop_token_ids":{many}"#))).await;
    let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(
        message.starts_with("stop_token_ids must be at most 64 token ids, got [1"),
        "{message}"
    );
    assert_eq!(rig.post(path, &body(fields)).await.status, 200, "the next is served");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_string_that_is_a_special_token_ends_the_text_there() {
    // Ends at every tenth token or so, if it may.
    let model = SimSettings { stop: 10, ..SimSettings::default() };
    let mut rig = Rig::with(Setup { model, ..Setup::default() }).await;
    for (path, fields) in ENDPOINTS {
        let fields = fields.replace("12", "200");
        let ended = whole(&rig.post(path, &body(&fields)).await.json());
        let (_, own) = rig.ended().await;
        assert!(own.usage.generated_tokens < 200, "it ends by itself");
        let ignoring = format!(r#"{fields},"ignore_eos":true"#);
        let on = whole(&rig.post(path, &body(&ignoring)).await.json());
        assert_eq!(rig.ended().await.1.usage.generated_tokens, 200);
        assert!(on.starts_with(&ended) && on.len() > ended.len(), "{on:?} goes on");

        let stopped = format!(r#"{ignoring},"stop":["never","<eos>"]"#);
        let stopped = rig.post(path, &body(&stopped)).await.json();
        assert_eq!(whole(&stopped), ended, "{path}");
        let (_, account) = rig.ended().await;
        assert_eq!((account.outcome, account.usage), (own.outcome, own.usage), "{path}");

        let streamed = format!(r#"{ignoring},"stop":"<eos>","stream":true"#);
        let streamed = rig.post(path, &body(&streamed)).await;
        assert_eq!(rig.ended().await.1.usage, own.usage, "{path}");
        let events = streamed.events();
        let chunks = events.iter().filter_map(|event| serde_json::from_str::<Value>(event).ok());
        let delta =
            |chunk: Value| chunk["delta"].as_str().map_or_else(|| text(&chunk), str::to_owned);
        assert_eq!(chunks.map(delta).collect::<String>(), ended, "{path}");

        // A longer one holds its beginning back, and takes it along.
        let last = &ended[ended.len() - 2..];
        let longer = format!(r#"{ignoring},"stop":"{last}<eos>""#);
        let longer = rig.post(path, &body(&longer)).await.json();
        assert_eq!(whole(&longer), ended[..ended.len() - 2], "{path}");
        rig.ended().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chats_prompt_ends_where_the_client_says() {
    let rig = rig_of_words().await;
    let prompt_tokens = async |fields: &str| {
        let words = r#""messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"so"}],"max_tokens":1"#;
        let answer = rig.post("/v1/chat/completions", &body(&format!("{words}{fields}"))).await;
        assert_eq!(answer.status, 200, "{fields}: {}", answer.json());
        answer.json()["usage"]["prompt_tokens"].as_u64().unwrap()
    };
    let plain = prompt_tokens("").await;
    for (fields, more) in [
        (r#","add_generation_prompt":true"#, 0),
        (r#","add_generation_prompt":false"#, -2),
        (r#","continue_final_message":true"#, -2),
        (r#","continue_final_message":true,"add_generation_prompt":false"#, -2),
        (r#","continue_final_message":false,"chat_template_kwargs":{}"#, 0),
        (r#","chat_template_kwargs":{"thinking":true}"#, 0),
        (r#","chat_template_kwargs":{"thinking":false}"#, 11),
        (r#","chat_template_kwargs":null"#, 0),
    ] {
        assert_eq!(Some(prompt_tokens(fields).await), plain.checked_add_signed(more), "{fields}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_made_of_a_chat_is_refused_by_its_field() {
    let rig =
        Rig::with(Setup { text: text_model("{{ messages[0].content }}"), ..Setup::default() })
            .await;
    let nested = format!(r#"{{"a":{}1{}}}"#, "[".repeat(16), "]".repeat(16));
    let long = format!(r#"{{"a":"{}"}}"#, "x".repeat(1 << 16));
    for (fields, param, says) in [
        (
            r#""continue_final_message":true"#.to_owned(),
            "messages",
            "the last message cannot be continued (continue_final_message)",
        ),
        (
            r#""continue_final_message":true,"add_generation_prompt":true"#.to_owned(),
            "add_generation_prompt",
            "must be false or absent when continue_final_message is true, got true",
        ),
        (
            r#""continue_final_message":"maybe""#.to_owned(),
            "continue_final_message",
            r#"must be true or false, got "maybe""#,
        ),
        (
            r#""chat_template_kwargs":["thinking"]"#.to_owned(),
            "chat_template_kwargs",
            "must be an object, got [",
        ),
        (
            r#""chat_template_kwargs":{"bos_token":"x"}"#.to_owned(),
            "chat_template_kwargs",
            "must be without bos_token: special tokens are the model's own",
        ),
        (
            format!(r#""chat_template_kwargs":{nested}"#),
            "chat_template_kwargs",
            "must be nested at most 16 levels deep",
        ),
        (
            format!(r#""chat_template_kwargs":{long}"#),
            "chat_template_kwargs",
            "must be at most 65536 bytes long",
        ),
    ] {
        let words =
            r#""messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"so"}]"#;
        let answer = rig.post("/v1/chat/completions", &body(&format!("{words},{fields}"))).await;
        let error = answer.json()["error"].clone();
        assert_eq!((answer.status, error["param"].as_str()), (400, Some(param)), "{error}");
        assert!(error["message"].as_str().unwrap().contains(says), "{error}");
    }
}
