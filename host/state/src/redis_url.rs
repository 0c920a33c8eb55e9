//! Where Redis is, as an operator writes it: with a login that nobody else is to read.
//!
//! # Invariants
//!
//! - No message about a URL quotes any part of it: in one that cannot be read nobody knows which part
//!   is the password.

use std::fmt;
use std::str::FromStr;

use ::redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo};
use interlock_request::Secret;

/// `redis://[user:password@]host[:port][/database]`, or `redis+unix:///path`. Shown without its login.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RedisUrl {
    url: Secret,
    shown: String,
}

/// Why a text is not the URL of a Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadRedisUrl {
    /// The URL has another scheme.
    #[error("it must be \"memory\", or begin with redis:// or redis+unix://")]
    Scheme,
    /// The URL asks for TLS.
    #[error("rediss:// is encrypted, which is not supported; it must begin with redis://")]
    Encrypted,
    /// The URL names no host.
    #[error(
        "it names no host: redis://[user:password@]host[:port][/database]; in a user or password, \
         write %2F for /, %3F for ?, %23 for # and %40 for @"
    )]
    Host,
    /// The port is no number from 1 to 65535.
    #[error(
        "its port is no number from 1 to 65535; in a user or password, write %2F for /, %3F for ?, \
         %23 for # and %40 for @"
    )]
    Port,
    /// The database is no number.
    #[error("its database must be a number, as in redis://host/0")]
    Database,
    /// Something behind the host and the database, where a password may have ended up.
    #[error(
        "nothing may follow the database; in a user or password, write %2F for /, %3F for ?, %23 \
         for # and %40 for @"
    )]
    Rest,
    /// Anything else is wrong with the URL.
    #[error("it is no URL: redis://[user:password@]host[:port][/database]")]
    Other,
}

impl RedisUrl {
    /// The connection settings for the Redis client.
    pub(crate) fn info(&self) -> ConnectionInfo {
        self.url.reveal().into_connection_info().expect("it was read when this was made")
    }
}

impl FromStr for RedisUrl {
    type Err = BadRedisUrl;

    fn from_str(text: &str) -> Result<Self, BadRedisUrl> {
        let is = |scheme: &str| text.starts_with(scheme);
        match () {
            () if is("rediss://") => return Err(BadRedisUrl::Encrypted),
            () if is("redis://") => well_formed(&text["redis://".len()..])?,
            () if is("redis+unix://") => {}
            () => return Err(BadRedisUrl::Scheme),
        }
        // The client's own words may quote what they are about.
        let info = text.into_connection_info().map_err(|_| BadRedisUrl::Other)?;
        Ok(Self { url: text.into(), shown: shown(&info) })
    }
}

/// Looks at what stands behind the scheme.
fn well_formed(rest: &str) -> Result<(), BadRedisUrl> {
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let place = authority.rsplit_once('@').map_or(authority, |(_, place)| place);
    // A name in brackets has colons of its own.
    let (host, port) = match place.rfind(']') {
        Some(bracket) => place.split_at(bracket + 1),
        None => place.split_at(place.find(':').unwrap_or(place.len())),
    };
    if host.is_empty() {
        return Err(BadRedisUrl::Host);
    }
    let number = port.strip_prefix(':').and_then(|port| port.parse::<u16>().ok());
    if !port.is_empty() && number.is_none_or(|port| port == 0) {
        return Err(BadRedisUrl::Port);
    }
    let path = path.strip_prefix('/').unwrap_or(path);
    if path.contains(['@', '?', '#', '/']) {
        return Err(BadRedisUrl::Rest);
    }
    let database = path.is_empty() || path.bytes().all(|byte| byte.is_ascii_digit());
    if database { Ok(()) } else { Err(BadRedisUrl::Database) }
}

/// Made of the parts that the client found, so that a login can only be where it belongs.
fn shown(info: &ConnectionInfo) -> String {
    let settings = info.redis_settings();
    let login = settings.username().is_some() || settings.password().is_some();
    let (login, database) = (if login { "***@" } else { "" }, settings.db());
    match info.addr() {
        ConnectionAddr::Unix(path) => format!("redis+unix://{login}{}", path.display()),
        ConnectionAddr::Tcp(host, port) => {
            let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
            let database = if database == 0 { String::new() } else { format!("/{database}") };
            format!("redis://{login}{host}:{port}{database}")
        }
        _ => "redis".to_owned(),
    }
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_shown_without_its_login_however_it_is_written() {
        for (url, shown) in [
            ("redis://cache", "redis://cache:6379"),
            ("redis://cache:6380/2", "redis://cache:6380/2"),
            ("redis://cache/", "redis://cache:6379"),
            ("redis://[::1]:6380", "redis://[::1]:6380"),
            ("redis://s3cret@cache", "redis://***@cache:6379"),
            ("redis://:s3cret@cache", "redis://***@cache:6379"),
            ("redis://s3cret:s3cret@cache:1/3", "redis://***@cache:1/3"),
            ("redis://me:s3cret@s3cret@cache", "redis://***@cache:6379"),
            ("redis://me:s3cret%2F%40@cache", "redis://***@cache:6379"),
            ("redis+unix:///run/redis.sock", "redis+unix:///run/redis.sock"),
            ("redis+unix:///run/r?pass=s3cret&user=s3cret", "redis+unix://***@/run/r"),
        ] {
            let url: RedisUrl = url.parse().expect(url);
            assert_eq!(url.to_string(), shown);
            assert!(!format!("{url:?}").contains("s3cret"), "{url:?}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_and_never_quoted() {
        for (url, why) in [
            ("", BadRedisUrl::Scheme),
            ("s3cret", BadRedisUrl::Scheme),
            ("cache:6379", BadRedisUrl::Scheme),
            ("http://me:s3cret@cache", BadRedisUrl::Scheme),
            ("redis:/me:s3cret@cache", BadRedisUrl::Scheme),
            ("REDIS//:s3cret@cache", BadRedisUrl::Scheme),
            ("rediss://:s3cret@cache", BadRedisUrl::Encrypted),
            ("redis://", BadRedisUrl::Host),
            ("redis:///", BadRedisUrl::Host),
            ("redis:///s3cret@cache", BadRedisUrl::Host),
            ("redis://me:s3cret@", BadRedisUrl::Host),
            ("redis://:s3c/ret@cache", BadRedisUrl::Host),
            ("redis://me:s3cret/@cache", BadRedisUrl::Port),
            ("redis://me:s3?cret@cache", BadRedisUrl::Port),
            ("redis://me:s3#cret@cache", BadRedisUrl::Port),
            ("redis://cache:s3cret", BadRedisUrl::Port),
            ("redis://cache:0", BadRedisUrl::Port),
            ("redis://cache:99999", BadRedisUrl::Port),
            ("redis://cache:", BadRedisUrl::Port),
            // Behind a bracket without a colon, and no letter of one byte.
            ("redis://[::1]6379", BadRedisUrl::Port),
            ("redis://[::1]é", BadRedisUrl::Port),
            ("redis://me:a]és3cret", BadRedisUrl::Port),
            ("redis://me:123/s3cret@cache", BadRedisUrl::Rest),
            ("redis://me:123?s3cret@cache", BadRedisUrl::Rest),
            ("redis://me:123/4#s3cret@cache", BadRedisUrl::Rest),
            ("redis://cache/?password=s3cret", BadRedisUrl::Rest),
            ("redis://cache/s3cret", BadRedisUrl::Database),
            ("redis://me:s3cret@ca che", BadRedisUrl::Other),
        ] {
            let error = url.parse::<RedisUrl>().expect_err(url);
            assert_eq!(error, why, "{url}");
            assert!(!error.to_string().contains("s3c"), "{error}");
        }
    }
}
