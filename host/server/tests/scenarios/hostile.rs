//! What bad requests get: the right status, in OpenAI's shape, and the next one is served.

use expect_test::expect;
use interlock_sim::SimSettings;

use crate::rig::{Rig, Setup};

/// `METHOD path body`, one a line, and what came back.
async fn told(rig: &Rig, requests: &[(&str, &str, &str)]) -> String {
    let mut told = String::new();
    for (method, path, body) in requests {
        let mut connection = rig.connect().await;
        connection.send(method, path, &[("x-request-id", "r")], body).await;
        let answer = connection.answer().await;
        assert_eq!(answer.header("content-type"), Some("application/json"), "{answer:?}");
        let error = &answer.json()["error"];
        let [code, param, message] = ["code", "param", "message"]
            .map(|field| error[field].as_str().unwrap_or("-").to_owned());
        let status = answer.status;
        told.push_str(&format!("{method} {path} {body}\n    {status} {code} {param}: {message}\n"));
        assert_eq!(rig.post("/v1/completions", GOOD).await.status, 200, "the next is served");
    }
    told
}

const GOOD: &str = r#"{"model":"sim","prompt":"x","max_tokens":1}"#;

#[tokio::test(flavor = "multi_thread")]
async fn what_this_model_cannot_take_is_named_with_its_limit() {
    let model = SimSettings { context: 16, stop: 0, ..SimSettings::default() };
    let rig = Rig::with(Setup { model, ..Setup::default() }).await;
    let completions = |body| ("POST", "/v1/completions", body);
    let told = told(
        &rig,
        &[
            completions("not json"),
            completions(r#"{"model":"gpt-nobody","prompt":"x"}"#),
            completions(r#"{"model":"sim","prompt":"0123456789abcdef"}"#),
            completions(r#"{"model":"sim","prompt":"x","max_tokens":17}"#),
            completions(r#"{"model":"sim","prompt":"x","max_tokens":99999999999999999999}"#),
            completions(r#"{"model":"sim","prompt":[1,512]}"#),
            completions(r#"{"model":"sim","prompt":[[600]]}"#),
            completions(r#"{"model":"sim","prompt":"x","logit_bias":{"512":1}}"#),
            ("POST", "/v1/chat/completions", r#"{"model":"sim","messages":[]}"#),
            (
                "POST",
                "/v1/chat/completions",
                r#"{"model":"sim","messages":[{"role":"user","content":"long enough"}],"max_completion_tokens":20}"#,
            ),
            ("POST", "/v1/responses", r#"{"model":"sim","input":"much too long for it"}"#),
        ],
    )
    .await;
    expect![[r#"
        POST /v1/completions not json
            400 invalid_json -: the body is not valid JSON: expected ident at line 1 column 2
        POST /v1/completions {"model":"gpt-nobody","prompt":"x"}
            404 model_not_found model: the model "gpt-nobody" does not exist; this host serves "sim"
        POST /v1/completions {"model":"sim","prompt":"0123456789abcdef"}
            400 context_length_exceeded prompt: prompt has at least 17 tokens, which leaves no room for an answer: this model's context is 16 tokens
        POST /v1/completions {"model":"sim","prompt":"x","max_tokens":17}
            400 invalid_value max_tokens: max_tokens must be at most 16, this model's context, got 17
        POST /v1/completions {"model":"sim","prompt":"x","max_tokens":99999999999999999999}
            400 invalid_value max_tokens: max_tokens must be at most 16, this model's context, got 99999999999999999999
        POST /v1/completions {"model":"sim","prompt":[1,512]}
            400 invalid_value prompt[1]: prompt[1] must be a token id below 512, this model's vocabulary, got 512
        POST /v1/completions {"model":"sim","prompt":[[600]]}
            400 invalid_value prompt[0][0]: prompt[0][0] must be a token id below 512, this model's vocabulary, got 600
        POST /v1/completions {"model":"sim","prompt":"x","logit_bias":{"512":1}}
            400 invalid_value logit_bias.512: logit_bias.512 must be named by a token id below 512, this model's vocabulary, got 512
        POST /v1/chat/completions {"model":"sim","messages":[]}
            400 invalid_value messages: messages must be an array of at least one message, got []
        POST /v1/chat/completions {"model":"sim","messages":[{"role":"user","content":"long enough"}],"max_completion_tokens":20}
            400 invalid_value max_completion_tokens: max_completion_tokens must be at most 16, this model's context, got 20
        POST /v1/responses {"model":"sim","input":"much too long for it"}
            400 context_length_exceeded input: input has at least 24 tokens, which leaves no room for an answer: this model's context is 16 tokens
    "#]].assert_eq(&told);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_said_in_the_same_shape() {
    let rig = Rig::start().await;
    let told = told(
        &rig,
        &[
            ("GET", "/v1/nothing", ""),
            ("GET", "/v1/chat/completions", ""),
            ("DELETE", "/v1/models", ""),
            ("POST", "/v1/requests/nobody/cancel", ""),
            ("POST", "/v1/requests/a%2Fb/cancel", ""),
            ("POST", "/v1/requests/%ff/cancel", ""),
            ("GET", "/v1/responses/resp_nobody", ""),
            ("GET", "/v1/models/other", ""),
            ("GET", "/v1/models/%ff", ""),
            ("GET", "/v1/responses/%ff", ""),
            ("DELETE", "/v1/responses/%ff", ""),
            ("POST", "/v1/responses/%ff/cancel", ""),
            ("GET", "/v1/requests/%C3%28", ""),
        ],
    )
    .await;
    expect![[r#"
        GET /v1/nothing 
            404 unknown_url -: nothing is served at /v1/nothing
        GET /v1/chat/completions 
            405 method_not_allowed -: this URL does not take this method
        DELETE /v1/models 
            405 method_not_allowed -: this URL does not take this method
        POST /v1/requests/nobody/cancel 
            404 request_not_found -: no request "nobody" is in flight, and no answer to one is kept
        POST /v1/requests/a%2Fb/cancel 
            404 request_not_found -: no request "a/b" is in flight, and no answer to one is kept
        POST /v1/requests/%ff/cancel 
            404 request_not_found -: no request "%ff" is in flight, and no answer to one is kept
        GET /v1/responses/resp_nobody 
            404 request_not_found -: no answer "resp_nobody" is kept: those are of requests in the background, and of those that went on without their client
        GET /v1/models/other 
            404 model_not_found model: the model "other" does not exist; this host serves "sim"
        GET /v1/models/%ff 
            404 model_not_found model: the model "%ff" does not exist; this host serves "sim"
        GET /v1/responses/%ff 
            404 request_not_found -: no answer "%ff" is kept: those are of requests in the background, and of those that went on without their client
        DELETE /v1/responses/%ff 
            404 request_not_found -: no answer "%ff" is kept: those are of requests in the background, and of those that went on without their client
        POST /v1/responses/%ff/cancel 
            404 request_not_found -: no answer "%ff" is kept: those are of requests in the background, and of those that went on without their client
        GET /v1/requests/%C3%28 
            404 request_not_found -: no answer "%C3%28" is kept: those are of requests in the background, and of those that went on without their client
    "#]]
    .assert_eq(&told);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_cannot_be_one_is_refused() {
    let rig = Rig::start().await;
    for id in ["a b", "a/b", "", &"x".repeat(129)] {
        let mut connection = rig.begin("/v1/completions", id, GOOD).await;
        let answer = connection.answer().await;
        assert_eq!((answer.status, answer.code().as_str()), (400, "invalid_request_id"), "{id}");
        assert_eq!(answer.header("x-request-id").map(str::len), Some(32), "it gets one of ours");
    }
    for path in ["/health/live", "/health/ready", "/metrics"] {
        let mut connection = rig.connect().await;
        connection.send("GET", path, &[("x-request-id", "a b")], "").await;
        let answer = connection.answer().await;
        assert_eq!(answer.status, 200, "who watches us is answered: {answer:?}");
        assert_eq!(answer.header("x-request-id").map(str::len), Some(32));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_http_hurt_nobody() {
    let rig = Rig::start().await;
    for bytes in [&b"\x16\x03\x01\x02\x00\x01"[..], b"GET\r\n\r\n", b"POST / HTTP/9\r\n\r\n"] {
        let mut connection = rig.connect().await;
        connection.raw(bytes).await;
        connection.raw(b"\r\n\r\n").await;
        let _ = connection.rest().await;
        assert_eq!(rig.post("/v1/completions", GOOD).await.status, 200);
    }
}
