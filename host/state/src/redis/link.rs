//! Connections to Redis: few, lent for one call, and left alone while the server is.
//!
//! ```text
//!      a line breaks, a ping or a connect fails,
//!           or nothing is answered in time
//!   Up ────────────────────────────────────► Down     calls fail at once, with the reason
//!    ▲                                         │
//!    └──── the keeper has connected anew ◄─────┘      tries at once, then every 10ms to 1s
//! ```
//!
//! One answer that comes too late costs one connection, which the keeper replaces: a server that
//! pauses for a moment, or one slow script, is not a server that is gone.
//!
//! A call never connects, resolves a name or retries: it takes a connection that is open, or waits
//! its turn within its time. All else is done by one thread, the keeper. A link begins down; who
//! opens it waits for the keeper's first attempt, within a bound, and has a link either way.
//!
//! # Invariants
//!
//! - A call ends within `timeout`: what it waited for a connection is off what it may wait for the
//!   answer. (Each write and each read may take what is left; there is one of each, except after
//!   somebody's `SCRIPT FLUSH`.)
//! - A connection on which a call failed is closed: a late answer must not be read as another's.
//! - Down, no call touches the network.
//! - A connection that was lent comes back, is replaced or is given up with all others, also when
//!   the call panics; and the keeper outlives its own panics.
//! - Nothing is sent twice. Whether a call that failed was carried out is not known, and taking
//!   twice is worse than saying so.

mod keeper;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use ::redis::{Connection, RedisResult, Script};

use self::keeper::keep;
use super::address::Connector;
use super::failure::{Failure, Reports};
use crate::metrics::{FailureKind, StateMetrics};

/// The host's connections to one server, and the thread that keeps them.
pub(super) struct Link {
    shared: Arc<Shared>,
}

struct Shared {
    scripts: Vec<Script>,
    timeout: Duration,
    reports: Reports,
    metrics: OnceLock<StateMetrics>,
    lines: Mutex<Lines>,
    /// Somebody gave a connection back, or there are none to wait for.
    returned: Condvar,
    /// There is something for the keeper to do.
    wanted: Condvar,
}

#[derive(Default)]
struct Lines {
    idle: Vec<Idle>,
    /// Counts the times that the server was lost: a connection lent before is not taken back.
    epoch: u64,
    /// Connections that were closed because an answer was late, and are to be replaced.
    missing: usize,
    /// Times in a row that nothing was answered. See [`SILENCES_MAX`].
    silences: u32,
    /// Why there are none.
    down: Option<Failure>,
    /// The keeper has tried to connect at least once.
    tried: bool,
    closing: bool,
}

struct Idle {
    connection: Connection,
    used: Instant,
}

/// What was there when a connection was lent.
#[derive(Clone, Copy)]
struct Lent {
    epoch: u64,
    silences: u32,
}

/// A connection that is lent. Dropped without having been taken out, as by a panic, it is replaced.
struct Borrowed<'a> {
    shared: &'a Shared,
    connection: Option<Connection>,
    epoch: u64,
}

impl Borrowed<'_> {
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

    /// To whoever knows what becomes of it.
    fn take(mut self) -> Option<Connection> {
        self.connection.take()
    }
}

impl Drop for Borrowed<'_> {
    fn drop(&mut self) {
        if self.connection.take().is_some() {
            self.shared.replace(self.epoch);
        }
    }
}

/// As many as calls that one policy makes at once, on most machines; a call is short, and one that
/// finds none waits its turn.
fn connections() -> usize {
    std::thread::available_parallelism().map_or(16, usize::from).clamp(16, 32)
}

/// To connect. On nobody's path but the start's.
pub(super) const CONNECT: Duration = Duration::from_secs(2);

/// Longest that the start waits for a server before it goes on without one.
const START: Duration = Duration::from_secs(5);

/// So often in a row a call waits its whole time for nothing until the server counts as lost. Calls
/// that wait at the same time wait for the same silence, which counts once.
const SILENCES_MAX: u32 = 3;

impl Link {
    /// A link that is up, or, if the server cannot be used within [`START`], one that will be.
    ///
    /// # Errors
    ///
    /// When there is no room for a thread.
    pub(super) fn open(
        connector: Connector,
        timeout: Duration,
        scripts: Vec<Script>,
    ) -> std::io::Result<Self> {
        let none = Failure::unsent(FailureKind::Unreachable, format!("no answer within {START:?}"));
        let shared = Arc::new(Shared {
            scripts,
            timeout,
            reports: Reports::default(),
            metrics: OnceLock::new(),
            lines: Mutex::new(Lines { down: Some(none), ..Lines::default() }),
            returned: Condvar::new(),
            wanted: Condvar::new(),
        });
        let kept = Arc::clone(&shared);
        let keeper = std::thread::Builder::new().name("interlock-redis".into());
        keeper.spawn(move || keep(&kept, connector))?;
        let untried = |lines: &mut Lines| !lines.tried;
        drop(shared.returned.wait_timeout_while(shared.lines(), START, untried));
        Ok(Self { shared })
    }

    /// Why no call can succeed now.
    pub(super) fn down(&self) -> Option<Failure> {
        self.shared.lines().down.clone()
    }

    /// Counts what fails, from now on.
    pub(super) fn count_in(&self, metrics: &StateMetrics) {
        self.shared.reports.count_in(metrics.failures());
        let _first = self.shared.metrics.set(metrics.clone());
        self.shared.show(&self.shared.lines());
    }

    /// Runs one call on one connection.
    pub(super) fn with<T>(
        &self,
        call: impl FnOnce(&mut Connection) -> RedisResult<T>,
    ) -> Result<T, Failure> {
        self.with_patience(self.shared.timeout, call)
    }

    /// The same for whoever can wait longer than a request does.
    pub(super) fn with_patience<T>(
        &self,
        wait_max: Duration,
        call: impl FnOnce(&mut Connection) -> RedisResult<T>,
    ) -> Result<T, Failure> {
        let answer = self.shared.call(wait_max, call);
        answer.inspect_err(|failure| self.shared.reports.failed(failure))
    }
}

impl Drop for Link {
    /// The keeper is told and not waited for: it may be in the middle of a connect.
    fn drop(&mut self) {
        self.shared.lines().closing = true;
        self.shared.wanted.notify_all();
    }
}

impl Shared {
    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn call<T>(
        &self,
        wait_max: Duration,
        call: impl FnOnce(&mut Connection) -> RedisResult<T>,
    ) -> Result<T, Failure> {
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
            Err(error) => Failure::of(&error),
        };
        match failure.kind {
            // No answer yet; it may come when nobody waits for it.
            FailureKind::Late => {
                drop(connection);
                failure.why = format!("redis did not answer within {wait_max:?}");
                self.late(lent, &failure);
            }
            // The line is broken.
            FailureKind::Unreachable => {
                drop(connection);
                self.lost(lent.epoch, &failure);
            }
            // The server said so, over a line that works.
            _ => self.take_back(connection, lent.epoch),
        }
        Err(failure)
    }

    /// Shows whether there is a server.
    fn show(&self, lines: &Lines) {
        if let Some(metrics) = self.metrics.get() {
            metrics.available.set(lines.down.is_none().into());
        }
    }

    fn lend(&self, until: Instant, wait_max: Duration) -> Result<(Connection, Lent), Failure> {
        let mut lines = self.lines();
        let came = Lent { epoch: lines.epoch, silences: lines.silences };
        loop {
            if let Some(down) = &lines.down {
                return Err(Failure { sent: false, ..down.clone() });
            }
            if let Some(idle) = lines.idle.pop() {
                let lent = Lent { epoch: lines.epoch, silences: lines.silences };
                return Ok((idle.connection, lent));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                // Nobody has one, and none was made meanwhile: that is silence too.
                if lines.missing == connections() {
                    let why = format!("there was no connection to redis for {wait_max:?}");
                    let failure = Failure::unsent(FailureKind::Late, why);
                    self.silent(lines, came, &failure);
                    return Err(failure);
                }
                let why = format!("every connection to redis was in use for {wait_max:?}");
                return Err(Failure::unsent(FailureKind::Crowded, why));
            }
            lines =
                self.returned.wait_timeout(lines, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn borrowed(&self, connection: Connection, epoch: u64) -> Borrowed<'_> {
        Borrowed { shared: self, connection: Some(connection), epoch }
    }

    fn take_back(&self, connection: Option<Connection>, epoch: u64) {
        let Some(connection) = connection else { return };
        let mut lines = self.lines();
        if lines.epoch == epoch {
            lines.silences = 0;
            lines.idle.push(Idle { connection, used: Instant::now() });
            self.returned.notify_one();
        }
    }

    /// A call got no answer in time, and its connection is closed.
    fn late(&self, lent: Lent, failure: &Failure) {
        self.replace(lent.epoch);
        self.silent(self.lines(), lent, failure);
    }

    /// A connection of this epoch is closed; the keeper makes another.
    fn replace(&self, epoch: u64) {
        let mut lines = self.lines();
        if lines.epoch == epoch {
            lines.missing += 1;
            self.wanted.notify_all();
        }
    }

    /// Counts a silence, unless one who waited at the same time has; after too many all is lost.
    fn silent(&self, mut lines: MutexGuard<'_, Lines>, since: Lent, failure: &Failure) {
        if (lines.epoch, lines.silences) != (since.epoch, since.silences) {
            return;
        }
        lines.silences += 1;
        if lines.silences >= SILENCES_MAX {
            drop(lines);
            self.lost(since.epoch, failure);
        }
    }

    /// The server of this epoch is gone. The first to say so closes the rest and wakes the keeper.
    fn lost(&self, epoch: u64, failure: &Failure) {
        let mut lines = self.lines();
        if lines.epoch != epoch {
            return;
        }
        let Failure { kind, why, .. } = failure;
        tracing::warn!(
            kind = kind.as_str(),
            why,
            "policies' state is unavailable until redis answers"
        );
        lines.epoch += 1;
        lines.down = Some(failure.clone());
        self.show(&lines);
        let closed = std::mem::take(&mut lines.idle);
        drop(lines);
        drop(closed);
        self.returned.notify_all();
        self.wanted.notify_all();
    }
}
