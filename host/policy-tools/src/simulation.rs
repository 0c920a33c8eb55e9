//! Hours of traffic on the host itself, a day at one request a second in a quarter of a minute: the
//! server's routes, the policies' chain, the policies, the engine and its cache are those that
//! `interlock serve` runs. What is simulated is the model, the clients and the time.
//!
//! ```text
//!   clients ──► routes ──► chain ──► engine ──► simulated model
//!      ▲   (no sockets)      │                        │ a pass of 20 ms
//!      └── what they saw     └── who was asked what   ▼
//!                                            tokio's paused clock goes on by 20 ms
//! ```
//!
//! Time is tokio's and paused: it goes on when everyone waits, to the next moment at which
//! somebody does not. Moments are whole milliseconds; a pass may take any time, and what is cut
//! off of one is added to the next.
//!
//! # Invariants
//!
//! - The same setup, workload and seed give the same report, but for policies that exceed a
//!   deadline: those count the machine's time.
//! - One thread: the engines have a stack of their own on it, which rests while the time of a pass
//!   goes by.
//!
//! # Not here
//!
//! Sockets, and what is lost on them. Redis: state is in memory. Slow policies have no threads and
//! are called in line, so what they wait for takes no simulated time.

mod client;
mod device;
mod driver;
mod end;
mod engine_step;
mod invariants;
mod reader;
mod recorder;
mod report;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use interlock_engine::{CacheConfig, EngineConfig, EngineHandle, EngineMetrics, WaitingConfig};
use interlock_metrics::Registry;
use interlock_policy_api::Ceilings;
use interlock_policy_chain::{ChainEntry, ChainShared, Policies, PolicyChain, PolicyMetrics};
use interlock_request::{ModelId, SamplingDefaults};
use interlock_server::{
    DetachedConfig, PrefixKeys, ServedModel, ServerConfig, ServerMetrics, ServerParts, WorkConfig,
    WorkMetrics, WorkPool,
};
use interlock_sim::{SimModel, SimSettings};
use interlock_text::{TextModel, TextParts, TokenizerSource};
use tokio::time::Instant;

pub use self::report::Report;

use self::client::RequestSeen;
use self::driver::{SimDriver, SimulationRest};
use self::recorder::Recording;
use crate::clock::ManualClock;
use crate::fixtures::EPOCH;
use crate::workload::Workload;

/// What is simulated: the parts of a configuration that matter without sockets.
pub struct Setup {
    /// `[server]`.
    pub server: ServerConfig,
    /// `[detached]`.
    pub detached: DetachedConfig,
    /// `[engine]`.
    pub engine: EngineConfig,
    /// `[cache]`.
    pub cache: CacheConfig,
    /// `[waiting]`.
    pub waiting: WaitingConfig,
    /// What `[limits]` comes to.
    pub ceilings: Ceilings,
    /// The policies in their places, with a state on `clock`.
    pub links: Vec<ChainEntry>,
    /// The clock of that state.
    pub clock: SimClock,
}

/// The simulation's time, for what must have a clock before the simulation begins: until then it
/// stands at 0.
#[derive(Debug, Clone, Default)]
pub struct SimClock(Arc<OnceLock<Instant>>);

impl SimClock {
    fn begin(&self) -> Instant {
        *self.0.get_or_init(Instant::now)
    }

    fn now(&self) -> Duration {
        self.0.get().map_or(Duration::ZERO, Instant::elapsed)
    }
}

impl interlock_state::StateClock for SimClock {
    fn now(&self) -> Duration {
        Self::now(self)
    }
}

/// A simulation that could not be.
#[derive(Debug, thiserror::Error)]
pub enum SimFailed {
    /// A model's settings are none.
    #[error("settings of model {model:?}: {why}")]
    Model {
        /// The name of the model.
        model: String,
        /// What is wrong.
        why: String,
    },
    /// The operating system gave no thread or no runtime.
    #[error("cannot start: {0}")]
    Start(#[from] std::io::Error),
}

/// Everything that is seen from outside, as it came.
struct Observed {
    asked: Vec<RequestSeen>,
    rested: SimulationRest,
    /// From the first request to the last end.
    time: Duration,
}

/// Runs a workload to its end.
///
/// # Errors
///
/// When a model's settings are none, or there is no thread for the engine.
pub fn run(setup: Setup, workload: &Workload, seed: u64) -> Result<Report, SimFailed> {
    let began = std::time::Instant::now();
    let models = settings(workload)?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
    let ceilings = setup.ceilings;
    let recording = Recording::default();
    let seen = runtime.block_on(live(setup, workload, seed, models, &recording))?;
    // What is left of it are tasks of requests that never ended; they are reported.
    runtime.shutdown_background();
    let violations = invariants::violations(&seen, &recording, &ceilings);
    Ok(report::Report::of(workload, seed, &seen, &recording, violations, began.elapsed()))
}

fn settings(workload: &Workload) -> Result<Vec<SimSettings>, SimFailed> {
    let parse = |model: &crate::workload::WorkloadModel| {
        let settings = model.settings.strip_prefix("sim:").unwrap_or(&model.settings);
        settings
            .parse::<SimSettings>()
            .map_err(|why| SimFailed::Model { model: model.name.clone(), why: why.to_string() })
    };
    workload.models.iter().map(parse).collect()
}

async fn live(
    setup: Setup,
    workload: &Workload,
    seed: u64,
    models: Vec<SimSettings>,
    recording: &Recording,
) -> Result<Observed, SimFailed> {
    let Setup { server, detached, engine, cache, waiting, ceilings, links, clock } = setup;
    let began = clock.begin();
    let registry = Arc::new(Registry::new());
    let metrics = EngineMetrics::register(&registry);
    let engine_clock = ManualClock::default();
    let plans = workload.models.iter().zip(models).collect::<Vec<_>>();
    let prefix_keys = PrefixKeys::without_secret(cache.prefix_sharing);
    let build = driver::EngineParts { seed, engine, cache, waiting, metrics, clock: engine_clock };
    let (driver, handles) = SimDriver::start(build, &plans);
    let served = workload.models.iter().zip(&handles).map(|(model, handle)| served(model, handle));
    let chain = PolicyChain::new(
        recording.recorded_by(links),
        ceilings,
        ChainShared::in_line(PolicyMetrics::register(&registry)),
    );
    let parts = ServerParts {
        config: server,
        detached,
        models: served.collect(),
        policies: Arc::new(Policies::from(chain)),
        work: WorkPool::in_line(&WorkConfig::default(), WorkMetrics::register(&registry)),
        prefix_keys,
        in_flight: interlock_server::InFlight::default(),
        wall: Arc::new(move || EPOCH + clock.now()),
        metrics: ServerMetrics::register(&registry),
        registry: Some(Arc::clone(&registry)),
    };
    let app = interlock_server::app(parts);
    let clients = client::Clients::new(app, workload, seed);
    let activity = clients.activity();
    // Whoever drives stops when all clients have gone and nothing is left to compute. The clients
    // have a task of their own, so that they are not looked at with each pass.
    let clients = tokio::spawn(clients.live());
    let rested = driver.drive(activity).await;
    let asked =
        clients.await.unwrap_or_else(|failed| std::panic::resume_unwind(failed.into_panic()));
    Ok(Observed { asked, rested, time: began.elapsed() })
}

fn served(model: &crate::workload::WorkloadModel, engine: &EngineHandle) -> ServedModel {
    let parts = TextParts {
        tokenizer: TokenizerSource::Sim,
        chat_template: None,
        special_tokens: Default::default(),
        eos: vec![SimModel::EOS],
    };
    let text = TextModel::new(parts).expect("the simulated text model is whole");
    ServedModel {
        id: ModelId::new(&model.name),
        aliases: model.aliases.clone(),
        sampling: SamplingDefaults::OPENAI,
        text: Arc::new(OnceLock::from(Arc::new(text))),
        engine: engine.clone(),
    }
}
