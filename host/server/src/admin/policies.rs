//! Listing, swapping and rolling back policies.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::IntoResponse;
use bytes::Bytes;
use interlock_policy_chain::{GenerationNotKept, RollbackTarget};
use serde_json::{Map, Value};

use super::query::{self, Query};
use super::{
    AdminError, AdminResult, AdminState, BodyKind, FORMS, Replacement, SwapError, bad_body,
    nothing_in, unsupported,
};

/// `GET /admin/policies`
pub(super) async fn list(State(state): State<Arc<AdminState>>, uri: Uri) -> AdminResult {
    Query::read(&uri, &[])?;
    Ok(Json(state.admin.list()).into_response())
}

/// `POST /admin/policies/{name}`
pub(super) async fn replace(
    State(state): State<Arc<AdminState>>,
    name: Result<Path<String>, PathRejection>,
    uri: Uri,
    headers: HeaderMap,
    mut body: Body,
) -> AdminResult {
    let bytes = state.read(&mut body).await?;
    let query = Query::read(&uri, &["mode", "settings"])?;
    let Path(name) = name.map_err(|_| SwapError::Unknown(uri.path().to_owned()))?;
    let with = sent(&headers, bytes)?;
    let with = with_query(with, &query)?;
    if with == Replacement::default() {
        return Err(bad_body(format!("nothing to change was sent; {FORMS}")));
    }
    Ok(Json(state.admin.replace(name, with).await?).into_response())
}

/// `POST /admin/policies/rollback`
pub(super) async fn rollback(
    State(state): State<Arc<AdminState>>,
    uri: Uri,
    mut body: Body,
) -> AdminResult {
    let bytes = state.read(&mut body).await?;
    let query = Query::read(&uri, &["to"])?;
    nothing_in(&bytes, "a rollback has no body; ?to=start or ?to=GENERATION says where it goes")?;
    let expected = "previous, start or the number of a generation";
    let to = query.parsed("to", expected)?.unwrap_or(RollbackTarget::Previous);
    Ok(Json(state.admin.rollback(to).await?).into_response())
}

/// What the body says.
fn sent(headers: &HeaderMap, bytes: Bytes) -> Result<Replacement, AdminError> {
    match BodyKind::of(headers) {
        None if bytes.is_empty() => Ok(Replacement::default()),
        None => Err(unsupported(headers)),
        Some(BodyKind::Component) if bytes.is_empty() => {
            Err(bad_body(format!("the body is empty, and no component; {FORMS}")))
        }
        Some(BodyKind::Component) => {
            Ok(Replacement { component: Some(bytes), ..Replacement::default() })
        }
        // serde would take a list for an object whose keys nobody wrote.
        Some(BodyKind::Json) if !bytes.trim_ascii_start().starts_with(b"{") => {
            Err(bad_body(format!("the body is no JSON object; {FORMS}")))
        }
        Some(BodyKind::Json) => serde_json::from_slice(&bytes).map_err(|error| {
            bad_body(format!("the body cannot be read: {}; {FORMS}", without_values(&error)))
        }),
    }
}

/// A swap with what its query adds to it.
fn with_query(mut with: Replacement, query: &Query) -> Result<Replacement, AdminError> {
    let twice = |name: &str| query::bad(format!("{name} is in the query and in the body"));
    let mode = query.parsed("mode", "enforce, shadow or canary:PERCENT (1 to 99)")?;
    if mode.is_some() && with.mode.is_some() {
        return Err(twice("mode"));
    }
    with.mode = mode.or(with.mode);
    let settings = query.get("settings").map(object).transpose()?;
    if settings.is_some() && with.settings.is_some() {
        return Err(twice("settings"));
    }
    with.settings = settings.or(with.settings);
    Ok(with)
}

fn object(text: &str) -> Result<Map<String, Value>, AdminError> {
    serde_json::from_str(text).map_err(|error| {
        let why = without_values(&error);
        query::bad(format!("query parameter \"settings\" is a JSON object: {why}"))
    })
}

/// What is wrong with a JSON text that may have secrets in it, which serde would quote.
fn without_values(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let place = format!("line {} column {}", error.line(), error.column());
    match error.classify() {
        // A key that is not known, or is there twice, has its name in the text, and a mode its own.
        serde_json::error::Category::Data if text.starts_with("invalid type") => {
            format!("a value is of another type than its key wants, at {place}")
        }
        _ => text,
    }
}

impl From<SwapError> for AdminError {
    fn from(why: SwapError) -> Self {
        let (status, code) = match &why {
            SwapError::Unknown(_) => (StatusCode::NOT_FOUND, "policy_not_found"),
            SwapError::Unfit(_) => (StatusCode::UNPROCESSABLE_ENTITY, "policy_unfit"),
            SwapError::NotKept(GenerationNotKept::NothingEarlier) => {
                (StatusCode::CONFLICT, "no_earlier_generation")
            }
            SwapError::NotKept(GenerationNotKept::Number { .. }) => {
                (StatusCode::CONFLICT, "generation_not_kept")
            }
        };
        Self { status, code, message: why.to_string() }
    }
}
