//! `interlock serve` as whoever supervises it sees it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The binary with this simulated model, which ends with the test.
struct Served {
    process: Child,
    address: String,
}

impl Drop for Served {
    fn drop(&mut self) {
        // It may have ended, as it should.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Served {
    fn start(model: &str) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_interlock"))
            .args(["serve", "--model", model, "--bind", "127.0.0.1:0"])
            .current_dir(env!("CARGO_TARGET_TMPDIR"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut line = String::new();
        let stdout = process.stdout.as_mut().expect("piped");
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        let address = line.split_once("http://").expect("an address").1;
        let address = address.split_once(',').expect("a list").0.to_owned();
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
        let status = self.process.wait().expect("it ends");
        let mut said = String::new();
        self.process.stderr.take().expect("piped").read_to_string(&mut said).expect("text");
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
