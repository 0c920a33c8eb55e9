//! Two models on the one thread: what happens to a request of one is nothing to those of the other.

use interlock_engine::{
    CacheConfig, EngineConfig, EngineExit, EngineMetrics, EngineState, Engines, Mode, NotStarted,
    WaitingConfig,
};
use interlock_metrics::Registry;
use interlock_request::{CancelCause, Finish, Outcome};
use interlock_sim::{RowKind, SimModel, SimSettings};
use interlock_tests::{PREFILL_CHUNK, Rig, to_the_end, within};

/// The tokens that `wanted` tokens after a prompt of one are, alone, of one model and the other.
async fn alone(wanted: u32) -> [Vec<u32>; 2] {
    let rig = Rig::start_two(Mode::Simple, 1).await;
    rig.gate.open();
    let mut first = rig.submit("alone", 1, wanted);
    let first = to_the_end(&mut first).await.0;
    let mut other = rig.submit_other("alone-too", 1, wanted);
    [first, to_the_end(&mut other).await.0]
}

#[tokio::test(flavor = "multi_thread")]
async fn two_models_answer_at_once_with_their_own_tokens() {
    let [of_first, of_other] = alone(30).await;
    assert_ne!(of_first, of_other, "they are two models");
    for mode in [Mode::Simple, Mode::Batched] {
        let rig = Rig::start_two(mode, 4).await;
        let mut running =
            [rig.submit("a", 1, 30), rig.submit_other("b", 1, 30), rig.submit("c", 1, 30)];
        rig.gate.open();
        for (running, expected) in running.iter_mut().zip([&of_first, &of_other, &of_first]) {
            let (tokens, ended) = to_the_end(running).await;
            assert_eq!(&tokens, expected);
            assert_eq!(ended.expect("ends").outcome, Outcome::Completed(Finish::Length));
        }
        assert_eq!(rig.gate.in_flight_max(), 1, "one thread, one pass");
        assert_eq!(rig.metric("engine_passes_in_flight_max"), 1.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn they_take_turns_of_one_pass_each() {
    let rig = Rig::start_two(Mode::Batched, 4).await;
    let mut running =
        [rig.submit("a", 1, 20), rig.submit_other("b", 1, 20), rig.submit_other("c", 1, 20)];
    // Until all have a row, in passes that hold one of the first model's or two of the other's.
    let begun = rig.gate.step_until(|rows| rows.len() == 2);
    rig.gate.open();
    for running in &mut running {
        to_the_end(running).await;
    }
    let rows: Vec<usize> = rig.gate.begun()[begun - 1..].iter().map(Vec::len).take(30).collect();
    assert!(rows.chunks(2).all(|both| both == [2, 1]), "{rows:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_request_of_one_does_not_disturb_the_other() {
    let [_, of_other] = alone(40).await;
    for mode in [Mode::Simple, Mode::Batched] {
        let rig = Rig::start_two(mode, 4).await;
        let mut other = rig.submit_other("stays", 1, 40);
        rig.gate.wait_begun(1);
        let mut first = rig.submit("leaves", 3 * PREFILL_CHUNK, 100);
        // Its chunks alternate with the other's tokens; it is cancelled with one in the device.
        let begun = rig.gate.step_until(|rows| rows[0].kind == RowKind::Prefill);
        rig.gate.let_through(1);
        rig.gate.wait_begun(begun + 1);
        rig.gate.let_through(1);
        rig.gate.wait_begun(begun + 2);
        assert!(first.control.cancel(CancelCause::Disconnect));
        rig.gate.watch_none_begin();
        rig.gate.open();
        let (_, ended) = to_the_end(&mut first).await;
        let ended = ended.expect("ends");
        assert_eq!(ended.outcome, Outcome::Cancelled(CancelCause::Disconnect));
        assert_eq!(ended.usage.generated_tokens, 0, "it was cancelled in its prompt");
        let (tokens, ended) = to_the_end(&mut other).await;
        assert_eq!(tokens, of_other);
        assert_eq!(ended.expect("ends").outcome, Outcome::Completed(Finish::Length));
        assert_eq!(rig.gate.in_flight_max(), 1);
        // The thread sleeps now, and wakes for either.
        for running in [&mut rig.submit("again", 1, 2), &mut rig.submit_other("too", 1, 2)] {
            assert_eq!(to_the_end(running).await.0.len(), 2);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_has_its_own_queue() {
    let rig = Rig::start_two(Mode::Simple, 1).await;
    let _runs = rig.submit("runs", 1, 5);
    rig.gate.wait_begun(1);
    let _waits = rig.submit("waits", 1, 5);
    assert_eq!(rig.engine.queue_permit().err(), Some(NotStarted::Full { waiting: 1, limit: 1 }));
    let other = rig.other.as_ref().expect("two");
    let view =
        |engine: &interlock_engine::EngineHandle| (engine.view().waiting, engine.view().running);
    assert_eq!((view(&rig.engine), view(other)), ((1, 1), (0, 0)));
    assert!(other.queue_permit().is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_ends_the_requests_of_both() {
    let mut rig = Rig::start_two(Mode::Batched, 4).await;
    let mut running = [rig.submit("a", 1, 50), rig.submit_other("b", 1, 50)];
    rig.gate.wait_begun(1);
    let mut thread = rig.take_thread();
    thread.ask_to_stop();
    rig.gate.open();
    for running in &mut running {
        let ended = to_the_end(running).await.1.expect("ends");
        assert_eq!(ended.outcome, Outcome::Cancelled(CancelCause::Shutdown));
    }
    thread.stop();
    let exited = EngineState::Exited(EngineExit::Asked);
    assert_eq!(
        (rig.engine.state(), rig.other.as_ref().map(|o| o.state())),
        (exited.clone(), Some(exited))
    );
}

/// Starts engines whose second cannot be loaded, or panics.
async fn with_a_bad_second(
    second: impl FnOnce() -> Result<SimModel, String> + Send + 'static,
) -> [EngineExit; 3] {
    let (config, cache, waiting) =
        (EngineConfig::default(), CacheConfig::default(), WaitingConfig::default());
    let metrics = EngineMetrics::register(&Registry::new());
    let mut engines = Engines::default();
    let good = || Ok::<_, String>(SimModel::load(SimSettings::default()));
    let handles = [
        engines.add(&config, &cache, &waiting, &metrics, good),
        engines.add(&config, &cache, &waiting, &metrics, second),
        engines.add(&config, &cache, &waiting, &metrics, good),
    ];
    let _thread = engines.spawn().expect("a thread");
    let mut exits = vec![];
    for mut handle in handles {
        loop {
            match handle.state() {
                EngineState::Exited(exit) => break exits.push(exit),
                EngineState::Starting => {}
                EngineState::Ready(_) => panic!("none is ready before all are"),
            }
            within(handle.state_changed()).await;
        }
        assert!(matches!(handle.queue_permit(), Err(NotStarted::Stopped(_))));
    }
    exits.try_into().expect("three")
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_cannot_be_loaded_is_named_and_ends_all() {
    let exits = with_a_bad_second(|| Err("no such file".into())).await;
    let [first, second, third] = exits;
    assert_eq!(second, EngineExit::LoadFailed("no such file".into()));
    assert_eq!([first, third], [EngineExit::OtherLoadFailed, EngineExit::OtherLoadFailed]);
    let exits = with_a_bad_second(|| panic!("while loading")).await;
    assert_eq!(exits, [(); 3].map(|()| EngineExit::Panicked("while loading".into())));
}
