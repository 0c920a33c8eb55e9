//! Settings as the host hands them over, and errors that name the key.

use serde::de::DeserializeOwned;

/// Reads settings from JSON.
///
/// serde says what is wrong and not with which key. Where its error stands in the text tells the
/// key: a deserializer that keeps book of the path would make every policy a quarter larger.
pub(crate) fn read<T: DeserializeOwned>(json: &str) -> Result<T, String> {
    serde_json::from_str(json).map_err(|error| {
        let text = error.to_string();
        // The position itself is none of the operator's, whose file is TOML.
        let what = text.rsplit_once(" at line ").map_or(&*text, |(what, _)| what);
        // What an object lacks is known at its end, and is about the object; any other error there
        // is about the last of its values.
        let about_whole = what.starts_with("missing field") || what.starts_with("invalid length");
        match path(before(json, error.line(), error.column()), about_whole) {
            path if path.is_empty() => what.to_owned(),
            path => format!("{path}: {what}"),
        }
    })
}

/// What serde had read of the text when it was there.
fn before(json: &str, line: usize, column: usize) -> &str {
    let lines = json.split_inclusive('\n').take(line.saturating_sub(1));
    let end = lines.map(str::len).sum::<usize>() + column;
    json.get(..end.min(json.len())).unwrap_or("")
}

/// An object or a list that has begun, and where in it the text is.
enum Open<'a> {
    Object(Option<&'a str>),
    List(usize),
}

/// The path of keys at the end of a text that is the beginning of JSON.
fn path(json: &str, about_whole: bool) -> String {
    let mut open = vec![];
    let mut text = "";
    let mut rest = json;
    while let Some(at) = rest.find(['"', '{', '}', '[', ']', ':', ',']) {
        let byte = rest.as_bytes()[at];
        rest = &rest[at + 1..];
        match byte {
            b'"' => (text, rest) = string(rest),
            b'{' => open.push(Open::Object(None)),
            b'[' => open.push(Open::List(0)),
            b':' => {
                if let Some(Open::Object(key)) = open.last_mut() {
                    *key = Some(text);
                }
            }
            b',' => match open.last_mut() {
                Some(Open::Object(key)) => *key = None,
                Some(Open::List(index)) => *index += 1,
                None => {}
            },
            _ if rest.is_empty() && !about_whole => {}
            _ => drop(open.pop()),
        }
    }
    spelled(&open)
}

/// What is between the quotes, as it is written, and what follows.
fn string(after_quote: &str) -> (&str, &str) {
    let mut escaped = false;
    let end = after_quote.find(|c| {
        let ends = c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        ends
    });
    match end {
        Some(end) => (&after_quote[..end], &after_quote[end + 1..]),
        None => (after_quote, ""),
    }
}

fn spelled(open: &[Open<'_>]) -> String {
    let mut path = String::new();
    for level in open {
        match level {
            Open::Object(Some(key)) => {
                if !path.is_empty() {
                    path.push('.');
                }
                path.push_str(key);
            }
            Open::Object(None) => {}
            Open::List(index) => {
                path.push('[');
                path.push_str(&index.to_string());
                path.push(']');
            }
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;
    use crate::Span;

    #[derive(Debug, Default, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Settings {
        time: Time,
        times: Vec<Time>,
        by_name: BTreeMap<String, u32>,
        action: Action,
    }

    #[derive(Debug, Default, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only errors are read")]
    struct Time {
        base: Span,
        #[serde(default)]
        more: Span,
    }

    #[derive(Debug, Default, Deserialize)]
    #[serde(rename_all = "snake_case")]
    #[expect(dead_code, reason = "only errors are read")]
    enum Action {
        #[default]
        Stop,
        Wait(Time),
    }

    fn refused(json: &str) -> String {
        read::<Settings>(json).expect_err(json)
    }

    const NO_TIME: &str = "a time is written like 250ms, 30s or 1m 30s, got \"soon\"";

    #[test]
    fn an_error_names_the_key_wherever_it_stands() {
        for (json, key) in [
            (r#"{"time": {"base": "soon"}}"#, "time.base"),
            (r#"{"time": {"base": "soon", "more": "1s"}}"#, "time.base"),
            (r#"{"time": {"base": "1s", "more": "soon"}, "times": []}"#, "time.more"),
            (r#"{"times": [{"base": "1s"}, {"base": "soon"}]}"#, "times[1].base"),
            (r#"{"action": {"wait": {"base": "soon"}}}"#, "action.wait.base"),
            ("{\n  \"time\": {\n    \"base\": \"soon\"\n  }\n}", "time.base"),
        ] {
            assert_eq!(refused(json), format!("{key}: {NO_TIME}"), "{json}");
        }
    }

    #[test]
    fn what_is_missing_or_too_much_is_named_with_the_table_that_it_is_of() {
        for (json, said) in [
            (r#"{"time": {"more": "1s"}}"#, "time: missing field `base`"),
            (
                r#"{"time": {"bsae": "1s"}}"#,
                "time: unknown field `bsae`, expected `base` or `more`",
            ),
            (r#"{"action": "go"}"#, "action: unknown variant `go`, expected `stop` or `wait`"),
            (r#"{"action": {"go": 1}}"#, "action: unknown variant `go`, expected `stop` or `wait`"),
            (
                r#"{"by_name": {"a": 1, "b\"}": -1}}"#,
                r#"by_name.b\"}: invalid value: integer `-1`, expected u32"#,
            ),
            (r#"{"time": 5}"#, "time: invalid type: integer `5`, expected struct Time"),
            (r#"{"times": {}}"#, "times: invalid type: map, expected a sequence"),
        ] {
            assert_eq!(refused(json), said, "{json}");
        }
    }

    #[test]
    fn what_is_of_no_key_names_none() {
        let all = "`time`, `times`, `by_name`, `action`";
        assert_eq!(
            refused(r#"{"tmie": 1}"#),
            format!("unknown field `tmie`, expected one of {all}")
        );
        assert_eq!(refused("3"), "invalid type: integer `3`, expected struct Settings");
        assert_eq!(refused(""), "EOF while parsing a value");
    }
}
