//! What an operator lets a policy reach, in the words of the configuration.

use std::fmt;
use std::str::FromStr;

use interlock_request::without_login;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One thing that a policy may reach. Written as in `grants` of `[[policy]]` and in the `needs` of
/// a policy's descriptor.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub enum Grant {
    /// `state`: to remember.
    State,
    /// `metrics`: to count.
    Metrics,
    /// `headers:NAME`: to see a header of requests.
    Header(String),
    /// `content:read` or `content:read:/POINTER`: to read bodies, what lies below the pointer.
    Read(String),
    /// `content:write` or `content:write:/POINTER`: to change bodies.
    Write(String),
    /// `http:HOST:PORT`: to ask a service.
    Http(String, u16),
}

/// A grant that is none.
#[derive(Debug, thiserror::Error)]
#[error(
    "a grant is \"state\", \"metrics\", \"headers:NAME\", \"content:read\", \"content:write\" (either \
     with \":/POINTER\") or \"http:HOST:PORT\", got {0:?}"
)]
pub struct BadGrant(String);

impl Grant {
    /// Does this one allow all that the other does?
    pub fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Read(granted), Self::Read(asked))
            | (Self::Write(granted), Self::Write(asked)) => below(granted, asked),
            _ => self == other,
        }
    }
}

/// Is this pointer the granted one, or below it?
pub(crate) fn below(granted: &str, pointer: &str) -> bool {
    pointer.strip_prefix(granted).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The grants that are missing for these needs.
pub(crate) fn missing<'a>(
    needs: impl IntoIterator<Item = &'a Grant>,
    grants: &[Grant],
) -> Vec<Grant> {
    let mut missing: Vec<Grant> = needs
        .into_iter()
        .filter(|need| !grants.iter().any(|grant| grant.covers(need)))
        .cloned()
        .collect();
    missing.sort();
    missing.dedup();
    missing
}

/// The line of the configuration that gives these and those besides.
pub(crate) fn line(grants: &[Grant], besides: &[Grant]) -> String {
    let all: Vec<_> = grants.iter().chain(besides).map(|grant| format!("\"{grant}\"")).collect();
    format!("grants = [{}]", all.join(", "))
}

/// What is missing of what it imports and of what it says that it needs.
pub(crate) fn all_missing(imported: Vec<Grant>, needs: &[Grant], grants: &[Grant]) -> Vec<Grant> {
    let mut all = missing(needs, grants);
    // Where it says which part of a capability it needs, that is the better answer.
    all.extend(imported.into_iter().filter(|grant| {
        !needs.iter().any(|need| {
            matches!(
                (grant, need),
                (Grant::Read(_), Grant::Read(_) | Grant::Write(_))
                    | (Grant::Http(..), Grant::Http(..))
            )
        })
    }));
    all.sort();
    all.dedup();
    all
}

impl FromStr for Grant {
    type Err = BadGrant;

    fn from_str(text: &str) -> Result<Self, BadGrant> {
        let bad = || BadGrant(without_login(text));
        let pointer = |pointer: &str| {
            let holds = pointer.starts_with('/') && !pointer.ends_with('/');
            holds.then(|| pointer.to_owned()).ok_or_else(bad)
        };
        match text.split_once(':') {
            None if text == "state" => Ok(Self::State),
            None if text == "metrics" => Ok(Self::Metrics),
            Some(("headers", name)) => {
                let token = |byte: u8| {
                    byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte)
                };
                let holds = !name.is_empty() && name.bytes().all(token);
                holds.then(|| Self::Header(name.to_owned())).ok_or_else(bad)
            }
            Some(("content", "read")) => Ok(Self::Read(String::new())),
            Some(("content", "write")) => Ok(Self::Write(String::new())),
            Some(("content", what)) => match what.split_once(':') {
                Some(("read", at)) => pointer(at).map(Self::Read),
                Some(("write", at)) => pointer(at).map(Self::Write),
                _ => Err(bad()),
            },
            Some(("http", place)) => {
                let (host, port) = place.rsplit_once(':').ok_or_else(bad)?;
                // Only IPv6 addresses have colons: before a name, one would belong to a login.
                let others = if host.starts_with('[') && host.ends_with(']') { ":[]" } else { "" };
                let plain =
                    |c: char| c.is_ascii_alphanumeric() || "-._".contains(c) || others.contains(c);
                let port: u16 = port.parse().map_err(|_| bad())?;
                if host.is_empty() || !host.chars().all(plain) || port == 0 {
                    return Err(bad());
                }
                Ok(Self::Http(host.to_ascii_lowercase(), port))
            }
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let content = |f: &mut fmt::Formatter<'_>, what: &str, pointer: &str| {
            let colon = if pointer.is_empty() { "" } else { ":" };
            write!(f, "content:{what}{colon}{pointer}")
        };
        match self {
            Self::State => f.write_str("state"),
            Self::Metrics => f.write_str("metrics"),
            Self::Header(name) => write!(f, "headers:{name}"),
            Self::Read(pointer) => content(f, "read", pointer),
            Self::Write(pointer) => content(f, "write", pointer),
            Self::Http(host, port) => write!(f, "http:{host}:{port}"),
        }
    }
}

impl TryFrom<String> for Grant {
    type Error = BadGrant;

    fn try_from(text: String) -> Result<Self, BadGrant> {
        text.parse()
    }
}

impl From<Grant> for String {
    fn from(grant: Grant) -> Self {
        grant.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(text: &str) -> Grant {
        text.parse().expect(text)
    }

    #[test]
    fn a_grant_reads_as_it_is_written() {
        for text in [
            "state",
            "metrics",
            "headers:x-tenant",
            "content:read",
            "content:write:/temperature",
            "http:example.com:443",
            "http:[::1]:80",
        ] {
            assert_eq!(grant(text).to_string(), text);
        }
        for text in [
            "",
            "State",
            "headers:",
            "headers:X-Tenant",
            "content",
            "content:read:messages",
            "content:read:/",
            "http:example.com",
            "http::80",
            "http:a:0",
            "http:a b:80",
            "http:me:s3cret:80",
        ] {
            assert!(text.parse::<Grant>().is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn a_pointer_covers_what_is_below_it_and_nothing_beside() {
        let messages = grant("content:read:/messages");
        assert!(messages.covers(&grant("content:read:/messages/0/content")));
        assert!(!messages.covers(&grant("content:read:/messages_and_more")));
        assert!(!messages.covers(&grant("content:write:/messages")));
        assert!(!messages.covers(&grant("content:read")));
        assert!(grant("content:read").covers(&messages));
    }

    #[test]
    fn what_is_missing_is_named_once() {
        let grants = [grant("state")];
        let needs = [grant("metrics"), grant("state"), grant("metrics")];
        assert_eq!(missing(&needs, &grants), [grant("metrics")]);
        assert_eq!(line(&grants, &[grant("metrics")]), r#"grants = ["state", "metrics"]"#);
    }
}
