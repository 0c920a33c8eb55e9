//! What ends `interlock serve` before it serves: said with key, value and place, in the log's own
//! format, and found by `interlock config check` in the same words. Nobody waits, whatever a path is.

mod common;

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::Folder;

/// What runs, runs in this folder.
struct Desk(Folder);

impl Desk {
    fn new(name: &str) -> Self {
        Self(Folder::new(&format!("fatal-{name}")))
    }

    fn put(&self, name: &str, text: &str) {
        self.0.put(name, text);
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.0.join(name)
    }

    fn fifo(&self, name: &str) {
        let made = Command::new("mkfifo").arg(self.path(name)).status();
        assert!(made.is_ok_and(|status| status.success()), "mkfifo works");
    }

    /// Its exit status, and what it said on stderr.
    fn interlock(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let mut command = self.0.interlock();
        let output = command.args(arguments).stdin(Stdio::null()).output();
        let output = output.expect("our own binary runs");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// Writes a configuration, and expects that both refuse it so.
    fn refused(&self, config: &str, says: &[&str]) {
        self.put("interlock.toml", config);
        for command in
            [&["config", "check", "interlock.toml"][..], &["serve", "--bind", "127.0.0.1:0"]]
        {
            let (status, said) = self.interlock(command);
            assert_eq!(status, Some(2), "{command:?}: {said}");
            for part in says {
                assert!(said.contains(part), "{command:?}: {part}\nis not in\n{said}");
            }
            assert!(!said.contains("listening") && !said.contains("panicked"), "{said}");
        }
    }
}

/// It passed the check, and the start ended with "No such file or directory (os error 2)".
#[test]
fn records_that_cannot_be_written_are_told_of_with_key_path_and_line() {
    let desk = Desk::new("record");
    desk.refused(
        "[model]\nreference = \"sim:\"\n[policies]\nrecord = \"gone/x.jsonl\"\n",
        &[
            "policies.record must be a file that can be written, renamed and made anew, got \
             \"gone/x.jsonl\": its folder gone: No such file or directory",
            "(interlock.toml:4)",
        ],
    );
    desk.refused(
        "[model]\nreference = \"sim:\"\n[policies]\nrecord = \".\"\n",
        &["policies.record must be", "got \".\": it is a folder", "(interlock.toml:4)"],
    );
    // Its rights say that root may write there, and nobody can.
    if cfg!(target_os = "linux") {
        for path in ["/proc/x.jsonl", "/sys/x.jsonl"] {
            desk.refused(
                &format!("[model]\nreference = \"sim:\"\n[policies]\nrecord = {path:?}\n"),
                &["policies.record must be", path, "its folder /", "(interlock.toml:4)"],
            );
        }
    }
    let fine = "[model]\nreference = \"sim:\"\n[policies]\nrecord = \"r.jsonl\"\n";
    desk.put("interlock.toml", fine);
    let (status, said) = desk.interlock(&["config", "check", "interlock.toml"]);
    assert_eq!(status, Some(0), "{said}");
    assert!(!desk.path("r.jsonl").exists(), "looking makes nothing");
}

/// The device grew the host until the kernel killed it; the FIFO held up every check and every end.
#[test]
fn a_policy_that_is_no_file_is_refused_and_nobody_waits() {
    let desk = Desk::new("policy");
    desk.fifo("pipe.wasm");
    for (source, says) in [
        ("pipe.wasm", "cannot read the file: it is a FIFO and no regular file"),
        ("/dev/zero", "cannot read the file: it is a device and no regular file"),
        (".", "cannot read the file: it is a folder and no regular file"),
        ("gone.wasm", "cannot read the file: No such file or directory"),
    ] {
        let config = format!(
            "[model]\nreference = \"sim:\"\n[[policy]]\nname = \"p\"\nsource = \"{source}\"\n"
        );
        let named = format!("policy[0] \"p\" ({source}): {says}");
        desk.refused(&config, &[&named, "(interlock.toml:5)"]);
    }
}

#[test]
fn a_configuration_a_record_cases_and_settings_that_are_no_files_are_refused_and_nobody_waits() {
    let desk = Desk::new("files");
    desk.fifo("pipe");
    desk.put("cases.toml", "[[case]]\nname = \"a\"\nexpect = { decision = \"admit\" }\n");
    let says = "it is a FIFO and no regular file";
    for arguments in [
        &["config", "check", "pipe"][..],
        &["config", "show", "--config", "pipe"],
        &["serve", "--config", "pipe"],
        &["policy", "replay", "pipe", "--policy", "builtin:guard"],
        &["policy", "test", "builtin:guard", "pipe"],
        &["policy", "test", "builtin:guard", "cases.toml", "--settings", "pipe"],
        &["policy", "test", "builtin:guard", "cases.toml", "--config", "pipe"],
        &["policy", "check", "pipe"],
        &["policy", "sim", "--config", "pipe", "pipe"],
        &["bench", "compare", "pipe", "pipe"],
    ] {
        let (status, said) = desk.interlock(arguments);
        assert!(matches!(status, Some(1 | 2)), "{arguments:?}: {status:?} {said}");
        assert!(said.contains(says) && said.contains("pipe"), "{arguments:?}: {said}");
        assert!(!said.contains("***"), "a file's name is no secret: {arguments:?}: {said}");
    }
}

#[test]
fn a_policy_with_one_problem_has_no_other() {
    let desk = Desk::new("one");
    desk.put(
        "interlock.toml",
        "[model]\nreference = \"sim:\"\n[[policy]]\nname = \"quota\"\nsource = \"builtin:quota\"\n\
         deadline = \"0s\"\ngrants = [\"state\", \"metrics\"]\nsettings = { anonymous = \"all\" }\n",
    );
    let (status, said) = desk.interlock(&["config", "check", "interlock.toml"]);
    assert_eq!(status, Some(2), "{said}");
    assert!(said.contains("the configuration has a problem"), "{said}");
}

#[test]
fn a_link_that_leads_nowhere_is_a_configuration_that_cannot_be_read() {
    let desk = Desk::new("dangling");
    std::os::unix::fs::symlink("gone.toml", desk.path("interlock.toml")).expect("a link");
    let (status, said) = desk.interlock(&["config", "show"]);
    assert_eq!(status, Some(2), "{said}");
    assert!(said.contains("interlock.toml cannot be read: No such file or directory"), "{said}");
}

#[test]
fn a_model_that_is_not_there_is_told_of_with_its_key() {
    let desk = Desk::new("model");
    desk.refused(
        "[model]\nreference = \"./gone.gguf\"\n",
        &["model.reference cannot be served: there is no file or folder ./gone.gguf", ":2)"],
    );
    desk.refused(
        "[model]\nreference = \"sim:\"\n[[extra_model]]\nreference = \"sim:name=b,decode=soon\"\n",
        &["extra_model[0].reference cannot be served", "decode", "soon", ":4)"],
    );
}

#[test]
fn an_address_that_is_not_this_machines_is_told_of_with_its_key() {
    let desk = Desk::new("address");
    // From the block that is for documentation alone.
    desk.put(
        "interlock.toml",
        "[model]\nreference = \"sim:\"\n[server]\nbind = \"192.0.2.1:80\"\n",
    );
    let says = "server.bind: cannot listen on 192.0.2.1:80: this machine has no address 192.0.2.1";
    for command in [&["config", "check", "interlock.toml"][..], &["serve"]] {
        let (status, said) = desk.interlock(command);
        assert_eq!(status, Some(2), "{command:?}: {said}");
        assert!(said.contains(says) && said.contains("(interlock.toml:4)"), "{command:?}: {said}");
        assert!(!said.contains(" listening"), "{command:?}: {said}");
    }
}

/// Most often it is the running host's, whose next configuration is being checked.
#[test]
fn a_port_that_is_taken_ends_the_start_and_is_a_remark_of_the_check() {
    let desk = Desk::new("port");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let bind = taken.local_addr().expect("it has one");
    let config = format!("[model]\nreference = \"sim:\"\n[admin]\nbind = \"{bind}\"\n");
    desk.put("interlock.toml", &config);
    let says = format!("admin.bind: cannot listen on {bind}: another program listens there");
    let (status, said) = desk.interlock(&["config", "check", "interlock.toml"]);
    assert_eq!(status, Some(0), "{said}");
    assert!(said.contains(&says), "{said}");
    let (status, said) = desk.interlock(&["serve", "--bind", "127.0.0.1:0"]);
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains(&says) && !said.contains(" listening"), "{said}");
}

#[test]
fn one_address_for_two_listeners_is_a_problem() {
    let desk = Desk::new("twice");
    // One that is taken looks the same to who does not compare.
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let bind = taken.local_addr().expect("it has one");
    desk.put(
        "interlock.toml",
        &format!("model.reference = \"sim:\"\nserver.bind = \"{bind}\"\nadmin.bind = \"{bind}\"\n"),
    );
    let (status, said) = desk.interlock(&["config", "check", "interlock.toml"]);
    assert_eq!(status, Some(2), "{said}");
    assert!(said.contains("the configuration has a problem"), "{said}");
    let says = format!("admin.bind must differ from server.bind ({bind}), got {bind}");
    assert!(said.contains(&says), "{said}");
}

#[test]
fn in_a_log_for_a_collector_the_last_line_says_why_the_host_ended() {
    let desk = Desk::new("json");
    desk.put(
        "interlock.toml",
        "[model]\nreference = \"sim:\"\n[log]\nformat = \"json\"\nfilter = \"off\"\n[server]\n\
         headers_max = 0\nbody_timeout = \"999999999999h\"\n",
    );
    let (status, said) = desk.interlock(&["serve"]);
    assert_eq!(status, Some(2), "{said}");
    let lines: Vec<serde_json::Value> =
        said.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    let [line] = &lines[..] else { panic!("more than one line: {said}") };
    assert_eq!(line["level"], "ERROR");
    assert_eq!(line["message"], "the configuration has 2 problems");
    assert_eq!(line["exit_status"], 2);
    let problems = line["problems"].as_array().expect("a list");
    let text = |at: usize| problems[at].as_str().expect("a text");
    assert_eq!(text(0), "server.headers_max must be 1 to 1024, got 0 (interlock.toml:7)");
    assert!(text(1).starts_with("server.body_timeout must be at most 365days"), "{}", text(1));

    // What cannot be told from the file, flags say.
    let broken = ["serve", "--config", "gone.toml", "--set", "log.format=json"];
    let (_, said) = desk.interlock(&broken);
    let line: serde_json::Value = serde_json::from_str(&said).expect("one line of JSON");
    assert!(line["problems"][0].as_str().is_some_and(|why| why.contains("gone.toml")), "{said}");
}

#[test]
fn two_policies_that_mean_two_things_by_one_metric_are_found_by_the_check() {
    let desk = Desk::new("metrics");
    let guests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/guests");
    let mut guard = fs::read(guests.join("stream-guard.wasm")).expect("it was built");
    let (its, other) = (b"matches_total", b"refused_total");
    let places: Vec<_> = guard.windows(its.len()).enumerate().filter(|(_, it)| it == its).collect();
    let places: Vec<usize> = places.into_iter().map(|(at, _)| at).collect();
    assert!(!places.is_empty(), "it declares its metric");
    for at in places {
        guard[at..at + other.len()].copy_from_slice(other);
    }
    fs::write(desk.path("guard.wasm"), guard).expect("there is room");
    desk.refused(
        "[model]\nreference = \"sim:\"\n[policies]\ncache = \"off\"\n[[policy]]\nname = \"quota\"\n\
         source = \"builtin:quota\"\ngrants = [\"state\", \"metrics\"]\nsettings.anonymous = \"x\"\n\
         [[policy]]\nname = \"words\"\n\
         source = \"guard.wasm\"\ngrants = [\"metrics\"]\n[policy.settings]\n\
         patterns = [{ text = \"x\" }]\n",
        &["policy[1] \"words\" (guard.wasm): its descriptor: its metric \"refused_total\" has the \
           labels pattern, action, and that of the policy \"quota\" has the labels tenant, limit"],
    );
}
