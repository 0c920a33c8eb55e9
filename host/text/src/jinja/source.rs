//! A template's text as Jinja2 reads it, spelled so that minijinja reads the same.

use std::borrow::Cow;
use std::ops::Range;

use minijinja::machinery::{self, Token};
use minijinja::syntax::SyntaxConfig;

/// - Every end of a line is a line feed.
/// - `{% generation %}` marks what the assistant said, for training; its content is just text, and
///   what is set in it stays in it.
/// - `\\/` in a text is two letters, as it is for Python.
/// - `{% raw %}` keeps the line feed behind it, which other blocks drop.
pub(crate) fn normalized(source: &str, syntax: &SyntaxConfig) -> String {
    let source: Cow<'_, str> = match source.contains('\r') {
        true => source.replace("\r\n", "\n").replace('\r', "\n").into(),
        false => source.into(),
    };
    let mut out = String::with_capacity(source.len());
    let mut end = 0;
    for (range, text) in changes(&source, syntax) {
        out.push_str(&source[end..range.start]);
        out.push_str(text);
        end = range.end;
    }
    out.push_str(&source[end..]);
    out
}

/// What to put where, in order. A text that cannot be read is for the parser to refuse.
fn changes(source: &str, syntax: &SyntaxConfig) -> Vec<(Range<usize>, &'static str)> {
    let mut changes = Vec::new();
    let mut data = 0;
    let mut in_block = false;
    for (token, span) in machinery::tokenize(source, false, syntax.clone()).map_while(Result::ok) {
        let range = span.start_offset as usize..span.end_offset as usize;
        match token {
            Token::Ident("generation") if in_block => changes.push((range.clone(), "with")),
            Token::Ident("endgeneration") if in_block => changes.push((range.clone(), "endwith")),
            Token::String(_) => changes.extend(slashes(source, range.clone())),
            Token::VariableStart | Token::BlockStart => {
                changes.extend(raw_ends(source, data..range.start));
            }
            Token::VariableEnd | Token::BlockEnd => data = range.end,
            _ => {}
        }
        in_block = matches!(token, Token::BlockStart);
    }
    changes.extend(raw_ends(source, data..source.len()));
    changes
}

/// The places between `\` and `/` in a text, each of which gets another `\`.
fn slashes(source: &str, text: Range<usize>) -> Vec<(Range<usize>, &'static str)> {
    let mut places = Vec::new();
    let mut escaped = false;
    for (at, byte) in text.clone().zip(source[text].bytes()) {
        if escaped && byte == b'/' {
            places.push((at..at, "\\"));
        }
        escaped = byte == b'\\' && !escaped;
    }
    places
}

/// The ends of the `{% raw %}`s in a part without other tags, each of which gets a `+`.
fn raw_ends(source: &str, part: Range<usize>) -> Vec<(Range<usize>, &'static str)> {
    let mut ends = Vec::new();
    let mut at = part.start;
    let find = |from: usize, what: &str| source[from..part.end].find(what).map(|at| from + at);
    while let Some(tag) = find(at, "{").filter(|tag| tag + 1 < part.end) {
        let close = match source.as_bytes()[tag + 1] {
            b'#' => find(tag + 2, "#}").map(|close| close + 2),
            b'%' => find(tag + 2, "%}").and_then(|close| {
                if !matches!(source.as_bytes()[close - 1], b'-' | b'+') {
                    ends.push((close..close, "+"));
                }
                end_of_raw(source, close + 2..part.end)
            }),
            _ => Some(tag + 1),
        };
        let Some(close) = close else { break };
        at = close;
    }
    ends
}

/// Behind the `{% endraw %}`.
fn end_of_raw(source: &str, part: Range<usize>) -> Option<usize> {
    let mut at = part.start;
    while let Some(tag) = source[at..part.end].find("{%").map(|tag| at + tag + 2) {
        let name = source[tag..part.end].trim_start_matches(['-', '+']).trim_start();
        if name.starts_with("endraw") {
            return source[tag..part.end].find("%}").map(|close| tag + close + 2);
        }
        at = tag;
    }
    None
}
