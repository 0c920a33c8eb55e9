//! `POST /v1/completions`.

mod parse;
mod writer;

pub(in crate::endpoints) use parse::parse;
pub(in crate::endpoints) use writer::CompletionsWriter;
