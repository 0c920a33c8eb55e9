//! Web pages: which may ask, what they are told, and what a page may not get by another name.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use interlock_policy_api::{Identified, Identity};
use interlock_server::ServerConfig;

use crate::rig::{Rig, Script, Setup};
use crate::wire::Answer;

const PAGE: &str = "https://chat.example";
const GOOD: &str = r#"{"model":"sim","prompt":"x","max_tokens":1}"#;

/// A host that takes pages of this origin, and how often a policy was asked who somebody is.
async fn open_to(origins: &[&str]) -> (Rig, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&asked);
    let identify = move |_: &interlock_policy_api::Caller| {
        counting.fetch_add(1, Ordering::SeqCst);
        let identity = Identity { tenant: "page".into(), ..Identity::default() };
        Identified::Known(identity, "page".into())
    };
    let script = Script { identify: Some(Box::new(identify)), ..Script::default() };
    let allowed_origins = origins.iter().map(ToString::to_string).collect();
    let server = ServerConfig { allowed_origins, ..ServerConfig::default() };
    (Rig::with(Setup { server, ..Setup::scripted(script) }).await, asked)
}

async fn ask(rig: &Rig, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
    let mut connection = rig.connect().await;
    connection.send(method, path, headers, body).await;
    connection.answer().await
}

fn allowed(answer: &Answer) -> Option<&str> {
    answer.header("access-control-allow-origin")
}

const PREFLIGHT: [(&str, &str); 2] = [
    ("access-control-request-method", "POST"),
    ("access-control-request-headers", "authorization,content-type,x-stainless-os,x-api-key"),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_preflight_of_an_allowed_page_is_answered_before_any_policy() {
    let (rig, asked) = open_to(&[PAGE]).await;
    let headers = [("origin", PAGE), PREFLIGHT[0], PREFLIGHT[1]];
    let answer = ask(&rig, "OPTIONS", "/v1/chat/completions", &headers, "").await;
    assert_eq!((answer.status, allowed(&answer)), (200, Some(PAGE)));
    assert_eq!(answer.header("access-control-allow-headers"), Some(PREFLIGHT[1].1));
    assert_eq!(answer.header("access-control-allow-methods"), Some("GET,POST,DELETE"));
    assert_eq!(answer.header("access-control-max-age"), Some("7200"));
    assert_eq!(asked.load(Ordering::SeqCst), 0, "a preflight has no key to show");
    let answer = ask(&rig, "POST", "/v1/completions", &[("origin", PAGE)], GOOD).await;
    assert_eq!((answer.status, allowed(&answer)), (200, Some(PAGE)));
    assert_eq!(answer.header("access-control-expose-headers"), Some("*"));
    assert!(answer.headers.iter().any(|(name, value)| name == "vary" && value.contains("origin")));
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_allowed_page_can_read_its_errors() {
    let (rig, _) = open_to(&[PAGE]).await;
    let long = "x".repeat(17_000);
    let page = ("origin", PAGE);
    for (method, path, headers, body, status) in [
        ("GET", "/nowhere", vec![page], "", 404),
        ("GET", "/v1/chat/completions", vec![page], "", 405),
        ("GET", "/v1/responses/%ff", vec![page], "", 404),
        ("POST", "/v1/completions", vec![page], "not json", 400),
        ("POST", "/v1/completions", vec![page, ("x-request-id", "a b")], GOOD, 400),
        ("POST", "/v1/completions", vec![page, ("x-long", &long)], GOOD, 431),
    ] {
        let answer = ask(&rig, method, path, &headers, body).await;
        assert_eq!((answer.status, allowed(&answer)), (status, Some(PAGE)), "{method} {path}");
        assert!(answer.json()["error"]["message"].is_string());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_is_not_allowed_is_refused_in_words_whatever_it_sends() {
    let text = ("content-type", "text/plain");
    for origins in [&[][..], &[PAGE]] {
        let (rig, asked) = open_to(origins).await;
        for origin in ["https://evil.example", "null", "http://localhost:3000"] {
            let page = ("origin", origin);
            let preflight = [page, PREFLIGHT[0], PREFLIGHT[1]];
            for (method, path, headers, body) in [
                ("POST", "/v1/completions", &[page, text][..], GOOD),
                ("OPTIONS", "/v1/completions", &preflight, ""),
                ("GET", "/v1/models", &[page], ""),
                ("GET", "/metrics", &[page], ""),
            ] {
                let answer = ask(&rig, method, path, headers, body).await;
                assert_eq!((answer.status, &*answer.code()), (403, "cross_origin"), "{method}");
                assert_eq!(allowed(&answer), None);
                let told = answer.json()["error"]["message"].to_string();
                assert!(told.contains("server.allowed_origins") && told.contains(origin), "{told}");
            }
            // Who asks how we are learns nothing that is secret.
            assert_eq!(ask(&rig, "GET", "/health/live", &[page], "").await.status, 200);
        }
        assert_eq!(asked.load(Ordering::SeqCst), 0);
        assert_eq!(rig.metric(r#"http_refusals_total{reason="cross_origin"}"#), 12.0);
        assert_eq!(rig.post("/v1/completions", GOOD).await.status, 200, "programs go on");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_pages_may_ask_where_the_operator_says_so() {
    let (rig, _) = open_to(&["*"]).await;
    for origin in ["https://evil.example", "null"] {
        let answer = ask(&rig, "POST", "/v1/completions", &[("origin", origin)], GOOD).await;
        assert_eq!((answer.status, allowed(&answer)), (200, Some("*")));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_whose_name_was_made_to_stand_for_this_machine_gets_nothing() {
    let allowed_hosts = vec!["llm.example".into()];
    let named = ServerConfig { allowed_hosts, ..ServerConfig::default() };
    for server in [ServerConfig::default(), named] {
        let known = if server.allowed_hosts.is_empty() { 421 } else { 200 };
        let rig = Rig::with(Setup { server, ..Setup::default() }).await;
        let called = async |host: &str, method, path, body| {
            let mut connection = rig.connect().await;
            connection.send_to(host, method, path, &[], body).await;
            connection.answer().await
        };
        let own = rig.address().to_string();
        for (host, status) in [
            ("evil.example", 421),
            ("evil.example:8080", 421),
            ("llm.example:443", known),
            (&own, 200),
            ("localhost", 200),
            ("[::1]:8080", 200),
            ("10.0.0.5:8080", 200),
            ("llm.localhost", 200),
        ] {
            for path in ["/v1/models", "/metrics"] {
                let answer = called(host, "GET", path, "").await;
                assert_eq!(answer.status, status, "{host} {path}");
            }
            let answer = called(host, "POST", "/v1/completions", GOOD).await;
            assert_eq!(answer.status, status, "{host}");
            if status == 421 {
                assert_eq!(answer.code(), "wrong_host");
                let told = answer.json()["error"]["message"].to_string();
                assert!(told.contains("server.allowed_hosts") && told.contains(host), "{told}");
            }
            assert_eq!(called(host, "GET", "/health/ready", "").await.status, 200);
        }
    }
}
