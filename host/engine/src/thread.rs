//! Starts the engine thread, says what became of it, and stops it.
//!
//! A host that serves several models has an engine for each, and still one thread: they take steps,
//! one pass each, and sleep together. What they share is the device and the time; an inbox, a
//! waiting room, a batch and a cache each has its own.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::sync::{Semaphore, mpsc, watch};

use crate::bell::Bell;
use crate::company::Company;
use crate::handle::Submission;
use crate::{
    CacheConfig, Clock, Engine, EngineConfig, EngineHandle, EngineMetrics, Forward, Mode,
    ModelShape, StepOutcome, SystemClock, WaitingConfig,
};

/// What the engine is at a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineState {
    /// The model is loading.
    Starting,
    /// It serves, with this model.
    Ready(ModelShape),
    /// Its thread has ended and will not come back.
    Exited(EngineExit),
}

impl EngineState {
    /// How it failed by itself; where another one is to blame, that one is told of.
    pub fn failure(self) -> Option<EngineExit> {
        match self {
            Self::Exited(EngineExit::Asked | EngineExit::OtherLoadFailed) => None,
            Self::Exited(exit) => Some(exit),
            Self::Starting | Self::Ready(_) => None,
        }
    }
}

/// How the engine thread ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EngineExit {
    /// It was asked to.
    #[error("it was asked to stop")]
    Asked,
    /// The model could not be loaded.
    #[error("the model could not be loaded: {0}")]
    LoadFailed(String),
    /// Another model of the same thread could not be loaded: a host serves all of its models or
    /// none, so that an operator need not find out which are missing.
    #[error("another model could not be loaded")]
    OtherLoadFailed,
    /// The device, or its memory, has failed for good: caches were lost and cannot be made anew.
    /// Whoever waited or ran was told so. The process should end on purpose, so that another can
    /// start afresh.
    #[error("the device has failed: {0}")]
    DeviceFailed(String),
    /// It panicked: a bug. The process should end on purpose and say so.
    #[error("its thread panicked: {0}")]
    Panicked(String),
}

impl EngineExit {
    /// Its name, without what is only for our log.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Asked => "asked",
            Self::LoadFailed(_) => "load_failed",
            Self::OtherLoadFailed => "other_load_failed",
            Self::DeviceFailed(_) => "device_failed",
            Self::Panicked(_) => "panicked",
        }
    }
}

/// Owns the engine thread. Dropping it stops its engines, cancels what runs there after the pass
/// in flight, and waits for the thread.
#[derive(Debug)]
pub struct EngineThread {
    // The only strong senders: without them the inboxes close, and the thread comes to its end.
    inboxes: Vec<mpsc::Sender<Submission>>,
    bell: Bell,
    thread: Option<JoinHandle<()>>,
}

impl EngineThread {
    /// Closes the inboxes and waits for nothing: after the pass in flight the engines cancel what
    /// is left and the thread ends.
    pub fn ask_to_stop(&mut self) {
        self.inboxes.clear();
        self.bell.ring();
    }

    /// Stops the engines and waits for their thread: as long as the pass in flight takes.
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

/// Starts the engine thread with one model. `load` runs there and makes the model, which never
/// leaves it; `E` is why it could not.
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

/// Engines to come, all on one thread.
#[derive(Default)]
pub struct Engines {
    bell: Bell,
    inboxes: Vec<mpsc::Sender<Submission>>,
    to_load: Vec<ToLoad>,
}

/// An engine to come. Everything of it that may be sent to its thread.
struct ToLoad {
    state: watch::Sender<EngineState>,
    load: Box<Load>,
}

/// Makes the model, on the thread, and an engine among the others there.
type Load = dyn FnOnce(&Company) -> Result<Loaded, String> + Send;

/// An engine that can take its step.
struct Loaded {
    shape: ModelShape,
    engine: Box<dyn AnyEngine>,
}

/// An engine, whatever its model.
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
        f.debug_struct("Engines").field("count", &self.to_load.len()).finish_non_exhaustive()
    }
}

impl Engines {
    /// One more. `load` runs on the thread, after those of the engines before it, and makes the
    /// model, which never leaves it; `E` is why it could not.
    ///
    /// None is ready before all are: who would serve it is still loading.
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
        let Ends { handle, inbox, submissions, state } =
            ends(config, waiting, &metrics, &self.bell);
        let (config, cache) = (config.clone(), cache.clone());
        let its_state = state.clone();
        let load = move |company: &Company| {
            let model = load().map_err(|error| error.to_string())?;
            let shape = model.shape();
            let clock = Box::new(SystemClock::start());
            let ends = (submissions, its_state);
            let engine = Engine::new(model, ends, &config, &cache, metrics, clock, company);
            Ok(Loaded { shape, engine: Box::new(engine) })
        };
        self.inboxes.push(inbox);
        self.to_load.push(ToLoad { state, load: Box::new(load) });
        handle
    }

    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// When the operating system gives none.
    pub fn spawn(self) -> std::io::Result<EngineThread> {
        let Self { bell, inboxes, to_load } = self;
        let its_bell = bell.clone();
        let thread = std::thread::Builder::new().name("engine".into()).spawn(move || {
            raise_priority();
            live(to_load, &its_bell);
        })?;
        Ok(EngineThread { inboxes, bell, thread: Some(thread) })
    }
}

/// All that happens on the thread.
fn live(to_load: Vec<ToLoad>, bell: &Bell) {
    let (states, loads): (Vec<_>, Vec<_>) =
        to_load.into_iter().map(|ToLoad { state, load }| (state, load)).unzip();
    // The models and all that they hold are inside this closure: a panic drops them here, on the
    // thread that made them, and nothing of them is looked at afterwards.
    let ended = catch_unwind(AssertUnwindSafe(|| {
        let company = Company::default();
        let mut engines = Vec::with_capacity(loads.len());
        let mut shapes = Vec::with_capacity(loads.len());
        for (which, load) in loads.into_iter().enumerate() {
            let Loaded { shape, engine } = load(&company).map_err(|why| (which, why))?;
            shapes.push(shape);
            engines.push(engine);
        }
        for (state, shape) in states.iter().zip(shapes) {
            state.send_replace(EngineState::Ready(shape));
        }
        run_engines(engines, bell);
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
    // Who is to blame says so first: whoever sees that one has ended finds out why.
    let (blamed, others): (Vec<_>, Vec<_>) =
        states.iter().enumerate().partition(|(which, _)| culprit == Some(*which));
    for (which, state) in blamed.into_iter().chain(others) {
        if matches!(*state.borrow(), EngineState::Exited(_)) {
            // It has ended before the others, and has said why.
            continue;
        }
        let others = culprit.is_some_and(|culprit| culprit != which);
        let exit = if others { EngineExit::OtherLoadFailed } else { exit.clone() };
        state.send_replace(EngineState::Exited(exit));
    }
}

/// Turns until all inboxes are closed and whoever was left is cancelled.
///
/// One step each, so one pass each: no model's streams wait for more than one pass of every other,
/// and what of that is prompts is on one account with their own ([`Company`]). Nobody is asked how
/// long a pass takes that decodes; a large model gets more of the time than a small one. One whose
/// device has failed is gone, and the others go on: what they hold may still be computed.
fn run_engines(mut engines: Vec<Box<dyn AnyEngine>>, bell: &Bell) {
    loop {
        engines.retain_mut(|engine| engine.step() != StepOutcome::Closed);
        if engines.is_empty() {
            return;
        }
        if engines.iter().all(|engine| engine.is_idle()) {
            bell.wait();
        }
    }
}

/// An engine whose steps the caller takes, on the caller's thread and by the caller's clock: for
/// simulations. Dropping the [`Door`] closes it, as stopping the thread does.
pub fn by_hand<F: Forward>(
    model: F,
    config: &EngineConfig,
    cache: &CacheConfig,
    waiting: &WaitingConfig,
    metrics: EngineMetrics,
    clock: Box<dyn Clock>,
) -> (EngineHandle, Door, Engine<F>) {
    by_hand_beside(&Company::default(), model, config, cache, waiting, metrics, clock)
}

/// As [`by_hand`], on a thread with others: whoever takes their steps takes one of each in turn.
pub fn by_hand_beside<F: Forward>(
    company: &Company,
    model: F,
    config: &EngineConfig,
    cache: &CacheConfig,
    waiting: &WaitingConfig,
    metrics: EngineMetrics,
    clock: Box<dyn Clock>,
) -> (EngineHandle, Door, Engine<F>) {
    let metrics = metrics.of_one_engine();
    // Nobody sleeps: the caller takes the steps.
    let Ends { handle, inbox, submissions, state } =
        ends(config, waiting, &metrics, &Bell::default());
    state.send_replace(EngineState::Ready(model.shape()));
    let ends = (submissions, state.clone());
    let engine = Engine::new(model, ends, config, cache, metrics, clock, company);
    (handle, Door { _inbox: inbox, _state: state }, engine)
}

/// What keeps an engine that is run by hand open.
#[derive(Debug)]
pub struct Door {
    _inbox: mpsc::Sender<Submission>,
    _state: watch::Sender<EngineState>,
}

/// The ends of all that leads to an engine and from it.
struct Ends {
    handle: EngineHandle,
    inbox: mpsc::Sender<Submission>,
    submissions: mpsc::Receiver<Submission>,
    state: watch::Sender<EngineState>,
}

fn ends(
    config: &EngineConfig,
    waiting: &WaitingConfig,
    metrics: &EngineMetrics,
    bell: &Bell,
) -> Ends {
    let seats_max = waiting.requests_max.get();
    let (inbox, submissions) = mpsc::channel(seats_max);
    let (state, state_seen) = watch::channel(EngineState::Starting);
    let handle = EngineHandle {
        inbox: inbox.downgrade(),
        bell: bell.clone(),
        seats: Arc::new(Semaphore::new(seats_max)),
        seats_max,
        running_max: match config.mode {
            Mode::Simple => 1,
            Mode::Batched => config.running_max.get(),
        },
        state: state_seen,
        metrics: metrics.clone(),
    };
    Ends { handle, inbox, submissions, state }
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
