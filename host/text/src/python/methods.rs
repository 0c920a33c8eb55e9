//! Methods of Python's strings, lists and dicts.

use minijinja::value::{Tuple, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

use super::args::{bind, integer, name_of, required, text, type_error};
use super::paid::PaidText;
use super::text::{self as python, Ends};

/// Names that are methods of a dict, whatever keys it has.
pub(crate) const OF_DICTS: [&str; 11] = [
    "clear",
    "copy",
    "fromkeys",
    "get",
    "items",
    "keys",
    "pop",
    "popitem",
    "setdefault",
    "update",
    "values",
];

/// Names that are methods of a string. Whoever asks for one without calling it gets it.
pub(crate) const OF_TEXTS: [&str; 43] = [
    "capitalize",
    "casefold",
    "center",
    "count",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "upper",
    "zfill",
];

/// Calls a method. What it looks at has been paid for; what it makes is paid for here.
pub(crate) fn call(
    state: &mut State,
    value: &Value,
    name: &str,
    args: &[Value],
) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::String => {
            let content = value.as_str().unwrap_or_default();
            of_text(state, content, name, args)
        }
        ValueKind::Seq | ValueKind::Iterable => of_list(value, name, args),
        ValueKind::Map if name == "copy" => {
            let [] = bind(name, [], args)?;
            let entry = |key: Value| Ok((key.clone(), value.get_item(&key)?));
            let entries: Result<Vec<_>, Error> = value.try_iter()?.map(entry).collect();
            Ok(Value::from_pairs(entries?))
        }
        ValueKind::Map => {
            minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)
        }
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

fn of_list(value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    match name {
        "count" => {
            let [what] = bind(name, ["value"], args)?;
            let what = required(what, name, "value")?;
            Ok(Value::from(value.try_iter()?.filter(|item| *item == what).count()))
        }
        "index" => {
            let [what] = bind(name, ["value"], args)?;
            let what = required(what, name, "value")?;
            let at = value.try_iter()?.position(|item| item == what);
            at.map(Value::from).ok_or_else(|| type_error(format!("{what:?} is not in the list")))
        }
        "copy" if !value.is_tuple() => {
            let [] = bind(name, [], args)?;
            Ok(value.try_iter()?.collect())
        }
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

fn of_text(state: &mut State, content: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    if let Some(holds) = predicate(content, name) {
        let [] = bind(name, [], args)?;
        return Ok(Value::from(holds));
    }
    match name {
        "upper" | "lower" | "casefold" | "swapcase" | "capitalize" | "title" => {
            let [] = bind(name, [], args)?;
            Ok(Value::from(cased(content, name)))
        }
        "strip" | "lstrip" | "rstrip" => {
            let [chars] = bind(name, ["chars"], args)?;
            let chars = chars.filter(|chars| !chars.is_none());
            let chars = chars.as_ref().map(|chars| text(chars, name)).transpose()?;
            let ends = match name {
                "lstrip" => Ends::Left,
                "rstrip" => Ends::Right,
                _ => Ends::Both,
            };
            Ok(Value::from(python::strip(content, chars, ends)))
        }
        "removeprefix" | "removesuffix" => {
            let [part] = bind(name, ["part"], args)?;
            let part = required(part, name, "part")?;
            let part = text(&part, name)?;
            let rest = match name {
                "removeprefix" => content.strip_prefix(part),
                _ => content.strip_suffix(part),
            };
            Ok(Value::from(rest.unwrap_or(content)))
        }
        "split" | "rsplit" => split(content, name, args),
        "splitlines" => {
            let [keep_ends] = bind(name, ["keepends"], args)?;
            let keep_ends = keep_ends.is_some_and(|keep| keep.is_true());
            Ok(python::lines(content, keep_ends).into_iter().map(Value::from).collect())
        }
        "partition" | "rpartition" => {
            let [separator] = bind(name, ["sep"], args)?;
            let separator = required(separator, name, "sep")?;
            let separator = not_empty(text(&separator, name)?)?;
            let parts = python::partition(content, separator, name == "rpartition");
            Ok(Value::from(Tuple::from(parts.map(Value::from))))
        }
        "replace" => {
            let [old, new, count] = bind(name, ["old", "new", "count"], args)?;
            let (old, new) = (required(old, name, "old")?, required(new, name, "new")?);
            let count = count.map_or(Ok(-1), |count| integer(&count, name))?;
            replace(state, content, [text(&old, name)?, text(&new, name)?], count)
        }
        "join" => {
            let [items] = bind(name, ["iterable"], args)?;
            join(state, content, &required(items, name, "iterable")?)
        }
        "center" | "ljust" | "rjust" | "zfill" | "expandtabs" => widen(state, content, name, args),
        "startswith" | "endswith" | "find" | "rfind" | "index" | "rindex" | "count" => {
            search(content, name, args)
        }
        "format" => {
            let format = Value::from(content);
            minijinja_contrib::pycompat::unknown_method_callback(state, &format, name, args)
        }
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

/// What a method says of a text, if it is one of those that say something.
fn predicate(content: &str, name: &str) -> Option<bool> {
    let all = |holds: fn(char) -> bool| !content.is_empty() && content.chars().all(holds);
    Some(match name {
        "isalnum" => all(|letter| letter.is_alphabetic() || python::is_numeric(letter)),
        "isalpha" => all(char::is_alphabetic),
        "isascii" => content.is_ascii(),
        "isdecimal" => all(python::is_decimal),
        "isdigit" => all(python::is_digit),
        "isidentifier" => {
            let begins = |letter: char| letter == '_' || letter.is_alphabetic();
            content.starts_with(begins)
                && content.chars().all(|letter| begins(letter) || letter.is_numeric())
        }
        "islower" => {
            content.chars().any(char::is_lowercase) && !content.chars().any(char::is_uppercase)
        }
        "isupper" => {
            content.chars().any(char::is_uppercase) && !content.chars().any(char::is_lowercase)
        }
        "isnumeric" => all(python::is_numeric),
        "isprintable" => content.chars().all(super::display::is_printable),
        "isspace" => all(python::is_space),
        "istitle" => python::is_title(content),
        _ => return None,
    })
}

fn cased(content: &str, name: &str) -> String {
    match name {
        "upper" => content.to_uppercase(),
        "casefold" => content.to_lowercase().replace('ß', "ss"),
        "swapcase" => python::swap_case(content),
        "capitalize" => python::capitalize(content),
        "title" => python::title(content),
        _ => content.to_lowercase(),
    }
}

fn not_empty(separator: &str) -> Result<&str, Error> {
    match separator {
        "" => Err(type_error("empty separator")),
        _ => Ok(separator),
    }
}

fn split(content: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    let [separator, max] = bind(name, ["sep", "maxsplit"], args)?;
    let max = max.map_or(Ok(-1), |max| integer(&max, name))?;
    let from_right = name == "rsplit";
    let parts = match separator.filter(|separator| !separator.is_none()) {
        None => python::split_at_space(content, max, from_right),
        Some(separator) => {
            python::split_at(content, not_empty(text(&separator, name)?)?, max, from_right)
        }
    };
    Ok(parts.into_iter().map(Value::from).collect())
}

/// Python's `replace`. A negative count is all of them.
pub(crate) fn replace(
    state: &State,
    content: &str,
    [old, new]: [&str; 2],
    count: i64,
) -> Result<Value, Error> {
    let mut out = PaidText::new(state);
    let mut end = 0;
    let most = usize::try_from(count).unwrap_or(usize::MAX);
    for (at, _) in content.match_indices(old).take(most) {
        out.push(&content[end..at])?;
        out.push(new)?;
        end = at + old.len();
    }
    out.push(&content[end..])?;
    Ok(Value::from(out.finish()))
}

fn join(state: &State, between: &str, items: &Value) -> Result<Value, Error> {
    if items.is_none() {
        return Err(type_error("can only join an iterable"));
    }
    let mut out = PaidText::new(state);
    for (at, item) in items.try_iter()?.enumerate() {
        out.push(if at > 0 { between } else { "" })?;
        let error = || type_error(format!("join: item {at} is {}, not str", name_of(&item)));
        out.push(item.as_str().ok_or_else(error)?)?;
    }
    Ok(Value::from(out.finish()))
}

fn widen(state: &State, content: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    let mut out = PaidText::new(state);
    if name == "expandtabs" {
        let [size] = bind(name, ["tabsize"], args)?;
        expand_tabs(&mut out, content, size.map_or(Ok(8), |size| integer(&size, name))?)?;
        return Ok(Value::from(out.finish()));
    }
    let [width, fill] = bind(name, ["width", "fillchar"], args)?;
    let width = integer(&required(width, name, "width")?, name)?;
    let fill = fill.unwrap_or_else(|| Value::from(if name == "zfill" { "0" } else { " " }));
    let fill = text(&fill, name)?;
    if fill.chars().count() != 1 {
        return Err(type_error("the fill character must be exactly one character long"));
    }
    let letters = i64::try_from(content.chars().count()).unwrap_or(i64::MAX);
    let more = width.saturating_sub(letters).max(0);
    let left = match name {
        "ljust" => 0,
        // As in Python, an odd space is on the left where the width is odd.
        "center" => more / 2 + (more & width & 1),
        _ => more,
    };
    let signed = name == "zfill" && content.starts_with(['+', '-']);
    let (sign, rest) = content.split_at(usize::from(signed));
    out.push(sign)?;
    out.push_times(fill, left)?;
    out.push(rest)?;
    out.push_times(fill, more - left)?;
    Ok(Value::from(out.finish()))
}

fn expand_tabs(out: &mut PaidText, content: &str, size: i64) -> Result<(), Error> {
    let mut column = 0;
    for letter in content.chars() {
        match letter {
            '\t' if size > 0 => {
                let spaces = size - column % size;
                out.push_times(" ", spaces)?;
                column = column.saturating_add(spaces);
            }
            '\t' => {}
            '\n' | '\r' => {
                out.push_char(letter)?;
                column = 0;
            }
            _ => {
                out.push_char(letter)?;
                column += 1;
            }
        }
    }
    Ok(())
}

/// Methods that look for a part, from a letter to a letter.
fn search(content: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    let [part, start, end] = bind(name, ["sub", "start", "end"], args)?;
    let part = required(part, name, "sub")?;
    let letters = content.chars().count();
    let place = |place: Option<Value>, default: usize| match place.filter(|place| !place.is_none())
    {
        None => Ok::<usize, Error>(default),
        Some(place) => {
            let place = integer(&place, name)?;
            let from_end = if place < 0 { letters as i64 } else { 0 };
            Ok(usize::try_from(place.saturating_add(from_end)).unwrap_or(0))
        }
    };
    let (start, end) = (place(start, 0)?, place(end, letters)?.min(letters));
    let window = (start <= end).then(|| {
        let byte =
            |letter: usize| content.char_indices().nth(letter).map_or(content.len(), |c| c.0);
        &content[byte(start)..byte(end)]
    });
    if let "startswith" | "endswith" = name {
        let is = |part: &str| match name {
            "startswith" => window.is_some_and(|window| window.starts_with(part)),
            _ => window.is_some_and(|window| window.ends_with(part)),
        };
        if part.is_tuple() {
            for part in part.try_iter()? {
                if is(text(&part, name)?) {
                    return Ok(Value::from(true));
                }
            }
            return Ok(Value::from(false));
        }
        return Ok(Value::from(is(text(&part, name)?)));
    }
    let part = text(&part, name)?;
    if name == "count" {
        return Ok(Value::from(window.map_or(0, |window| window.matches(part).count())));
    }
    let found = window.and_then(|window| match name {
        "find" | "index" => window.find(part).map(|at| &window[..at]),
        _ => window.rfind(part).map(|at| &window[..at]),
    });
    match found {
        Some(before) => Ok(Value::from(start + before.chars().count())),
        None if matches!(name, "index" | "rindex") => Err(type_error("substring not found")),
        None => Ok(Value::from(-1)),
    }
}
