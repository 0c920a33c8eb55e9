//! The two stores, made alike: a state whose time can be made to pass, and a Redis of one's own.

#![allow(dead_code, reason = "each test file uses its part")]

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use interlock_state::{State, StateClock, StateConfig, StoreUrl};

/// A state, and a way to let time pass for it.
pub(crate) struct World {
    pub(crate) config: StateConfig,
    store: StoreOf,
}

enum StoreOf {
    Memory(Arc<Virtual>),
    Redis(RedisServer),
}

/// A clock that moves when told to.
#[derive(Default)]
pub(crate) struct Virtual(Mutex<Duration>);

impl StateClock for Virtual {
    fn now(&self) -> Duration {
        *self.0.lock().unwrap()
    }
}

impl Virtual {
    pub(crate) fn advance(&self, by: Duration) {
        *self.0.lock().unwrap() += by;
    }
}

impl World {
    pub(crate) fn memory() -> Self {
        let store = StoreOf::Memory(Arc::default());
        Self { config: StateConfig::default(), store }
    }

    pub(crate) fn redis() -> Self {
        let server = RedisServer::start();
        Self { config: server.config(), store: StoreOf::Redis(server) }
    }

    pub(crate) fn state(&self) -> State {
        let clock: Arc<dyn StateClock> = match &self.store {
            StoreOf::Memory(clock) => Arc::clone(clock) as _,
            StoreOf::Redis(_) => Arc::<Virtual>::default() as _,
        };
        State::open_with(&self.config, clock).expect("the store opens")
    }

    /// Redis has the time that it has: there it really passes, so stories keep to milliseconds.
    pub(crate) fn wait(&self, time: Duration) {
        match &self.store {
            StoreOf::Memory(clock) => clock.advance(time),
            StoreOf::Redis(_) => thread::sleep(time),
        }
    }
}

/// A Redis server of this test's own, killed with it.
pub(crate) struct RedisServer {
    child: Mutex<Child>,
    port: u16,
    dir: PathBuf,
}

impl RedisServer {
    pub(crate) fn start() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("interlock-{}-{count}", std::process::id()));
        fs::create_dir_all(&dir).expect("a folder for redis");
        // Between our asking for a free port and redis' taking it, somebody else may.
        for _ in 0..5 {
            let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
            let port = free.local_addr().expect("a port").port();
            drop(free);
            if let Some(child) = spawn(port, &dir) {
                return Self { child: Mutex::new(child), port, dir };
            }
        }
        panic!("redis-server did not start on any of 5 ports");
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// With time enough for a machine on which other tests run too.
    pub(crate) fn config(&self) -> StateConfig {
        StateConfig {
            store: StoreUrl::Redis(self.url()),
            timeout: Duration::from_secs(1),
            ..StateConfig::default()
        }
    }

    pub(crate) fn open(&self) -> State {
        State::open(&self.config()).expect("redis opens")
    }

    pub(crate) fn raw(&self) -> redis::Connection {
        redis::Client::open(self.url()).unwrap().get_connection().expect("redis answers")
    }

    pub(crate) fn kill(&self) {
        let mut child = self.child.lock().unwrap();
        child.kill().expect("redis can be killed");
        child.wait().expect("redis ends");
    }

    /// After [`RedisServer::kill`], on the same port.
    pub(crate) fn restart(&self) {
        *self.child.lock().unwrap() = spawn(self.port, &self.dir).expect("redis starts again");
    }

    /// `STOP`: there, and silent. `CONT`: as if nothing had been.
    pub(crate) fn signal(&self, signal: &str) {
        let pid = self.child.lock().unwrap().id().to_string();
        let status = Command::new("kill").args([&format!("-{signal}"), &pid]).status();
        assert!(status.expect("kill runs").success());
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        let child = self.child.get_mut().unwrap();
        let _ = child.kill();
        let _ = child.wait();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// A server that answers, or none if it gave up.
fn spawn(port: u16, dir: &Path) -> Option<Child> {
    let server = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/redis/redis-server");
    assert!(
        server.exists(),
        "there is no target/redis/redis-server, which these tests need: run `make redis`"
    );
    let mut child = Command::new(server)
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""])
        .args(["--appendonly", "no", "--dir"])
        .arg(dir)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("redis-server runs");
    let client = redis::Client::open(format!("redis://127.0.0.1:{port}")).unwrap();
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(20) {
        if child.try_wait().expect("redis can be asked").is_some() {
            return None;
        }
        if client.get_connection().is_ok() {
            return Some(child);
        }
        thread::sleep(Duration::from_millis(5));
    }
    let _ = child.kill();
    let _ = child.wait();
    panic!("redis-server did not answer within 20 s");
}
