//! Starts the engine thread, runs the engines on it, and stops it.
//!
//! A host that serves several models has an engine for each, and still one thread. The engines run one
//! step each in turn and sleep together. They share the device and the time. Each engine has an inbox,
//! a queue, a batch and a cache of its own.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::sync::{Semaphore, mpsc, watch};

use crate::group::EngineGroup;
use crate::handle::QueuedRequest;
use crate::wakeup::Wakeup;
use crate::{
    CacheConfig, Engine, EngineConfig, EngineExit, EngineHandle, EngineMetrics, EngineState,
    Forward, Mode, ModelShape, StepOutcome, SystemClock, WaitingConfig,
};

/// Owns the engine thread. Dropping it stops the engines, cancels what runs there after the forward
/// pass in flight, and waits for the thread.
#[derive(Debug)]
pub struct EngineThread {
    // The only strong senders: without them the inboxes close, and the thread ends.
    inboxes: Vec<mpsc::Sender<QueuedRequest>>,
    wakeup: Wakeup,
    thread: Option<JoinHandle<()>>,
}

impl EngineThread {
    /// Closes the inboxes without waiting. After the forward pass in flight the engines cancel what is
    /// left, and the thread ends.
    pub fn ask_to_stop(&mut self) {
        self.inboxes.clear();
        self.wakeup.wake();
    }

    /// Stops the engines and waits for their thread, as long as the forward pass in flight takes.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for EngineThread {
    fn drop(&mut self) {
        self.ask_to_stop();
        if let Some(thread) = self.thread.take() {
            // The thread catches its panics itself, so there is nothing more to learn here.
            let _ = thread.join();
        }
    }
}

/// Starts the engine thread with one model. `load` runs on the thread and makes the model, which never
/// leaves it. `E` says why the model could not be loaded.
///
/// # Errors
///
/// When the operating system gives no thread.
pub fn spawn<F, E>(
    config: &EngineConfig,
    cache: &CacheConfig,
    waiting: &WaitingConfig,
    metrics: EngineMetrics,
    load: impl FnOnce() -> Result<F, E> + Send + 'static,
) -> std::io::Result<(EngineHandle, EngineThread)>
where
    F: Forward + 'static,
    E: std::fmt::Display,
{
    let mut engines = Engines::default();
    let handle = engines.add(config, cache, waiting, &metrics, load);
    Ok((handle, engines.spawn()?))
}

/// Engines that are to be loaded on one thread.
#[derive(Default)]
pub struct Engines {
    wakeup: Wakeup,
    inboxes: Vec<mpsc::Sender<QueuedRequest>>,
    pending: Vec<PendingEngine>,
}

/// An engine that is to be loaded: the parts that may be sent to the thread.
struct PendingEngine {
    state: watch::Sender<EngineState>,
    load: Box<LoadEngine>,
}

/// Loads the model on the thread and makes an engine of the group there.
type LoadEngine = dyn FnOnce(&EngineGroup) -> Result<LoadedEngine, String> + Send;

/// An engine that can run steps.
struct LoadedEngine {
    shape: ModelShape,
    engine: Box<dyn AnyEngine>,
}

/// An engine of any model.
trait AnyEngine {
    fn step(&mut self) -> StepOutcome;
    fn is_idle(&self) -> bool;
}

impl<F: Forward> AnyEngine for Engine<F> {
    fn step(&mut self) -> StepOutcome {
        Engine::step(self)
    }

    fn is_idle(&self) -> bool {
        Engine::is_idle(self)
    }
}

impl std::fmt::Debug for Engines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engines").field("count", &self.pending.len()).finish_non_exhaustive()
    }
}

impl Engines {
    /// Adds an engine. `load` runs on the thread, after those of the engines before it, and makes the
    /// model, which never leaves the thread. `E` says why the model could not be loaded.
    ///
    /// No engine is ready before all are, because the thread that would serve it is still loading.
    pub fn add<F, E>(
        &mut self,
        config: &EngineConfig,
        cache: &CacheConfig,
        waiting: &WaitingConfig,
        metrics: &EngineMetrics,
        load: impl FnOnce() -> Result<F, E> + Send + 'static,
    ) -> EngineHandle
    where
        F: Forward + 'static,
        E: std::fmt::Display,
    {
        let metrics = metrics.of_one_engine();
        let Channels { handle, inbox, requests, state } =
            channels(config, waiting, &metrics, &self.wakeup);
        let (config, cache) = (config.clone(), cache.clone());
        let its_state = state.clone();
        let load = move |group: &EngineGroup| {
            let model = load().map_err(|error| error.to_string())?;
            let shape = model.shape();
            let clock = Box::new(SystemClock::start());
            let receivers = (requests, its_state);
            let engine = Engine::new(model, receivers, &config, &cache, metrics, clock, group);
            Ok(LoadedEngine { shape, engine: Box::new(engine) })
        };
        self.inboxes.push(inbox);
        self.pending.push(PendingEngine { state, load: Box::new(load) });
        handle
    }

    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// When the operating system gives none.
    pub fn spawn(self) -> std::io::Result<EngineThread> {
        let Self { wakeup, inboxes, pending } = self;
        let its_wakeup = wakeup.clone();
        let thread = std::thread::Builder::new().name("engine".into()).spawn(move || {
            raise_priority();
            run_thread(pending, &its_wakeup);
        })?;
        Ok(EngineThread { inboxes, wakeup, thread: Some(thread) })
    }
}

/// Loads the engines, runs them to their end, and publishes how they ended.
fn run_thread(pending: Vec<PendingEngine>, wakeup: &Wakeup) {
    let (states, loads): (Vec<_>, Vec<_>) =
        pending.into_iter().map(|PendingEngine { state, load }| (state, load)).unzip();
    // The models and all that they hold are inside this closure: a panic drops them here, on the
    // thread that made them, and nothing reads them afterwards.
    let ended = catch_unwind(AssertUnwindSafe(|| {
        let group = EngineGroup::default();
        let mut engines = Vec::with_capacity(loads.len());
        let mut shapes = Vec::with_capacity(loads.len());
        for (which, load) in loads.into_iter().enumerate() {
            let LoadedEngine { shape, engine } = load(&group).map_err(|why| (which, why))?;
            shapes.push(shape);
            engines.push(engine);
        }
        for (state, shape) in states.iter().zip(shapes) {
            state.send_replace(EngineState::Ready(shape));
        }
        run_engines(engines, wakeup);
        Ok(())
    }));
    let (exit, culprit) = match ended {
        Ok(Ok(())) => (EngineExit::Asked, None),
        Ok(Err((which, why))) => (EngineExit::LoadFailed(why), Some(which)),
        Err(panic) => (EngineExit::Panicked(panic_message(panic.as_ref())), None),
    };
    match &exit {
        EngineExit::Asked => tracing::info!("engine stopped"),
        exit => tracing::error!(%exit, "engine stopped"),
    }
    // The engine at fault is published first, so that whoever sees another end can find out why.
    let (blamed, others): (Vec<_>, Vec<_>) =
        states.iter().enumerate().partition(|(which, _)| culprit == Some(*which));
    for (which, state) in blamed.into_iter().chain(others) {
        if matches!(*state.borrow(), EngineState::Exited(_)) {
            // This engine ended before the others and has published why.
            continue;
        }
        let others = culprit.is_some_and(|culprit| culprit != which);
        let exit = if others { EngineExit::OtherLoadFailed } else { exit.clone() };
        state.send_replace(EngineState::Exited(exit));
    }
}

/// Runs steps until all inboxes are closed and the requests that were left are cancelled.
///
/// Each engine runs one step in turn, so one forward pass: no model's streams wait for more than one
/// pass of each other model, and the prompts among those passes are charged to one credit
/// ([`EngineGroup`]). How long a decoding pass takes does not matter: a large model gets more of the
/// time than a small one. An engine whose device has failed leaves the round, and the others go on,
/// since their caches may still be intact.
fn run_engines(mut engines: Vec<Box<dyn AnyEngine>>, wakeup: &Wakeup) {
    loop {
        engines.retain_mut(|engine| engine.step() != StepOutcome::Closed);
        if engines.is_empty() {
            return;
        }
        if engines.iter().all(|engine| engine.is_idle()) {
            wakeup.wait();
        }
    }
}

/// The channels between an engine and the rest of the process.
pub(crate) struct Channels {
    pub(crate) handle: EngineHandle,
    pub(crate) inbox: mpsc::Sender<QueuedRequest>,
    pub(crate) requests: mpsc::Receiver<QueuedRequest>,
    pub(crate) state: watch::Sender<EngineState>,
}

pub(crate) fn channels(
    config: &EngineConfig,
    waiting: &WaitingConfig,
    metrics: &EngineMetrics,
    wakeup: &Wakeup,
) -> Channels {
    let queue_max = waiting.requests_max.get();
    let (inbox, requests) = mpsc::channel(queue_max);
    let (state, state_seen) = watch::channel(EngineState::Starting);
    let handle = EngineHandle {
        inbox: inbox.downgrade(),
        wakeup: wakeup.clone(),
        queue_permits: Arc::new(Semaphore::new(queue_max)),
        queue_max,
        running_max: match config.mode {
            Mode::Simple => 1,
            Mode::Batched => config.running_max.get(),
        },
        state: state_seen,
        metrics: metrics.clone(),
    };
    Channels { handle, inbox, requests, state }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|s| (*s).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}

/// macOS runs threads without a quality-of-service class on efficiency cores when it likes; the
/// thread that feeds the GPU must not be one of them.
#[cfg(target_os = "macos")]
fn raise_priority() {
    // SAFETY: sets an attribute of the calling thread and touches no memory of ours.
    let failed = unsafe {
        libc::pthread_set_qos_class_self_np(libc::qos_class_t::QOS_CLASS_USER_INTERACTIVE, 0)
    };
    if failed != 0 {
        tracing::warn!(errno = failed, "the engine thread keeps its default priority");
    }
}

/// Linux schedules all threads alike; nothing to raise without privileges.
#[cfg(not(target_os = "macos"))]
fn raise_priority() {}
