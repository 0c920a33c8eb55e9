//! What things are called.

use std::fmt;
use std::sync::Arc;

/// An index into a model's vocabulary.
pub type TokenId = u32;

/// The name a client uses for a model, such as `smollm2-135m-instruct`.
#[derive(
    Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Deserialize, serde::Serialize,
)]
#[serde(transparent)]
pub struct ModelId(Arc<str>);

impl ModelId {
    /// Takes the name as it is; what a valid reference looks like is the catalog's business.
    pub fn new(name: impl AsRef<str>) -> Self {
        Self(name.as_ref().into())
    }

    /// The model's name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Names one request in headers, logs, policies and the cancel endpoint.
///
/// Ours are UUIDv7; a client may bring its own as `x-request-id`, and then it is the client who
/// sees to it that no two requests have the same.
#[derive(
    Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Deserialize, serde::Serialize,
)]
#[serde(try_from = "String", into = "String")]
pub struct RequestId(Arc<str>);

/// Why a client's own request id was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadRequestId {
    /// Empty, or longer than [`RequestId::BYTES_MAX`].
    #[error("a request id has 1 to 128 characters, got {0}")]
    Length(usize),
    /// Holds something that could not stand in a URL path or a log line.
    #[error("a request id is made of letters, digits and -_.:=+@~, got {0:?}")]
    Character(char),
}

impl RequestId {
    /// Longest id a client may bring, in bytes.
    pub const BYTES_MAX: usize = 128;

    /// A new, unique id, ordered by time.
    pub fn generate() -> Self {
        Self(uuid::Uuid::now_v7().simple().to_string().into())
    }

    /// Takes a client's own id.
    ///
    /// # Errors
    ///
    /// When it is empty, too long, or holds a character that a URL path or a log line cannot.
    pub fn parse(text: &str) -> Result<Self, BadRequestId> {
        if text.is_empty() || text.len() > Self::BYTES_MAX {
            return Err(BadRequestId::Length(text.len()));
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.:=+@~".contains(c);
        match text.chars().find(|&c| !allowed(c)) {
            Some(c) => Err(BadRequestId::Character(c)),
            None => Ok(Self(text.into())),
        }
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for RequestId {
    type Error = BadRequestId;

    fn try_from(text: String) -> Result<Self, BadRequestId> {
        Self::parse(&text)
    }
}

impl From<RequestId> for String {
    fn from(id: RequestId) -> Self {
        id.0.as_ref().to_owned()
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The endpoint that a request came through. The set is closed, so it can be a metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Endpoint {
    /// `POST /v1/chat/completions`
    Chat,
    /// `POST /v1/completions`
    Completions,
    /// `POST /v1/responses`
    Responses,
}

impl Endpoint {
    /// The endpoint's name in metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Completions => "completions",
            Self::Responses => "responses",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_id_that_could_break_a_log_line_is_refused() {
        assert_eq!(RequestId::parse("a\nb"), Err(BadRequestId::Character('\n')));
        assert_eq!(RequestId::parse("a/b"), Err(BadRequestId::Character('/')));
        assert_eq!(RequestId::parse(""), Err(BadRequestId::Length(0)));
        assert_eq!(RequestId::parse(&"x".repeat(129)), Err(BadRequestId::Length(129)));
    }

    #[test]
    fn an_id_of_another_tracing_system_is_taken() {
        for id in ["Root=1-67891233-abcdef012345678912345678", "a+b:c@d~e"] {
            assert_eq!(RequestId::parse(id).expect(id).as_str(), id);
        }
    }

    #[test]
    fn a_generated_id_is_one_that_we_would_accept() {
        let id = RequestId::generate();
        assert_eq!(RequestId::parse(id.as_str()), Ok(id));
    }
}
