//! Accepts connections, serves them, and ends them in order.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tower::ServiceExt;

use crate::host::Host;
use crate::patience::Patient;
use crate::router::{Crowded, Peer, router};
use crate::{ServerConfig, ServerParts};

/// How serving ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Served {
    /// Requests in flight that did not finish within `drain_max` and were cancelled.
    pub cancelled: usize,
}

/// How long answers may take to leave once their requests have ended.
const FAREWELL_MAX: Duration = Duration::from_secs(5);

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
    router(Host::new(parts))
}

/// Serves until `shutdown` and then some: requests in flight finish or are cancelled, every
/// client gets a proper end, and only then are connections closed. Meanwhile new requests are
/// answered with 503, and `/health/ready` says `draining`.
pub async fn serve(
    listener: TcpListener,
    parts: ServerParts,
    shutdown: impl Future<Output = ()>,
) -> Served {
    let host = Host::new(parts);
    let doors = Doors::new(&host.config);
    let router = router(Arc::clone(&host));
    let (farewell, goodbye) = watch::channel(());
    let mut connections = JoinSet::new();
    let mut drained = pin!(async {
        shutdown.await;
        host.drain().await
    });
    let cancelled = loop {
        tokio::select! {
            cancelled = &mut drained => break cancelled,
            (stream, door) = accept(&listener, &doors) => {
                let open = Open { door, host: Arc::clone(&host) };
                connections.spawn(converse(stream, router.clone(), open, goodbye.clone()));
            }
            Some(ended) = connections.join_next() => report(ended),
        }
    };
    // Whoever still knocks is told so by the operating system.
    drop(listener);
    drop(farewell);
    let all_left = async {
        while let Some(ended) = connections.join_next().await {
            report(ended);
        }
    };
    if tokio::time::timeout(FAREWELL_MAX, all_left).await.is_err() {
        tracing::warn!(left = connections.len(), "connections were closed on readers too slow");
        connections.shutdown().await;
    }
    Served { cancelled }
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        // A bug, and it ended that one connection; its requests see a client that left.
        tracing::error!(%error, "a connection panicked");
    }
}

/// How connections come in: through the regular door while there is room, then through a narrow
/// one where they are told so. When that is taken as well, they wait in the system's backlog.
struct Doors {
    regular: Arc<Semaphore>,
    /// Both doors' places.
    all: Arc<Semaphore>,
}

/// A place among the open connections.
struct Door {
    regular: Option<OwnedSemaphorePermit>,
    _any: OwnedSemaphorePermit,
}

impl Doors {
    /// Connections that are told that there are too many, at a time.
    const NARROW: usize = 64;

    fn new(config: &ServerConfig) -> Self {
        let regular = config.connections_max.get().min(Semaphore::MAX_PERMITS - Self::NARROW);
        Self {
            regular: Arc::new(Semaphore::new(regular)),
            all: Arc::new(Semaphore::new(regular + Self::NARROW)),
        }
    }
}

/// The next connection. Nothing is lost when the wait is given up: whatever comes after the
/// accepting is done without waiting.
async fn accept(listener: &TcpListener, doors: &Doors) -> (TcpStream, Door) {
    /// Long enough for a file descriptor to come free, short enough to go unnoticed.
    const BREATH: Duration = Duration::from_millis(50);

    let any = Arc::clone(&doors.all).acquire_owned().await.expect("it is never closed");
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let regular = Arc::clone(&doors.regular).try_acquire_owned().ok();
                return (stream, Door { regular, _any: any });
            }
            // The client's fault, and it is gone already.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                tracing::error!(%error, "a connection could not be accepted");
                tokio::time::sleep(BREATH).await;
            }
        }
    }
}

/// One open connection, counted for as long as it lives.
struct Open {
    door: Door,
    host: Arc<Host>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.host.metrics.connections.dec();
    }
}

/// Serves one connection until it closes, or until the farewell and the answer in flight.
async fn converse(stream: TcpStream, router: Router, open: Open, mut goodbye: watch::Receiver<()>) {
    let config = &open.host.config;
    open.host.metrics.connections.inc();
    // Tokens are small and should not wait for company.
    let _ = stream.set_nodelay(true);
    let crowded = open.door.regular.is_none();
    let peer = stream.peer_addr().ok().map(|address| Peer(address.ip()));
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        if let Some(peer) = peer {
            request.extensions_mut().insert(peer);
        }
        if crowded {
            request.extensions_mut().insert(Crowded);
        }
        let answer = router.clone().oneshot(request);
        async move { Ok::<_, Infallible>(answer.await.unwrap_or_else(|never| match never {})) }
    });
    let io = TokioIo::new(Patient::new(stream, config.write_timeout));
    let mut conversation = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(config.header_timeout)
            .max_header_size(config.header_max.in_memory().saturating_mul(2))
            .max_headers(config.headers_max.saturating_mul(2))
            .keep_alive(!crowded)
            .serve_connection(io, service)
    );
    let ended = tokio::select! {
        ended = conversation.as_mut() => ended,
        // The sender is dropped rather than used, so this is an error, and the farewell.
        _ = goodbye.changed() => {
            conversation.as_mut().graceful_shutdown();
            conversation.await
        }
    };
    if let Err(error) = ended {
        // Clients leave in many ways; what it meant for their requests is in those log lines.
        tracing::debug!(%error, "a connection ended early");
    }
}
