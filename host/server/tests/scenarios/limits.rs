//! Clients that send or take too much, too slowly, or too often.

use std::num::NonZeroUsize;
use std::time::Duration;

use interlock_request::{ByteSize, CancelCause, Outcome};
use interlock_server::ServerConfig;
use interlock_sim::SimSettings;

use crate::rig::{Rig, Setup};

const GOOD: &str = r#"{"model":"sim","prompt":"x","max_tokens":1}"#;

async fn limited(server: ServerConfig) -> Rig {
    Rig::with(Setup { server, ..Setup::default() }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_over_the_limit_is_413_even_while_it_is_still_sent() {
    let rig = limited(ServerConfig { body_max: ByteSize(1000), ..ServerConfig::default() }).await;
    for size in [1001, 3000, 200_000] {
        let answer = rig.post("/v1/completions", &"x".repeat(size)).await;
        assert_eq!((answer.status, answer.code().as_str()), (413, "body_too_large"), "{size}");
        assert!(answer.body.contains("1000 bytes"), "{answer:?}");
    }
    // Chunked, so that nobody says beforehand how much it will be.
    let mut connection = rig.connect().await;
    let head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n";
    connection.raw(format!("{head}5dc\r\n{}\r\n0\r\n\r\n", "x".repeat(1500)).as_bytes()).await;
    assert_eq!(connection.answer().await.code(), "body_too_large");
    assert_eq!(rig.post("/v1/completions", GOOD).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_does_not_come_is_408() {
    let body_timeout = Duration::from_millis(50);
    let rig = limited(ServerConfig { body_timeout, ..ServerConfig::default() }).await;
    let mut connection = rig.connect().await;
    let head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 50\r\n\r\n{";
    connection.raw(head.as_bytes()).await;
    let answer = connection.answer().await;
    assert_eq!((answer.status, answer.code().as_str()), (408, "body_timeout"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_does_not_come_is_not_waited_for() {
    let header_timeout = Duration::from_millis(50);
    let rig = limited(ServerConfig { header_timeout, ..ServerConfig::default() }).await;
    for beginning in ["", "GET / HT"] {
        let mut connection = rig.connect().await;
        connection.raw(beginning.as_bytes()).await;
        connection.rest().await;
    }
    rig.metric_is("http_connections", 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_over_the_limits_is_431() {
    let server =
        ServerConfig { header_max: ByteSize(1024), headers_max: 8, ..ServerConfig::default() };
    let rig = limited(server).await;
    let long = "x".repeat(1100);
    let longest = "x".repeat(5000);
    let mut connection = rig.connect().await;
    connection.send("POST", "/v1/completions", &[("x-long", &long)], GOOD).await;
    let answer = connection.answer().await;
    assert_eq!((answer.status, answer.code().as_str()), (431, "headers_too_large"));
    let mut connection = rig.connect().await;
    connection.send("POST", "/v1/completions", &[("x-many", "1"); 9], GOOD).await;
    let answer = connection.answer().await;
    assert_eq!((answer.status, answer.code().as_str()), (431, "headers_too_large"));
    // Beyond twice the limit nobody reads on to learn what it was about.
    let mut connection = rig.connect().await;
    connection.send("GET", "/v1/models", &[("x-long", &longest)], "").await;
    assert_eq!(connection.line().await, "HTTP/1.1 431 Request Header Fields Too Large");
    assert_eq!(rig.post("/v1/completions", GOOD).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_too_many_is_told_so_and_health_still_answers() {
    let connections_max = NonZeroUsize::new(2).expect("not 0");
    let rig = limited(ServerConfig { connections_max, ..ServerConfig::default() }).await;
    rig.metric_is("http_connections", 0.0).await;
    let idle = [rig.connect().await, rig.connect().await];
    rig.metric_is("http_connections", 2.0).await;
    let answer = rig.post("/v1/completions", GOOD).await;
    assert_eq!((answer.status, answer.code().as_str()), (503, "too_many_connections"));
    assert!(answer.header("retry-after").is_some());
    assert_eq!(rig.get("/health/ready").await.status, 200);
    drop(idle);
    rig.metric_is("http_connections", 0.0).await;
    assert_eq!(rig.post("/v1/completions", GOOD).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_takes_nothing_for_too_long_has_left() {
    let write_timeout = Duration::from_millis(100);
    let server = ServerConfig { write_timeout, ..ServerConfig::default() };
    // Faster than a reader who reads nothing, slower than the driver on a busy machine.
    let decode = Duration::from_micros(20);
    let model = SimSettings { context: 1_000_000, stop: 0, decode, ..SimSettings::default() };
    let mut rig = Rig::with(Setup { server, model, ..Setup::default() }).await;
    let mut connection = rig.connect_narrow().await;
    let body = r#"{"model":"sim","prompt":"x","max_tokens":900000,"stream":true}"#;
    connection.send("POST", "/v1/completions", &[], body).await;
    let (_, summary) = rig.ended().await;
    assert_eq!(summary.outcome, Outcome::Cancelled(CancelCause::Disconnect));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_prompt_is_tokenized_and_counted_like_any_other() {
    let model = SimSettings { context: 100_000, stop: 0, ..SimSettings::default() };
    let rig = Rig::with(Setup { model, ..Setup::default() }).await;
    let prompt = "x".repeat(80_000);
    let body = format!(r#"{{"model":"sim","prompt":"{prompt}","max_tokens":2}}"#);
    let answer = rig.post("/v1/completions", &body).await.json();
    assert_eq!(answer["usage"]["prompt_tokens"], 80_001);
}

/// How often others were answered, from beginning to end, while this body was parsed. A worker that
/// parses answers nobody, so where it is the only one the count is 0, on any machine.
async fn answers_while_parsing(rig: &Rig, body: &str) -> usize {
    let mut connection = rig.connect().await;
    let length = body.len();
    let head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n";
    let (most, last) = body.split_at(length - 1);
    connection.raw(format!("{head}content-length: {length}\r\n\r\n{most}").as_bytes()).await;
    // What was sent has been read when the only worker has had time for others again.
    for _ in 0..20 {
        assert_eq!(rig.get("/health/live").await.status, 200);
    }
    connection.raw(last.as_bytes()).await;
    let answer = connection.answer();
    tokio::pin!(answer);
    let is_parsed = || rig.metric("work_items_running{class=\"large\"}") == 1.0;
    let mut others = 0;
    loop {
        tokio::select! {
            biased;
            answer = &mut answer => {
                assert_eq!(answer.status, 400, "{answer:?}");
                return others;
            }
            (before, other) = async { (is_parsed(), rig.get("/health/live").await) } => {
                assert_eq!(other.status, 200);
                others += usize::from(before && is_parsed());
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_body_of_two_million_token_ids_holds_up_nobody() {
    // Room for all of them, so that nothing but reading the last one tells that it is wrong.
    let model = SimSettings { context: 4_000_000, ..SimSettings::default() };
    let rig = Rig::with(Setup { model, ..Setup::default() }).await;
    let ids = "1,".repeat(1_950_000);
    let wrong = format!(r#"{{"model":"sim","prompt":[{ids}-1]}}"#);
    let others = answers_while_parsing(&rig, &wrong).await;
    assert!(others > 0, "the only worker answered nobody while the body was parsed");
}
