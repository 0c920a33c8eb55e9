//! An engine on a simulated model behind a gate, and no policies.

use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::Arc;
use std::time::Duration;

use interlock_engine::{
    CacheConfig, EngineConfig, EngineHandle, EngineMetrics, EngineState, EngineThread, Engines,
    Event, Mode, RequestHandle, WaitingConfig,
};
use interlock_metrics::Registry;
use interlock_policy_chain::{LimitsConfig, PolicyChain, PolicyMetrics};
use interlock_request::{Generation, Priority, Sampling};
use interlock_sim::{Gate, SimModel, SimSettings};

use crate::admit;

/// An engine whose model stops at a gate before every pass ends.
pub struct Rig {
    /// The way in.
    pub engine: EngineHandle,
    /// The way in to the other model, if there are two.
    pub other: Option<EngineHandle>,
    /// The hand on the device.
    pub gate: Gate,
    /// What it counts.
    pub registry: Arc<Registry>,
    /// The policies: none.
    pub chain: Arc<PolicyChain>,
    /// What they count.
    pub policies: PolicyMetrics,
    thread: Option<EngineThread>,
}

/// Prompt tokens that one pass computes here; small, so that a short prompt takes several.
pub const PREFILL_CHUNK: u32 = 4;

impl Rig {
    /// Starts an engine with a queue of `queue_max` requests and waits until it is ready. Its
    /// model never ends by itself.
    pub async fn start(mode: Mode, queue_max: usize) -> Self {
        Self::start_with(mode, queue_max, SimSettings { stop: 0, ..SimSettings::default() }).await
    }

    /// The same, with a model of these settings.
    pub async fn start_with(mode: Mode, queue_max: usize, settings: SimSettings) -> Self {
        Self::start_all(mode, queue_max, &[settings]).await
    }

    /// Two models that never end by themselves and answer differently, on one thread and behind
    /// one gate.
    pub async fn start_two(mode: Mode, queue_max: usize) -> Self {
        let model = |salt| SimSettings { stop: 0, salt, ..SimSettings::default() };
        Self::start_all(mode, queue_max, &[model(0), model(1)]).await
    }

    async fn start_all(mode: Mode, queue_max: usize, models: &[SimSettings]) -> Self {
        let registry = Arc::new(Registry::new());
        let gate = Gate::closed();
        let config = EngineConfig {
            mode,
            prefill_chunk: NonZeroU32::new(PREFILL_CHUNK).expect("not 0"),
            ..EngineConfig::default()
        };
        let waiting = WaitingConfig { requests_max: NonZeroUsize::new(queue_max).expect("not 0") };
        let cache = CacheConfig::default();
        let metrics = EngineMetrics::register(&registry);
        let mut all = Engines::default();
        let mut handles = models.iter().cloned().map(|settings| {
            let gate = gate.clone();
            all.add(&config, &cache, &waiting, &metrics, move || {
                Ok::<_, String>(SimModel::gated(settings, gate))
            })
        });
        let engine = handles.next().expect("one model at least");
        let other = handles.next();
        drop(handles);
        let thread = all.spawn().expect("a thread");
        for engine in [&engine].into_iter().chain(&other) {
            let mut engine = engine.clone();
            while !matches!(engine.state(), EngineState::Ready(_)) {
                within(engine.state_changed()).await;
            }
        }
        let limits = LimitsConfig::default().ceilings();
        let policies = PolicyMetrics::register(&registry);
        let chain = PolicyChain::new(vec![], limits, policies.clone());
        let chain = Arc::new(chain);
        Self { engine, other, gate, registry, chain, policies, thread: Some(thread) }
    }

    /// Submits a request of `prompt` tokens that wants `tokens_max`.
    pub fn submit(&self, id: &str, prompt: u32, tokens_max: u32) -> RequestHandle {
        self.submit_to(&self.engine, id, prompt, tokens_max)
    }

    /// The same, to the other of two models.
    ///
    /// # Panics
    ///
    /// When there is one.
    pub fn submit_other(&self, id: &str, prompt: u32, tokens_max: u32) -> RequestHandle {
        let other = self.other.as_ref().expect("there are two models");
        self.submit_to(other, id, prompt, tokens_max)
    }

    fn submit_to(
        &self,
        engine: &EngineHandle,
        id: &str,
        prompt: u32,
        tokens_max: u32,
    ) -> RequestHandle {
        let permit = engine.queue_permit().expect("a permit");
        let generation = Generation {
            sampling: Sampling::greedy(),
            tokens_max,
            tokens_min: 0,
            stop_tokens: vec![SimModel::EOS],
            logprobs: None,
            priority: Priority::Standard,
        };
        let prompt = (0..prompt).collect();
        let outcome = admit(&self.chain, 0, id, prompt, generation).expect("no policies");
        permit.submit(outcome.admitted)
    }

    /// The value of a metric line, such as `requests_running` or `x_total{a="b"}`.
    pub fn metric(&self, line: &str) -> f64 {
        metric(&self.registry.expose().expect("exposes"), line)
    }

    /// The engine's thread, to be stopped by hand.
    ///
    /// # Panics
    ///
    /// The second time.
    pub fn take_thread(&mut self) -> EngineThread {
        self.thread.take().expect("it is taken once")
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // A failing test must not wait for a pass that nobody will let through.
        self.gate.open();
    }
}

/// The value of `interlock_{line}` in an exposition; 0 where it was never counted.
pub fn metric(exposition: &str, line: &str) -> f64 {
    let wanted = format!("interlock_{line} ");
    exposition
        .lines()
        .find_map(|found| found.strip_prefix(&wanted))
        .map_or(0.0, |value| value.parse().expect("a number"))
}

/// Waits for something that must happen; a test that is stuck fails instead of hanging.
pub async fn within<T>(future: impl Future<Output = T>) -> T {
    const PATIENCE: Duration = Duration::from_secs(20);
    tokio::time::timeout(PATIENCE, future)
        .await
        .unwrap_or_else(|_| panic!("this did not happen within {PATIENCE:?}"))
}

/// Reads a request's events to the end: its tokens, and how it ended.
pub async fn to_the_end(
    running: &mut RequestHandle,
) -> (Vec<u32>, Option<interlock_engine::Ended>) {
    let mut tokens = vec![];
    loop {
        match within(running.events.next()).await {
            Some(Event::Started | Event::Preempted) => {}
            Some(Event::Token(drawn)) => tokens.push(drawn.token),
            Some(Event::Ended(ended)) => return (tokens, Some(ended)),
            None => return (tokens, None),
        }
    }
}
