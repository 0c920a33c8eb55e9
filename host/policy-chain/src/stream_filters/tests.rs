use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::testing::{Fake, failure, outcome_of};
use crate::{ChainEntry, FailureAction, OnFailure, at_once};
use interlock_policy_api::{FailureKind, Watch, WindowSize};

const GATE: fn(u32) -> Guarding = |tokens| Guarding::Gate(size(tokens));
const OBSERVE: fn(u32) -> Guarding = |tokens| Guarding::Observe(size(tokens));

const fn size(tokens: u32) -> WindowSize {
    WindowSize { tokens, delay_max: Duration::from_millis(50) }
}

/// A policy that reads so, and judges each window like this.
fn guard(
    name: &'static str,
    guarding: Guarding,
    differs: impl Fn(&interlock_policy_api::Window<'_>) -> interlock_policy_api::Answer<Verdict>
    + Send
    + Sync
    + 'static,
) -> Fake {
    let watch = Watch { guarding, ..Watch::default() };
    Fake { watch, window: Some(Box::new(differs)), ..Fake::named(name) }
}

fn entry(fake: Fake) -> ChainEntry {
    ChainEntry::new(Arc::new(fake), OnFailure::default())
}

fn stream_filters(entries: Vec<ChainEntry>) -> (StreamFilters, crate::PolicySession) {
    let session = outcome_of(entries).session;
    (session.stream_filters().expect("someone reads"), session)
}

fn reason() -> Reason {
    Reason { code: Code::from("bad_word"), detail: None }
}

fn used(generated_tokens: u32) -> Usage {
    Usage { generated_tokens, ..Usage::default() }
}

/// One token for each word.
fn say(stream_filters: &mut StreamFilters, words: &str) -> Vec<FilteredText> {
    let now = Instant::now();
    words
        .split_inclusive(' ')
        .zip(1..)
        .map(|(word, tokens)| at_once(stream_filters.push(word, used(tokens), now)))
        .collect()
}

fn texts(passed: &[FilteredText]) -> Vec<&str> {
    passed.iter().map(|passed| passed.text.as_str()).collect()
}

#[test]
fn without_a_reader_there_are_no_filters() {
    let session = outcome_of(vec![entry(Fake::named("a"))]).session;
    assert!(session.stream_filters().is_none());
}

#[test]
fn a_gate_lets_text_go_window_by_window() {
    let (mut stream_filters, _session) =
        stream_filters(vec![entry(guard("g", GATE(2), |_| Ok(Verdict::Pass)))]);
    assert!(stream_filters.gates());
    let passed = say(&mut stream_filters, "one two three four five");
    assert_eq!(texts(&passed), ["", "one two ", "", "three four ", ""]);
    let rest = at_once(stream_filters.finish(used(5), Instant::now()));
    assert_eq!(rest, FilteredText { text: "five".into(), end: None });
}

#[test]
fn a_window_that_is_too_old_goes_as_it_is() {
    let (mut stream_filters, _session) =
        stream_filters(vec![entry(guard("g", GATE(9), |_| Ok(Verdict::Pass)))]);
    let now = Instant::now();
    assert_eq!(at_once(stream_filters.push("one ", used(1), now)).text, "");
    let at = stream_filters.due_at().expect("it waits for time");
    assert_eq!(at, now + Duration::from_millis(50));
    assert_eq!(at_once(stream_filters.due(used(1), now)).text, "", "it was not due");
    assert_eq!(at_once(stream_filters.due(used(1), at)).text, "one ");
    assert_eq!(stream_filters.due_at(), None);
}

#[test]
fn a_word_is_redacted_across_the_border_of_a_window() {
    let redact = |window: &interlock_policy_api::Window<'_>| {
        let text = window.text.replace("secret", "******");
        // As much as may be the front of the word stays.
        let hold = (1.."secret".len())
            .rev()
            .find(|&n| text.ends_with(&"secret"[..n]) && !window.finished)
            .unwrap_or(0);
        let text = text[..text.len() - hold].to_owned();
        Ok(Verdict::Replace { text, hold: hold as u32, reason: reason() })
    };
    let (mut stream_filters, _session) = stream_filters(vec![entry(guard("g", GATE(1), redact))]);
    let now = Instant::now();
    let mut text = String::new();
    for (piece, tokens) in ["a sec", "ret b se", "c", "c"].into_iter().zip(1..) {
        text += &at_once(stream_filters.push(piece, used(tokens), now)).text;
    }
    text += &at_once(stream_filters.finish(used(4), now)).text;
    assert_eq!(text, "a ****** b secc");
}

#[test]
fn what_a_gate_stops_still_goes_past_those_behind_it() {
    let stop = |window: &interlock_policy_api::Window<'_>| {
        Ok(if window.text.contains("bad") {
            Verdict::Stop { text: "[cut]".into(), reason: reason() }
        } else {
            Verdict::Pass
        })
    };
    let shout = |window: &interlock_policy_api::Window<'_>| {
        Ok(Verdict::Replace { text: window.text.to_uppercase(), hold: 0, reason: reason() })
    };
    let (mut stream_filters, _session) = stream_filters(vec![
        entry(guard("stop", GATE(1), stop)),
        entry(guard("shout", GATE(3), shout)),
    ]);
    let passed = say(&mut stream_filters, "one two bad three");
    assert_eq!(texts(&passed), ["", "", "ONE TWO [CUT]", ""]);
    let end = GuardEnd::Stop { policy: "stop".into(), reason: reason() };
    assert_eq!(passed[2].end, Some(end.clone()));
    assert_eq!(passed[3].end, Some(end.clone()));
    let after = at_once(stream_filters.finish(used(4), Instant::now()));
    assert_eq!(after, FilteredText { text: String::new(), end: Some(end) });
}

#[test]
fn failing_the_request_wins_over_stopping_it() {
    let stop = |_: &interlock_policy_api::Window<'_>| {
        Ok(Verdict::Stop { text: "x".into(), reason: reason() })
    };
    let abort = |_: &interlock_policy_api::Window<'_>| Ok(Verdict::Abort(reason()));
    let (mut stream_filters, _session) = stream_filters(vec![
        entry(guard("stop", GATE(1), stop)),
        entry(guard("abort", GATE(9), abort)),
    ]);
    let passed = say(&mut stream_filters, "one");
    let end = GuardEnd::Abort { policy: "abort".into(), reason: reason(), failed: None };
    assert_eq!(passed, [FilteredText { text: String::new(), end: Some(end) }]);
}

#[test]
fn a_gate_that_fails_ends_the_request_unless_the_operator_says_otherwise() {
    let trap = |_: &interlock_policy_api::Window<'_>| Err(failure(FailureKind::Trap));
    let (mut closed, _session) = stream_filters(vec![entry(guard("g", GATE(1), trap))]);
    let passed = say(&mut closed, "one");
    assert_eq!(
        passed[0],
        FilteredText { text: String::new(), end: Some(policy_failed("g".into(), 503)) }
    );

    let open = OnFailure { stream_guard: Some(FailureAction::Open), ..OnFailure::default() };
    let entry = ChainEntry::new(Arc::new(guard("g", GATE(1), trap)), open);
    let (mut open, _session) = stream_filters(vec![entry]);
    assert_eq!(texts(&say(&mut open, "one two")), ["one ", "two"]);
}

#[test]
fn who_observes_changes_and_delays_nothing_and_can_end_it_late() {
    let differs = |window: &interlock_policy_api::Window<'_>| {
        Ok(match window.text {
            text if text.contains("bad") => Verdict::Stop { text: String::new(), reason: reason() },
            text if text.contains("two") => {
                Verdict::Replace { text: "***".into(), hold: 0, reason: reason() }
            }
            _ => Verdict::Hold(99),
        })
    };
    let (mut stream_filters, _session) =
        stream_filters(vec![entry(guard("o", OBSERVE(2), differs))]);
    assert!(!stream_filters.gates());
    let passed = say(&mut stream_filters, "one two three bad five");
    assert_eq!(texts(&passed), ["one ", "two ", "three ", "bad ", ""]);
    assert_eq!(passed[2].end, None);
    assert!(matches!(&passed[3].end, Some(GuardEnd::Stop { policy, .. }) if policy == "o"));
}

#[test]
fn who_observes_slowly_loses_the_oldest_windows_and_the_stream_waits_for_nobody() {
    let (go, gone) = std::sync::mpsc::sync_channel::<()>(1);
    let gone = Mutex::new(gone);
    let (seen, sees) = std::sync::mpsc::sync_channel(64);
    let differs = move |window: &interlock_policy_api::Window<'_>| {
        let _ = gone.lock().unwrap().recv();
        seen.send((window.index, window.finished)).expect("the test listens");
        Ok(Verdict::Pass)
    };
    let registry = interlock_metrics::Registry::new();
    let shared = ChainShared::new(crate::PolicyMetrics::register(&registry));
    let outcome =
        crate::testing::outcome_with(vec![entry(guard("o", OBSERVE(1), differs))], shared);
    let mut stream_filters = outcome.session.stream_filters().expect("someone reads");
    let words = (0..40).map(|n| n.to_string() + " ").collect::<String>();
    assert_eq!(texts(&say(&mut stream_filters, words.trim_end())).concat(), words.trim_end());
    at_once(stream_filters.finish(used(40), Instant::now()));
    drop(go);
    let mut indices = VecDeque::new();
    loop {
        let (index, finished) = sees.recv().expect("it goes on");
        indices.push_back(index);
        if finished {
            break;
        }
    }
    assert!(indices.len() <= 10, "{indices:?}");
    assert!(indices.iter().zip(indices.iter().skip(1)).all(|(a, b)| a < b), "{indices:?}");
    let text = registry.expose().unwrap();
    assert!(!text.contains(r#"policy_windows_total{policy="o",result="dropped"} 0"#), "{text}");
}

proptest! {
    #[test]
    fn with_pass_the_text_is_unchanged_however_it_is_cut(
        pieces in prop::collection::vec("\\PC{0,12}", 0..40),
        sizes in prop::collection::vec(1_u32..9, 1..4),
        observed in any::<bool>(),
    ) {
        let mut entries: Vec<_> = sizes.iter().zip(["a", "b", "c"])
            .map(|(tokens, name)| entry(guard(name, GATE(*tokens), |_| Ok(Verdict::Pass))))
            .collect();
        if observed {
            entries.push(entry(guard("o", OBSERVE(2), |_| Ok(Verdict::Abort(reason())))));
            entries.truncate(4);
        }
        let (mut stream_filters, _session) = stream_filters(entries);
        let now = Instant::now();
        let (mut came, mut passed, mut ended) = (String::new(), String::new(), false);
        for (piece, tokens) in pieces.iter().zip(1..) {
            came.push_str(piece);
            let set_aside = at_once(stream_filters.push(piece, used(tokens), now));
            passed.push_str(&set_aside.text);
            // What an observer ends is cut short, but never changed.
            prop_assert!(came.starts_with(&passed));
            ended |= set_aside.end.is_some();
        }
        passed.push_str(&at_once(stream_filters.finish(used(99), now)).text);
        prop_assert!(ended || came == passed, "{came:?} became {passed:?}");
        prop_assert!(observed || !ended);
    }

    #[test]
    fn a_gate_holds_back_less_than_its_window(
        pieces in prop::collection::vec("[a-z ]{1,12}", 1..40),
        tokens in 1_u32..9,
    ) {
        let (mut stream_filters, _session) =
            stream_filters(vec![entry(guard("g", GATE(tokens), |_| Ok(Verdict::Pass)))]);
        let now = Instant::now();
        let mut held: Vec<&str> = vec![];
        for (piece, at) in pieces.iter().zip(1..) {
            held.push(piece);
            let passed = at_once(stream_filters.push(piece, used(at), now)).text;
            if !passed.is_empty() {
                prop_assert_eq!(passed, held.concat());
                held.clear();
            }
            prop_assert!((held.len() as u32) < tokens, "{} tokens are held back", held.len());
        }
    }
}

/// A request that ends right after its last text: what was to be seen is seen, and the account
/// comes behind it.
#[test]
fn one_who_observes_accounts_after_the_last_window() {
    let registry = interlock_metrics::Registry::new();
    let shared = crate::ChainShared::new(crate::PolicyMetrics::register(&registry));
    let (go, gone) = std::sync::mpsc::sync_channel::<()>(1);
    let (gone, seen) = (Mutex::new(gone), Arc::new(Mutex::new(Vec::new())));
    let sees = Arc::clone(&seen);
    let fake = guard("o", OBSERVE(1), move |window| {
        let _ = gone.lock().unwrap().recv();
        sees.lock().unwrap().push((window.text.to_owned(), window.finished));
        Ok(Verdict::Pass)
    });
    let told = Arc::clone(&fake.told);
    let session = crate::testing::outcome_with(vec![entry(fake)], shared.clone()).session;
    let mut stream_filters = session.stream_filters().expect("it reads");
    say(&mut stream_filters, "a b ");
    at_once(stream_filters.finish(used(2), Instant::now()));
    session.settle(&crate::testing::summary(interlock_request::Outcome::Completed(
        interlock_request::Finish::Stop,
    )));
    assert_eq!(told.closings(), [""; 0], "it has not seen it all");
    drop(go);
    assert_eq!(shared.drain(Duration::from_secs(60)), 0);
    let seen = seen.lock().unwrap();
    let seen: Vec<_> = seen.iter().map(|(text, last)| (text.as_str(), *last)).collect();
    assert_eq!(seen.first(), Some(&("a ", false)));
    assert_eq!(seen.last().map(|(_, last)| *last), Some(true));
    assert_eq!(told.closings(), ["completed"]);
    assert_eq!(told.forgotten(), [crate::testing::SERIAL]);
    // It says no more, whoever still holds the filters.
    assert!(say(&mut stream_filters, "c ").iter().all(|passed| passed.text.is_empty()));
}
