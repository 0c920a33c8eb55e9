//! Who is asked: a server's address, and what it says of itself.

use std::str::FromStr;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, StatusCode, Uri};
use serde::Deserialize;

use crate::ask::complaint;
use crate::exchange::{Reply, UnusedConnection};
use crate::failure::RequestFailure;
use crate::report::TargetFacts;

/// Longest time for a request that needs no model: the list of models, metrics, health.
const ASIDE_MAX: Duration = Duration::from_secs(30);

/// A server's address and its name in reports: `NAME=URL` or `URL`. A model can follow after a `#`, for
/// a server that has another name for the model than the other servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The server's name in reports.
    pub name: String,
    /// `host:port`
    pub(crate) authority: String,
    /// The path before `/chat/completions`: `/v1` unless the URL has a path of its own.
    pub(crate) base: String,
    pub(crate) model: Option<String>,
}

/// Why a text is not an address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadAddress {
    /// The text is not an http URL.
    #[error("a target is [NAME=]http://HOST:PORT[/PATH][#MODEL], got {0:?}")]
    Form(String),
    /// The URL begins with https.
    #[error(
        "{0:?}: only http:// can be measured; give the address behind the TLS proxy, which takes time of its own"
    )]
    Tls(String),
}

impl FromStr for Address {
    type Err = BadAddress;

    fn from_str(text: &str) -> Result<Self, BadAddress> {
        let form = || BadAddress::Form(text.to_owned());
        let (place, model) = match text.split_once('#') {
            Some((_, "")) => return Err(form()),
            Some((place, model)) => (place, Some(model.to_owned())),
            None => (text, None),
        };
        let (name, url) = match place.split_once('=') {
            // A `=` further on is the URL's own.
            Some((name, url)) if !name.contains('/') => (Some(name.trim()), url),
            _ => (None, place),
        };
        let url = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
        let uri: Uri = url.parse().map_err(|_| form())?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => return Err(BadAddress::Tls(text.to_owned())),
            _ => return Err(form()),
        }
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(form)?;
        if name.is_some_and(str::is_empty) || uri.query().is_some() {
            return Err(form());
        }
        let authority = format!("{host}:{}", uri.port_u16().unwrap_or(80));
        let base = match uri.path().trim_end_matches('/') {
            "" => "/v1".to_owned(),
            path => path.to_owned(),
        };
        Ok(Self { name: name.unwrap_or(&authority).to_owned(), authority, base, model })
    }
}

/// A header that every request carries: `NAME: VALUE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header(HeaderName, HeaderValue);

/// Not a header.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a header is NAME: VALUE, in visible letters")]
pub struct BadHeader;

impl FromStr for Header {
    type Err = BadHeader;

    fn from_str(text: &str) -> Result<Self, BadHeader> {
        let (name, value) = text.split_once(':').ok_or(BadHeader)?;
        let name = name.trim().parse().map_err(|_| BadHeader)?;
        let mut value = HeaderValue::from_str(value.trim()).map_err(|_| BadHeader)?;
        // It may be a key: nothing of ours prints it.
        value.set_sensitive(true);
        Ok(Self(name, value))
    }
}

/// A server whose model is known.
#[derive(Debug, Clone)]
pub struct Target {
    pub(crate) address: Address,
    pub(crate) facts: TargetFacts,
    headers: HeaderMap,
    /// The process whose CPU time is the server's; only if this program started it.
    pub(crate) process: Option<u32>,
}

impl Target {
    /// Asks a server for its models and takes the first, unless one is named.
    ///
    /// # Errors
    ///
    /// When it does not answer, or lists no model and none is named.
    pub async fn meet(
        address: Address,
        model: Option<String>,
        headers: &[Header],
    ) -> Result<Self, RequestFailure> {
        let model = address.model.clone().or(model);
        let mut target = Self::unmet(address);
        target.headers =
            headers.iter().map(|Header(name, value)| (name.clone(), value.clone())).collect();
        let listed = target.models().await;
        let (first, model) = match (listed, model) {
            (Ok(first), Some(model)) => (first, model),
            (Ok(Some(first)), None) => (Some(first.clone()), first.id),
            // Not every server lists models; who names one needs no list.
            (Err(RequestFailure::Status { .. } | RequestFailure::Nonsense(_)), Some(model)) => {
                (None, model)
            }
            (Ok(None), None) => {
                let why = "it lists no model: name one";
                return Err(RequestFailure::Nonsense(why.to_owned()));
            }
            (Err(failure), _) => return Err(failure),
        };
        target.facts.model = model;
        target.facts.owned_by = first.and_then(|first| first.owned_by);
        Ok(target)
    }

    /// One that may not be ready to tell.
    pub(crate) fn unmet(address: Address) -> Self {
        let facts = TargetFacts {
            name: address.name.clone(),
            url: format!("http://{}{}", address.authority, address.base),
            model: String::new(),
            owned_by: None,
            version: None,
        };
        Self { address, facts, headers: HeaderMap::new(), process: None }
    }

    /// The server's name in reports.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.address.name
    }

    /// With the process that does its work, and that process's version.
    #[must_use]
    pub fn of_process(mut self, process: Option<u32>, version: &str) -> Self {
        self.process = process;
        self.facts.version = Some(version.to_owned());
        self
    }

    pub(crate) async fn line(&self) -> Result<UnusedConnection, RequestFailure> {
        UnusedConnection::open(&self.address.authority).await
    }

    pub(crate) fn request(&self, method: Method, path: &str, body: Bytes) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = path.parse().expect("our paths, and those of a parsed URL, are URIs");
        let host = HeaderValue::from_str(&self.address.authority);
        let headers = request.headers_mut();
        headers.insert(header::HOST, host.expect("the host and port of a parsed URL are visible"));
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::USER_AGENT, HeaderValue::from_static("interlock-bench"));
        headers.extend(self.headers.clone());
        request
    }

    /// The body of a page.
    pub(crate) async fn page(&self, path: &str) -> Result<Vec<u8>, RequestFailure> {
        let page = async {
            let request = self.request(Method::GET, path, Bytes::new());
            let mut reply = self.line().await?.send(request).await?;
            ok(&mut reply).await?;
            reply.whole().await
        };
        tokio::time::timeout(ASIDE_MAX, page)
            .await
            .map_err(|_| RequestFailure::Timeout(ASIDE_MAX))?
    }

    async fn models(&self) -> Result<Option<ListedModel>, RequestFailure> {
        let page = self.page(&format!("{}/models", self.address.base)).await?;
        let models: ModelList = serde_json::from_slice(&page)
            .map_err(|error| RequestFailure::Nonsense(format!("its list of models: {error}")))?;
        Ok(models.data.into_iter().next())
    }
}

/// Turns any other status into a failure, with what the body says.
pub(crate) async fn ok(reply: &mut Reply) -> Result<(), RequestFailure> {
    match reply.status {
        StatusCode::OK => Ok(()),
        // The status is what matters, with its reason or without.
        status => {
            let body = reply.whole().await.unwrap_or_default();
            Err(RequestFailure::Status { status, message: complaint(&body) })
        }
    }
}

#[derive(Debug, Deserialize)]
struct ModelList {
    data: Vec<ListedModel>,
}

#[derive(Debug, Clone, Deserialize)]
struct ListedModel {
    id: String,
    #[serde(default)]
    owned_by: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> (String, String, String) {
        let address: Address = text.parse().expect("is an address");
        (address.name, address.authority, address.base)
    }

    fn parts(name: &str, authority: &str, base: &str) -> (String, String, String) {
        (name.to_owned(), authority.to_owned(), base.to_owned())
    }

    #[test]
    fn a_name_and_a_path_may_be_left_out() {
        assert_eq!(parsed("http://a:1"), parts("a:1", "a:1", "/v1"));
        assert_eq!(parsed("127.0.0.1:8080/"), parts("127.0.0.1:8080", "127.0.0.1:8080", "/v1"));
        assert_eq!(parsed("vllm=http://a/x/v1/"), parts("vllm", "a:80", "/x/v1"));
        assert_eq!(parsed("http://[::1]:8/v1"), parts("[::1]:8", "[::1]:8", "/v1"));
    }

    #[test]
    fn what_a_server_calls_its_model_stands_behind_its_address() {
        let address: Address = "mlx=http://a:1#/models/a=b".parse().expect("is an address");
        assert_eq!(address.model.as_deref(), Some("/models/a=b"));
        assert_eq!((address.name.as_str(), address.base.as_str()), ("mlx", "/v1"));
        assert_eq!("http://a".parse::<Address>().expect("is one").model, None);
    }

    #[test]
    fn what_is_no_address_says_so() {
        for text in ["", "ftp://a", "=http://a", "http://", "http://a?b=c", "a b", "http://a#"] {
            let error = text.parse::<Address>().expect_err(text);
            assert_eq!(error, BadAddress::Form(text.to_owned()));
        }
        let tls = "x=https://a".parse::<Address>().expect_err("TLS");
        assert!(tls.to_string().contains("only http://"), "{tls}");
    }
}
