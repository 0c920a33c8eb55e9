//! What an operator does to the policies of a running host, on a listener of its own.
//!
//! | request | does |
//! |---|---|
//! | `GET /admin/policies` | lists them: generation, places, versions, modes |
//! | `POST /admin/policies/{name}` | swaps one: a component (`application/wasm`), or JSON with `source`, `settings`, `mode` |
//! | `POST /admin/policies/rollback` | takes the last swap back |
//!
//! A swap is tried out before it counts: a component that does not load, or does not accept its
//! settings, is answered with 422, and everything stays as it is. Requests in flight stay with the
//! policies that they began with.
//!
//! # Browsers
//!
//! Whoever runs the host may have a browser open beside it, and any page there can send requests to
//! this listener. So it takes none that a page sends (they have an `Origin`), none that a form can
//! make (a body is a component or JSON, and says so), and, where it listens for this machine alone,
//! none under another machine's name (which is how a page would get to read the answers).
//!
//! # Not here
//!
//! How a policy is loaded: [`PolicyAdmin`] is implemented by who knows. Nothing of this is on the
//! port of the clients.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;

use crate::listener::{Listener, Rules};
use crate::origin::{Foreign, OriginRules};
use crate::shape::json_errors;
use crate::{AdminConfig, ServerConfig, ServerMetrics, body};

/// Something that changes policies while they are in use.
pub trait PolicyAdmin: Send + Sync {
    /// The policies, as JSON.
    fn list(&self) -> Value;

    /// Tries one out and swaps it in; the number of the new generation.
    fn replace(&self, name: String, with: Replacement) -> Swapping<'_>;

    /// Takes the last swap back; the number of the generation that is back.
    fn rollback(&self) -> Swapping<'_>;
}

/// What [`PolicyAdmin::replace`] and [`PolicyAdmin::rollback`] return.
pub type Swapping<'a> = Pin<Box<dyn Future<Output = Result<u64, NotSwapped>> + Send + 'a>>;

/// What takes the place of a policy. What is not said stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Replacement {
    /// The component itself.
    #[serde(skip)]
    pub component: Option<Bytes>,
    /// Where it is: as in `[[policy]] source`.
    #[serde(default)]
    pub source: Option<String>,
    /// What it reads: as in `[policy.settings]`.
    #[serde(default)]
    pub settings: Option<Map<String, Value>>,
    /// As in `[[policy]] mode`.
    #[serde(default)]
    pub mode: Option<String>,
}

/// Why nothing was swapped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotSwapped {
    /// No policy is called so.
    #[error("no policy is called {0:?}")]
    Unknown(String),
    /// It cannot be loaded.
    #[error("{0}")]
    Unfit(String),
    /// There is no earlier generation.
    #[error("there is no earlier generation to go back to")]
    Nothing,
}

/// What the operator's listener is made of.
pub struct AdminParts {
    /// `[admin]`.
    pub config: AdminConfig,
    /// `[server]`: what bounds a connection there bounds it here.
    pub server: ServerConfig,
    /// The server's own metrics.
    pub metrics: ServerMetrics,
    /// Who changes policies.
    pub admin: Arc<dyn PolicyAdmin>,
}

/// Serves until `shutdown`. A swap that goes on then comes to its end.
pub async fn serve_admin(
    listener: TcpListener,
    parts: AdminParts,
    shutdown: impl Future<Output = ()>,
) {
    let AdminParts { config, server, metrics, admin } = parts;
    let rules = Rules::of_admin(&config, &server);
    let address = listener.local_addr().ok();
    let desk = Arc::new(Desk { config, server, admin, address });
    let router = Router::new()
        .route("/admin/policies", get(list))
        .route("/admin/policies/rollback", post(rollback))
        .route("/admin/policies/{name}", post(replace))
        .layer(middleware::from_fn_with_state(Arc::clone(&desk), authorized))
        .layer(middleware::from_fn(json_errors))
        .with_state(desk);
    let open = metrics.admin_connections.clone();
    let metrics = Arc::new(metrics);
    Listener { listener, rules, router, metrics, open }.serve(shutdown).await;
}

struct Desk {
    config: AdminConfig,
    server: ServerConfig,
    admin: Arc<dyn PolicyAdmin>,
    /// Where it listens.
    address: Option<SocketAddr>,
}

async fn authorized(State(desk): State<Arc<Desk>>, request: Request, next: Next) -> Response {
    if let Some(refusal) = desk.browsed(&request) {
        return refusal;
    }
    let Some(token) = &desk.config.token else { return next.run(request).await };
    let shown = request.headers().get(header::AUTHORIZATION).map(|value| value.as_bytes());
    let wanted = format!("Bearer {token}");
    if shown.is_some_and(|shown| same(shown, wanted.as_bytes())) {
        return next.run(request).await;
    }
    complain(StatusCode::UNAUTHORIZED, "unauthorized", "the admin token is missing or wrong")
}

impl Desk {
    /// Could it come from a page in somebody's browser?
    fn browsed(&self, request: &Request) -> Option<Response> {
        let headers = request.headers();
        if headers.contains_key(header::ORIGIN) {
            let why = "requests of web pages are not taken";
            return Some(complain(StatusCode::FORBIDDEN, "cross_origin", why));
        }
        // Where others can reach it there is a token, and it has names that are not known here.
        let origins = OriginRules::of_operators(self.address);
        if let Err(Foreign::Host(host)) = origins.check(request.uri(), headers) {
            let why = format!(
                "the host header must be localhost or the address of this listener, got {host:?}"
            );
            return Some(complain(StatusCode::MISDIRECTED_REQUEST, "wrong_host", &why));
        }
        if headers.contains_key(header::CONTENT_TYPE) && Kind::of(headers).is_none() {
            return Some(unsupported());
        }
        None
    }
}

/// What a body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Component,
    Json,
}

impl Kind {
    fn of(headers: &HeaderMap) -> Option<Self> {
        let said = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
        let kind = said.split(';').next()?.trim();
        match () {
            () if kind.eq_ignore_ascii_case("application/wasm") => Some(Self::Component),
            () if kind.eq_ignore_ascii_case("application/json") => Some(Self::Json),
            () => None,
        }
    }
}

fn unsupported() -> Response {
    let why = "content-type must be application/wasm or application/json";
    complain(StatusCode::UNSUPPORTED_MEDIA_TYPE, "bad_content_type", why)
}

/// In a time that does not tell where they differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}

async fn list(State(desk): State<Arc<Desk>>) -> Response {
    Json(desk.admin.list()).into_response()
}

async fn rollback(State(desk): State<Arc<Desk>>) -> Response {
    swapped(desk.admin.rollback().await)
}

async fn replace(
    State(desk): State<Arc<Desk>>,
    Path(name): Path<String>,
    headers: HeaderMap,
    mut body: Body,
) -> Response {
    let Some(kind) = Kind::of(&headers) else { return unsupported() };
    let limits = ServerConfig { body_max: desk.config.component_max, ..desk.server.clone() };
    let bytes = match body::read(&mut body, &limits, None).await {
        Ok(arrived) => arrived.bytes,
        Err(problem) => {
            let why = format!("the body could not be read: {problem:?}");
            return complain(StatusCode::PAYLOAD_TOO_LARGE, "bad_body", &why);
        }
    };
    let with = match kind {
        Kind::Component => Replacement { component: Some(bytes), ..Replacement::default() },
        Kind::Json => match serde_json::from_slice::<Replacement>(&bytes) {
            Ok(with) => with,
            Err(error) => {
                return complain(StatusCode::BAD_REQUEST, "bad_body", &error.to_string());
            }
        },
    };
    swapped(desk.admin.replace(name, with).await)
}

fn swapped(result: Result<u64, NotSwapped>) -> Response {
    match result {
        Ok(generation) => Json(json!({ "generation": generation })).into_response(),
        Err(why) => {
            let (status, code) = match &why {
                NotSwapped::Unknown(_) => (StatusCode::NOT_FOUND, "policy_not_found"),
                NotSwapped::Unfit(_) => (StatusCode::UNPROCESSABLE_ENTITY, "policy_unfit"),
                NotSwapped::Nothing => (StatusCode::CONFLICT, "no_earlier_generation"),
            };
            complain(status, code, &why.to_string())
        }
    }
}

fn complain(status: StatusCode, code: &str, message: &str) -> Response {
    tracing::warn!(status = status.as_u16(), code, message, "an admin request came to nothing");
    (status, Json(json!({ "error": { "code": code, "message": message } }))).into_response()
}
