//! Bodies that nobody reads: they are let pass before the answer, so that the connection goes on.

use std::time::Duration;

use interlock_server::{AdminConfig, MetricsConfig, ServerConfig};

use crate::admin::Admin;
use crate::metrics;
use crate::rig::{Rig, Setup};
use crate::wire::Connection;

/// What reads no body, and what is answered.
const CLIENTS: [(&str, &str); 13] = [
    ("POST /v1/embeddings", "404"),
    ("POST /v1/models", "405"),
    ("GET /v1/chat/completions", "405"),
    ("DELETE /v1/responses", "405"),
    ("GET /v1/models", "200"),
    ("GET /v1/models/nobody", "404"),
    ("GET /health/live", "200"),
    ("GET /health/ready", "200"),
    ("GET /metrics", "200"),
    ("POST /v1/requests/abc/cancel", "404"),
    ("GET /v1/requests/abc", "404"),
    ("POST /v1/responses/resp_abc/cancel", "404"),
    ("DELETE /v1/responses/resp_abc", "404"),
];

fn head(line: &str, headers: &str) -> String {
    format!("{line} HTTP/1.1\r\nhost: localhost\r\n{headers}content-length: 2\r\n\r\n")
}

/// Sends a body that comes after its head, and as late as can be: once it is asked for.
async fn is_asked_for_the_body(connection: &mut Connection, line: &str, status: &str) {
    connection.raw(head(line, "expect: 100-continue\r\n").as_bytes()).await;
    assert_eq!(connection.line().await, "HTTP/1.1 100 Continue", "{line}");
    assert_eq!(connection.line().await, "");
    connection.raw(b"{}").await;
    let said = connection.line().await;
    assert_eq!(said.split(' ').nth(1), Some(status), "{line}");
    let mut length = 0;
    loop {
        let line = connection.line().await;
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("content-length: ") {
            length = value.parse().expect("a number");
        }
    }
    connection.exactly(length).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_nobody_reads_is_let_pass_and_its_connection_serves_the_next_request() {
    let rig = Rig::start().await;
    let mut kept = rig.connect().await;
    for (line, status) in CLIENTS {
        is_asked_for_the_body(&mut kept, line, status).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preflights_body_is_let_pass_too() {
    let allowed_origins = vec!["https://chat.example".to_owned()];
    let server = ServerConfig { allowed_origins, ..ServerConfig::default() };
    let rig = Rig::with(Setup { server, ..Setup::default() }).await;
    let mut kept = rig.connect().await;
    for (line, status) in [("OPTIONS /v1/completions", "200"), ("GET /v1/models", "200")] {
        is_asked_for_the_body(&mut kept, line, status).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operators_body_that_nobody_reads_is_let_pass_too() {
    let open = Admin::start(AdminConfig::default()).await;
    let mut kept = Connection::open(open.address).await;
    for (line, status) in [
        ("GET /admin/policies", "200"),
        ("GET /admin/requests", "200"),
        ("POST /admin/requests", "405"),
        ("PUT /admin/policies/guard", "405"),
        ("POST /admin/nothing", "404"),
    ] {
        is_asked_for_the_body(&mut kept, line, status).await;
    }
    let token = Some("secret".into());
    let locked = Admin::start(AdminConfig { token, ..AdminConfig::default() }).await;
    let mut kept = Connection::open(locked.address).await;
    is_asked_for_the_body(&mut kept, "POST /admin/policies/guard", "401").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_sent_to_the_listener_of_metrics_is_let_pass_too() {
    let mut kept = Connection::open(metrics::start(MetricsConfig::default()).await).await;
    for (line, status) in [("GET /metrics", "200"), ("POST /metrics", "405"), ("PUT /x", "404")] {
        is_asked_for_the_body(&mut kept, line, status).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_before_the_end_of_its_requests_body_says_that_it_is_the_last() {
    let server =
        ServerConfig { body_timeout: Duration::from_millis(20), ..ServerConfig::default() };
    let rig = Rig::with(Setup { server, ..Setup::default() }).await;
    for line in ["POST /v1/embeddings", "GET /v1/models", "POST /v1/completions"] {
        let mut connection = rig.connect().await;
        connection.raw(head(line, "").as_bytes()).await;
        let answer = connection.answer().await;
        let said = (answer.header("connection"), answer.header("keep-alive"));
        assert_eq!(said, (Some("close"), None), "{line}");
    }
}
