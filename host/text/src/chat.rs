//! Chat templates: Jinja programs that a model's files bring along.
//!
//! They are run as transformers runs them (`utils/chat_template_utils.py`): blocks trimmed,
//! `messages`, the model's special tokens by name (`bos_token`, ..), `add_generation_prompt` and the
//! client's own variables given, `tools` and `documents` none, `raise_exception`, `strftime_now`, loop
//! controls, Jinja2's filters and tests ([`jinja`]), and Python's operators and methods ([`python`]).
//!
//! # Invariants
//!
//! Template and messages are both somebody else's, and may be made to do harm.
//!
//! - A render takes at most [`FUEL`] steps: one for each instruction, each 64 bytes and each two
//!   values made or looked at, however they are hidden in one another ([`metered`]). A template
//!   that loops without end meets the same bound. So it holds no thread for long, and no more
//!   than 64 bytes for each step.
//! - Nesting is bounded: of values ([`DEPTH_MAX`]), of macros and loops ([`NESTING`]), and of the
//!   template's own text ([`BYTES_MAX`], [`TAG_MAX`], [`BRANCHES_MAX`], and what the parser has).
//!   [`STACK_BYTES`](crate::STACK_BYTES) are enough for all of it.
//! - A template reads no files and no environment, no other template, and of the host only the
//!   date.
//!
//! A step is not a unit of time: the dearest, one after another, are some microseconds each. So
//! whoever renders for others still sets a limit on the clock.
//!
//! # Not here
//!
//! Tools and images, until the host speaks of them.

mod continued;
mod options;

use std::collections::BTreeMap;
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::machinery::{self, Token};
use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Value};
use serde_json::Map;

pub use self::options::{ChatOptions, PromptEnd, TemplateVariables, VariablesError};
use crate::fuel::{DEPTH_MAX, TooDeep};
use crate::jinja::{self, REFUSAL_LETTERS_MAX, TemplateRefusal, source};
use crate::metered;
use crate::{RenderError, RenderLimit, TextError, python};

/// Steps that one render may take: thousands of messages, or some 100 MB of text moved.
pub(crate) const FUEL: u64 = 2_000_000;

/// Most nesting of macros, loops and calls: minijinja's own limit, which small stacks hold as well.
const NESTING: usize = 500;

/// One message of a chat, as templates see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user`, `assistant`, or whatever else the template knows.
    pub role: String,
    /// The text of the message.
    pub content: String,
    /// The name of the author, for clients that tell several apart; a template sees it only if it is set.
    pub name: Option<String>,
}

/// Most bytes of a template's text. The hub's templates have up to 30 KB.
const BYTES_MAX: usize = 128 * 1024;
/// Most words and signs in one `{{ .. }}` or `{% .. %}`: operators may nest as deep as it is long.
const TAG_MAX: usize = 4000;
/// Most `elif`s in a template: each is nested in the one before.
const BRANCHES_MAX: usize = 1000;
/// The stack for compiling and dropping a template of that size: four times what was measured.
const COMPILING_STACK_BYTES: usize = 64 * 1024 * 1024;

/// A compiled template with everything it may call.
pub(crate) struct ChatTemplate {
    /// The compiled template.
    compiled: Environment<'static>,
    /// The environment that runs the template. It has no other template to include, import or extend.
    environment: Environment<'static>,
    /// The special tokens, by the names that the template uses.
    special_tokens: Vec<(String, Value)>,
}

/// The template's name in its environment. It has no extension, so nothing is escaped for HTML.
const NAME: &str = "chat_template";

impl ChatTemplate {
    pub(crate) fn new(
        source: &str,
        special_tokens: &Map<String, serde_json::Value>,
    ) -> Result<Self, TextError> {
        is_readable(source)?;
        let source = source::normalized(source, &syntax());
        let mut environment = Environment::new();
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(NESTING);
        // Its errors would quote the messages into our log.
        environment.set_debug(false);
        environment.add_function("strftime_now", strftime_now);
        jinja::teach(&mut environment);
        metered::teach(&mut environment);
        // The parser recurses where a text is nested.
        let compiled = thread::scope(|scope| {
            let thread = thread::Builder::new()
                .name("chat-template".to_owned())
                .stack_size(COMPILING_STACK_BYTES)
                .spawn_scoped(scope, || compile(source));
            match thread.map(thread::ScopedJoinHandle::join) {
                Ok(Ok(compiled)) => compiled,
                Ok(Err(_)) => Err(TextError::Template("the parser panicked".to_owned())),
                Err(error) => Err(TextError::Template(format!("no thread to read it: {error}"))),
            }
        })?;
        let special_tokens = special_tokens
            .iter()
            .map(|(name, token)| (name.clone(), options::from_json(token.clone())))
            .collect();
        Ok(Self { compiled, environment, special_tokens })
    }

    /// `bytes_max` bounds the messages.
    pub(crate) fn render(
        &self,
        messages: &[Message],
        options: &ChatOptions,
        tokens_max: usize,
        bytes_max: usize,
    ) -> Result<String, RenderError> {
        small_enough(messages, tokens_max, bytes_max)?;
        let text = self.run(self.variables(messages, options))?;
        match (options.end, messages.last()) {
            (PromptEnd::WithinLastMessage, Some(last)) => {
                continued::cut(text, last).ok_or(RenderError::NotContinued)
            }
            _ => Ok(text),
        }
    }

    /// Renders the template with these variables.
    fn run(&self, root: Value) -> Result<String, RenderError> {
        let template = self.compiled.get_template(NAME).map_err(failure)?;
        let compiled = machinery::get_compiled_template(&template);
        let program = metered::metered(&compiled.instructions);
        let blocks = BTreeMap::new();
        let mut text = String::new();
        let mut out = machinery::make_string_output(&mut text);
        machinery::eval(&self.environment, &program, root, &blocks, &mut out, AutoEscape::None)
            .map_err(failure)?;
        Ok(text)
    }

    /// What a template may name. The client's variables may only have names that this model alone
    /// gives to special tokens, and then replace those, as with transformers.
    fn variables(&self, messages: &[Message], options: &ChatOptions) -> Value {
        let mut chat: Vec<Value> = messages.iter().map(value).collect();
        if let (PromptEnd::WithinLastMessage, [.., last]) = (options.end, messages) {
            chat.pop();
            chat.push(value(&continued::marked(last)));
        }
        let generation_prompt = options.end == PromptEnd::GenerationPrompt;
        let named = |name: &str, value: Value| (name.to_owned(), value);
        let theirs = self.special_tokens.iter().chain(options.variables.iter()).cloned();
        Value::from_pairs([named("documents", ().into())].into_iter().chain(theirs).chain([
            named("messages", chat.into()),
            named("add_generation_prompt", generation_prompt.into()),
            named("tools", ().into()),
        ]))
    }
}

fn syntax() -> SyntaxConfig {
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    syntax.expect("the delimiters are the usual ones")
}

fn compile(source: String) -> Result<Environment<'static>, TextError> {
    let mut environment = Environment::empty();
    environment.set_syntax(syntax());
    environment.set_debug(false);
    environment
        .add_template_owned(NAME, source)
        .map_err(|error| TextError::Template(error.to_string()))?;
    let template = environment.get_template(NAME);
    let template = template.map_err(|error| TextError::Template(error.to_string()))?;
    if !machinery::get_compiled_template(&template).blocks.is_empty() {
        // They may call each other and themselves, at a small part of the nesting that it is.
        let error = "it has a {% block %}, and there is no template that it could extend";
        return Err(TextError::Template(error.to_owned()));
    }
    drop(template);
    Ok(environment)
}

/// Refuses what is nested so deep that reading it would take a stack without end.
fn is_readable(source: &str) -> Result<(), TextError> {
    let too_much =
        |what: &str, max: usize| Err(TextError::Template(format!("it has more than {max} {what}")));
    if source.len() > BYTES_MAX {
        return too_much("bytes", BYTES_MAX);
    }
    let (mut in_tag, mut branches) = (0, 0);
    // What is no token is an error of the parser, which says where.
    for (token, _) in machinery::tokenize(source, false, syntax()).map_while(Result::ok) {
        match token {
            Token::VariableStart | Token::BlockStart => in_tag = 0,
            Token::Ident("elif") => branches += 1,
            _ => {}
        }
        in_tag += 1;
        if in_tag > TAG_MAX {
            return too_much("words and signs in one tag", TAG_MAX);
        }
        if branches > BRANCHES_MAX {
            return too_much("branches (elif)", BRANCHES_MAX);
        }
    }
    Ok(())
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

fn strftime_now(format: String) -> String {
    // A clock before 1970 is a broken one; the template gets 1970.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    python::strftime(&format, now.as_secs())
}

/// An error in a macro or filter arrives wrapped in others: look through all of them.
fn failure(error: Error) -> RenderError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(current) = cause {
        if let Some(TemplateRefusal(message)) = current.downcast_ref() {
            return RenderError::Refused(message.clone());
        }
        if current.downcast_ref().is_some_and(|e: &Error| e.kind() == ErrorKind::OutOfFuel) {
            return RenderError::TooCostly(RenderLimit::Steps(FUEL));
        }
        if current.is::<TooDeep>() {
            return RenderError::TooCostly(RenderLimit::Depth(DEPTH_MAX));
        }
        cause = current.source();
    }
    RenderError::Template(error.to_string().chars().take(REFUSAL_LETTERS_MAX).collect())
}

#[cfg(test)]
mod judged;
#[cfg(test)]
mod tests;
