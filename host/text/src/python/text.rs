//! What Python's methods of strings do, on texts alone.

use unicode_categories::UnicodeCategories;

/// Python counts the four separators of ASCII as white space; Unicode does not.
pub(crate) fn is_space(letter: char) -> bool {
    letter.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&letter)
}

/// The ends at which Python's `strip`, `lstrip` and `rstrip` cut a text.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ends {
    Both,
    Left,
    Right,
}

/// Without these letters, or white space, at its ends.
pub(crate) fn strip<'t>(text: &'t str, letters: Option<&str>, ends: Ends) -> &'t str {
    let cut = |letter: char| letters.map_or_else(|| is_space(letter), |set| set.contains(letter));
    let text = if ends == Ends::Right { text } else { text.trim_start_matches(cut) };
    if ends == Ends::Left { text } else { text.trim_end_matches(cut) }
}

/// Parts between white space. `max`: of splits, all if negative.
pub(crate) fn split_at_space(text: &str, max: i64, from_right: bool) -> Vec<&str> {
    let mut parts = Vec::new();
    let mut rest = strip(text, None, if from_right { Ends::Right } else { Ends::Left });
    while !rest.is_empty() {
        let full = max >= 0 && parts.len() as i64 >= max;
        let found = if from_right { rest.rfind(is_space) } else { rest.find(is_space) };
        let Some(at) = found.filter(|_| !full) else {
            let end = if from_right { Ends::Left } else { Ends::Right };
            // What is left over keeps its white space, except at the text's own end.
            parts.push(if full { rest } else { strip(rest, None, end) });
            break;
        };
        let width = rest[at..].chars().next().map_or(1, char::len_utf8);
        let (left, right) = (&rest[..at], &rest[at + width..]);
        parts.push(if from_right { right } else { left });
        rest = match from_right {
            true => strip(left, None, Ends::Right),
            false => strip(right, None, Ends::Left),
        };
    }
    if from_right {
        parts.reverse();
    }
    parts
}

/// Parts between a separator, which is not empty.
pub(crate) fn split_at<'t>(
    text: &'t str,
    separator: &str,
    max: i64,
    from_right: bool,
) -> Vec<&'t str> {
    let parts = usize::try_from(max).map_or(usize::MAX, |max| max.saturating_add(1));
    if !from_right {
        return text.splitn(parts, separator).collect();
    }
    let mut parts: Vec<_> = text.rsplitn(parts, separator).collect();
    parts.reverse();
    parts
}

/// Lines, by all that Python takes for an end of one.
pub(crate) fn lines(text: &str, keep_ends: bool) -> Vec<&str> {
    let ends = |letter: char| matches!(letter, '\n'..='\r' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}');
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(ends) {
        let width = match rest[at..].starts_with("\r\n") {
            true => 2,
            false => rest[at..].chars().next().map_or(1, char::len_utf8),
        };
        lines.push(&rest[..if keep_ends { at + width } else { at }]);
        rest = &rest[at + width..];
    }
    if !rest.is_empty() {
        lines.push(rest);
    }
    lines
}

/// `partition`: before, the separator, after.
pub(crate) fn partition<'t>(text: &'t str, separator: &str, from_right: bool) -> [&'t str; 3] {
    let found = if from_right { text.rfind(separator) } else { text.find(separator) };
    match found {
        Some(at) => {
            let after = at + separator.len();
            [&text[..at], &text[at..after], &text[after..]]
        }
        None if from_right => ["", "", text],
        None => [text, "", ""],
    }
}

/// The first letter as a title has it, the others small.
pub(crate) fn capitalize(text: &str) -> String {
    let mut letters = text.chars();
    match letters.next() {
        Some(first) => titled(first) + &letters.as_str().to_lowercase(),
        None => String::new(),
    }
}

/// Python's `title`: each run of letters begins with a capital.
pub(crate) fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut in_word = false;
    for letter in text.chars() {
        match in_word {
            true => out.extend(letter.to_lowercase()),
            false => out.push_str(&titled(letter)),
        }
        in_word = is_cased(letter);
    }
    out
}

/// Whether every word begins with a capital and goes on in small letters.
pub(crate) fn is_title(text: &str) -> bool {
    let (mut in_word, mut any) = (false, false);
    for letter in text.chars() {
        let capital = letter.is_uppercase() || letter.is_letter_titlecase();
        if (capital && in_word) || (letter.is_lowercase() && !in_word) {
            return false;
        }
        in_word = is_cased(letter);
        any |= in_word;
    }
    any
}

fn is_cased(letter: char) -> bool {
    letter.is_uppercase() || letter.is_lowercase() || letter.is_letter_titlecase()
}

/// A letter at the beginning of a title: of two letters in one, the second stays small.
fn titled(letter: char) -> String {
    match letter {
        'Ǆ'..='ǆ' => "ǅ".to_owned(),
        'Ǉ'..='ǉ' => "ǈ".to_owned(),
        'Ǌ'..='ǌ' => "ǋ".to_owned(),
        'Ǳ'..='ǳ' => "ǲ".to_owned(),
        // Its capital is two letters, of which neither is small.
        'ŉ' => "ʼN".to_owned(),
        _ => {
            let mut upper = letter.to_uppercase();
            let mut out: String = upper.next().into_iter().collect();
            out.extend(upper.flat_map(char::to_lowercase));
            out
        }
    }
}

/// Large letters small and small ones large.
pub(crate) fn swap_case(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter.is_uppercase() {
            true => out.extend(letter.to_lowercase()),
            false => out.extend(letter.to_uppercase()),
        }
    }
    out
}

/// `isdecimal`, for one letter.
pub(crate) fn is_decimal(letter: char) -> bool {
    letter.is_number_decimal_digit()
}

/// `isdigit`, for one letter: those raised, lowered or in circles too.
pub(crate) fn is_digit(letter: char) -> bool {
    is_decimal(letter)
        || matches!(letter, '²' | '³' | '¹' | '⁰' | '⁴'..='⁹' | '₀'..='₉' | '①'..='⑨'
            | '⑴'..='⑼' | '⒈'..='⒐' | '⓪' | '⓵'..='⓽' | '⓿' | '❶'..='❾' | '➀'..='➈' | '➊'..='➒')
}

/// `isnumeric`, for one letter: fractions, Roman and Chinese numbers too.
pub(crate) fn is_numeric(letter: char) -> bool {
    letter.is_numeric() || "〇一二三四五六七八九十百千万億兆零壹贰叁肆伍陆柒捌玖拾".contains(letter)
}
