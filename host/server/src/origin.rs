//! Which web pages may ask, and by which names a listener is called.
//!
//! Whoever runs the host may have a browser open beside it, and any page in it can send requests
//! here: a form or a script may post a text to any address (and the browser says from where, in
//! `Origin`), and a page whose own name was made to stand for this machine may even read the answers
//! (DNS rebinding; then that name is in `Host`). So a page is refused unless its origin is allowed,
//! and where only this machine can reach a listener, so is a name that is not the listener's.
//! Addresses need no such care, nor does `localhost` with all names under it: no page can make them
//! stand for anything else.
//!
//! Programs that are no browsers send no `Origin`, and call a host by the name or the address that
//! they reach it by.
//!
//! # Not here
//!
//! Who a request is from: policies identify clients, and a token is not looked at here.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::http::request::Parts;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, Method, Uri, header};
use interlock_request::without_login;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer, ExposeHeaders};

/// What a listener takes from browsers.
#[derive(Debug, Clone)]
pub(crate) struct OriginRules {
    /// Where it listens; `None`: on no socket, so nobody's browser reaches it.
    address: Option<SocketAddr>,
    /// Origins whose pages may ask.
    origins: Arc<NameList>,
    /// Names by which it may be called beside its own.
    hosts: Arc<NameList>,
    /// Is it for operators, who have no pages and no old clients?
    operators: bool,
}

/// Why a request is not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Foreign {
    /// The request comes from a page of this origin.
    Origin(String),
    /// The request names this host.
    Host(String),
}

/// Names that are allowed, in lower case.
#[derive(Debug, Default)]
struct NameList {
    any: bool,
    names: Vec<String>,
}

impl NameList {
    fn new(names: &[String], canonical: fn(&str) -> String) -> Arc<Self> {
        let any = names.iter().any(|name| name == ANY);
        Arc::new(Self { any, names: names.iter().map(|name| canonical(name)).collect() })
    }

    fn has(&self, name: &str) -> bool {
        self.any || self.names.iter().any(|known| known == name)
    }

    fn is_empty(&self) -> bool {
        self.names.is_empty()
    }
}

/// Allows all.
const ANY: &str = "*";

impl OriginRules {
    /// Of the clients' listener.
    pub(crate) fn of_clients(
        allowed_origins: &[String],
        allowed_hosts: &[String],
        address: Option<SocketAddr>,
    ) -> Self {
        Self {
            address,
            origins: NameList::new(allowed_origins, canonical_origin),
            hosts: NameList::new(allowed_hosts, canonical_host),
            operators: false,
        }
    }

    /// Of listeners that are no page's business.
    pub(crate) fn of_operators(address: Option<SocketAddr>) -> Self {
        Self { address, origins: Arc::default(), hosts: Arc::default(), operators: true }
    }

    /// Is it taken from whom it comes?
    ///
    /// # Errors
    ///
    /// The origin or the name that is not allowed.
    pub(crate) fn check(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), Foreign> {
        // No browser leaves out the name; HTTP/1.0 had none.
        let unnamed = self.operators && !headers.contains_key(header::HOST);
        let absolute = uri.authority().map(|authority| authority.as_str().as_bytes());
        let names = headers.get_all(header::HOST).iter().map(HeaderValue::as_bytes);
        let mut names = names.chain(absolute).chain(unnamed.then_some(&b""[..]));
        if let Some(host) = names.find(|host| !self.is_called(host)) {
            return Err(Foreign::Host(told(host)));
        }
        let mut origins = headers.get_all(header::ORIGIN).iter();
        match origins.find(|origin| !self.allows(origin, headers)) {
            Some(origin) => Err(Foreign::Origin(told(origin.as_bytes()))),
            None => Ok(()),
        }
    }

    /// What browsers are told where pages of other origins may ask.
    pub(crate) fn cors(&self) -> Option<CorsLayer> {
        /// As long as Chrome believes it; within it an origin that is allowed no longer asks in vain.
        const MAX_AGE: Duration = Duration::from_secs(7200);

        let origins = Arc::clone(&self.origins);
        let allowed = match (origins.is_empty(), origins.any) {
            (true, _) => return None,
            (false, true) => AllowOrigin::any(),
            (false, false) => AllowOrigin::predicate(move |origin: &HeaderValue, _: &Parts| {
                origin.to_str().is_ok_and(|origin| origins.has(&canonical_origin(origin)))
            }),
        };
        let layer = CorsLayer::new()
            .allow_origin(allowed)
            .allow_methods([Method::GET, Method::POST, Method::DELETE])
            // Clients send headers of their own making (`x-stainless-...`), and none does harm.
            .allow_headers(AllowHeaders::mirror_request())
            // Policies add some whose names nobody knows here.
            .expose_headers(ExposeHeaders::any())
            .allow_private_network(true)
            .max_age(MAX_AGE);
        Some(layer)
    }

    fn allows(&self, origin: &HeaderValue, headers: &HeaderMap) -> bool {
        let Ok(origin) = origin.to_str() else { return false };
        let origin = canonical_origin(origin);
        if self.origins.has(&origin) {
            return true;
        }
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
        // A page that came from here, by way of a proxy.
        !self.operators && host.is_some_and(|host| is_of_host(&origin, host))
    }

    /// Is this a name of ours? The port may be that of a tunnel.
    fn is_called(&self, host: &[u8]) -> bool {
        let alone = self.address.is_some_and(|address| is_loopback(address.ip()));
        if self.hosts.any || (self.hosts.is_empty() && !alone) {
            return true;
        }
        let host = std::str::from_utf8(host).ok().and_then(|host| host.parse::<Authority>().ok());
        let Some(host) = host.filter(|host| !host.as_str().contains('@')) else { return false };
        let name = canonical_host(host.host());
        stands_for_itself(&name) || self.hosts.has(&name)
    }
}

/// What a client wrote, for the log and for itself.
fn told(name: &[u8]) -> String {
    without_login(&String::from_utf8_lossy(name))
}

/// Is it what nobody's name server decides about: an address, or this machine's own name? Through a
/// tunnel or by way of other machines' addresses a listener may be reached by any of them.
fn stands_for_itself(name: &str) -> bool {
    let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    name == "localhost" || name.ends_with(".localhost") || bare.parse::<IpAddr>().is_ok()
}

fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

/// In lower case, and without the dot that a full name may end with.
fn canonical_host(host: &str) -> String {
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}

/// In lower case, and without the port that its scheme has anyway.
fn canonical_origin(origin: &str) -> String {
    let origin = origin.to_ascii_lowercase();
    for (scheme, port) in [("http://", ":80"), ("https://", ":443")] {
        if let Some(short) = origin.strip_suffix(port)
            && short.starts_with(scheme)
        {
            return short.to_owned();
        }
    }
    origin
}

/// Is the page of this origin from the host that it asks?
fn is_of_host(origin: &str, host: &str) -> bool {
    let Some((scheme, of_page)) = origin.split_once("://") else { return false };
    let of_host = canonical_origin(&format!("{scheme}://{host}"));
    of_host.strip_prefix(scheme).and_then(|rest| rest.strip_prefix("://")) == Some(of_page)
}

/// What is wrong with `server.allowed_origins`, as relation and value.
///
/// `null` is none: it is what pages say that hide where they are from, and any page can.
pub(crate) fn origin_problem(origin: &str) -> Option<String> {
    let is_origin = origin.split_once("://").is_some_and(|(scheme, rest)| {
        let authority = rest.parse::<Authority>().ok();
        // A port that is no number of 16 bits is read as part of no host.
        let is_place = authority.is_some_and(|it| {
            let port = it.port_u16().map_or(0, |port| format!(":{port}").len());
            !it.host().is_empty() && it.host().len() + port == rest.len()
        });
        is_origin_scheme(scheme) && is_place && !rest.contains(['*', '@'])
    });
    (!is_origin && origin != ANY).then(|| {
        format!(
            "must have origins such as \"https://chat.example\" (http, https or an application's \
             own scheme, a host and, if it is not the usual one, a port; nothing behind), or \"*\" \
             for all, got {}",
            quoted(origin)
        )
    })
}

/// Are there pages of this scheme that ask servers? Of those that every browser knows there are of
/// `http` and `https` alone; an application or a browser's extension may have one of its own, such
/// as `tauri` or `chrome-extension`.
fn is_origin_scheme(scheme: &str) -> bool {
    const NO_PAGES: [&str; 8] = ["ftp", "file", "ws", "wss", "data", "blob", "about", "javascript"];

    let mut letters = scheme.chars();
    letters.next().is_some_and(|first| first.is_ascii_alphabetic())
        && letters.all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))
        && !NO_PAGES.iter().any(|known| scheme.eq_ignore_ascii_case(known))
}

/// What is wrong with `server.allowed_hosts`, as relation and value.
pub(crate) fn host_problem(host: &str) -> Option<String> {
    let authority = host.parse::<Authority>().ok();
    let is_name =
        authority.is_some_and(|authority| authority.host() == host) && !host.contains(['*', '@']);
    (!is_name && host != ANY).then(|| {
        format!(
            "must have names such as \"llm.example\" (no scheme, no port), or \"*\" for all, got {}",
            quoted(host)
        )
    })
}

/// What an operator wrote, unless it has a login in it.
fn quoted(text: &str) -> String {
    if text.contains('@') { "a text with a login".to_owned() } else { format!("{text:?}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_clients(origins: &[&str], hosts: &[&str], address: Option<SocketAddr>) -> OriginRules {
        let owned = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        OriginRules::of_clients(&owned(origins), &owned(hosts), address)
    }

    fn checked(rules: &OriginRules, story: &str) -> Option<Foreign> {
        let (host, origin) = story.split_once(' ').expect("host origin");
        let mut headers = HeaderMap::new();
        for (name, value) in [(header::HOST, host), (header::ORIGIN, origin)] {
            if value != "-" {
                headers.insert(name, value.parse().expect("a header"));
            }
        }
        rules.check(&Uri::from_static("/"), &headers).err()
    }

    fn host(name: &str) -> Option<Foreign> {
        Some(Foreign::Host(name.into()))
    }

    fn origin(name: &str) -> Option<Foreign> {
        Some(Foreign::Origin(name.into()))
    }

    fn at(address: &str) -> Option<SocketAddr> {
        Some(address.parse().expect("an address"))
    }

    #[test]
    fn on_loopback_only_its_own_names_and_no_pages_are_taken() {
        let rules = of_clients(&[], &[], at("127.0.0.1:8080"));
        for story in [
            "localhost:8080 -",
            "LOCALHOST -",
            "localhost. -",
            "127.0.0.1:9 -",
            "[::1]:8080 -",
            "- -",
            "localhost:8080 http://localhost:8080",
        ] {
            assert_eq!(checked(&rules, story), None, "{story}");
        }
        for name in [
            "evil.example:8080",
            "localhost.evil.example",
            "evillocalhost",
            "10.0.0.5.evil.example",
            "1.2.3",
            "x@localhost",
            "x@10.0.0.5",
        ] {
            assert_eq!(checked(&rules, &format!("{name} -")), host(&without_login(name)));
        }
        for name in ["https://evil.example", "null", "http://localhost:3000", "https://localhost"] {
            assert_eq!(checked(&rules, &format!("localhost:8080 {name}")), origin(name));
        }
        let absolute = Uri::from_static("http://evil.example/v1/models");
        let said = rules.check(&absolute, &HeaderMap::new()).err();
        assert_eq!(said, host("evil.example"));
    }

    #[test]
    fn an_address_and_what_is_under_localhost_are_names_of_it_wherever_it_listens() {
        for rules in [
            of_clients(&[], &[], at("127.0.0.1:8080")),
            of_clients(&[], &["llm.example"], at("0.0.0.0:8080")),
            OriginRules::of_operators(at("[::1]:8081")),
        ] {
            for name in [
                "127.0.0.2",
                "10.0.0.5:8080",
                "[::1]:8080",
                "[fd00::5]",
                "[::ffff:10.0.0.5]:80",
                "llm.localhost:8080",
                "a.b.LOCALHOST.",
            ] {
                assert_eq!(checked(&rules, &format!("{name} -")), None, "{name}");
            }
            assert_eq!(checked(&rules, "evil.example -"), host("evil.example"));
        }
    }

    #[test]
    fn where_others_reach_it_names_are_checked_only_if_some_are_set() {
        let open = of_clients(&[], &[], at("0.0.0.0:8080"));
        assert_eq!(checked(&open, "llm.example -"), None);
        assert_eq!(checked(&open, "llm.example https://llm.example"), None);
        assert_eq!(
            checked(&open, "llm.example https://evil.example"),
            origin("https://evil.example")
        );
        let named = of_clients(&[], &["LLM.example"], at("0.0.0.0:8080"));
        assert_eq!(checked(&named, "llm.EXAMPLE:443 -"), None);
        assert_eq!(checked(&named, "localhost:8080 -"), None);
        assert_eq!(checked(&named, "evil.example -"), host("evil.example"));
    }

    #[test]
    fn what_is_allowed_is_taken_and_nothing_like_it() {
        let rules =
            of_clients(&["https://Chat.example:443"], &["llm.example"], at("127.0.0.1:8080"));
        assert_eq!(checked(&rules, "llm.example https://chat.example"), None);
        for name in
            ["http://chat.example", "https://chat.example:8443", "https://chat.example.evil"]
        {
            assert_eq!(checked(&rules, &format!("localhost {name}")), origin(name));
        }
        let all = of_clients(&["*"], &["*"], at("127.0.0.1:8080"));
        assert_eq!(checked(&all, "evil.example null"), None);
    }

    #[test]
    fn an_operators_listener_takes_no_page_at_all() {
        let rules = OriginRules::of_operators(at("127.0.0.1:8081"));
        let own = "http://localhost:8081";
        assert_eq!(checked(&rules, &format!("localhost:8081 {own}")), origin(own));
    }

    #[test]
    fn what_cannot_be_an_origin_or_a_name_is_said() {
        for why in [host_problem("u@a"), origin_problem("http://u:p@a")] {
            assert!(why.is_some_and(|why| why.ends_with("got a text with a login")));
        }
        for good in [
            "*",
            "https://a.example",
            "http://localhost:3000",
            "tauri://localhost",
            "http://[::1]:80",
        ] {
            assert_eq!(origin_problem(good), None);
        }
        for bad in [
            "",
            "a.example",
            "https://",
            "https://a/",
            "https://*.example",
            "null",
            "ftp://x",
            "FILE://x",
            "ws://x",
            "://x",
            "a b://x",
            "https://a:99999",
            "https://a:",
        ] {
            assert!(origin_problem(bad).is_some_and(|why| why.contains(bad)), "{bad}");
        }
        for good in ["*", "a.example", "10.0.0.1", "[::1]"] {
            assert_eq!(host_problem(good), None, "{good}");
        }
        for bad in ["", "a.example:80", "https://a.example", "*.example", "a b"] {
            assert!(host_problem(bad).is_some_and(|why| why.contains(bad)), "{bad}");
        }
    }
}
