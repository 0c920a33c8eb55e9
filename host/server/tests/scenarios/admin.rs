//! The operator's listener.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use interlock_metrics::Registry;
use interlock_server::{
    AdminConfig, AdminParts, NotSwapped, PolicyAdmin, Replacement, ServerConfig, ServerMetrics,
    Swapping, listen, serve_admin,
};
use serde_json::{Value, json};

use crate::wire::{Answer, Connection};

/// Knows one policy, and writes down what it is told.
#[derive(Default)]
struct Desk(Mutex<Vec<Replacement>>);

impl PolicyAdmin for Desk {
    fn list(&self) -> Value {
        json!({ "generation": 7, "policies": [{ "name": "guard" }] })
    }

    fn replace(&self, name: String, with: Replacement) -> Swapping<'_> {
        Box::pin(async move {
            if name != "guard" {
                return Err(NotSwapped::Unknown(name));
            }
            if with.source.as_deref() == Some("bad.wasm") {
                return Err(NotSwapped::Unfit("it imports what it was not granted".into()));
            }
            let mut told = self.0.lock().expect("no panic");
            told.push(with);
            Ok(7 + told.len() as u64)
        })
    }

    fn rollback(&self) -> Swapping<'_> {
        let back =
            self.0.lock().expect("no panic").pop().map_or(Err(NotSwapped::Nothing), |_| Ok(7));
        Box::pin(std::future::ready(back))
    }
}

pub(crate) struct Admin {
    desk: Arc<Desk>,
    pub(crate) address: SocketAddr,
}

impl Admin {
    async fn start(config: AdminConfig) -> Self {
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
        let parts = AdminParts { config, server, metrics, admin };
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
    let told = admin.desk.0.lock().expect("no panic").clone();
    assert_eq!(told[0].component.as_deref(), Some(&b"bytes"[..]));
    let (settings, mode) = (told[1].settings.as_ref().expect("settings"), told[1].mode.as_deref());
    assert_eq!((&settings["per_minute"], mode), (&json!(3), Some("canary:5")));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_to_nothing_says_why() {
    let admin = Admin::start(AdminConfig::default()).await;
    let stories = [
        ("POST", "/admin/policies/quota", JSON, "{}", 404, "policy_not_found"),
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
    assert!(admin.desk.0.lock().expect("no panic").is_empty());
    let port = admin.address.port();
    for (host, status) in [
        ("localhost".to_owned(), 200),
        (format!("LOCALHOST:{port}"), 200),
        (format!("127.0.0.1:{port}"), 200),
        ("127.0.0.1".to_owned(), 200),
        (format!("evil.example:{port}"), 421),
        ("localhost.evil.example".to_owned(), 421),
        ("127.0.0.2".to_owned(), 421),
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
