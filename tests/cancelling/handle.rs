//! The crash that this project was asked for after, at the engine's handle.
//!
//! A Python server released its generation lock when a request was cancelled while its worker was
//! still inside Metal; the next request entered, and the process died. The test that came with the
//! first fix passed even if the first worker had never started. So each story here first waits
//! until the first pass is in the device, and only then cancels.

use interlock_engine::{EngineExit, EngineState, Event, NotStarted};
use interlock_request::{CancelCause, Deadline, Finish, Outcome, Usage};
use interlock_sim::PassKind::{Decode, Prefill};
use interlock_sim::PassSeen;
use interlock_tests::{Logs, PREFILL_CHUNK, Rig, to_the_end, within};

const fn pass(request: usize, kind: interlock_sim::PassKind) -> PassSeen {
    PassSeen { request, kind }
}

/// Where the first request is when it is cancelled: with its pass in the device.
struct Moment {
    prompt: u32,
    passes_before: usize,
    stage: &'static str,
}

const PREFILLING: Moment =
    Moment { prompt: 3 * PREFILL_CHUNK, passes_before: 1, stage: "prefilling" };
const DECODING: Moment = Moment { prompt: 1, passes_before: 2, stage: "decoding" };

/// Brings request `id` to its moment, and a second request behind it.
async fn first_in_the_device(rig: &Rig, id: &str, at: &Moment) -> interlock_engine::Running {
    let first = rig.submit(id, at.prompt, 100);
    rig.gate.let_through(at.passes_before);
    rig.gate.wait_begun(at.passes_before + 1);
    assert_eq!(rig.gate.ended(), at.passes_before, "the pass to be cancelled is in the device");
    first
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_request_enters_the_device_only_after_the_cancelled_pass_has_left_it() {
    for (n, at) in [PREFILLING, DECODING].iter().enumerate() {
        let rig = Rig::start(4).await;
        let mut first = first_in_the_device(&rig, &format!("first-{n}"), at).await;
        let begun_before = rig.gate.begun().len();

        assert!(first.control.cancel(CancelCause::Operator), "the first to ask counts");
        assert!(!first.control.cancel(CancelCause::Operator), "asking twice changes nothing");
        let mut second = rig.submit(&format!("second-{n}"), 1, 1);
        rig.gate.watch_none_begin();
        assert_eq!(rig.gate.ended(), at.passes_before, "the first has not ended yet");

        rig.gate.let_through(1);
        rig.gate.wait_begun(begun_before + 1);
        assert_eq!(rig.gate.begun().last(), Some(&pass(1, Prefill)), "now the second begins");
        assert_eq!(rig.gate.ended(), at.passes_before + 1, "after the first has ended");
        rig.gate.open();
        let (_, ended) = to_the_end(&mut first).await;
        assert_eq!(ended.expect("ends").outcome, Outcome::Cancelled(CancelCause::Operator));
        let (tokens, ended) = to_the_end(&mut second).await;
        assert_eq!(tokens.len(), 1);
        assert_eq!(ended.expect("ends").outcome, Outcome::Completed(Finish::Length));
        assert_eq!(rig.gate.in_flight_max(), 1, "the device never held two passes");
        assert_eq!(rig.metric("engine_passes_in_flight_max"), 1.0, "and the engine counted so");
        let cancelled = format!("cancellations_total{{cause=\"operator\",stage=\"{}\"}}", at.stage);
        assert_eq!(rig.metric(&cancelled), 1.0);
        assert_eq!(rig.metric("cancelled_pass_completions_total"), 1.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pass_that_fails_after_its_client_left_is_logged_and_counted() {
    let logs = Logs::captured();
    for (n, at) in [PREFILLING, DECODING].iter().enumerate() {
        let id = format!("left-and-failed-{n}");
        let rig = Rig::start(4).await;
        let first = first_in_the_device(&rig, &id, at).await;
        drop(first); // the client leaves
        rig.gate.fail_next();
        let mut second = rig.submit(&format!("after-{id}"), 1, 1);
        rig.gate.watch_none_begin();
        rig.gate.open();
        let (_, ended) = to_the_end(&mut second).await;
        assert_eq!(ended.expect("ends").outcome, Outcome::Completed(Finish::Length));
        assert_eq!(rig.metric("cancelled_pass_failures_total"), 1.0);
        let said = logs.lines_with(&["ERROR", &id, "pass failed after its request was cancelled"]);
        assert_eq!(said.len(), 1, "the log has it once, with the request's id: {said:?}");
        assert!(said[0].contains("the gate was told to fail this pass"), "{said:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_cancelled_while_waiting_never_reaches_the_device() {
    let rig = Rig::start(4).await;
    let mut first = first_in_the_device(&rig, "runs", &DECODING).await;
    let mut waits = rig.submit("waits", 1, 5);
    assert!(waits.control.cancel(CancelCause::Deadline(Deadline::Queue)));
    rig.gate.open();
    let (tokens, ended) = to_the_end(&mut waits).await;
    assert!(tokens.is_empty());
    let ended = ended.expect("ends");
    assert_eq!(ended.outcome, Outcome::Cancelled(CancelCause::Deadline(Deadline::Queue)));
    assert_eq!(ended.usage, Usage::default());
    to_the_end(&mut first).await;
    assert!(rig.gate.begun().iter().all(|seen| seen.request == 0), "only the first had passes");
    let line = "cancellations_total{cause=\"deadline_queue\",stage=\"waiting\"}";
    assert_eq!(rig.metric(line), 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_house_refuses_by_name_and_can_still_empty() {
    let rig = Rig::start(2).await;
    let first = first_in_the_device(&rig, "runs", &DECODING).await;
    let waiting = [rig.submit("waits-1", 1, 5), rig.submit("waits-2", 1, 5)];
    assert_eq!(rig.engine.seat().err(), Some(NotStarted::Full { waiting: 2, limit: 2 }));
    assert_eq!(rig.metric("requests_waiting"), 2.0);
    let everyone: Vec<_> = waiting.into_iter().chain([first]).collect();
    for running in &everyone {
        assert!(running.control.cancel(CancelCause::Disconnect), "cancelling needs no room");
    }
    rig.gate.open();
    for mut running in everyone {
        let (_, ended) = to_the_end(&mut running).await;
        assert_eq!(ended.expect("ends").outcome, Outcome::Cancelled(CancelCause::Disconnect));
    }
    assert_eq!((rig.metric("requests_waiting"), rig.metric("requests_running")), (0.0, 0.0));
    assert!(rig.engine.seat().is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_pass_ends_its_request_and_the_engine_serves_the_next() {
    for (n, at) in [PREFILLING, DECODING].iter().enumerate() {
        let rig = Rig::start(4).await;
        let mut first = first_in_the_device(&rig, &format!("fails-{n}"), at).await;
        rig.gate.fail_next();
        let mut second = rig.submit(&format!("next-{n}"), 1, 2);
        rig.gate.open();
        let (_, ended) = to_the_end(&mut first).await;
        let outcome = ended.expect("ends").outcome;
        assert_eq!(outcome, Outcome::Failed("the gate was told to fail this pass".into()));
        let (tokens, ended) = to_the_end(&mut second).await;
        assert_eq!(tokens.len(), 2);
        assert_eq!(ended.expect("ends").outcome, Outcome::Completed(Finish::Length));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_is_computed_in_chunks_and_its_usage_is_exact() {
    let rig = Rig::start(1).await;
    rig.gate.open();
    let mut running = rig.submit("usage", 2 * PREFILL_CHUNK + 1, 3);
    let (tokens, ended) = to_the_end(&mut running).await;
    assert_eq!(tokens.len(), 3);
    let usage =
        Usage { prompt_tokens: 2 * PREFILL_CHUNK + 1, cached_tokens: 0, generated_tokens: 3 };
    assert_eq!(ended.expect("ends").usage, usage);
    let kinds: Vec<_> = rig.gate.begun().iter().map(|seen| seen.kind).collect();
    assert_eq!(kinds, [Prefill, Prefill, Prefill, Decode, Decode]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_finished_text_completes_the_request_before_its_next_pass() {
    let rig = Rig::start(1).await;
    let mut running = first_in_the_device(&rig, "stop-string", &DECODING).await;
    assert!(running.control.finish());
    assert!(!running.control.cancel(CancelCause::Operator), "a finished request is not cancelled");
    rig.gate.open();
    let (_, ended) = to_the_end(&mut running).await;
    assert_eq!(ended.expect("ends").outcome, Outcome::Completed(Finish::Stop));
    assert_eq!(rig.gate.begun().len(), DECODING.passes_before + 1, "no further pass was begun");
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_the_engine_finishes_the_pass_in_flight_and_ends_everyone() {
    let mut rig = Rig::start(4).await;
    let mut first = first_in_the_device(&rig, "runs", &DECODING).await;
    let mut second = rig.submit("waits", 1, 5);
    let mut thread = rig.take_thread();
    thread.ask_to_stop();
    let stopping = std::thread::spawn(move || thread.stop());
    rig.gate.watch_none_begin();
    assert!(!stopping.is_finished(), "stopping waits for the pass in the device");
    rig.gate.open();
    stopping.join().expect("stops");
    for running in [&mut first, &mut second] {
        let (_, ended) = to_the_end(running).await;
        assert_eq!(ended.expect("ends").outcome, Outcome::Cancelled(CancelCause::Shutdown));
    }
    assert_eq!(rig.gate.ended(), rig.gate.begun().len(), "no pass was abandoned");
    assert_eq!(rig.engine.state(), EngineState::Exited(EngineExit::Asked));
    assert_eq!(rig.engine.seat().err(), Some(NotStarted::Stopped(EngineExit::Asked)));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_event_says_that_the_wait_is_over() {
    let rig = Rig::start(1).await;
    let mut running = rig.submit("starts", 1, 1);
    rig.gate.wait_begun(1);
    assert_eq!(within(running.events.next()).await, Some(Event::Started));
    assert_eq!(rig.metric("requests_waiting"), 0.0, "its seat is free from then on");
    assert_eq!(rig.metric("requests_running"), 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_on_the_engine_thread_is_said_and_leaves_nobody_waiting() {
    let logs = Logs::captured();
    let mut rig = Rig::start_with(4, "panic-at=2".parse().expect("settings")).await;
    let mut first = rig.submit("panics", 1, 5);
    let mut second = rig.submit("behind-it", 1, 5);
    rig.gate.open();
    for running in [&mut first, &mut second] {
        let (_, ended) = to_the_end(running).await;
        assert_eq!(ended, None, "the events end without an end: the thread is gone");
    }
    let said = "the simulated model was told to panic at pass 2";
    let exited = EngineState::Exited(EngineExit::Panicked(said.into()));
    while rig.engine.state() != exited {
        within(rig.engine.state_changed()).await;
    }
    assert!(!logs.lines_with(&["ERROR", "engine stopped", said]).is_empty());
    assert_eq!(rig.metric("engine_passes_in_flight"), 0.0, "the pass ended with the panic");
}
