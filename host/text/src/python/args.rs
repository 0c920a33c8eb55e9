//! Arguments as Python binds them: by position or by name.

use minijinja::value::{Rest, ValueOrKwargs};
use minijinja::{Error, ErrorKind, Value};

/// All arguments of a filter or function, those by name in the last one.
pub(crate) type Arguments = Rest<ValueOrKwargs>;

/// The arguments of a call in the order of the parameters' names; none where none was given.
pub(crate) fn bind<const N: usize>(
    function: &str,
    names: [&str; N],
    args: &[Value],
) -> Result<[Option<Value>; N], Error> {
    let (by_name, by_place) = match args.split_last() {
        Some((last, rest)) if last.is_kwargs() => (Some(last), rest),
        _ => (None, args),
    };
    if by_place.len() > N {
        let error = format!("{function}() takes at most {N} arguments, and got {}", by_place.len());
        return Err(Error::new(ErrorKind::TooManyArguments, error));
    }
    let mut bound = [const { None }; N];
    for (place, value) in bound.iter_mut().zip(by_place) {
        *place = Some(value.clone());
    }
    for name in by_name.iter().flat_map(|named| named.try_iter()).flatten() {
        let place = names.iter().position(|known| name.as_str() == Some(*known));
        match place.map(|place| &mut bound[place]) {
            Some(place @ None) => *place = Some(args[args.len() - 1].get_item(&name)?),
            Some(_) => return Err(type_error(format!("{function}() got {name} twice"))),
            None => return Err(type_error(format!("{function}() has no parameter {name}"))),
        }
    }
    Ok(bound)
}

/// An argument that has to be there.
pub(crate) fn required(value: Option<Value>, function: &str, name: &str) -> Result<Value, Error> {
    let missing = || {
        Error::new(ErrorKind::MissingArgument, format!("{function}() needs the argument {name}"))
    };
    value.ok_or_else(missing)
}

/// A text, and nothing that could be made one.
pub(crate) fn text<'v>(value: &'v Value, function: &str) -> Result<&'v str, Error> {
    let error = || type_error(format!("{function}() takes a text, not {}", name_of(value)));
    value.as_str().ok_or_else(error)
}

/// A number that counts something; Python's `True` is 1.
pub(crate) fn integer(value: &Value, function: &str) -> Result<i64, Error> {
    let error = || type_error(format!("{function}() takes an integer, not {}", name_of(value)));
    match value.kind() {
        minijinja::value::ValueKind::Bool => Ok(i64::from(value.is_true())),
        _ if value.is_integer() => Ok(value.as_i64().unwrap_or(i64::MAX)),
        _ => Err(error()),
    }
}

/// An error for which Python raises a TypeError.
pub(crate) fn type_error(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

/// The name of a value's type in Python.
pub(crate) fn name_of(value: &Value) -> &'static str {
    use minijinja::value::ValueKind as Kind;

    match value.kind() {
        Kind::Undefined => "Undefined",
        Kind::None => "NoneType",
        Kind::Bool => "bool",
        Kind::Number if value.is_integer() => "int",
        Kind::Number => "float",
        Kind::String => "str",
        Kind::Bytes => "bytes",
        Kind::Seq | Kind::Iterable if value.is_tuple() => "tuple",
        Kind::Seq | Kind::Iterable => "list",
        Kind::Map => "dict",
        _ => "object",
    }
}
