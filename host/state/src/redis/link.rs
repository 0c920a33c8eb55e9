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
//! its turn within its time. All else is done by one thread, the keeper.
//!
//! # Invariants
//!
//! - A call ends within `timeout`: what it waited for a connection is off what it may wait for the
//!   answer. (Each write and each read may take what is left; there is one of each, except after
//!   somebody's `SCRIPT FLUSH`.)
//! - A connection on which a call failed is closed: a late answer must not be read as another's.
//! - Down, no call touches the network.
//! - Nothing is sent twice. Whether a call that failed was carried out is not known, and taking
//!   twice is worse than saying so.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ::redis::{Client, Connection, ErrorKind, RedisError, RedisResult, Script};

use crate::space::StateFault;

/// The host's connections to one server, and the thread that keeps them.
pub(super) struct Link {
    shared: Arc<Shared>,
}

struct Shared {
    client: Client,
    scripts: Vec<Script>,
    timeout: Duration,
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
    down: Option<String>,
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

/// Why a call failed, for the connections.
enum Failed {
    /// The server said so, over a line that works.
    Refused,
    /// No answer yet; it may come when nobody waits for it.
    Late,
    /// The line is broken.
    Broken,
}

/// As many as there are threads that serve requests, on most machines; a call is short, and one
/// that finds none waits its turn.
fn connections() -> usize {
    std::thread::available_parallelism().map_or(4, usize::from).clamp(2, 32)
}

/// To connect and load the scripts. On nobody's path but the start's.
const CONNECT: Duration = Duration::from_secs(2);

/// After this much rest a connection is tried before somebody needs it: servers and firewalls drop
/// what is quiet.
const REST: Duration = Duration::from_secs(10);

/// So often in a row a call waits its whole time for nothing until the server counts as lost. Calls
/// that wait at the same time wait for the same silence, which counts once.
const SILENCES_MAX: u32 = 3;

const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_secs(1);

impl Link {
    pub(super) fn open(url: &str, timeout: Duration, scripts: Vec<Script>) -> RedisResult<Self> {
        let shared = Shared {
            client: Client::open(url)?,
            scripts,
            timeout,
            lines: Mutex::new(Lines::default()),
            returned: Condvar::new(),
            wanted: Condvar::new(),
        };
        shared.lines().idle = shared.connect_all()?;
        let shared = Arc::new(shared);
        let kept = Arc::clone(&shared);
        std::thread::Builder::new().name("interlock-redis".into()).spawn(move || keep(&kept))?;
        Ok(Self { shared })
    }

    /// Runs one call on one connection.
    pub(super) fn with<T>(
        &self,
        call: impl FnOnce(&mut Connection) -> RedisResult<T>,
    ) -> Result<T, StateFault> {
        let until = Instant::now() + self.shared.timeout;
        let (mut connection, lent) = self.shared.lend(until)?;
        let left = until.saturating_duration_since(Instant::now()).max(Duration::from_micros(100));
        let answer = connection
            .set_read_timeout(Some(left))
            .and_then(|()| connection.set_write_timeout(Some(left)))
            .and_then(|()| call(&mut connection));
        match answer {
            Ok(value) => {
                self.shared.take_back(connection, lent.epoch);
                Ok(value)
            }
            Err(error) => {
                let why = match failed(&error) {
                    Failed::Refused => {
                        self.shared.take_back(connection, lent.epoch);
                        format!("redis: {error}")
                    }
                    Failed::Late => {
                        drop(connection);
                        let why = format!("redis did not answer within {:?}", self.shared.timeout);
                        self.shared.late(lent, &why);
                        why
                    }
                    Failed::Broken => {
                        drop(connection);
                        let why = format!("redis: {error}");
                        self.shared.lost(lent.epoch, &why);
                        why
                    }
                };
                Err(StateFault::Unavailable(why))
            }
        }
    }
}

fn failed(error: &RedisError) -> Failed {
    match error.kind() {
        // An extension is any code that the client does not know by name: OOM, MISCONF and BUSY
        // among them.
        ErrorKind::Server(_) | ErrorKind::Extension => Failed::Refused,
        _ if error.is_timeout() => Failed::Late,
        _ => Failed::Broken,
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

    fn lend(&self, until: Instant) -> Result<(Connection, Lent), StateFault> {
        let mut lines = self.lines();
        let came = Lent { epoch: lines.epoch, silences: lines.silences };
        loop {
            if let Some(why) = &lines.down {
                return Err(StateFault::Unavailable(why.clone()));
            }
            if let Some(idle) = lines.idle.pop() {
                let lent = Lent { epoch: lines.epoch, silences: lines.silences };
                return Ok((idle.connection, lent));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                // Nobody has one, and none was made meanwhile: that is silence too.
                let why = if lines.missing == connections() {
                    let why = format!("there was no connection to redis for {:?}", self.timeout);
                    self.silent(lines, came, &why);
                    why
                } else {
                    format!("every connection to redis was in use for {:?}", self.timeout)
                };
                return Err(StateFault::Unavailable(why));
            }
            lines =
                self.returned.wait_timeout(lines, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn take_back(&self, connection: Connection, epoch: u64) {
        let mut lines = self.lines();
        if lines.epoch == epoch {
            lines.silences = 0;
            lines.idle.push(Idle { connection, used: Instant::now() });
            self.returned.notify_one();
        }
    }

    /// A call got no answer in time, and its connection is closed.
    fn late(&self, lent: Lent, why: &str) {
        let mut lines = self.lines();
        if lines.epoch == lent.epoch {
            lines.missing += 1;
            self.wanted.notify_all();
        }
        self.silent(lines, lent, why);
    }

    /// Counts a silence, unless one who waited at the same time has; after too many all is lost.
    fn silent(&self, mut lines: MutexGuard<'_, Lines>, since: Lent, why: &str) {
        if (lines.epoch, lines.silences) != (since.epoch, since.silences) {
            return;
        }
        lines.silences += 1;
        if lines.silences >= SILENCES_MAX {
            drop(lines);
            self.lost(since.epoch, why);
        }
    }

    /// The server of this epoch is gone. The first to say so closes the rest and wakes the keeper.
    fn lost(&self, epoch: u64, why: &str) {
        let mut lines = self.lines();
        if lines.epoch != epoch {
            return;
        }
        tracing::warn!(why, "policies' state is unavailable until redis answers");
        lines.epoch += 1;
        lines.down = Some(why.to_owned());
        let closed = std::mem::take(&mut lines.idle);
        drop(lines);
        drop(closed);
        self.returned.notify_all();
        self.wanted.notify_all();
    }

    fn connect_all(&self) -> RedisResult<Vec<Idle>> {
        let mut first = self.client.get_connection_with_timeout(CONNECT)?;
        first.set_read_timeout(Some(CONNECT))?;
        first.set_write_timeout(Some(CONNECT))?;
        // A server that was restarted has forgotten them.
        for script in &self.scripts {
            script.load(&mut first)?;
        }
        let mut all = vec![Idle { connection: first, used: Instant::now() }];
        while all.len() < connections() {
            let connection = self.client.get_connection_with_timeout(CONNECT)?;
            all.push(Idle { connection, used: Instant::now() });
        }
        Ok(all)
    }

    /// Makes a connection anew that was closed because an answer was late.
    fn replace_one(&self) {
        let epoch = {
            let lines = self.lines();
            if lines.missing == 0 {
                return;
            }
            lines.epoch
        };
        match self.client.get_connection_with_timeout(CONNECT) {
            Ok(connection) => {
                let mut lines = self.lines();
                if lines.epoch == epoch {
                    lines.missing -= 1;
                    lines.idle.push(Idle { connection, used: Instant::now() });
                    self.returned.notify_one();
                }
            }
            Err(error) => self.lost(epoch, &format!("redis: {error}")),
        }
    }

    /// Tries a connection that rested for long.
    fn ping_one(&self) {
        let (connection, epoch) = {
            let mut lines = self.lines();
            let rested = lines.idle.iter().position(|idle| idle.used.elapsed() >= REST);
            let Some(at) = rested else { return };
            (lines.idle.swap_remove(at).connection, lines.epoch)
        };
        let mut connection = connection;
        let answer = connection
            .set_read_timeout(Some(CONNECT))
            .and_then(|()| connection.set_write_timeout(Some(CONNECT)))
            .and_then(|()| ::redis::cmd("PING").query::<()>(&mut connection));
        match answer {
            Ok(()) => self.take_back(connection, epoch),
            Err(error) => self.lost(epoch, &format!("redis: {error}")),
        }
    }

    /// One attempt; whether it worked.
    fn mend(&self, since: Instant) -> bool {
        let Ok(idle) = self.connect_all() else { return false };
        let mut lines = self.lines();
        lines.idle = idle;
        (lines.missing, lines.silences) = (0, 0);
        lines.down = None;
        tracing::info!(after = ?since.elapsed(), "policies' state is available again");
        true
    }
}

/// The keeper: until the link is dropped, mends it when it is down; when not, replaces what was
/// closed and keeps the rest warm.
fn keep(shared: &Shared) {
    let mut pause = PAUSE_MIN;
    let mut down_since = None;
    loop {
        let lines = shared.lines();
        if lines.closing {
            return;
        }
        if lines.down.is_some() {
            drop(lines);
            let since = *down_since.get_or_insert_with(Instant::now);
            if shared.mend(since) {
                (pause, down_since) = (PAUSE_MIN, None);
                continue;
            }
            let lines = shared.lines();
            let closing = |lines: &mut Lines| !lines.closing;
            drop(shared.wanted.wait_timeout_while(lines, pause, closing));
            pause = PAUSE_MAX.min(pause * 2);
        } else {
            let quiet =
                |lines: &mut Lines| !lines.closing && lines.down.is_none() && lines.missing == 0;
            let woken = shared.wanted.wait_timeout_while(lines, REST / 8, quiet);
            let (lines, waited) = woken.unwrap_or_else(PoisonError::into_inner);
            drop(lines);
            shared.replace_one();
            if waited.timed_out() {
                for _ in 0..connections() {
                    shared.ping_one();
                }
            }
        }
    }
}
