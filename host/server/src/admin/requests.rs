//! Listing and cancelling requests in flight, whoever sent them.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{StatusCode, Uri};
use axum::response::IntoResponse;
use interlock_request::{CancelCause, RequestId};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::query::{self, Query};
use super::{AdminError, AdminResult, AdminState, nothing_in};
use crate::chunks::EndKind;
use crate::failure::excerpt;
use crate::in_flight::ListedRequest;

/// Most requests of one answer. There is room for a few hundred in flight by default.
const LISTED_MAX: usize = 1000;

/// `GET /admin/requests`
pub(super) async fn list(State(state): State<Arc<AdminState>>, uri: Uri) -> AdminResult {
    let query = Query::read(&uri, &["tenant", "model", "limit"])?;
    let limit = query.parsed("limit", &format!("a number from 1 to {LISTED_MAX}"))?;
    let limit = limit.unwrap_or(LISTED_MAX);
    if !(1..=LISTED_MAX).contains(&limit) {
        let why = format!("query parameter \"limit\" is from 1 to {LISTED_MAX}, got {limit}");
        return Err(query::bad(why));
    }
    let wanted = |request: &ListedRequest| {
        let tenant = query.get("tenant");
        let model = query.get("model");
        tenant.is_none_or(|tenant| request.tenant.as_deref() == Some(tenant))
            && model.is_none_or(|model| request.snapshot.model() == Some(model))
    };
    let (total, listed) = state.in_flight.list(limit, wanted);
    let now = Instant::now();
    let shown: Vec<_> = listed.iter().map(|request| shown(request, now)).collect();
    Ok(Json(json!({ "object": "list", "total": total, "requests": shown })).into_response())
}

/// Without anything of what was asked or answered: an operator need not read that.
fn shown(request: &ListedRequest, now: Instant) -> Value {
    let ListedRequest { id, tenant, snapshot } = request;
    json!({
        "id": id.as_str(),
        "tenant": tenant,
        "endpoint": snapshot.endpoint.as_str(),
        "model": snapshot.model(),
        "priority": snapshot.priority,
        "state": snapshot.state.as_str(),
        "detached": snapshot.detached,
        "generated_tokens": snapshot.tokens,
        "age_ms": millis(now - snapshot.arrived_at),
        "queue_ms": snapshot.queue_time(now).map(millis),
    })
}

fn millis(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// `POST /admin/requests/{id}/cancel`: ids are the clients' own, so several requests may go by one;
/// all of them are cancelled, unless a tenant is named.
pub(super) async fn cancel(
    State(state): State<Arc<AdminState>>,
    id: Result<Path<String>, PathRejection>,
    uri: Uri,
    mut body: Body,
) -> AdminResult {
    let bytes = state.read(&mut body).await?;
    let query = Query::read(&uri, &["tenant"])?;
    nothing_in(&bytes, "a cancel has no body; ?tenant=NAME says whose request it is")?;
    let id = id.map_or_else(|_| uri.path().to_owned(), |Path(id)| id);
    let tenant = query.get("tenant");
    let known = RequestId::parse(&id).ok();
    let asked = known.map(|id| state.in_flight.cancel(&id, tenant, CancelCause::Operator));
    let asked = asked.unwrap_or_default();
    if asked.is_empty() {
        let of = tenant.map_or_else(String::new, |tenant| format!(" of tenant {tenant:?}"));
        let (status, code) = (StatusCode::NOT_FOUND, "request_not_found");
        let message = format!("no request {:?}{of} is in flight", excerpt(&id));
        return Err(AdminError { status, code, message });
    }
    let requests = asked.len();
    let mut cancelled = 0;
    for asked in asked {
        // One that ended before it heard of this ended as it did.
        cancelled += usize::from(asked.end().await == EndKind::Cancelled);
    }
    tracing::info!(request = id, tenant, requests, cancelled, "an operator cancelled a request");
    let answer = json!({
        "id": id, "object": "request", "cancelled": cancelled > 0, "requests": requests,
    });
    Ok(Json(answer).into_response())
}
