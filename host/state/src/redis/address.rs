//! Where Redis is: a name that is looked up within a bound, anew each time that the server was lost.
//!
//! The system's own look-up may take as long as it likes, and nobody can interrupt it. So it is made
//! on a thread of its own, one at a time, and who waits for it gives up.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use ::redis::{Client, Connection, ConnectionAddr, ConnectionInfo, RedisError, RedisResult};

/// Says which addresses a host has.
pub(super) type LookUp =
    Arc<dyn Fn(&str, u16) -> io::Result<Vec<SocketAddr>> + Send + Sync + 'static>;

/// Looks names up as the system does.
pub(super) fn system() -> LookUp {
    Arc::new(|host, port| Ok((host, port).to_socket_addrs()?.collect()))
}

/// Makes connections to one server.
pub(super) struct Connector {
    info: ConnectionInfo,
    look_up: LookUp,
    /// The address of the last connection that was made.
    found: Option<SocketAddr>,
    /// A look-up that has not ended.
    running: Option<Receiver<io::Result<Vec<SocketAddr>>>>,
}

impl Connector {
    pub(super) fn new(info: ConnectionInfo, look_up: LookUp) -> Self {
        Self { info, look_up, found: None, running: None }
    }

    /// The server was lost: it may have another address by now.
    pub(super) fn look_again(&mut self) {
        self.found = None;
    }

    /// One connection, or none after so long.
    pub(super) fn connect(&mut self, wait_max: Duration) -> RedisResult<Connection> {
        let until = Instant::now() + wait_max;
        let left = || until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let ConnectionAddr::Tcp(host, port) = self.info.addr().clone() else {
            return Client::open(self.info.clone())?.get_connection_with_timeout(left());
        };
        let mut failed: RedisError = io::Error::other("the name of the host has no address").into();
        let addresses = match self.found.take() {
            Some(address) => vec![address],
            None => self.addresses(&host, port, wait_max)?,
        };
        for (nth, address) in addresses.iter().enumerate() {
            // Each has its share, so that one that swallows everything leaves time for the next.
            let share = left() / u32::try_from(addresses.len() - nth).unwrap_or(u32::MAX);
            let at = ConnectionAddr::Tcp(address.ip().to_string(), address.port());
            let client = Client::open(self.info.clone().set_addr(at))?;
            match client.get_connection_with_timeout(share) {
                Ok(connection) => {
                    self.found = Some(*address);
                    return Ok(connection);
                }
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    fn addresses(
        &mut self,
        host: &str,
        port: u16,
        wait_max: Duration,
    ) -> io::Result<Vec<SocketAddr>> {
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(ip, port)]);
        }
        let answer = match self.running.take() {
            Some(running) => running,
            None => self.begin(host, port)?,
        };
        match answer.recv_timeout(wait_max) {
            Ok(addresses) => addresses,
            Err(RecvTimeoutError::Timeout) => {
                self.running = Some(answer);
                let why = format!("the name of the host was not looked up within {wait_max:?}");
                Err(io::Error::new(io::ErrorKind::HostUnreachable, why))
            }
            Err(RecvTimeoutError::Disconnected) => {
                Err(io::Error::other("looking up the name of the host panicked"))
            }
        }
    }

    fn begin(&self, host: &str, port: u16) -> io::Result<Receiver<io::Result<Vec<SocketAddr>>>> {
        let (answer, answered) = sync_channel(1);
        let (look_up, host) = (Arc::clone(&self.look_up), host.to_owned());
        std::thread::Builder::new().name("interlock-names".into()).spawn(move || {
            // Nobody may wait any more.
            let _ = answer.send(look_up(&host, port));
        })?;
        Ok(answered)
    }
}
