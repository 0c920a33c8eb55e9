//! What an operator does with a running host, on a listener of its own.
//!
//! | request | does |
//! |---|---|
//! | `GET /admin/policies` | lists them: places, versions, modes, and the generations that are kept |
//! | `POST /admin/policies/{name}` | swaps one: a component (`application/wasm`), with `?mode=` and `?settings=` beside it; or JSON with `source`, `settings`, `mode`; or only a query |
//! | `POST /admin/policies/rollback` | takes the last swap back, or goes to the generation in `?to=` |
//! | `GET /admin/requests` | lists those in flight, the oldest first: `?tenant=`, `?model=`, `?limit=` |
//! | `POST /admin/requests/{id}/cancel` | cancels those of this id, or of `?tenant=` alone |
//!
//! A swap is tried out before it counts: a component that does not load, or does not accept its
//! settings, is answered with 422, and everything stays as it is. Requests in flight stay with the
//! policies that they began with.
//!
//! # Invariants
//!
//! - Nothing that was sent is passed over: a query parameter or a key that is not known here is an
//!   error that names those that are. On the port of the clients a query means nothing, and clients
//!   send some (`?beta=true`, `?api-version=`), so there it is ignored.
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
//! How a policy is loaded: [`PolicyAdmin`] is implemented by who knows. How a request is cancelled:
//! as its client cancels it, see `in_flight`. Nothing of this is on the port of the clients.

mod policies;
mod query;
mod requests;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::handler::Handler;
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use interlock_policy_chain::{GenerationNotKept, PolicyMode, RollbackTarget};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;

use crate::connection::{Listener, ListenerRules};
use crate::endpoints::error_json;
use crate::error_response::json_errors;
use crate::failure::{BodyProblem, Failure, encoded};
use crate::in_flight::InFlight;
use crate::origin::{Foreign, OriginRules};
use crate::{AdminConfig, ServerConfig, ServerMetrics, body};

/// Something that changes policies while they are in use.
pub trait PolicyAdmin: Send + Sync {
    /// The policies and the generations that are kept, as JSON.
    fn list(&self) -> Value;

    /// Tries one out and swaps it in; what that changed, as JSON.
    fn replace(&self, name: String, with: Replacement) -> SwapFuture<'_>;

    /// Goes back to an earlier generation; what that changed, as JSON.
    fn rollback(&self, to: RollbackTarget) -> SwapFuture<'_>;
}

/// What [`PolicyAdmin::replace`] and [`PolicyAdmin::rollback`] return.
pub type SwapFuture<'a> = Pin<Box<dyn Future<Output = Result<Value, SwapError>> + Send + 'a>>;

/// What takes the place of a policy. What is not said stays as it is.
#[derive(Clone, Default, PartialEq, Deserialize)]
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
    pub mode: Option<PolicyMode>,
}

/// Settings may hold secrets.
impl fmt::Debug for Replacement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { component, source, settings, mode } = self;
        f.debug_struct("Replacement")
            .field("component_bytes", &component.as_ref().map(Bytes::len))
            .field("source", source)
            .field("settings", &settings.as_ref().map(|_| "***"))
            .field("mode", mode)
            .finish()
    }
}

/// Why no policy was swapped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SwapError {
    /// No policy is called so.
    #[error("no policy is called {0:?}")]
    Unknown(String),
    /// The policy cannot be loaded.
    #[error("{0}")]
    Unfit(String),
    /// That generation cannot be gone back to.
    #[error(transparent)]
    NotKept(#[from] GenerationNotKept),
}

/// What the operator's listener is made of.
pub struct AdminParts {
    /// `[admin]`.
    pub config: AdminConfig,
    /// `[server]`: what bounds a connection there bounds it here.
    pub server: ServerConfig,
    /// The server's own metrics.
    pub metrics: ServerMetrics,
    /// What changes policies.
    pub admin: Arc<dyn PolicyAdmin>,
    /// Where the requests in flight of the server are known.
    pub in_flight: InFlight,
}

/// Serves until `shutdown`. A swap that goes on then comes to its end.
pub async fn serve_admin(
    listener: TcpListener,
    parts: AdminParts,
    shutdown: impl Future<Output = ()>,
) {
    let AdminParts { config, server, metrics, admin, in_flight } = parts;
    let rules = ListenerRules::of_admin(&config, &server);
    let without_body = middleware::from_fn_with_state(Arc::new(server.clone()), body::pass);
    let origins = OriginRules::of_operators(listener.local_addr().ok());
    let state = Arc::new(AdminState { config, server, admin, in_flight, origins });
    let router = Router::new()
        .route("/admin/policies", get(policies::list))
        .route("/admin/requests", get(requests::list))
        .fallback(unknown_url)
        .layer(without_body.clone())
        // What reads bodies comes behind that layer.
        .route("/admin/policies/rollback", post(policies::rollback))
        .route("/admin/policies/{name}", post(policies::replace))
        .route("/admin/requests/{id}/cancel", post(requests::cancel))
        .method_not_allowed_fallback(method_not_allowed.layer(without_body))
        .layer(middleware::from_fn_with_state(Arc::clone(&state), authorized))
        .layer(middleware::from_fn(json_errors))
        .with_state(state);
    let open = metrics.admin_connections.clone();
    let metrics = Arc::new(metrics);
    Listener { listener, rules, router, metrics, open, error_json }.serve(shutdown).await;
}

struct AdminState {
    config: AdminConfig,
    server: ServerConfig,
    admin: Arc<dyn PolicyAdmin>,
    in_flight: InFlight,
    origins: OriginRules,
}

async fn authorized(
    State(state): State<Arc<AdminState>>,
    mut request: Request,
    next: Next,
) -> Response {
    let refusal = state.browsed(&request).or_else(|| state.unauthorized(&request));
    let Some(mut refusal) = refusal else { return next.run(request).await };
    let passed = body::discard(request.body_mut(), &state.server).await;
    body::close_unless(passed, &mut refusal);
    refusal
}

impl AdminState {
    fn unauthorized(&self, request: &Request) -> Option<Response> {
        let wanted = format!("Bearer {}", self.config.token.as_ref()?.reveal());
        let shown = request.headers().get(header::AUTHORIZATION).map(|value| value.as_bytes());
        if shown.is_some_and(|shown| same(shown, wanted.as_bytes())) {
            return None;
        }
        let why = "the admin token is missing or wrong";
        Some(complain(StatusCode::UNAUTHORIZED, "unauthorized", why))
    }

    /// Could it come from a page in somebody's browser?
    fn browsed(&self, request: &Request) -> Option<Response> {
        let headers = request.headers();
        if headers.contains_key(header::ORIGIN) {
            let why = "requests of web pages are not taken";
            return Some(complain(StatusCode::FORBIDDEN, "cross_origin", why));
        }
        // Where others can reach it there is a token, and it has names that are not known here.
        if let Err(Foreign::Host(host)) = self.origins.check(request.uri(), headers) {
            let why = format!("the host header must be localhost or an IP address, got {host:?}");
            return Some(complain(StatusCode::MISDIRECTED_REQUEST, "wrong_host", &why));
        }
        if headers.contains_key(header::CONTENT_TYPE) && BodyKind::of(headers).is_none() {
            return Some(unsupported(headers).into_response());
        }
        if let Err(encoded) = body::as_it_is(headers) {
            return Some(unread(encoded.into()).into_response());
        }
        None
    }

    /// A body, which is a component at most.
    async fn read(&self, body: &mut Body) -> Result<Bytes, AdminError> {
        let limits = ServerConfig { body_max: self.config.component_max, ..self.server.clone() };
        Ok(body::read(body, &limits, None).await.map_err(unread)?.without_mark().bytes)
    }
}

/// What a body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BodyKind {
    Component,
    Json,
}

impl BodyKind {
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

/// What a swap is made of.
const FORMS: &str = "a swap is a component with content-type application/wasm, with ?mode=MODE and \
    ?settings=JSON beside it, or content-type application/json with an object of source, settings and \
    mode, or only the query";

fn unsupported(headers: &HeaderMap) -> AdminError {
    let said = headers.get(header::CONTENT_TYPE);
    let said = said.map_or_else(|| "none".to_owned(), |said| format!("{said:?}"));
    let message = format!("content-type {said} is not taken: {FORMS}");
    AdminError { status: StatusCode::UNSUPPORTED_MEDIA_TYPE, code: "bad_content_type", message }
}

fn bad_body(message: String) -> AdminError {
    AdminError { status: StatusCode::BAD_REQUEST, code: "bad_body", message }
}

/// Where a body says nothing, it is empty, or what a client writes that always sends JSON.
fn nothing_in(body: &Bytes, message: &str) -> Result<(), AdminError> {
    let nothing = matches!(body.trim_ascii(), b"" | b"{}");
    if nothing { Ok(()) } else { Err(bad_body(message.to_owned())) }
}

/// A body that did not arrive.
fn unread(why: Failure) -> AdminError {
    let (status, code, message) = match why {
        Failure::Body(BodyProblem::TooLarge { limit }) => {
            let message = format!("the body is larger than {limit} bytes (admin.component_max)");
            (StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
        }
        Failure::Body(BodyProblem::TooSlow { limit }) => {
            let message = format!("the body took longer than {limit:?} (server.body_timeout)");
            (StatusCode::REQUEST_TIMEOUT, "body_timeout", message)
        }
        Failure::Body(BodyProblem::Encoded(codings)) => {
            let message = encoded(&codings);
            (StatusCode::UNSUPPORTED_MEDIA_TYPE, "content_encoding", message)
        }
        why => (StatusCode::BAD_REQUEST, "bad_body", format!("the body broke off: {why:?}")),
    };
    AdminError { status, code, message }
}

/// In a time that does not tell where they differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}

async fn unknown_url(request: Request) -> AdminError {
    let path = request.uri().path();
    let message = format!("nothing is at {path:?}; there are /admin/policies and /admin/requests");
    AdminError { status: StatusCode::NOT_FOUND, code: "unknown_url", message }
}

async fn method_not_allowed(request: Request) -> AdminError {
    let message = format!("{} is not taken at {:?}", request.method(), request.uri().path());
    AdminError { status: StatusCode::METHOD_NOT_ALLOWED, code: "method_not_allowed", message }
}

/// Why an admin request was refused.
#[derive(Debug)]
struct AdminError {
    status: StatusCode,
    code: &'static str,
    message: String,
}

/// What an admin route's handler returns.
type AdminResult = Result<Response, AdminError>;

impl IntoResponse for AdminError {
    fn into_response(self) -> Response {
        complain(self.status, self.code, &self.message)
    }
}

fn complain(status: StatusCode, code: &str, message: &str) -> Response {
    tracing::warn!(status = status.as_u16(), code, message, "an admin request was refused");
    (status, Json(json!({ "error": { "code": code, "message": message } }))).into_response()
}
