//! What becomes of each field of a request.
//!
//! One table holds every field that clients of OpenAI's API, vLLM, llama.cpp's server,
//! mlx_lm.server and Ollama's OpenAI endpoints send. What the parser may read, what is refused and
//! the page `docs/request-fields.md` come from it. A field that is in no table is ignored, as
//! clients expect, and its name is kept for a response header.
//!
//! # Invariants
//!
//! - The parser sees honoured fields only: one that is not declared here is never there.
//! - A field that would change the answer and is not honoured is refused, unless its value asks
//!   for nothing: it is null, or what the field means when it is absent.
//! - Of several names for one thing, the one that stands first in the table counts.

mod harmless;
mod honoured;
mod ignored;
mod nested;
mod page;
mod refused;
#[cfg(test)]
mod tests;
mod unknown;

use serde_json::value::RawValue;

use super::json::{FieldValue, JsonObject, path_in};
use crate::failure::InvalidRequest;
use harmless::is_harmless;
pub(super) use nested::{
    FORMAT, INPUT_MESSAGE, MESSAGE, PART, STREAM_OPTIONS, TEXT as TEXT_OPTIONS,
};
pub use page::request_fields_md;
pub(crate) use unknown::UnknownFields;

/// A set of endpoints.
pub(super) type EndpointSet = u8;

pub(super) const CHAT: EndpointSet = 1;
pub(super) const COMPLETIONS: EndpointSet = 2;
pub(super) const RESPONSES: EndpointSet = 4;
const ALL: EndpointSet = CHAT | COMPLETIONS | RESPONSES;

/// A set of servers whose clients send a field.
type ServerSet = u8;

const OPENAI: ServerSet = 1;
const VLLM: ServerSet = 2;
const LLAMA_CPP: ServerSet = 4;
const MLX_LM: ServerSet = 8;
const OLLAMA: ServerSet = 16;
const SGLANG: ServerSet = 32;
/// All whose OpenAI endpoints the table covers in full.
const EVERYONE: ServerSet = OPENAI | VLLM | LLAMA_CPP | MLX_LM | OLLAMA;

/// What becomes of a field.
#[derive(Debug, Clone, Copy)]
enum FieldRule {
    /// The parser reads it. The text says for the page what the name does not.
    Honoured(&'static str),
    /// Another name for this field.
    Alias(&'static str),
    /// The field changes nothing, for this reason.
    Ignored(&'static str),
    /// The field would change the answer, and the host cannot do what it asks for.
    Refused {
        /// The reason that the client is told.
        why: &'static str,
        /// JSON values that ask for nothing; null always does.
        harmless: &'static [&'static str],
    },
}

/// Fields that share their fate.
struct FieldGroup {
    endpoints: EndpointSet,
    fate: FieldRule,
    /// Each with the servers whose clients send it.
    fields: &'static [(&'static str, ServerSet)],
}

/// What one object of a request may hold.
pub(super) struct FieldTable {
    /// Where such objects stand, as the page writes it; empty for the body.
    at: &'static str,
    groups: &'static [&'static [FieldGroup]],
}

/// The body itself.
pub(super) const BODY: FieldTable =
    FieldTable { at: "", groups: &[honoured::BODY, honoured::TEXT, refused::BODY, ignored::BODY] };

/// Every table, for the page and the tests.
const TABLES: &[&FieldTable] =
    &[&BODY, &STREAM_OPTIONS, &FORMAT, &TEXT_OPTIONS, &MESSAGE, &INPUT_MESSAGE, &PART];

/// One field of a table.
#[derive(Clone, Copy)]
struct FieldRow {
    name: &'static str,
    endpoints: EndpointSet,
    servers: ServerSet,
    fate: FieldRule,
}

impl FieldTable {
    /// The fields in the order in which they count.
    fn rows(&self) -> impl Iterator<Item = FieldRow> {
        self.groups.iter().copied().flatten().flat_map(|group| {
            let FieldGroup { endpoints, fate, .. } = *group;
            group.fields.iter().map(move |&(name, servers)| FieldRow {
                name,
                endpoints,
                servers,
                fate,
            })
        })
    }

    /// Keeps of an object what is honoured at this endpoint.
    ///
    /// # Errors
    ///
    /// When a field asks for what is not served.
    pub(super) fn read<'a>(
        &self,
        endpoint: EndpointSet,
        mut object: JsonObject<'a>,
        unknown: &mut UnknownFields,
    ) -> Result<RequestFields<'a>, InvalidRequest> {
        let mut fields: Vec<KnownField<'a>> = Vec::new();
        for row in self.rows().filter(|row| row.endpoints & endpoint != 0) {
            let Some(item) = object.take(row.name) else { continue };
            let name = match row.fate {
                FieldRule::Honoured(_) => row.name,
                FieldRule::Alias(of) => of,
                FieldRule::Ignored(_) => continue,
                FieldRule::Refused { harmless, .. } if is_harmless(item.raw().get(), harmless) => {
                    continue;
                }
                FieldRule::Refused { why, .. } => {
                    return Err(InvalidRequest::unsupported(item.path(), why, &item.shown()));
                }
            };
            if fields.iter().all(|field| field.name != name) {
                fields.push(KnownField { name, written: row.name, raw: item.raw() });
            }
        }
        let path = object.path().to_owned();
        object.into_names().for_each(|name| unknown.add(&path, &name));
        Ok(RequestFields { path, fields })
    }
}

/// A field that the parser may read.
#[derive(Debug)]
struct KnownField<'a> {
    name: &'static str,
    /// The name by which the client calls it.
    written: &'static str,
    raw: &'a RawValue,
}

/// The honoured fields of one object, but for those that are null: these are as good as absent, as
/// OpenAI treats them.
#[derive(Debug)]
pub(super) struct RequestFields<'a> {
    path: String,
    fields: Vec<KnownField<'a>>,
}

impl<'a> RequestFields<'a> {
    /// A field, if the client has set it.
    pub(super) fn get(&self, name: &str) -> Option<FieldValue<'a>> {
        let field = self.fields.iter().find(|field| field.name == name)?;
        Some(FieldValue::new(path_in(&self.path, field.written), field.raw))
    }

    /// A field that must be there.
    pub(super) fn need(&self, name: &str) -> Result<FieldValue<'a>, InvalidRequest> {
        self.get(name).ok_or_else(|| InvalidRequest::missing(&path_in(&self.path, name)))
    }

    /// The name by which the client calls this field.
    pub(super) fn written(&self, name: &'static str) -> &'static str {
        let field = self.fields.iter().find(|field| field.name == name);
        field.map_or(name, |field| field.written)
    }
}
