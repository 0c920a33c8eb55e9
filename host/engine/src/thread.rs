//! Starts the engine thread, says what became of it, and stops it.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::sync::{Semaphore, mpsc, watch};

use crate::handle::Submission;
use crate::{
    CacheConfig, Clock, Engine, EngineConfig, EngineHandle, EngineMetrics, Forward, ModelShape,
    SystemClock, WaitingConfig,
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

/// How the engine thread ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EngineExit {
    /// It was asked to.
    #[error("it was asked to stop")]
    Asked,
    /// The model could not be loaded.
    #[error("the model could not be loaded: {0}")]
    LoadFailed(String),
    /// It panicked: a bug. The process should end on purpose and say so.
    #[error("its thread panicked: {0}")]
    Panicked(String),
}

/// Owns the engine thread. Dropping it stops the engine, cancels what runs there after the pass
/// in flight, and waits for the thread.
#[derive(Debug)]
pub struct EngineThread {
    // The only strong sender: without it the inbox closes, and the thread comes to its end.
    inbox: Option<mpsc::Sender<Submission>>,
    thread: Option<JoinHandle<()>>,
}

impl EngineThread {
    /// Closes the inbox and waits for nothing: after the pass in flight the engine cancels what
    /// is left and its thread ends.
    pub fn ask_to_stop(&mut self) {
        self.inbox = None;
    }

    /// Stops the engine and waits for its thread: as long as the pass in flight takes.
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

/// Starts the engine thread. `load` runs there and makes the model, which never leaves it; `E` is
/// why it could not.
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
    let Ends { handle, inbox, submissions, state } = ends(waiting, &metrics);
    let (config, cache) = (config.clone(), cache.clone());
    let thread = std::thread::Builder::new().name("engine".into()).spawn(move || {
        raise_priority();
        // The model and all that it holds are inside this closure: a panic drops them here, on
        // the thread that made them, and nothing of them is looked at afterwards.
        let ended = catch_unwind(AssertUnwindSafe(|| {
            let model = load().map_err(|e| EngineExit::LoadFailed(e.to_string()))?;
            state.send_replace(EngineState::Ready(model.shape()));
            let clock = Box::new(SystemClock::start());
            Engine::new(model, submissions, &config, &cache, metrics, clock).run();
            Ok(())
        }));
        let exit = match ended {
            Ok(Ok(())) => EngineExit::Asked,
            Ok(Err(exit)) => exit,
            Err(panic) => EngineExit::Panicked(panic_message(panic.as_ref())),
        };
        match &exit {
            EngineExit::Asked => tracing::info!("engine stopped"),
            exit => tracing::error!(%exit, "engine stopped"),
        }
        state.send_replace(EngineState::Exited(exit));
    })?;
    Ok((handle, EngineThread { inbox: Some(inbox), thread: Some(thread) }))
}

/// An engine whose turns the caller takes, on the caller's thread and by the caller's clock: for
/// simulations. Dropping the [`Door`] closes it, as stopping the thread does.
pub fn by_hand<F: Forward>(
    model: F,
    config: &EngineConfig,
    cache: &CacheConfig,
    waiting: &WaitingConfig,
    metrics: EngineMetrics,
    clock: Box<dyn Clock>,
) -> (EngineHandle, Door, Engine<F>) {
    let Ends { handle, inbox, submissions, state } = ends(waiting, &metrics);
    state.send_replace(EngineState::Ready(model.shape()));
    let engine = Engine::new(model, submissions, config, cache, metrics, clock);
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

fn ends(waiting: &WaitingConfig, metrics: &EngineMetrics) -> Ends {
    let seats_max = waiting.requests_max.get();
    let (inbox, submissions) = mpsc::channel(seats_max);
    let (state, state_seen) = watch::channel(EngineState::Starting);
    let handle = EngineHandle {
        inbox: inbox.downgrade(),
        seats: Arc::new(Semaphore::new(seats_max)),
        seats_max,
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
