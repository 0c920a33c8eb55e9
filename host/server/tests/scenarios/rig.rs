//! A served simulated model, policies made of closures, and what became of each request.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use interlock_admission::{
    Decision, Facts, LimitsConfig, Link, Load, OnFailure, Phase, PlanProposal, Policy, PolicyChain,
    PolicyFailure, PolicyMetrics, Summary,
};
use interlock_engine::{
    CacheConfig, EngineConfig, EngineHandle, EngineMetrics, EngineThread, Engines, WaitingConfig,
};
use interlock_metrics::Registry;
use interlock_request::{ModelId, SamplingDefaults};
use interlock_server::{
    Served, ServedModel, ServerConfig, ServerMetrics, ServerParts, listen, serve,
};
use interlock_sim::{Gate, SimModel, SimSettings};
use interlock_text::{TextModel, TextParts, TokenizerSource};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::wire::{Answer, Connection};

/// What a scenario starts from.
pub(crate) struct Setup {
    pub(crate) server: ServerConfig,
    pub(crate) model: SimSettings,
    /// Requests that may wait.
    pub(crate) seats: usize,
    /// Is every pass held until the test lets it go?
    pub(crate) gated: bool,
    /// A model beside it, on the same engine thread, called `other` and `gpt-4o-mini`.
    pub(crate) other: Option<SimSettings>,
    /// What the one policy answers.
    pub(crate) decision: Decision,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            server: ServerConfig::default(),
            // Never ends by itself, so that a test knows the length of every answer.
            model: SimSettings { stop: 0, ..SimSettings::default() },
            seats: 16,
            gated: false,
            other: None,
            decision: Decision::Admit(PlanProposal::default()),
        }
    }
}

impl Setup {
    /// The default, with what the policy asks for.
    pub(crate) fn planning(proposal: PlanProposal) -> Self {
        Self { decision: Decision::Admit(proposal), ..Self::default() }
    }
}

/// A running server.
pub(crate) struct Rig {
    pub(crate) gate: Gate,
    address: SocketAddr,
    registry: Arc<Registry>,
    ended: mpsc::Receiver<(Facts, Summary)>,
    shutdown: Option<oneshot::Sender<()>>,
    server: JoinHandle<Served>,
    _engine: EngineThread,
}

/// Decides always the same, and reports what it is told.
struct Witness {
    decision: Decision,
    ended: mpsc::Sender<(Facts, Summary)>,
}

impl Policy for Witness {
    fn name(&self) -> &str {
        "witness"
    }

    fn version(&self) -> &str {
        "1"
    }

    fn takes(&self, _: Phase) -> bool {
        true
    }

    fn admit(&self, _: &Facts, _: &Load) -> Result<Decision, PolicyFailure> {
        Ok(self.decision.clone())
    }

    fn account(&self, facts: &Facts, summary: &Summary) -> Result<(), PolicyFailure> {
        self.ended.try_send((facts.clone(), summary.clone())).expect("the test reads on");
        Ok(())
    }
}

impl Rig {
    /// Serves the default setup.
    pub(crate) async fn start() -> Self {
        Self::with(Setup::default()).await
    }

    /// Serves this setup, once it is ready.
    pub(crate) async fn with(setup: Setup) -> Self {
        let rig = Self::loading(setup).await;
        within(async {
            while rig.get("/health/ready").await.status != 200 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        rig
    }

    /// Serves this setup while it is still loading.
    pub(crate) async fn loading(setup: Setup) -> Self {
        let Setup { server, model, seats, gated, other, decision } = setup;
        let registry = Arc::new(Registry::new());
        let gate = Gate::closed();
        if !gated {
            gate.open();
        }
        let device = gate.clone();
        let seats = WaitingConfig { requests_max: NonZeroUsize::new(seats).expect("not 0") };
        let metrics = EngineMetrics::register(&registry);
        let (config, cache) = (EngineConfig::default(), CacheConfig::default());
        let mut engines = Engines::default();
        let engine = engines.add(&config, &cache, &seats, &metrics, move || {
            std::thread::sleep(model.load);
            Ok::<_, String>(SimModel::gated(model, device))
        });
        let mut models = vec![served("sim", &[], engine)];
        if let Some(settings) = other {
            let load = || Ok::<_, String>(SimModel::load(settings));
            let engine = engines.add(&config, &cache, &seats, &metrics, load);
            models.push(served("other", &["gpt-4o-mini"], engine));
        }
        let thread = engines.spawn().expect("a thread");
        let (ended_in, ended) = mpsc::channel(1024);
        let policy = Arc::new(Witness { decision, ended: ended_in });
        let chain = PolicyChain::new(
            vec![Link { policy, on_failure: OnFailure::default() }],
            LimitsConfig::default().ceilings(),
            PolicyMetrics::register(&registry),
        );
        let listener = listen(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a port");
        let address = listener.local_addr().expect("an address");
        let parts = ServerParts {
            config: server,
            models,
            chain: Arc::new(chain),
            metrics: ServerMetrics::register(&registry),
            registry: Arc::clone(&registry),
        };
        let (shutdown, asked) = oneshot::channel();
        let server = tokio::spawn(serve(listener, parts, async {
            // A rig that is dropped without being shut down only goes away.
            if asked.await.is_err() {
                std::future::pending::<()>().await;
            }
        }));
        Self { gate, address, registry, ended, shutdown: Some(shutdown), server, _engine: thread }
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) async fn connect(&self) -> Connection {
        Connection::open(self.address).await
    }

    /// A connection whose client takes little before it is read.
    pub(crate) async fn connect_narrow(&self) -> Connection {
        Connection::narrow(self.address).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        let mut connection = self.connect().await;
        connection.send("GET", path, &[], "").await;
        connection.answer().await
    }

    pub(crate) async fn post(&self, path: &str, body: &str) -> Answer {
        let mut connection = self.connect().await;
        connection.send("POST", path, &[], body).await;
        connection.answer().await
    }

    /// Sends a request and leaves its answer to be read.
    pub(crate) async fn begin(&self, path: &str, id: &str, body: &str) -> Connection {
        let mut connection = self.connect().await;
        connection.send("POST", path, &[("x-request-id", id)], body).await;
        connection
    }

    /// How the next request to end did so.
    pub(crate) async fn ended(&mut self) -> (String, Summary) {
        let (facts, summary) = within(self.ended.recv()).await.expect("the policy lives");
        (facts.request_id.to_string(), summary)
    }

    /// What the policies knew of the next request to end.
    pub(crate) async fn facts(&mut self) -> Facts {
        within(self.ended.recv()).await.expect("the policy lives").0
    }

    /// The value of a metric line, such as `requests_running` or `x_total{a="b"}`.
    pub(crate) fn metric(&self, line: &str) -> f64 {
        let wanted = format!("interlock_{line} ");
        let exposition = self.registry.expose().expect("encodes");
        let found = exposition.lines().find_map(|found| found.strip_prefix(&wanted));
        found.map_or(0.0, |value| value.parse().expect("a number"))
    }

    /// Waits until a metric has a value.
    pub(crate) async fn metric_is(&self, line: &str, value: f64) {
        within(async {
            while self.metric(line) != value {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    /// What SIGTERM does.
    pub(crate) fn shut_down(&mut self) {
        let shutdown = self.shutdown.take().expect("shut down once");
        shutdown.send(()).expect("the server runs");
    }

    /// Waits until serving has ended.
    pub(crate) async fn gone(&mut self) -> Served {
        within(&mut self.server).await.expect("no panic")
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.server.abort();
        // The engine's thread is joined next, and must not wait for a pass nobody lets through.
        self.gate.open();
    }
}

fn served(name: &str, aliases: &[&str], engine: EngineHandle) -> ServedModel {
    ServedModel {
        id: ModelId::new(name),
        aliases: aliases.iter().map(ToString::to_string).collect(),
        sampling: SamplingDefaults::OPENAI,
        text: Arc::new(OnceLock::from(text())),
        engine,
    }
}

fn text() -> Arc<TextModel> {
    let parts = TextParts {
        tokenizer: TokenizerSource::Sim,
        chat_template: None,
        bos: None,
        eos: vec![SimModel::EOS],
    };
    Arc::new(TextModel::new(parts).expect("the simulated text model"))
}

/// Waits for something that must happen; a test that is stuck fails instead of hanging.
pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    const PATIENCE: Duration = Duration::from_secs(20);
    let waited = tokio::time::timeout(PATIENCE, future).await;
    waited.unwrap_or_else(|_| panic!("this did not happen within {PATIENCE:?}"))
}
