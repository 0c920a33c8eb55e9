use expect_test::{Expect, expect};
use proptest::prelude::*;

use super::*;

/// Pieces in, one line per piece out, then what a flush gives.
fn check(stops: &[&str], pieces: &[&str], expected: Expect) {
    let mut matcher = StopMatcher::new(stops.iter().map(ToString::to_string).collect());
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
    let mut matcher = StopMatcher::new(vec!["aa".into(), "bc".into()]);
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
        let mut matcher = StopMatcher::new(stops.clone());
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
