//! `interlock serve` as whoever supervises it sees it.

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::time::Duration;

use common::{Running, interlock};

/// The binary with this simulated model, which ends with the test.
struct Served {
    process: Running,
    address: String,
}

impl Served {
    fn start(model: &str) -> Self {
        let mut command = interlock();
        command.args(["serve", "--model", model, "--bind", "127.0.0.1:0"]);
        let mut process = Running::start(command.stdout(Stdio::piped()).stderr(Stdio::piped()));
        let address = process.address();
        let served = Self { process, address };
        while !served.ask("GET /health/ready", "").starts_with("HTTP/1.1 200") {
            std::thread::yield_now();
        }
        served
    }

    /// The whole answer.
    fn ask(&self, line: &str, body: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).expect("it listens");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a socket");
        let length = body.len();
        write!(
            stream,
            "{line} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
        )
        .expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers");
        answer
    }

    /// Waits for its end: its status, and what it said.
    fn ended(mut self) -> (Option<i32>, String) {
        let status = self.process.0.wait().expect("it ends");
        let mut said = String::new();
        self.process.0.stderr.take().expect("piped").read_to_string(&mut said).expect("text");
        (status.code(), said)
    }
}

const BODY: &str = r#"{"model":"sim","prompt":"hello","max_tokens":30}"#;

#[test]
fn a_device_that_fails_for_good_is_told_to_its_client_and_ends_the_process_with_3() {
    let served = Served::start("sim:stop=0,device-lost-at=5");
    let answer = served.ask("POST /v1/completions", BODY);
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(answer.contains(r#""code":"device_failed""#), "{answer}");
    let (status, said) = served.ended();
    assert_eq!(status, Some(3), "{said}");
    assert!(said.contains("the engine of sim stopped: the device has failed"), "{said}");
}

#[test]
fn a_model_that_panics_ends_the_process_with_1() {
    let served = Served::start("sim:stop=0,panic-at=5");
    let answer = served.ask("POST /v1/completions", BODY);
    assert!(answer.starts_with("HTTP/1.1 500"), "{answer}");
    let (status, said) = served.ended();
    assert_eq!(status, Some(1), "{said}");
}
