//! Metrics on a listener of their own.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;

use interlock_metrics::Registry;
use interlock_server::{
    MetricsConfig, MetricsParts, ServerConfig, ServerMetrics, listen, serve_metrics,
};

use crate::rig::{Rig, Setup};
use crate::wire::{Answer, Connection};

/// Where it listens.
pub(crate) async fn start(config: MetricsConfig) -> SocketAddr {
    let listener = listen(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a port");
    let address = listener.local_addr().expect("an address");
    let registry = Arc::new(Registry::new());
    let metrics = ServerMetrics::register(&registry);
    let parts = MetricsParts { config, server: ServerConfig::default(), metrics, registry };
    tokio::spawn(serve_metrics(listener, parts, std::future::pending()));
    address
}

async fn ask(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    host: &str,
) -> Answer {
    let mut connection = Connection::open(address).await;
    connection.send_to(host, method, path, headers, "").await;
    connection.answer().await
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_on_their_own_listener_and_nothing_else_is() {
    let address = start(MetricsConfig::default()).await;
    let answer = ask(address, "GET", "/metrics", &[], "localhost").await;
    assert_eq!(answer.status, 200);
    assert!(answer.body.contains("interlock_metrics_connections 1"), "{answer:?}");
    for (method, path, headers, host, status, code) in [
        (
            "GET",
            "/metrics",
            &[("origin", "https://a.example")][..],
            "localhost",
            403,
            "cross_origin",
        ),
        ("GET", "/metrics", &[], "evil.example", 421, "wrong_host"),
        ("POST", "/metrics", &[], "localhost", 405, "method_not_allowed"),
        ("GET", "/v1/models", &[], "localhost", 404, "unknown_url"),
    ] {
        let answer = ask(address, method, path, headers, host).await;
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{method} {path}");
        assert_eq!(answer.header("content-type"), Some("application/json"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clients_port_has_no_metrics_then() {
    let rig = Rig::with(Setup { metrics_apart: true, ..Setup::default() }).await;
    let answer = rig.get("/metrics").await;
    assert_eq!((answer.status, answer.code().as_str()), (404, "unknown_url"));
    assert_eq!(rig.get("/health/live").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_scrapes_gets_in_whatever_idles_there() {
    let connections_max = NonZeroUsize::new(2).expect("not 0");
    let address = start(MetricsConfig { connections_max, ..MetricsConfig::default() }).await;
    let _idle = [Connection::open(address).await, Connection::open(address).await];
    assert_eq!(ask(address, "GET", "/metrics", &[], "localhost").await.status, 200);
}
