//! `POST /v1/responses`, and what is shown of a stored response.

mod object;
mod parse;
mod writer;

pub(crate) use parse::RequestEcho;
pub(in crate::endpoints) use parse::parse;
pub(in crate::endpoints) use writer::{ResponsesWriter, shown};
