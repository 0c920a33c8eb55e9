//! What an answer says of its connection: for how long it may be used again.
//!
//! Clients are told less than is kept to: one that sends its next request just before the time that
//! it was told is up finds the connection open.

use std::time::Duration;

use axum::http::{HeaderValue, Request, Response, Version, header};
use hyper::body::Body;

/// `Keep-Alive: timeout=...`
#[derive(Debug, Clone)]
pub(crate) struct KeepAlive(HeaderValue);

impl KeepAlive {
    /// For connections that are closed after being idle for so long; `None` where that is too short
    /// to promise anything.
    pub(crate) fn of(idle_timeout: Duration) -> Option<Self> {
        /// What a request may take on its way here.
        const MARGIN_MIN: Duration = Duration::from_secs(1);

        let margin = (idle_timeout / 16).max(MARGIN_MIN);
        let promised = idle_timeout.saturating_sub(margin).as_secs();
        let value = HeaderValue::from_str(&format!("timeout={promised}"));
        value.ok().filter(|_| promised > 0).map(Self)
    }

    /// Does who sends this expect to use its connection again?
    pub(crate) fn wanted<B>(request: &Request<B>) -> bool {
        let connection = request.headers().get_all(header::CONNECTION);
        let says = |wanted: &str| {
            let said = connection.iter().filter_map(|value| value.to_str().ok());
            said.flat_map(|value| value.split(','))
                .any(|one| one.trim().eq_ignore_ascii_case(wanted))
        };
        !says("close") && (request.version() > Version::HTTP_10 || says("keep-alive"))
    }

    /// Says so in an answer to a request of this version, unless it says that it is the last.
    pub(crate) fn say<B: Body>(self, version: Version, answer: &mut Response<B>) {
        if answer.headers().contains_key(header::CONNECTION) {
            return;
        }
        if version == Version::HTTP_10 && answer.body().size_hint().exact().is_none() {
            // Only the end of the connection tells where this one ends. hyper takes an answer in
            // that version to mean so, and would say `keep-alive` otherwise.
            *answer.version_mut() = version;
            return;
        }
        answer.headers_mut().insert("keep-alive", self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn less_is_promised_than_is_kept_to() {
        for (idle, promised) in [(1, None), (2, Some("timeout=1")), (75, Some("timeout=70"))] {
            let told = KeepAlive::of(Duration::from_secs(idle));
            assert_eq!(
                told.as_ref().map(|told| told.0.to_str().expect("text")),
                promised,
                "{idle}"
            );
        }
        assert!(KeepAlive::of(Duration::MAX).is_some());
    }

    #[test]
    fn who_closes_is_promised_nothing() {
        let wanted = |version, connection: &str| {
            let request = Request::builder().version(version).header("connection", connection);
            KeepAlive::wanted(&request.body(()).expect("a request"))
        };
        assert!(wanted(Version::HTTP_11, "") && !wanted(Version::HTTP_11, "te, Close"));
        assert!(wanted(Version::HTTP_10, "Keep-Alive") && !wanted(Version::HTTP_10, ""));
    }
}
