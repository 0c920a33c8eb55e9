//! Policies that read the text: beside the stream, or before the client gets it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use interlock_policy_api::{Admission, Guarding, Reason, Verdict, Watch, Window, WindowSize};
use interlock_request::{CancelCause, Finish, Outcome};

use crate::rig::{Latch, Rig, Script, Setup};

const BODY: &str = r#"{"model":"sim","prompt":"hello","max_tokens":20,"temperature":0"#;

fn whole() -> String {
    format!("{BODY}}}")
}

fn stream() -> String {
    format!(r#"{BODY},"stream":true}}"#)
}

/// A policy that reads windows of four tokens.
fn guard(
    guarding: fn(WindowSize) -> Guarding,
    window: impl Fn(&Window<'_>) -> Verdict + Send + Sync + 'static,
) -> Setup {
    let size = WindowSize { tokens: 4, delay_max: Duration::from_secs(20) };
    let watch = Watch { guarding: guarding(size), ..Watch::default() };
    let admit = move |_: &interlock_policy_api::Facts| Admission {
        watch: Some(watch),
        ..Admission::default()
    };
    Setup::scripted(Script {
        admit: Some(Box::new(admit)),
        window: Some(Box::new(window)),
        ..Script::default()
    })
}

async fn unguarded() -> String {
    let answer = Rig::start().await.post("/v1/completions", &whole()).await.json();
    answer["choices"][0]["text"].as_str().expect("a text").to_owned()
}

fn reason() -> Reason {
    Reason { code: "bad_word".into(), detail: None }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_that_lets_pass_changes_nothing() {
    let text = unguarded().await;
    let rig = Rig::with(guard(Guarding::Gate, |_| Verdict::Pass)).await;
    let answer = rig.post("/v1/completions", &whole()).await.json();
    assert_eq!(answer["choices"][0]["text"], text);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    let logprobs = format!(r#"{BODY},"logprobs":0}}"#);
    let answer = rig.post("/v1/completions", &logprobs).await.json();
    let tokens = answer["choices"][0]["logprobs"]["tokens"].as_array().expect("tokens").len();
    assert_eq!(tokens, 20, "all tokens are told, with the text that was let pass");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_may_put_other_words_in_place_of_the_models() {
    let text = unguarded().await;
    let bad = text[6..8].to_owned();
    let stars = move |window: &Window<'_>| {
        let text = window.text.replace(&bad, "**");
        Verdict::Replace { text, hold: 0, reason: reason() }
    };
    let rig = Rig::with(guard(Guarding::Gate, stars)).await;
    let answer = rig.post("/v1/completions", &whole()).await.json();
    let said = answer["choices"][0]["text"].as_str().expect("a text");
    assert_eq!(&said[..8], format!("{}**", &text[..6]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_may_end_the_answer_and_the_client_gets_what_was_let_pass() {
    let text = unguarded().await;
    let stop = |window: &Window<'_>| match window.index {
        2 => Verdict::Stop { text: "!".into(), reason: reason() },
        _ => Verdict::Pass,
    };
    let mut rig = Rig::with(guard(Guarding::Gate, stop)).await;
    let answer = rig.post("/v1/completions", &whole()).await.json();
    assert_eq!(answer["choices"][0]["text"], format!("{}!", &text[..8]));
    assert_eq!(answer["choices"][0]["finish_reason"], "content_filter");
    assert_eq!(answer["usage"]["completion_tokens"], 12);
    let (_, account) = rig.ended().await;
    assert_eq!(account.outcome, Outcome::Completed(Finish::Filtered));
    let responses = r#"{"model":"sim","input":"hello","max_output_tokens":20}"#;
    let answer = rig.post("/v1/responses", responses).await.json();
    assert_eq!(answer["status"], "incomplete");
    assert_eq!(answer["incomplete_details"]["reason"], "content_filter");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_may_fail_the_request_with_its_own_code() {
    let abort = |window: &Window<'_>| match window.index {
        1 => Verdict::Abort(reason()),
        _ => Verdict::Pass,
    };
    for finished in [false, true] {
        let body = if finished { whole().replace(":20", ":6") } else { whole() };
        let mut rig = Rig::with(guard(Guarding::Gate, abort)).await;
        let answer = rig.post("/v1/completions", &body).await;
        assert_eq!((answer.status, answer.code().as_str()), (409, "bad_word"));
        assert_eq!(answer.header("x-should-retry"), Some("false"));
        let (_, account) = rig.ended().await;
        assert_eq!(account.outcome, Outcome::Cancelled(CancelCause::Policy));
        let answer = rig.post("/v1/completions", &stream()).await;
        assert!(answer.body.contains("bad_word") && answer.body.contains("[DONE]"), "{answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_only_observes_sees_all_and_holds_nothing_back() {
    let text = unguarded().await;
    let seen = Arc::new(Mutex::new(String::new()));
    let seen_in = Arc::clone(&seen);
    let observe = move |window: &Window<'_>| {
        seen_in.lock().expect("no panic").push_str(&window.text[window.held as usize..]);
        Verdict::Pass
    };
    let rig = Rig::with(guard(Guarding::Observe, observe)).await;
    let answer = rig.post("/v1/completions", &whole()).await.json();
    assert_eq!(answer["choices"][0]["text"], text);
    crate::rig::within(async {
        while *seen.lock().expect("no panic") != text {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_held_back_comes_when_it_has_waited_long_enough() {
    let size = WindowSize { tokens: 1000, delay_max: Duration::from_millis(20) };
    let watch = Watch { guarding: Guarding::Gate(size), ..Watch::default() };
    let admit = move |_: &interlock_policy_api::Facts| Admission {
        watch: Some(watch),
        ..Admission::default()
    };
    let setup = Setup::scripted(Script {
        admit: Some(Box::new(admit)),
        window: Some(Box::new(|_| Verdict::Pass)),
        ..Script::default()
    });
    let rig = Rig::with(Setup { gated: true, ..setup }).await;
    let mut connection = rig.begin("/v1/completions", "slow", &stream()).await;
    rig.gate.let_through(3);
    // The fourth pass is in the device and stays there; the window is passed on all the same.
    connection.until("data: ").await;
    rig.gate.open();
    assert!(connection.rest().await.contains("[DONE]"));
}

/// A gate that looks at such windows until the test lets it go on.
fn thinker(size: WindowSize, finished: bool) -> (Setup, Latch, Latch) {
    let (began, latch) = (Latch::default(), Latch::default());
    let (begins, waits) = (began.clone(), latch.clone());
    let watch = Watch { guarding: Guarding::Gate(size), ..Watch::default() };
    let admit = move |_: &interlock_policy_api::Facts| Admission {
        watch: Some(watch),
        ..Admission::default()
    };
    let window = move |window: &Window<'_>| {
        if window.finished == finished {
            begins.open();
            waits.wait();
        }
        Verdict::Pass
    };
    let script = Script {
        admit: Some(Box::new(admit)),
        window: Some(Box::new(window)),
        slow: true,
        ..Script::default()
    };
    (Setup { gated: true, ..Setup::scripted(script) }, began, latch)
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_for_a_stop_does_not_wait_for_a_window_that_was_due_or_the_last() {
    let never = WindowSize { tokens: 1000, delay_max: Duration::from_secs(20) };
    let soon = WindowSize { delay_max: Duration::from_millis(20), ..never };
    for (size, last) in [(never, true), (soon, false)] {
        let (setup, began, latch) = thinker(size, last);
        let mut rig = Rig::with(setup).await;
        let mut connection = rig.begin("/v1/completions", "held", &whole()).await;
        if last {
            rig.gate.open();
        } else {
            rig.gate.let_through(3);
        }
        began.opened().await;
        assert_eq!(rig.post("/v1/requests/held/cancel", "").await.status, 200);
        let answer = connection.answer().await;
        assert_eq!((answer.status, answer.code().as_str()), (409, "request_cancelled"));
        rig.gate.open();
        let outcome = rig.ended().await.1.outcome;
        assert_eq!(outcome, Outcome::Cancelled(CancelCause::Operator));
        latch.open();
    }
}
