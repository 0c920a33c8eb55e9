//! A part of a request's path, whatever bytes it has.

use std::convert::Infallible;

use axum::extract::{FromRequestParts, Path};
use axum::http::request::Parts;

/// A part of a path, such as an id. One that does not decode to text is taken as it is written: it
/// is nobody's.
#[derive(Debug)]
pub(crate) struct PathParam(pub(crate) String);

impl<S: Send + Sync> FromRequestParts<S> for PathParam {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Infallible> {
        let decoded = Path::<String>::from_request_parts(parts, state).await;
        Ok(Self(decoded.map_or_else(|_| as_written(parts), |Path(part)| part)))
    }
}

/// The part of the path that stands where its route has a name.
fn as_written(parts: &Parts) -> String {
    let route = parts.extensions.get::<axum::extract::MatchedPath>();
    let (before, after) = route
        .and_then(|route| {
            let (before, rest) = route.as_str().split_once('{')?;
            Some((before, rest.split_once('}')?.1))
        })
        .unwrap_or_default();
    let path = parts.uri.path();
    let part = path.strip_prefix(before).unwrap_or(path);
    part.strip_suffix(after).unwrap_or(part).to_owned()
}
