//! The usual spellings of paths.
//!
//! Clients are told a base URL, and put their paths behind it: with `/v1` or without, with a slash
//! between or two, and some with one at the end. All of these are the same path here, so that a
//! client that works with other servers works with this one.

use std::borrow::Cow;

use axum::extract::Request;
use axum::http::Uri;
use axum::http::uri::PathAndQuery;

/// What clients ask for under `/v1`, and whose base URL may lack it.
const UNDER_V1: [&str; 4] = ["/chat/completions", "/completions", "/responses", "/models"];

/// The path that a spelling of it stands for; itself if it is no spelling of any other.
pub(crate) fn canonical(path: &str) -> Cow<'_, str> {
    let path = with_single_slashes(path);
    match &*path {
        // Of vLLM and llama.cpp: may it be sent requests?
        "/health" | "/v1/health" => "/health/ready".into(),
        short if UNDER_V1.iter().any(|known| is_under(short, known)) => {
            format!("/v1{short}").into()
        }
        _ => path,
    }
}

/// Does it ask for health or metrics, under whatever name?
pub(crate) fn watches(path: &str) -> bool {
    let path = canonical(path);
    path.starts_with("/health/") || path == "/metrics"
}

/// Routes a request by the path that its own stands for.
pub(crate) async fn rewrite(mut request: Request) -> Request {
    let path = canonical(request.uri().path());
    if path != request.uri().path()
        && let Some(uri) = with_path(request.uri(), path.into_owned())
    {
        *request.uri_mut() = uri;
    }
    request
}

fn with_path(uri: &Uri, mut path: String) -> Option<Uri> {
    if let Some(query) = uri.query() {
        path.push('?');
        path.push_str(query);
    }
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(PathAndQuery::try_from(path).ok()?);
    Uri::from_parts(parts).ok()
}

/// Each run of slashes as one, and none at the end.
fn with_single_slashes(path: &str) -> Cow<'_, str> {
    if path == "/" || !(path.contains("//") || path.ends_with('/')) {
        return path.into();
    }
    let names: Vec<_> = path.split('/').filter(|name| !name.is_empty()).collect();
    format!("/{}", names.join("/")).into()
}

/// Is it this path, or one below it?
fn is_under(path: &str, known: &str) -> bool {
    path.strip_prefix(known).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_usual_spelling_stands_for_the_one_path() {
        for (canonical_path, spellings) in [
            (
                "/v1/chat/completions",
                &["/chat/completions", "/v1/chat/completions/", "//v1//chat/completions"][..],
            ),
            ("/v1/completions", &["/completions", "/completions/", "/v1//completions"]),
            ("/v1/responses", &["/responses", "//responses"]),
            ("/v1/responses/resp_1/cancel", &["/responses/resp_1/cancel/"]),
            ("/v1/models", &["/models", "/models/", "/v1/models/"]),
            ("/v1/models/a%2Fb", &["/models/a%2Fb"]),
            ("/health/ready", &["/health", "/health/", "/v1/health", "//health//ready"]),
            ("/", &["/", "//"]),
        ] {
            assert_eq!(canonical(canonical_path), canonical_path);
            for spelling in spellings {
                assert_eq!(canonical(spelling), canonical_path, "{spelling}");
            }
        }
    }

    /// Their connections are served when there are too many, before any path is rewritten.
    #[test]
    fn who_watches_the_host_is_known_by_every_spelling() {
        for path in ["/health/live", "/health", "/v1/health/", "//metrics"] {
            assert!(watches(path), "{path}");
        }
        assert!(!watches("/v1/models/health"));
    }

    #[test]
    fn what_only_looks_alike_stands_for_itself() {
        for path in ["/completion", "/modelsx", "/v2/models", "/v1/v1/models", "/metrics", "/x"] {
            assert!(matches!(canonical(path), Cow::Borrowed(_)), "{path}");
        }
    }
}
