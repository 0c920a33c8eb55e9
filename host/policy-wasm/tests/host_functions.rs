//! What a policy reaches: what it was granted, within its bounds, and nothing else.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::thread;

use expect_test::expect;
use interlock_policy_api::{CallTime, Policy as _, Transformed};
use interlock_policy_wasm::{LoadFailed, PolicyConfig};

mod common;
use common::{admitted, body, config, facts, grants, guest, host, load, metrics, rejected};

const ALL: [&str; 6] = [
    "state",
    "metrics",
    "headers:x-tenant",
    "content:read:/messages",
    "content:write:/temperature",
    "http:127.0.0.1:1",
];

fn hostile(given: &[&str]) -> PolicyConfig {
    PolicyConfig { grants: grants(given), ..config("p", guest("guest-hostile")) }
}

/// What it cannot be loaded for, without the path of its file.
fn refused(given: &[&str]) -> String {
    let failed: LoadFailed = load(&hostile(given)).expect_err("something is missing");
    failed.why.to_string()
}

#[test]
fn a_missing_grant_is_named_with_the_line_that_gives_it() {
    expect![[r#"it needs state and metrics and headers:x-tenant and content:read:/messages and http:HOST:443, which it was not granted; if it may have that, write grants = ["state", "metrics", "headers:x-tenant", "content:read:/messages", "http:HOST:443"]"#]]
        .assert_eq(&refused(&[]));
    expect![[r#"it needs content:read:/messages, which it was not granted; if it may have that, write grants = ["state", "metrics", "headers:x-tenant", "content:read:/other", "http:127.0.0.1:1", "content:read:/messages"]"#]]
        .assert_eq(&refused(&["state", "metrics", "headers:x-tenant", "content:read:/other", "http:127.0.0.1:1"]));
}

#[test]
fn what_is_missing_is_described_all_the_same() {
    let (host, _registry) = host();
    let description = host.describe(&hostile(&["state"])).expect("it is a policy");
    assert_eq!(description.wit, "0.2.0");
    assert_eq!(description.call_time, CallTime::Waits, "it asks others");
    assert_eq!(
        description.phases_text(),
        "identify, transform, route, admit, stream-guard, events, account"
    );
    let says = description.says.as_ref().expect("it began");
    assert_eq!((says.name.as_str(), says.version.as_str()), ("guest-hostile", "6.6.6"));
    assert_eq!(says.reasons, ["fine", "bad"]);
    assert_eq!(says.metrics.len(), 3);
    let missing: Vec<_> = description.missing.iter().map(ToString::to_string).collect();
    assert_eq!(missing, ["metrics", "headers:x-tenant", "content:read:/messages", "http:HOST:443"]);
    assert_eq!(description.to_json()["wit"], "0.2.0");
}

fn said(what: &str) -> String {
    let policy = load(&hostile(&ALL)).expect("it has all it needs");
    let body = body();
    match policy.transform(&facts(what), &body) {
        Ok(Transformed::Edit(edits)) => {
            let changed = body.changed().map(|bytes| String::from_utf8(bytes).expect("JSON"));
            let changed = changed.map_or(String::new(), |changed| format!(" -> {changed}"));
            format!("{}{changed}", edits.answer_headers[0].1)
        }
        other => panic!("{what:?}: {other:?}"),
    }
}

#[test]
fn content_is_what_lies_below_the_granted_pointers() {
    expect![[r#"Ok(Some("\"hi\""))"#]].assert_eq(&said("read granted"));
    expect!["Err(Fault::NotGranted)"].assert_eq(&said("read else"));
    expect![[r#"Ok(()) -> {"model":"m","messages":[{"content":"hi"}],"temperature":0.25}"#]]
        .assert_eq(&said("write granted"));
    expect!["Err(Fault::NotGranted)"].assert_eq(&said("write else"));
    assert!(said("write nonsense").starts_with("Err(Fault::Invalid("));
    assert!(said("write much").starts_with("Ok(())"));
    let endless = said("write without end");
    assert!(endless.starts_with("2 Err(Fault::TooLarge) -> "), "{}", &endless[..99]);
}

fn detail(what: &str) -> String {
    let policy = load(&hostile(&ALL)).expect("it has all it needs");
    rejected(&*policy, what).reason.detail.expect("it says what came of it")
}

#[test]
fn content_cannot_be_changed_once_it_was_understood() {
    expect!["Err(Fault::NotNow)"].assert_eq(&detail("read late"));
}

#[test]
fn state_refuses_what_makes_no_sense() {
    assert!(detail("take nan").starts_with("Err(Fault::Invalid("));
    expect!["Err(Fault::TooLarge)"].assert_eq(&detail("a long key"));
    expect!["Err(Fault::TooLarge)"].assert_eq(&detail("a large value"));
}

#[test]
fn what_is_reserved_for_a_request_goes_back_when_it_is_forgotten_unless_it_ran() {
    let policy = load(&hostile(&ALL)).expect("it has all it needs");
    let reserve = || rejected(&*policy, "reserve").reason.detail.expect("it says what came of it");
    assert!(reserve().contains("remaining: 2.0"));
    assert!(reserve().contains("Denied"), "8 of 10 are held");
    policy.forget(7, false);
    assert!(reserve().contains("remaining: 2.0"));
    policy.forget(7, true);
    assert!(reserve().contains("Denied"), "nobody said how much of the 8 was used");
}

#[test]
fn state_is_a_policys_own_and_shared_by_its_generations() {
    let (host, _registry) = host();
    let reserve = |config: &PolicyConfig| {
        let policy = host.load(config).expect("it has all it needs");
        rejected(&*policy, "reserve").reason.detail.expect("it says what came of it")
    };
    let other = PolicyConfig { name: "other".into(), ..hostile(&ALL) };
    assert!(reserve(&hostile(&ALL)).contains("remaining: 2.0"));
    assert!(reserve(&other).contains("remaining: 2.0"));
    assert!(reserve(&hostile(&ALL)).contains("Denied"));
}

#[test]
fn metrics_are_bounded_and_go_on_in_the_next_generation() {
    let (host, registry) = host();
    let policy = host.load(&hostile(&ALL)).expect("it has all it needs");
    admitted(&*policy, "count too many");
    let deeds = metrics(&registry, "interlock_plugin_deeds_total");
    assert_eq!(deeds.lines().count(), 101);
    assert!(deeds.contains(r#"{policy="p",what="__other__"} 100"#), "{deeds}");
    drop(policy);
    let policy = host.load(&hostile(&ALL)).expect("it has all it needs");
    admitted(&*policy, "count too many");
    let deeds = metrics(&registry, "interlock_plugin_deeds_total");
    assert!(deeds.contains(r#"{policy="p",what="deed 7"} 2"#), "{deeds}");
    assert!(deeds.contains(r#"{policy="p",what="__other__"} 200"#), "{deeds}");
    expect![[r#"interlock_plugin_weight{policy="p"} 2.5"#]]
        .assert_eq(&metrics(&registry, "interlock_plugin_weight"));
    expect![[r#"
        interlock_plugin_seconds_bucket{policy="p",le="+Inf"} 4
        interlock_plugin_seconds_bucket{policy="p",le="0.003"} 2"#]]
    .assert_eq(
        &metrics(&registry, "interlock_plugin_seconds_bucket")
            .lines()
            .filter(|line| line.contains("\"0.003\"") || line.contains("Inf"))
            .collect::<Vec<_>>()
            .join("\n"),
    );
}

#[test]
fn a_policy_asks_whom_it_was_granted_and_nobody_else() {
    expect!["Err(Fault::NotGranted)"].assert_eq(&detail("ask elsewhere"));
    assert!(detail("pretend to ask around").contains("url must not name a user"));
    let nobody = detail("ask around");
    assert!(nobody.contains("Fault::Connection("), "{nobody}");
}

/// Answers the requests of one connection after the other with this.
fn server(answer: &'static [u8]) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let port = listener.local_addr().expect("it has one").port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut head = [0; 4096];
            let _ = stream.read(&mut head);
            let _ = stream.write_all(answer);
        }
    });
    port
}

#[test]
fn an_answer_is_handed_on_and_a_redirect_is_one() {
    let port = server(
        b"HTTP/1.1 302 Found\r\nlocation: http://10.0.0.1/\r\ncontent-length: 2\r\nconnection: close\r\n\r\nhi",
    );
    let mut config = hostile(&ALL);
    config.grants.extend(grants(&[&format!("http:127.0.0.1:{port}")]));
    let policy = load(&config).expect("it has all it needs");
    let asked = format!("ask http://127.0.0.1:{port}/");
    let said = rejected(&*policy, &asked).reason.detail.expect("it says what came of it");
    assert!(said.contains("status: 302") && said.contains("104, 105"), "{said}");
}
