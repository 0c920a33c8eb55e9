//! Addresses to listen on, as an operator writes them: `127.0.0.1:8080`, `[::1]:8080`,
//! `localhost:8080`.
//!
//! # Not here
//!
//! No name but `localhost` is looked up: what it stands for may change between the check of a
//! configuration and the start, and it may stand for an address that everyone reaches.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::de::{Deserializer, Error, Visitor};

/// Reads an address and port.
pub(crate) fn address<'de, D: Deserializer<'de>>(from: D) -> Result<SocketAddr, D::Error> {
    from.deserialize_str(AddressVisitor)
}

/// As [`address`], where there may be none.
pub(crate) fn optional_address<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<SocketAddr>, D::Error> {
    from.deserialize_option(OptionalVisitor)
}

struct AddressVisitor;

impl Visitor<'_> for AddressVisitor {
    type Value = SocketAddr;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an address and a port, such as \"127.0.0.1:8080\"")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<SocketAddr, E> {
        parse(text).map_err(|why| match text.contains('@') {
            // What stands before that may be a secret.
            true => E::custom(format!("it {why}")),
            false => E::custom(format!("{text:?} {why}")),
        })
    }
}

struct OptionalVisitor;

impl<'de> Visitor<'de> for OptionalVisitor {
    type Value = Option<SocketAddr>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        AddressVisitor.expecting(f)
    }

    fn visit_none<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_some<D: Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        address(from).map(Some)
    }
}

/// What to write instead continues a sentence that begins with the text.
fn parse(text: &str) -> Result<SocketAddr, String> {
    let text = text.trim();
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    if let Some((_, rest)) = text.split_once("://") {
        // A login in front of it may be a secret, and has no place here.
        let rest = rest.rsplit_once('@').map_or(rest, |(_, host)| host).trim_end_matches('/');
        return Err(format!("is a URL: write what stands behind the scheme, {rest:?}"));
    }
    if text.contains('@') {
        return Err(
            "has a login in it: write an address and a port, such as \"127.0.0.1:8080\"".into()
        );
    }
    if text.starts_with('/') || text.starts_with("unix:") {
        return Err("is a path: this host listens on TCP, such as \"127.0.0.1:8080\"".into());
    }
    if let Some(why) = without_port(text) {
        return Err(why);
    }
    let (host, port) = text.rsplit_once(':').unwrap_or(("", text));
    let Ok(number) = port.parse::<u16>() else {
        return Err(format!(
            "has no port from 0 to 65535 at its end: write an address and a port, such as {:?}",
            format!("{}:8080", if host.is_empty() { "127.0.0.1" } else { host })
        ));
    };
    match host {
        name if name.eq_ignore_ascii_case("localhost") => Ok((Ipv4Addr::LOCALHOST, number).into()),
        "" | "*" => Err(format!(
            "does not say on which addresses: write \"127.0.0.1:{port}\" for this machine alone, or \
             \"0.0.0.0:{port}\" for all addresses that it has"
        )),
        name => Err(format!(
            "begins with {name:?}, which is no IP address, and no name but localhost is looked up: \
             write \"127.0.0.1:{port}\" for this machine alone, \"0.0.0.0:{port}\" for all addresses \
             that it has, or one of them"
        )),
    }
}

/// What is wrong with an address that has no port, or whose port cannot be told from it.
fn without_port(text: &str) -> Option<String> {
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    if text.is_empty() {
        return Some("is empty: write an address and a port, such as \"127.0.0.1:8080\"".into());
    }
    let example = match bare.parse::<IpAddr>() {
        Ok(IpAddr::V6(_)) if !text.starts_with('[') && ends_with_port(text) => {
            let (address, port) = text.rsplit_once(':')?;
            return Some(format!(
                "leaves open where its port begins: write brackets round an IPv6 address, \
                 \"[{address}]:{port}\""
            ));
        }
        Ok(address) => SocketAddr::new(address, 8080).to_string(),
        Err(_) if text.eq_ignore_ascii_case("localhost") => "localhost:8080".into(),
        Err(_) => return None,
    };
    Some(format!("has no port: write one behind it, such as {example:?}"))
}

/// Could the end of this IPv6 address have been meant as a port? `::1:8080`, but not `::1`.
fn ends_with_port(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(address, port)| {
        address.parse::<Ipv6Addr>().is_ok() && port.parse::<u16>().is_ok()
    })
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn an_address_and_localhost_are_read() {
        for (text, address) in [
            ("127.0.0.1:8185", "127.0.0.1:8185"),
            (" 0.0.0.0:0 ", "0.0.0.0:0"),
            ("[::1]:80", "[::1]:80"),
            ("localhost:8185", "127.0.0.1:8185"),
            ("LocalHost:1", "127.0.0.1:1"),
        ] {
            assert_eq!(parse(text).map(|read| read.to_string()).as_deref(), Ok(address), "{text}");
        }
    }

    #[test]
    fn what_is_no_address_says_what_to_write() {
        let told: String = [
            ":8185",
            "8185",
            "*:8185",
            "localhost",
            "127.0.0.1",
            "127.0.0.1:",
            "127.0.0.1:70000",
            "127.0.0.1:http",
            "1.2.3:80",
            "gpu-box:8185",
            "::1",
            "[::1]",
            "::1:8185",
            "http://127.0.0.1:8185/",
            "redis://:s3cret@cache",
            "me:s3cret@cache",
            "unix:/run/interlock",
            "",
            "nonsense",
        ]
        .iter()
        .map(|text| format!("{text:?} {}\n", parse(text).expect_err("no address")))
        .collect();
        expect![[r#"
            ":8185" does not say on which addresses: write "127.0.0.1:8185" for this machine alone, or "0.0.0.0:8185" for all addresses that it has
            "8185" does not say on which addresses: write "127.0.0.1:8185" for this machine alone, or "0.0.0.0:8185" for all addresses that it has
            "*:8185" does not say on which addresses: write "127.0.0.1:8185" for this machine alone, or "0.0.0.0:8185" for all addresses that it has
            "localhost" has no port: write one behind it, such as "localhost:8080"
            "127.0.0.1" has no port: write one behind it, such as "127.0.0.1:8080"
            "127.0.0.1:" has no port from 0 to 65535 at its end: write an address and a port, such as "127.0.0.1:8080"
            "127.0.0.1:70000" has no port from 0 to 65535 at its end: write an address and a port, such as "127.0.0.1:8080"
            "127.0.0.1:http" has no port from 0 to 65535 at its end: write an address and a port, such as "127.0.0.1:8080"
            "1.2.3:80" begins with "1.2.3", which is no IP address, and no name but localhost is looked up: write "127.0.0.1:80" for this machine alone, "0.0.0.0:80" for all addresses that it has, or one of them
            "gpu-box:8185" begins with "gpu-box", which is no IP address, and no name but localhost is looked up: write "127.0.0.1:8185" for this machine alone, "0.0.0.0:8185" for all addresses that it has, or one of them
            "::1" has no port: write one behind it, such as "[::1]:8080"
            "[::1]" has no port: write one behind it, such as "[::1]:8080"
            "::1:8185" leaves open where its port begins: write brackets round an IPv6 address, "[::1]:8185"
            "http://127.0.0.1:8185/" is a URL: write what stands behind the scheme, "127.0.0.1:8185"
            "redis://:s3cret@cache" is a URL: write what stands behind the scheme, "cache"
            "me:s3cret@cache" has a login in it: write an address and a port, such as "127.0.0.1:8080"
            "unix:/run/interlock" is a path: this host listens on TCP, such as "127.0.0.1:8080"
            "" is empty: write an address and a port, such as "127.0.0.1:8080"
            "nonsense" has no port from 0 to 65535 at its end: write an address and a port, such as "127.0.0.1:8080"
        "#]].assert_eq(&told);
    }
}
