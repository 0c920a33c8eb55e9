//! `interlock serve`: puts the parts together, runs them, takes them apart.
//!
//! What can fail for a reason that an operator can mend fails before the port is open: the
//! configuration, the policies, the model's files. Loading the model takes long and happens
//! behind the open port, where readiness can be asked for.

use std::io::ErrorKind;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use interlock_admission::{Link, PolicyChain, PolicyMetrics};
use interlock_catalog::{ModelConfig, ModelRef};
use interlock_config::Config;
use interlock_engine::{
    CacheConfig, EngineExit, EngineHandle, EngineMetrics, EngineState, EngineThread,
};
use interlock_metrics::Registry;
use interlock_models::{LoadOptions, TextSource, TokenizerSource as ModelTokenizer};
use interlock_policy::{PolicyConfig, PolicyHost};
use interlock_request::SamplingDefaults;
use interlock_server::{ServerMetrics, ServerParts};
use interlock_sim::{SimModel, SimSettings};
use interlock_text::{GgufTokenizer, TextModel, TextParts, TokenizerSource};
use tokio::signal::unix::{SignalKind, signal};

use crate::settings::Settings;
use crate::{log, models, say};

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Serve {
    #[command(flatten)]
    settings: Settings,
}

const EXAMPLES: &str = "\
Examples:
  interlock serve
  interlock serve --model ./qwen3.gguf --bind 0.0.0.0:8080
  interlock serve --config interlock.toml --set waiting.requests_max=64
  interlock serve --model sim:decode=20ms            a model that only takes its time

SIGTERM and Ctrl-C let requests in flight finish (server.drain_max); a second one does not.";

impl Serve {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let config = self.settings.load()?.config;
        log::start(&config.log)?;
        let source = Source::find(&config.model, &config.cache)?;
        let registry = Arc::new(Registry::new());
        let chain = policies(&config, &registry)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(serve(config, source, chain, registry))
    }
}

async fn serve(
    config: Config,
    source: Source,
    chain: PolicyChain,
    registry: Arc<Registry>,
) -> anyhow::Result<()> {
    let stop = Stop::listen()?;
    let bind = config.server.bind;
    let listener = interlock_server::listen(bind).map_err(|error| match error.kind() {
        ErrorKind::AddrInUse => anyhow::anyhow!(
            "cannot listen on {bind}: it is in use; `--bind {}:0` takes any free port",
            bind.ip()
        ),
        _ => anyhow::anyhow!("cannot listen on {bind}: {error}"),
    })?;
    let address = listener.local_addr()?;

    let sampling = source.sampling(&config.model.reference);
    let text = Arc::new(OnceLock::new());
    let (engine, thread) =
        source.spawn(&config, EngineMetrics::register(&registry), Arc::clone(&text))?;
    let model = config.model.reference.model_id();
    let names: Vec<&str> = chain.names().collect();
    let policies = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    say(&format!(
        "interlock listening on http://{address}, model {model}, policies: {policies}\n"
    ))?;

    let parts = ServerParts {
        config: config.server,
        model,
        sampling,
        text,
        engine: engine.clone(),
        chain: Arc::new(chain),
        metrics: ServerMetrics::register(&registry),
        registry,
    };
    let served = interlock_server::serve(listener, parts, stop.or_failure_of(engine.clone())).await;
    tracing::info!(cancelled = served.cancelled, "stopped serving");

    // Before the thread is told to stop: from then on it ends because it was asked to.
    match engine.state() {
        EngineState::Exited(exit) if exit != EngineExit::Asked => {
            bail!("the engine stopped: {exit}")
        }
        // Loading cannot be interrupted, and what it has read so far nobody will miss.
        EngineState::Starting => {
            tracing::info!("the model is still loading; leaving without it");
            leave(0)
        }
        _ if ended(thread, PASS_USUAL, PASS_MAX).await => Ok(()),
        _ => {
            tracing::error!(waited = ?PASS_MAX, "a pass did not end; leaving without it");
            leave(1)
        }
    }
}

/// A pass that takes longer is worth a line in the log, for whoever waits for the process.
const PASS_USUAL: Duration = Duration::from_secs(1);
/// No healthy pass takes longer, the slowest prompt chunk on the slowest machine included: the
/// device, or its driver, is stuck.
const PASS_MAX: Duration = Duration::from_secs(60);

/// Stops the engine; whether its thread ended in time. It waits for the pass in flight.
async fn ended(thread: EngineThread, usual: Duration, most: Duration) -> bool {
    #[expect(clippy::disallowed_methods, reason = "waits for another thread, touches no MLX")]
    let mut stopped = tokio::task::spawn_blocking(|| thread.stop());
    if tokio::time::timeout(usual, &mut stopped).await.is_ok() {
        return true;
    }
    tracing::info!(?most, "waiting for the pass in the device");
    tokio::time::timeout(most.saturating_sub(usual), stopped).await.is_ok()
}

/// Ends the process while the engine's thread is at work.
///
/// Not by `exit`, which takes the C++ libraries' globals apart: under the feet of the thread that
/// uses them, or after waiting for the very device that is stuck.
fn leave(status: i32) -> ! {
    // SAFETY: ends the process and returns to nobody. What we print is not held in buffers.
    unsafe { libc::_exit(status) }
}

/// Loads every policy, and reports every one that cannot be.
fn policies(config: &Config, registry: &Registry) -> anyhow::Result<PolicyChain> {
    let host = PolicyHost::new()?;
    let mut links = Vec::new();
    let mut failures = Vec::new();
    for policy in &config.policy {
        match host.load(policy) {
            Ok(loaded) => links.push(link(policy, loaded)),
            Err(failure) => failures.push(format!("\n  {failure}")),
        }
    }
    if !failures.is_empty() {
        bail!("not all policies can be loaded:{}", failures.concat());
    }
    Ok(PolicyChain::new(links, config.limits.ceilings(), PolicyMetrics::register(registry)))
}

fn link(config: &PolicyConfig, policy: Arc<dyn interlock_admission::Policy>) -> Link {
    Link { policy, on_failure: config.on_failure }
}

/// What the engine will run, once its files are here.
enum Source {
    Simulated(SimSettings),
    Files { path: PathBuf, options: LoadOptions },
}

impl Source {
    /// Parses or locates, and pulls what is not here.
    fn find(config: &ModelConfig, cache: &CacheConfig) -> anyhow::Result<Self> {
        let context_max = config.context_max.map(NonZeroU32::get);
        if let ModelRef::Sim { settings, .. } = &config.reference {
            let settings = models::simulated(settings)?;
            let context = context_max.map_or(settings.context, |most| most.min(settings.context));
            return Ok(Self::Simulated(SimSettings { context, ..settings }));
        }
        let path = models::at_hand(&config.reference)?;
        // Reads headers only: what cannot be a model is found out before the port is open.
        let description = interlock_models::inspect(&path)?;
        tracing::info!(
            model = %config.reference,
            path = %path.display(),
            family = description.family,
            quantization = description.quantization,
            "found the model"
        );
        let threads: Option<NonZeroUsize> = config.threads;
        let cache_max = cache.memory_max.map(|size| size.0);
        Ok(Self::Files { path, options: LoadOptions { context_max, threads, cache_max } })
    }

    /// How to sample where a request does not say: as the model's makers do.
    fn sampling(&self, reference: &ModelRef) -> SamplingDefaults {
        match (self, reference) {
            (Self::Files { .. }, ModelRef::Alias(built_in)) => built_in.sampling,
            (Self::Files { path, .. }, _) => interlock_models::recommended_sampling(path),
            (Self::Simulated(_), _) => SamplingDefaults::OPENAI,
        }
    }

    /// Starts the engine thread, which loads the model; its text side arrives in `text`.
    fn spawn(
        self,
        config: &Config,
        metrics: EngineMetrics,
        text: Arc<OnceLock<Arc<TextModel>>>,
    ) -> anyhow::Result<(EngineHandle, EngineThread)> {
        let arrive = move |parts: TextParts| {
            let model = TextModel::new(parts).map_err(|error| error.to_string())?;
            // Set once per process: there is one engine, and it loads one model.
            let _ = text.set(Arc::new(model));
            Ok::<(), String>(())
        };
        let Config { engine, cache, waiting, .. } = config;
        let spawned = match self {
            Self::Simulated(settings) => {
                interlock_engine::spawn(engine, cache, waiting, metrics, move || {
                    let model = SimModel::load(settings);
                    arrive(simulated_text())?;
                    Ok::<_, String>(model)
                })
            }
            Self::Files { path, options } => {
                interlock_engine::spawn(engine, cache, waiting, metrics, move || {
                    let begun = std::time::Instant::now();
                    let mut report = |progress: interlock_models::Progress| {
                        tracing::debug!(fraction = progress.fraction, "{}", progress.doing);
                    };
                    let loaded = interlock_models::load(&path, &options, &mut report)
                        .map_err(|error| error.to_string())?;
                    arrive(text_parts(loaded.text))?;
                    let arithmetic = loaded.model.arithmetic();
                    let attention = loaded.model.attention();
                    let elapsed = begun.elapsed();
                    tracing::info!(?elapsed, arithmetic, attention, "loaded the model");
                    Ok::<_, String>(loaded.model)
                })
            }
        };
        spawned.context("cannot start the engine thread")
    }
}

fn simulated_text() -> TextParts {
    TextParts { tokenizer: TokenizerSource::Sim, chat_template: None, bos: None, eos: vec![] }
}

/// From what `models` read to what `text` wants: the two do not know each other.
fn text_parts(source: TextSource) -> TextParts {
    let tokenizer = match source.tokenizer {
        ModelTokenizer::Json(json) => TokenizerSource::Json(json),
        ModelTokenizer::Gguf {
            model,
            pre,
            tokens,
            token_types,
            scores,
            merges,
            add_bos,
            add_eos,
        } => TokenizerSource::Gguf(GgufTokenizer {
            model,
            pre,
            tokens,
            token_types,
            scores,
            merges,
            add_bos,
            add_eos,
        }),
    };
    TextParts { tokenizer, chat_template: source.chat_template, bos: source.bos, eos: source.eos }
}

/// The ways in which the process is told to stop.
struct Stop {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Stop {
    fn listen() -> anyhow::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn told(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Ends at the first signal, or when the engine ends by itself: without it there is nothing to
    /// serve, and whoever supervises the process can only mend that when it exits.
    async fn or_failure_of(mut self, mut engine: EngineHandle) {
        let failed =
            async { while !matches!(engine.state_changed().await, EngineState::Exited(_)) {} };
        tokio::select! {
            () = self.told() => {
                tracing::info!("told to stop; a second signal stops at once");
                tokio::spawn(async move {
                    self.told().await;
                    tracing::warn!("told twice; stopping at once");
                    leave(1);
                });
            }
            () = failed => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// An engine that is busy until the sender is dropped. It loads, which `stop` cannot tell from
    /// a pass.
    fn busy() -> (mpsc::SyncSender<()>, EngineThread) {
        let (release, released) = mpsc::sync_channel(1);
        let metrics = EngineMetrics::register(&Registry::new());
        let config = Config::default();
        let load = move || {
            let _ = released.recv();
            Err::<SimModel, _>("enough")
        };
        let spawned = {
            let Config { engine, cache, waiting, .. } = &config;
            interlock_engine::spawn(engine, cache, waiting, metrics, load)
        };
        (release, spawned.expect("there is room for a thread").1)
    }

    #[tokio::test]
    async fn a_thread_that_does_not_end_is_waited_for_within_a_bound() {
        let (_release, thread) = busy();
        assert!(!ended(thread, Duration::from_millis(1), Duration::from_millis(20)).await);
    }

    #[tokio::test]
    async fn a_thread_that_ends_late_is_waited_for() {
        let (release, thread) = busy();
        let late = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            drop(release);
        });
        assert!(ended(thread, Duration::from_millis(1), Duration::from_secs(60)).await);
        late.await.expect("it does not panic");
    }
}
