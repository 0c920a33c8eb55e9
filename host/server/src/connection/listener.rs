//! A listener and its connections: every one of them comes in here, whatever it is for, and so is
//! bounded, timed and watched like all others.
//!
//! Descriptors are the whole process's: connections that nobody bounds on one port take the other
//! port down. So how many there may be is known for all listeners together ([`descriptors`]), and
//! the process sees to it that it has as many.

use std::convert::Infallible;
use std::fs::File;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::ops::RangeInclusive;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use interlock_metrics::IntGauge;
use interlock_request::RequestId;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tower::ServiceExt;

use super::keep_alive::KeepAlive;
use super::request_clock::{AnswerBody, RequestClock, RequestLimits};
use super::slots::{ConnectionSlot, ConnectionSlots, ReserveConnection, SlotLimits};
use super::socket::{WatchRules, watched};
use super::write_timeout::TimedStream;
use super::{OverLimit, PeerAddress};
use crate::failure::{ConnectionLimit, Failure, HeadLimits};
use crate::metrics::{Cut, ServerMetrics};
use crate::paths::watches;
use crate::{AdminConfig, MetricsConfig, ServerConfig};

/// What holds for each connection of a listener.
#[derive(Debug, Clone)]
pub(crate) struct ListenerRules {
    pub(crate) places: SlotLimits,
    /// What is done for who comes in through the reserve.
    pub(crate) reserve: ReserveUse,
    pub(crate) requests: RequestLimits,
    /// `server.write_timeout`
    pub(crate) write_timeout: Duration,
    pub(crate) heads: HeadLimits,
    pub(crate) watch: WatchRules,
    /// How long answers may take to leave once there is nothing more to serve.
    pub(crate) close_timeout: Duration,
}

/// What is done for who comes in through the reserve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReserveUse {
    /// Health and metrics are answered, everything else is refused, and both soon.
    Probes,
    /// All is served.
    All,
}

/// Connections beyond `server.connections_max`, for whoever watches the host: as many again within
/// this, so that many who wait for a place there are soon through.
const PROBES: RangeInclusive<usize> = 64..=1024;
/// Longest time for the head of a request that will only be answered with health or a refusal.
const CROWDED_HEAD_MAX: Duration = Duration::from_secs(2);
/// Longest life of a connection for such a request.
const CROWDED_LIFE_MAX: Duration = Duration::from_secs(5);

impl ListenerRules {
    /// Of the clients' listener.
    pub(crate) fn of_clients(config: &ServerConfig) -> Self {
        let connections_max = config.connections_max.get();
        let places = SlotLimits {
            connections_max,
            per_address_max: config.per_address(),
            reserve: connections_max.clamp(*PROBES.start(), *PROBES.end()),
        };
        Self { places, reserve: ReserveUse::Probes, ..Self::of(config) }
    }

    /// Of the operator's. Whoever comes with a request gets in: all there is, is a reserve.
    pub(crate) fn of_admin(config: &AdminConfig, server: &ServerConfig) -> Self {
        // A policy that is being tried out comes to its end.
        let close_timeout = Duration::from_secs(600);
        Self { close_timeout, ..Self::of_reserve(config.connections_max, server) }
    }

    /// Of the listener of metrics, in the same way.
    pub(crate) fn of_metrics(config: &MetricsConfig, server: &ServerConfig) -> Self {
        Self::of_reserve(config.connections_max, server)
    }

    fn of_reserve(connections_max: NonZeroUsize, server: &ServerConfig) -> Self {
        let reserve = connections_max.get();
        let places = SlotLimits { connections_max: 0, per_address_max: 0, reserve };
        Self { places, reserve: ReserveUse::All, ..Self::of(server) }
    }

    fn of(config: &ServerConfig) -> Self {
        Self {
            places: SlotLimits { connections_max: 0, per_address_max: 0, reserve: 0 },
            reserve: ReserveUse::Probes,
            requests: RequestLimits {
                header_timeout: config.header_timeout,
                idle_timeout: config.idle_timeout,
            },
            write_timeout: config.write_timeout,
            heads: HeadLimits {
                header_max: config.header_max.in_memory(),
                headers_max: config.headers_max,
            },
            watch: WatchRules {
                pipelined_max: config.pipelined_max.in_memory(),
                half_close: config.half_close,
            },
            close_timeout: Duration::from_secs(5),
        }
    }

    /// Connections that may be open at once, and the one that waits for a place.
    fn descriptors(&self) -> usize {
        self.places.connections_max.saturating_add(self.places.reserve).saturating_add(1)
    }
}

/// Descriptors that the connections of these listeners may take at once.
pub fn descriptors(server: &ServerConfig, admin: &AdminConfig, metrics: &MetricsConfig) -> usize {
    let clients = ListenerRules::of_clients(server).descriptors();
    let admin = admin.bind.map_or(0, |_| ListenerRules::of_admin(admin, server).descriptors());
    let metrics =
        metrics.bind.map_or(0, |_| ListenerRules::of_metrics(metrics, server).descriptors());
    clients.saturating_add(admin).saturating_add(metrics)
}

/// A listener, and what it serves.
pub(crate) struct Listener {
    pub(crate) listener: TcpListener,
    pub(crate) rules: ListenerRules,
    pub(crate) router: Router,
    pub(crate) metrics: Arc<ServerMetrics>,
    /// The listener's open connections.
    pub(crate) open: IntGauge,
    /// Writes the body of what is answered to bytes that are no request.
    pub(crate) error_json: ErrorJson,
}

/// Writes the body of an error.
pub(crate) type ErrorJson = fn(&Failure, &RequestId) -> serde_json::Value;

impl Listener {
    /// Serves until then, lets what is in progress come to its end, and closes.
    pub(crate) async fn serve<T>(self, until: impl Future<Output = T>) -> T {
        let Self { listener, rules, router, metrics, open, error_json } = self;
        let mut acceptor = Acceptor::new(listener, &rules, Arc::clone(&metrics));
        let context = Arc::new(ListenerContext { rules, metrics, open, error_json });
        let (closing, shutdown) = watch::channel(());
        let mut connections = JoinSet::new();
        let mut until = pin!(until);
        let over = loop {
            tokio::select! {
                over = &mut until => break over,
                (stream, from, place) = acceptor.next() => {
                    let open = OpenConnection::new(&context, place);
                    let (router, shutdown) = (router.clone(), shutdown.clone());
                    connections.spawn(serve_connection(stream, from, router, open, shutdown));
                }
                Some(ended) = connections.join_next() => report(ended),
            }
        };
        // Clients that still try to connect are refused by the operating system.
        drop(acceptor);
        drop(closing);
        let all_left = async {
            while let Some(ended) = connections.join_next().await {
                report(ended);
            }
        };
        if tokio::time::timeout(context.rules.close_timeout, all_left).await.is_err() {
            tracing::warn!(
                left = connections.len(),
                "connections were closed before their clients had read all that was sent"
            );
            connections.shutdown().await;
        }
        over
    }
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        // A bug, and it ended that one connection; its requests see a client that left.
        tracing::error!(%error, "a connection panicked");
    }
}

/// Connections as they come in, each with its place.
struct Acceptor {
    listener: TcpListener,
    slots: ConnectionSlots,
    reserve: ReserveUse,
    metrics: Arc<ServerMetrics>,
    /// One that waits for a place in the reserve.
    arrived: Option<(TcpStream, SocketAddr)>,
    /// A descriptor to give up when there is no other, so that a connection can be turned away.
    spare: Option<File>,
    /// When the log last heard of a limit.
    logged_at: Option<Instant>,
}

impl Acceptor {
    fn new(listener: TcpListener, rules: &ListenerRules, metrics: Arc<ServerMetrics>) -> Self {
        let (slots, reserve) = (ConnectionSlots::new(rules.places), rules.reserve);
        Self { listener, slots, reserve, metrics, arrived: None, spare: spare(), logged_at: None }
    }

    /// The next connection. Nothing is lost when the wait is given up.
    async fn next(&mut self) -> (TcpStream, SocketAddr, ConnectionSlot) {
        loop {
            let (stream, from) = match self.arrived.take() {
                Some(arrived) => arrived,
                None => self.accept().await,
            };
            if let Some(place) = self.slots.enter(from.ip()) {
                if let (ConnectionSlot::Reserve { over, .. }, ReserveUse::Probes) =
                    (&place, self.reserve)
                {
                    self.over(*over);
                }
                return (stream, from, place);
            }
            self.arrived = Some((stream, from));
            self.slots.room().await;
        }
    }

    async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        /// Long enough for a descriptor to come free, short enough to go unnoticed.
        const RETRY_DELAY: Duration = Duration::from_millis(50);

        loop {
            match self.listener.accept().await {
                Ok(arrived) => return arrived,
                // The client's fault, and it is gone already.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    if self.may_log() {
                        tracing::error!(%error, "the listener cannot accept connections");
                    }
                    if no_descriptors(&error) {
                        self.turn_away().await;
                    }
                    tokio::time::sleep(RETRY_DELAY).await;
                }
            }
        }
    }

    /// There are no descriptors left: whoever only waits gives up theirs, and when nobody does, the
    /// next connection is at least closed.
    async fn turn_away(&mut self) {
        if self.slots.displace() {
            return;
        }
        if self.spare.take().is_some() {
            let once = poll_fn(|cx| std::task::Poll::Ready(self.listener.poll_accept(cx)));
            if once.await.is_ready() {
                self.metrics.cut(Cut::Descriptors);
            }
        }
        self.spare = spare();
    }

    fn over(&mut self, over: ConnectionLimit) {
        let (cut, key, limit) = match over {
            ConnectionLimit::Connections(limit) => {
                (Cut::Connections, "server.connections_max", limit)
            }
            ConnectionLimit::Address(limit) => {
                (Cut::Address, "server.connections_per_address_max", limit)
            }
        };
        self.metrics.cut(cut);
        if self.may_log() {
            tracing::warn!(
                limit,
                key,
                "too many connections are open: further ones get health and metrics only"
            );
        }
    }

    /// May the log hear of it? Whoever opens connections decides how often it happens.
    fn may_log(&mut self) -> bool {
        const LOG_INTERVAL: Duration = Duration::from_secs(10);
        let due = self.logged_at.is_none_or(|logged_at| logged_at.elapsed() >= LOG_INTERVAL);
        if due {
            self.logged_at = Some(Instant::now());
        }
        due
    }
}

fn spare() -> Option<File> {
    File::open("/dev/null").ok()
}

/// The process, or the system, has no descriptors left.
fn no_descriptors(error: &io::Error) -> bool {
    const EMFILE: i32 = 24;
    const ENFILE: i32 = 23;
    matches!(error.raw_os_error(), Some(EMFILE | ENFILE))
}

/// What is the same for all connections of a listener.
struct ListenerContext {
    rules: ListenerRules,
    metrics: Arc<ServerMetrics>,
    open: IntGauge,
    error_json: ErrorJson,
}

/// One open connection, counted for as long as it lives.
struct OpenConnection {
    context: Arc<ListenerContext>,
    place: ConnectionSlot,
}

impl OpenConnection {
    fn new(context: &Arc<ListenerContext>, place: ConnectionSlot) -> Self {
        context.open.inc();
        Self { context: Arc::clone(context), place }
    }

    /// How it came in, if not through a regular place.
    fn reserved(&self) -> Option<(Arc<ReserveConnection>, ConnectionLimit)> {
        match &self.place {
            ConnectionSlot::Regular { .. } => None,
            ConnectionSlot::Reserve { reserved, over, .. } => Some((Arc::clone(reserved), *over)),
        }
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.context.open.dec();
    }
}

/// Serves one connection until it closes, or after the shutdown until the answer in flight is out.
async fn serve_connection(
    stream: TcpStream,
    from: SocketAddr,
    router: Router,
    open: OpenConnection,
    mut shutdown: watch::Receiver<()>,
) {
    let ListenerContext { rules, metrics, error_json, .. } = &*open.context;
    // Tokens are small and should not wait for company.
    let _ = stream.set_nodelay(true);
    let (socket, mut watch) = watched(stream.into_split(), rules.watch);
    let reserved = open.reserved();
    let crowded =
        reserved.as_ref().filter(|_| rules.reserve == ReserveUse::Probes).map(|(_, over)| *over);
    let mut limits = rules.requests;
    if crowded.is_some() {
        limits.header_timeout = limits.header_timeout.min(CROWDED_HEAD_MAX);
    }
    let clock = RequestClock::new(limits);
    let keep_alive = KeepAlive::of(limits.idle_timeout);
    let service = {
        let (clock, shutdown) = (clock.clone(), shutdown.clone());
        let (client, reserved) =
            (watch.client().clone(), reserved.as_ref().map(|(reserved, _)| reserved));
        let reserved = reserved.cloned();
        service_fn(move |mut request: hyper::Request<Incoming>| {
            let (answering, version) = (clock.answering(), request.version());
            // This one is not the last, as far as it is for us to say.
            let stays = crowded.is_none() && shutdown.has_changed().is_ok();
            let keep_alive = keep_alive.clone().filter(|_| stays && KeepAlive::wanted(&request));
            let extensions = request.extensions_mut();
            extensions.insert(PeerAddress(from.ip()));
            extensions.insert(client.clone());
            if let Some(over) = crowded {
                extensions.insert(OverLimit(over));
            }
            let served = crowded.is_none() || watches(request.uri().path());
            let reserved = reserved.clone().filter(|_| served);
            if let Some(reserved) = &reserved {
                reserved.is_busy(true);
            }
            let answer = router.clone().oneshot(request);
            async move {
                let mut answer = answer.await.unwrap_or_else(|never| match never {});
                if let Some(keep_alive) = keep_alive {
                    keep_alive.say(version, &mut answer);
                }
                // What is asked once is still being sent.
                if let Some(reserved) = reserved.filter(|_| crowded.is_none()) {
                    reserved.is_busy(false);
                }
                Ok::<_, Infallible>(answer.map(|body| AnswerBody { body, _answering: answering }))
            }
        })
    };
    let on_refusal = {
        let (metrics, error_json) = (Arc::clone(metrics), *error_json);
        Arc::new(move |failure: &Failure, id: &RequestId| {
            metrics.answered_with(failure);
            error_json(failure, id).to_string()
        })
    };
    let io = TimedStream::new(socket, rules.write_timeout, clock, rules.heads, on_refusal);
    let io = TokioIo::new(io);
    let mut served = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            // Ours tells a slow head from a connection that idles: see `request_clock`.
            .header_read_timeout(None)
            // Up to twice the limits `frame` says what is too much; beyond, `refusal` does.
            .max_header_size(rules.heads.header_max.saturating_mul(2))
            .max_headers(rules.heads.headers_max.saturating_mul(2))
            .keep_alive(crowded.is_none())
            // Whether a client that has closed its sending side has left is for the watch to say.
            .half_close(true)
            .serve_connection(io, service)
    );
    let mut makes_way = pin!(async {
        match &reserved {
            Some((reserved, _)) => reserved.makes_way().await,
            None => std::future::pending().await,
        }
    });
    let mut too_long = pin!(async {
        match crowded {
            Some(_) => tokio::time::sleep(CROWDED_LIFE_MAX).await,
            None => std::future::pending().await,
        }
    });
    let mut closing = false;
    loop {
        tokio::select! {
            // The watch goes first: what it reads is there for the conversation, and a client
            // that has left is not served any further.
            biased;
            departure = poll_fn(|cx| watch.poll_left(cx)) => {
                tracing::debug!(?departure, "a client left");
                break;
            }
            () = &mut makes_way => {
                metrics.cut(Cut::Displaced);
                break;
            }
            () = &mut too_long => break,
            // The sender is dropped rather than used, so this is an error, and means shutdown.
            _ = shutdown.changed(), if !closing => {
                closing = true;
                served.as_mut().graceful_shutdown();
            }
            ended = served.as_mut() => {
                if let Err(error) = ended {
                    // What it meant for the connection's requests is in those log lines.
                    tracing::debug!(%error, "a connection ended early");
                }
                break;
            }
        }
    }
    if watch.has_cut() {
        let limit = rules.watch.pipelined_max;
        tracing::info!(limit, "a client sent more behind its request than server.pipelined_max");
        metrics.cut(Cut::Pipelined);
    }
}
