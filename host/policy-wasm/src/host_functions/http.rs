//! `http`: requests to services that the operator named, and to nobody else.

use std::time::{Duration, Instant};

use ureq::http::{Method, Request, Uri};
use ureq::{Agent, Error, Timeout};

use super::GuestState;
use crate::grants::Grant;
use crate::limits::{HTTP_RESPONSE_BYTES_MAX, HTTP_TIME_MAX};
use crate::wit::imports::http as wit;

/// The client of all slow policies: its connections are kept for the next request.
pub(crate) struct HttpClient(Agent);

/// Headers that say where the message ends and to whom it goes: the client's own.
const OURS: [&str; 6] =
    ["host", "content-length", "transfer-encoding", "connection", "upgrade", "te"];
const METHODS: [&str; 6] = ["GET", "POST", "PUT", "DELETE", "HEAD", "PATCH"];

impl HttpClient {
    pub(crate) fn new() -> Self {
        let config = Agent::config_builder()
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false)
            .allow_non_standard_methods(false)
            // Whom it may ask is in the grants; a proxy from the environment would be another.
            .proxy(None)
            .user_agent(concat!("interlock/", env!("CARGO_PKG_VERSION")))
            .build();
        Self(config.into())
    }

    fn send(
        &self,
        grants: &[Grant],
        asked: wit::Request,
        time_max: Duration,
    ) -> Result<wit::Response, wit::Fault> {
        let (request, timeout) = checked(grants, asked)?;
        let timeout = timeout.min(time_max);
        if timeout.is_zero() {
            return Err(wit::Fault::Timeout);
        }
        let request = self.0.configure_request(request).timeout_global(Some(timeout)).build();
        let response = self.0.run(request).map_err(fault)?;
        let (head, mut body) = response.into_parts();
        let body =
            body.with_config().limit(HTTP_RESPONSE_BYTES_MAX).read_to_vec().map_err(fault)?;
        let headers = head.headers.iter().filter_map(|(name, value)| {
            let value = value.to_str().ok()?.to_owned();
            Some(wit::Header { name: name.as_str().to_owned(), value })
        });
        Ok(wit::Response { status: head.status.as_u16(), headers: headers.collect(), body })
    }
}

fn checked(
    grants: &[Grant],
    asked: wit::Request,
) -> Result<(Request<Vec<u8>>, Duration), wit::Fault> {
    let invalid = |why: String| wit::Fault::Invalid(why);
    if !METHODS.contains(&asked.method.as_str()) {
        return Err(invalid(format!("method must be one of {}", METHODS.join(", "))));
    }
    let timeout = Duration::from_micros(asked.timeout);
    if !(Duration::from_millis(1)..=HTTP_TIME_MAX).contains(&timeout) {
        return Err(invalid(format!("timeout must be 1ms to {HTTP_TIME_MAX:?}, got {timeout:?}")));
    }
    let url: Uri = asked.url.parse().map_err(|why| invalid(format!("url: {why}")))?;
    let port = match url.scheme_str() {
        Some("http") => url.port_u16().unwrap_or(80),
        Some("https") => url.port_u16().unwrap_or(443),
        _ => return Err(invalid("url must begin with http:// or https://".into())),
    };
    let host = url.host().unwrap_or_default().to_ascii_lowercase();
    // What stands before an @ is a name and a password, and a way to make a host look like another.
    if url.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err(invalid("url must not name a user".into()));
    }
    if !grants.contains(&Grant::Http(host, port)) {
        return Err(wit::Fault::NotGranted);
    }
    let method = Method::from_bytes(asked.method.as_bytes());
    let mut request = Request::builder()
        .method(method.map_err(|why| invalid(format!("method: {why}")))?)
        .uri(url);
    for header in &asked.headers {
        if OURS.contains(&header.name.to_ascii_lowercase().as_str()) {
            return Err(invalid(format!("header {} is the host's own", header.name)));
        }
        request = request.header(&header.name, &header.value);
    }
    let request = request.body(asked.body).map_err(|why| invalid(format!("headers: {why}")))?;
    Ok((request, timeout))
}

fn fault(error: Error) -> wit::Fault {
    match error {
        Error::Timeout(Timeout::Global | _) => wit::Fault::Timeout,
        Error::BodyExceedsLimit(_) => wit::Fault::TooLarge,
        error => wit::Fault::Connection(error.to_string()),
    }
}

impl wit::Host for GuestState {
    fn send(
        &mut self,
        request: wit::Request,
    ) -> wasmtime::Result<Result<wit::Response, wit::Fault>> {
        self.charge()?;
        // Neither the time that it waits is the policy's nor what encryption takes of the CPU.
        let (began, left) = (Instant::now(), self.asking_left);
        let answer =
            self.work(|state| state.functions.http.send(&state.functions.grants, request, left));
        self.asking_left = left.saturating_sub(began.elapsed());
        Ok(answer)
    }
}
