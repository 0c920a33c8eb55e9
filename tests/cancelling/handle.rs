//! The crash that this project was asked for after, at the engine's handle.
//!
//! A Python server released its generation lock when a request was cancelled while its worker was
//! still inside Metal; the next request entered, and the process died. The test that came with the
//! first fix passed even if the first worker had never started. So each story here first waits
//! until the first pass is in the device, and only then cancels.
//!
//! Each is told twice: in `simple` mode, and in a batch, beside a companion that notices nothing.

use interlock_engine::{Ended, EngineExit, EngineState, Event, Mode, NotStarted, RequestHandle};
use interlock_request::{CancelCause, Deadline, Finish, Outcome, Usage};
use interlock_sim::RowKind::{self, Decode, Prefill};
use interlock_sim::RowSeen;
use interlock_tests::{Logs, PREFILL_CHUNK, Rig, to_the_end, within};

/// Where the request is when it is cancelled: with its pass in the device.
#[derive(Debug, Clone, Copy)]
struct CancelMoment {
    mode: Mode,
    prompt: u32,
    kind: RowKind,
    stage: &'static str,
}

const fn moments(mode: Mode) -> [CancelMoment; 2] {
    [
        CancelMoment { mode, prompt: 3 * PREFILL_CHUNK, kind: Prefill, stage: "prefilling" },
        CancelMoment { mode, prompt: 1, kind: Decode, stage: "decoding" },
    ]
}

fn all_moments() -> impl Iterator<Item = CancelMoment> {
    [Mode::Simple, Mode::Batched].into_iter().flat_map(moments)
}

/// A request at its moment, and whoever shares the batch with it.
struct StagedRequest {
    rig: Rig,
    first: RequestHandle,
    /// What the device calls it.
    number: usize,
    companion: Option<RequestHandle>,
    /// Passes that have begun; the last of them is in the device.
    begun: usize,
}

/// Tokens that a companion wants: more than any story has passes.
const COMPANION_TOKENS: u32 = 60;

/// Brings request `id` to its moment: not its first pass there, so that it has something to lose.
async fn stage(id: &str, at: CancelMoment, queue_max: usize) -> StagedRequest {
    let rig = Rig::start(at.mode, queue_max).await;
    let companion = match at.mode {
        Mode::Simple => None,
        Mode::Batched => {
            let companion = rig.submit(&format!("companion-of-{id}"), 1, COMPANION_TOKENS);
            rig.gate.step_until(|rows| rows == [RowSeen { request: 0, kind: Decode }]);
            Some(companion)
        }
    };
    let number = usize::from(companion.is_some());
    let first = rig.submit(id, at.prompt, 100);
    let its = |rows: &[RowSeen]| rows.contains(&RowSeen { request: number, kind: at.kind });
    let once = rig.gate.step_until(its);
    rig.gate.let_through(1);
    rig.gate.wait_begun(once + 1);
    let begun = rig.gate.step_until(its);
    assert_eq!(begun, once + 1, "its next pass is of the same kind");
    assert_eq!(rig.gate.ended(), begun - 1, "the pass to be cancelled is in the device");
    StagedRequest { rig, first, number, companion, begun }
}

impl StagedRequest {
    /// Lets everything go on; the companion must get what it would have got alone.
    async fn the_companion_notices_nothing(&mut self) {
        self.rig.gate.open();
        let Some(companion) = &mut self.companion else { return };
        let (tokens, ended) = to_the_end(companion).await;
        assert_eq!(ended.expect("ends").outcome, Outcome::Completed(Finish::Length));
        let alone = Rig::start(Mode::Simple, 1).await;
        alone.gate.open();
        let mut same = alone.submit("alone", 1, COMPANION_TOKENS);
        assert_eq!(tokens, to_the_end(&mut same).await.0);
    }
}

async fn end_of(running: &mut RequestHandle) -> Ended {
    to_the_end(running).await.1.expect("it ends")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_request_enters_the_device_only_after_the_cancelled_pass_has_left_it() {
    for (n, at) in all_moments().enumerate() {
        let mut staged = stage(&format!("first-{n}"), at, 4).await;
        let StagedRequest { rig, first, number, begun, .. } = &mut staged;

        assert!(first.control.cancel(CancelCause::Operator), "the first to ask counts");
        assert!(!first.control.cancel(CancelCause::Operator), "asking twice changes nothing");
        let mut second = rig.submit(&format!("second-{n}"), 1, 1);
        rig.gate.watch_none_begin();
        assert_eq!(rig.gate.ended(), *begun - 1, "the first has not ended yet");

        rig.gate.let_through(1);
        rig.gate.wait_begun(*begun + 1);
        let entered = rig.gate.begun()[*begun].clone();
        let second_begins = RowSeen { request: *number + 1, kind: Prefill };
        assert!(entered.contains(&second_begins), "now the second begins: {entered:?}");
        assert!(entered.iter().all(|row| row.request != *number), "without the first");
        assert_eq!(rig.gate.ended(), *begun, "after the first has ended");
        rig.gate.open();
        assert_eq!(end_of(first).await.outcome, Outcome::Cancelled(CancelCause::Operator));
        let (tokens, ended) = to_the_end(&mut second).await;
        assert_eq!(tokens.len(), 1);
        assert_eq!(ended.expect("ends").outcome, Outcome::Completed(Finish::Length));
        assert_eq!(rig.gate.in_flight_max(), 1, "the device never held two passes");
        assert_eq!(rig.metric("engine_passes_in_flight_max"), 1.0, "and the engine counted so");
        let cancelled = format!("cancellations_total{{cause=\"operator\",stage=\"{}\"}}", at.stage);
        assert_eq!(rig.metric(&cancelled), 1.0);
        assert_eq!(rig.metric("cancelled_pass_completions_total"), 1.0);
        staged.the_companion_notices_nothing().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pass_that_fails_after_its_client_left_is_logged_and_counted() {
    let logs = Logs::captured();
    for (n, at) in all_moments().enumerate() {
        let id = format!("left-and-failed-{n}");
        let StagedRequest { rig, first, number, companion, begun } = stage(&id, at, 4).await;
        drop(first); // the client leaves
        rig.gate.fail_next();
        let mut second = rig.submit(&format!("after-{id}"), 1, 1);
        rig.gate.watch_none_begin();
        rig.gate.let_through(1);
        rig.gate.wait_begun(begun + 1);
        let entered = rig.gate.begun()[begun].clone();
        assert!(entered.iter().all(|row| row.request != number), "not the first: {entered:?}");
        rig.gate.open();
        assert_eq!(end_of(&mut second).await.outcome, Outcome::Completed(Finish::Length));
        if let Some(mut companion) = companion {
            let (tokens, ended) = to_the_end(&mut companion).await;
            assert_eq!(tokens.len(), COMPANION_TOKENS as usize, "it tried again without the first");
            assert_eq!(ended.expect("ends").outcome, Outcome::Completed(Finish::Length));
            assert_eq!(rig.metric("engine_pass_retries_total"), 2.0);
        }
        assert_eq!(rig.metric("cancelled_pass_failures_total"), 1.0);
        let said = logs.lines_with(&["ERROR", &id, "pass failed after its request was cancelled"]);
        assert_eq!(said.len(), 1, "the log has it once, with the request's id: {said:?}");
        assert!(said[0].contains("the gate was told to fail this pass"), "{said:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_cancelled_while_waiting_never_reaches_the_device() {
    for mode in [Mode::Simple, Mode::Batched] {
        let mut staged = stage("runs", moments(mode)[1], 4).await;
        let StagedRequest { rig, first, number, .. } = &mut staged;
        let mut waits = rig.submit("waits", 1, 5);
        assert!(waits.control.cancel(CancelCause::Deadline(Deadline::Queue)));
        rig.gate.open();
        let (tokens, ended) = to_the_end(&mut waits).await;
        assert!(tokens.is_empty());
        let ended = ended.expect("ends");
        assert_eq!(ended.outcome, Outcome::Cancelled(CancelCause::Deadline(Deadline::Queue)));
        assert_eq!(ended.usage, Usage::default());
        to_the_end(first).await;
        let others = rig.gate.begun().into_iter().flatten().all(|row| row.request <= *number);
        assert!(others, "only those before it had passes");
        let line = "cancellations_total{cause=\"deadline_queue\",stage=\"waiting\"}";
        assert_eq!(rig.metric(line), 1.0);
        staged.the_companion_notices_nothing().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_refuses_by_name_and_can_still_empty() {
    for mode in [Mode::Simple, Mode::Batched] {
        let StagedRequest { rig, first, companion, .. } = stage("runs", moments(mode)[1], 2).await;
        let waiting = [rig.submit("waits-1", 1, 5), rig.submit("waits-2", 1, 5)];
        assert_eq!(
            rig.engine.queue_permit().err(),
            Some(NotStarted::Full { waiting: 2, limit: 2 })
        );
        assert_eq!(rig.metric("requests_waiting"), 2.0);
        let everyone: Vec<_> = waiting.into_iter().chain([first]).chain(companion).collect();
        for running in &everyone {
            assert!(running.control.cancel(CancelCause::Disconnect), "cancelling needs no room");
        }
        rig.gate.open();
        for mut running in everyone {
            let outcome = end_of(&mut running).await.outcome;
            assert_eq!(outcome, Outcome::Cancelled(CancelCause::Disconnect));
        }
        assert_eq!((rig.metric("requests_waiting"), rig.metric("requests_running")), (0.0, 0.0));
        assert!(rig.engine.queue_permit().is_ok());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_pass_ends_its_request_and_the_engine_serves_the_next() {
    for (n, at) in all_moments().enumerate() {
        let mut staged = stage(&format!("fails-{n}"), at, 4).await;
        let StagedRequest { rig, first, number, .. } = &mut staged;
        rig.gate.fail_whenever(*number);
        let mut second = rig.submit(&format!("next-{n}"), 1, 2);
        rig.gate.open();
        let outcome = end_of(first).await.outcome;
        assert_eq!(outcome, Outcome::Failed("the gate was told to fail this pass".into()));
        let (tokens, ended) = to_the_end(&mut second).await;
        assert_eq!(tokens.len(), 2);
        assert_eq!(ended.expect("ends").outcome, Outcome::Completed(Finish::Length));
        staged.the_companion_notices_nothing().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pass_that_fails_once_in_a_batch_is_tried_again_and_ends_nobody() {
    let logs = Logs::captured();
    for at in moments(Mode::Batched) {
        let mut staged = stage(&format!("again-{}", at.stage), at, 4).await;
        let StagedRequest { rig, first, begun, .. } = &mut staged;
        rig.gate.fail_next();
        rig.gate.open();
        let (tokens, ended) = to_the_end(first).await;
        assert_eq!(ended.expect("ends").outcome, Outcome::Completed(Finish::Length));
        assert_eq!(tokens.len(), 100);
        assert_eq!(rig.metric("engine_pass_retries_total"), 2.0);
        let passes = rig.gate.begun();
        assert_eq!(passes[*begun - 1].len(), 2, "the pass that failed had both");
        assert_eq!((passes[*begun].len(), passes[*begun + 1].len()), (1, 1), "each tried alone");
        assert!(
            !logs
                .lines_with(&["ERROR", "pass failed; its other requests are tried again"])
                .is_empty()
        );
        staged.the_companion_notices_nothing().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_is_computed_in_chunks_and_its_usage_is_exact() {
    for mode in [Mode::Simple, Mode::Batched] {
        let rig = Rig::start(mode, 1).await;
        rig.gate.open();
        let mut running = rig.submit("usage", 2 * PREFILL_CHUNK + 1, 3);
        let (tokens, ended) = to_the_end(&mut running).await;
        assert_eq!(tokens.len(), 3);
        let usage =
            Usage { prompt_tokens: 2 * PREFILL_CHUNK + 1, cached_tokens: 0, generated_tokens: 3 };
        assert_eq!(ended.expect("ends").usage, usage);
        let kinds: Vec<_> = rig.gate.begun().into_iter().flatten().map(|row| row.kind).collect();
        assert_eq!(kinds, [Prefill, Prefill, Prefill, Decode, Decode]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_that_keep_a_prefix_are_counted_when_their_request_is_gone() {
    let rig = Rig::start(Mode::Batched, 1).await;
    rig.gate.open();
    // Two pages of 16 are full, the third goes back empty.
    let (_, ended) = to_the_end(&mut rig.submit("kept", 40, 3)).await;
    ended.expect("ends");
    let counted = || (rig.metric("cache_pages_used"), rig.metric("cache_pages_idle"));
    within(async {
        while counted() != (0.0, 2.0) {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_finished_text_completes_the_request_before_its_next_pass() {
    for mode in [Mode::Simple, Mode::Batched] {
        let mut staged = stage("stop-string", moments(mode)[1], 1).await;
        let StagedRequest { rig, first, number, begun, .. } = &mut staged;
        assert!(first.control.finish());
        assert!(
            !first.control.cancel(CancelCause::Operator),
            "a finished request is not cancelled"
        );
        rig.gate.open();
        assert_eq!(end_of(first).await.outcome, Outcome::Completed(Finish::Stop));
        let later: Vec<_> = rig.gate.begun()[*begun..].iter().flatten().copied().collect();
        assert!(later.iter().all(|row| row.request != *number), "no further pass was begun for it");
        staged.the_companion_notices_nothing().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_the_engine_finishes_the_pass_in_flight_and_ends_everyone() {
    for mode in [Mode::Simple, Mode::Batched] {
        let StagedRequest { mut rig, first, companion, .. } =
            stage("runs", moments(mode)[1], 4).await;
        let second = rig.submit("waits", 1, 5);
        let mut thread = rig.take_thread();
        thread.ask_to_stop();
        let stopping = std::thread::spawn(move || thread.stop());
        rig.gate.watch_none_begin();
        assert!(!stopping.is_finished(), "stopping waits for the pass in the device");
        rig.gate.open();
        stopping.join().expect("stops");
        for mut running in [first, second].into_iter().chain(companion) {
            let outcome = end_of(&mut running).await.outcome;
            assert_eq!(outcome, Outcome::Cancelled(CancelCause::Shutdown));
        }
        assert_eq!(rig.gate.ended(), rig.gate.begun().len(), "no pass was abandoned");
        assert_eq!(rig.engine.state(), EngineState::Exited(EngineExit::Asked));
        assert_eq!(rig.engine.queue_permit().err(), Some(NotStarted::Stopped(EngineExit::Asked)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_event_says_that_the_wait_is_over() {
    let rig = Rig::start(Mode::Batched, 1).await;
    let mut running = rig.submit("starts", 1, 1);
    rig.gate.wait_begun(1);
    assert_eq!(within(running.events.next()).await, Some(Event::Started));
    assert_eq!(rig.metric("requests_waiting"), 0.0, "its place in the queue is free from then on");
    assert_eq!(rig.metric("requests_running"), 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_on_the_engine_thread_is_said_and_leaves_nobody_waiting() {
    let logs = Logs::captured();
    let settings = "panic-at=2".parse().expect("settings");
    let mut rig = Rig::start_with(Mode::Batched, 4, settings).await;
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
