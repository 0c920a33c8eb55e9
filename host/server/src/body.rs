//! Reads a request's body: not more than it may be, and not for longer than it may take.

use axum::body::Body;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Body as _;

use crate::ServerConfig;
use crate::failure::BodyProblem;

/// Reads all of it.
///
/// # Errors
///
/// When it is larger or slower than configured, or breaks off.
pub(crate) async fn read(body: &mut Body, config: &ServerConfig) -> Result<Bytes, BodyProblem> {
    let limit = config.body_timeout;
    let whole = tokio::time::timeout(limit, within(body, config.body_max.in_memory()))
        .await
        .unwrap_or(Err(BodyProblem::TooSlow { limit }));
    if let Err(BodyProblem::TooLarge { .. }) = whole {
        discard(body, config).await;
    }
    whole
}

/// Lets a body pass that nobody will read. A client that is still sending when we answer and
/// close would see a broken connection instead of the answer.
pub(crate) async fn discard(body: &mut Body, config: &ServerConfig) {
    /// How many times the largest body is read on, only to be polite.
    const PATIENCE: usize = 4;

    let budget = config.body_max.in_memory().saturating_mul(PATIENCE);
    // Whatever goes wrong, the answer is sent next anyway.
    let _ = tokio::time::timeout(config.body_timeout, skip(body, budget)).await;
}

async fn within(body: &mut Body, limit: usize) -> Result<Bytes, BodyProblem> {
    let said = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if said > limit {
        return Err(BodyProblem::TooLarge { limit });
    }
    let mut whole = Vec::with_capacity(said);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| BodyProblem::Broken(e.to_string()))?;
        let Ok(chunk) = frame.into_data() else { continue };
        if whole.len() + chunk.len() > limit {
            return Err(BodyProblem::TooLarge { limit });
        }
        whole.extend_from_slice(&chunk);
    }
    Ok(whole.into())
}

async fn skip(body: &mut Body, mut budget: usize) {
    while let Some(Ok(frame)) = body.frame().await {
        let size = frame.data_ref().map_or(0, Bytes::len);
        match budget.checked_sub(size) {
            Some(left) => budget = left,
            None => return,
        }
    }
}
