//! The settings that the server reads.

mod bind;

use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::time::Duration;

use interlock_request::{ByteSize, Secret};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::origin::{host_problem, origin_problem};

/// `[server]`: the clients' listener, and the bounds of connections and requests.
///
/// Every limit answers with its own status and error code when it is reached.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ServerConfig {
    /// Address and port to listen on. Without a policy that identifies callers, such as
    /// `builtin:quota`, anyone who can reach it can use the model. Set it to `0.0.0.0:8080` when
    /// such a policy, or something in front of the host, checks who calls. `localhost` stands for
    /// `127.0.0.1`; no other name is looked up.
    #[serde(deserialize_with = "bind::address")]
    pub bind: SocketAddr,
    /// Origins of web pages that may use this host from a browser, as in
    /// `["https://chat.example", "http://localhost:3000"]`; `["*"]` for all pages, none by default.
    /// They get CORS headers and their preflights are answered before any policy is asked. A request
    /// that a page of another origin sends is refused with 403, `/health` excepted. Add the origin of
    /// a page that calls this host itself, rather than by way of a server of its own.
    pub allowed_origins: Vec<String>,
    /// Names by which clients may call this host (the `Host` header, without its port), as in
    /// `["llm.example"]`, beside `localhost`, names that end in `.localhost`, and IP addresses; `["*"]`
    /// for all. Another name is refused with 421, `/health` excepted. Unset, all names are taken
    /// where `bind` is an address that others reach, and none beside those where it is a loopback
    /// address: a name there that is not its own may be a web page's that wants to read answers.
    /// Add a name that a proxy or a container on this machine passes on.
    pub allowed_hosts: Vec<String>,
    /// Connections that may be open at once. Beyond this, health and metrics still answer and
    /// everything else gets 503. There are as many places again (64 to 1024) for that; a connection
    /// in them that sends no request soon is closed for a new one. Turn this up when many clients
    /// hold idle connections. Each takes a file descriptor: what the system does not allow is taken
    /// off at start, with a warning.
    pub connections_max: NonZeroUsize,
    /// Connections that one address (of IPv6, one network of 64 bits) may have open at once; over
    /// it, its further ones are treated as those over `connections_max`. Unset, seven eighths of
    /// that, so that no client alone can keep out all others. Turn this up to `connections_max`
    /// behind a proxy, where all come from one address, and down where clients connect themselves.
    #[schemars(example = 64)]
    pub connections_per_address_max: Option<NonZeroUsize>,
    /// Most bytes of a request's body (413 over it). Turn this up when prompts longer than this
    /// fit the model's context.
    // What all of them hold together, `work.memory_max` bounds.
    pub body_max: ByteSize,
    /// Longest time for a request's body to arrive (408 after it). Turn this up when clients
    /// send long prompts over slow links.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub body_timeout: Duration,
    /// Most bytes of a request's head: its first line and all headers (431 over it). Turn this
    /// up when proxies add long headers.
    pub header_max: ByteSize,
    /// Most headers of a request (431 over it). Turn this up when proxies add many.
    pub headers_max: usize,
    /// Longest time for a request's head to arrive, from its first byte on, and for the first request
    /// of a connection to begin (408 after it, or nothing where nothing came). Turn this up when
    /// clients are slow to send their heads.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub header_timeout: Duration,
    /// How long a connection may be idle between two requests; it is closed after this. Clients are
    /// told somewhat less (`Keep-Alive: timeout=...`), so that none sends its next request to a
    /// connection that is being closed. Turn this up above the time for which a proxy or a load
    /// balancer in front of this host keeps idle connections (often 60 s).
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub idle_timeout: Duration,
    /// How long a stream may be silent before a comment (`: keep-alive`, which clients pass over) is
    /// sent in it, so that nothing on the way takes the connection for dead during a long prompt or
    /// a pause; 0s for none. Answers in one piece have nothing of the kind: their clients and proxies
    /// have to wait, or to stream. Turn this down below the shortest read timeout on the way.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub stream_keepalive: Duration,
    /// Longest time that a client may take nothing of what the host sends; its connection is closed
    /// after this. Turn this up when readers pause for longer.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub write_timeout: Duration,
    /// What becomes of a generation whose client closes only the sending half of its connection
    /// (`shutdown(SHUT_WR)`) and still reads. On the network that looks like a client that has
    /// closed altogether, which nearly all have: so with `left` it has left, and the plan's
    /// `on_disconnect` says what follows. `wait` goes on until the connection fails, which a client
    /// that has closed is only noticed by when something is sent to it: a stream soon, an answer in
    /// one piece at its end. Whatever is answered at once (`GET`, errors, refusals) is answered
    /// either way. A reset is always leaving. Set this to `wait` for clients that half-close.
    pub half_close: HalfClose,
    /// Most bytes that are kept of what a client sends behind a request before it is answered,
    /// 0B to 16MiB: the next requests (pipelining), which are served in their turn if it stays.
    /// They are read early because the end of a client that has left lies behind them. What exceeds
    /// this is thrown away, and the connection is closed after the requests before that. Turn this
    /// up when clients send long requests ahead.
    pub pipelined_max: ByteSize,
    /// What `Retry-After` says, in whole seconds, where asking again later may work: the host is full,
    /// loading or ending, or its device lacks memory. Turn this up when clients come back too soon.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub retry_after: Duration,
    /// Shall a request that has the header `x-policy-trace` be answered with one that lists what
    /// each policy decided, why, and how long it took? It tells clients which policies there are.
    /// Turn it on to find out why requests go where they go.
    pub policy_trace: bool,
    /// Longest time that requests in flight may take to finish after the host was told to stop;
    /// then they are cancelled. Turn this up when outputs are long and a rollout may be slow.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub drain_max: Duration,
}

/// What a client means by closing its sending half.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum HalfClose {
    /// It has left.
    Left,
    /// It waits for its answer.
    Wait,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            bind: SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
            allowed_origins: vec![],
            allowed_hosts: vec![],
            connections_max: NonZeroUsize::new(1024).expect("1024 is not 0"),
            connections_per_address_max: None,
            body_max: ByteSize(4 << 20),
            body_timeout: Duration::from_secs(30),
            header_max: ByteSize(16 << 10),
            headers_max: 64,
            header_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(75),
            stream_keepalive: Duration::from_secs(10),
            write_timeout: Duration::from_secs(60),
            half_close: HalfClose::Left,
            pipelined_max: ByteSize(256 << 10),
            retry_after: Duration::from_secs(1),
            policy_trace: false,
            drain_max: Duration::from_secs(30),
        }
    }
}

impl ServerConfig {
    /// Shorter heads than this are refused by clients' habits rather than by their mistakes.
    pub const HEADER_MAX_MIN: ByteSize = ByteSize(1 << 10);
    /// A head is held in memory, per connection, before anything is known of its sender.
    pub const HEADER_MAX_MAX: ByteSize = ByteSize(1 << 20);
    /// A body is held in memory, per request.
    pub const BODY_MAX_MAX: ByteSize = ByteSize(256 << 20);
    /// What was read ahead is held in memory, per connection.
    pub const PIPELINED_MAX_MAX: ByteSize = ByteSize(16 << 20);
    /// What the head's parser can count.
    pub const HEADERS_MAX_MAX: usize = 1024;
    /// Each takes a file descriptor, and no system gives a process more.
    pub const CONNECTIONS_MAX_MAX: usize = 1 << 20;

    /// Comments that come more often than this cost more than the stream.
    pub const STREAM_KEEPALIVE_MIN: Duration = Duration::from_millis(10);

    /// Connections that one address may have.
    pub(crate) fn per_address(&self) -> usize {
        let all = self.connections_max.get();
        self.connections_per_address_max.map_or(all - all / 8, NonZeroUsize::get)
    }

    /// Every problem, as key, relation, value.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let sizes = [
            ("body_max", self.body_max, ByteSize(1), Self::BODY_MAX_MAX),
            ("header_max", self.header_max, Self::HEADER_MAX_MIN, Self::HEADER_MAX_MAX),
            ("pipelined_max", self.pipelined_max, ByteSize(0), Self::PIPELINED_MAX_MAX),
        ];
        for (key, value, least, most) in sizes {
            if !(least..=most).contains(&value) {
                problems.push(format!("server.{key} must be {least} to {most}, got {value}"));
            }
        }
        let most = Self::CONNECTIONS_MAX_MAX;
        let per_address = self.connections_per_address_max;
        let connections = [
            ("connections_max", Some(self.connections_max)),
            ("connections_per_address_max", per_address),
        ];
        for (key, value) in connections {
            if let Some(value) = value.filter(|value| value.get() > most) {
                problems.push(format!("server.{key} must be at most {most}, got {value}"));
            }
        }
        let (most, headers) = (Self::HEADERS_MAX_MAX, self.headers_max);
        if !(1..=most).contains(&headers) {
            problems.push(format!("server.headers_max must be 1 to {most}, got {headers}"));
        }
        let times = [
            ("body_timeout", self.body_timeout),
            ("header_timeout", self.header_timeout),
            ("idle_timeout", self.idle_timeout),
            ("write_timeout", self.write_timeout),
        ];
        problems.extend(
            times
                .iter()
                .filter(|(_, time)| time.is_zero())
                .map(|(key, _)| format!("server.{key} must exceed 0s, got 0s")),
        );
        let (least, keepalive) = (Self::STREAM_KEEPALIVE_MIN, self.stream_keepalive);
        if !keepalive.is_zero() && keepalive < least {
            problems.push(format!(
                "server.stream_keepalive must be 0s (none) or at least {least:?}, got {keepalive:?}"
            ));
        }
        let origins = self.allowed_origins.iter().filter_map(|origin| origin_problem(origin));
        problems.extend(origins.map(|why| format!("server.allowed_origins {why}")));
        let hosts = self.allowed_hosts.iter().filter_map(|host| host_problem(host));
        problems.extend(hosts.map(|why| format!("server.allowed_hosts {why}")));
        problems
    }
}

/// `[admin]`: where an operator swaps policies, and lists and cancels requests, while the host runs.
///
/// A listener of its own, so that the port of the clients has nothing of it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AdminConfig {
    /// Address and port to listen on; unset, there is no such listener. An address that others can
    /// reach needs a token. Requests of web pages are refused, and so are those for a host that is
    /// neither `localhost` nor this address, where only this machine can reach it.
    #[serde(deserialize_with = "bind::optional_address")]
    #[schemars(example = &"127.0.0.1:8081")]
    pub bind: Option<SocketAddr>,
    /// What a request must show as `authorization: Bearer TOKEN`; unset, nothing.
    #[schemars(example = &"a long random text")]
    pub token: Option<Secret>,
    /// Connections that may be open there at once, 1 to 1024. Beyond this, a connection that sends
    /// no request soon is closed for a new one. Its connections are timed as those of clients are
    /// (`server.header_timeout`, `server.idle_timeout`, `server.write_timeout`).
    pub connections_max: NonZeroUsize,
    /// Most bytes of a component that is sent there.
    pub component_max: ByteSize,
}

impl Default for AdminConfig {
    fn default() -> Self {
        let connections_max = NonZeroUsize::new(256).expect("256 is not 0");
        Self { bind: None, token: None, connections_max, component_max: ByteSize(64 << 20) }
    }
}

impl AdminConfig {
    /// Its connections take descriptors that clients could have.
    pub const CONNECTIONS_MAX_MAX: usize = 1024;

    /// Every problem, as key, relation, value.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = vec![];
        let open = self.bind.filter(|bind| !bind.ip().is_loopback() && self.token.is_none());
        if let Some(bind) = open {
            problems.push(format!(
                "admin.token must be set where others can reach admin.bind, got nothing for {bind}"
            ));
        }
        let (most, connections) = (Self::CONNECTIONS_MAX_MAX, self.connections_max);
        if connections.get() > most {
            problems.push(format!("admin.connections_max must be 1 to {most}, got {connections}"));
        }
        if self.token.as_ref().is_some_and(|token| token.reveal().is_empty()) {
            problems.push("admin.token must not be empty, got \"\"".into());
        }
        problems
    }
}

/// `[metrics]`: where `/metrics` is, if not on the clients' port.
///
/// Metrics name models, policies and, if a policy counts by them, tenants, and nothing asks there for
/// a token: a listener of their own keeps them from whoever may only use the model.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MetricsConfig {
    /// Address and port to listen on for `GET /metrics`, which is then not on the clients' port;
    /// unset, it is there. Requests of web pages are refused, and so are those for a host that is
    /// neither `localhost` nor this address, where only this machine can reach it. Set this where
    /// clients can reach `server.bind` who should not see metrics.
    #[serde(deserialize_with = "bind::optional_address")]
    #[schemars(example = &"127.0.0.1:9090")]
    pub bind: Option<SocketAddr>,
    /// Connections that may be open there at once, 1 to 1024. Beyond this, a connection that sends
    /// no request soon is closed for a new one. Its connections are timed as those of clients are
    /// (`server.header_timeout`, `server.idle_timeout`, `server.write_timeout`).
    pub connections_max: NonZeroUsize,
}

impl Default for MetricsConfig {
    fn default() -> Self {
        Self { bind: None, connections_max: NonZeroUsize::new(64).expect("64 is not 0") }
    }
}

impl MetricsConfig {
    /// Every problem, as key, relation, value.
    pub fn problems(&self) -> Vec<String> {
        let (most, connections) = (AdminConfig::CONNECTIONS_MAX_MAX, self.connections_max);
        let too_many = (connections.get() > most)
            .then(|| format!("metrics.connections_max must be 1 to {most}, got {connections}"));
        too_many.into_iter().collect()
    }
}

/// `[detached]`: requests that go on without a client, and their results.
///
/// Responses with `background: true`, and requests whose client left while the policies' plan was
/// to finish them. A response in the background has no client that could leave, so what its plan
/// says of that has no effect: its deadlines end it, or whoever cancels it. Results lie in memory and are lost when the host stops.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DetachedConfig {
    /// Requests that may go on without a client at a time: those in the background, and those
    /// whose client left while the policies' plan was to go on, kept or not. Over it, one whose
    /// client left is cancelled, and a new one for the background gets 429. 0: none goes on. Turn
    /// this up when the log says that too many do.
    pub requests_max: usize,
    /// Results that are kept; the oldest goes first.
    pub results_max: usize,
    /// Most memory for results, with what they repeat of their requests; the oldest goes first. Turn this up when results are gone before
    /// they are asked for.
    pub memory_max: ByteSize,
    /// How long a result is kept.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub keep: Duration,
}

impl Default for DetachedConfig {
    fn default() -> Self {
        Self {
            requests_max: 64,
            results_max: 1024,
            memory_max: ByteSize(64 << 20),
            keep: Duration::from_secs(600),
        }
    }
}

impl DetachedConfig {
    /// Longest time for which a result may be kept: results lie in memory.
    const KEEP_MAX: Duration = Duration::from_secs(24 * 3600);
    /// More of them than this only fill memory with what nobody fetches.
    pub const REQUESTS_MAX_MAX: usize = 1_000_000;

    /// Every problem, as key, relation, value.
    pub fn problems(&self) -> Vec<String> {
        let most = Self::KEEP_MAX;
        let too_long = (self.keep > most)
            .then(|| format!("detached.keep must be at most {most:?}, got {:?}", self.keep));
        let most = Self::REQUESTS_MAX_MAX;
        let numbers = [("requests_max", self.requests_max), ("results_max", self.results_max)];
        let too_many = numbers.into_iter().filter(|(_, number)| *number > most);
        let too_many = too_many
            .map(|(key, number)| format!("detached.{key} must be at most {most}, got {number}"));
        too_long.into_iter().chain(too_many).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_have_no_problems() {
        assert_eq!(ServerConfig::default().problems(), Vec::<String>::new());
    }

    #[test]
    fn every_problem_is_reported_with_key_relation_and_value() {
        let config = ServerConfig {
            body_max: ByteSize(0),
            header_max: ByteSize(100),
            headers_max: 0,
            pipelined_max: ByteSize(17 << 20),
            body_timeout: Duration::ZERO,
            ..ServerConfig::default()
        };
        assert_eq!(
            config.problems(),
            [
                "server.body_max must be 1B to 256MiB, got 0B",
                "server.header_max must be 1KiB to 1MiB, got 100B",
                "server.pipelined_max must be 0B to 16MiB, got 17MiB",
                "server.headers_max must be 1 to 1024, got 0",
                "server.body_timeout must exceed 0s, got 0s",
            ]
        );
    }
}
