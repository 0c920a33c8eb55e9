//! The query of an admin request. What is not known there would be passed over in silence, and the
//! request would do something else than was asked for.

use axum::http::{StatusCode, Uri};

use super::AdminError;

/// The parameters of a query, each of them known and given once.
#[derive(Debug)]
pub(super) struct Query(Vec<(&'static str, String)>);

impl Query {
    /// Reads the query of a request.
    ///
    /// # Errors
    ///
    /// When a name is not one of these, or there twice.
    pub(super) fn read(uri: &Uri, known: &'static [&'static str]) -> Result<Self, AdminError> {
        let mut found: Vec<(&'static str, String)> = vec![];
        for (name, value) in form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()) {
            let Some(known) = known.iter().copied().find(|known| *known == name) else {
                return Err(bad(format!("query parameter {name:?} is unknown; {}", takes(known))));
            };
            if found.iter().any(|(name, _)| *name == known) {
                return Err(bad(format!("query parameter {known:?} is there twice")));
            }
            found.push((known, value.into_owned()));
        }
        Ok(Self(found))
    }

    /// The value of one, if it is there.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(found, _)| *found == name).map(|(_, value)| value.as_str())
    }

    /// A parameter, parsed.
    ///
    /// # Errors
    ///
    /// When it is not one; `expected` says what it is.
    pub(super) fn parsed<T: std::str::FromStr>(
        &self,
        name: &str,
        expected: &str,
    ) -> Result<Option<T>, AdminError> {
        let read = |text: &str| {
            let read = text.parse();
            read.map_err(|_| bad(format!("query parameter {name:?} is {expected}, got {text:?}")))
        };
        self.get(name).map(read).transpose()
    }
}

/// What is wrong with a query.
pub(super) fn bad(message: String) -> AdminError {
    AdminError { status: StatusCode::BAD_REQUEST, code: "bad_query", message }
}

fn takes(known: &[&str]) -> String {
    match known {
        [] => "this endpoint takes none".to_owned(),
        known => format!("this endpoint takes {}", known.join(", ")),
    }
}
