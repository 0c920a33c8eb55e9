//! Chat templates: Jinja programs that a model's files bring along.
//!
//! They are run as transformers runs them (`utils/chat_template_utils.py`): blocks trimmed,
//! `messages`, `bos_token`, `eos_token` and `add_generation_prompt` given, `tools` and
//! `documents` none, `raise_exception`, `strftime_now`, loop controls, and Python's methods of
//! strings and dicts.
//!
//! # Invariants
//!
//! - No message, however made, holds a thread for long or takes much memory: a render takes at
//!   most [`FUEL`] steps, one for each instruction and each 64 bytes made or looked at, and
//!   nesting is bounded. A template that loops without end meets the same bound.
//! - A template reads no files and no environment, and of the host only the date.
//!
//! # What the budget does not stop
//!
//! A template written to do harm. minijinja 3.1 charges for steps and bytes, but not for what
//! happens inside one step: printing or comparing a list that holds another twice, which holds
//! another twice, forty times over, takes forever (`tojson` is ours, and charges), and
//! dropping a list nested tens of thousands deep overflows the stack, which ends the process.
//! Both were tried. Messages are flat and cannot do either, so this is trust in the model's
//! files, as far as the operator who chose them has it.
//!
//! # Not here
//!
//! Tools, images and continued assistant messages, until the host speaks of them.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Value, context};

use crate::{RenderError, RenderLimit, TextError, python};

/// Steps that one render may take: thousands of messages, or some 100 MB of text moved.
pub(crate) const FUEL: u64 = 2_000_000;

/// Nesting of macros, loops and calls. minijinja's most, made for small stacks as well.
const NESTING: usize = 500;

/// One message of a chat, as templates see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user`, `assistant`, or whatever else the template knows.
    pub role: String,
    /// What was said.
    pub content: String,
    /// Who said it, where the client tells several apart; a template sees it only if set.
    pub name: Option<String>,
}

/// A compiled template with everything it may call.
pub(crate) struct ChatTemplate {
    environment: Environment<'static>,
    bos: Value,
    eos: Value,
}

/// Its name in the environment. Without an extension, so nothing is escaped for HTML.
const NAME: &str = "chat_template";

/// What a template said through `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refusal(String);

impl ChatTemplate {
    pub(crate) fn new(source: &str, bos: String, eos: String) -> Result<Self, TextError> {
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        let mut environment = Environment::new();
        environment.set_syntax(syntax.expect("the delimiters are the usual ones"));
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(NESTING);
        // Its errors would quote the messages into our log.
        environment.set_debug(false);
        environment.set_unknown_method_callback(python::method);
        environment.add_filter("tojson", python::tojson);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment
            .add_template_owned(NAME, without_generation_blocks(source))
            .map_err(|error| TextError::Template(error.to_string()))?;
        Ok(Self { environment, bos: bos.into(), eos: eos.into() })
    }

    /// `bytes_max`: of the text that comes out, and of what goes in.
    pub(crate) fn render(
        &self,
        messages: &[Message],
        tokens_max: usize,
        bytes_max: usize,
    ) -> Result<String, RenderError> {
        small_enough(messages, tokens_max, bytes_max)?;
        let template = self.environment.get_template(NAME).map_err(failure)?;
        let rendered = template.render(context! {
            messages => messages.iter().map(value).collect::<Vec<_>>(),
            bos_token => self.bos.clone(),
            eos_token => self.eos.clone(),
            add_generation_prompt => true,
            tools => (),
            documents => (),
        });
        rendered.map_err(failure)
    }
}

/// Refuses by size: each message is at least a token, whatever a template makes of it, and no
/// token is longer than the longest.
fn small_enough(
    messages: &[Message],
    tokens_max: usize,
    bytes_max: usize,
) -> Result<(), RenderError> {
    let too_long = |tokens_min| Err(RenderError::TooLong { tokens_min, tokens_max });
    if messages.len() > tokens_max {
        return too_long(messages.len());
    }
    let bytes = |message: &Message| {
        let Message { role, content, name } = message;
        role.len() + content.len() + name.as_ref().map_or(0, String::len)
    };
    match messages.iter().map(bytes).sum::<usize>() {
        bytes if bytes > bytes_max => too_long(tokens_max.saturating_add(1)),
        _ => Ok(()),
    }
}

fn value(message: &Message) -> Value {
    let Message { role, content, name } = message;
    let name = name.iter().map(|name| ("name", name));
    Value::from_pairs([("role", role), ("content", content)].into_iter().chain(name))
}

/// `{% generation %}` marks what the assistant said, for training; its content is just text.
fn without_generation_blocks(source: &str) -> String {
    let mut source = source.to_owned();
    for (mark, block) in [("generation", "if true"), ("endgeneration", "endif")] {
        for open in ["{%", "{%-"] {
            for close in ["%}", "-%}"] {
                let marked = format!("{open} {mark} {close}");
                source = source.replace(&marked, &format!("{open} {block} {close}"));
            }
        }
    }
    source
}

fn raise_exception(message: String) -> Result<String, Error> {
    let error = Error::new(ErrorKind::InvalidOperation, "the template refused the messages");
    Err(error.with_source(Refusal(message)))
}

fn strftime_now(format: String) -> String {
    // A clock before 1970 is a broken one; the template gets 1970.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    python::strftime(&format, now.as_secs())
}

/// An error in a macro or filter arrives wrapped in others: look through all of them.
fn failure(error: Error) -> RenderError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(current) = cause {
        if let Some(Refusal(message)) = current.downcast_ref() {
            return RenderError::Refused(message.clone());
        }
        if current.downcast_ref().is_some_and(|e: &Error| e.kind() == ErrorKind::OutOfFuel) {
            return RenderError::TooCostly(RenderLimit::Steps(FUEL));
        }
        cause = current.source();
    }
    RenderError::Template(error.to_string())
}

#[cfg(test)]
mod tests;
