//! What all connections share: the models, the policies, who is in flight.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use interlock_engine::NotStarted;
use interlock_metrics::Registry;
use interlock_policy_chain::Policies;
use interlock_request::CancelCause;

use crate::failure::Failure;
use crate::in_flight::InFlight;
use crate::models::{HostedModels, ModelState};
use crate::result_store::ResultStore;
use crate::wall_clock::WallClock;
use crate::{DetachedConfig, PrefixKeys, ServedModel, ServerConfig, ServerMetrics, WorkPool};

/// What the server is made of.
pub struct ServerParts {
    /// `[server]`.
    pub config: ServerConfig,
    /// The models that are served, no two under the same name.
    pub models: Vec<ServedModel>,
    /// `[detached]`.
    pub detached: DetachedConfig,
    /// The policies that every request must pass, as they are at the moment.
    pub policies: Arc<Policies>,
    /// Where bodies are read, chats rendered and prompts tokenized.
    pub work: WorkPool,
    /// How policies are told which prompts begin alike.
    pub prefix_keys: PrefixKeys,
    /// Where the requests in flight are known, for whoever looks on.
    pub in_flight: InFlight,
    /// What time it is; [`system_time`](crate::system_time) but in simulations.
    pub wall: WallClock,
    /// The server's own metrics.
    pub metrics: ServerMetrics,
    /// Everyone's metrics, for `/metrics`; none where those are on a listener of their own.
    pub registry: Option<Arc<Registry>>,
}

/// What `/health/ready` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Readiness {
    /// A model is loading.
    Starting,
    /// Requests are served.
    Ready,
    /// No new requests are taken; those in flight may finish.
    Draining,
    /// An engine has stopped, and nobody asked it to.
    Failed,
}

impl Readiness {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Failed => "failed",
        }
    }
}

/// Shared by all connections.
pub(crate) struct ServerHost {
    pub(crate) config: ServerConfig,
    pub(crate) models: HostedModels,
    pub(crate) policies: Arc<Policies>,
    pub(crate) results: Arc<ResultStore>,
    pub(crate) metrics: Arc<ServerMetrics>,
    pub(crate) registry: Option<Arc<Registry>>,
    pub(crate) in_flight: InFlight,
    pub(crate) work: WorkPool,
    pub(crate) prefix_keys: PrefixKeys,
    pub(crate) wall: WallClock,
    /// Seconds since the Unix epoch.
    pub(crate) started_at: u64,
    serials: AtomicU64,
    draining: AtomicBool,
}

impl ServerHost {
    pub(crate) fn new(parts: ServerParts) -> Arc<Self> {
        let ServerParts {
            config,
            detached,
            models,
            policies,
            work,
            prefix_keys,
            in_flight,
            wall,
            metrics,
            registry,
        } = parts;
        for model in &models {
            metrics.serves(&model.id);
        }
        Arc::new(Self {
            config,
            models: HostedModels::new(models),
            policies,
            results: ResultStore::new(detached),
            metrics: Arc::new(metrics),
            registry,
            in_flight,
            work,
            prefix_keys,
            started_at: wall().as_secs(),
            wall,
            serials: AtomicU64::new(0),
            draining: AtomicBool::new(false),
        })
    }

    /// All models are served, or the host is not ready.
    pub(crate) fn readiness(&self) -> Readiness {
        let draining = self.draining();
        let any = |state| self.models.iter().any(|model| model.state() == state);
        match () {
            () if any(ModelState::Failed) => Readiness::Failed,
            () if draining => Readiness::Draining,
            () if any(ModelState::Stopped) => Readiness::Failed,
            () if any(ModelState::Starting) => Readiness::Starting,
            () => Readiness::Ready,
        }
    }

    /// Why no new request is taken, if none is.
    pub(crate) fn closed(&self) -> Option<Failure> {
        if !self.draining() {
            return None;
        }
        let why = self.models.failed().map(|exit| NotStarted::Stopped(exit).into());
        Some(why.unwrap_or(Failure::Draining))
    }

    /// A number that no other request of this process has.
    pub(crate) fn serial(&self) -> u64 {
        self.serials.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// Takes no new requests, waits for those in flight and cancels the rest. How many that were.
    pub(crate) async fn drain(&self) -> usize {
        /// How long cancelled requests may take to end: as long as a pass may last.
        const PASS_MAX: Duration = Duration::from_secs(60);

        // A request registers first and looks at this flag afterwards, so it either sees the
        // flag or is waited for.
        self.draining.store(true, Ordering::SeqCst);
        let drain_max = self.config.drain_max;
        tracing::info!(in_flight = self.in_flight.count(), ?drain_max, "the host is shutting down");
        if tokio::time::timeout(drain_max, self.in_flight.empty()).await.is_ok() {
            return 0;
        }
        let cancelled = self.in_flight.cancel_all(CancelCause::Shutdown);
        tracing::warn!(
            cancelled,
            ?drain_max,
            "requests that did not end within server.drain_max were cancelled"
        );
        if tokio::time::timeout(PASS_MAX, self.in_flight.empty()).await.is_err() {
            tracing::error!(
                left = self.in_flight.count(),
                "requests did not end after being cancelled"
            );
        }
        cancelled
    }
}
