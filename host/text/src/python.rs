//! What chat templates expect of Python: values as it prints them, `json.dumps`, `%`, `strftime`,
//! methods of strings, lists and dicts.
//!
//! Everything here charges its work to the render's fuel: the engine charges for the values
//! that functions return, and a search that returns a number would otherwise be free.

pub(crate) mod args;
pub(crate) mod display;
pub(crate) mod format;
pub(crate) mod json;
pub(crate) mod methods;
pub(crate) mod paid;
pub(crate) mod text;
mod time;

use minijinja::value::ValueKind;
use minijinja::{Error, State, Value};

pub(crate) use time::strftime;

use crate::fuel::weigh;
use paid::BYTES_PER_FUEL;

/// Python's methods of strings, lists and dicts, paid by what they look at and by what they make,
/// before they make it.
pub(crate) fn method(
    state: &mut State,
    value: &Value,
    name: &str,
    args: &[Value],
) -> Result<Value, Error> {
    match (value.kind(), name) {
        (ValueKind::Map, "get" | "items" | "keys" | "values" | "copy") => {
            state.consume_fuel(value.len().unwrap_or(0) as u64)?;
        }
        _ => weigh(state, value, 1)?,
    }
    args.iter().try_for_each(|arg| weigh(state, arg, 1))?;
    if let (Some(format), "format") = (value.as_str(), name) {
        state.consume_fuel(widths(format, args) / BYTES_PER_FUEL)?;
    }
    methods::call(state, value, name, args)
}

/// The sum of what may be a width: every number in a format, and where a field stands in a
/// field, every number among its arguments.
fn widths(format: &str, args: &[Value]) -> u64 {
    let nests = format.split('}').any(|part| part.matches('{').count() > 1);
    let given = args.iter().flat_map(|arg| match arg.kind() {
        ValueKind::Map => {
            arg.try_iter().into_iter().flatten().filter_map(|k| arg.get_item(&k).ok()).collect()
        }
        _ => vec![arg.clone()],
    });
    let given = given.filter(|_| nests).filter_map(|arg| u64::try_from(arg).ok());
    paid::numbers(format).chain(given).fold(0, u64::saturating_add)
}
