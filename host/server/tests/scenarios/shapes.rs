//! Errors that no handler of ours decides on: they have the same shape as all others.

use interlock_request::ByteSize;
use interlock_server::ServerConfig;

use crate::rig::{Rig, Setup};
use crate::wire::Answer;

const GOOD: &str = r#"{"model":"sim","prompt":"x","max_tokens":1}"#;

fn has_shape(answer: &Answer, told: &str) {
    assert_eq!(answer.header("content-type"), Some("application/json"), "{told}: {answer:?}");
    assert!(answer.header("x-request-id").is_some(), "{told}: {answer:?}");
    let error = &answer.json()["error"];
    let texts = ["message", "type", "code"].map(|key| error[key].is_string());
    assert_eq!((texts, error.get("param").is_some()), ([true; 3], true), "{told}: {error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_request_are_refused_in_the_shape_of_all_errors() {
    let rig = Rig::start().await;
    let mut refused = 0.0;
    for head in [
        &b"G\x01T / HTTP/1.1\r\n\r\n"[..],
        b"GET / HTTP/9\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /\xff{} HTTP/1.1\r\n\x00: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\ncontent-length: x\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\ntransfer-encoding: nonsense\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    ] {
        let mut connection = rig.connect().await;
        connection.raw(head).await;
        let answer = connection.answer().await;
        let told = String::from_utf8_lossy(head);
        assert_eq!((answer.status, answer.code().as_str()), (400, "malformed_request"), "{told}");
        has_shape(&answer, &told);
        refused += 1.0;
        assert_eq!(rig.metric(r#"http_refusals_total{reason="malformed_request"}"#), refused);
        assert_eq!(rig.post("/v1/completions", GOOD).await.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_is_far_too_large_is_refused_with_its_limits() {
    let server =
        ServerConfig { header_max: ByteSize(1 << 20), headers_max: 8, ..ServerConfig::default() };
    let rig = Rig::with(Setup { server, ..Setup::default() }).await;
    let many = "x: 1\r\n".repeat(100);
    let long = format!("x: {}\r\n", "1".repeat(5 << 20));
    let url = "x".repeat(70_000);
    for (head, status, code, said) in [
        (format!("GET / HTTP/1.1\r\n{many}\r\n"), 431, "headers_too_large", "8 headers"),
        (format!("GET / HTTP/1.1\r\n{long}\r\n"), 431, "headers_too_large", "1048576 bytes"),
        (format!("GET /{url} HTTP/1.1\r\n\r\n"), 414, "url_too_long", "65534"),
    ] {
        let mut connection = rig.connect().await;
        connection.raw(head.as_bytes()).await;
        let answer = connection.answer().await;
        assert_eq!((answer.status, answer.code().as_str()), (status, code));
        has_shape(&answer, said);
        assert!(answer.body.contains(said), "{answer:?}");
        assert_eq!(rig.post("/v1/completions", GOOD).await.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_method_says_which_are_right() {
    let rig = Rig::start().await;
    for (method, path, allow) in [
        ("GET", "/v1/chat/completions", "POST"),
        ("OPTIONS", "/v1/completions", "POST"),
        ("PUT", "/v1/models", "GET,HEAD"),
        ("WEIRD", "/health/live", "GET,HEAD"),
        ("PATCH", "/v1/responses/x", "GET,HEAD,DELETE"),
    ] {
        let mut connection = rig.connect().await;
        connection.send(method, path, &[], "").await;
        let answer = connection.answer().await;
        assert_eq!((answer.status, answer.code().as_str()), (405, "method_not_allowed"), "{path}");
        assert_eq!(answer.header("allow"), Some(allow), "{method} {path}");
        has_shape(&answer, path);
    }
    for (path, status) in [("/nowhere", 404), ("/v1/completions", 405), ("/v1/models", 200)] {
        let mut connection = rig.connect().await;
        connection.send("HEAD", path, &[], "").await;
        let answer = connection.answer().await;
        assert_eq!((answer.status, answer.body.as_str()), (status, ""), "{path}");
        assert_eq!(answer.header("content-type"), Some("application/json"), "{path}");
    }
    for target in ["*", "localhost:80"] {
        let method = if target == "*" { "OPTIONS" } else { "CONNECT" };
        let mut connection = rig.connect().await;
        connection.send(method, target, &[], "").await;
        let answer = connection.answer().await;
        assert_eq!((answer.status, answer.code().as_str()), (404, "unknown_url"), "{target}");
        has_shape(&answer, target);
    }
}
