//! An engine without a thread of its own: the caller runs its steps. For simulations, tests and benches.

use tokio::sync::{mpsc, watch};

use crate::group::EngineGroup;
use crate::handle::QueuedRequest;
use crate::thread::{Channels, channels};
use crate::wakeup::Wakeup;
use crate::{
    CacheConfig, Clock, Engine, EngineConfig, EngineHandle, EngineMetrics, EngineState, Forward,
    WaitingConfig,
};

/// An engine whose steps the caller runs, on the caller's thread and by the caller's clock.
pub struct ManualEngine<F: Forward> {
    /// How requests are submitted to the engine.
    pub handle: EngineHandle,
    /// The engine. The caller calls [`Engine::step`].
    pub engine: Engine<F>,
    /// Keeps the engine's inbox open.
    pub inbox: InboxGuard,
}

/// Keeps the inbox of a [`ManualEngine`] open. Dropping it closes the inbox, as stopping the engine
/// thread does.
#[derive(Debug)]
pub struct InboxGuard {
    _inbox: mpsc::Sender<QueuedRequest>,
    _state: watch::Sender<EngineState>,
}

/// Makes an engine whose steps the caller runs.
pub fn manual<F: Forward>(
    model: F,
    config: &EngineConfig,
    cache: &CacheConfig,
    waiting: &WaitingConfig,
    metrics: EngineMetrics,
    clock: Box<dyn Clock>,
) -> ManualEngine<F> {
    manual_in_group(&EngineGroup::default(), model, config, cache, waiting, metrics, clock)
}

/// Makes an engine as [`manual`] does, in a group of engines that share the thread. The caller runs one
/// step of each in turn.
pub fn manual_in_group<F: Forward>(
    group: &EngineGroup,
    model: F,
    config: &EngineConfig,
    cache: &CacheConfig,
    waiting: &WaitingConfig,
    metrics: EngineMetrics,
    clock: Box<dyn Clock>,
) -> ManualEngine<F> {
    let metrics = metrics.of_one_engine();
    // Nothing sleeps here, so nothing waits for this wakeup.
    let Channels { handle, inbox, requests, state } =
        channels(config, waiting, &metrics, &Wakeup::default());
    state.send_replace(EngineState::Ready(model.shape()));
    let receivers = (requests, state.clone());
    let engine = Engine::new(model, receivers, config, cache, metrics, clock, group);
    ManualEngine { handle, engine, inbox: InboxGuard { _inbox: inbox, _state: state } }
}
