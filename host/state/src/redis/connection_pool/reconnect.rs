//! The thread that keeps the connections: makes them, tries those that rest, replaces those that were
//! closed, and connects anew when the server was lost.

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use ::redis::RedisResult;

use super::{CONNECT, Connections, IdleConnection, PoolShared, connections_max};
use crate::metrics::StateFailureKind;
use crate::redis::address::Connector;
use crate::redis::failure::CallFailure;

/// After this much rest a connection is tried before somebody needs it: servers and firewalls drop
/// what is quiet.
const REST: Duration = Duration::from_secs(10);

const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// What the background thread knows from one round to the next.
struct Reconnector {
    connector: Connector,
    pause: Duration,
    down_since: Option<Instant>,
}

/// Reconnects until the pool is dropped: all connections while the server is lost, else those that were
/// closed and keeps the rest warm.
pub(super) fn keep_connected(shared: &PoolShared, connector: Connector) {
    let mut reconnector = Reconnector { connector, pause: PAUSE_MIN, down_since: None };
    while !survived(shared, || reconnector.round(shared)).is_break() {}
}

/// A round, whatever comes of it: without its thread the pool would stay down for good.
pub(super) fn survived(
    shared: &PoolShared,
    round: impl FnOnce() -> ControlFlow<()>,
) -> ControlFlow<()> {
    catch_unwind(AssertUnwindSafe(round)).unwrap_or_else(|_| {
        tracing::error!("the thread that connects to redis panicked; it is run again");
        let closing = |connections: &mut Connections| !connections.closing;
        let waited = shared.wanted.wait_timeout_while(shared.connections(), PAUSE_MAX, closing);
        match waited.unwrap_or_else(PoisonError::into_inner).0.closing {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    })
}

impl Reconnector {
    fn round(&mut self, shared: &PoolShared) -> ControlFlow<()> {
        let connections = shared.connections();
        if connections.closing {
            return ControlFlow::Break(());
        }
        if connections.down.is_some() {
            drop(connections);
            let since = *self.down_since.get_or_insert_with(Instant::now);
            if shared.mend(since, &mut self.connector) {
                (self.pause, self.down_since) = (PAUSE_MIN, None);
                return ControlFlow::Continue(());
            }
            let connections = shared.connections();
            let closing = |connections: &mut Connections| !connections.closing;
            drop(shared.wanted.wait_timeout_while(connections, self.pause, closing));
            self.pause = PAUSE_MAX.min(self.pause * 2);
        } else {
            let quiet = |connections: &mut Connections| {
                !connections.closing && connections.down.is_none() && connections.missing == 0
            };
            let woken = shared.wanted.wait_timeout_while(connections, REST / 8, quiet);
            let (connections, waited) = woken.unwrap_or_else(PoisonError::into_inner);
            drop(connections);
            shared.replace_one(&mut self.connector);
            shared.reports.look();
            if waited.timed_out() {
                for _ in 0..connections_max() {
                    shared.ping_one();
                }
            }
        }
        ControlFlow::Continue(())
    }
}

impl PoolShared {
    fn connect_all(&self, connector: &mut Connector) -> RedisResult<Vec<IdleConnection>> {
        connector.look_again();
        let mut first = connector.connect(CONNECT)?;
        first.set_read_timeout(Some(CONNECT))?;
        first.set_write_timeout(Some(CONNECT))?;
        // A server that was restarted has forgotten them.
        for script in &self.scripts {
            script.load(&mut first)?;
        }
        let mut all = vec![IdleConnection { connection: first, used: Instant::now() }];
        while all.len() < connections_max() {
            all.push(IdleConnection {
                connection: connector.connect(CONNECT)?,
                used: Instant::now(),
            });
        }
        Ok(all)
    }

    /// Makes a connection anew that was closed because an answer was late.
    fn replace_one(&self, connector: &mut Connector) {
        let epoch = {
            let connections = self.connections();
            if connections.missing == 0 {
                return;
            }
            connections.epoch
        };
        match connector.connect(CONNECT) {
            Ok(connection) => {
                let mut connections = self.connections();
                if connections.epoch == epoch {
                    connections.missing -= 1;
                    connections.idle.push(IdleConnection { connection, used: Instant::now() });
                    self.returned.notify_one();
                }
            }
            Err(error) => self.lost(epoch, &CallFailure::of(&error)),
        }
    }

    /// Tries a connection that rested for long.
    fn ping_one(&self) {
        let (connection, epoch) = {
            let mut connections = self.connections();
            let rested = connections.idle.iter().position(|idle| idle.used.elapsed() >= REST);
            let Some(at) = rested else { return };
            (connections.idle.swap_remove(at).connection, connections.epoch)
        };
        let mut borrowed = self.borrowed(connection, epoch);
        let answer = borrowed.ask(CONNECT, |it| ::redis::cmd("PING").query::<()>(it));
        let connection = borrowed.take();
        match answer {
            Ok(()) => self.take_back(connection, epoch),
            Err(error) => self.lost(epoch, &CallFailure::of(&error)),
        }
    }

    /// One attempt; whether it worked. Down at the start, and up at the first attempt, is no news.
    fn mend(&self, since: Instant, connector: &mut Connector) -> bool {
        let connected = self.connect_all(connector);
        let mut connections = self.connections();
        let first = !std::mem::replace(&mut connections.tried, true);
        let up = match connected {
            Ok(idle) => {
                connections.idle = idle;
                (connections.missing, connections.silences) = (0, 0);
                connections.down = None;
                if !first {
                    tracing::info!(after = ?since.elapsed(), "policies' state is available again");
                }
                true
            }
            Err(error) => {
                let mut failure = CallFailure::of(&error);
                // Whoever does not even answer the connect is not there.
                if failure.is_silence() {
                    failure.kind = StateFailureKind::Unreachable;
                }
                let news = connections.down.as_ref().is_none_or(|down| down.kind != failure.kind);
                if news && !first {
                    let CallFailure { kind, why, .. } = &failure;
                    let kind = kind.as_str();
                    tracing::warn!(kind, why, "policies' state is still unavailable");
                }
                if news || first {
                    connections.down = Some(failure);
                }
                false
            }
        };
        self.show(&connections);
        self.returned.notify_all();
        up
    }
}
