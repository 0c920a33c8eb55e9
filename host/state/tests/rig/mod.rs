//! The stores, made alike: a state whose time can be made to pass, and a server of one's own, of the
//! oldest and of the newest version that we promise to work with.

#![allow(dead_code, reason = "each test file uses its part")]

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use interlock_state::{State, StateClock, StateConfig};

/// Nothing here takes long, unless it hangs.
const LONG: Duration = Duration::from_secs(60);

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

    pub(crate) fn redis(version: Version) -> Self {
        let server = RedisServer::start(version);
        // No host that sleeps for as long as a story's longest wait is taken for dead.
        let config = StateConfig { lease: Duration::from_secs(3600), ..server.config() };
        Self { config, store: StoreOf::Redis(server) }
    }

    pub(crate) fn state(&self) -> State {
        let clock: Arc<dyn StateClock> = match &self.store {
            StoreOf::Memory(clock) => Arc::clone(clock) as _,
            StoreOf::Redis(_) => Arc::<Virtual>::default() as _,
        };
        State::open_with(&self.config, clock).expect("the store opens")
    }

    /// Redis' clock is nobody's to move: there, all that it keeps gets older instead.
    pub(crate) fn wait(&self, time: Duration) {
        match &self.store {
            StoreOf::Memory(clock) => clock.advance(time),
            StoreOf::Redis(server) => server.age(time),
        }
    }
}

/// Servers that `redis-setup.sh` fetched.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Version {
    /// Redis 6.2, the oldest.
    Redis62,
    /// Valkey 9.1, the newest.
    Valkey91,
}

impl Version {
    fn program(self) -> PathBuf {
        let name = match self {
            Self::Redis62 => "redis-6.2",
            Self::Valkey91 => "valkey-9.1",
        };
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/redis").join(name);
        assert!(path.exists(), "there is no target/redis/{name}: run `make redis`");
        path
    }
}

/// A server of this test's own, killed with it.
pub(crate) struct RedisServer {
    version: Version,
    child: Mutex<Child>,
    port: u16,
    dir: PathBuf,
}

impl RedisServer {
    pub(crate) fn start(version: Version) -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("interlock-{}-{count}", std::process::id()));
        fs::create_dir_all(&dir).expect("a folder for redis");
        // Between our asking for a free port and redis' taking it, somebody else may.
        for _ in 0..5 {
            let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
            let port = free.local_addr().expect("a port").port();
            drop(free);
            if let Some(child) = spawn(version, port, &dir) {
                return Self { version, child: Mutex::new(child), port, dir };
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
            store: self.url().parse().expect("a URL"),
            timeout: Duration::from_secs(60),
            ..StateConfig::default()
        }
    }

    pub(crate) fn open(&self) -> State {
        State::open(&self.config()).expect("redis opens")
    }

    pub(crate) fn raw(&self) -> redis::Connection {
        redis::Client::open(self.url()).unwrap().get_connection().expect("redis answers")
    }

    /// Has the server do something, which it must not refuse.
    #[track_caller]
    pub(crate) fn told<T: redis::FromRedisValue>(&self, command: &[&str]) -> T {
        let answer = redis::cmd(command[0]).arg(&command[1..]).query(&mut self.raw());
        answer.unwrap_or_else(|refused| panic!("{command:?}: {refused}"))
    }

    /// As if so much time had passed, in which no host did anything: whatever is written down is
    /// that much older, and what would have expired has. No story waits for a clock, and none is
    /// disturbed by a machine that takes its time.
    pub(crate) fn age(&self, by: Duration) {
        let micros = u64::try_from(by.as_micros()).unwrap();
        let script = redis::Script::new(include_str!("age.lua"));
        script.arg(micros).invoke::<()>(&mut self.raw()).expect("everything ages");
    }

    pub(crate) fn kill(&self) {
        let mut child = self.child.lock().unwrap();
        child.kill().expect("redis can be killed");
        child.wait().expect("redis ends");
    }

    /// After [`RedisServer::kill`], on the same port. Somebody may have it for a moment: a port that
    /// is free is given to whoever asks for one.
    pub(crate) fn restart(&self) {
        let started = Instant::now();
        let child = std::iter::from_fn(|| Some(spawn(self.version, self.port, &self.dir)))
            .take_while(|_| started.elapsed() < LONG)
            .flatten()
            .next();
        *self.child.lock().unwrap() = child.expect("redis starts again");
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
fn spawn(version: Version, port: u16, dir: &Path) -> Option<Child> {
    let mut child = Command::new(version.program())
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""])
        .args(["--appendonly", "no", "--dir"])
        .arg(dir)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("redis-server runs");
    let client = redis::Client::open(format!("redis://127.0.0.1:{port}")).unwrap();
    let started = Instant::now();
    while started.elapsed() < LONG {
        if child.try_wait().expect("redis can be asked").is_some() {
            return None;
        }
        // Whoever answers there may be another test's, who was faster; then ours gives up soon.
        if process_of(&client) == Some(child.id()) {
            return Some(child);
        }
        thread::sleep(Duration::from_millis(5));
    }
    let _ = child.kill();
    let _ = child.wait();
    panic!("redis-server did not answer within {LONG:?}");
}

/// The process that answers, if one does.
fn process_of(client: &redis::Client) -> Option<u32> {
    let mut connection = client.get_connection_with_timeout(Duration::from_secs(1)).ok()?;
    connection.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
    let info: String = redis::cmd("INFO").arg("server").query(&mut connection).ok()?;
    info.lines().find_map(|line| line.strip_prefix("process_id:")?.trim().parse().ok())
}
