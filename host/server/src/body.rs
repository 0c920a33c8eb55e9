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
pub(crate) async fn read(mut body: Body, config: &ServerConfig) -> Result<Bytes, BodyProblem> {
    let limit = config.body_timeout;
    tokio::time::timeout(limit, within(&mut body, config.body_max))
        .await
        .unwrap_or(Err(BodyProblem::TooSlow { limit }))
}

/// Lets a body pass that nobody will read. A client that is still sending when we answer and
/// close would see a broken connection instead of the answer.
pub(crate) async fn discard(mut body: Body, config: &ServerConfig) {
    let budget = config.body_max.saturating_mul(DISCARDED_MAX_FACTOR);
    // Whatever goes wrong, the answer is sent next anyway.
    let _ = tokio::time::timeout(config.body_timeout, skip(&mut body, budget)).await;
}

/// How many times the largest body is read on, only to be polite.
const DISCARDED_MAX_FACTOR: usize = 4;

async fn within(body: &mut Body, limit: usize) -> Result<Bytes, BodyProblem> {
    let too_large = BodyProblem::TooLarge { limit };
    let said = body.size_hint().lower();
    if said > u64::try_from(limit).unwrap_or(u64::MAX) {
        skip(body, limit.saturating_mul(DISCARDED_MAX_FACTOR)).await;
        return Err(too_large);
    }
    let mut whole = Vec::with_capacity(usize::try_from(said).unwrap_or(0));
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| BodyProblem::Broken(e.to_string()))?;
        let Ok(chunk) = frame.into_data() else { continue };
        if whole.len() + chunk.len() > limit {
            skip(body, limit.saturating_mul(DISCARDED_MAX_FACTOR)).await;
            return Err(too_large);
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
