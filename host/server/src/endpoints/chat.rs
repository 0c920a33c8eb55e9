//! `POST /v1/chat/completions`.

mod parse;
mod writer;

pub(in crate::endpoints) use parse::{content, parse, role};
pub(in crate::endpoints) use writer::ChatWriter;
