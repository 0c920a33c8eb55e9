//! A running host and its operator, who has nothing but this program.

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use common::{Folder, Running};

/// A served model that takes for ever, with an admin listener that wants a token.
struct Host {
    process: Running,
    clients: String,
    admin: String,
    /// What it logs, line by line.
    log: Receiver<String>,
}

const TOKEN: &str = "an-operators-token";

/// The program with the token that an operator has in the environment.
fn interlock() -> Command {
    let mut command = common::interlock();
    command.env("INTERLOCK__ADMIN__TOKEN", TOKEN);
    command
}

impl Host {
    fn start() -> Self {
        let mut command = interlock();
        command
            .args(["serve", "--model", "sim:decode=20ms,stop=0", "--bind", "127.0.0.1:0"])
            .args(["--set", "admin.bind=127.0.0.1:0"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut process = Running::start(&mut command);
        let (heard, log) = sync_channel(1024);
        let lines = BufReader::new(process.0.stderr.take().expect("it is piped")).lines();
        std::thread::spawn(move || {
            lines.map_while(Result::ok).try_for_each(|line| heard.send(line))
        });
        let clients = process.address();
        let mut host = Self { process, clients, admin: String::new(), log };
        let line = host.logs("admin requests are taken");
        host.admin = format!("http://{}", line.split_once("address=").expect("it says where").1);
        while !host.open("GET /health/ready", "").status().contains("200") {
            std::thread::yield_now();
        }
        host
    }

    /// The next line of the log that contains this.
    fn logs(&self, part: &str) -> String {
        let mut seen = String::new();
        loop {
            let line = self.log.recv_timeout(Duration::from_secs(60));
            let line = line.unwrap_or_else(|_| panic!("no line with {part:?} after\n{seen}"));
            if line.contains(part) {
                return line;
            }
            seen += &format!("{line}\n");
        }
    }

    fn open(&self, line: &str, body: &str) -> Client {
        let mut stream = TcpStream::connect(&self.clients).expect("it listens");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a socket");
        let length = body.len();
        write!(
            stream,
            "{line} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\nx-request-id: long-one\r\n\
             content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        )
        .expect("it reads");
        Client(BufReader::new(stream))
    }

    /// What the operator is told: the status and the text.
    fn operate(&self, arguments: &[&str]) -> (i32, String) {
        let url = ["--url", &self.admin];
        let output = interlock().args(arguments).args(url).output().expect("it runs");
        let text = String::from_utf8([output.stdout, output.stderr].concat()).expect("text");
        (output.status.code().expect("it ends by itself"), text)
    }
}

struct Client(BufReader<TcpStream>);

impl Client {
    fn status(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("it answers");
        line
    }

    fn rest(mut self) -> String {
        let mut rest = String::new();
        self.0.read_to_string(&mut rest).expect("it answers");
        rest
    }
}

#[test]
fn an_operator_lists_and_cancels_what_runs() {
    let host = Host::start();
    let body = r#"{"model":"sim","prompt":"hello","max_tokens":4000,"stream":true}"#;
    let mut client = host.open("POST /v1/completions", body);
    assert!(client.status().contains("200"));
    let (status, listed) = host.operate(&["requests", "list"]);
    assert_eq!(status, 0, "{listed}");
    let row = listed.lines().find(|line| line.contains("long-one")).expect("it is listed");
    for part in ["completions", "sim", "standard"] {
        assert!(row.contains(part), "{part} in {listed}");
    }
    let (status, told) = host.operate(&["requests", "cancel", "long-one"]);
    assert_eq!((status, &*told), (0, "told to stop: 1 of id long-one\n"));
    assert!(client.rest().contains("request long-one was cancelled by an operator"));
    host.logs("request ended");
    let (status, told) = host.operate(&["requests", "cancel", "long-one"]);
    assert_eq!(status, 1, "{told}");
    assert!(told.contains("no request \"long-one\" is in flight (404)"), "{told}");
}

#[test]
fn an_operator_swaps_a_policy_and_takes_it_back_and_the_log_says_the_same() {
    let host = Host::start();
    let (status, told) = host.operate(&["policies", "swap", "guard", "--mode", "canary:20"]);
    assert_eq!(status, 0, "{told}");
    assert!(told.starts_with("generation 2 is in place; it was 1\n"), "{told}");
    assert!(told.contains("enforce)") && told.contains("canary:20)"), "{told}");
    let line = host.logs("a policy was swapped");
    for part in ["policy=guard", "origin=\"admin\"", "generation=2", "enforce)", "canary:20)"] {
        assert!(line.replace("\"guard\"", "guard").contains(part), "{part} in {line}");
    }
    let (status, told) = host.operate(&["policies", "swap", "guard", "--mode", "canary:20"]);
    let same = "nothing has changed: generation 2 stays in place\n";
    assert_eq!((status, &*told), (0, same));
    host.logs("no policy has changed");
    let (status, listed) = host.operate(&["policies", "list"]);
    assert_eq!(status, 0, "{listed}");
    for part in ["generation 2 is in place", "start", "admin", "canary:20", "builtin:guard"] {
        assert!(listed.contains(part), "{part} in {listed}");
    }
    let (status, told) = host.operate(&["policies", "rollback", "--to", "start"]);
    assert_eq!(status, 0, "{told}");
    assert!(told.starts_with("generation 1 is in place; it was 2\n"), "{told}");
    host.logs("a policy was rolled back");
    let (status, told) = host.operate(&["policies", "rollback"]);
    assert_eq!(status, 1, "{told}");
    assert!(told.contains("there is no earlier generation to go back to (409)"), "{told}");
    // SIGHUP says what came of it, also when it is nothing.
    let pid = i32::try_from(host.process.0.id()).expect("a pid");
    // SAFETY: sends a signal to a child that we hold.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGHUP) }, 0);
    let line = host.logs("no policy has changed");
    assert!(line.contains("origin=\"sighup\"") && line.contains("guard "), "{line}");
}

#[test]
fn without_a_listener_to_ask_it_says_which_setting_is_missing() {
    let folder = Folder::new("operator-no-admin");
    folder.put("host.toml", "[server]\nbind = \"127.0.0.1:0\"\n");
    let config = folder.0.join("host.toml");
    for arguments in [["requests", "list"], ["policies", "list"]] {
        let output = interlock().args(arguments).arg("--config").arg(&config).output();
        let output = output.expect("it runs");
        let told = String::from_utf8(output.stderr).expect("text");
        assert_eq!(output.status.code(), Some(2), "{told}");
        assert!(told.contains("admin.bind") && told.contains("--url"), "{told}");
    }
}
