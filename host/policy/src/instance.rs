//! One instance of a policy, in a store of its own, and what can become of a call.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use interlock_admission::{Decision, Facts, FailureKind, Load, PolicyFailure, Summary};
use interlock_request::RequestId;
use wasmtime::{Store, Trap, WasmBacktrace};

use crate::clock::Allowance;
use crate::convert::{LentFacts, decision, load_facts, summary as lent_summary};
use crate::host::Shared;
use crate::limits::{HANDLES_MAX, Limiter, MemoryExceeded, TRANSFER_BYTES_MAX};
use crate::load::Fit;
use crate::voice::Voice;
use crate::wit::exports::interlock::policy as phases;
use crate::wit::interlock::policy::log;

/// What the host keeps for an instance: the limits of the call it is in, and in whose name it
/// speaks.
pub(crate) struct GuestState {
    limiter: Limiter,
    allowance: Allowance,
    voice: Arc<Voice>,
    request: Option<RequestId>,
    // What it said last at level error: when a trap follows, that is why.
    last_words: Option<String>,
}

impl log::Host for GuestState {
    fn write(&mut self, level: log::Level, message: String) {
        let line = self.voice.write(level, self.request.as_ref(), &message);
        if level == log::Level::Error {
            self.last_words = Some(line);
        }
    }
}

// The words that the phases share have no functions.
impl crate::wit::interlock::policy::types::Host for GuestState {}

/// An instance that has read its settings and never failed.
pub(crate) struct Instance {
    store: Store<GuestState>,
    admit: Option<phases::admit::Guest>,
    account: Option<phases::account::Guest>,
    /// How many more calls it is good for.
    pub(crate) calls_left: u32,
}

/// Why there is no instance.
pub(crate) enum Stillborn {
    /// It trapped or exceeded its limits.
    Failed(PolicyFailure),
    /// `init` answered with this error.
    Refused(String),
}

impl Instance {
    /// Makes an instance and has it read its settings, in this time altogether.
    pub(crate) fn new(
        shared: &Shared,
        fit: &Fit,
        voice: &Arc<Voice>,
        memory_max: usize,
        settings: &str,
        time_max: Duration,
    ) -> Result<(Self, phases::lifecycle::Descriptor), Stillborn> {
        let mut store = Store::new(
            &shared.engine,
            GuestState {
                limiter: Limiter { memory_max, memory: 0, table_elements: 0 },
                allowance: Allowance::new(time_max),
                voice: Arc::clone(voice),
                request: None,
                last_words: None,
            },
        );
        store.limiter(|state| &mut state.limiter);
        store.set_hostcall_fuel(TRANSFER_BYTES_MAX);
        store.set_max_component_handles(HANDLES_MAX);
        store.epoch_deadline_callback(|mut store| Ok(store.data_mut().allowance.overdue()));

        let begun = call(&mut store, None, time_max, |store| {
            let instance = fit.pre.instantiate(&mut *store)?;
            let lifecycle = fit.lifecycle.load(&mut *store, &instance)?;
            let answer = lifecycle.call_init(&mut *store, settings)?;
            let admit = fit.admit.as_ref().map(|i| i.load(&mut *store, &instance)).transpose()?;
            let account =
                fit.account.as_ref().map(|i| i.load(&mut *store, &instance)).transpose()?;
            Ok((answer, admit, account))
        });
        match begun {
            Ok((Ok(descriptor), admit, account)) => {
                Ok((Self { store, admit, account, calls_left: 0 }, descriptor))
            }
            Ok((Err(message), ..)) => Err(Stillborn::Refused(message)),
            Err(failure) => Err(Stillborn::Failed(failure)),
        }
    }

    /// Asks it. After an error it must not be used again.
    pub(crate) fn admit(
        &mut self,
        facts: &Facts,
        load: &Load,
        time_max: Duration,
    ) -> Result<Decision, PolicyFailure> {
        let guest = self.admit.as_ref().expect("only asked when it takes this phase");
        let lent = LentFacts::new(facts);
        let answer = call(&mut self.store, Some(&facts.request_id), time_max, |store| {
            guest.call_admit(store, lent.as_wit(), load_facts(load))
        })?;
        decision(answer)
    }

    /// Tells it. After an error it must not be used again.
    pub(crate) fn account(
        &mut self,
        facts: &Facts,
        summary: &Summary,
        time_max: Duration,
    ) -> Result<(), PolicyFailure> {
        let guest = self.account.as_ref().expect("only told when it takes this phase");
        let lent = LentFacts::new(facts);
        call(&mut self.store, Some(&facts.request_id), time_max, |store| {
            guest.call_account(store, lent.as_wit(), lent_summary(summary))
        })
    }
}

fn call<T>(
    store: &mut Store<GuestState>,
    request: Option<&RequestId>,
    time_max: Duration,
    run: impl FnOnce(&mut Store<GuestState>) -> wasmtime::Result<T>,
) -> Result<T, PolicyFailure> {
    let state = store.data_mut();
    state.request = request.cloned();
    state.last_words = None;
    state.allowance = Allowance::new(time_max);
    let ticks = state.allowance.ticks();
    store.set_epoch_deadline(ticks);
    let began = Instant::now();
    run(store).map_err(|error| failure(&error, began.elapsed(), store.data_mut().last_words.take()))
}

/// What went wrong, told apart by type.
fn failure(
    error: &wasmtime::Error,
    elapsed: Duration,
    last_words: Option<String>,
) -> PolicyFailure {
    let (kind, mut message) = if let Some(exceeded) = error.downcast_ref::<MemoryExceeded>() {
        (FailureKind::Memory, exceeded.to_string())
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
    if let Some(words) = last_words {
        let _ = write!(message, "; it said: {words}");
    }
    if let Some(backtrace) = error.downcast_ref::<WasmBacktrace>() {
        let _ = write!(message, "; in {}", functions(backtrace));
    }
    PolicyFailure { kind, message }
}

/// The functions of the guest that were at work, innermost first, as far as it kept their names.
fn functions(backtrace: &WasmBacktrace) -> String {
    let functions: Vec<_> = backtrace
        .frames()
        .iter()
        .map(|frame| match frame.func_name() {
            // Without the hash that tells two builds apart.
            Some(name) => format!("{:#}", rustc_demangle::demangle(name)),
            None => format!("function {}", frame.func_index()),
        })
        // How Rust panics is not news; where it began to is.
        .skip_while(|name| ["__rustc::", "std::", "core::"].iter().any(|p| name.starts_with(p)))
        .take(8)
        .collect();
    functions.join(" < ")
}
