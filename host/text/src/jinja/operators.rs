//! Python's rules for operators, where minijinja is more lenient or knows less.
//!
//! What Python raises for has to be an error here too: a template may be wrong for the messages
//! that a client sent, and a prompt without them would be worse than no answer.

use std::fmt;
use std::sync::Arc;

use minijinja::value::{Object, ObjectRepr, ValueKind};
use minijinja::{Environment, Error, Output, State, Value};

use crate::fuel::weigh;
use crate::namespace::Namespace;
use crate::python::args::{integer, name_of, type_error};
use crate::python::display::{self, as_float};
use crate::python::{self, format, methods};

// No template can spell these names.
pub(crate) const ATTRIBUTE: &str = "<attribute>";
pub(crate) const CONCATENATED: &str = "<concatenated>";
pub(crate) const REMAINDER: &str = "<remainder>";
/// These look at a list of operands and hand it on.
pub(crate) const ORDERED: &str = "<ordered>";
pub(crate) const CONTAINED: &str = "<contained>";
pub(crate) const MULTIPLIED: &str = "<multiplied>";
pub(crate) const SLICED: &str = "<sliced>";
/// These look at one value and hand it on.
pub(crate) const ITERATED: &str = "<iterated>";

pub(super) fn teach(environment: &mut Environment<'_>) {
    environment.add_filter(ATTRIBUTE, attribute);
    environment.add_filter(CONCATENATED, concatenated);
    environment.add_filter(REMAINDER, remainder);
    environment.add_filter(ORDERED, ordered);
    environment.add_filter(CONTAINED, contained);
    environment.add_filter(MULTIPLIED, multiplied);
    environment.add_filter(SLICED, sliced);
    environment.add_filter(ITERATED, iterated);
    environment.set_formatter(|out: &mut Output, state: &mut State, value: &Value| {
        let text = display::text(state, value)?;
        out.write_str(&text).map_err(Error::from)
    });
}

/// Whether a loop can go over it. Over nothing at all, if it is undefined.
pub(crate) fn is_iterable(value: &Value) -> bool {
    match value.kind() {
        ValueKind::None | ValueKind::Bool | ValueKind::Number => false,
        ValueKind::Plain => value.try_iter().is_ok(),
        _ => value.downcast_object_ref::<Namespace>().is_none(),
    }
}

pub(crate) fn iterated(value: &Value) -> Result<Value, Error> {
    match is_iterable(value) {
        true => Ok(value.clone()),
        false => Err(type_error(format!("{} is not iterable", name_of(value)))),
    }
}

/// `left ~ right`.
fn concatenated(state: &State, left: &Value, right: &Value) -> Result<Value, Error> {
    let (left, right) = (display::text(state, left)?, display::text(state, right)?);
    let bytes = left.len() + right.len();
    state.consume_fuel(bytes as u64 / python::paid::BYTES_PER_FUEL)?;
    Ok(Value::from([&*left, &*right].concat()))
}

/// `left < right`: texts with texts, numbers with numbers, lists with lists.
fn ordered(state: &State, operands: &Value) -> Result<Value, Error> {
    weigh(state, operands, 1)?;
    let (left, right) = both(operands)?;
    match comparable(&left) == comparable(&right) && comparable(&left).is_some() {
        true => Ok(operands.clone()),
        false => Err(mismatch("<", &left, &right)),
    }
}

/// Lists are in an order of their own.
const LISTS: u8 = 3;

/// Values of one order.
fn comparable(value: &Value) -> Option<u8> {
    match value.kind() {
        ValueKind::Bool | ValueKind::Number => Some(0),
        ValueKind::String => Some(1),
        ValueKind::Seq | ValueKind::Iterable if value.is_tuple() => Some(2),
        ValueKind::Seq | ValueKind::Iterable => Some(LISTS),
        _ => None,
    }
}

/// `left in right`: what a text contains is texts.
fn contained(state: &State, operands: &Value) -> Result<Value, Error> {
    weigh(state, operands, 1)?;
    let (left, right) = both(operands)?;
    match right.kind() {
        ValueKind::String if left.kind() != ValueKind::String => Err(mismatch("in", &left, &right)),
        _ if !is_iterable(&right) => Err(mismatch("in", &left, &right)),
        // A list is no key.
        ValueKind::Map
            if matches!(comparable(&left), Some(LISTS)) || left.kind() == ValueKind::Map =>
        {
            Err(mismatch("in", &left, &right))
        }
        _ => Ok(operands.clone()),
    }
}

/// `left * right`: two numbers, or a whole one and a text or list.
fn multiplied(operands: &Value) -> Result<Value, Error> {
    let (left, right) = both(operands)?;
    let is_number = |value: &Value| matches!(value.kind(), ValueKind::Number | ValueKind::Bool);
    let is_float = |value: &Value| as_float(value).is_some();
    let fits = match (is_number(&left), is_number(&right)) {
        (true, true) => true,
        (true, false) => !is_float(&left) && comparable(&right).is_some(),
        (false, true) => !is_float(&right) && comparable(&left).is_some(),
        (false, false) => false,
    };
    match fits {
        true => Ok(operands.clone()),
        false => Err(mismatch("*", &left, &right)),
    }
}

/// `value[start:stop:step]`.
fn sliced(operands: &Value) -> Result<Value, Error> {
    let value = operands.get_item_by_index(0)?;
    match value.kind() {
        ValueKind::None | ValueKind::Undefined => {
            Err(type_error(format!("{} cannot be sliced", name_of(&value))))
        }
        _ => Ok(operands.clone()),
    }
}

/// `left % right`: the remainder of numbers, or a format and its values.
fn remainder(state: &State, left: &Value, right: &Value) -> Result<Value, Error> {
    if let Some(template) = left.as_str() {
        weigh(state, right, 1)?;
        return Ok(Value::from(format::percent(state, template, right)?));
    }
    let zero = || type_error("integer modulo by zero");
    match (integer(left, "%"), integer(right, "%"), float(left), float(right)) {
        (Ok(_), Ok(0), ..) | (_, _, Some(_), Some(0.0)) => Err(zero()),
        (Ok(left), Ok(right), ..) => {
            let remainder = left.wrapping_rem(right);
            let other_side = remainder != 0 && (remainder < 0) != (right < 0);
            Ok(Value::from(if other_side { remainder + right } else { remainder }))
        }
        (_, _, Some(left), Some(right)) => {
            let remainder = left % right;
            let other_side = remainder != 0.0 && (remainder < 0.0) != (right < 0.0);
            Ok(Value::from(match other_side {
                true => remainder + right,
                false if remainder == 0.0 => 0.0_f64.copysign(right),
                false => remainder,
            }))
        }
        _ => Err(mismatch("%", left, right)),
    }
}

fn float(value: &Value) -> Option<f64> {
    match value.kind() {
        ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        ValueKind::Number => f64::try_from(value.clone()).ok(),
        _ => None,
    }
}

fn both(operands: &Value) -> Result<(Value, Value), Error> {
    Ok((operands.get_item_by_index(0)?, operands.get_item_by_index(1)?))
}

fn mismatch(operator: &str, left: &Value, right: &Value) -> Error {
    let [left, right] = [left, right].map(name_of);
    type_error(format!("'{operator}' is not supported between {left} and {right}"))
}

/// `value.name` where the name is a method's: that comes before a dict's key.
fn attribute(value: &Value, name: &str) -> Result<Value, Error> {
    let is_method = match value.kind() {
        ValueKind::Map => value.as_object().is_some() && methods::OF_DICTS.contains(&name),
        ValueKind::String => methods::OF_TEXTS.contains(&name),
        _ => false,
    };
    match is_method {
        true => Ok(Value::from_object(BoundMethod { value: value.clone(), name: name.to_owned() })),
        false => value.get_attr(name),
    }
}

/// A method that was asked for and not called yet.
#[derive(Debug)]
pub(crate) struct BoundMethod {
    value: Value,
    name: String,
}

impl BoundMethod {
    pub(crate) fn value(&self) -> &Value {
        &self.value
    }
}

impl Object for BoundMethod {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, state: &mut State<'_, '_>, args: &[Value]) -> Result<Value, Error> {
        python::method(state, &self.value, &self.name, args)
    }

    fn render(self: &Arc<Self>, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<built-in method {} of {} object>", self.name, name_of(&self.value))
    }
}
