//! Connections to Redis: few, lent for one call, and left alone while the server is.
//!
//! ```text
//!      a line breaks, a ping or a connect fails,
//!           or nothing is answered in time
//!   Up ────────────────────────────────────► Down     calls fail at once, with the reason
//!    ▲                                         │
//!    └──── a connection was made anew ◄─────┘      tries at once, then every 10ms to 1s
//! ```
//!
//! One answer that comes too late costs one connection, which the background thread replaces: a server that
//! pauses for a moment, or one slow script, is not a server that is gone.
//!
//! A call never connects, resolves a name or retries: it takes a connection that is open, or waits
//! its turn within its time. All else is done by one background thread. A pool begins down; who
//! opens it waits for the background thread's first attempt, within a bound, and has a pool either way.
//!
//! # Invariants
//!
//! - A call ends within `timeout`: what it waited for a connection is off what it may wait for the
//!   answer. (Each write and each read may take what is left; there is one of each, except after
//!   somebody's `SCRIPT FLUSH`.)
//! - A connection on which a call failed is closed: a late answer must not be read as another's.
//! - Down, no call touches the network.
//! - A connection that was lent comes back, is replaced or is given up with all others, also when
//!   the call panics; and the background thread outlives its own panics.
//! - Nothing is sent twice. Whether a call that failed was carried out is not known, and taking
//!   twice is worse than saying so.

mod reconnect;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use ::redis::{Connection, RedisResult, Script};

use self::reconnect::keep_connected;
use super::address::Connector;
use super::failure::{CallFailure, OutageLog};
use crate::metrics::{StateFailureKind, StateMetrics};

/// The host's connections to one server, and the thread that keeps them.
pub(super) struct ConnectionPool {
    shared: Arc<PoolShared>,
}

struct PoolShared {
    scripts: Vec<Script>,
    timeout: Duration,
    reports: OutageLog,
    metrics: OnceLock<StateMetrics>,
    connections: Mutex<Connections>,
    /// Somebody gave a connection back, or there are none to wait for.
    returned: Condvar,
    /// There is something for the background thread to do.
    wanted: Condvar,
}

#[derive(Default)]
struct Connections {
    idle: Vec<IdleConnection>,
    /// Counts the times that the server was lost: a connection lent before is not taken back.
    epoch: u64,
    /// Connections that were closed because an answer was late, and are to be replaced.
    missing: usize,
    /// Times in a row that nothing was answered. See [`SILENCES_MAX`].
    silences: u32,
    /// The failure because of which there are no connections; `None` while there are.
    down: Option<CallFailure>,
    /// The background thread has tried to connect at least once.
    tried: bool,
    closing: bool,
}

struct IdleConnection {
    connection: Connection,
    used: Instant,
}

/// The state of the pool when a connection was lent.
#[derive(Clone, Copy)]
struct LentState {
    epoch: u64,
    silences: u32,
}

/// A connection that is lent. Dropped without having been taken out, as by a panic, it is replaced.
struct PooledConnection<'a> {
    shared: &'a PoolShared,
    connection: Option<Connection>,
    epoch: u64,
}

impl PooledConnection<'_> {
    /// Makes a call on it, which may wait so long to write and to read.
    fn ask<T>(
        &mut self,
        wait_max: Duration,
        call: impl FnOnce(&mut Connection) -> RedisResult<T>,
    ) -> RedisResult<T> {
        let connection = self.connection.as_mut().expect("it is there until it is taken");
        connection.set_read_timeout(Some(wait_max))?;
        connection.set_write_timeout(Some(wait_max))?;
        call(connection)
    }

    /// Takes the connection out, so that it is not replaced.
    fn take(mut self) -> Option<Connection> {
        self.connection.take()
    }
}

impl Drop for PooledConnection<'_> {
    fn drop(&mut self) {
        if self.connection.take().is_some() {
            self.shared.replace(self.epoch);
        }
    }
}

/// As many as calls that one policy makes at once, on most machines; a call is short, and one that
/// finds none waits its turn.
fn connections_max() -> usize {
    std::thread::available_parallelism().map_or(16, usize::from).clamp(16, 32)
}

/// How long connecting may take. Only the start waits for it.
pub(super) const CONNECT: Duration = Duration::from_secs(2);

/// Longest that the start waits for a server before it goes on without one.
const START: Duration = Duration::from_secs(5);

/// So often in a row a call waits its whole time for nothing until the server counts as lost. Calls
/// that wait at the same time wait for the same silence, which counts once.
const SILENCES_MAX: u32 = 3;

impl ConnectionPool {
    /// A pool that is up, or, if the server cannot be used within [`START`], one that will be.
    ///
    /// # Errors
    ///
    /// When there is no room for a thread.
    pub(super) fn open(
        connector: Connector,
        timeout: Duration,
        scripts: Vec<Script>,
    ) -> std::io::Result<Self> {
        let none = CallFailure::unsent(
            StateFailureKind::Unreachable,
            format!("no answer within {START:?}"),
        );
        let shared = Arc::new(PoolShared {
            scripts,
            timeout,
            reports: OutageLog::default(),
            metrics: OnceLock::new(),
            connections: Mutex::new(Connections { down: Some(none), ..Connections::default() }),
            returned: Condvar::new(),
            wanted: Condvar::new(),
        });
        let kept = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("interlock-redis".into());
        thread.spawn(move || keep_connected(&kept, connector))?;
        let untried = |connections: &mut Connections| !connections.tried;
        drop(shared.returned.wait_timeout_while(shared.connections(), START, untried));
        Ok(Self { shared })
    }

    /// The failure because of which no call can succeed now.
    pub(super) fn down(&self) -> Option<CallFailure> {
        self.shared.connections().down.clone()
    }

    /// Counts what fails, from now on.
    pub(super) fn count_in(&self, metrics: &StateMetrics) {
        self.shared.reports.count_in(metrics.failures());
        let _first = self.shared.metrics.set(metrics.clone());
        self.shared.show(&self.shared.connections());
    }

    /// Runs one call on one connection.
    pub(super) fn with<T>(
        &self,
        call: impl FnOnce(&mut Connection) -> RedisResult<T>,
    ) -> Result<T, CallFailure> {
        self.with_timeout(self.shared.timeout, call)
    }

    /// Makes a call with another timeout than that of requests.
    pub(super) fn with_timeout<T>(
        &self,
        wait_max: Duration,
        call: impl FnOnce(&mut Connection) -> RedisResult<T>,
    ) -> Result<T, CallFailure> {
        let answer = self.shared.call(wait_max, call);
        answer.inspect_err(|failure| self.shared.reports.failed(failure))
    }
}

impl Drop for ConnectionPool {
    /// The background thread is told and not waited for: it may be in the middle of a connect.
    fn drop(&mut self) {
        self.shared.connections().closing = true;
        self.shared.wanted.notify_all();
    }
}

impl PoolShared {
    fn connections(&self) -> MutexGuard<'_, Connections> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn call<T>(
        &self,
        wait_max: Duration,
        call: impl FnOnce(&mut Connection) -> RedisResult<T>,
    ) -> Result<T, CallFailure> {
        let until = Instant::now() + wait_max;
        let (connection, lent) = self.lend(until, wait_max)?;
        let mut borrowed = self.borrowed(connection, lent.epoch);
        let left = until.saturating_duration_since(Instant::now()).max(Duration::from_micros(100));
        let answer = borrowed.ask(left, call);
        let connection = borrowed.take();
        let mut failure = match answer {
            Ok(value) => {
                self.take_back(connection, lent.epoch);
                return Ok(value);
            }
            Err(error) => CallFailure::of(&error),
        };
        match failure.kind {
            // No answer yet; it may come when nobody waits for it.
            StateFailureKind::Late => {
                drop(connection);
                failure.why = format!("redis did not answer within {wait_max:?}");
                self.late(lent, &failure);
            }
            // The line is broken.
            StateFailureKind::Unreachable => {
                drop(connection);
                self.lost(lent.epoch, &failure);
            }
            // The server said so, over a line that works.
            _ => self.take_back(connection, lent.epoch),
        }
        Err(failure)
    }

    /// Shows whether there is a server.
    fn show(&self, connections: &Connections) {
        if let Some(metrics) = self.metrics.get() {
            metrics.available.set(connections.down.is_none().into());
        }
    }

    fn lend(
        &self,
        until: Instant,
        wait_max: Duration,
    ) -> Result<(Connection, LentState), CallFailure> {
        let mut connections = self.connections();
        let came = LentState { epoch: connections.epoch, silences: connections.silences };
        loop {
            if let Some(down) = &connections.down {
                return Err(CallFailure { sent: false, ..down.clone() });
            }
            if let Some(idle) = connections.idle.pop() {
                let lent = LentState { epoch: connections.epoch, silences: connections.silences };
                return Ok((idle.connection, lent));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                // Nobody has one, and none was made meanwhile: that is silence too.
                if connections.missing == connections_max() {
                    let why = format!("there was no connection to redis for {wait_max:?}");
                    let failure = CallFailure::unsent(StateFailureKind::Late, why);
                    self.silent(connections, came, &failure);
                    return Err(failure);
                }
                let why = format!("every connection to redis was in use for {wait_max:?}");
                return Err(CallFailure::unsent(StateFailureKind::Crowded, why));
            }
            connections = self
                .returned
                .wait_timeout(connections, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    fn borrowed(&self, connection: Connection, epoch: u64) -> PooledConnection<'_> {
        PooledConnection { shared: self, connection: Some(connection), epoch }
    }

    fn take_back(&self, connection: Option<Connection>, epoch: u64) {
        let Some(connection) = connection else { return };
        let mut connections = self.connections();
        if connections.epoch == epoch {
            connections.silences = 0;
            connections.idle.push(IdleConnection { connection, used: Instant::now() });
            self.returned.notify_one();
        }
    }

    /// A call got no answer in time, and its connection is closed.
    fn late(&self, lent: LentState, failure: &CallFailure) {
        self.replace(lent.epoch);
        self.silent(self.connections(), lent, failure);
    }

    /// A connection of this epoch is closed; the background thread makes another.
    fn replace(&self, epoch: u64) {
        let mut connections = self.connections();
        if connections.epoch == epoch {
            connections.missing += 1;
            self.wanted.notify_all();
        }
    }

    /// Counts a silence, unless one who waited at the same time has; after too many all is lost.
    fn silent(
        &self,
        mut connections: MutexGuard<'_, Connections>,
        since: LentState,
        failure: &CallFailure,
    ) {
        if (connections.epoch, connections.silences) != (since.epoch, since.silences) {
            return;
        }
        connections.silences += 1;
        if connections.silences >= SILENCES_MAX {
            drop(connections);
            self.lost(since.epoch, failure);
        }
    }

    /// The server of this epoch is gone. The first to say so closes the rest and wakes the background thread.
    fn lost(&self, epoch: u64, failure: &CallFailure) {
        let mut connections = self.connections();
        if connections.epoch != epoch {
            return;
        }
        let CallFailure { kind, why, .. } = failure;
        tracing::warn!(
            kind = kind.as_str(),
            why,
            "policies' state is unavailable until redis answers"
        );
        connections.epoch += 1;
        connections.down = Some(failure.clone());
        self.show(&connections);
        let closed = std::mem::take(&mut connections.idle);
        drop(connections);
        drop(closed);
        self.returned.notify_all();
        self.wanted.notify_all();
    }
}
