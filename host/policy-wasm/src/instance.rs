//! One instance of a policy, in a store of its own, and what can become of a call.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use interlock_policy_api::{FailureKind, PolicyFailure};
use wasmtime::{Store, Trap, WasmBacktrace};

use crate::clock::Allowance;
use crate::descriptor::Descriptor;
use crate::host_functions::{Call, GuestState, HostFunctions, Misuse, TooManyCalls};
use crate::limits::{HANDLES_MAX, Limiter, MemoryExceeded, TRANSFER_BYTES_MAX};
use crate::linked::{GuestFunctions, Init, LinkedComponent};
use crate::runtime::Runtime;

/// An instance that has read its settings and never failed.
pub(crate) struct Instance {
    store: Store<GuestState>,
    guests: GuestFunctions,
    /// How many more calls it is good for.
    pub(crate) calls_left: u32,
    /// Its memory when it had read its settings.
    pub(crate) born_with: usize,
}

/// Why there is no instance.
pub(crate) enum InstantiateError {
    /// It trapped or exceeded its limits.
    Failed(PolicyFailure),
    /// `init` answered with this error.
    Refused(String),
    /// A function is not what the WIT says it is.
    Misfit(String),
}

impl Instance {
    /// Makes an instance and has it read its settings, in this time altogether.
    pub(crate) fn new(
        shared: &Runtime,
        linked: &LinkedComponent,
        functions: &Arc<HostFunctions>,
        memory_max: usize,
        settings: &str,
        time_max: Duration,
    ) -> Result<(Self, Descriptor), InstantiateError> {
        let _ticking = shared.ticker.call();
        let limiter = Limiter { memory_max, memory: 0, table_elements: 0 };
        let state = GuestState::new(Arc::clone(functions), limiter, Allowance::new(time_max));
        let mut store = Store::new(&shared.engine, state);
        store.limiter(|state| &mut state.limiter);
        store.set_hostcall_fuel(TRANSFER_BYTES_MAX);
        store.set_max_component_handles(HANDLES_MAX);
        store.epoch_deadline_callback(|mut store| Ok(store.data_mut().allowance.overdue()));

        let instance = run(&mut store, Call::default(), Allowance::new(time_max), |store| {
            linked.pre.instantiate(&mut *store)
        });
        let instance = instance.map_err(|mut failure| {
            // It has said nothing yet that could be wrong: there was no room for it.
            if failure.kind == FailureKind::BadOutput {
                failure.kind = FailureKind::Instantiate;
            }
            InstantiateError::Failed(failure)
        })?;
        let misfit = |error: wasmtime::Error| InstantiateError::Misfit(format!("{error:#}"));
        // All of them before `init`: one that does not fit is no matter of settings.
        let (guests, init) = linked.load(&mut store, &instance).map_err(misfit)?;
        // What is left of its time: a start function that dawdles leaves `init` little.
        let left = store.data().allowance;
        let begun = run(&mut store, Call::default(), left, |store| match &init {
            Init::V0_2(guest) => Ok(guest.call_init(store, settings)?.map(Descriptor::from)),
            Init::V0_1(guest) => Ok(guest.call_init(store, settings)?.map(Descriptor::from)),
        });
        let descriptor =
            begun.map_err(InstantiateError::Failed)?.map_err(InstantiateError::Refused)?;
        let born_with = store.data().limiter.memory;
        Ok((Self { store, guests, calls_left: 0, born_with }, descriptor))
    }

    /// Its memory now.
    pub(crate) fn memory(&self) -> usize {
        self.store.data().limiter.memory
    }

    /// Calls it. After an error it must not be used again.
    pub(crate) fn call<T>(
        &mut self,
        call: Call,
        time_max: Duration,
        ask: impl FnOnce(&GuestFunctions, &mut Store<GuestState>) -> wasmtime::Result<T>,
    ) -> Result<T, PolicyFailure> {
        let guests = &self.guests;
        let allowance = Allowance::new(time_max);
        let answer = run(&mut self.store, call, allowance, |store| ask(guests, store));
        // What a request brought is not kept for the next.
        self.store.data_mut().call = Call::default();
        answer
    }
}

fn run<T>(
    store: &mut Store<GuestState>,
    call: Call,
    allowance: Allowance,
    run: impl FnOnce(&mut Store<GuestState>) -> wasmtime::Result<T>,
) -> Result<T, PolicyFailure> {
    store.data_mut().begin(call, allowance);
    store.set_epoch_deadline(Allowance::TICKS);
    let began = Instant::now();
    run(store).map_err(|error| failure(&error, began.elapsed(), store.data_mut().last_error.take()))
}

/// What went wrong, told apart by type.
fn failure(
    error: &wasmtime::Error,
    elapsed: Duration,
    last_error: Option<String>,
) -> PolicyFailure {
    let (kind, mut message) = if let Some(exceeded) = error.downcast_ref::<MemoryExceeded>() {
        (FailureKind::Memory, exceeded.to_string())
    } else if let Some(calls) = error.downcast_ref::<TooManyCalls>() {
        (FailureKind::HostCalls, calls.to_string())
    } else if let Some(misuse) = error.downcast_ref::<Misuse>() {
        (FailureKind::Trap, misuse.to_string())
    } else {
        match error.downcast_ref::<Trap>() {
            Some(Trap::Interrupt) => (FailureKind::Deadline, format!("stopped after {elapsed:?}")),
            Some(trap) => (FailureKind::Trap, trap.to_string()),
            None if error.is::<wasmtime::PoolConcurrencyLimitError>() => {
                (FailureKind::Instantiate, error.root_cause().to_string())
            }
            // Neither did its code trap nor its limits strike: the values that it handed over
            // are not what their types say, or are too many.
            None => (FailureKind::BadOutput, error.root_cause().to_string()),
        }
    };
    if let Some(words) = last_error {
        let _ = write!(message, "; it said: {words}");
    }
    if let Some(backtrace) = error.downcast_ref::<WasmBacktrace>() {
        let _ = write!(message, "; in {}", functions(backtrace));
    }
    PolicyFailure { kind, message }
}

/// The functions of the guest that were at work, innermost first, as far as it kept their names.
fn functions(backtrace: &WasmBacktrace) -> String {
    let mut functions: Vec<_> = backtrace
        .frames()
        .iter()
        .map(|frame| match frame.func_name() {
            // Without the hash that tells two builds apart.
            Some(name) => format!("{:#}", rustc_demangle::demangle(name)),
            None => format!("function {}", frame.func_index()),
        })
        // How Rust panics is not news; where it began to is.
        .skip_while(|name| ["__rustc::", "std::", "core::"].iter().any(|p| name.starts_with(p)))
        .collect();
    // One that calls itself is said once.
    functions.dedup();
    functions.truncate(8);
    functions.join(" < ")
}
