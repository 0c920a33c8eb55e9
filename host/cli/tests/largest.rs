//! The largest of every number, time and size that the configuration takes: with all of them at once a
//! host starts, and serves.

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::Stdio;
use std::time::Duration;

use common::interlock;
use interlock_config::{Config, Flag, Sources, load};

/// Those that have no value unless somebody sets one.
const UNSET: [&str; 4] =
    ["model.threads", "model.context_max", "server.connections_per_address_max", "work.threads"];

fn takes(flags: &[Flag]) -> bool {
    load(&Sources { flags: flags.to_vec(), ..Sources::default() }).is_ok()
}

/// The largest of these that the key takes.
fn largest(key: &str, candidates: impl Iterator<Item = String>) -> Option<Flag> {
    let flags = candidates.map(|value| Flag::new("", key, value));
    flags.into_iter().find(|flag| takes(std::slice::from_ref(flag)))
}

fn numbers() -> impl Iterator<Item = String> {
    let decades = (0..=18).rev().map(|power| 10_i64.pow(power));
    let round = [i64::MAX, u32::MAX.into(), 1 << 20, 1 << 16, 1 << 14, 1 << 13, 1 << 10, 64, 32, 8];
    let mut all: Vec<i64> = round.into_iter().chain(decades).collect();
    all.sort_unstable_by(|a, b| b.cmp(a));
    all.into_iter().map(|number| number.to_string())
}

fn sizes() -> impl Iterator<Item = String> {
    let large = (0..=33).rev().step_by(3).map(|power| format!("{}GiB", 1_u64 << power));
    large.chain((0..30).rev().step_by(2).map(|power| format!("{}B", 1_u64 << power)))
}

fn all_largest() -> Vec<Flag> {
    let defaults = toml::Table::try_from(Config::default()).expect("a table");
    let mut flags: Vec<Flag> = UNSET.iter().filter_map(|key| largest(key, numbers())).collect();
    assert_eq!(flags.len(), UNSET.len());
    for (section, table) in
        defaults.iter().filter_map(|(name, value)| Some((name, value.as_table()?)))
    {
        for (name, value) in table {
            let key = format!("{section}.{name}");
            let flag = match value {
                toml::Value::Integer(_) => largest(&key, numbers()),
                toml::Value::String(text) if text.ends_with('B') => largest(&key, sizes()),
                toml::Value::String(text) if humantime::parse_duration(text).is_ok() => {
                    let times =
                        ["18446744073709551615s", "365days", "31days", "1day", "1h", "1m", "1s"];
                    largest(&key, times.iter().map(ToString::to_string))
                }
                _ => continue,
            };
            flags.push(flag.unwrap_or_else(|| panic!("{key} takes nothing")));
        }
    }
    flags
}

/// The whole answer; what goes wrong instead.
fn ask(address: &str, line: &str, body: &str) -> String {
    let asked = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        let length = body.len();
        write!(
            stream,
            "{line} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\
             content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map(|_| answer)
    };
    asked().expect("it answers")
}

#[test]
fn a_host_starts_and_serves_with_the_largest_of_everything() {
    let flags = all_largest();
    assert!(flags.len() > 35, "{flags:?}");
    assert!(takes(&flags), "they are taken together, too: {flags:?}");
    let mut command = interlock();
    command.args(["serve", "--model", "sim:stop=0", "--bind", "127.0.0.1:0"]);
    for Flag { key, value, .. } in &flags {
        command.args(["--set", &format!("{key}={value}")]);
    }
    command.stdin(Stdio::null());
    let mut host =
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let mut line = String::new();
    BufReader::new(host.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
    let address = line.split_once("http://").and_then(|(_, rest)| rest.split_once(','));
    let answer = address.map(|(address, _)| {
        while !ask(address, "GET /health/ready", "").starts_with("HTTP/1.1 200") {
            std::thread::yield_now();
        }
        ask(address, "POST /v1/completions", r#"{"model":"sim","prompt":"x","max_tokens":3}"#)
    });
    let _ = host.kill();
    let said = host.wait_with_output().expect("it ends").stderr;
    let said = String::from_utf8_lossy(&said);
    let answer = answer.unwrap_or_else(|| panic!("it does not listen: {said}"));
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}\n{said}");
    assert!(!said.contains("panicked"), "{said}");
}
