//! A request's headers as policies see them, and what policies decided as a client sees it.

use axum::http::{HeaderMap, HeaderValue, header};
use interlock_policy_api::Headers;
use interlock_policy_chain::{DecisionRecord, PolicyChain};
use sha2::{Digest, Sha256};

/// Headers that some policy was granted, in the order in which they came. The map keeps it but for
/// one thing: what repeats a name stands right behind its first. A value that is no text is not
/// shown.
pub(super) fn seen_by_policies(chain: &PolicyChain, headers: &HeaderMap) -> Headers {
    let granted = chain.headers_seen();
    if granted.is_empty() {
        return Headers::default();
    }
    let text = |value: &HeaderValue| String::from_utf8(value.as_bytes().to_vec()).ok();
    let seen = headers
        .iter()
        .filter(|(name, _)| granted.contains(name.as_str()))
        .filter_map(|(name, value)| Some((name.to_string(), text(value)?)));
    Headers(seen.collect())
}

/// SHA-256 of the key that a client shows, in hex: policies tell keys apart and cannot leak them.
/// Empty when there is none.
pub(super) fn credential(headers: &HeaderMap) -> String {
    let bearer = || {
        let value = headers.get(header::AUTHORIZATION)?.as_bytes();
        let (scheme, token) = value.split_at_checked("bearer ".len())?;
        scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
    };
    let key = bearer().or_else(|| Some(headers.get("x-api-key")?.as_bytes()));
    match key {
        None | Some([]) => String::new(),
        Some(key) => Sha256::digest(key).iter().map(|byte| format!("{byte:02x}")).collect(),
    }
}

/// With this header a client asks for the trace, and gets it.
pub(super) const TRACE: &str = "x-policy-trace";

/// What the policies said, in the order in which they did.
pub(super) fn trace(said: &[DecisionRecord]) -> String {
    /// More is cut: proxies refuse long headers.
    const BYTES_MAX: usize = 4096;

    let mut trace = String::new();
    for said in said {
        let DecisionRecord { policy, version, phase, elapsed, .. } = said;
        let code = said.code().map_or(String::new(), |code| format!(" {}", code.0));
        let shadow = if said.shadow { " shadow" } else { "" };
        let (phase, decision, micros) = (phase.as_str(), said.label(), elapsed.as_micros());
        let one = format!("{phase} {policy}/{version} {decision}{code}{shadow} {micros}us");
        if trace.len() + one.len() > BYTES_MAX {
            break;
        }
        trace.push_str(if trace.is_empty() { "" } else { "; " });
        trace.push_str(&one);
    }
    trace
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credential_of(name: &str, value: &str) -> String {
        let mut headers = HeaderMap::new();
        let name = header::HeaderName::from_bytes(name.as_bytes()).expect("a name");
        headers.insert(name, HeaderValue::from_str(value).expect("a value"));
        credential(&headers)
    }

    #[test]
    fn a_key_is_known_by_its_hash_alone_however_it_is_shown() {
        let hash = "2c70e12b7a0646f92279f427c7b38e7334d8e5389cff167a1dc30e73f826b683";
        for (name, value) in [
            ("authorization", "Bearer key"),
            ("authorization", "bearer   key "),
            ("x-api-key", "key"),
        ] {
            assert_eq!(credential_of(name, value), hash, "{name}: {value}");
        }
        for (name, value) in
            [("authorization", "Basic key"), ("authorization", "Bearer "), ("x", "key")]
        {
            assert_eq!(credential_of(name, value), "", "{name}: {value}");
        }
    }
}
