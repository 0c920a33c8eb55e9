//! What is wrong with a request's body, in words for its sender.

/// A field that cannot be, with the sentence that says so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct InvalidRequest {
    /// Where it stands in the body; `None` when the body as a whole is wrong.
    pub(crate) param: Option<String>,
    /// The cause, for programs.
    pub(crate) code: &'static str,
    /// Names the field, the limit and the value.
    pub(crate) message: String,
}

impl InvalidRequest {
    fn new(param: &str, code: &'static str, message: String) -> Self {
        let param = (!param.is_empty()).then(|| param.to_owned());
        Self { param, code, message }
    }

    pub(crate) fn malformed(error: &serde_json::Error) -> Self {
        Self::new("", "invalid_json", format!("the body is not valid JSON: {error}"))
    }

    pub(crate) fn not_utf8(valid_up_to: usize) -> Self {
        let message = format!("the body is not valid UTF-8 from byte {valid_up_to} on");
        Self::new("", "invalid_utf8", message)
    }

    pub(crate) fn missing(path: &str) -> Self {
        Self::new(path, "missing_required_parameter", format!("{path} is required"))
    }

    pub(crate) fn wrong_type(path: &str, expected: &str, got: &str) -> Self {
        Self::new(path, "invalid_type", Self::sentence(path, expected, got))
    }

    pub(crate) fn wrong_value(path: &str, expected: &str, got: &str) -> Self {
        Self::new(path, "invalid_value", Self::sentence(path, expected, got))
    }

    /// Something that OpenAI has and this host has not.
    pub(crate) fn unsupported(path: &str, what: &str, got: &str) -> Self {
        let message = format!("{path} is not supported: {what}, got {got}");
        Self::new(path, "unsupported_parameter", message)
    }

    /// `prompt` says how many tokens the prompt has, or how many at least.
    pub(crate) fn context_length(path: &str, prompt: &str, context: u32) -> Self {
        Self::new(
            path,
            "context_length_exceeded",
            format!(
                "{path} has {prompt} tokens, which leaves no room for an answer: this model's \
                 context is {context} tokens"
            ),
        )
    }

    /// The chat template or the tokenizer would not have it.
    pub(crate) fn not_rendered(path: &str, why: &str) -> Self {
        Self::new(path, "invalid_value", format!("{path} cannot be turned into a prompt: {why}"))
    }

    fn sentence(path: &str, expected: &str, got: &str) -> String {
        let subject = if path.is_empty() { "the body" } else { path };
        format!("{subject} must be {expected}, got {got}")
    }
}
