//! Why a request got no whole answer.

use std::collections::BTreeMap;
use std::time::Duration;

use hyper::StatusCode;
use serde::{Deserialize, Serialize};

/// Why a request got no whole answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestFailure {
    /// The connection could not be opened.
    #[error("cannot connect: {0}")]
    Connect(String),
    /// The server answered with a status other than 200.
    #[error("status {}: {message}", status.as_u16())]
    Status {
        /// The HTTP status of the answer.
        status: StatusCode,
        /// The error message in the body, shortened.
        message: String,
    },
    /// The stream carried an error.
    #[error("error in the stream: {0}")]
    InStream(String),
    /// The answer ended before it was complete.
    #[error("cut off: {0}")]
    Cut(String),
    /// The answer is not what the API promises.
    #[error("not understood: {0}")]
    Nonsense(String),
    /// The answer was not complete within the plan's timeout.
    #[error("timed out after {0:?}")]
    Timeout(Duration),
}

impl RequestFailure {
    /// The kind that a report counts the failure under. There are few kinds, whatever servers say.
    fn kind(&self) -> String {
        match self {
            Self::Connect(_) => "cannot connect".to_owned(),
            Self::Status { status, .. } => format!("status {}", status.as_u16()),
            Self::InStream(_) => "error in the stream".to_owned(),
            Self::Cut(_) => "cut off".to_owned(),
            Self::Nonsense(_) => "not understood".to_owned(),
            Self::Timeout(_) => "timed out".to_owned(),
        }
    }

    /// Whether the server refused the request for now, which a storm expects and a measurement does not.
    pub(crate) fn is_refusal(&self) -> bool {
        let refusals = [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE];
        matches!(self, Self::Status { status, .. } if refusals.contains(status))
    }
}

/// Failures by kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Failures(BTreeMap<String, Failed>);

/// Failures of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// The number of failures.
    pub count: u64,
    /// The first failure, as text.
    pub first: String,
}

impl Failures {
    pub(crate) fn add(&mut self, failure: &RequestFailure) {
        let new = || Failed { count: 0, first: failure.to_string() };
        self.0.entry(failure.kind()).or_insert_with(new).count += 1;
    }

    pub(crate) fn merge(&mut self, others: &Self) {
        for (kind, other) in &others.0 {
            let new = || Failed { count: 0, first: other.first.clone() };
            self.0.entry(kind.clone()).or_insert_with(new).count += other.count;
        }
    }

    /// The number of failures of all kinds.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.values().map(|failed| failed.count).sum()
    }

    /// The failures of each kind, by the kind's name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Failed)> {
        self.0.iter().map(|(kind, failed)| (kind.as_str(), failed))
    }
}
