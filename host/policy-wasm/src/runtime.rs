//! The one wasmtime engine that all policies share, and what they share beside it.

use std::path::PathBuf;
use std::sync::Arc;

use interlock_metrics::Registry;
use interlock_state::State;
use wasmtime::{
    Config, Engine, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig,
    WasmBacktraceDetails,
};

use crate::cache::Cache;
use crate::clock::Ticker;
use crate::host_functions::HttpClient;
use crate::limits::{
    CORES_MAX, INSTANCES_MAX, MEMORY_MAX, PARTS_MAX, STACK_BYTES_MAX, TABLE_ELEMENTS_MAX,
};
use crate::metrics::HostMetrics;

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
pub(crate) struct Runtime {
    pub(crate) engine: Engine,
    pub(crate) state: State,
    pub(crate) http: Arc<HttpClient>,
    pub(crate) metrics: HostMetrics,
    pub(crate) ticker: Ticker,
    pub(crate) cache: Option<Cache>,
}

/// Why there is no host for policies. Nothing that an operator could configure differently.
#[derive(Debug, thiserror::Error)]
pub enum PolicyHostFailed {
    /// wasmtime cannot work here.
    #[error("cannot run WebAssembly here: {0:#}")]
    Engine(wasmtime::Error),
    /// The thread that counts time did not start.
    #[error("cannot start the thread that ticks: {0}")]
    Ticker(#[from] std::io::Error),
}

impl Runtime {
    /// Sets up the engine and starts its clock.
    pub(crate) fn start(services: Services<'_>) -> Result<Self, PolicyHostFailed> {
        let engine = Engine::new(&config()).map_err(PolicyHostFailed::Engine)?;
        let ticker = Ticker::start(&engine)?;
        let cache = services.cache.and_then(|folder| Cache::open(folder, &engine));
        Ok(Self {
            engine,
            state: services.state,
            http: Arc::new(HttpClient::new()),
            metrics: HostMetrics::register(services.registry),
            ticker,
            cache,
        })
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
