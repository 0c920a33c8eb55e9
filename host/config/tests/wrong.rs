//! What no setting can be, in a file, a variable or a flag: a problem in words, with key, value and
//! place, and never a panic or another value.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use interlock_config::{Flag, Sources, load};

/// A file that is gone when the test is.
struct Scratch(PathBuf);

impl Scratch {
    fn new(bytes: &[u8]) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("interlock-wrong-{}-{number}.toml", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, bytes).expect("the temporary folder can be written");
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Every problem, in a line each; the file is `FILE`.
fn said(sources: &Sources) -> String {
    let told = load(sources).expect_err("it was taken").to_string();
    let file = sources.file.as_ref().map_or(String::new(), |file| file.display().to_string());
    if file.is_empty() { told } else { told.replace(&file, "FILE") }
}

fn said_of_file(text: impl AsRef<[u8]>) -> String {
    let file = Scratch::new(text.as_ref());
    said(&Sources::of_file(&file.0))
}

fn said_of_variable(name: &[u8], value: &[u8]) -> String {
    let os = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
    said(&Sources { env: vec![(os(name), os(value))], ..Sources::default() })
}

fn said_of_flag(text: &str) -> String {
    let flag = Flag::set(text).expect("the tests write flags well");
    said(&Sources { flags: vec![flag], ..Sources::default() })
}

const WHOLE: &str = "a whole number from -9223372036854775808 to 9223372036854775807";

/// Both panicked: they are TOML, and no numbers of ours.
#[test]
fn a_number_that_does_not_fit_is_a_problem_with_its_key_its_digits_and_its_line() {
    let said = said_of_file(
        "[server]\nconnections_max = 99999999999999999999\n[engine]\nrunning_max = 0xffff_ffff_ffff_ffff\n\
         [[policy]]\nname = \"p\"\nsource = \"builtin:quota\"\n[policy.settings]\nx = 1e400\ny = [1, -1e999]\n",
    );
    let expected = [
        &format!("server.connections_max must be {WHOLE}, got 99999999999999999999 (FILE:2)"),
        &format!("engine.running_max must be {WHOLE}, got 0xffffffffffffffff (FILE:4)"),
        "policy[0].settings.x must be a finite number, got 1e400 (FILE:9)",
        "policy[0].settings.y[1] must be a finite number, got -1e999 (FILE:10)",
    ];
    assert!(said.starts_with("the configuration has 4 problems:"), "{said}");
    for line in expected {
        assert!(said.contains(line), "{line}\nis not in\n{said}");
    }
}

/// They were: a text, and in a policy's settings null or a table with a private name.
#[test]
fn what_toml_has_and_json_has_not_is_a_problem_also_where_any_key_may_stand() {
    for (value, must) in [
        ("nan", "be a finite number, got nan"),
        ("-inf", "be a finite number, got -inf"),
        ("1979-05-27T07:32:00Z", "be no date, since no setting is one (a text is in quotes), got"),
        ("07:32:00", "be no date, since no setting is one (a text is in quotes), got 07:32:00"),
    ] {
        let policy = "[[policy]]\nname = \"p\"\nsource = \"builtin:quota\"\n[policy.settings]\n";
        let said = said_of_file(format!("{policy}a = {{ b = [[{value}]] }}\n"));
        let line = format!("policy[0].settings.a.b[0][0] must {must}");
        assert!(said.contains(&line) && said.contains("(FILE:5)"), "{said}");
        let said = said_of_file(format!("[log]\nfilter = {value}\n"));
        assert!(said.contains(&format!("log.filter must {must}")), "{said}");
        let said = said_of_flag(&format!(
            "policy=[{{name = \"p\", source = \"builtin:quota\", settings = {{ x = {value} }}}}]"
        ));
        let line = format!("policy[0].settings.x must {must}");
        assert!(said.contains(&line) && said.contains("(--set policy)"), "{said}");
    }
}

#[test]
fn a_missing_value_is_not_told_of_twice_where_an_unreadable_one_stands() {
    let said = said_of_file("[[policy]]\nname = 1e400\nsource = \"builtin:quota\"\n");
    assert!(said.starts_with("the configuration has a problem:"), "{said}");
    assert!(said.contains("policy[0].name must be a finite number"), "{said}");
}

#[test]
fn a_secret_that_cannot_be_read_is_not_shown() {
    let said = said_of_file("[admin]\ntoken = 12345678901234567890123\n");
    assert!(!said.contains("12345678901234567890123"), "{said}");
    assert!(said.contains("admin.token must be") && said.contains("not shown"), "{said}");
}

/// A clock that is asked for the time so much later panics.
#[test]
fn a_time_that_no_clock_counts_to_is_a_problem() {
    for (key, text) in [
        ("server.body_timeout", "999999999999h"),
        ("limits.total_max", "18446744073709551615s"),
        ("limits.total_max", "366days"),
    ] {
        let said = said_of_flag(&format!("{key}={text}"));
        let line = format!("{key} must be at most 365days, got \"{text}\" (--set {key})");
        assert!(said.contains(&line), "{said}");
    }
    let said = said_of_flag("limits.total_max=99999999999999999999s");
    assert!(said.contains("limits.total_max must be a duration"), "{said}");
    let policy =
        "[[policy]]\nname = \"p\"\nsource = \"builtin:quota\"\nsoft_deadline = \"9999y\"\n";
    let said = said_of_file(policy);
    assert!(said.contains("policy[0].soft_deadline must be at most 365days"), "{said}");
}

/// A setting at a bound: what is set beside it, its key, the last value that is taken, the first one
/// that is not, and what is said of that one.
type Bound = (&'static [&'static str], &'static str, &'static str, &'static str, &'static str);

#[rustfmt::skip]
const BOUNDS: &[Bound] = &[
    (&[], "model.threads", "1", "0", "a whole number of at least 1, got 0"),
    (&[], "model.threads", "1024", "1025", "at most 1024, got 1025"),
    (&[], "model.context_max", "1", "0", "a whole number from 1 to 4294967295, got 0"),
    (&[], "model.context_max", "4294967295", "4294967296", "a whole number from 1 to 4294967295, got 4294967296"),
    (&["waiting.requests_max=1"], "server.connections_max", "1", "0", "a whole number of at least 1, got 0"),
    (&[], "server.connections_max", "1048576", "1048577", "at most 1048576, got 1048577"),
    (&[], "server.connections_per_address_max", "1", "0", "a whole number of at least 1, got 0"),
    (&[], "server.connections_per_address_max", "1048576", "1048577", "at most 1048576, got 1048577"),
    (&[], "server.body_max", "1B", "0B", "1B to 256MiB, got 0B"),
    (&["work.memory_max=4GiB"], "server.body_max", "256MiB", "268435457B", "1B to 256MiB, got 268435457B"),
    (&[], "server.header_max", "1KiB", "1023B", "1KiB to 1MiB, got 1023B"),
    (&[], "server.header_max", "1MiB", "1048577B", "1KiB to 1MiB, got 1048577B"),
    (&[], "server.pipelined_max", "16MiB", "16777217B", "0B to 16MiB, got 16777217B"),
    (&[], "server.headers_max", "1", "0", "1 to 1024, got 0"),
    (&[], "server.headers_max", "1024", "1025", "1 to 1024, got 1025"),
    (&[], "server.body_timeout", "1ns", "0s", "exceed 0s, got 0s"),
    (&[], "server.header_timeout", "1ns", "0s", "exceed 0s, got 0s"),
    (&[], "server.idle_timeout", "1ns", "0s", "exceed 0s, got 0s"),
    (&[], "server.write_timeout", "1ns", "0s", "exceed 0s, got 0s"),
    (&[], "server.stream_keepalive", "0s", "1ns", "0s (none) or at least 10ms, got 1ns"),
    (&[], "server.stream_keepalive", "10ms", "9ms", "0s (none) or at least 10ms, got 9ms"),
    (&[], "admin.connections_max", "1", "0", "a whole number of at least 1, got 0"),
    (&[], "admin.connections_max", "1024", "1025", "1 to 1024, got 1025"),
    (&[], "metrics.connections_max", "1", "0", "a whole number of at least 1, got 0"),
    (&[], "metrics.connections_max", "1024", "1025", "1 to 1024, got 1025"),
    (&[], "log.buffer_max", "64KiB", "65535B", "64KiB to 1GiB, got 65535B"),
    (&[], "log.buffer_max", "1GiB", "1073741825B", "64KiB to 1GiB, got 1073741825B"),
    (&[], "waiting.requests_max", "1", "0", "a whole number of at least 1, got 0"),
    (&[], "waiting.requests_max", "1024", "1025", "at most server.connections_max (1024), got 1025"),
    (&["server.connections_max=200000"], "waiting.requests_max", "100000", "100001", "at most 100000, got 100001"),
    (&[], "limits.queue_max", "1ns", "0s", "exceed 0s, got 0s"),
    (&[], "limits.first_token_max", "1ns", "0s", "exceed 0s, got 0s"),
    (&[], "limits.inter_token_max", "1ns", "0s", "exceed 0s, got 0s"),
    (&["limits.first_token_max=1ns"], "limits.total_max", "1ns", "0s", "exceed 0s, got 0s"),
    (&["limits.first_token_max=10s"], "limits.total_max", "10s", "9s", "at least limits.first_token_max (10s), got 9s"),
    (&[], "limits.total_max", "365days", "365days 1ns", "at most 365days, got \"365days 1ns\""),
    (&[], "limits.drain_tokens_max", "4294967295", "4294967296", "a whole number from 0 to 4294967295, got 4294967296"),
    (&[], "limits.detach_tokens_max", "4294967295", "4294967296", "a whole number from 0 to 4294967295, got 4294967296"),
    (&[], "work.threads", "2", "1", "2 to 64, got 1"),
    (&[], "work.threads", "64", "65", "2 to 64, got 65"),
    (&[], "work.requests_max", "1", "0", "a whole number of at least 1, got 0"),
    (&[], "work.requests_max", "100000", "100001", "at most 100000, got 100001"),
    (&["server.body_max=1B"], "work.memory_max", "16MiB", "16777215B", "at least 16MiB, got 16777215B"),
    (&[], "work.memory_max", "32MiB", "33554431B", "at least 8 times server.body_max (4MiB), got 33554431B"),
    (&[], "work.time_max", "1ns", "0s", "exceed 0s, got 0s"),
    (&[], "detached.requests_max", "1000000", "1000001", "at most 1000000, got 1000001"),
    (&[], "detached.results_max", "1000000", "1000001", "at most 1000000, got 1000001"),
    (&[], "detached.keep", "24h", "24h 1s", "at most 86400s, got 86401s"),
    (&[], "engine.running_max", "1", "0", "a whole number from 1 to 4294967295, got 0"),
    (&[], "engine.running_max", "16384", "16385", "at most 16384, got 16385"),
    (&[], "engine.prefill_chunk", "1", "0", "a whole number from 1 to 4294967295, got 0"),
    (&[], "engine.prefill_chunk", "8192", "8193", "at most 8192, got 8193"),
    (&[], "engine.decode_slowdown_max", "1", "0", "a whole number from 1 to 4294967295, got 0"),
    (&[], "engine.decode_slowdown_max", "1000", "1001", "at most 1000, got 1001"),
    (&[], "engine.decode_pause_max", "1m", "61s", "at most 1m, got 1m 1s"),
    (&[], "cache.memory_max", "1MiB", "1048575B", "at least 1MiB, got 1048575B"),
    (&[], "state.timeout", "1ms", "999us", "1ms to 1s, got 999µs"),
    (&[], "state.timeout", "1s", "1001ms", "1ms to 1s, got 1.001s"),
    (&[], "state.lease", "1s", "999ms", "1s to 3600s, got 999ms"),
    (&[], "state.lease", "1h", "3601s", "1s to 3600s, got 3601s"),
    (&[], "state.keys_max", "1", "0", "1 to 10000000, got 0"),
    (&[], "state.keys_max", "10000000", "10000001", "1 to 10000000, got 10000001"),
    (&[], "state.value_bytes_max", "1B", "0B", "1B to 64KiB, got 0B"),
    (&[], "state.value_bytes_max", "64KiB", "65537B", "1B to 64KiB, got 65537B"),
    (&[], "state.bytes_max", "65664B", "65663B", "65664B (one value of state.value_bytes_max) to 16GiB, got 65663B"),
    (&[], "state.bytes_max", "16GiB", "17179869185B", "65664B (one value of state.value_bytes_max) to 16GiB, got 17179869185B"),
    (&[], "policies.reload", "0s", "1ns", "0s or 100ms to 1h, got 1ns"),
    (&[], "policies.reload", "100ms", "99ms", "0s or 100ms to 1h, got 99ms"),
    (&[], "policies.reload", "1h", "3601s", "0s or 100ms to 1h, got 3601s"),
    (&[], "policies.record_max", "1MiB", "1048575B", "1MiB to 1GiB, got 1048575B"),
    (&[], "policies.record_max", "1GiB", "1073741825B", "1MiB to 1GiB, got 1073741825B"),
    (&[], "policies.record_kept", "1000", "1001", "0 to 1000, got 1001"),
    (&[], "policy.deadline", "\"1ms\"", "\"999us\"", "1ms to 1s, got 999µs"),
    (&[], "policy.deadline", "\"1s\"", "\"1001ms\"", "1ms to 1s, got 1.001s"),
    (&[], "policy.memory_max", "\"128KiB\"", "\"131071B\"", "128KiB to 64MiB, got \"131071B\""),
    (&[], "policy.memory_max", "\"64MiB\"", "\"67108865B\"", "128KiB to 64MiB, got \"67108865B\""),
    (&[], "policy.calls_max", "1", "0", "1 to 100000, got 0"),
    (&[], "policy.calls_max", "100000", "100001", "1 to 100000, got 100001"),
    (&[], "policy.crash_budget", "1000", "1001", "0 to 1000, got 1001"),
    (&[], "policy.weight", "1", "0", "1 to 1000, got 0"),
    (&[], "policy.weight", "1000", "1001", "1 to 1000, got 1001"),
    (&[], "policy.mode", "\"canary:1\"", "\"canary:0\"", "a whole number of 1 to 99, got \"canary:0\""),
    (&[], "policy.mode", "\"canary:99\"", "\"canary:100\"", "a whole number of 1 to 99, got \"canary:100\""),
    (&[], "policy.on_failure.admit", "\"closed:400\"", "\"closed:399\"", "a status of 400 to 599, got \"closed:399\""),
    (&[], "policy.on_failure.admit", "\"closed:599\"", "\"closed:600\"", "a status of 400 to 599, got \"closed:600\""),
    (&[], "policy.on_failure.identify", "\"last-good:1ns\"", "\"last-good:0s\"", "have a time above 0s, got \"last-good:0s\""),
    (&[], "policy.on_failure.route", "\"last-good:1ns\"", "\"last-good:0s\"", "have a time above 0s, got \"last-good:0s\""),
    (&[], "policy.on_failure.admit", "\"last-good:1ns\"", "\"last-good:0s\"", "have a time above 0s, got \"last-good:0s\""),
];

/// `None`: it was taken.
fn said_of_setting(beside: &[&str], key: &str, value: &str) -> Option<String> {
    let set = match key.strip_prefix("policy.") {
        Some(key) => {
            format!("policy=[{{name = \"p\", source = \"builtin:quota\", {key} = {value}}}]")
        }
        None => format!("{key}={value}"),
    };
    let flags = beside.iter().copied().chain([set.as_str()]);
    let flags = flags.map(|text| Flag::set(text).expect("the tests write flags well")).collect();
    load(&Sources { flags, ..Sources::default() }).err().map(|problems| problems.to_string())
}

#[test]
fn every_number_has_its_bounds_and_is_told_them() {
    let mut failed = Vec::new();
    for &(beside, key, taken, refused, words) in BOUNDS {
        if let Some(said) = said_of_setting(beside, key, taken) {
            failed.push(format!("{key} = {taken}: {said}"));
        }
        let is_told = |said: &String| {
            let key = key.strip_prefix("policy.").unwrap_or(key);
            said.contains(key) && said.contains(words)
        };
        match said_of_setting(beside, key, refused) {
            Some(said) if is_told(&said) => {}
            said => failed.push(format!("{key} = {refused}, which must be {words}: {said:?}")),
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn a_policys_name_has_a_longest_length() {
    let named = |length| {
        Flag::set(&format!(
            "policy=[{{name = {:?}, source = \"builtin:quota\"}}]",
            "p".repeat(length)
        ))
    };
    let of = |length| Sources { flags: named(length).into_iter().collect(), ..Sources::default() };
    assert!(load(&of(64)).is_ok());
    let said = said(&of(65));
    assert!(said.contains("must be 1 to 64 lower-case letters"), "{said}");
}

#[test]
fn a_size_that_does_not_fit_is_a_problem() {
    for size in ["99999999TiB", "99999999999999GiB", "-1B", "1e3"] {
        let said = said_of_flag(&format!("cache.memory_max={size}"));
        assert!(said.contains("cache.memory_max cannot be read: a size is"), "{said}");
    }
    let said = said_of_file("[cache]\nmemory_max = -5\n");
    assert!(said.contains("cache.memory_max") && said.contains("-5"), "{said}");
}

#[test]
fn a_variable_that_is_not_utf_8_is_a_problem_and_its_value_is_not_shown() {
    let text = "a variable must be UTF-8, name and value, got bytes that are not";
    let said = said_of_variable(b"INTERLOCK__ADMIN__TOKEN", b"secret\xff");
    assert!(said.contains(&format!("{text} (env INTERLOCK__ADMIN__TOKEN)")), "{said}");
    assert!(!said.contains("secret"), "{said}");
    let said = said_of_variable(b"INTERLOCK__SERVER__B\xffND", b"127.0.0.1:1");
    assert!(said.contains(&format!("{text} (env INTERLOCK__SERVER__B\u{fffd}ND)")), "{said}");
}

/// Only what follows the first line would be lost.
#[test]
fn a_variable_is_one_value_and_nothing_behind_it() {
    let said = said_of_variable(b"INTERLOCK__MODEL__THREADS", b"1\n[server]\nbind = 2");
    assert!(said.contains("model.threads must be a whole number"), "{said}");
}

#[test]
fn a_name_of_too_many_parts_is_a_problem_and_no_deep_table() {
    let deep = vec!["a"; 30_000];
    let said = said_of_flag(&format!("{}=1", deep.join(".")));
    assert!(said.contains("is not a known key: a key has at most 16 parts, got 30000"), "{said}");
    assert!(said.len() < 1000, "nobody reads that");
    let name = format!("INTERLOCK__{}", deep.join("__"));
    let said = said_of_variable(name.as_bytes(), b"1");
    assert!(said.contains("a key has at most 16 parts, got 30000"), "{}", said.len());
}

#[test]
fn what_is_nested_deeper_than_any_setting_is_a_problem() {
    for text in [
        format!("x = {}{}\n", "[".repeat(50_000), "]".repeat(50_000)),
        format!("{}x = 1\n", "a.".repeat(50_000)),
        format!("[{}x]\n", "a.".repeat(50_000)),
        format!("x = {}1{}\n", "{a=".repeat(50_000), "}".repeat(50_000)),
    ] {
        let said = said_of_file(text);
        let told = said.contains("recursion limit") || said.contains("max recursion depth");
        assert!(told && said.len() < 1000, "{}", &said[..said.len().min(500)]);
    }
}

#[test]
fn long_keys_and_values_are_not_repeated_whole() {
    let long = "k".repeat(100_000);
    for text in [
        format!("{long} = 1\n"),
        format!("[log]\nformat = \"{long}\"\n"),
        format!("[server]\nconnections_max = 1{}\n", "0".repeat(100_000)),
    ] {
        let said = said_of_file(text);
        assert!(said.len() < 2000, "{}", said.len());
        assert!(said.contains(" bytes)"), "{said}");
    }
}

#[test]
fn a_file_that_is_no_text_or_too_long_or_no_file_is_a_problem() {
    let line = "FILE cannot be read: it is no text: byte 0xff at 4 is not UTF-8";
    assert!(said_of_file(b"x = \xff").contains(line));
    let long = said_of_file("#".repeat((1 << 20) + 1));
    assert!(long.contains("FILE cannot be read: 1048577 bytes, the limit is 1048576"), "{long}");
    for (path, why) in [
        ("/dev/zero", "it is a device and no regular file"),
        ("/", "it is a folder and no regular file"),
        ("/no/such/file", "No such file or directory"),
    ] {
        let told = said(&Sources::of_file(path.as_ref()));
        assert!(told.contains(&format!("FILE cannot be read: {why}")), "{told}");
    }
    assert!(said_of_file("a = 1\0\n").contains("is not TOML"));
}
