//! `interlock policies` and `interlock requests`: what an operator does with a host that runs, over
//! its admin listener.

mod policies;
mod requests;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use interlock_config::Sources;
use interlock_request::UrlWithLogin;
use serde_json::Value;
use ureq::Agent;
use ureq::http::{Method, Request};

use crate::BadUsage;

pub(crate) use policies::{EXAMPLES as POLICIES_EXAMPLES, PoliciesCommand};
pub(crate) use requests::{EXAMPLES as REQUESTS_EXAMPLES, RequestsCommand};

/// The address of a host's admin listener, and the token that the listener asks for.
#[derive(Debug, Args)]
pub(crate) struct Admin {
    /// The admin listener's URL; by default, admin.bind of the configuration
    #[arg(long, value_name = "URL")]
    url: Option<String>,

    /// The host's configuration: admin.bind and admin.token are read from it
    ///
    /// By default, the file that `interlock serve` would read. The token can also come from the
    /// environment: INTERLOCK__ADMIN__TOKEN.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// A component is compiled before a swap is answered, on whatever machine that is.
const ANSWER_MAX: Duration = Duration::from_secs(300);

/// A listing of many requests is some 300 KB.
const ANSWER_BYTES_MAX: u64 = 16 << 20;

impl Admin {
    /// Sends a request and returns what was answered, if that is no error.
    fn ask(&self, asked: AdminRequest<'_>) -> anyhow::Result<Value> {
        let admin = interlock_config::load(&Sources::of_process(self.config.clone(), vec![]))?;
        let admin = admin.config.admin;
        let url = UrlWithLogin::from(match (&self.url, admin.bind) {
            (Some(url), _) => url.trim_end_matches('/').to_owned(),
            (None, Some(bind)) => format!("http://{}", reached(bind)),
            (None, None) => bail!(BadUsage(
                "the configuration has no admin.bind, so there is no admin listener to ask; set it \
                 in the host's configuration, or say with --url where the listener is"
                    .to_owned()
            )),
        });
        let AdminRequest { method, path, query, content_type, body } = asked;
        let target = format!("{}{path}{}", url.reveal(), written(&query));
        let mut request = Request::builder().method(method).uri(&target);
        if let Some(token) = &admin.token {
            request = request.header("authorization", format!("Bearer {}", token.reveal()));
        }
        if let Some(content_type) = content_type {
            request = request.header("content-type", content_type);
        }
        let request = request.body(body).map_err(|why| BadUsage(format!("{url}: {why}")))?;
        let mut answer = agent().run(request).with_context(|| format!("cannot ask {url}"))?;
        let text = answer.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_string();
        let text = text.with_context(|| format!("cannot read the answer of {url}"))?;
        let told: Value = serde_json::from_str(&text).unwrap_or(Value::Null);
        if answer.status().is_success() {
            return Ok(told);
        }
        match told["error"]["message"].as_str() {
            Some(message) => bail!("{message} ({})", answer.status().as_u16()),
            None => bail!("{url} answered {}: is it an admin listener?", answer.status()),
        }
    }
}

/// What is asked of the listener.
#[derive(Default)]
struct AdminRequest<'a> {
    method: Method,
    path: String,
    query: Vec<(&'static str, &'a str)>,
    content_type: Option<&'static str>,
    body: Vec<u8>,
}

/// An HTTP client that uses no proxy: the listener is on this machine, or where the operator says.
fn agent() -> Agent {
    Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(ANSWER_MAX))
        .proxy(None)
        .max_redirects(0)
        .build()
        .into()
}

/// One that listens on all addresses is asked on this machine's own.
fn reached(mut bind: std::net::SocketAddr) -> std::net::SocketAddr {
    if bind.ip().is_unspecified() {
        let own: std::net::IpAddr = match bind.is_ipv4() {
            true => std::net::Ipv4Addr::LOCALHOST.into(),
            false => std::net::Ipv6Addr::LOCALHOST.into(),
        };
        bind.set_ip(own);
    }
    bind
}

/// A query, with what stands for itself in one.
fn written(query: &[(&'static str, &str)]) -> String {
    let pairs: Vec<_> =
        query.iter().map(|(name, value)| format!("{name}={}", percent(value))).collect();
    if pairs.is_empty() { String::new() } else { format!("?{}", pairs.join("&")) }
}

/// A text as a part of a path or a query.
fn percent(text: &str) -> String {
    let one = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
            char::from(byte).to_string()
        }
        byte => format!("%{byte:02X}"),
    };
    text.bytes().map(one).collect()
}

/// A text of somebody else's as a cell of a table: what would move the cursor is shown.
fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) if text.is_empty() => "-".to_owned(),
        Value::String(text) => text.chars().flat_map(shown).collect(),
        other => other.to_string(),
    }
}

fn shown(c: char) -> Vec<char> {
    if c.is_control() { c.escape_default().collect() } else { vec![c] }
}

/// As many digits of a SHA-256 as a person needs.
fn short(sha256: &Value) -> String {
    cell(sha256).chars().take(12).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_says_what_was_meant_whatever_is_in_it() {
        let query = [("mode", "canary:20"), ("settings", r#"{"a": "é&b"}"#)];
        let wanted = "?mode=canary%3A20&settings=%7B%22a%22%3A%20%22%C3%A9%26b%22%7D";
        assert_eq!(written(&query), wanted);
        assert_eq!(written(&[]), "");
    }

    #[test]
    fn a_listener_of_all_addresses_is_asked_on_this_machine() {
        for (bind, asked) in [
            ("0.0.0.0:81", "127.0.0.1:81"),
            ("[::]:81", "[::1]:81"),
            ("10.0.0.1:81", "10.0.0.1:81"),
        ] {
            let bind = bind.parse().expect("an address");
            assert_eq!(reached(bind).to_string(), asked, "{bind}");
        }
    }

    #[test]
    fn what_others_wrote_does_not_move_the_cursor() {
        assert_eq!(cell(&"a\n\u{1b}[2Jb".into()), r"a\n\u{1b}[2Jb");
    }
}
