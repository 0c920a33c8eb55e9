//! `/metrics` on a listener of its own, for whoever should see them and nobody else.
//!
//! It takes nothing that a web page sends, as the operator's listener does not: see `origin`.
//!
//! # Not here
//!
//! Health: that is the clients' port's, and what it says is no secret.

use std::future::Future;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::header;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use interlock_metrics::Registry;
use tokio::net::TcpListener;

use crate::body;
use crate::connection::{Listener, ListenerRules};
use crate::endpoints::error_json;
use crate::error_response::json_errors;
use crate::failure::Failure;
use crate::origin::OriginRules;
use crate::{MetricsConfig, ServerConfig, ServerMetrics};

/// What the listener of metrics is made of.
pub struct MetricsParts {
    /// `[metrics]`.
    pub config: MetricsConfig,
    /// `[server]`: what bounds a connection there bounds it here.
    pub server: ServerConfig,
    /// The server's own metrics.
    pub metrics: ServerMetrics,
    /// Everyone's metrics, which are served.
    pub registry: Arc<Registry>,
}

/// Serves until `shutdown`.
pub async fn serve_metrics(
    listener: TcpListener,
    parts: MetricsParts,
    shutdown: impl Future<Output = ()>,
) {
    let MetricsParts { config, server, metrics, registry } = parts;
    let origins = OriginRules::of_operators(listener.local_addr().ok());
    let router = Router::new()
        .route("/metrics", get(exposition))
        .with_state(registry)
        .layer(middleware::from_fn_with_state(origins, of_no_page))
        .layer(middleware::from_fn(json_errors))
        .layer(middleware::from_fn_with_state(Arc::new(server.clone()), body::pass));
    let rules = ListenerRules::of_metrics(&config, &server);
    let open = metrics.metrics_connections.clone();
    Listener { listener, rules, router, metrics: Arc::new(metrics), open, error_json }
        .serve(shutdown)
        .await;
}

async fn of_no_page(State(origins): State<OriginRules>, request: Request, next: Next) -> Response {
    match origins.check(request.uri(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(foreign) => Failure::Foreign(foreign).into_response(),
    }
}

async fn exposition(State(registry): State<Arc<Registry>>) -> Result<Response, Failure> {
    expose(&registry)
}

/// All metrics, as Prometheus reads them.
pub(crate) fn expose(registry: &Registry) -> Result<Response, Failure> {
    let text = registry.expose().map_err(|error| {
        tracing::error!(%error, "metrics could not be encoded");
        Failure::INTERNAL
    })?;
    Ok(([(header::CONTENT_TYPE, Registry::CONTENT_TYPE)], text).into_response())
}
