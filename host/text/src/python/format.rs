//! `'%s' % value`.

use minijinja::formatting::{FormatStyle, format};
use minijinja::value::ValueKind;
use minijinja::{Error, State, Value};

use super::args::{integer, name_of, type_error};
use super::display;
use super::paid::{self, PaidText};

/// Python's `format % values`; a tuple is several values, and a dict has them by name.
pub(crate) fn percent(state: &State, template: &str, values: &Value) -> Result<String, Error> {
    let mut out = PaidText::new(state);
    let mut given = Given::of(values)?;
    let mut rest = template;
    while let Some(at) = rest.find('%') {
        out.push(&rest[..at])?;
        let field = Field::read(&rest[at..])?;
        rest = &rest[at + field.bytes..];
        if field.conversion == '%' {
            out.push("%")?;
            continue;
        }
        let shape = given.shape(field.shape)?;
        let value = given.next(field.name)?;
        out.push(&converted(state, &shape, field.conversion, &value)?)?;
    }
    out.push(rest)?;
    given.end()?;
    Ok(out.finish())
}

/// One field of a format string, such as `%(name)-5.2f`.
struct Field<'t> {
    name: Option<&'t str>,
    /// Flags, width and precision.
    shape: &'t str,
    conversion: char,
    bytes: usize,
}

impl<'t> Field<'t> {
    fn read(text: &'t str) -> Result<Self, Error> {
        let incomplete = || type_error("incomplete format");
        let mut rest = &text[1..];
        let mut name = None;
        if let Some(named) = rest.strip_prefix('(') {
            let (inner, after) = named.split_once(')').ok_or_else(incomplete)?;
            (name, rest) = (Some(inner), after);
        }
        let shaped = |letter: char| "-+ #0123456789.*".contains(letter);
        let width = rest.find(|letter| !shaped(letter)).ok_or_else(incomplete)?;
        let (shape, rest) = rest.split_at(width);
        // Lengths, which C had and Python reads over.
        let rest = rest.trim_start_matches(['h', 'l', 'L']);
        let conversion = rest.chars().next().ok_or_else(incomplete)?;
        let bytes = text.len() - rest.len() + conversion.len_utf8();
        Ok(Self { name, shape, conversion, bytes })
    }
}

/// The values of a format, of which each is used once.
struct Given<'v> {
    values: &'v Value,
    in_order: std::vec::IntoIter<Value>,
    /// Values may be left over that have names or come as a list.
    may_remain: bool,
}

impl<'v> Given<'v> {
    fn of(values: &'v Value) -> Result<Self, Error> {
        let in_order = match values.is_tuple() {
            true => values.try_iter()?.collect(),
            false => vec![values.clone()],
        };
        use ValueKind as Kind;

        let listed =
            matches!(values.kind(), Kind::Map | Kind::Seq | Kind::Iterable | Kind::Undefined);
        let may_remain = listed && !values.is_tuple();
        Ok(Self { values, in_order: in_order.into_iter(), may_remain })
    }

    /// A width of `*` is one of the values.
    fn shape(&mut self, shape: &str) -> Result<String, Error> {
        let mut filled = String::new();
        for letter in shape.chars() {
            match letter {
                '*' => filled.push_str(&integer(&self.next(None)?, "%")?.to_string()),
                _ => filled.push(letter),
            }
        }
        Ok(filled)
    }

    fn next(&mut self, name: Option<&str>) -> Result<Value, Error> {
        match name {
            None => self.in_order.next().ok_or_else(|| type_error("not enough values for format")),
            Some(_) if self.values.kind() != ValueKind::Map => {
                Err(type_error("format requires a dict"))
            }
            Some(name) => match self.values.get_item(&Value::from(name))? {
                value if value.is_undefined() => Err(type_error(format!("no value named {name}"))),
                value => Ok(value),
            },
        }
    }

    fn end(&mut self) -> Result<(), Error> {
        match self.in_order.next() {
            Some(_) if !self.may_remain => Err(type_error("not all values used by format")),
            _ => Ok(()),
        }
    }
}

fn converted(state: &State, shape: &str, kind: char, value: &Value) -> Result<String, Error> {
    let wide = paid::numbers(shape).fold(0, u64::saturating_add);
    state.consume_fuel(wide / paid::BYTES_PER_FUEL)?;
    let is_number = matches!(value.kind(), ValueKind::Number | ValueKind::Bool);
    let (kind, value) = match kind {
        's' => ('s', Value::from(display::text(state, value)?)),
        'r' | 'a' => ('s', Value::from(display::repr(state, value)?)),
        'c' => ('c', value.clone()),
        'd' | 'i' | 'u' | 'x' | 'X' | 'o' | 'e' | 'E' | 'f' | 'F' | 'g' | 'G' if !is_number => {
            let error = format!("%{kind} format: a number is required, not {}", name_of(value));
            return Err(type_error(error));
        }
        'd' | 'i' | 'u' => ('d', truncated(value)),
        'x' | 'X' | 'o' | 'e' | 'E' | 'f' | 'F' | 'g' | 'G' => (kind, whole(value)),
        other => return Err(type_error(format!("unsupported format character '{other}'"))),
    };
    format(FormatStyle::Printf, &format!("%{shape}{kind}"), &[value])
}

/// `%d` of 5.9 is 5.
fn truncated(value: &Value) -> Value {
    match display::as_float(value) {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "a number beyond is printed as its end"
        )]
        Some(float) => Value::from(float as i128),
        None => whole(value),
    }
}

/// Converts a Boolean to the integer that Python takes it for: True is 1.
fn whole(value: &Value) -> Value {
    match value.kind() {
        ValueKind::Bool => Value::from(i64::from(value.is_true())),
        _ => value.clone(),
    }
}
