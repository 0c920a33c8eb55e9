//! The ports of the real binary: metrics on one of their own, and one that cannot be had.

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{ChildStderr, Command, Stdio};
use std::time::Duration;

use common::{Running, interlock};

/// The binary with a simulated model and these settings, which ends with the test.
struct Host {
    #[expect(dead_code, reason = "it ends with the test")]
    process: Running,
    clients: String,
    log: BufReader<ChildStderr>,
}

fn serve(flags: &[&str]) -> Command {
    let mut command = interlock();
    command.args(["serve", "--model", "sim:"]).args(flags);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

impl Host {
    fn start(flags: &[&str]) -> Self {
        let mut process = Running::start(&mut serve(flags));
        let clients = process.address();
        let log = BufReader::new(process.0.stderr.take().expect("piped"));
        Self { process, clients, log }
    }

    /// The address behind this in the log.
    fn logged(&mut self, what: &str) -> String {
        loop {
            let mut line = String::new();
            let read = self.log.read_line(&mut line).expect("it logs");
            assert!(read > 0, "it ended before it said {what:?}");
            if let Some((_, address)) = line.split_once(what) {
                return address.trim().to_owned();
            }
        }
    }
}

/// The status of an answer, and the rest of it.
fn get(address: &str, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a socket");
    let head = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    let (status, rest) = answer.split_once("\r\n").expect("a head");
    (status.to_owned(), rest.to_owned())
}

#[test]
fn metrics_move_to_a_listener_of_their_own_and_localhost_is_an_address() {
    let flags = ["--bind", "localhost:0", "--set", "metrics.bind=localhost:0"];
    let mut host = Host::start(&flags);
    let metrics = host.logged("metrics are served address=");
    let (status, exposition) = get(&metrics, "/metrics");
    assert_eq!(status, "HTTP/1.1 200 OK");
    assert!(exposition.contains("interlock_http_connections "), "{exposition}");
    assert_eq!(get(&host.clients, "/metrics").0, "HTTP/1.1 404 Not Found");
    assert_eq!(get(&metrics, "/v1/models").0, "HTTP/1.1 404 Not Found");
    assert_eq!(get(&host.clients, "/v1/models").0, "HTTP/1.1 200 OK");
}

#[test]
fn a_port_that_is_taken_ends_the_start_with_its_key_and_a_cure() {
    let host = Host::start(&["--bind", "127.0.0.1:0"]);
    let taken = &host.clients;
    for (flags, key) in [
        (vec!["--bind".to_owned(), taken.clone()], "server.bind"),
        (
            ["--bind", "127.0.0.1:0", "--set", &format!("admin.bind={taken}")]
                .map(str::to_owned)
                .to_vec(),
            "admin.bind",
        ),
    ] {
        let flags: Vec<_> = flags.iter().map(String::as_str).collect();
        let ended = serve(&flags).output().expect("it runs");
        let said = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(1), "{said}");
        assert!(said.contains(&format!("{key}: cannot listen on {taken}: ")), "{said}");
        assert!(said.contains("another program listens there"), "{said}");
        assert!(ended.stdout.is_empty(), "it says that it listens when all ports are open");
    }
}
