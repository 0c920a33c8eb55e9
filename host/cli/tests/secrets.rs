//! No secret in anything that the program says: what is wrong with a configuration, what is in effect,
//! the log at its loudest, the record.

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::Folder;

/// In every story; nobody may read it.
const SECRET: &str = "s3cret";

/// How a command ends, and all that it says.
fn told(folder: &Folder, arguments: &[&str]) -> (Option<i32>, String) {
    let output = folder.interlock().args(arguments).output().expect("it runs");
    let said =
        [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned());
    (output.status.code(), said.concat())
}

#[test]
fn a_configuration_that_is_wrong_ends_every_command_with_2_and_without_its_secrets() {
    let folder = Folder::new("secrets-wrong");
    for text in [
        "[state]\nstore = \"redis://me:a/s3cret@cache\"\n",
        "[state]\nstore = \"redis://me:a]és3cret\"\n",
        "[state]\nstore = redis://:s3cret@cache\n",
        "[admin]\ntoken = [\"s3cret\"]\n",
        "[admin]\ntoken = \"s3cret\n",
    ] {
        folder.put("interlock.toml", text);
        let file = ["config", "check", "interlock.toml"];
        for arguments in [&file[..], &["config", "show"], &["serve"]] {
            let (status, said) = told(&folder, arguments);
            assert_eq!(status, Some(2), "{text}{arguments:?}: {said}");
            assert!(!said.contains(SECRET), "{text}{arguments:?}: {said}");
        }
    }
}

#[test]
fn a_flag_that_is_wrong_is_not_quoted() {
    let folder = Folder::new("secrets-flags");
    for set in [
        &["admin.token", "s3cret"][..],
        &["admin.token:s3cret"],
        &["s3cret"],
        &["redis://:s3cret@cache"],
        &["state.store:redis://:s3cret@cache/?a=b"],
        &["state.store=redis://:s3cret@cache/?a=b"],
        &["admin=s3cret"],
    ] {
        let arguments = [&["config", "show", "--set"][..], set].concat();
        let (status, said) = told(&folder, &arguments);
        assert_eq!(status, Some(2), "{set:?}: {said}");
        assert!(!said.contains(SECRET), "{set:?}: {said}");
    }
}

#[test]
fn a_measurement_that_cannot_begin_quotes_neither_its_headers_nor_a_login() {
    let folder = Folder::new("secrets-bench");
    let url = "http://127.0.0.1:1";
    for arguments in [
        &["bench", "--url", url, "--header", "authorization Bearer s3cret"][..],
        &["bench", "--url", url, "--header", "authorization: s3cret\n"],
        &["bench", "--url", "https://me:s3cret@127.0.0.1:1"],
        &["bench", "--url", "http://me:s3cret@127.0.0.1:1?x"],
    ] {
        let (status, said) = told(&folder, arguments);
        assert_ne!(status, Some(0), "{arguments:?}: {said}");
        assert!(!said.contains(SECRET), "{arguments:?}: {said}");
    }
}

/// Redis is not there, the log is as loud as it can be, and clients show their keys.
#[test]
fn a_host_starts_without_its_redis_and_never_says_a_secret() {
    let folder = Folder::new("secrets-right");
    folder.put("interlock.toml", r#"
[model]
reference = "sim:stop=0"

[log]
filter = "trace"

[admin]
token = "s3cret-admin"

[state]
store = "redis://me:s3cret-redis@127.0.0.1:1/0"

[policies]
record = "record.jsonl"

[[policy]]
name = "quota"
source = "builtin:quota"
grants = ["state", "metrics", "headers:x-api-key", "headers:x-auth-token"]
settings = { anonymous = "a", limits = { concurrent = 1 }, when_unavailable = "open", tenants.b.keys = [
    "75c08f9d4e9e1e8b5e5ca5f5dc1b3a1f6a2bc47e2b0f6b2b2fbb4cf1d45f6c4c",
] }
"#,
    );
    let (status, shown) = told(&folder, &["config", "show"]);
    assert_eq!(status, Some(0), "{shown}");
    assert!(shown.contains("redis://***@127.0.0.1:1"), "{shown}");
    assert!(!shown.contains(SECRET), "{shown}");

    let mut process = folder
        .interlock()
        .args(["serve", "--bind", "127.0.0.1:0"])
        .stdout(Stdio::piped())
        .stderr(Stdio::from(fs::File::create(folder.0.join("log")).expect("a file")))
        .spawn()
        .expect("it starts");
    let mut line = String::new();
    BufReader::new(process.stdout.as_mut().expect("piped")).read_line(&mut line).expect("a line");
    let log = || fs::read_to_string(folder.0.join("log")).expect("a log");
    let address = line.split_once("http://").unwrap_or_else(|| panic!("{line}{}", log())).1;
    let address = address.split_once(',').expect("a list").0;
    let ask = |line: &str, headers: &str| {
        let mut stream = TcpStream::connect(address).expect("it listens");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a socket");
        let body = r#"{"model":"sim","prompt":"hello","max_tokens":3}"#;
        let length = body.len();
        write!(
            stream,
            "{line} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{headers}\
             content-length: {length}\r\n\r\n{body}"
        )
        .expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers");
        answer
    };
    while !ask("GET /health/ready", "").starts_with("HTTP/1.1 200") {
        std::thread::yield_now();
    }
    // Uncounted, since its policy says so where the state is away.
    let answer = ask("POST /v1/completions", "");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    for headers in [
        "authorization: Bearer s3cret-client\r\n",
        "x-api-key: s3cret-client\r\nx-auth-token: s3cret-client\r\n",
    ] {
        let answer = ask("POST /v1/completions", headers);
        assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
        assert!(!answer.contains(SECRET), "{answer}");
    }
    let pid = process.id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().expect("kill runs").success());
    assert_eq!(process.wait().expect("it ends").code(), Some(0), "{}", log());
    let (log, record) = (log(), fs::read_to_string(folder.0.join("record.jsonl")));
    assert_eq!(log.matches("the host starts without it").count(), 1, "{log}");
    assert!(log.contains("redis://***@127.0.0.1:1"), "{log}");
    assert!(!log.contains(SECRET), "{log}");
    assert!(!record.expect("a record").contains(SECRET), "a secret is on record");
}

/// Wherever somebody writes a URL, or takes a place for one.
#[test]
fn a_login_in_what_names_a_model_or_a_policy_or_a_grant_is_not_quoted() {
    let folder = Folder::new("secrets-urls");
    folder.put(
        "interlock.toml",
        "[model]\nreference = \"sim:\"\n[[policy]]\nname = \"p\"\nsource = \"builtin:guard\"\n\
         grants = [\"http:me:s3cret@host:80\", \"http:me:s3cret:80\", \"http://me:s3cret@host\"]\n",
    );
    folder.put("settings.toml", "key = \"s3cret\nother = 1\n");
    for arguments in [
        &["models", "inspect", "http://me:s3cret@host/x"][..],
        &["models", "inspect", "./http://me:s3cret@host/x.gguf"],
        &["models", "inspect", "hf:me:s3cret@host/x"],
        &["models", "pull", "hf:http://me:s3cret@host/x"],
        &["serve", "--model", "hf:me:s3cret@host"],
        &["serve", "--model", "http://me:s3cret@host/x.gguf"],
        &["config", "show", "--model", "hf:me:s3cret@host/x"],
        &["config", "check", "interlock.toml"],
        &["config", "check", "http://me:s3cret@host/interlock.toml"],
        &["policy", "check", "http://me:s3cret@host/p.wasm"],
        &["policy", "check", "builtin:guard", "--grant", "http:me:s3cret@host:80"],
        &["policy", "check", "builtin:guard", "--settings", "settings.toml"],
        &["policies", "list", "--url", "http://me:s3cret@127.0.0.1:1"],
        &["bench", "compare", "http://me:s3cret@host/a", "http://me:s3cret@host/b"],
    ] {
        let (status, said) = told(&folder, arguments);
        assert_ne!(status, Some(0), "{arguments:?}: {said}");
        assert!(!said.is_empty() && !said.contains(SECRET), "{arguments:?}: {said}");
    }
}
