//! Why a policy decided as it did.

use std::sync::Arc;
use std::time::Duration;

/// One of a policy's reasons, by name: short, stable, `snake_case`, of a closed set. Shared with
/// the policy that gives it, so that handing it on copies nothing.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Deserialize, serde::Serialize)]
#[serde(transparent)]
pub struct Code(pub Arc<str>);

impl Default for Code {
    /// What a policy gives that has no reasons to tell apart.
    fn default() -> Self {
        Self(Arc::from("unspecified"))
    }
}

impl From<&str> for Code {
    fn from(code: &str) -> Self {
        Self(code.into())
    }
}

/// Why a request was turned away, for the client and for us.
#[derive(Debug, Clone, PartialEq, serde::Deserialize, serde::Serialize)]
pub struct Rejection {
    /// HTTP status, 400 to 599; the chain clamps what a policy says.
    pub status: u16,
    /// Machine-readable cause, and a sentence for the client.
    pub reason: Reason,
    /// When it makes sense to try again.
    pub retry_after: Option<Duration>,
    /// Headers of the answer.
    pub headers: Vec<(String, String)>,
}

/// A machine-readable cause with an optional sentence.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
pub struct Reason {
    /// The cause, of a closed set.
    pub code: Code,
    /// A sentence for the client.
    pub detail: Option<String>,
}
