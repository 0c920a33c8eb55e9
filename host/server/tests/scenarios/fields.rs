//! Request fields and paths, as clients of other servers write them.

use interlock_policy_api::{Body, Facts, Transformed};
use interlock_sim::SimSettings;

use crate::rig::{Rig, Script, Setup};

/// Each endpoint and the words of a good request there.
const ENDPOINTS: [(&str, &str); 3] = [
    ("/v1/chat/completions", r#""messages":[{"role":"user","content":"x"}],"max_tokens":3"#),
    ("/v1/completions", r#""prompt":"x","max_tokens":3"#),
    ("/v1/responses", r#""input":"x","max_output_tokens":3"#),
];

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_names_the_fields_that_were_ignored_because_nobody_knows_them() {
    let rig = Rig::start().await;
    for (path, words) in ENDPOINTS {
        for more in ["", r#","stream":true"#] {
            let body = format!(r#"{{"model":"sim",{words}{more},"user":"u","frob":1,"a b":2}}"#);
            let answer = rig.post(path, &body).await;
            assert_eq!(answer.status, 200, "{answer:?}");
            assert_eq!(answer.header("x-ignored-fields"), Some("frob, ..."), "{path} {more}");
        }
        let answer = rig.post(path, &format!(r#"{{"model":"sim",{words},"user":"u"}}"#)).await;
        assert_eq!(answer.header("x-ignored-fields"), None, "{path}: all of it is known");
    }
    let background = r#"{"model":"sim","input":"x","background":true,"frob":1}"#;
    let answer = rig.post("/v1/responses", background).await;
    assert_eq!(answer.header("x-ignored-fields"), Some("frob"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_hears_of_its_own_unknown_fields_and_not_of_a_policys() {
    let transform = |_: &Facts, body: &Body| {
        body.set("/policys", "1").expect("a body");
        Transformed::Keep
    };
    let script = Script { transform: Some(Box::new(transform)), ..Script::default() };
    let rig = Rig::with(Setup::scripted(script)).await;
    let body = r#"{"model":"sim","prompt":"x","max_tokens":1,"clients":1}"#;
    let answer = rig.post("/v1/completions", body).await;
    assert_eq!((answer.status, answer.header("x-ignored-fields")), (200, Some("clients")));
}

/// Before, each of these was answered with free text, or the whole of what it says was lost.
#[tokio::test(flavor = "multi_thread")]
async fn no_request_is_answered_without_what_it_asks_for() {
    let rig = Rig::start().await;
    let asked = [
        ("guided_json", r#"{"type":"object"}"#),
        ("guided_choice", r#"["yes","no"]"#),
        ("guided_regex", r#""[0-9]+""#),
        ("guided_grammar", r#""root ::= x""#),
        ("structured_outputs", r#"{"choice":["yes","no"]}"#),
        ("json_schema", r#"{"type":"object"}"#),
        ("grammar", r#""root ::= x""#),
        ("bad_words", r#"["bad"]"#),
        ("prompt_logprobs", "1"),
        ("truncate_prompt_tokens", "8"),
        ("echo", "true"),
        ("suffix", r#""end""#),
        ("mirostat", "2"),
        ("typical_p", "0.5"),
        ("lora", r#"[{"id":0,"scale":1}]"#),
        ("mm_processor_kwargs", r#"{"x":1}"#),
        ("best_of", "2"),
        ("use_beam_search", "true"),
        ("reasoning_effort", r#""high""#),
        ("tools", r#"[{"type":"function"}]"#),
        ("response_format", r#"{"type":"json_object"}"#),
    ];
    for (path, words) in ENDPOINTS {
        for (name, value) in asked {
            let body = format!(r#"{{"model":"sim",{words},"{name}":{value}}}"#);
            let answer = rig.post(path, &body).await;
            assert_eq!(answer.status, 400, "{path} {name}: {answer:?}");
            assert_eq!(answer.code(), "unsupported_parameter", "{path} {name}");
            let error = answer.json()["error"].clone();
            assert!(error["param"].as_str().is_some_and(|it| it.starts_with(name)), "{error}");
            assert_eq!(error["type"], "invalid_request_error");
        }
        let next = rig.post(path, &format!(r#"{{"model":"sim",{words}}}"#)).await;
        assert_eq!(next.status, 200, "{path}: the next is served");
    }
}

/// The bodies are what each server's own clients send, with all its defaults written out.
#[tokio::test(flavor = "multi_thread")]
async fn clients_of_other_servers_are_served_as_they_are() {
    let rig = Rig::start().await;
    let messages = r#""messages":[{"role":"user","content":"x"}]"#;
    let vllm = r#""n":1,"best_of":1,"use_beam_search":false,"top_k":-1,"min_p":0.0,
        "repetition_penalty":1.0,"length_penalty":1.0,"early_stopping":false,"ignore_eos":false,
        "min_tokens":0,"skip_special_tokens":true,"spaces_between_special_tokens":true,"seed":null,
        "stop":[],"logit_bias":{},"guided_json":null,"guided_choice":null,"prompt_logprobs":null,
        "truncate_prompt_tokens":null,"include_stop_str_in_output":false,"bad_words":[],
        "echo":false,"priority":0,"max_tokens":8.0"#;
    let llama_cpp = r#""n_predict":8,"seed":-1,"cache_prompt":true,"samplers":"","top_k":40,
        "typical_p":1,"repeat_last_n":64,"repeat_penalty":1,"presence_penalty":0,"mirostat":0,
        "mirostat_tau":5,"mirostat_eta":0.1,"xtc_probability":0,"xtc_threshold":0.1,
        "dry_multiplier":0,"dry_base":1.75,"dry_allowed_length":2,"dry_penalty_last_n":-1,
        "dynatemp_range":0,"dynatemp_exponent":1,"grammar":"","n_probs":0,"min_keep":0,
        "logit_bias":[],"stop":"","id_slot":-1,"n_keep":0,"timings_per_token":false"#;
    let mlx_lm = r#""max_tokens":8,"repetition_penalty":1,"repetition_context_size":20,
        "logit_bias":null,"logprobs":false,"xtc_probability":0.0,"xtc_threshold":0.1,
        "draft_model":"default_model","num_draft_tokens":3,"adapters":null,"temperature":0,
        "role_mapping":null"#;
    let openai = r#""max_completion_tokens":8,"store":true,"metadata":{"a":"b"},"user":"u",
        "service_tier":"auto","prompt_cache_key":"k","safety_identifier":"s","verbosity":"medium",
        "parallel_tool_calls":true,"tools":[],"tool_choice":"none","modalities":["text"],
        "prediction":{"type":"content","content":"y"},"response_format":{"type":"text"},
        "temperature":1,"logprobs":false,"top_logprobs":null,"audio":null"#;
    for (server, fields) in
        [("vllm", vllm), ("llama.cpp", llama_cpp), ("mlx_lm", mlx_lm), ("openai", openai)]
    {
        let body = format!(r#"{{"model":"sim",{messages},{fields}}}"#);
        let answer = rig.post("/v1/chat/completions", &body).await;
        assert_eq!(answer.status, 200, "{server}: {answer:?}");
        assert_eq!(answer.json()["usage"]["completion_tokens"], 8, "{server}");
        assert_eq!(answer.header("x-ignored-fields"), None, "{server}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_limit_is_what_minus_one_says_by_each_of_its_names() {
    let model = SimSettings { context: 32, stop: 0, ..SimSettings::default() };
    let rig = Rig::with(Setup { model, ..Setup::default() }).await;
    for name in ["max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict"] {
        let body = format!(r#"{{"model":"sim","prompt":"x","{name}":-1}}"#);
        let usage = rig.post("/v1/completions", &body).await.json()["usage"].clone();
        assert_eq!(usage["total_tokens"], 32, "{name}: up to the context's end, {usage}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_usual_spellings_of_a_path_are_that_path() {
    let rig = Rig::start().await;
    for (path, words) in ENDPOINTS {
        let body = format!(r#"{{"model":"sim",{words}}}"#);
        let short = path.trim_start_matches("/v1");
        for spelling in [short, &format!("{path}/"), &format!("/{path}"), &format!("/v1/{short}")] {
            let answer = rig.post(spelling, &body).await;
            assert_eq!(answer.status, 200, "{spelling}: {answer:?}");
        }
    }
    let models = rig.get("/v1/models").await.body;
    for spelling in ["/models", "/models/", "/v1/models/", "//v1/models?limit=1"] {
        assert_eq!(rig.get(spelling).await.body, models, "{spelling}");
    }
    assert_eq!(rig.get("/models/sim").await.body, rig.get("/v1/models/sim").await.body);
    for spelling in ["/health", "/v1/health", "/health/"] {
        let answer = rig.get(spelling).await;
        assert_eq!((answer.status, &answer.json()["status"]), (200, &"ready".into()), "{spelling}");
    }
    let unknown = rig.get("/completion/").await;
    assert_eq!((unknown.status, unknown.code().as_str()), (404, "unknown_url"));
}

/// What clients and proxies add by themselves.
#[tokio::test(flavor = "multi_thread")]
async fn headers_that_mean_nothing_here_are_harmless() {
    let rig = Rig::start().await;
    let (path, words) = ENDPOINTS[0];
    let body = format!(r#"{{"model":"sim",{words}}}"#);
    let length = body.len();
    for header in [
        "authorization: Bearer none",
        "openai-organization: o\r\nopenai-project: p\r\nopenai-beta: assistants=v2",
        "x-stainless-lang: python\r\nx-stainless-retry-count: 0",
        "accept: text/event-stream, application/json;q=0.5, */*",
        "accept-encoding: gzip, br, zstd",
        "content-type: application/json; charset=UTF-8",
        "content-type: text/plain",
        // Java's client asks for HTTP/2 on every plain connection.
        "upgrade: h2c\r\nhttp2-settings: AAEAAEAAAAIAAAAA",
        "expect: 100-continue",
        "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\ncookie: a=b",
    ] {
        let mut connection = rig.connect().await;
        let connection_header =
            if header.starts_with("upgrade") { "upgrade, http2-settings, close" } else { "close" };
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\n{header}\r\nconnection: \
             {connection_header}\r\ncontent-length: {length}\r\n\r\n"
        );
        connection.raw((head + &body).as_bytes()).await;
        if header.starts_with("expect") {
            connection.until("100 Continue").await;
            assert_eq!(connection.line().await, "", "its head has nothing else");
        }
        let answer = connection.answer().await;
        assert_eq!(answer.status, 200, "{header}: {answer:?}");
    }
}
