//! Panics in a call and in the background thread; what real servers do is in `tests/redis.rs`.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::sync_channel;

use ::redis::IntoConnectionInfo as _;

use super::reconnect::survived;
use super::*;
use crate::redis::address::{LookUp, system};

/// Nothing here takes long, unless it hangs.
const LONG: Duration = Duration::from_secs(60);

fn open(url: &str) -> ConnectionPool {
    open_with(url, system())
}

fn open_with(url: &str, look_up: LookUp) -> ConnectionPool {
    let info = url.into_connection_info().expect("a URL");
    let pool = ConnectionPool::open(Connector::new(info, look_up), Duration::from_secs(1), vec![]);
    pool.expect("there is room for a thread")
}

/// A server that says `OK` to whatever comes, each read once.
fn agreeable() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let Ok(mut connection) = connection else { return };
            std::thread::spawn(move || {
                let mut read = [0; 4096];
                while let Ok(1..) = connection.read(&mut read) {
                    // One for each command of a pipeline.
                    let commands = read.iter().filter(|byte| **byte == b'*').count();
                    let answers = "+OK\r\n".repeat(commands);
                    read = [0; 4096];
                    if connection.write_all(answers.as_bytes()).is_err() {
                        return;
                    }
                }
            });
        }
    });
    format!("redis://{address}")
}

fn ping(pool: &ConnectionPool) -> Result<String, CallFailure> {
    pool.with(|connection| ::redis::cmd("PING").query(connection))
}

/// As many panics as there are connections used to leave none, and all calls after them waited
/// for one in vain.
#[test]
fn a_call_that_panics_costs_no_connection() {
    let pool = open(&agreeable());
    assert_eq!(ping(&pool), Ok("OK".into()));
    let deadline = Instant::now() + LONG;
    let mut panics = 0;
    while panics < 2 * connections_max() {
        let panic =
            || pool.with(|_| -> RedisResult<()> { std::panic::resume_unwind(Box::new("oh")) });
        // It may have to wait for a connection that is made anew, and in vain.
        panics += usize::from(catch_unwind(AssertUnwindSafe(panic)).is_err());
        assert!(Instant::now() < deadline, "no connection comes back after {panics} panics");
    }
    while ping(&pool).is_err() {
        assert!(Instant::now() < deadline, "no connection comes back");
    }
    assert_eq!(pool.shared.connections().down, None);
}

#[test]
fn a_background_thread_that_panics_goes_on_until_the_pool_is_closed() {
    let pool = open(&agreeable());
    let shared = Arc::clone(&pool.shared);
    let panics = || survived(&shared, || std::panic::resume_unwind(Box::new("oh")));
    assert_eq!(panics(), ControlFlow::Continue(()));
    drop(pool);
    assert_eq!(panics(), ControlFlow::Break(()));
}

/// The system's look-up may take a minute, and cannot be interrupted.
#[test]
fn a_name_that_is_not_looked_up_holds_up_neither_the_start_nor_a_call() {
    let (answer, answered) = sync_channel(1);
    let answered = Mutex::new(answered);
    // Waited for, it would never end: neither would the start.
    let pool = open_with(
        "redis://cache.example",
        Arc::new(move |_, _| {
            let answered = answered.lock().expect("no panic").recv();
            answered.map_err(std::io::Error::other)
        }),
    );
    let failure = ping(&pool).expect_err("nobody is there");
    assert!(failure.why.contains("the host was not looked up within 2s"), "{failure:?}");
    let address = agreeable().trim_start_matches("redis://").parse().expect("an address");
    answer.send(vec![address]).expect("it is still looked up");
    drop(answer);
    let deadline = Instant::now() + LONG;
    while pool.down().is_some() {
        assert!(Instant::now() < deadline, "it is not found: {:?}", pool.down());
        std::thread::sleep(Duration::from_millis(1));
    }
}
