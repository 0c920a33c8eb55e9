//! What a client says of how its chat becomes a prompt, beside the messages.
//!
//! # Invariants
//!
//! - Variables are values of JSON, of a bounded size ([`TemplateVariables::BYTES_MAX`]) and depth
//!   ([`TemplateVariables::DEPTH_MAX`], far below that of values that a template makes itself), so a
//!   template can do nothing with them that it could not do with a message.
//! - None of them has a name under which the host, or every model, gives a template something.

use minijinja::Value;
use serde_json::Map;

/// The options with which a chat is rendered to a prompt.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ChatOptions {
    /// Where the prompt ends.
    pub end: PromptEnd,
    /// The client's own variables.
    pub variables: TemplateVariables,
}

/// Where a rendered chat ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PromptEnd {
    /// Where the model's answer begins, with what the template writes before one.
    #[default]
    GenerationPrompt,
    /// Behind the last message (`add_generation_prompt: false`).
    LastMessage,
    /// Within the last message, which the model continues (`continue_final_message: true`).
    WithinLastMessage,
}

/// A client's variables for a chat template: `chat_template_kwargs`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TemplateVariables {
    values: Vec<(String, Value)>,
    bytes: usize,
}

/// Why a client's variables are not taken, in words that follow "must be".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VariablesError {
    /// There is no name in a list, a text or a number.
    #[error("an object")]
    NoObject,
    /// The variables are longer than the limit, as JSON.
    #[error("at most {} bytes long", TemplateVariables::BYTES_MAX)]
    TooLong,
    /// They hold lists in lists in lists, or objects.
    #[error("nested at most {} levels deep", TemplateVariables::DEPTH_MAX)]
    TooDeep,
    /// Half a surrogate pair, or a number beyond all bounds.
    #[error("made of numbers and texts that can be represented: {0}")]
    NoValue(String),
    /// The name is that of something else.
    #[error("without {name}: {why}")]
    Reserved {
        /// The name of the variable.
        name: String,
        /// Why the name is reserved.
        why: &'static str,
    },
}

/// Names that are not for clients' variables, and why.
const RESERVED: [(&str, &str); 11] = [
    ("messages", "the messages are a field of the request"),
    ("tools", "tool calls are not served"),
    ("namespace", "it is a function that templates call"),
    ("raise_exception", "it is a function that templates call"),
    ("strftime_now", "it is a function that templates call"),
    ("range", "it is a function that templates call"),
    ("dict", "it is a function that templates call"),
    ("add_generation_prompt", "it is a field of the request itself"),
    ("continue_final_message", "it is a field of the request itself"),
    ("chat_template", "the template is the model's own"),
    ("tokenize", "a prompt is always tokenized"),
];
/// The names by which templates write special tokens.
const SPECIAL: [&str; 8] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
    "additional_special_tokens",
];

impl TemplateVariables {
    /// Most bytes of JSON.
    pub const BYTES_MAX: usize = 64 << 10;
    /// Most lists and objects in one another, the whole included.
    pub const DEPTH_MAX: usize = 16;

    /// Reads them from the text of a JSON object.
    ///
    /// # Errors
    ///
    /// When it is no object, too long, nested too deep, or has a name that is taken.
    pub fn parse(json: &str) -> Result<Self, VariablesError> {
        if !json.starts_with('{') {
            return Err(VariablesError::NoObject);
        }
        if json.len() > Self::BYTES_MAX {
            return Err(VariablesError::TooLong);
        }
        if depth(json) > Self::DEPTH_MAX {
            return Err(VariablesError::TooDeep);
        }
        let object: Map<String, serde_json::Value> = serde_json::from_str(json)
            .map_err(|error| VariablesError::NoValue(error.to_string()))?;
        if let Some((name, why)) = object.keys().find_map(|name| Some((name, reserved(name)?))) {
            return Err(VariablesError::Reserved { name: name.clone(), why });
        }
        let values = object.into_iter().map(|(name, value)| (name, from_json(value))).collect();
        Ok(Self { values, bytes: json.len() })
    }

    /// The length of the variables as JSON, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &(String, Value)> {
        self.values.iter()
    }
}

fn reserved(name: &str) -> Option<&'static str> {
    if SPECIAL.contains(&name) {
        return Some("special tokens are the model's own");
    }
    RESERVED.iter().find(|(reserved, _)| *reserved == name).map(|(_, why)| *why)
}

/// A value of JSON as a template sees it.
pub(super) fn from_json(value: serde_json::Value) -> Value {
    use serde_json::Value as Json;

    match value {
        Json::Null => ().into(),
        Json::Bool(value) => value.into(),
        Json::String(text) => text.into(),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(integer), _) => integer.into(),
            (None, Some(integer)) => integer.into(),
            (None, None) => number.as_f64().unwrap_or(f64::NAN).into(),
        },
        Json::Array(items) => items.into_iter().map(from_json).collect::<Vec<_>>().into(),
        Json::Object(fields) => {
            Value::from_pairs(fields.into_iter().map(|(name, value)| (name, from_json(value))))
        }
    }
}

/// How many lists and objects of a JSON text are in one another.
fn depth(json: &str) -> usize {
    let (mut depth, mut deepest, mut in_text, mut escaped) = (0_usize, 0, false, false);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            b'{' | b'[' if !in_text => depth += 1,
            b'}' | b']' if !in_text => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

#[cfg(test)]
mod tests;
