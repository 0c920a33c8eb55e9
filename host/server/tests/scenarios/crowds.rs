//! Many clients at the same moment.

use std::net::SocketAddr;

use interlock_server::listen;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::rig::{Rig, Setup, within};
use crate::wire::Answer;

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
    // Nobody leaves the waiting room before everyone has knocked.
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
