//! The one wasmtime engine that all policies share.

use std::sync::Arc;

use interlock_admission::Policy;
use wasmtime::component::Linker;
use wasmtime::{
    Config, Engine, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig,
    WasmBacktraceDetails,
};

use crate::clock::Ticker;
use crate::instance::GuestState;
use crate::limits::{INSTANCES_MAX, MEMORY_MAX, PARTS_MAX, STACK_BYTES_MAX, TABLE_ELEMENTS_MAX};
use crate::policy::WasmPolicy;
use crate::{LoadFailed, PolicyConfig, wit};

/// The policies that are part of the host: built by `make guests`, put here by build.rs.
pub(crate) const BUILTINS: &[(&str, &[u8])] =
    &[("guard", include_bytes!(concat!(env!("OUT_DIR"), "/guard.wasm")))];

/// Loads policies and keeps what they share. Policies may outlive it.
pub struct PolicyHost {
    shared: Arc<Shared>,
}

/// What every policy needs as long as it lives.
pub(crate) struct Shared {
    pub(crate) engine: Engine,
    pub(crate) linker: Linker<GuestState>,
    // Held, not used: without ticks no deadline would strike.
    _ticker: Ticker,
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
    /// Sets up the engine and starts its clock, a thread called `interlock-ticks`. The thread
    /// ends, and is waited for, when the host and all its policies are gone.
    ///
    /// # Errors
    ///
    /// When the platform has no WebAssembly compiler, or there is no room for the address space
    /// of [`INSTANCES_MAX`] instances (4 GiB each, reserved and not used), or for a thread.
    pub fn new() -> Result<Self, HostFailed> {
        let engine = Engine::new(&config()).map_err(HostFailed::Engine)?;
        let mut linker = Linker::new(&engine);
        // The whole of what a policy can reach.
        wit::interlock::policy::log::add_to_linker::<_, wasmtime::component::HasSelf<_>>(
            &mut linker,
            |state: &mut GuestState| state,
        )
        .map_err(HostFailed::Engine)?;
        let ticker = Ticker::start(&engine)?;
        Ok(Self { shared: Arc::new(Shared { engine, linker, _ticker: ticker }) })
    }

    /// Compiles a policy, links it, and has its first instance read its settings.
    ///
    /// # Errors
    ///
    /// When anything is wrong with it, in a sentence that names the policy, its file and the
    /// reason; see [`Unfit`](crate::Unfit).
    pub fn load(&self, config: &PolicyConfig) -> Result<Arc<dyn Policy>, LoadFailed> {
        Ok(Arc::new(WasmPolicy::load(&self.shared, config)?))
    }
}

fn config() -> Config {
    let mut config = Config::new();
    config
        // Policies are small, and most of a call is handing over values: compiling a quarter
        // faster is worth more than code that runs faster. Turned around, guard's call costs the
        // same (see examples/warm_call.rs).
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
    pool.total_component_instances(INSTANCES_MAX)
        .total_core_instances(INSTANCES_MAX * 4)
        .total_memories(INSTANCES_MAX)
        .total_tables(INSTANCES_MAX * 4)
        .max_core_instances_per_component(PARTS_MAX)
        .max_tables_per_component(PARTS_MAX)
        .max_memories_per_component(PARTS_MAX)
        .table_elements(TABLE_ELEMENTS_MAX)
        .max_memory_size(usize::try_from(MEMORY_MAX).unwrap_or(usize::MAX))
        .total_gc_heaps(0);
    pool
}
