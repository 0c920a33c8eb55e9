//! Tests as Jinja2 has them: `value is sequence`.

use minijinja::value::ValueKind;
use minijinja::{Environment, Error, State, Value};

use super::operators::{BoundMethod, is_iterable};
use crate::namespace::Namespace;
use crate::python::args::{integer, type_error};
use crate::python::display::{self, as_float};

pub(super) fn teach(environment: &mut Environment<'_>) {
    environment.add_test("iterable", is_iterable);
    environment.add_test("sequence", |value: &Value| {
        // Python's test asks for a length and items by place or key.
        matches!(
            value.kind(),
            ValueKind::String | ValueKind::Seq | ValueKind::Map | ValueKind::Undefined
        ) || value.is_tuple()
    });
    environment.add_test("callable", is_callable);
    environment.add_test("number", |value: &Value| {
        matches!(value.kind(), ValueKind::Number | ValueKind::Bool)
    });
    environment.add_test("odd", |value: &Value| Ok::<_, Error>(remainder(value, 2)? == 1.0));
    environment.add_test("even", |value: &Value| Ok::<_, Error>(remainder(value, 2)? == 0.0));
    environment.add_test("divisibleby", |value: &Value, by: &Value| {
        match integer(by, "divisibleby")? {
            0 => Err(type_error("divisibleby(): modulo by zero")),
            by => Ok(remainder(value, by)? == 0.0),
        }
    });
    environment.add_test("lower", |state: &State, value: &Value| {
        cased(state, value, char::is_lowercase, char::is_uppercase)
    });
    environment.add_test("upper", |state: &State, value: &Value| {
        cased(state, value, char::is_uppercase, char::is_lowercase)
    });
    environment.remove_test("safe");
    environment.remove_test("int");
    environment.remove_test("startingwith");
    environment.remove_test("endingwith");
}

/// Whether it can be called. What is called are functions, macros and methods, and loops.
fn is_callable(value: &Value) -> bool {
    let is_method = value.downcast_object_ref::<BoundMethod>().is_some();
    let is_plain = value.kind() == ValueKind::Plain;
    is_method || (is_plain && value.downcast_object_ref::<Namespace>().is_none())
}

#[expect(clippy::cast_precision_loss, reason = "nobody asks whether such a number is odd")]
fn remainder(value: &Value, by: i64) -> Result<f64, Error> {
    if let Some(float) = as_float(value) {
        let remainder = float.rem_euclid(by as f64);
        return Ok(remainder);
    }
    match integer(value, "%") {
        Ok(number) => Ok(number.wrapping_rem_euclid(by) as f64),
        Err(error) => Err(error),
    }
}

fn cased(
    state: &State,
    value: &Value,
    some: fn(char) -> bool,
    none: fn(char) -> bool,
) -> Result<bool, Error> {
    let text = display::text(state, value)?;
    Ok(text.chars().any(some) && !text.chars().any(none))
}
