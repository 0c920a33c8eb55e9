//! Serves the clients' port, and ends in order.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use tokio::net::{TcpListener, TcpSocket};

use crate::ServerParts;
use crate::connection::{Listener, ListenerRules};
use crate::endpoints::error_json;
use crate::host::ServerHost;
use crate::router::router;

/// How serving ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServeOutcome {
    /// Requests in flight that did not finish within `drain_max` and were cancelled.
    pub cancelled: usize,
}

/// Opens the port on which to serve.
///
/// Connections wait in the system's backlog until they are accepted, and one that finds no room
/// there tries again after a second. The usual backlog of 128 is less than one burst of clients;
/// the system may still hold it to less than this (`net.core.somaxconn`).
///
/// # Errors
///
/// When the address is not ours, or in use.
pub fn listen(bind: SocketAddr) -> io::Result<TcpListener> {
    const BACKLOG: u32 = 1024;

    let socket = if bind.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // Otherwise a restart would wait for the connections of the one before to be forgotten.
    socket.set_reuseaddr(true)?;
    socket.bind(bind)?;
    socket.listen(BACKLOG)
}

/// What [`serve`] serves, without sockets: for simulations. A dropped answer is a client that left.
pub fn app(parts: ServerParts) -> Router {
    router(ServerHost::new(parts), None)
}

/// Serves until `shutdown` and then some: requests in flight finish or are cancelled, every
/// client gets a proper end, and only then are connections closed. Meanwhile new requests are
/// answered with 503, and `/health/ready` says `draining`.
pub async fn serve(
    listener: TcpListener,
    parts: ServerParts,
    shutdown: impl Future<Output = ()>,
) -> ServeOutcome {
    let host = ServerHost::new(parts);
    let address = listener.local_addr().ok();
    let listener = Listener {
        listener,
        rules: ListenerRules::of_clients(&host.config),
        router: router(Arc::clone(&host), address),
        metrics: Arc::clone(&host.metrics),
        open: host.metrics.connections.clone(),
        error_json,
    };
    let cancelled = listener
        .serve(async {
            shutdown.await;
            host.drain().await
        })
        .await;
    ServeOutcome { cancelled }
}
