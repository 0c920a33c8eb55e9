//! The operator's listener.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use interlock_metrics::Registry;
use interlock_policy_chain::{GenerationNotKept, PolicyMode, RollbackTarget};
use interlock_server::{
    AdminConfig, AdminParts, InFlight, PolicyAdmin, Replacement, ServerConfig, ServerMetrics,
    SwapError, SwapFuture, listen, serve_admin,
};
use serde_json::{Value, json};

use crate::wire::{Answer, Connection};

/// Knows one policy, and writes down what it is told.
#[derive(Default)]
struct Desk {
    told: Mutex<Vec<Replacement>>,
    back: Mutex<Vec<RollbackTarget>>,
}

impl PolicyAdmin for Desk {
    fn list(&self) -> Value {
        json!({ "generation": 7, "policies": [{ "name": "guard" }] })
    }

    fn replace(&self, name: String, with: Replacement) -> SwapFuture<'_> {
        Box::pin(async move {
            if name != "guard" {
                return Err(SwapError::Unknown(name));
            }
            if with.source.as_deref() == Some("bad.wasm") {
                return Err(SwapError::Unfit("it imports what it was not granted".into()));
            }
            let mut told = self.told.lock().expect("no panic");
            told.push(with);
            Ok(json!({ "generation": 7 + told.len() }))
        })
    }

    fn rollback(&self, to: RollbackTarget) -> SwapFuture<'_> {
        let back = match to {
            RollbackTarget::Number(asked) if asked > 9 => {
                Err(GenerationNotKept::Number { asked, kept: vec![1, 7] }.into())
            }
            RollbackTarget::Previous if self.told().is_empty() => {
                Err(GenerationNotKept::NothingEarlier.into())
            }
            to => {
                self.back.lock().expect("no panic").push(to);
                Ok(json!({ "generation": 7 }))
            }
        };
        Box::pin(std::future::ready(back))
    }
}

impl Desk {
    fn told(&self) -> Vec<Replacement> {
        self.told.lock().expect("no panic").clone()
    }
}

pub(crate) struct Admin {
    desk: Arc<Desk>,
    pub(crate) address: SocketAddr,
}

impl Admin {
    pub(crate) async fn start(config: AdminConfig) -> Self {
        let metrics = ServerMetrics::register(&Registry::new());
        Self::beside(config, ServerConfig::default(), metrics).await
    }

    /// Beside a server, by whose limits its connections go.
    pub(crate) async fn beside(
        config: AdminConfig,
        server: ServerConfig,
        metrics: ServerMetrics,
    ) -> Self {
        let listener = listen(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a port");
        let address = listener.local_addr().expect("an address");
        let desk = Arc::new(Desk::default());
        let admin = Arc::clone(&desk) as Arc<dyn PolicyAdmin>;
        let in_flight = InFlight::default();
        let parts = AdminParts { config, server, metrics, admin, in_flight };
        tokio::spawn(serve_admin(listener, parts, std::future::pending()));
        Self { desk, address }
    }

    /// Of this server's requests.
    pub(crate) async fn of(in_flight: InFlight) -> Self {
        let listener = listen(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a port");
        let address = listener.local_addr().expect("an address");
        let desk = Arc::new(Desk::default());
        let parts = AdminParts {
            config: AdminConfig::default(),
            server: ServerConfig::default(),
            metrics: ServerMetrics::register(&Registry::new()),
            admin: Arc::clone(&desk) as Arc<dyn PolicyAdmin>,
            in_flight,
        };
        tokio::spawn(serve_admin(listener, parts, std::future::pending()));
        Self { desk, address }
    }

    pub(crate) async fn ask(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Answer {
        self.ask_called("localhost", method, path, headers, body).await
    }

    /// The same, under another name.
    async fn ask_called(
        &self,
        host: &str,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Answer {
        let mut connection = Connection::open(self.address).await;
        connection.send_to(host, method, path, headers, body).await;
        connection.answer().await
    }
}

const JSON: &[(&str, &str)] = &[("content-type", "application/json")];
const WASM: &[(&str, &str)] = &[("content-type", "application/wasm")];
const GUARD: &str = "/admin/policies/guard";

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_is_swapped_by_its_bytes_or_by_what_changes_of_it() {
    let admin = Admin::start(AdminConfig::default()).await;
    assert_eq!(admin.ask("GET", "/admin/policies", &[], "").await.json()["generation"], 7);
    assert_eq!(admin.ask("POST", GUARD, WASM, "bytes").await.json()["generation"], 8);
    let settings = r#"{"settings":{"per_minute":3},"mode":"canary:5"}"#;
    assert_eq!(admin.ask("POST", GUARD, JSON, settings).await.json()["generation"], 9);
    let told = admin.desk.told();
    assert_eq!(told[0].component.as_deref(), Some(&b"bytes"[..]));
    let (settings, mode) = (told[1].settings.as_ref().expect("settings"), told[1].mode);
    assert_eq!((&settings["per_minute"], mode), (&json!(3), Some(PolicyMode::Canary(5))));
}

/// A component with `?mode=canary:20` was put in force for everyone.
#[tokio::test(flavor = "multi_thread")]
async fn a_component_comes_in_the_mode_and_with_the_settings_of_its_query() {
    let admin = Admin::start(AdminConfig::default()).await;
    let canary = format!("{GUARD}?mode=canary%3A20&settings=%7B%22n%22:1%7D");
    assert_eq!(admin.ask("POST", &canary, WASM, "bytes").await.status, 200);
    // A mode alone needs no body.
    assert_eq!(admin.ask("POST", &format!("{GUARD}?mode=shadow"), &[], "").await.status, 200);
    let told = admin.desk.told();
    let settings = told[0].settings.as_ref().expect("settings");
    assert_eq!((told[0].mode, &settings["n"]), (Some(PolicyMode::Canary(20)), &json!(1)));
    assert_eq!(told[1], Replacement { mode: Some(PolicyMode::Shadow), ..Replacement::default() });
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_endpoint_does_not_know_is_refused_by_name_and_nothing_is_done() {
    let admin = Admin::start(AdminConfig::default()).await;
    let guard = |query: &str| format!("{GUARD}?{query}");
    let (rollback, requests) = ("/admin/policies/rollback", "/admin/requests");
    let none: &[(&str, &str)] = &[];
    for (method, path, headers, body, code, part) in [
        ("POST", guard("moed=shadow"), WASM, "bytes", "bad_query", "takes mode, settings"),
        ("POST", guard("moed=shadow"), WASM, "bytes", "bad_query", r#"\"moed\" is unknown"#),
        ("POST", guard("%6Doed=x"), WASM, "bytes", "bad_query", r#"\"moed\""#),
        ("POST", guard("mode=shadow&mode=enforce"), WASM, "bytes", "bad_query", "twice"),
        ("POST", guard("mode=canary:200"), WASM, "bytes", "bad_query", "canary:200"),
        ("POST", guard("mode="), WASM, "bytes", "bad_query", "enforce, shadow or canary"),
        ("POST", guard("mode=%ff"), WASM, "bytes", "bad_query", "enforce, shadow or canary"),
        ("POST", guard("settings=3"), WASM, "bytes", "bad_query", "a JSON object"),
        ("POST", guard("mode=shadow"), JSON, r#"{"mode":"shadow"}"#, "bad_query", "in the body"),
        ("POST", guard(""), WASM, "", "bad_body", "the body is empty"),
        ("POST", guard(""), none, "", "bad_body", "nothing to change was sent"),
        ("POST", guard(""), JSON, "{}", "bad_body", "nothing to change was sent"),
        ("POST", guard(""), JSON, r#"["x.wasm"]"#, "bad_body", "no JSON object"),
        ("POST", guard(""), JSON, r#"{"mode":"sometimes"}"#, "bad_body", "sometimes"),
        ("POST", guard(""), JSON, r#"{"mood":"x"}"#, "bad_body", "unknown field `mood`"),
        ("GET", "/admin/policies?all=1".into(), none, "", "bad_query", "takes none"),
        ("POST", format!("{rollback}?steps=2"), none, "", "bad_query", "takes to"),
        ("POST", format!("{rollback}?to=+1"), none, "", "bad_query", "previous, start or"),
        ("POST", rollback.into(), JSON, r#"{"to":"start"}"#, "bad_body", "a rollback has no body"),
        ("GET", format!("{requests}?user=a"), none, "", "bad_query", "tenant, model, limit"),
        ("GET", format!("{requests}?limit=0"), none, "", "bad_query", "from 1 to 1000"),
        ("POST", format!("{requests}/a/cancel?model=a"), none, "", "bad_query", "takes tenant"),
        ("POST", format!("{requests}/a/cancel"), JSON, "[]", "bad_body", "a cancel has no body"),
    ] {
        let answer = admin.ask(method, &path, headers, body).await;
        assert_eq!((answer.status, &*answer.code()), (400, code), "{path} {body}");
        assert!(answer.body.contains(part), "{path} {body}: {}", answer.body);
    }
    let secret = guard("settings=%7B%22api_key%22:%22s3cret%22");
    for (path, headers, body) in [
        (&*secret, WASM, "bytes"),
        (GUARD, JSON, r#"{"settings":"s3cret"}"#),
        (GUARD, JSON, r#"{"mode":{"s3cret":1}}"#),
    ] {
        let answer = admin.ask("POST", path, headers, body).await;
        assert!(answer.status == 400 && !answer.body.contains("s3cret"), "{}", answer.body);
    }
    let wrong = admin.ask("POST", GUARD, &[("content-type", "application/x-tar")], "x").await;
    assert_eq!((wrong.status, wrong.code().as_str()), (415, "bad_content_type"));
    for part in ["application/x-tar", "application/wasm", "?mode=MODE", "source, settings and mode"]
    {
        assert!(wrong.body.contains(part), "{part} in {}", wrong.body);
    }
    assert_eq!(admin.desk.told(), []);
    assert_eq!(*admin.desk.back.lock().expect("no panic"), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_goes_to_where_it_is_told() {
    let admin = Admin::start(AdminConfig::default()).await;
    let rollback = "/admin/policies/rollback";
    assert_eq!(admin.ask("POST", GUARD, WASM, "bytes").await.status, 200);
    for query in ["", "?to=previous", "?to=start", "?to=3"] {
        assert_eq!(admin.ask("POST", &format!("{rollback}{query}"), &[], "").await.status, 200);
    }
    let back = admin.desk.back.lock().expect("no panic").clone();
    let [previous, start] = [RollbackTarget::Previous, RollbackTarget::Start];
    assert_eq!(back, [previous, previous, start, RollbackTarget::Number(3)]);
    let gone = admin.ask("POST", &format!("{rollback}?to=12"), &[], "").await;
    assert_eq!((gone.status, gone.code().as_str()), (409, "generation_not_kept"));
    assert!(gone.body.contains("those that are: 1, 7"), "{}", gone.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_told_in_the_shape_of_all_errors() {
    let admin = Admin::start(AdminConfig::default()).await;
    let nowhere = admin.ask("GET", "/admin/request", &[], "").await;
    assert_eq!((nowhere.status, nowhere.code().as_str()), (404, "unknown_url"));
    let method = admin.ask("DELETE", "/admin/requests", &[], "").await;
    assert_eq!((method.status, method.code().as_str()), (405, "method_not_allowed"));
    assert_eq!(method.header("allow"), Some("GET,HEAD"));
    let name = admin.ask("POST", "/admin/policies/%ff?mode=shadow", &[], "").await;
    assert_eq!((name.status, name.code().as_str()), (404, "policy_not_found"));
    let id = admin.ask("POST", "/admin/requests/%ff/cancel", &[], "").await;
    assert_eq!((id.status, id.code().as_str()), (404, "request_not_found"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_to_nothing_says_why() {
    let admin = Admin::start(AdminConfig::default()).await;
    let stories = [
        ("POST", "/admin/policies/quota", JSON, r#"{"mode":"shadow"}"#, 404, "policy_not_found"),
        ("POST", GUARD, JSON, r#"{"source":"bad.wasm"}"#, 422, "policy_unfit"),
        ("POST", GUARD, JSON, r#"{"sauce":"x"}"#, 400, "bad_body"),
        ("POST", "/admin/policies/rollback", JSON, "", 409, "no_earlier_generation"),
    ];
    for (method, path, headers, body, status, code) in stories {
        let answer = admin.ask(method, path, headers, body).await;
        assert_eq!((answer.status, answer.code().as_str()), (status, code), "{path} {body}");
    }
    let small = AdminConfig { component_max: interlock_request::ByteSize(3), ..Default::default() };
    let admin = Admin::start(small).await;
    assert_eq!(admin.ask("POST", GUARD, WASM, "too long").await.status, 413);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_token_nothing_is_told_or_done() {
    let config = AdminConfig { token: Some("secret".into()), ..AdminConfig::default() };
    let admin = Admin::start(config).await;
    for shown in ["", "Bearer", "Bearer secre", "Bearer secret2", "secret"] {
        let headers = [("authorization", shown)];
        assert_eq!(admin.ask("GET", "/admin/policies", &headers, "").await.status, 401, "{shown}");
    }
    let headers = [("authorization", "Bearer secret")];
    assert_eq!(admin.ask("GET", "/admin/policies", &headers, "").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_in_a_browser_beside_it_can_do_nothing() {
    let admin = Admin::start(AdminConfig::default()).await;
    let rollback = "/admin/policies/rollback";
    let origin = ("origin", "https://evil.example");
    let form = ("content-type", "text/plain");
    let json = JSON[0];
    for (path, headers, status, code) in [
        (GUARD, vec![origin, json], 403, "cross_origin"),
        (rollback, vec![origin], 403, "cross_origin"),
        (GUARD, vec![("origin", "null"), json], 403, "cross_origin"),
        (GUARD, vec![form], 415, "bad_content_type"),
        (GUARD, vec![("content-type", "application/jsonp")], 415, "bad_content_type"),
        (GUARD, vec![], 415, "bad_content_type"),
        (rollback, vec![form], 415, "bad_content_type"),
    ] {
        let answer = admin.ask("POST", path, &headers, "{}").await;
        assert_eq!((answer.status, &*answer.code()), (status, code), "{path} {headers:?}");
    }
    assert_eq!(admin.desk.told(), []);
    let port = admin.address.port();
    for (host, status) in [
        ("localhost".to_owned(), 200),
        (format!("LOCALHOST:{port}"), 200),
        (format!("127.0.0.1:{port}"), 200),
        ("127.0.0.1".to_owned(), 200),
        (format!("evil.example:{port}"), 421),
        ("localhost.evil.example".to_owned(), 421),
        ("127.0.0.2".to_owned(), 200),
        ("".to_owned(), 421),
    ] {
        let answer = admin.ask_called(&host, "GET", "/admin/policies", &[], "").await;
        assert_eq!(answer.status, status, "{host:?}");
    }
}

#[test]
fn an_admin_listener_that_others_can_reach_needs_a_token() {
    let bind = Some("0.0.0.0:8081".parse().expect("an address"));
    let open = AdminConfig { bind, ..AdminConfig::default() };
    assert_eq!(
        open.problems(),
        ["admin.token must be set where others can reach admin.bind, got nothing for 0.0.0.0:8081"]
    );
    assert_eq!(AdminConfig { token: Some("x".into()), ..open }.problems(), [""; 0]);
}
