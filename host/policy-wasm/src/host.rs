//! The one wasmtime engine that all policies share.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use interlock_metrics::Registry;
use interlock_state::State;
use wasmtime::component::Component;
use wasmtime::{
    Config, Engine, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig,
    WasmBacktraceDetails,
};

use crate::cache::Cache;
use crate::clock::Ticker;
use crate::describe::Description;
use crate::fit::Shape;
use crate::limits::{
    CORES_MAX, INSTANCES_MAX, MEMORY_MAX, PARTS_MAX, STACK_BYTES_MAX, TABLE_ELEMENTS_MAX,
};
use crate::load::{Bytes, Digest};
use crate::metrics::HostMetrics;
use crate::policy::WasmPolicy;
use crate::reach::Web;
use crate::{LoadFailed, PolicyConfig};

/// The policies that are part of the host: built by `make guests`, put here by build.rs.
pub(crate) const BUILTINS: &[(&str, &[u8])] = &[
    ("guard", include_bytes!(concat!(env!("OUT_DIR"), "/guard.wasm"))),
    ("quota", include_bytes!(concat!(env!("OUT_DIR"), "/quota.wasm"))),
    ("router", include_bytes!(concat!(env!("OUT_DIR"), "/router.wasm"))),
    ("stream-guard", include_bytes!(concat!(env!("OUT_DIR"), "/stream-guard.wasm"))),
];

/// Loads policies and keeps what they share. Cheap to clone; policies may outlive it.
#[derive(Clone)]
pub struct PolicyHost {
    shared: Arc<Shared>,
}

/// What policies are given to work with.
pub struct Services<'a> {
    /// Where they remember.
    pub state: State,
    /// Where the host counts, and what they count is shown.
    pub registry: &'a Registry,
    /// Where compiled components are kept for the next start; `None`: nowhere.
    pub cache: Option<PathBuf>,
}

/// What every policy needs as long as it lives.
pub(crate) struct Shared {
    pub(crate) engine: Engine,
    pub(crate) state: State,
    pub(crate) web: Arc<Web>,
    pub(crate) metrics: HostMetrics,
    pub(crate) ticker: Ticker,
    cache: Option<Cache>,
}

/// A component, compiled, and what its names say.
pub(crate) struct Compiled {
    pub(crate) component: Component,
    pub(crate) shape: Shape,
    pub(crate) digest: Digest,
    pub(crate) bytes: usize,
    pub(crate) took: Duration,
}

/// Why there is no host for policies. Nothing that an operator could configure differently.
#[derive(Debug, thiserror::Error)]
pub enum HostFailed {
    /// wasmtime cannot work here.
    #[error("cannot run WebAssembly here: {0:#}")]
    Engine(wasmtime::Error),
    /// The thread that counts time did not start.
    #[error("cannot start the thread that ticks: {0}")]
    Ticker(#[from] std::io::Error),
}

impl PolicyHost {
    /// A host on its own: state in memory, metrics that nobody reads, nothing kept on disk.
    ///
    /// # Errors
    ///
    /// As [`PolicyHost::with`].
    pub fn new() -> Result<Self, HostFailed> {
        Self::with(Services { state: State::memory(), registry: &Registry::new(), cache: None })
    }

    /// Sets up the engine and starts its clock, a thread called `interlock-ticks`. The thread
    /// ends, and is waited for, when the host and all its policies are gone.
    ///
    /// # Errors
    ///
    /// When the platform has no WebAssembly compiler, or there is no room for the address space
    /// of [`INSTANCES_MAX`] instances (reserved and not used), or for a thread.
    pub fn with(services: Services<'_>) -> Result<Self, HostFailed> {
        let engine = Engine::new(&config()).map_err(HostFailed::Engine)?;
        let ticker = Ticker::start(&engine)?;
        let cache = services.cache.and_then(|folder| Cache::open(folder, &engine));
        Ok(Self {
            shared: Arc::new(Shared {
                engine,
                state: services.state,
                web: Arc::new(Web::new()),
                metrics: HostMetrics::register(services.registry),
                ticker,
                cache,
            }),
        })
    }

    /// Compiles a policy, links it, and has its first instance read its settings.
    ///
    /// # Errors
    ///
    /// When anything is wrong with it, in a sentence that names the policy, its file and the
    /// reason; see [`Unfit`](crate::Unfit).
    pub fn load(&self, config: &PolicyConfig) -> Result<Arc<WasmPolicy>, LoadFailed> {
        self.checked(config)?;
        self.load_read(config, Bytes::read(&config.source))
    }

    /// The same with a component that is at hand; `source` is only what messages call it.
    ///
    /// # Errors
    ///
    /// As [`PolicyHost::load`].
    pub fn load_bytes(
        &self,
        config: &PolicyConfig,
        component: Vec<u8>,
    ) -> Result<Arc<WasmPolicy>, LoadFailed> {
        self.load_read(config, Bytes::new(component.into()))
    }

    /// Says what a component is and needs, whether or not it could be loaded with these grants:
    /// it is compiled and reads its settings, but what it was not granted it cannot call.
    ///
    /// # Errors
    ///
    /// When it is no component of ours; a policy that did not begin is described without what it
    /// says of itself.
    pub fn describe(&self, config: &PolicyConfig) -> Result<Description, LoadFailed> {
        let failed =
            |why| LoadFailed { policy: config.name.clone(), from: config.source.clone(), why };
        match self.load(config) {
            Ok(policy) => return Ok(policy.describe().clone()),
            Err(LoadFailed { why: crate::Unfit::Config(problems), .. }) => {
                return Err(failed(crate::Unfit::Config(problems)));
            }
            Err(_) => {}
        }
        let bytes = Bytes::read(&config.source).map_err(failed)?;
        let compiled = self.shared.compile(&bytes).map_err(failed)?;
        Ok(WasmPolicy::describe_unloaded(&self.shared, config, &compiled))
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    fn checked(&self, config: &PolicyConfig) -> Result<(), LoadFailed> {
        let problems = config.problems();
        if problems.is_empty() {
            return Ok(());
        }
        let (policy, from) = (config.name.clone(), config.source.clone());
        Err(LoadFailed { policy, from, why: crate::Unfit::Config(problems) })
    }

    fn load_read(
        &self,
        config: &PolicyConfig,
        bytes: Result<Bytes, crate::Unfit>,
    ) -> Result<Arc<WasmPolicy>, LoadFailed> {
        let failed =
            |why| LoadFailed { policy: config.name.clone(), from: config.source.clone(), why };
        let compiled = bytes.and_then(|bytes| self.shared.compile(&bytes)).map_err(failed)?;
        let policy = WasmPolicy::new(&self.shared, config, &compiled)?;
        policy.serve(true);
        if let Some(shown) = policy.shown() {
            self.shared.metrics.plugins.show(shown);
        }
        Ok(Arc::new(policy))
    }
}

impl Shared {
    pub(crate) fn compile(&self, bytes: &Bytes) -> Result<Compiled, crate::Unfit> {
        let began = Instant::now();
        let compile = || {
            Component::new(&self.engine, &bytes.bytes)
                .map_err(|e| crate::Unfit::Invalid(format!("{e:#}")))
        };
        let component = match &self.cache {
            Some(cache) => cache.component(&self.engine, &bytes.digest, compile)?,
            None => compile()?,
        };
        let took = began.elapsed();
        let shape = Shape::of(self, &component)?;
        let (digest, bytes) = (bytes.digest.clone(), bytes.bytes.len());
        Ok(Compiled { component, shape, digest, bytes, took })
    }
}

fn config() -> Config {
    let mut config = Config::new();
    config
        // Policies are small, and most of a call is handing over values: compiling a quarter
        // faster is worth more than code that runs faster. Turned around, guard's call costs the
        // same (see examples/figures.rs).
        .cranelift_opt_level(OptLevel::None)
        .epoch_interruption(true)
        .max_wasm_stack(STACK_BYTES_MAX)
        // Policies answer and return. Without the machinery of concurrent components a call
        // costs a twentieth, and the part of wasmtime that had most of its advisories is off.
        .concurrency_support(false)
        // What the guest calls garbage is in its own memory; no collector is compiled in.
        .gc_support(false)
        // Names of functions are what a trap's message needs; lines would need debug data.
        .wasm_backtrace_details(WasmBacktraceDetails::Disable)
        .allocation_strategy(InstanceAllocationStrategy::Pooling(pool()));
    config
}

/// Slots laid out once, so that a fresh instance costs no mmap: half the price where a policy is
/// replaced after a trap, and a bound on all of them together.
fn pool() -> PoolingAllocationConfig {
    let mut pool = PoolingAllocationConfig::new();
    // A Rust policy has three core instances and one memory; one in Python has forty and one, one
    // in JavaScript fifteen and three.
    pool.total_component_instances(INSTANCES_MAX)
        .total_core_instances(INSTANCES_MAX * 16)
        .total_memories(INSTANCES_MAX)
        .total_tables(INSTANCES_MAX * 4)
        .max_core_instances_per_component(CORES_MAX)
        .max_tables_per_component(PARTS_MAX)
        .max_memories_per_component(PARTS_MAX)
        .table_elements(TABLE_ELEMENTS_MAX)
        .max_memory_size(usize::try_from(MEMORY_MAX).unwrap_or(usize::MAX))
        .total_gc_heaps(0);
    pool
}
