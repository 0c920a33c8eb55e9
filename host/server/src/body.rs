//! Reads a request's body: not more than it may be, and not for longer than it may take.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Body as _;
use tokio::time::Instant;

use crate::ServerConfig;
use crate::failure::{BodyProblem, Failure};
use crate::work::MemoryLease;

/// A body that has arrived.
#[derive(Debug, Default)]
pub(crate) struct ReceivedBody {
    pub(crate) bytes: Bytes,
    /// JSON values in it, or somewhat more: what follows a comma or an opening bracket is one. What
    /// reading it costs depends on them as well as on the bytes.
    pub(crate) values: usize,
}

impl ReceivedBody {
    /// The body without the byte order mark that some editors and Windows' own tools begin a text
    /// with: who reads JSON may pass over it (RFC 8259, 8.1).
    pub(crate) fn without_mark(self) -> Self {
        const MARK: &[u8] = "\u{feff}".as_bytes();

        let bytes =
            if self.bytes.starts_with(MARK) { self.bytes.slice(MARK.len()..) } else { self.bytes };
        Self { bytes, ..self }
    }
}

/// Looks whether a body is sent as it is: nobody here undoes a compression.
///
/// # Errors
///
/// When it is, with what its sender calls it.
pub(crate) fn as_it_is(headers: &HeaderMap) -> Result<(), BodyProblem> {
    let codings = headers.get_all(header::CONTENT_ENCODING);
    let codings = codings.iter().map(|coding| String::from_utf8_lossy(coding.as_bytes()));
    let is_none = |one: &str| one.trim().is_empty() || one.trim().eq_ignore_ascii_case("identity");
    let named = codings.collect::<Vec<_>>().join(", ");
    if named.split(',').all(is_none) { Ok(()) } else { Err(BodyProblem::Encoded(named)) }
}

/// Reads all of it, and takes its memory as it comes, if there is someone to take it from.
///
/// # Errors
///
/// When it is larger or slower than configured, or breaks off; or there is no memory to be had.
pub(crate) async fn read(
    body: &mut Body,
    config: &ServerConfig,
    mut lease: Option<&mut MemoryLease>,
) -> Result<ReceivedBody, Failure> {
    let limit = config.body_max.in_memory();
    let whole = within(body, limit, config.body_timeout, lease.as_deref_mut()).await;
    if let Err(Failure::Body(BodyProblem::TooLarge { .. }) | Failure::Work(_)) = whole {
        // What has arrived is gone, and the rest is kept by nobody.
        if let Some(lease) = lease {
            lease.let_go();
        }
        discard(body, config).await;
    }
    whole
}

/// Lets a body pass that nobody will read. A client that is still sending when we answer and
/// close would see a broken connection instead of the answer. False: its end has not come, so the
/// connection cannot be used again.
pub(crate) async fn discard(body: &mut Body, config: &ServerConfig) -> bool {
    /// How many times the largest body is read on, only to be polite.
    const PATIENCE: usize = 4;

    let budget = config.body_max.in_memory().saturating_mul(PATIENCE);
    // Whatever goes wrong, the answer is sent next anyway.
    tokio::time::timeout(config.body_timeout, skip(body, budget)).await.unwrap_or(false)
}

/// As [`discard`], behind an answer that does not wait for it. Ends with the connection, or when
/// the time is up.
pub(crate) fn discard_behind(mut body: Body, config: ServerConfig) {
    tokio::spawn(async move { discard(&mut body, &config).await });
}

/// Around all that reads no body: one may be sent anyway, and is let pass before the answer. What
/// came after it would be taken for the next request, and break the connection.
pub(crate) async fn pass(
    State(config): State<Arc<ServerConfig>>,
    mut request: Request,
    next: Next,
) -> Response {
    let passed = discard(request.body_mut(), &config).await;
    let mut response = next.run(request).await;
    close_unless(passed, &mut response);
    response
}

/// Says that the connection ends with this answer, unless all of the body has come.
pub(crate) fn close_unless(passed: bool, response: &mut Response) {
    if !passed {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
}

async fn within(
    body: &mut Body,
    limit: usize,
    time_max: Duration,
    mut lease: Option<&mut MemoryLease>,
) -> Result<ReceivedBody, Failure> {
    const AT_FIRST: usize = 64 << 10;

    let said = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if said > limit {
        return Err(BodyProblem::TooLarge { limit }.into());
    }
    // What it says of its length takes no memory before it is there.
    let (mut whole, mut values) = (Vec::with_capacity(said.min(AT_FIRST)), 0);
    let mut time_left = time_max;
    loop {
        // Only the time that its client takes: it cannot help it when there is no memory.
        let began = Instant::now();
        let frame = tokio::time::timeout(time_left, body.frame()).await;
        let frame = frame.map_err(|_| BodyProblem::TooSlow { limit: time_max })?;
        time_left = time_left.saturating_sub(began.elapsed());
        let Some(frame) = frame else { return Ok(ReceivedBody { bytes: whole.into(), values }) };
        let frame = frame.map_err(|e| BodyProblem::Broken(e.to_string()))?;
        let Ok(chunk) = frame.into_data() else { continue };
        if whole.len() + chunk.len() > limit {
            return Err(BodyProblem::TooLarge { limit }.into());
        }
        if let Some(lease) = &mut lease {
            lease.grow(chunk.len()).await?;
        }
        // As it comes, a chunk at a time: both are done in microseconds.
        values += chunk.iter().filter(|byte| matches!(byte, b',' | b'[' | b'{')).count();
        whole.extend_from_slice(&chunk);
    }
}

/// Was that all of it?
async fn skip(body: &mut Body, mut budget: usize) -> bool {
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return false };
        let size = frame.data_ref().map_or(0, Bytes::len);
        match budget.checked_sub(size) {
            Some(left) => budget = left,
            None => return false,
        }
    }
    true
}
