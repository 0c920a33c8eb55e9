//! A served simulated model, policies made of closures, and what became of each request.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::Duration;

use interlock_engine::{
    CacheConfig, EngineConfig, EngineHandle, EngineMetrics, EngineThread, Engines, PrefixSharing,
    WaitingConfig,
};
use interlock_metrics::Registry;
use interlock_policy_api::{
    Admission, Body, CallTime, Caller, Candidate, Choice, Closing, Decision, Event, Facts,
    Identified, Load, Phase, PlanProposal, Policy, Progress, Reaction, RequestContext, Summary,
    Transformed, Verdict, Window,
};
use interlock_policy_chain::{
    ChainEntry, LimitsConfig, OnFailure, Policies, PolicyChain, PolicyMetrics,
};
use interlock_request::{ModelId, Outcome, SamplingDefaults, Usage};
use interlock_server::{
    DetachedConfig, InFlight, PrefixKeys, ServeOutcome, ServedModel, ServerConfig, ServerMetrics,
    ServerParts, WorkConfig, WorkMetrics, WorkPool, listen, serve, system_time,
};
use interlock_sim::{Gate, SimModel, SimSettings};
use interlock_text::{TextModel, TextParts, TokenizerSource};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::wire::{Answer, Connection};

type Says<T> = Result<T, interlock_policy_api::PolicyFailure>;

/// What a scenario starts from.
pub(crate) struct Setup {
    pub(crate) server: ServerConfig,
    pub(crate) model: SimSettings,
    /// Loading is done once this is open.
    pub(crate) loads: Latch,
    /// Requests that may wait.
    pub(crate) seats: usize,
    /// Is every pass held until the test lets it go?
    pub(crate) gated: bool,
    /// A model beside it, on the same engine thread, called `other` and `gpt-4o-mini`.
    pub(crate) other: Option<SimSettings>,
    /// What the policy that tells of the end answers.
    pub(crate) decision: Decision,
    /// What the policy before it does.
    pub(crate) script: Script,
    /// `cache.prefix_sharing`.
    pub(crate) prefix_sharing: PrefixSharing,
    /// `[detached]`.
    pub(crate) detached: DetachedConfig,
    /// `[work]`.
    pub(crate) work: WorkConfig,
    /// `[limits]`.
    pub(crate) limits: LimitsConfig,
    /// What makes tokens of text and text of tokens for the model, whose tokens are its first 512.
    pub(crate) text: Arc<TextModel>,
    /// Are metrics on a listener of their own?
    pub(crate) metrics_apart: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            server: ServerConfig::default(),
            // Never ends by itself, so that a test knows the length of every answer.
            model: SimSettings { stop: 0, ..SimSettings::default() },
            loads: Latch::ajar(),
            seats: 16,
            gated: false,
            other: None,
            decision: Decision::Admit(Admission::default()),
            script: Script::default(),
            prefix_sharing: PrefixSharing::default(),
            detached: DetachedConfig::default(),
            work: WorkConfig::default(),
            limits: LimitsConfig::default(),
            text: text(),
            metrics_apart: false,
        }
    }
}

impl Setup {
    /// The default, with what the policy asks for.
    pub(crate) fn planning(proposal: PlanProposal) -> Self {
        let admission = Admission { proposal, ..Admission::default() };
        Self { decision: Decision::Admit(admission), ..Self::default() }
    }

    /// The default, with a policy that does this.
    pub(crate) fn scripted(script: Script) -> Self {
        Self { script, ..Self::default() }
    }
}

type Transforms = dyn Fn(&Facts, &Body) -> Transformed + Send + Sync;
type Routes = dyn Fn(&Facts, &[Candidate]) -> Choice + Send + Sync;
type Does<F> = Option<Box<F>>;
type Part<I, O> = Does<dyn Fn(I) -> O + Send + Sync>;

/// A policy of closures; it takes part where there is one.
#[derive(Default)]
pub(crate) struct Script {
    pub(crate) headers: Vec<String>,
    pub(crate) identify: Does<dyn Fn(&Caller) -> Identified + Send + Sync>,
    pub(crate) transform: Does<Transforms>,
    pub(crate) route: Does<Routes>,
    pub(crate) admit: Does<dyn Fn(&Facts) -> Admission + Send + Sync>,
    pub(crate) window: Does<dyn Fn(&Window<'_>) -> Verdict + Send + Sync>,
    pub(crate) event: Part<Event, Reaction>,
    /// Does it take its time, and a thread of its own?
    pub(crate) slow: bool,
}

/// A policy waits here until the test lets it go on.
#[derive(Clone, Default)]
pub(crate) struct Latch(Arc<(Mutex<bool>, Condvar)>);

impl Latch {
    /// One that holds up nobody.
    pub(crate) fn ajar() -> Self {
        let latch = Self::default();
        latch.open();
        latch
    }

    /// Returns once it is open, or the test has failed long ago.
    pub(crate) fn wait(&self) {
        let (open, opens) = &*self.0;
        let open = open.lock().expect("no panic");
        let waited = opens.wait_timeout_while(open, Duration::from_secs(30), |open| !*open);
        drop(waited.expect("no panic"));
    }

    /// The same, for a test that waits for a policy.
    pub(crate) async fn opened(&self) {
        within(async {
            while !*self.0.0.lock().expect("no panic") {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    pub(crate) fn open(&self) {
        let (open, opens) = &*self.0;
        *open.lock().expect("no panic") = true;
        opens.notify_all();
    }
}

impl Policy for Script {
    fn name(&self) -> &'static str {
        "script"
    }

    fn version(&self) -> &'static str {
        "1"
    }

    fn takes(&self, phase: Phase) -> bool {
        match phase {
            Phase::Identify => self.identify.is_some(),
            Phase::Transform => self.transform.is_some(),
            Phase::Route => self.route.is_some(),
            Phase::Admit => self.admit.is_some(),
            Phase::StreamGuard => self.window.is_some(),
            Phase::Events => self.event.is_some(),
            Phase::Account => false,
        }
    }

    fn headers(&self) -> &[String] {
        &self.headers
    }

    fn call_time(&self) -> CallTime {
        if self.slow { CallTime::Waits } else { CallTime::AtOnce }
    }

    fn wants_content(&self) -> bool {
        self.transform.is_some()
    }

    fn identify(&self, caller: &Caller) -> Says<Identified> {
        Ok(self.identify.as_ref().expect("it takes part")(caller))
    }

    fn transform(&self, facts: &Facts, body: &Body) -> Says<Transformed> {
        Ok(self.transform.as_ref().expect("it takes part")(facts, body))
    }

    fn route(&self, facts: &Facts, candidates: &[Candidate], _: &Body) -> Says<Choice> {
        Ok(self.route.as_ref().expect("it takes part")(facts, candidates))
    }

    fn admit(&self, facts: &Facts, _: &Load, _: u32, _: &Body) -> Says<Decision> {
        Ok(Decision::Admit(self.admit.as_ref().expect("it takes part")(facts)))
    }

    fn window(&self, _: RequestContext<'_>, window: &Window<'_>) -> Says<Verdict> {
        Ok(self.window.as_ref().expect("it takes part")(window))
    }

    fn event(&self, _: RequestContext<'_>, event: &Event, _: &Progress) -> Says<Reaction> {
        Ok(self.event.as_ref().expect("it takes part")(*event))
    }
}

/// A running server.
pub(crate) struct Rig {
    pub(crate) gate: Gate,
    /// Where requests are read, to fill it.
    pub(crate) work: WorkPool,
    /// Where its requests in flight are known, for an operator.
    pub(crate) in_flight: InFlight,
    address: SocketAddr,
    registry: Arc<Registry>,
    ended: mpsc::Receiver<(Facts, Summary)>,
    shutdown: Option<oneshot::Sender<()>>,
    server: JoinHandle<ServeOutcome>,
    _engine: EngineThread,
}

/// How a request ended, as the policies were told.
#[derive(Debug)]
pub(crate) struct Account {
    pub(crate) outcome: Outcome,
    pub(crate) usage: Usage,
    pub(crate) time_to_first_token: Option<Duration>,
    pub(crate) total: Duration,
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

    fn takes(&self, phase: Phase) -> bool {
        matches!(phase, Phase::Admit | Phase::Account)
    }

    fn admit(&self, _: &Facts, _: &Load, _: u32, _: &Body) -> Says<Decision> {
        Ok(self.decision.clone())
    }

    fn account(&self, told: RequestContext<'_>, summary: &Summary) -> Says<()> {
        self.ended.try_send((told.facts.clone(), summary.clone())).expect("the test reads on");
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
        let Setup {
            server,
            model,
            loads,
            seats,
            gated,
            other,
            decision,
            script,
            prefix_sharing,
            detached,
            work,
            limits,
            text,
            metrics_apart,
        } = setup;
        let registry = Arc::new(Registry::new());
        let gate = Gate::closed();
        if !gated {
            gate.open();
        }
        let device = gate.clone();
        let seats = WaitingConfig { requests_max: NonZeroUsize::new(seats).expect("not 0") };
        let metrics = EngineMetrics::register(&registry);
        let (config, cache) =
            (EngineConfig::default(), CacheConfig { prefix_sharing, ..CacheConfig::default() });
        let mut engines = Engines::default();
        let engine = engines.add(&config, &cache, &seats, &metrics, move || {
            loads.wait();
            Ok::<_, String>(SimModel::gated(model, device))
        });
        let mut models = vec![served("sim", &[], text, engine)];
        if let Some(settings) = other {
            let load = || Ok::<_, String>(SimModel::load(settings));
            let engine = engines.add(&config, &cache, &seats, &metrics, load);
            models.push(served("other", &["gpt-4o-mini"], self::text(), engine));
        }
        let thread = engines.spawn().expect("a thread");
        let (ended_in, ended) = mpsc::channel(1024);
        let policy = Arc::new(Witness { decision, ended: ended_in });
        let chain = PolicyChain::new(
            vec![link(Arc::new(script)), link(policy)],
            limits.ceilings(),
            PolicyMetrics::register(&registry),
        );
        let listener = listen(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a port");
        let address = listener.local_addr().expect("an address");
        let work = WorkPool::start(&work, WorkMetrics::register(&registry)).expect("threads");
        let in_flight = InFlight::default();
        let parts = ServerParts {
            work: work.clone(),
            config: server,
            detached,
            models,
            policies: Arc::new(Policies::from(chain)),
            prefix_keys: PrefixKeys::new(prefix_sharing),
            in_flight: in_flight.clone(),
            wall: Arc::new(system_time),
            metrics: ServerMetrics::register(&registry),
            registry: (!metrics_apart).then(|| Arc::clone(&registry)),
        };
        let (shutdown, asked) = oneshot::channel();
        let server = tokio::spawn(serve(listener, parts, async {
            // A rig that is dropped without being shut down only goes away.
            if asked.await.is_err() {
                std::future::pending::<()>().await;
            }
        }));
        Self {
            gate,
            work,
            in_flight,
            address,
            registry,
            ended,
            shutdown: Some(shutdown),
            server,
            _engine: thread,
        }
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
    pub(crate) async fn ended(&mut self) -> (String, Account) {
        let (facts, summary) = within(self.ended.recv()).await.expect("the policy lives");
        let Summary { closing, usage, time_to_first_token, total, .. } = summary;
        let Closing::Ended(outcome) = closing else { panic!("it never began: {facts:?}") };
        (facts.request_id.to_string(), Account { outcome, usage, time_to_first_token, total })
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
    pub(crate) async fn gone(&mut self) -> ServeOutcome {
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

fn link(policy: Arc<dyn Policy>) -> ChainEntry {
    ChainEntry::new(policy, OnFailure::default())
}

fn served(name: &str, aliases: &[&str], text: Arc<TextModel>, engine: EngineHandle) -> ServedModel {
    ServedModel {
        id: ModelId::new(name),
        aliases: aliases.iter().map(ToString::to_string).collect(),
        sampling: SamplingDefaults::OPENAI,
        text: Arc::new(OnceLock::from(text)),
        engine,
    }
}

pub(crate) fn text() -> Arc<TextModel> {
    let parts = TextParts {
        tokenizer: TokenizerSource::Sim,
        chat_template: None,
        special_tokens: Default::default(),
        eos: vec![SimModel::EOS],
    };
    Arc::new(TextModel::new(parts).expect("the simulated text model"))
}

/// Waits for something that must happen; a test that is stuck fails instead of hanging.
pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    const PATIENCE: Duration = Duration::from_secs(60);
    let waited = tokio::time::timeout(PATIENCE, future).await;
    waited.unwrap_or_else(|_| panic!("this did not happen within {PATIENCE:?}"))
}
