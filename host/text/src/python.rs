//! What chat templates expect of Python: `json.dumps`, `strftime`, methods of strings.
//!
//! Everything here charges its work to the render's fuel: the engine charges for the values
//! that functions return, and a search that returns a number would otherwise be free.

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

use crate::metered::weigh;

/// Bytes that one step of fuel pays for, as in minijinja.
const BYTES_PER_FUEL: u64 = 64;

/// Python's methods of strings, lists and dicts, paid by what they look at and by what they make,
/// before they make it.
pub(crate) fn method(
    state: &mut State,
    value: &Value,
    name: &str,
    args: &[Value],
) -> Result<Value, Error> {
    match (value.kind(), name) {
        (ValueKind::Map, "get" | "items" | "keys" | "values") => {
            state.consume_fuel(value.len().unwrap_or(0) as u64)?;
        }
        _ => weigh(state, value, 1)?,
    }
    args.iter().try_for_each(|arg| weigh(state, arg, 1))?;
    state.consume_fuel(grows_by(value, name, args) / BYTES_PER_FUEL)?;
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)
}

/// Bytes that a method of a string may add to its arguments.
fn grows_by(value: &Value, name: &str, args: &[Value]) -> u64 {
    let (Some(text), first) = (value.as_str(), args.first()) else { return 0 };
    let product = |times: Option<usize>, each: &str| {
        (times.unwrap_or(0) as u64).saturating_mul(each.len() as u64)
    };
    match (name, first) {
        ("join", Some(items)) => {
            product(items.len().or_else(|| items.as_str().map(str::len)), text)
        }
        ("replace", Some(from)) => {
            let times = from.as_str().map(|from| text.matches(from).count());
            product(times, args.get(1).and_then(Value::as_str).unwrap_or_default())
        }
        ("format", _) => widths(text, args),
        _ => 0,
    }
}

/// The sum of what may be a width: every number in a format, and where a field stands in a
/// field, every number among its arguments.
fn widths(format: &str, args: &[Value]) -> u64 {
    let written = format
        .split(|letter: char| !letter.is_ascii_digit())
        .filter(|digits| !digits.is_empty())
        .map(|digits| digits.parse().unwrap_or(u64::MAX));
    let nests = format.split('}').any(|part| part.matches('{').count() > 1);
    let given = args.iter().flat_map(|arg| match arg.kind() {
        ValueKind::Map => {
            arg.try_iter().into_iter().flatten().filter_map(|k| arg.get_item(&k).ok()).collect()
        }
        _ => vec![arg.clone()],
    });
    let given = given.filter(|_| nests).filter_map(|arg| u64::try_from(arg).ok());
    written.chain(given).fold(0, u64::saturating_add)
}

/// `json.dumps(value, ensure_ascii=False)`, with Python's separators.
///
/// Not minijinja's own filter: that one is made for HTML and escapes `<`, `>`, `&` and `'`,
/// which a model would then see. Transformers replaces Jinja's filter for the same reason.
pub(crate) fn tojson(state: &State, value: &Value, args: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = args.get("indent")?;
    let _: Option<Value> = args.get("ensure_ascii")?;
    args.assert_all_used()?;
    let indent = indent.map(|width| width.min(JSON_INDENT_MAX));
    let mut json = Json { state, indent, out: String::new() };
    json.value(value, 0)?;
    Ok(Value::from(json.out))
}

/// Deepest value written as JSON, so that a template cannot nest one to the stack's end.
const JSON_DEPTH_MAX: usize = 64;
/// Widest indentation per level.
const JSON_INDENT_MAX: usize = 16;

/// Writes JSON and charges for it as it grows: a small value that holds another many times,
/// which holds another many times, is exponentially long when written down.
struct Json<'a, 'b, 'c> {
    state: &'a State<'b, 'c>,
    indent: Option<usize>,
    out: String,
}

impl Json<'_, '_, '_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        self.state.consume_fuel(1)?;
        if depth > JSON_DEPTH_MAX {
            let error = format!("tojson: value is nested deeper than {JSON_DEPTH_MAX}");
            return Err(Error::new(ErrorKind::BadSerialization, error));
        }
        match value.kind() {
            ValueKind::Undefined | ValueKind::None => self.out.push_str("null"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.out.push_str(&value.to_string()),
            ValueKind::Map => {
                let entries = value.try_iter()?.map(|key| {
                    let item = value.get_item(&key)?;
                    Ok((Some(key), item))
                });
                self.list(['{', '}'], entries, depth)?;
            }
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter()?.map(|item| Ok((None, item)));
                self.list(['[', ']'], items, depth)?;
            }
            _ => self.text(value)?,
        }
        Ok(())
    }

    fn list(
        &mut self,
        [open, close]: [char; 2],
        items: impl Iterator<Item = Result<(Option<Value>, Value), Error>>,
        depth: usize,
    ) -> Result<(), Error> {
        self.out.push(open);
        let mut empty = true;
        for item in items {
            let (key, item) = item?;
            self.separate(empty, depth + 1)?;
            empty = false;
            if let Some(key) = key {
                self.text(&key)?;
                self.out.push_str(": ");
            }
            self.value(&item, depth + 1)?;
        }
        if self.indent.is_some() && !empty {
            self.line(depth)?;
        }
        self.out.push(close);
        Ok(())
    }

    /// Python writes `, ` on one line, and `,` where a line ends.
    fn separate(&mut self, first: bool, depth: usize) -> Result<(), Error> {
        match (first, self.indent) {
            (true, None) => {}
            (false, None) => self.out.push_str(", "),
            (first, Some(_)) => {
                self.out.push_str(if first { "" } else { "," });
                self.line(depth)?;
            }
        }
        Ok(())
    }

    fn line(&mut self, depth: usize) -> Result<(), Error> {
        let spaces = self.indent.unwrap_or(0) * depth;
        self.state.consume_fuel(spaces as u64 / BYTES_PER_FUEL)?;
        self.out.push('\n');
        self.out.extend(std::iter::repeat_n(' ', spaces));
        Ok(())
    }

    fn text(&mut self, value: &Value) -> Result<(), Error> {
        let owned;
        let text = match value.as_str() {
            Some(text) => text,
            None => {
                owned = value.to_string();
                &owned
            }
        };
        self.state.consume_fuel(text.len() as u64 / BYTES_PER_FUEL)?;
        self.out.push_str(&serde_json::Value::from(text).to_string());
        Ok(())
    }
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] =
    ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// The directives of `strftime` that templates use, for seconds since 1970 in UTC; any other
/// is left as it stands. UTC, where Python has the local time: hosts in one fleet agree on it.
pub(crate) fn strftime(format: &str, seconds: u64) -> String {
    let (days, time) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (time / 3600, time / 60 % 60, time % 60);
    let month_name = MONTHS[month as usize - 1];
    let day_name = DAYS[(days % 7) as usize];
    let mut out = String::new();
    let mut letters = format.chars();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            out.push(letter);
            continue;
        }
        match letters.next() {
            Some('Y') => out.push_str(&year.to_string()),
            Some('y') => out.push_str(&format!("{:02}", year % 100)),
            Some('m') => out.push_str(&format!("{month:02}")),
            Some('d') => out.push_str(&format!("{day:02}")),
            Some('B') => out.push_str(month_name),
            Some('b') => out.push_str(&month_name[..3]),
            Some('A') => out.push_str(day_name),
            Some('a') => out.push_str(&day_name[..3]),
            Some('H') => out.push_str(&format!("{hour:02}")),
            Some('I') => out.push_str(&format!("{:02}", (hour + 11) % 12 + 1)),
            Some('p') => out.push_str(if hour < 12 { "AM" } else { "PM" }),
            Some('M') => out.push_str(&format!("{minute:02}")),
            Some('S') => out.push_str(&format!("{second:02}")),
            Some('%') => out.push('%'),
            Some(other) => out.extend(['%', other]),
            None => out.push('%'),
        }
    }
    out
}

/// Year, month and day of a day since 1970-01-01, with years that begin in March so that the
/// leap day comes last (Hinnant, "chrono-compatible low-level date algorithms").
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let march = (5 * day + 2) / 153;
    let month = if march < 10 { march + 3 } else { march - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day - (153 * march + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let format = "%A %d %B %Y %a %b %y-%m %H:%M:%S %I%p %% %Q %";
        let date = |seconds| strftime(format, seconds);
        // `date -u -d @951782400`, the leap day of a century that has one, and two more.
        assert_eq!(date(0), "Thursday 01 January 1970 Thu Jan 70-01 00:00:00 12AM % %Q %");
        assert_eq!(
            date(951_827_696),
            "Tuesday 29 February 2000 Tue Feb 00-02 12:34:56 12PM % %Q %"
        );
        assert_eq!(
            date(1_798_761_599),
            "Thursday 31 December 2026 Thu Dec 26-12 23:59:59 11PM % %Q %"
        );
    }
}
