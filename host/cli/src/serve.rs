//! `interlock serve`: puts the parts together, runs them, takes them apart.
//!
//! What can fail for a reason that an operator can mend fails before the port is open: the
//! configuration, the policies, the model's files. Loading the model takes long and happens
//! behind the open port, where readiness can be asked for.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use interlock_catalog::{ModelRef, NotPulled};
use interlock_config::{Config, Effective, Problems};
use interlock_engine::{
    EngineExit, EngineHandle, EngineMetrics, EngineState, EngineThread, Engines,
};
use interlock_log::{LineWriter, LogMetrics, Losses, Output};
use interlock_metrics::Registry;
use interlock_models::LoadOptions;
use interlock_request::{ModelId, SamplingDefaults};
use interlock_server::{
    AdminParts, InFlight, MetricsParts, PrefixKeys, ServedModel, ServerMetrics, ServerParts,
    WorkMetrics, WorkPool, system_time,
};
use interlock_sim::{SimModel, SimSettings};
use interlock_text::{TextModel, TextParts, TokenizerSource};
use tokio::signal::unix::{SignalKind, signal};

use crate::listeners::Listeners;
use crate::policies::LocalPolicyAdmin;
use crate::settings::Settings;
use crate::stop::{Stop, leave};
use crate::{descriptors, log, models, policies};

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
  interlock serve --model sim:decode=20ms            a simulated model

On SIGTERM or Ctrl-C, requests in flight may finish (server.drain_max); a second signal cancels them.

Exit status: 0 when the host was told to stop, 1 when something failed, 2 when the command line or
the configuration is wrong or names something that cannot be used (a policy, a model, a path, an
address), 3 when the computing device has failed: start the host again. `interlock config check`
finds the causes of 2.";

impl Serve {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let registry = Arc::new(Registry::new());
        let (log, draft) = self.settings.draft();
        // Before anything can be wrong, so that it is said where somebody looks for it.
        log::start(&log, Some(&LogMetrics::register(&registry)))?;
        let mut effective = draft?.finish()?;
        descriptors::provide(&mut effective.config)?;
        let sources = sources(&effective)?;
        let loaded = policies::load(&effective, &registry)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        let runtime = runtime.context("cannot start the threads that serve")?;
        let listeners = {
            let _on_it = runtime.enter();
            Listeners::open(&effective)?
        };
        let served =
            runtime.block_on(serve(effective.config, listeners, sources, loaded, registry));
        // What still runs there (a policy that is being compiled, say), or blocks there for ever on a
        // disk that does not answer, is not waited for.
        runtime.shutdown_background();
        served
    }
}

async fn serve(
    config: Config,
    listeners: Listeners,
    sources: Vec<Source>,
    policies::LoadedPolicies { manager, record }: policies::LoadedPolicies,
    registry: Arc<Registry>,
) -> anyhow::Result<()> {
    let stop = Stop::listen(config.server.drain_max.saturating_add(END_MAX))
        .context("cannot receive signals")?;
    let address = listeners.clients.local_addr()?;

    let (models, thread) = start(sources, &config, &EngineMetrics::register(&registry))?;
    let engines: Vec<_> =
        models.iter().map(|model| (model.id.clone(), model.engine.clone())).collect();
    let listed = |names: Vec<&str>| match names.is_empty() {
        true => "none".to_owned(),
        false => names.join(", "),
    };
    let served = listed(models.iter().map(|model| model.id.as_str()).collect());
    let what = if models.len() == 1 { "model" } else { "models" };
    let chain = manager.policies().current();
    let policies = listed(chain.names().collect());
    tracing::info!(%address, "listening");
    let _stdout = announce(&format!(
        "interlock listening on http://{address}, {what} {served}, policies: {policies}\n"
    ));

    let metrics = ServerMetrics::register(&registry);
    let in_flight = InFlight::default();
    // Dropped when serving has ended.
    let (serving, over) = tokio::sync::watch::channel(());
    let until_served = |mut over: tokio::sync::watch::Receiver<()>| async move {
        let _ = over.changed().await;
    };
    if let Some(listener) = listeners.metrics {
        let address = listener.local_addr()?;
        tracing::info!(%address, "metrics are served");
        let parts = MetricsParts {
            config: config.metrics.clone(),
            server: config.server.clone(),
            metrics: metrics.clone(),
            registry: Arc::clone(&registry),
        };
        let over = until_served(over.clone());
        tokio::spawn(interlock_server::serve_metrics(listener, parts, over));
    }
    if let Some(listener) = listeners.admin {
        let address = listener.local_addr()?;
        tracing::info!(%address, "admin requests are taken");
        let over = until_served(over.clone());
        let parts = AdminParts {
            config: config.admin,
            server: config.server.clone(),
            metrics: metrics.clone(),
            admin: Arc::new(LocalPolicyAdmin(Arc::clone(&manager))),
            in_flight: in_flight.clone(),
        };
        tokio::spawn(interlock_server::serve_admin(listener, parts, over));
    }
    let reload = config.policies.reload;
    let every = (!reload.is_zero()).then_some(reload);
    let _looking_after =
        manager.start_thread(every).context("cannot start the thread that reloads policies")?;
    let mut hangup = signal(SignalKind::hangup()).context("cannot receive SIGHUP")?;
    let reloader = tokio::spawn({
        let manager = Arc::clone(&manager);
        async move {
            while hangup.recv().await.is_some() {
                tracing::info!("SIGHUP came; the files of all policies are read again");
                policies::reload(&manager, record.as_ref()).await;
            }
        }
    });

    let work = WorkPool::start(&config.work, WorkMetrics::register(&registry))
        .context("cannot start the threads that read requests")?;
    let prefix_keys = PrefixKeys::new(config.cache.prefix_sharing);
    let parts = ServerParts {
        config: config.server,
        models,
        detached: config.detached,
        policies: Arc::clone(manager.policies()),
        work,
        prefix_keys,
        in_flight,
        wall: Arc::new(system_time),
        metrics,
        registry: config.metrics.bind.is_none().then_some(registry),
    };
    let served =
        interlock_server::serve(listeners.clients, parts, stop.or_failure_of(&engines)).await;
    tracing::info!(cancelled = served.cancelled, "stopped serving");
    // Blocks this thread, on which nothing else runs any more.
    let unheard = manager.policies().shared().drain(ACCOUNTS_MAX);
    if unheard > 0 {
        tracing::warn!(calls = unheard, waited = ?ACCOUNTS_MAX, "some policies were not told how requests ended");
    }
    drop(serving);
    reloader.abort();

    // Before the thread is told to stop: from then on they end because they were asked to.
    let stopped = engines.iter().find_map(|(model, engine)| {
        Some(EngineStopped { model: model.clone(), exit: engine.state().failure()? })
    });
    // Loading cannot be interrupted, and what was read so far is of no use to anybody.
    let starting = |(_, engine): &(ModelId, EngineHandle)| engine.state() == EngineState::Starting;
    if stopped.is_none() && engines.iter().any(starting) {
        tracing::info!("a model is still loading; the process ends without waiting for it");
        leave(0)
    }
    if !ended(thread, PASS_USUAL, PASS_MAX).await {
        tracing::error!(waited = ?PASS_MAX, "a forward pass did not end; the process ends without waiting for it");
        // The other models' passes are in the device that has failed: they need not end.
        leave(stopped.map_or(1, |stopped| {
            log::last(&stopped.to_string(), &[], stopped.status());
            stopped.status().into()
        }))
    }
    stopped.map_or(Ok(()), |stopped| Err(stopped.into()))
}

/// An engine has ended, and nobody told it to.
#[derive(Debug)]
pub(crate) struct EngineStopped {
    model: ModelId,
    exit: EngineExit,
}

impl std::fmt::Display for EngineStopped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the engine of {} stopped: {}", self.model, self.exit)
    }
}

impl std::error::Error for EngineStopped {}

impl EngineStopped {
    /// What the process ends with.
    pub(crate) fn status(&self) -> u8 {
        if matches!(self.exit, EngineExit::DeviceFailed(_)) { crate::DEVICE_FAILED } else { 1 }
    }
}

/// Says on stdout that there is a host now. Whoever reads that is not waited for, and that nobody
/// can is no reason not to serve.
fn announce(line: &str) -> Option<LineWriter> {
    let stdout = Output::same_as(&std::io::stdout())
        .and_then(|out| LineWriter::start("interlock-out", out, line.len(), NotAnnounced));
    let stdout = stdout.inspect_err(|why| NotAnnounced.began(&why.to_string())).ok()?;
    stdout.push(line.as_bytes());
    Some(stdout)
}

struct NotAnnounced;

impl Losses for NotAnnounced {
    fn began(&self, why: &str) {
        tracing::warn!(why, "the line that this host listens could not be written to stdout");
    }
}

/// Longest wait for policies that account in another service. The service answers in milliseconds or is
/// gone, and whoever stops the host waits as well.
const ACCOUNTS_MAX: Duration = Duration::from_secs(5);
/// A pass that takes longer is worth a line in the log, for whoever waits for the process.
const PASS_USUAL: Duration = Duration::from_secs(1);
/// No healthy pass takes longer, the slowest prompt chunk on the slowest machine included: the
/// device, or its driver, is stuck.
const PASS_MAX: Duration = Duration::from_secs(60);

/// Longest time that stopping takes beside `server.drain_max`: the time of cancelled requests, last
/// answers, accounts and a pass, each of which has a bound of its own, and as much again.
const END_MAX: Duration = Duration::from_secs(300);

/// Stops the engine, and returns whether its thread ended in time. The thread waits for the pass in
/// flight.
async fn ended(thread: EngineThread, usual: Duration, most: Duration) -> bool {
    #[expect(clippy::disallowed_methods, reason = "waits for another thread, touches no MLX")]
    let mut stopped = tokio::task::spawn_blocking(|| thread.stop());
    if tokio::time::timeout(usual, &mut stopped).await.is_ok() {
        return true;
    }
    tracing::info!(?most, "waiting for the forward pass in the device");
    tokio::time::timeout(most.saturating_sub(usual), stopped).await.is_ok()
}

/// What an engine will run, once its files are here.
struct Source {
    id: ModelId,
    aliases: Vec<String>,
    reference: ModelRef,
    kind: SourceKind,
}

enum SourceKind {
    Simulated(SimSettings),
    Files { path: PathBuf, options: LoadOptions, text: Box<TextModel> },
}

/// All that is to be served, the default model first.
fn sources(effective: &Effective) -> anyhow::Result<Vec<Source>> {
    let config = &effective.config;
    let Config { model, extra_model, .. } = config;
    let mut wanted = vec![(
        "model.reference".to_owned(),
        (model.model_id(), &model.aliases, &model.reference),
        models::load_options(config, model.context_max, model.unknown),
    )];
    wanted.extend(extra_model.iter().enumerate().map(|(at, extra)| {
        let names = (extra.model_id(), &extra.aliases, &extra.reference);
        let key = format!("extra_model.{at}.reference");
        (key, names, models::load_options(config, extra.context_max, extra.unknown))
    }));
    let (mut found, mut problems) = (Vec::new(), Vec::new());
    for (key, (id, aliases, reference), options) in wanted {
        match SourceKind::find(&key, reference, options) {
            Ok(kind) => {
                let (aliases, reference) = (aliases.clone(), reference.clone());
                found.push(Source { id, aliases, reference, kind });
            }
            Err(NotFound::Refused(key, why)) => problems.push(effective.problem(&key, why)),
            Err(NotFound::Failed(error)) => {
                return Err(error.context(models::not_served(&key, reference)));
            }
        }
    }
    if problems.is_empty() { Ok(found) } else { bail!(Problems(problems)) }
}

/// Why a model is not served.
enum NotFound {
    /// The configuration is wrong, so another attempt would fail as well. The setting and the reason.
    Refused(String, String),
    /// The model could not be downloaded.
    Failed(anyhow::Error),
}

/// Starts the engine thread, which loads the models one after the other.
fn start(
    sources: Vec<Source>,
    config: &Config,
    metrics: &EngineMetrics,
) -> anyhow::Result<(Vec<ServedModel>, EngineThread)> {
    let mut engines = Engines::default();
    let models =
        sources.into_iter().map(|source| source.add_to(&mut engines, config, metrics)).collect();
    Ok((models, engines.spawn().context("cannot start the engine thread")?))
}

impl SourceKind {
    /// Parses or locates, and pulls what is not here.
    fn find(key: &str, reference: &ModelRef, options: LoadOptions) -> Result<Self, NotFound> {
        let refused = |why: &dyn std::fmt::Display| {
            NotFound::Refused(key.to_owned(), models::not_served(key, why))
        };
        if let ModelRef::Sim { settings, .. } = reference {
            let settings = models::simulated(settings).map_err(|why| refused(&why))?;
            let most = options.context_max.unwrap_or(settings.context);
            let context = most.min(settings.context);
            return Ok(Self::Simulated(SimSettings { context, ..settings }));
        }
        let path = models::at_hand(reference).map_err(|missing| match missing {
            NotPulled::NotHere(why) => refused(&why),
            other => NotFound::Failed(other.into()),
        })?;
        // Reads no weights: what cannot be a model is found out before the port is open.
        let (description, text) =
            models::look(key, &path, &options).map_err(|(key, why)| NotFound::Refused(key, why))?;
        tracing::info!(
            model = %reference,
            path = %path.display(),
            architecture = description.architecture,
            quantization = description.quantization,
            "found the model"
        );
        if let Some(ignored) = &description.ignored {
            tracing::warn!(
                model = %reference,
                ignored,
                "the model is computed without the unknown keys and tensors of its files, as model.unknown allows"
            );
        }
        Ok(Self::Files { path, options, text: Box::new(text) })
    }
}

impl Source {
    /// How to sample where a request does not say: as the model's makers do.
    fn sampling(&self) -> SamplingDefaults {
        match (&self.kind, &self.reference) {
            (SourceKind::Files { .. }, ModelRef::Alias(built_in)) => built_in.sampling,
            (SourceKind::Files { path, .. }, _) => interlock_models::recommended_sampling(path),
            (SourceKind::Simulated(_), _) => SamplingDefaults::OPENAI,
        }
    }

    /// An engine for it, which loads it when the thread starts; its text side arrives then, too.
    fn add_to(
        self,
        engines: &mut Engines,
        config: &Config,
        metrics: &EngineMetrics,
    ) -> ServedModel {
        let sampling = self.sampling();
        let Self { id, aliases, kind, .. } = self;
        let text = Arc::new(OnceLock::new());
        let text_in = Arc::clone(&text);
        // Set once per engine, which loads one model once.
        let arrive = move |model: TextModel| _ = text_in.set(Arc::new(model));
        let Config { engine, cache, waiting, .. } = config;
        let engine = match kind {
            SourceKind::Simulated(settings) => {
                engines.add(engine, cache, waiting, metrics, move || {
                    let model = SimModel::load(settings);
                    let text = TextModel::new(simulated_text());
                    arrive(text.map_err(|error| error.to_string())?);
                    Ok::<_, String>(model)
                })
            }
            SourceKind::Files { path, options, text } => {
                let name = id.clone();
                engines.add(engine, cache, waiting, metrics, move || {
                    let begun = std::time::Instant::now();
                    let mut report = |progress: interlock_models::LoadProgress| {
                        tracing::debug!(fraction = progress.fraction, "{}", progress.doing);
                    };
                    let loaded = interlock_models::load(&path, &options, &mut report)
                        .map_err(|error| error.to_string())?;
                    arrive(*text);
                    let arithmetic = loaded.model.arithmetic();
                    let attention = loaded.model.attention();
                    let elapsed = begun.elapsed();
                    tracing::info!(model = %name, ?elapsed, arithmetic, attention, "loaded the model");
                    if let Some(cut) = &loaded.context_cut {
                        tracing::warn!(model = %name, "{cut}");
                    }
                    Ok::<_, String>(loaded.model)
                })
            }
        };
        ServedModel { id, aliases, sampling, text, engine }
    }
}

fn simulated_text() -> TextParts {
    TextParts {
        tokenizer: TokenizerSource::Sim,
        chat_template: None,
        special_tokens: Default::default(),
        eos: vec![],
    }
}

impl Stop {
    /// Ends at the first signal, or when an engine ends by itself: a host serves all of its models or
    /// none, and whoever supervises the process can only mend that when it exits.
    async fn or_failure_of(mut self, engines: &[(ModelId, EngineHandle)]) {
        let mut exits = tokio::task::JoinSet::new();
        for (_, engine) in engines {
            let mut engine = engine.clone();
            exits.spawn(async move {
                while !matches!(engine.state(), EngineState::Exited(_)) {
                    engine.state_changed().await;
                }
            });
        }
        let failed = async {
            exits.join_next().await;
        };
        tokio::select! {
            () = self.told() => {
                tracing::info!("stopping; a second signal stops at once");
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
