//! One request and its answer, over a connection of their own.
//!
//! # Invariants
//!
//! - Whoever holds the [`UnusedConnection`] or the [`Reply`] holds the socket, and drives it: there is no task
//!   beside them. Dropping either closes the connection at once.
//!
//! # Not here
//!
//! A pool, TLS, redirects, HTTP/2.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Body, Bytes, Incoming};
use hyper::client::conn::http1::{Connection, SendRequest, handshake};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::failure::RequestFailure;

/// Longest time for a connection to open: a full backlog makes the kernel ask again after 1, 3
/// and 7 seconds.
const CONNECT_MAX: Duration = Duration::from_secs(15);

/// More than any answer that is read whole: a model list, metrics, an error.
const BODY_MAX: usize = 8 << 20;

type ConnectionDriver = Pin<Box<Connection<TokioIo<TcpStream>, Full<Bytes>>>>;

/// An open connection that has not been used.
pub(crate) struct UnusedConnection {
    sender: SendRequest<Full<Bytes>>,
    driver: ConnectionDriver,
}

/// An answer whose head is here.
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    body: Incoming,
    // The connection ends with the last of its senders.
    _sender: SendRequest<Full<Bytes>>,
    /// Gone when the server has closed its side; what it sent before is still in `body`.
    driver: Option<ConnectionDriver>,
}

impl UnusedConnection {
    /// Opens a connection to `host:port`.
    pub(crate) async fn open(authority: &str) -> Result<Self, RequestFailure> {
        let connect = |error: &dyn std::fmt::Display| RequestFailure::Connect(error.to_string());
        let opened = tokio::time::timeout(CONNECT_MAX, TcpStream::connect(authority)).await;
        let stream = opened
            .map_err(|_| connect(&format!("no answer in {CONNECT_MAX:?}")))?
            .map_err(|error| connect(&error))?;
        // Small requests should leave at once, as every HTTP client has it.
        stream.set_nodelay(true).map_err(|error| connect(&error))?;
        let (sender, driver) =
            handshake(TokioIo::new(stream)).await.map_err(|error| connect(&error))?;
        Ok(Self { sender, driver: Box::pin(driver) })
    }

    /// Sends a request and waits for the head of its answer.
    pub(crate) async fn send(
        mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<Reply, RequestFailure> {
        let mut answer = Box::pin(self.sender.send_request(request));
        let mut driver = Some(self.driver);
        let answer = poll_fn(|cx| {
            drive(&mut driver, cx);
            answer.as_mut().poll(cx)
        });
        let answer = answer.await.map_err(|error| RequestFailure::Cut(reason(&error)))?;
        let (head, body) = answer.into_parts();
        Ok(Reply { status: head.status, body, _sender: self.sender, driver })
    }
}

impl Reply {
    /// The next bytes; none after the last.
    pub(crate) async fn bytes(&mut self) -> Result<Option<Bytes>, RequestFailure> {
        loop {
            let frame = poll_fn(|cx| {
                drive(&mut self.driver, cx);
                Pin::new(&mut self.body).poll_frame(cx)
            });
            match frame.await {
                None => return Ok(None),
                Some(Err(error)) => return Err(RequestFailure::Cut(reason(&error))),
                // Trailers say nothing to us.
                Some(Ok(frame)) => {
                    if let Ok(bytes) = frame.into_data() {
                        return Ok(Some(bytes));
                    }
                }
            }
        }
    }

    /// All that is left of it.
    pub(crate) async fn whole(&mut self) -> Result<Vec<u8>, RequestFailure> {
        let mut whole = Vec::new();
        while let Some(bytes) = self.bytes().await? {
            whole.extend_from_slice(&bytes);
            if whole.len() > BODY_MAX {
                return Err(RequestFailure::Nonsense(format!(
                    "an answer of more than {BODY_MAX} bytes"
                )));
            }
        }
        Ok(whole)
    }
}

/// Moves bytes between the socket and whoever waits for them. What fails here fails there too.
fn drive(driver: &mut Option<ConnectionDriver>, cx: &mut Context<'_>) {
    if let Some(at_work) = driver
        && let Poll::Ready(_) = at_work.as_mut().poll(cx)
    {
        *driver = None;
    }
}

/// hyper's words, and those of the socket below them.
fn reason(error: &hyper::Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}
