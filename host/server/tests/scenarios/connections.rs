//! Connections that are kept: between requests, and while a stream has nothing to say.

use std::time::Duration;

use interlock_server::ServerConfig;

use crate::rig::{Rig, Setup, within};
use crate::wire::Connection;

const LONG: Duration = Duration::from_secs(3600);
const SHORT: Duration = Duration::from_millis(50);
/// For what has to come in time, however busy this machine is.
const AMPLE: Duration = Duration::from_secs(3);
const GET: &str = "GET /health/live HTTP/1.1\r\nhost: localhost\r\n\r\n";
const LIVE: &str = r#"{"status":"live"}"#;

async fn timed(header_timeout: Duration, idle_timeout: Duration) -> Rig {
    let server = ServerConfig { header_timeout, idle_timeout, ..ServerConfig::default() };
    Rig::with(Setup { server, ..Setup::default() }).await
}

/// Asks how the host is, and leaves the connection open; the answer's headers.
async fn asked(connection: &mut Connection, request: &str) -> Vec<String> {
    connection.raw(request.as_bytes()).await;
    assert!(connection.line().await.ends_with("200 OK"));
    let mut headers = vec![];
    loop {
        let line = connection.line().await;
        if line.is_empty() {
            break;
        }
        headers.push(line);
    }
    assert_eq!(connection.exactly(LIVE.len()).await, LIVE);
    headers
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_between_two_requests_outlives_the_heads_timeout() {
    let rig = timed(AMPLE, LONG).await;
    let mut kept = rig.connect().await;
    asked(&mut kept, GET).await;
    // One that came later has been closed by the time that a head has.
    within(rig.connect().await.closed()).await;
    asked(&mut kept, GET).await;
    // Once another request has begun it has that time and no more.
    kept.raw(b"GET /health/live HT").await;
    let answer = kept.answer().await;
    assert_eq!((answer.status, answer.code().as_str()), (408, "header_timeout"));
    assert_eq!(rig.metric(r#"http_refusals_total{reason="header_timeout"}"#), 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_idles_is_closed_without_a_word_and_a_slow_head_is_not_idle() {
    let rig = timed(LONG, SHORT).await;
    let mut slow = rig.connect().await;
    slow.raw(&GET.as_bytes()[..20]).await;
    let mut kept = rig.connect().await;
    asked(&mut kept, GET).await;
    assert_eq!(kept.rest().await, "");
    asked(&mut slow, &GET[20..]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_says_for_how_long_its_connection_may_be_used_again() {
    let rig = timed(LONG, Duration::from_secs(75)).await;
    let kept = "keep-alive: timeout=70";
    let keep = "connection: keep-alive";
    for (request, wanted) in [
        (GET.to_owned(), &[kept][..]),
        (GET.replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n"), &["connection: close"]),
        (GET.replace("1.1", "1.0"), &[]),
        (
            GET.replace("1.1", "1.0").replace(
                "\r\n\r\n",
                "\r\n\
          Connection: Keep-Alive\r\n\r\n",
            ),
            &[keep, kept],
        ),
    ] {
        let headers = asked(&mut rig.connect().await, &request).await;
        let said = headers.iter().filter(|line| {
            line.to_lowercase().contains("keep-alive") || line.starts_with("connection")
        });
        let mut said: Vec<_> = said.map(String::as_str).collect();
        said.sort_unstable();
        assert_eq!(said, wanted, "{request}");
    }
}

/// The three streams, each with what ends it.
const STREAMS: [(&str, &str, &str); 3] = [
    (
        "/v1/chat/completions",
        r#"{"model":"sim","messages":[{"role":"user","content":"x"}],"max_tokens":3,"stream":true}"#,
        "data: [DONE]\n\n",
    ),
    (
        "/v1/completions",
        r#"{"model":"sim","prompt":"x","max_tokens":3,"stream":true}"#,
        "data: [DONE]\n\n",
    ),
    (
        "/v1/responses",
        r#"{"model":"sim","input":"x","max_output_tokens":3,"stream":true}"#,
        "}\n\n",
    ),
];

async fn gated(stream_keepalive: Duration) -> Rig {
    let server = ServerConfig { stream_keepalive, ..ServerConfig::default() };
    Rig::with(Setup { server, gated: true, ..Setup::default() }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_waits_for_its_first_token_is_kept_alive_between_its_events() {
    for (path, body, end) in STREAMS {
        let rig = gated(Duration::from_millis(20)).await;
        let mut connection = rig.begin(path, "kept", body).await;
        for _ in 0..3 {
            connection.until(": keep-alive").await;
        }
        rig.gate.open();
        let rest = connection.rest().await;
        let (_, rest) = rest.split_once("\r\n").expect("the end of the comment's chunk");
        let text: String = chunks(rest).concat();
        assert!(text.ends_with(end), "nothing follows the end: {text}");
        for event in text.trim_end().split("\n\n") {
            let lines: Vec<_> = event.lines().collect();
            match lines[..] {
                [": keep-alive"] => {}
                [data] => assert!(data.starts_with("data: "), "{event}"),
                [name, data] => {
                    assert!(name.starts_with("event: ") && data.starts_with("data: "), "{event}");
                }
                _ => panic!("{event:?} is no event"),
            }
        }
    }
}

/// The data of chunks, up to the last.
fn chunks(mut framed: &str) -> Vec<&str> {
    let mut all = vec![];
    while let Some((size, rest)) = framed.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).expect("a chunk's size");
        if size == 0 {
            return all;
        }
        all.push(&rest[..size]);
        framed = &rest[size + 2..];
    }
    panic!("the stream broke off after {all:?}")
}

#[tokio::test(flavor = "multi_thread")]
async fn comments_end_with_their_client_and_are_none_where_none_are_wanted() {
    let mut rig = gated(Duration::from_millis(10)).await;
    let (path, body, _) = STREAMS[1];
    let mut connection = rig.begin(path, "left", body).await;
    connection.until(": keep-alive").await;
    drop(connection);
    rig.gate.open();
    assert_eq!(rig.ended().await.0, "left");
    rig.metric_is("http_connections", 0.0).await;

    let silent = gated(Duration::ZERO).await;
    let chatty = gated(Duration::from_millis(20)).await;
    let mut quiet = silent.begin(path, "quiet", body).await;
    let mut kept = chatty.begin(path, "kept", body).await;
    for _ in 0..5 {
        kept.until(": keep-alive").await;
    }
    silent.gate.open();
    assert!(!quiet.rest().await.contains("keep-alive\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_to_an_old_client_promises_nothing_since_its_connection_ends_it() {
    let rig = Rig::start().await;
    let (path, body, end) = STREAMS[1];
    let mut connection = rig.connect().await;
    let length = body.len();
    let head =
        format!("POST {path} HTTP/1.0\r\nconnection: keep-alive\r\ncontent-length: {length}");
    connection.raw(format!("{head}\r\n\r\n{body}").as_bytes()).await;
    let answer = connection.answer().await;
    assert_eq!((answer.status, answer.header("keep-alive")), (200, None));
    assert_ne!(answer.header("connection"), Some("keep-alive"));
    assert!(answer.body.ends_with(end), "{answer:?}");
}
