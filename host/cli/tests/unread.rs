//! A host whose stderr, stdout or records nobody reads, or whose disk is full: it starts, answers,
//! and ends as any other.
//!
//! The pipes are full before the host starts, so that not one byte of it fits: whoever waited for
//! the reader would wait for ever, on any machine.

mod common;

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, PipeReader, Read, Write, pipe};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Nothing here takes long, unless it hangs.
const LONG: Duration = Duration::from_secs(60);

/// A host, killed with its test.
struct Host {
    child: Child,
    address: SocketAddr,
}

impl Host {
    /// Starts one on a port that was free a moment ago, since stdout may not say which.
    fn start(command: &mut Command) -> Self {
        let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = free.local_addr().expect("it has one");
        drop(free);
        let child = command.args(["--bind", &address.to_string()]).spawn().expect("it starts");
        let mut host = Self { child, address };
        let began = Instant::now();
        while host.get("/health/ready").is_none_or(|answer| !answer.starts_with("HTTP/1.1 200")) {
            let ended = host.child.try_wait().expect("it can be asked");
            assert_eq!(ended, None, "it ended");
            assert!(began.elapsed() < LONG, "it is not ready");
            thread::sleep(Duration::from_millis(5));
        }
        host
    }

    fn ask(&self, request: &str) -> Option<String> {
        let mut connection = TcpStream::connect(self.address).ok()?;
        connection.set_read_timeout(Some(LONG)).expect("a time to wait");
        connection.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer).ok()?;
        Some(answer)
    }

    fn get(&self, path: &str) -> Option<String> {
        self.ask(&format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"))
    }

    fn complete(&self, tokens: u32) -> String {
        let body = format!(r#"{{"model":"sim","prompt":"x","max_tokens":{tokens}}}"#);
        let answer = self.ask(&format!(
            "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        ));
        answer.expect("an answer")
    }

    fn metric(&self, name: &str) -> u64 {
        let all = self.get("/metrics").expect("an answer");
        let line = all.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {name} in {all}"))
    }

    /// Waits until there is something to count.
    fn counts(&self, name: &str) {
        let began = Instant::now();
        while self.metric(name) == 0 {
            assert!(began.elapsed() < LONG, "{name} stays at 0");
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let told = Command::new("kill").args(["-s", name, &pid]).status();
        assert!(told.expect("kill runs").success());
    }

    fn ended(&mut self) -> ExitStatus {
        ended(&mut self.child)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn ended(child: &mut Child) -> ExitStatus {
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("it can be asked") {
            return status;
        }
        if began.elapsed() > LONG {
            let _ = child.kill();
            panic!("it does not end");
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn interlock() -> Command {
    let mut command = common::interlock();
    command.env_remove("RUST_BACKTRACE");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.current_dir(env!("CARGO_TARGET_TMPDIR"));
    command
}

fn serve(model: &str) -> Command {
    let mut command = interlock();
    command.args(["serve", "--model", model, "--set", "policies.cache=off"]);
    command
}

/// What a pipe is full of.
const FILLING: u8 = b'.';

/// A pipe that takes not one byte more, its reader, and what lies in it.
fn full() -> (PipeReader, Stdio, usize) {
    let (reader, writer) = pipe().expect("a pipe");
    let mut filler = writer.try_clone().expect("another end");
    // It is done when the pipe is full, which the kernel says to whoever does not want to wait.
    let mut filled = 0;
    let flags = |nonblocking: bool| {
        // SAFETY: changes a flag of a descriptor that is open.
        let set = unsafe {
            let on = if nonblocking { libc::O_NONBLOCK } else { 0 };
            libc::fcntl(std::os::fd::AsRawFd::as_raw_fd(&writer), libc::F_SETFL, on)
        };
        assert_eq!(set, 0);
    };
    flags(true);
    for piece in [4096, 1] {
        while let Ok(some) = filler.write(&vec![FILLING; piece]) {
            filled += some;
        }
    }
    flags(false);
    (reader, writer.into(), filled)
}

/// A folder of this test's own.
fn scratch(name: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("unread-{name}"));
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).expect("there is room");
    folder
}

#[test]
fn a_log_that_nobody_reads_holds_up_neither_requests_nor_health_nor_the_end() {
    let (mut reader, stderr, filled) = full();
    let mut host = Host::start(
        serve("sim:stop=0")
            .stderr(stderr)
            .args(["--set", "log.filter=trace"])
            .args(["--set", "log.buffer_max=64KiB"]),
    );
    thread::scope(|threads| {
        for _ in 0..4 {
            threads.spawn(|| {
                for _ in 0..500 {
                    let answer = host.complete(2);
                    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
                }
            });
        }
    });
    assert!(host.get("/health/live").expect("an answer").starts_with("HTTP/1.1 200"));
    let dropped = host.metric("interlock_log_lines_dropped_total");
    assert!(dropped > 2000, "{dropped} lines dropped");

    // Once somebody reads, the log says what is missing and goes on.
    let reading = thread::spawn(move || {
        reader.read_exact(&mut vec![0; filled]).expect("what the test wrote");
        let lines = BufReader::new(reader).lines().map(|line| line.expect("text"));
        lines.filter(|line| !line.contains(" TRACE ")).collect::<Vec<_>>()
    });
    let began = Instant::now();
    let marked = || host.metric("interlock_log_lines_dropped_total");
    // Nothing is dropped any more when the count stands still from one request to the next.
    while {
        let before = marked();
        host.complete(1);
        before != marked()
    } {
        assert!(began.elapsed() < LONG, "lines are dropped though somebody reads");
    }
    let dropped = marked();
    host.signal("TERM");
    assert_eq!(host.ended().code(), Some(0));
    let log = reading.join().expect("no panic");
    let said: u64 = log
        .iter()
        .filter_map(|line| line.split_once("WARN interlock::log: ")?.1.split_once(" lines of the "))
        .map(|(lines, _)| lines.parse::<u64>().expect("a number"))
        .sum();
    assert!(said >= dropped, "{said} of {dropped}");
    let last = log.last().expect("a line");
    assert!(log.iter().any(|line| line.contains("stopped serving")), "the end is told: {last}");
}

#[test]
fn a_host_whose_log_nobody_reads_ends_when_told_to_once_or_twice() {
    for signals in [1, 2] {
        let (_reader, stderr, _) = full();
        let mut host = Host::start(serve("sim:stop=0,decode=10ms").stderr(stderr));
        if signals == 1 {
            host.signal("TERM");
            assert_eq!(host.ended().code(), Some(0));
            continue;
        }
        // It does not end by itself in a minute.
        let asked = thread::spawn({
            let address = host.address;
            move || {
                let mut connection = TcpStream::connect(address).expect("it listens");
                let body = r#"{"model":"sim","prompt":"x","max_tokens":4000,"stream":true}"#;
                let head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n";
                let length = body.len();
                write!(connection, "{head}content-length: {length}\r\n\r\n{body}").expect("sent");
                connection.read_exact(&mut [0; 500]).expect("a stream");
                connection
            }
        });
        let _stream = asked.join().expect("a stream");
        host.signal("TERM");
        let began = Instant::now();
        while !host.get("/health/ready").is_some_and(|answer| answer.contains("draining")) {
            assert!(began.elapsed() < LONG, "it does not drain");
        }
        host.signal("TERM");
        assert_eq!(host.ended().code(), Some(1));
    }
}

#[test]
fn what_goes_wrong_at_the_start_ends_the_process_though_nobody_reads_what() {
    let wrong: [&[&str]; 4] = [
        &["serve", "--modell", "sim:"],
        &["serve", "--set", "server.bimd=1"],
        &["serve", "--model", "sim:nonsense=1"],
        &["models", "pull", "sim:nonsense=1"],
    ];
    for arguments in wrong {
        let (_reader, stderr, _) = full();
        let mut child = interlock().args(arguments).stderr(stderr).spawn().expect("it starts");
        assert_eq!(ended(&mut child).code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn a_panic_that_nobody_reads_of_ends_what_it_should() {
    let (_reader, stderr, _) = full();
    let mut host = Host::start(serve("sim:stop=0,panic-at=3").stderr(stderr));
    let answer = host.complete(10);
    assert!(answer.starts_with("HTTP/1.1 500"), "{answer}");
    assert_eq!(host.ended().code(), Some(1));
}

#[test]
fn a_panic_is_told_whatever_the_filter_and_in_the_logs_format() {
    let settings = ["--set", "log.filter=off", "--set", "log.format=json"];
    let mut command = serve("sim:stop=0,panic-at=3");
    let mut host = Host::start(command.args(settings).stderr(Stdio::piped()));
    host.complete(10);
    assert_eq!(host.ended().code(), Some(1));
    let mut log = String::new();
    host.child.stderr.take().expect("piped").read_to_string(&mut log).expect("text");
    let (panic, last) = log.trim_end().split_once('\n').expect("two lines");
    let panic: serde_json::Value = serde_json::from_str(panic).expect("an object");
    assert_eq!((&panic["level"], &panic["target"]), (&"ERROR".into(), &"panic".into()));
    let message = panic["message"].as_str().expect("it says why");
    assert!(message.contains("panicked at host/sim/src/"), "{message}");
    assert!(message.ends_with("told to panic at pass 3"), "{message}");
    let last: serde_json::Value = serde_json::from_str(last).expect("an object");
    let message = last["message"].as_str().expect("it says why");
    assert!(message.starts_with("the engine of sim stopped"), "{message}");
    assert_eq!((&last["level"], &last["exit_status"]), (&"ERROR".into(), &1.into()));
}

#[test]
fn a_host_starts_though_nobody_reads_its_stdout() {
    let (_reader, stdout, _) = full();
    let mut host = Host::start(serve("sim:stop=0").stdout(stdout));
    assert!(host.complete(1).starts_with("HTTP/1.1 200"));
    host.signal("TERM");
    assert_eq!(host.ended().code(), Some(0));
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_behind_stdout_and_stderr_stops_nothing() {
    let disk = || OpenOptions::new().write(true).open("/dev/full").expect("Linux has one");
    let mut host = Host::start(serve("sim:stop=0").stdout(disk()).stderr(disk()));
    assert!(host.complete(1).starts_with("HTTP/1.1 200"));
    host.counts("interlock_log_lines_dropped_total");
    host.signal("TERM");
    assert_eq!(host.ended().code(), Some(0));
}

#[test]
fn a_log_file_that_may_not_grow_is_a_full_disk() {
    use std::os::unix::process::CommandExt as _;
    // Compiled policies are files too, in memory: so the log has grown for a while.
    const MOST: u64 = 1 << 30;
    let path = scratch("limit").join("log");
    File::create(&path).and_then(|log| log.set_len(MOST - 200)).expect("holes take no room");
    let log = OpenOptions::new().append(true).open(&path).expect("it is there");
    let mut command = serve("sim:stop=0");
    let limit = || {
        let limit = libc::rlimit { rlim_cur: MOST, rlim_max: MOST };
        // SAFETY: reads a struct that is there.
        match unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: between fork and exec, one system call and no memory of its own.
    unsafe { command.pre_exec(limit) };
    let mut host = Host::start(command.stderr(log));
    assert!(host.complete(1).starts_with("HTTP/1.1 200"));
    host.counts("interlock_log_lines_dropped_total");
    host.signal("TERM");
    assert_eq!(host.ended().code(), Some(0));
    assert_eq!(fs::metadata(&path).expect("it is there").len(), MOST);
    fs::remove_file(&path).expect("it is ours");
}

fn named_pipe(path: &PathBuf) {
    let made = Command::new("mkfifo").arg(path).status();
    assert!(made.expect("mkfifo runs").success());
}

#[test]
fn records_that_nobody_reads_hold_up_neither_requests_nor_the_end() {
    let path = scratch("records").join("records");
    named_pipe(&path);
    let recorded = || {
        let mut command = serve("sim:stop=0");
        command.args(["--set", &format!("policies.record={}", path.display())]);
        command
    };
    // Without a reader there is nothing to start with, and it says so instead of waiting.
    let lonely = recorded().args(["--bind", "127.0.0.1:0"]).stderr(Stdio::piped()).spawn();
    let mut lonely = lonely.expect("it starts");
    assert_eq!(ended(&mut lonely).code(), Some(2));
    let mut why = String::new();
    lonely.stderr.take().expect("piped").read_to_string(&mut why).expect("text");
    let path_named = format!("got {path:?}: it is a pipe that nobody reads");
    assert!(why.contains(&path_named), "{why}");

    // Reading and writing, so that the opening of it waits for nobody.
    let mut reader = OpenOptions::new().read(true).write(true).open(&path).expect("it opens");
    let pipe_full = vec![FILLING; 4096];
    // SAFETY: changes a flag of a descriptor that is open.
    let set = unsafe {
        libc::fcntl(std::os::fd::AsRawFd::as_raw_fd(&reader), libc::F_SETFL, libc::O_NONBLOCK)
    };
    assert_eq!(set, 0);
    while reader.write(&pipe_full).is_ok() {}
    let mut host = Host::start(&mut recorded());
    for _ in 0..50 {
        assert!(host.complete(1).starts_with("HTTP/1.1 200"));
    }
    host.signal("TERM");
    assert_eq!(host.ended().code(), Some(0));
}

/// The thread that looks at files would wait for whoever writes to it, and the end for that thread.
#[test]
fn a_policy_that_became_a_pipe_holds_up_neither_a_reload_nor_the_end() {
    let folder = scratch("policy");
    let file = folder.join("policy.wasm");
    let guest =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target/guests/guest-mute.wasm");
    fs::copy(guest, &file).expect("make guests has built it");
    let config = folder.join("interlock.toml");
    let text = format!(
        "[policies]\nreload = \"100ms\"\n[[policy]]\nname = \"p\"\nsource = {:?}\n",
        file.display().to_string()
    );
    fs::write(&config, text).expect("there is room");
    let mut command = serve("sim:stop=0");
    let mut host = Host::start(command.arg("--config").arg(&config).stderr(Stdio::null()));
    let pipe = folder.join("pipe");
    named_pipe(&pipe);
    fs::rename(&pipe, &file).expect("it can be moved");
    let failed = r#"interlock_policy_swaps_total{result="failed"}"#;
    host.counts(failed);
    assert!(host.complete(1).starts_with("HTTP/1.1 200"));
    host.signal("TERM");
    assert_eq!(host.ended().code(), Some(0));
}

/// As logrotate does it: the file is moved, then the host is told.
#[test]
fn a_moved_file_of_records_is_begun_anew_at_sighup_and_the_old_one_gets_nothing_more() {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("moved-records");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).expect("there is room");
    let (file, moved) = (folder.join("records"), folder.join("yesterday"));
    let record = format!("policies.record={}", file.display());
    let host = Host::start(serve("sim:stop=0").args(["--set", &record]));
    let lines =
        |file: &std::path::Path| fs::read_to_string(file).map_or(0, |text| text.lines().count());
    let until = |holds: &dyn Fn() -> bool, what: &str| {
        let began = Instant::now();
        while !holds() {
            assert!(began.elapsed() < LONG, "{what}");
            thread::sleep(Duration::from_millis(5));
        }
    };
    host.complete(1);
    until(&|| lines(&file) == 1, "the first is recorded");
    fs::rename(&file, &moved).expect("it is there");
    host.signal("HUP");
    until(&|| file.exists(), "a new file is begun");
    host.complete(1);
    until(&|| lines(&file) == 1, "the second is recorded");
    assert_eq!(lines(&moved), 1, "the old file is left alone");
}
