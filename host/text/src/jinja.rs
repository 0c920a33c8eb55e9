//! Jinja2 where minijinja is something else.
//!
//! Templates are written for Jinja2, and what a model was trained on is what Jinja2 made of them,
//! byte for byte. So the filters and tests that print, convert or look into a value are ours,
//! operators go by Python's rules ([`operators`]), and a template's text is read by Jinja2's
//! ([`source`]). The judge is Jinja2 itself, over the templates that packages ship: see
//! `tests/templates`.
//!
//! # Not here
//!
//! - `cycler`, `joiner` and `lipsum`, which no chat template has been seen to use.
//! - What loads other templates (`include`, `import`, `extends`, `block`), and `autoescape`.
//! - The filters `filesizeformat`, `random`, `striptags`, `urlize`, `wordwrap` and `xmlattr`, which
//!   are for web pages; a template that uses one is refused when it comes to it.

mod filters;
pub(crate) mod operators;
pub(crate) mod source;
mod tests;

use minijinja::value::Kwargs;
use minijinja::{Environment, Error, ErrorKind, State, Value};

use crate::python::{self, args::Arguments};

/// The message with which a template called `raise_exception`.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct TemplateRefusal(pub(crate) String);

/// Letters of a message of the template's; it may put what it likes into one.
pub(crate) const REFUSAL_LETTERS_MAX: usize = 1000;

/// Teaches an environment what transformers' has, and takes away what Jinja2 has not.
pub(crate) fn teach(environment: &mut Environment<'_>) {
    environment.set_unknown_method_callback(python::method);
    filters::teach(environment);
    tests::teach(environment);
    operators::teach(environment);
    environment.add_function("raise_exception", raise_exception);
    environment.remove_global("debug");
}

fn raise_exception(state: &State, args: Arguments) -> Result<String, Error> {
    let [message] = python::args::bind("raise_exception", ["message"], &args.into_values())?;
    let message = python::args::required(message, "raise_exception", "message")?;
    let message = python::display::text(state, &message)?;
    let error = Error::new(ErrorKind::InvalidOperation, "the template refused the messages");
    Err(error.with_source(TemplateRefusal(message.chars().take(REFUSAL_LETTERS_MAX).collect())))
}

/// Arguments by name, for a filter of minijinja's.
fn named<const N: usize>(entries: [(&'static str, Value); N]) -> Value {
    Kwargs::from_iter(entries).into()
}
