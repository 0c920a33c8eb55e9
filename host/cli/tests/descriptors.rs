//! The real process and its file descriptors: whatever idles at its ports, health is answered.

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A host with a limit of descriptors, whose connections may idle for longer than a test takes.
struct Host {
    process: Child,
    clients: SocketAddr,
    admin: SocketAddr,
    /// What it logged before it served.
    log: String,
    _alone: MutexGuard<'static, ()>,
}

/// The tests' own descriptors are one process's, too.
static ALONE: Mutex<()> = Mutex::new(());

/// As many descriptors for this process as one of the tests needs.
fn enough_for_us() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: it writes one `rlimit`, which is ours.
    assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) }, 0);
    limit.rlim_cur = limit.rlim_cur.max(limit.rlim_max.min(1024));
    // SAFETY: it reads one `rlimit`, which is ours.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
}

impl Host {
    /// Limits as the shell knows them: `-S -n 100` or `-n 100`.
    fn with(limit: &str) -> Self {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        enough_for_us();
        let interlock = env!("CARGO_BIN_EXE_interlock");
        let serve = [
            "serve --model sim: --bind 127.0.0.1:0",
            "--set admin.bind=127.0.0.1:0 --set server.header_timeout=1h",
            "--set server.connections_max=2000",
        ];
        let line = format!("ulimit {limit} && exec '{interlock}' {}", serve.join(" "));
        let mut process = common::program("sh")
            .args(["-c", &line])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("a shell");
        let mut said = BufReader::new(process.stdout.take().expect("it is piped"));
        let mut told = String::new();
        said.read_line(&mut told).expect("it says where it listens");
        let mut logged = BufReader::new(process.stderr.take().expect("it is piped"));
        let mut log = String::new();
        let admin = loop {
            let mut line = String::new();
            let read = logged.read_line(&mut line).expect("it logs");
            assert!(read > 0, "it ended: {told}{log}");
            log.push_str(&line);
            if let Some((_, rest)) = line.split_once("admin requests are taken address=") {
                break rest.trim().parse().expect("an address");
            }
        };
        // Read on, so that it never waits for us.
        std::thread::spawn(move || std::io::copy(&mut logged, &mut std::io::sink()));
        let address = told.split("http://").nth(1).and_then(|rest| rest.split(',').next());
        let clients = address.and_then(|address| address.parse().ok()).expect("an address");
        Self { process, clients, admin, log, _alone: alone }
    }

    fn asks(&self, method: &str, path: &str, body: &str) -> String {
        let mut connection = TcpStream::connect(self.clients).expect("connects");
        connection.set_read_timeout(Some(Duration::from_secs(20))).expect("a time");
        let length = body.len();
        let head = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n");
        write!(connection, "{head}content-length: {length}\r\n\r\n{body}").expect("sends");
        let mut answer = String::new();
        connection.read_to_string(&mut answer).expect("it answers in time");
        answer.lines().next().unwrap_or_default().to_owned()
    }

    fn idle(&self, count: usize, address: SocketAddr) -> Vec<TcpStream> {
        let all: Vec<_> =
            (0..count).map(|_| TcpStream::connect(address).expect("connects")).collect();
        for _ in 0..5 {
            for path in ["/health/live", "/metrics"] {
                assert_eq!(self.asks("GET", path, ""), "HTTP/1.1 200 OK", "{count} at {address}");
            }
        }
        all
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _gone = self.process.kill();
        let _ended = self.process.wait();
    }
}

const CHAT: &str = r#"{"model":"sim","prompt":"x","max_tokens":1}"#;

#[test]
fn the_limit_of_descriptors_is_raised_as_far_as_may_be() {
    // Within what a machine's hard limit is anywhere.
    let host = Host::with("-S -n 100");
    assert!(host.log.contains("raised the limit of file descriptors before=100"), "{}", host.log);
    let idle = host.idle(200, host.clients);
    assert_eq!(host.asks("POST", "/v1/completions", CHAT), "HTTP/1.1 200 OK");
    drop(idle);
}

#[test]
fn connections_that_do_not_fit_are_said_to_and_health_answers_whatever_idles() {
    let host = Host::with("-n 500");
    let said = ["needed=3410", "limit=500", "connections_max=2000", "taken=50"];
    for part in said {
        assert!(host.log.contains(part), "{part} in {}", host.log);
    }
    // More than it could have at all.
    let idle = host.idle(520, host.clients);
    drop(idle);
}

#[test]
fn what_idles_at_the_operators_port_takes_nothing_from_clients() {
    let host = Host::with("-n 500");
    let idle = host.idle(520, host.admin);
    assert_eq!(host.asks("POST", "/v1/completions", CHAT), "HTTP/1.1 200 OK");
    drop(idle);
}

// Elsewhere nobody can take descriptors from a running process.
#[cfg(target_os = "linux")]
#[test]
fn without_descriptors_clients_are_turned_away_and_not_kept_waiting() {
    let host = Host::with("-S -n 1000");
    let id = libc::pid_t::try_from(host.process.id()).expect("a process id");
    let limit = |limit: Option<libc::rlim_t>| {
        let mut before = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        let nothing = std::ptr::null::<libc::rlimit>();
        // SAFETY: it writes one `rlimit`, which is ours.
        let got = unsafe { libc::prlimit(id, libc::RLIMIT_NOFILE, nothing, &raw mut before) };
        assert_eq!(got, 0, "{}", std::io::Error::last_os_error());
        let after = libc::rlimit { rlim_cur: limit.unwrap_or(before.rlim_max), ..before };
        // SAFETY: it reads one `rlimit`, which is ours.
        let set = unsafe {
            libc::prlimit(id, libc::RLIMIT_NOFILE, &raw const after, std::ptr::null_mut())
        };
        assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
    };
    // A new one gets the lowest number that is free, and none from the limit on.
    let idle = host.idle(100, host.clients);
    let taken =
        |number: &libc::rlim_t| std::path::Path::new(&format!("/proc/{id}/fd/{number}")).exists();
    limit((0..).find(|number| !taken(number)));
    // What is given back meanwhile goes to the first of these.
    let connect = |_| TcpStream::connect(host.clients).expect("the system takes it");
    let mut more: Vec<_> = (0..20).map(connect).collect();
    let last = more.last_mut().expect("twenty");
    last.set_read_timeout(Some(Duration::from_secs(20))).expect("a time");
    match last.read(&mut [0]) {
        Ok(read) => assert_eq!(read, 0, "nobody asked for anything"),
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}"),
    }
    limit(None);
    drop((idle, more));
    assert_eq!(host.asks("GET", "/health/live", ""), "HTTP/1.1 200 OK");
}

#[test]
fn a_limit_for_no_connection_at_all_is_an_error_that_says_both_numbers() {
    let interlock = env!("CARGO_BIN_EXE_interlock");
    let line = format!("ulimit -n 150 && exec '{interlock}' serve --model sim: --bind 127.0.0.1:0");
    let ended = common::program("sh").args(["-c", &line]).output().expect("a shell");
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(!ended.status.success(), "{said}");
    for part in ["2177 file descriptors", "server.connections_max (1024)", "allows 150"] {
        assert!(said.contains(part), "{part} in {said}");
    }
}
