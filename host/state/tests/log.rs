//! What is said of a Redis that is not there, by whichever thread says it. A file of its own: the log of
//! all threads is the process's, so no other story may run in it.

mod rig;

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use interlock_state::{Bucket, Space, StateFault, Taken};
use rig::{RedisServer, Version};

const STILL: Bucket = Bucket { capacity: 400.0, refill_per_second: 0.001 };

/// Nothing here takes long, unless it hangs.
const LONG: Duration = Duration::from_secs(60);

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// All threads' from now on.
    fn start() -> Self {
        let log = Self::default();
        let lines = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing_subscriber::filter::LevelFilter::INFO)
            .with_ansi(false)
            .with_writer(move || lines.clone())
            .finish();
        tracing::subscriber::set_global_default(subscriber).expect("there is no other");
        log
    }

    /// What was said since it was taken last.
    fn take(&self) -> String {
        String::from_utf8(std::mem::take(&mut *self.0.lock().unwrap())).unwrap()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_host_starts_without_redis_says_so_once_and_finds_it_when_it_comes() {
    let log = Log::start();
    for version in [Version::Redis62, Version::Valkey91] {
        let server = RedisServer::start(version);
        server.kill();
        let state = server.open();
        let space = state.space("p");
        for _ in 0..1000 {
            let answer = space.take("k", STILL, 1.0);
            assert!(matches!(answer, Err(StateFault::Unavailable(_))), "{answer:?}");
        }
        server.restart();
        recovers(&space);
        assert!(matches!(space.take("k", STILL, 400.0).unwrap(), Taken::Ok { .. }));
        let log = log.take();
        assert_eq!(log.matches("WARN").count(), 1, "{log}");
        assert!(log.contains("the host starts without it") && log.contains("refused"), "{log}");
        // By the thread that found it.
        assert_eq!(log.matches("policies' state is available again").count(), 1, "{log}");
    }
}

/// Redis is back: by when that is found is promised nowhere.
#[track_caller]
fn recovers(space: &Space) {
    let started = Instant::now();
    while space.get("k").is_err() {
        assert!(started.elapsed() < LONG, "redis is back, and not found in {LONG:?}");
        thread::sleep(Duration::from_millis(1));
    }
}
