//! Routes, and what all answers have in common: the request's id and the form of errors.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Extension, Request, State};
use axum::handler::Handler;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use interlock_request::{CancelCause, Endpoint, RequestId, without_logins};
use serde_json::json;
use tokio::time::Instant;
use tower::ServiceExt;
use tower_http::cors::CorsLayer;

use crate::body;
use crate::chunks::EndKind;
use crate::connection::{Client, OverLimit, PeerAddress};
use crate::endpoints::error_response;
use crate::error_response::{HandlerResult, unshaped};
use crate::failure::{BodyProblem, ConnectionLimit, Failure, Retry, excerpt};
use crate::generate::{generate, policies_say};
use crate::host::{Readiness, ServerHost};
use crate::metrics_listener::expose;
use crate::origin::OriginRules;
use crate::path_param::PathParam;
use crate::paths::watches;
use crate::request_head::RequestHead;
use crate::wall_clock::micros;
use crate::{ServedModel, ServerConfig, paths, stored_responses};

const REQUEST_ID: &str = "x-request-id";

/// Does it ask how we are? Whoever does is told, from wherever and under whatever name.
fn is_health(path: &str) -> bool {
    path == "/health" || path.starts_with("/health/")
}

/// All that a listener at this address serves.
pub(crate) fn router(host: Arc<ServerHost>, address: Option<SocketAddr>) -> Router {
    // A layer comes after the routing that it surrounds, so a path is rewritten around all of it.
    Router::new()
        .fallback_service(routes(host, address))
        .layer(middleware::map_request(paths::rewrite))
}

fn routes(host: Arc<ServerHost>, address: Option<SocketAddr>) -> Router {
    let origins =
        OriginRules::of_clients(&host.config.allowed_origins, &host.config.allowed_hosts, address);
    let context = FrameContext { host: Arc::clone(&host), origins: origins.clone() };
    let config = Arc::new(host.config.clone());
    let without_body = middleware::from_fn_with_state(Arc::clone(&config), body::pass);
    let mut routes = Router::new()
        .route("/v1/models", get(models))
        .route("/v1/models/{*model}", get(model))
        .route("/v1/requests/{id}/cancel", post(cancel))
        .route("/v1/requests/{id}", get(stored_responses::request))
        .route(
            "/v1/responses/{id}",
            get(stored_responses::response).delete(stored_responses::delete_response),
        )
        .route("/v1/responses/{id}/cancel", post(stored_responses::cancel_response))
        .route("/health/live", get(live))
        .route("/health/ready", get(ready));
    if host.registry.is_some() {
        routes = routes.route("/metrics", get(metrics));
    }
    let routes = routes
        .fallback(unknown_url)
        .layer(without_body.clone())
        // What reads bodies comes behind that layer.
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(completions))
        .route("/v1/responses", post(responses))
        .method_not_allowed_fallback(method_not_allowed.layer(without_body))
        .with_state(host)
        .layer(middleware::from_fn_with_state(context, frame));
    match origins.cors() {
        None => routes,
        Some(cors) => for_pages(routes, cors, origins, config),
    }
}

/// The routes for web pages: what is refused is refused in words, their preflights included, and
/// all else says what browsers want to hear, errors included.
fn for_pages(
    routes: Router,
    cors: CorsLayer,
    origins: OriginRules,
    config: Arc<ServerConfig>,
) -> Router {
    let refusing = routes.clone();
    let choose = move |request: Request, next: Next| {
        let taken = origins.check(request.uri(), request.headers()).is_ok();
        let (refusing, config) = (refusing.clone(), Arc::clone(&config));
        async move {
            match taken {
                // What answers it looks at its head alone.
                true if request.method() == Method::OPTIONS => {
                    body::pass(State(config), request, next).await
                }
                true => next.run(request).await,
                false => refusing.oneshot(request).await.unwrap_or_else(|never| match never {}),
            }
        }
    };
    routes.layer(cors).layer(middleware::from_fn(choose))
}

/// What `frame` knows.
#[derive(Clone)]
struct FrameContext {
    host: Arc<ServerHost>,
    origins: OriginRules,
}

/// Longest time for the body of a request that is refused because there are too many connections.
const CROWDED_BODY_MAX: Duration = Duration::from_secs(1);

/// Around every request: names it, looks at its head, and gives errors their shape.
async fn frame(State(context): State<FrameContext>, mut request: Request, next: Next) -> Response {
    let FrameContext { host, origins } = context;
    let (at_micros, arrived_at) = (micros((host.wall)()), Instant::now());
    let line = RequestLine { method: request.method().clone(), uri: request.uri().clone() };
    let (id, checked) = match own_id(request.headers()) {
        Ok(id) => (id, head_within(&request, &host)),
        // Who asks how we are is told, whatever it calls its question.
        Err(_) if line.watches() => (None, head_within(&request, &host)),
        Err(failure) => (None, Err(failure)),
    };
    let id = id.unwrap_or_else(RequestId::generate);
    let crowded = request.extensions().get::<OverLimit>().map(|crowded| crowded.0);
    let checked = checked.and_then(|()| room_for(&line, crowded)).and_then(|()| {
        let checked = origins.check(request.uri(), request.headers()).map_err(Failure::Foreign);
        if is_health(line.uri.path()) { Ok(()) } else { checked }
    });
    let address = request.extensions().get::<PeerAddress>().map(|peer| peer.0);
    let client = request.extensions().get::<Client>().cloned().unwrap_or_default();
    let head = RequestHead { id: id.clone(), at_micros, arrived_at, address, client };
    request.extensions_mut().insert(head);
    let mut response = match checked {
        Ok(()) => unshaped(next.run(request).await).await,
        Err(failure) => {
            let most = if crowded.is_some() { CROWDED_BODY_MAX } else { Duration::MAX };
            let discarding = body::discard(request.body_mut(), &host.config);
            let passed = tokio::time::timeout(most, discarding).await.unwrap_or(false);
            let mut response = failure.into_response();
            body::close_unless(passed, &mut response);
            response
        }
    };
    if let Some(failure) = response.extensions_mut().remove::<Failure>() {
        let closes = response.headers_mut().remove(header::CONNECTION);
        response = host.refuse(&id, &line, &failure);
        response.headers_mut().extend(closes.map(|closes| (header::CONNECTION, closes)));
    }
    let value = HeaderValue::from_str(id.as_str()).expect("ids are made of ASCII letters");
    response.headers_mut().insert(REQUEST_ID, value);
    response
}

/// A request's first line.
struct RequestLine {
    method: Method,
    uri: Uri,
}

impl RequestLine {
    /// Does it only look at the host?
    fn watches(&self) -> bool {
        watches(self.uri.path())
    }
}

/// The client's own id, if it sends one.
fn own_id(headers: &HeaderMap) -> Result<Option<RequestId>, Failure> {
    let Some(value) = headers.get(REQUEST_ID) else { return Ok(None) };
    let text = String::from_utf8_lossy(value.as_bytes());
    RequestId::parse(&text).map(Some).map_err(|why| Failure::BadRequestId(why.to_string()))
}

/// hyper refuses heads beyond twice the limits with a bare 431; up to there we can say why.
fn head_within(request: &Request, host: &ServerHost) -> Result<(), Failure> {
    let headers = request.headers();
    let uri = request.uri().path_and_query().map_or(0, |uri| uri.as_str().len());
    let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    let over = |unit, got, limit| {
        if got > limit { Err(Failure::HeadTooLarge { unit, got, limit }) } else { Ok(()) }
    };
    over("headers", headers.len(), host.config.headers_max)?;
    over("bytes", uri + bytes, host.config.header_max.in_memory())
}

fn room_for(line: &RequestLine, crowded: Option<ConnectionLimit>) -> Result<(), Failure> {
    match crowded {
        Some(over) if !line.watches() => Err(Failure::Connections(over)),
        _ => Ok(()),
    }
}

impl ServerHost {
    /// Counts a failure and tells it to the client.
    fn refuse(&self, id: &RequestId, line: &RequestLine, failure: &Failure) -> Response {
        /// Enough to know the route by; what follows is the client's.
        const PATH_CHARS: usize = 200;

        let status = failure.status();
        let code = failure.code();
        let path: String = without_logins(line.uri.path()).chars().take(PATH_CHARS).collect();
        let (policy, why) = failure.policy().unzip();
        tracing::info!(
            request = %id, method = %line.method, ?path, status = status.as_u16(),
            code, reason = failure.reason(), param = failure.field(), policy,
            foreign = failure.foreign().map(excerpt), spoiled = failure.spoiled(),
            failure = why.flatten().map(tracing::field::display),
            "request answered with an error"
        );
        self.metrics.answered_with(failure);
        let mut response = error_response(failure, id);
        let late = matches!(failure, Failure::Body(BodyProblem::TooSlow { .. }));
        body::close_unless(!late, &mut response);
        let headers = response.headers_mut();
        policies_say(failure.headers(), headers);
        let retry_after = match failure.retry() {
            Retry::Unsaid => None,
            Retry::Later => Some(self.config.retry_after),
            Retry::After(time) => Some(time),
            Retry::Never => {
                headers.insert("x-should-retry", HeaderValue::from_static("false"));
                None
            }
        };
        if let Some(time) = retry_after {
            // Whole seconds, as HTTP has them; 0 would invite to hammer.
            let seconds = time.as_secs() + u64::from(time.subsec_nanos() > 0);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        }
        response
    }

    /// A model under one of its names. `root` is the one that its answers give.
    fn model_card(&self, name: &str, model: &ServedModel) -> serde_json::Value {
        json!({
            "id": name,
            "object": "model",
            "created": self.started_at,
            "owned_by": "interlock",
            "root": model.id.as_str(),
            "parent": null,
        })
    }
}

async fn chat(
    State(host): State<Arc<ServerHost>>,
    Extension(head): Extension<RequestHead>,
    headers: HeaderMap,
    body: Body,
) -> HandlerResult {
    generate(host, Endpoint::Chat, head, headers, body).await
}

async fn completions(
    State(host): State<Arc<ServerHost>>,
    Extension(head): Extension<RequestHead>,
    headers: HeaderMap,
    body: Body,
) -> HandlerResult {
    generate(host, Endpoint::Completions, head, headers, body).await
}

async fn responses(
    State(host): State<Arc<ServerHost>>,
    Extension(head): Extension<RequestHead>,
    headers: HeaderMap,
    body: Body,
) -> HandlerResult {
    generate(host, Endpoint::Responses, head, headers, body).await
}

/// All names that a request may give: the models' own, the default one first, then the others.
async fn models(State(host): State<Arc<ServerHost>>) -> Response {
    let own = host.models.iter().map(|model| (model.id.as_str(), model));
    let aliases = host
        .models
        .iter()
        .flat_map(|model| model.aliases.iter().map(move |alias| (alias.as_str(), model)));
    let cards: Vec<_> =
        own.chain(aliases).map(|(name, model)| host.model_card(name, model)).collect();
    Json(json!({ "object": "list", "data": cards })).into_response()
}

async fn model(State(host): State<Arc<ServerHost>>, PathParam(asked): PathParam) -> HandlerResult {
    let model = host.models.called(&asked)?;
    Ok(Json(host.model_card(&asked, model)).into_response())
}

/// Cancels a request wherever it is, and all others of its id and tenant. Its client is told; asking
/// twice is harmless. Who asks must be who sent it, as far as the policies tell clients apart, and is
/// told what became of it: it may have come to its own end before.
async fn cancel(
    State(host): State<Arc<ServerHost>>,
    Extension(head): Extension<RequestHead>,
    PathParam(id): PathParam,
    headers: HeaderMap,
) -> HandlerResult {
    let unknown = || Failure::UnknownRequest(excerpt(&id));
    let request = RequestId::parse(&id).ok();
    let endpoint = host.endpoint_of(request.as_ref());
    let identified = host.identify_to_look_up(&head, endpoint, &headers).await?;
    let request = request.ok_or_else(unknown)?;
    let end = host.cancel(&request, &identified.identity.tenant, CancelCause::Operator).await;
    let end = end.ok_or_else(unknown)?;
    tracing::info!(%request, end = end.as_str(), "a client cancelled its request");
    Ok(Json(json!({
        "id": request.as_str(),
        "object": "request",
        "cancelled": end == EndKind::Cancelled,
        "status": end.as_str(),
    }))
    .into_response())
}

async fn live() -> Response {
    Json(json!({ "status": "live" })).into_response()
}

async fn ready(State(host): State<Arc<ServerHost>>) -> Response {
    let readiness = host.readiness();
    let status = match readiness {
        Readiness::Ready => StatusCode::OK,
        Readiness::Starting | Readiness::Draining | Readiness::Failed => {
            StatusCode::SERVICE_UNAVAILABLE
        }
    };
    let models: BTreeMap<_, _> =
        host.models.iter().map(|model| (model.id.as_str(), model.state().as_str())).collect();
    let mut told = json!({ "status": readiness.as_str(), "models": models });
    if let Some(exit) = host.models.failed() {
        told["reason"] = exit.as_str().into();
    }
    (status, Json(told)).into_response()
}

async fn metrics(State(host): State<Arc<ServerHost>>) -> HandlerResult {
    match &host.registry {
        Some(registry) => expose(registry),
        None => Err(Failure::UnknownUrl { path: "/metrics".into() }),
    }
}

async fn unknown_url(request: Request) -> Failure {
    Failure::UnknownUrl { path: excerpt(request.uri().path()) }
}

async fn method_not_allowed() -> Failure {
    Failure::Method
}
