//! The host functions behind a policy's imports, each within its bounds: one file for each
//! interface.
//!
//! An import is linked only when the operator granted it, so a policy that was not granted
//! something has no function to call. Whatever is refined further (which header, which part of
//! the body, which host) is checked at each call.

mod content;
mod http;
mod log;
mod metrics;
mod state;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use interlock_policy_api::Body;
use interlock_request::RequestId;
use interlock_state::Space;
use wasmtime::component::{HasSelf, Linker};

use crate::clock::Allowance;
use crate::grants::Grant;
use crate::limits::{HTTP_TIME_MAX_OF_ALL, Limiter};
use crate::wit::imports;
use crate::wit::{v0_1, v0_2};

pub(crate) use http::HttpClient;
pub(crate) use log::GuestLog;
pub(crate) use metrics::{DeclaredMeters, ExposedMetrics, PluginMetrics, overlap};

/// What the instances of a policy share of the host.
pub(crate) struct HostFunctions {
    pub(crate) log: GuestLog,
    pub(crate) grants: Vec<Grant>,
    pub(crate) space: Space,
    pub(crate) http: Arc<HttpClient>,
    /// Host calls that one call may make.
    pub(crate) calls_max: u32,
    /// Its metrics: there when its first instance said what they are.
    pub(crate) meters: OnceLock<DeclaredMeters>,
    // By the request that it is held for, until the policy ends it or the request is forgotten.
    held: Mutex<HashMap<u64, Vec<HeldState>>>,
}

/// Something of the policy's state that a request holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum HeldState {
    /// Part of a budget.
    Reservation(u64),
    /// One among those that run at once.
    Slot { key: String, slot: u64 },
}

impl HostFunctions {
    pub(crate) fn new(
        log: GuestLog,
        grants: Vec<Grant>,
        space: Space,
        http: Arc<HttpClient>,
        calls_max: u32,
    ) -> Self {
        let (meters, held) = (OnceLock::new(), Mutex::default());
        Self { log, grants, space, http, calls_max, meters, held }
    }

    /// A request is over: it runs no more, so its slots are free; what was reserved for it and not
    /// settled goes back if nothing `ran`, and stays charged if something did: an account that
    /// failed must not be a gift. Waits for nobody.
    pub(crate) fn forget(&self, serial: u64, ran: bool) {
        let held = self.held().remove(&serial);
        for held in held.into_iter().flatten() {
            match held {
                HeldState::Slot { key, slot } => self.space.vacate(&key, slot),
                HeldState::Reservation(reservation) if ran => self.space.charge(reservation),
                HeldState::Reservation(reservation) => self.space.abandon(reservation),
            }
        }
    }

    /// The request of this serial holds something.
    fn hold(&self, serial: u64, held: HeldState) {
        self.held().entry(serial).or_default().push(held);
    }

    /// The policy has ended it. What was begun for another request stays in that one's list; to end
    /// it twice changes nothing.
    fn release(&self, serial: u64, ended: &HeldState) {
        let mut held = self.held();
        if let Some(list) = held.get_mut(&serial) {
            list.retain(|held| held != ended);
            if list.is_empty() {
                held.remove(&serial);
            }
        }
    }

    fn held(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Vec<HeldState>>> {
        // Whoever panicked held it for an insertion or a removal: the map is whole.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the host keeps for an instance: the limits of the call it is in, and for whom it acts.
pub(crate) struct GuestState {
    pub(crate) limiter: Limiter,
    pub(crate) allowance: Allowance,
    pub(crate) functions: Arc<HostFunctions>,
    pub(crate) call: Call,
    calls_left: u32,
    // Time that this call's requests to others may still take.
    asking_left: Duration,
    // What it said last at level error: when a trap follows, that is why.
    pub(crate) last_error: Option<String>,
}

/// The call that an instance is in. The default is `init`, where there is no request.
#[derive(Default)]
pub(crate) struct Call {
    pub(crate) request: Option<RequestId>,
    pub(crate) serial: u64,
    /// What `content` reads, if it does now.
    pub(crate) body: Option<Body>,
    /// May it be changed?
    pub(crate) writable: bool,
    /// Is it about someone who only looks something up? Then nothing is taken from buckets.
    pub(crate) looks_up: bool,
}

/// It called the host too often.
#[derive(Debug, thiserror::Error)]
#[error("it called the host more than {0} times in one call")]
pub(crate) struct TooManyCalls(u32);

/// It called the host in a way that the WIT declares a trap.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Misuse(String);

impl GuestState {
    pub(crate) fn new(
        functions: Arc<HostFunctions>,
        limiter: Limiter,
        allowance: Allowance,
    ) -> Self {
        let (calls_left, asking_left) = (functions.calls_max, HTTP_TIME_MAX_OF_ALL);
        let call = Call::default();
        Self { limiter, allowance, functions, call, calls_left, asking_left, last_error: None }
    }

    /// A call begins.
    pub(crate) fn begin(&mut self, call: Call, allowance: Allowance) {
        self.call = call;
        self.allowance = allowance;
        self.calls_left = self.functions.calls_max;
        self.asking_left = HTTP_TIME_MAX_OF_ALL;
        self.last_error = None;
    }

    /// Does for the policy what takes longer than to look something up; that time is the host's.
    fn work<T>(&mut self, run: impl FnOnce(&Self) -> T) -> T {
        let mut allowance = std::mem::replace(&mut self.allowance, Allowance::new(Duration::ZERO));
        let done = allowance.excuse(|| run(self));
        self.allowance = allowance;
        done
    }

    /// Counts a call of the host.
    fn charge(&mut self) -> Result<(), TooManyCalls> {
        let left = self.calls_left.checked_sub(1);
        self.calls_left = left.ok_or(TooManyCalls(self.functions.calls_max))?;
        Ok(())
    }
}

/// The imports that these grants allow; every policy may speak.
///
/// # Errors
///
/// Never, unless an interface is linked twice.
pub(crate) fn linker(
    engine: &wasmtime::Engine,
    grants: &[Grant],
) -> wasmtime::Result<Linker<GuestState>> {
    let mut linker = Linker::new(engine);
    let me: fn(&mut GuestState) -> &mut GuestState = |state| state;
    imports::log::add_to_linker::<_, HasSelf<_>>(&mut linker, me)?;
    v0_1::interlock::policy::log::add_to_linker::<_, HasSelf<_>>(&mut linker, me)?;
    let granted = |kind: fn(&Grant) -> bool| grants.iter().any(kind);
    if granted(|grant| *grant == Grant::State) {
        imports::state::add_to_linker::<_, HasSelf<_>>(&mut linker, me)?;
    }
    if granted(|grant| *grant == Grant::Metrics) {
        imports::metrics::add_to_linker::<_, HasSelf<_>>(&mut linker, me)?;
    }
    if granted(|grant| matches!(grant, Grant::Read(_) | Grant::Write(_))) {
        imports::content::add_to_linker::<_, HasSelf<_>>(&mut linker, me)?;
    }
    if granted(|grant| matches!(grant, Grant::Http(..))) {
        imports::http::add_to_linker::<_, HasSelf<_>>(&mut linker, me)?;
    }
    Ok(linker)
}

// The types that the phases share have no functions.
impl v0_2::interlock::policy::types::Host for GuestState {}
impl v0_1::interlock::policy::types::Host for GuestState {}
