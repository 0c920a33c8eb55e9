use expect_test::{Expect, expect};
use proptest::prelude::*;

use super::*;

/// Special tokens are called `<1>`, `<22>` and so on here.
fn matcher(stops: &[&str]) -> StopMatcher {
    let stops = stops.iter().map(ToString::to_string).collect();
    StopMatcher::new(stops, |stop| stop.contains("<1>") || stop.contains("<22>"))
}

/// Pieces in, one line per piece out, then what a flush gives.
fn check(stops: &[&str], pieces: &[&str], expected: Expect) {
    let mut matcher = matcher(stops);
    let mut story = String::new();
    for piece in pieces {
        let Stopped { emit, stopped } = matcher.push(piece);
        let end = if stopped { " stopped" } else { "" };
        story.push_str(&format!("{piece:?} -> {emit:?}{end}\n"));
    }
    story.push_str(&format!("flush -> {:?}\n", matcher.flush()));
    expected.assert_eq(&story);
}

#[test]
fn a_stop_across_pieces_is_held_back_and_never_emitted() {
    check(
        &["\n\nUser:"],
        &["Hello", ".\n", "\nUs", "er: and more", "ignored"],
        expect![[r#"
            "Hello" -> "Hello"
            ".\n" -> "."
            "\nUs" -> ""
            "er: and more" -> "" stopped
            "ignored" -> "" stopped
            flush -> ""
        "#]],
    );
}

#[test]
fn what_turned_out_to_be_no_stop_is_given_out() {
    check(
        &["</end>"],
        &["a</en", "x </e"],
        expect![[r#"
            "a</en" -> "a"
            "x </e" -> "</enx "
            flush -> "</e"
        "#]],
    );
}

#[test]
fn only_the_part_that_can_still_match_stays_held() {
    check(
        &["aab"],
        &["a", "a", "a", "a", "b"],
        expect![[r#"
            "a" -> ""
            "a" -> ""
            "a" -> "a"
            "a" -> "a"
            "b" -> "" stopped
            flush -> ""
        "#]],
    );
}

#[test]
fn the_stop_complete_first_wins_over_one_that_began_earlier() {
    check(
        &["abcd", "bc"],
        &["xab", "c", "d"],
        expect![[r#"
            "xab" -> "x"
            "c" -> "a" stopped
            "d" -> "" stopped
            flush -> ""
        "#]],
    );
}

#[test]
fn an_empty_stop_is_left_out() {
    check(
        &[""],
        &["text"],
        expect![[r#"
            "text" -> "text"
            flush -> ""
        "#]],
    );
}

#[test]
fn a_stop_in_passed_text_is_none_but_one_that_begins_there_is() {
    let mut matcher = matcher(&["aa", "bc"]);
    assert_eq!(matcher.pass("aaa"), "aa", "the last may be the first of another");
    assert_eq!(matcher.pass("xb"), "ax");
    assert_eq!(matcher.push("cd"), Stopped { emit: String::new(), stopped: true });
    assert_eq!(matcher.pass("more"), "", "it has stopped");
}

/// The text before the first stop, by trying every end of it.
fn naive<'t>(stops: &[String], text: &'t str) -> (&'t str, bool) {
    let ends = text.char_indices().map(|(at, c)| at + c.len_utf8());
    for end in ends {
        let found = stops.iter().filter(|stop| !stop.is_empty() && text[..end].ends_with(*stop));
        if let Some(longest) = found.map(String::len).max() {
            return (&text[..end - longest], true);
        }
    }
    (text, false)
}

proptest! {
    // A tiny alphabet, so that stops overlap themselves and one another all the time.
    #[test]
    fn any_cut_of_the_text_emits_what_comes_before_the_first_stop(
        stops in prop::collection::vec("[abé]{0,5}", 0..4),
        pieces in prop::collection::vec("[abcé]{0,4}", 0..12),
    ) {
        let text = pieces.concat();
        let (before, stops_at) = naive(&stops, &text);
        let mut matcher = StopMatcher::new(stops.clone(), |_| false);
        let (mut emitted, mut pushed, mut stopped) = (String::new(), String::new(), false);
        for piece in &pieces {
            let out = matcher.push(piece);
            emitted.push_str(&out.emit);
            pushed.push_str(piece);
            stopped = out.stopped;
            prop_assert!(before.starts_with(&emitted));
            if !stopped {
                // Nothing is held that no stop begins with.
                let held = &pushed[emitted.len()..];
                prop_assert!(held.is_empty() || stops.iter().any(|stop| stop.starts_with(held)));
            }
        }
        emitted.push_str(&matcher.flush());
        prop_assert_eq!(emitted, before);
        prop_assert_eq!(stopped, stops_at);
    }
}

/// Pieces in, of which those in angle brackets are special tokens; what comes out.
fn check_special(stops: &[&str], pieces: &[&str], expected: Expect) {
    let mut matcher = matcher(stops);
    let mut story = String::new();
    for piece in pieces {
        let out =
            if piece.starts_with('<') { matcher.push_special(piece) } else { matcher.push(piece) };
        let end = if out.stopped { " stopped" } else { "" };
        story.push_str(&format!("{piece:?} -> {:?}{end}\n", out.emit));
    }
    story.push_str(&format!("flush -> {:?}\n", matcher.flush()));
    expected.assert_eq(&story);
}

#[test]
fn a_special_token_ends_the_text_where_it_is_a_stop() {
    check_special(
        &["<1>"],
        &["a", "<22>", "b", "<1>", "c"],
        expect![[r#"
            "a" -> "a"
            "<22>" -> ""
            "b" -> "b"
            "<1>" -> "" stopped
            "c" -> "" stopped
            flush -> ""
        "#]],
    );
}

#[test]
fn a_special_token_within_a_stop_holds_the_text_before_it_back() {
    check_special(
        &["END<1>\n<22>x"],
        &["a END", "<1>", "y EN", "D", "<1>", "\n", "<22>", "xyz"],
        expect![[r#"
            "a END" -> "a "
            "<1>" -> ""
            "y EN" -> "ENDy "
            "D" -> ""
            "<1>" -> ""
            "\n" -> ""
            "<22>" -> ""
            "xyz" -> "" stopped
            flush -> ""
        "#]],
    );
}

#[test]
fn a_special_token_hides_no_stop_and_its_name_is_none_by_itself() {
    check_special(
        &["ab", "2"],
        &["a", "<22>", "b"],
        expect![[r#"
            "a" -> ""
            "<22>" -> ""
            "b" -> "" stopped
            flush -> ""
        "#]],
    );
}

#[test]
fn the_name_of_a_special_token_ends_the_text_when_it_is_written_out_too() {
    check_special(
        &["<1>"],
        &["a", "b<", "1>c"],
        expect![[r#"
            "a" -> "a"
            "b<" -> "b"
            "1>c" -> "" stopped
            flush -> ""
        "#]],
    );
}

#[test]
fn special_tokens_that_were_passed_may_begin_a_stop_but_not_be_one() {
    let mut matcher = matcher(&["<1>a", "<22>"]);
    assert_eq!(matcher.pass_special("<22>"), "");
    assert_eq!(matcher.pass("x"), "x");
    assert_eq!(matcher.pass_special("<1>"), "");
    assert_eq!(matcher.push("a"), Stopped { emit: String::new(), stopped: true });
}

proptest! {
    // Against the text with all names in it, and that without.
    #[test]
    fn stops_with_special_tokens_are_found_wherever_they_are_cut(
        stops in prop::collection::vec(prop::collection::vec("[ab]|<1>|<22>", 1..5), 1..4),
        pieces in prop::collection::vec("[ab]{0,3}|<1>|<22>", 0..12),
    ) {
        let stops: Vec<String> = stops.iter().map(|parts| parts.concat()).collect();
        let expected = naive_special(&stops, &pieces);
        let mut matcher = matcher(&stops.iter().map(String::as_str).collect::<Vec<_>>());
        let (mut emitted, mut stopped) = (String::new(), false);
        for piece in &pieces {
            let special = piece.starts_with('<');
            let out = if special { matcher.push_special(piece) } else { matcher.push(piece) };
            emitted.push_str(&out.emit);
            stopped = out.stopped;
        }
        emitted.push_str(&matcher.flush());
        prop_assert_eq!((emitted, stopped), expected);
    }
}

/// The text before the first stop, by trying every end of it.
fn naive_special(stops: &[String], pieces: &[String]) -> (String, bool) {
    // Each byte, and whether it is of a name.
    let special = |piece: &String| piece.starts_with('<');
    let bytes: Vec<(u8, bool)> =
        pieces.iter().flat_map(|piece| piece.bytes().map(|byte| (byte, special(piece)))).collect();
    let text = |bytes: &[(u8, bool)]| -> String {
        bytes.iter().filter(|(_, named)| !named).map(|(byte, _)| char::from(*byte)).collect()
    };
    for end in 1..=bytes.len() {
        let seen = &bytes[..end];
        let named: String = seen.iter().map(|(byte, _)| char::from(*byte)).collect();
        let mut found = Vec::new();
        for stop in stops {
            if !seen[end - 1].1 && text(seen).ends_with(stop) {
                found.push(stop.len());
            }
            if stop.contains('<') && named.ends_with(stop.as_str()) {
                // A name that is cut belongs to the stop as a whole.
                let cut = seen.len() - stop.len();
                let cut = (0..=cut).rev().find(|&at| !seen[at].1 || seen[at].0 == b'<');
                found.push(text(&seen[cut.unwrap_or(0)..]).len());
            }
        }
        if let Some(longest) = found.into_iter().max() {
            let text = text(seen);
            return (text[..text.len() - longest].to_owned(), true);
        }
    }
    (text(&bytes), false)
}
