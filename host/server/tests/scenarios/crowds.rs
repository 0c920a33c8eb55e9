//! Many clients at the same moment.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::time::Duration;

use interlock_metrics::Registry;
use interlock_server::{AdminConfig, ServerConfig, ServerMetrics, listen};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::admin::Admin;
use crate::rig::{Rig, Setup, within};
use crate::wire::{Answer, Connection};

/// What each of these clients got.
async fn answers(clients: JoinSet<Answer>) -> Vec<Answer> {
    within(clients.join_all()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_hundred_at_once_each_is_served_or_told_to_come_back() {
    const CLIENTS: usize = 200;
    const SEATS: usize = 64;

    let mut rig = Rig::with(Setup { seats: SEATS, gated: true, ..Setup::default() }).await;
    let address = rig.address();
    // All are connected before the first of them speaks.
    let mut connections = Vec::new();
    for connecting in (0..CLIENTS).map(|_| tokio::spawn(crate::wire::Connection::open(address))) {
        connections.push(within(connecting).await.expect("connects"));
    }
    let mut clients = JoinSet::new();
    for (n, mut connection) in connections.into_iter().enumerate() {
        clients.spawn(async move {
            let (path, words) = match n % 3 {
                0 => ("/v1/completions", r#""prompt":"x","max_tokens":3"#),
                1 => (
                    "/v1/chat/completions",
                    r#""messages":[{"role":"user","content":"x"}],"max_tokens":3"#,
                ),
                _ => ("/v1/responses", r#""input":"x","max_output_tokens":3"#),
            };
            let stream = n % 2 == 0;
            let body = format!(r#"{{"model":"sim","stream":{stream},{words}}}"#);
            connection.send("POST", path, &[], &body).await;
            connection.answer().await
        });
    }
    // No request leaves the queue before every client has sent its own.
    let full = r#"http_refusals_total{reason="waiting_room_full"}"#;
    let counted = || -> f64 {
        ["requests_waiting", "requests_running", full].iter().map(|line| rig.metric(line)).sum()
    };
    within(async {
        while counted() != CLIENTS as f64 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    rig.gate.open();

    let (served, refused): (Vec<_>, Vec<_>) =
        answers(clients).await.into_iter().partition(|answer| answer.status == 200);
    assert!(served.len() >= SEATS, "{} of {CLIENTS} were served", served.len());
    assert!(!refused.is_empty(), "there was room for all, which this is not about");
    assert_eq!(served.len() + refused.len(), CLIENTS);
    for answer in &served {
        let ends = ["}", "data: [DONE]\n\n", "}\n\n"].iter().any(|end| answer.body.ends_with(end));
        assert!(ends, "{answer:?}");
        assert!(!answer.body.contains(r#""error":{"#), "{answer:?}");
        let told = answer.body.contains(r#""finish_reason":"length""#)
            || answer.body.contains(r#""status":"incomplete""#);
        assert!(told, "it says how it ended: {answer:?}");
    }
    for answer in &refused {
        assert_eq!((answer.status, answer.code().as_str()), (429, "waiting_room_full"));
        let error = &answer.json()["error"];
        assert!(error["message"].is_string() && error["type"].is_string(), "{error}");
        let wait = answer.header("retry-after").and_then(|wait| wait.parse::<u32>().ok());
        assert!(wait.is_some_and(|seconds| seconds >= 1), "{answer:?}");
    }
    // What the clients saw is what the host counted.
    assert_eq!(rig.metric(full), refused.len() as f64);
    for _ in 0..served.len() {
        rig.ended().await;
    }
    let completed = ["chat", "completions", "responses"].map(|endpoint| {
        let line = r#"requests_total{endpoint="E",model="sim",outcome="completed"}"#;
        rig.metric(&line.replace("E", endpoint))
    });
    assert_eq!(completed.iter().sum::<f64>(), served.len() as f64);
    rig.metric_is("requests_running", 0.0).await;
    rig.metric_is("requests_waiting", 0.0).await;
    rig.metric_is("http_connections", 0.0).await;
}

// A connection beyond the backlog would be tried again a second later, and again after two: three
// hundred of them would be seen to take long. Other systems hold the backlog to 128 for everyone.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn a_burst_waits_in_the_backlog_while_nobody_accepts() {
    const BURST: usize = 300;

    let listener = listen(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a port");
    let address = listener.local_addr().expect("an address");
    let mut connecting = JoinSet::new();
    for _ in 0..BURST {
        connecting.spawn(TcpStream::connect(address));
    }
    let connected = within(connecting.join_all()).await;
    assert!(connected.iter().all(Result::is_ok), "{connected:?}");
}

/// So few connections, which may be idle for longer than any test waits.
fn few(connections: usize) -> ServerConfig {
    let connections_max = NonZeroUsize::new(connections).expect("not 0");
    let header_timeout = Duration::from_secs(3600);
    ServerConfig { connections_max, header_timeout, ..ServerConfig::default() }
}

/// Clients that open a connection, say nothing, and open another when it is closed.
fn reopening(clients: usize, address: SocketAddr) -> JoinSet<()> {
    let mut all = JoinSet::new();
    for _ in 0..clients {
        all.spawn(async move {
            loop {
                Connection::open(address).await.closed().await;
            }
        });
    }
    all
}

const REFUSED: [&str; 2] = [
    r#"http_connections_refused_total{reason="connections_per_address_max"}"#,
    r#"http_connections_refused_total{reason="displaced"}"#,
];

#[tokio::test(flavor = "multi_thread")]
async fn health_answers_whatever_idles_and_reopens() {
    const CONNECTIONS: usize = 8;
    // So few that each waits for a moment only, on whatever machine this is.
    const IDLE: usize = 90;

    let rig = Rig::with(Setup { server: few(CONNECTIONS), ..Setup::default() }).await;
    let idle = reopening(IDLE, rig.address());
    // More than there are places: so many that the reserve has turned over.
    within(async {
        while REFUSED.iter().any(|line| rig.metric(line) < 100.0) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    for _ in 0..10 {
        assert_eq!(rig.get("/health/live").await.status, 200);
        assert_eq!(rig.get("/health").await.status, 200, "by its other name too");
        assert_eq!(rig.get("/metrics").await.status, 200);
        let answer = rig.post("/v1/completions", r#"{"model":"sim","prompt":"x"}"#).await;
        assert_eq!((answer.status, answer.code().as_str()), (503, "too_many_connections"));
        // The reserve has 64 places.
        assert!(rig.metric("http_connections") <= (CONNECTIONS + 64) as f64);
    }
    drop(idle);
    rig.metric_is("http_connections", 0.0).await;
    let answer =
        rig.post("/v1/completions", r#"{"model":"sim","prompt":"x","max_tokens":1}"#).await;
    assert_eq!(answer.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_sends_what_will_be_refused_slowly_does_not_keep_health_waiting() {
    let rig = Rig::with(Setup { server: few(1), ..Setup::default() }).await;
    let mut slow = vec![];
    for _ in 0..100 {
        let mut connection = rig.connect().await;
        let head =
            "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 50\r\n\r\n{";
        connection.raw(head.as_bytes()).await;
        slow.push(connection);
    }
    for _ in 0..20 {
        assert_eq!(rig.get("/health/ready").await.status, 200);
    }
    // Who is not displaced is told why, though its body never comes.
    let told = slow.last_mut().expect("many").line().await;
    assert_eq!(told, "HTTP/1.1 503 Service Unavailable");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_gets_in_whatever_idles_there() {
    let metrics = ServerMetrics::register(&Registry::new());
    let connections_max = NonZeroUsize::new(4).expect("not 0");
    let config = AdminConfig { connections_max, ..AdminConfig::default() };
    let admin = Admin::beside(config, few(8), metrics).await;
    let idle = reopening(10, admin.address);
    for _ in 0..10 {
        let answer = admin.ask("GET", "/admin/policies", &[], "").await;
        assert_eq!(answer.status, 200);
    }
    drop(idle);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_idles_at_the_operators_listener_is_closed_in_time() {
    let metrics = ServerMetrics::register(&Registry::new());
    let server =
        ServerConfig { header_timeout: Duration::from_millis(50), ..ServerConfig::default() };
    let admin = Admin::beside(AdminConfig::default(), server, metrics).await;
    for beginning in ["", "GET / HT"] {
        let mut connection = Connection::open(admin.address).await;
        connection.raw(beginning.as_bytes()).await;
        within(connection.closed()).await;
    }
}

// Other systems have one loopback address.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn one_address_does_not_keep_out_the_others() {
    let rig = Rig::with(Setup { server: few(8), ..Setup::default() }).await;
    let body = r#"{"model":"sim","prompt":"x","max_tokens":1}"#;
    let from = async |from| {
        let mut connection = Connection::open_from(from, rig.address()).await;
        connection.send("POST", "/v1/completions", &[], body).await;
        connection.answer().await
    };
    rig.metric_is("http_connections", 0.0).await;
    let mut idle = vec![];
    for open in 1..=20 {
        idle.push(Connection::open_from([127, 0, 0, 2], rig.address()).await);
        rig.metric_is("http_connections", f64::from(open)).await;
    }
    let refused = from([127, 0, 0, 2]).await;
    assert_eq!((refused.status, refused.code().as_str()), (503, "too_many_connections"));
    assert!(refused.body.contains("7 connections of one address"), "{refused:?}");
    let address = r#"http_connections_refused_total{reason="connections_per_address_max"}"#;
    assert_eq!(rig.metric(address), 14.0);
    assert_eq!(from([127, 0, 0, 3]).await.status, 200);
    drop(idle);
    rig.metric_is("http_connections", 0.0).await;
    assert_eq!(from([127, 0, 0, 2]).await.status, 200);
}
