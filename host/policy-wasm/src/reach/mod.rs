//! What a policy reaches: the host functions behind its imports, each within its bounds.
//!
//! An import is linked only when the operator granted it, so a policy that was not granted
//! something has no function to call. Whatever is refined further (which header, which part of
//! the body, which host) is checked at each call.

mod content;
mod http;
mod metrics;
mod state;
mod voice;

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
use crate::wit::words;
use crate::wit::{now, v0_1};

pub(crate) use http::Web;
pub(crate) use metrics::{Meters, PluginMetrics, Shown, overlap};
pub(crate) use voice::Voice;

/// What the instances of a policy share of the host.
pub(crate) struct Reach {
    pub(crate) voice: Voice,
    pub(crate) grants: Vec<Grant>,
    pub(crate) space: Space,
    pub(crate) web: Arc<Web>,
    /// Host calls that one call may make.
    pub(crate) calls_max: u32,
    /// Its metrics: there when its first instance said what they are.
    pub(crate) meters: OnceLock<Meters>,
    // By the request that it is held for, until the policy ends it or the request is forgotten.
    held: Mutex<HashMap<u64, Vec<Held>>>,
}

/// Something of the policy's state that a request holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Held {
    /// Part of a budget.
    Reservation(u64),
    /// One among those that run at once.
    Slot { key: String, slot: u64 },
}

impl Reach {
    pub(crate) fn new(
        voice: Voice,
        grants: Vec<Grant>,
        space: Space,
        web: Arc<Web>,
        calls_max: u32,
    ) -> Self {
        let (meters, held) = (OnceLock::new(), Mutex::default());
        Self { voice, grants, space, web, calls_max, meters, held }
    }

    /// A request is over: it runs no more, so its slots are free; what was reserved for it and not
    /// settled goes back if nothing `ran`, and stays charged if something did: an account that failed
    /// must not be a gift. Waits for nobody.
    pub(crate) fn forget(&self, serial: u64, ran: bool) {
        let held = self.held().remove(&serial);
        for held in held.into_iter().flatten() {
            match held {
                Held::Slot { key, slot } => self.space.vacate(&key, slot),
                Held::Reservation(reservation) if ran => self.space.charge(reservation),
                Held::Reservation(reservation) => self.space.abandon(reservation),
            }
        }
    }

    /// The request of this serial holds something.
    fn hold(&self, serial: u64, held: Held) {
        self.held().entry(serial).or_default().push(held);
    }

    /// The policy has ended it. What was begun for another request stays in that one's list; to end it
    /// twice changes nothing.
    fn release(&self, serial: u64, ended: &Held) {
        let mut held = self.held();
        if let Some(list) = held.get_mut(&serial) {
            list.retain(|held| held != ended);
            if list.is_empty() {
                held.remove(&serial);
            }
        }
    }

    fn held(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Vec<Held>>> {
        // Whoever panicked held it for an insertion or a removal: the map is whole.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the host keeps for an instance: the limits of the call it is in, and for whom it acts.
pub(crate) struct GuestState {
    pub(crate) limiter: Limiter,
    pub(crate) allowance: Allowance,
    pub(crate) reach: Arc<Reach>,
    pub(crate) call: Call,
    calls_left: u32,
    // Time that this call's requests to others may still take.
    asking_left: Duration,
    // What it said last at level error: when a trap follows, that is why.
    pub(crate) last_words: Option<String>,
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
    pub(crate) fn new(reach: Arc<Reach>, limiter: Limiter, allowance: Allowance) -> Self {
        let (calls_left, asking_left) = (reach.calls_max, HTTP_TIME_MAX_OF_ALL);
        let call = Call::default();
        Self { limiter, allowance, reach, call, calls_left, asking_left, last_words: None }
    }

    /// A call begins.
    pub(crate) fn begin(&mut self, call: Call, allowance: Allowance) {
        self.call = call;
        self.allowance = allowance;
        self.calls_left = self.reach.calls_max;
        self.asking_left = HTTP_TIME_MAX_OF_ALL;
        self.last_words = None;
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
        self.calls_left = left.ok_or(TooManyCalls(self.reach.calls_max))?;
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
    words::log::add_to_linker::<_, HasSelf<_>>(&mut linker, me)?;
    v0_1::interlock::policy::log::add_to_linker::<_, HasSelf<_>>(&mut linker, me)?;
    let granted = |kind: fn(&Grant) -> bool| grants.iter().any(kind);
    if granted(|grant| *grant == Grant::State) {
        words::state::add_to_linker::<_, HasSelf<_>>(&mut linker, me)?;
    }
    if granted(|grant| *grant == Grant::Metrics) {
        words::metrics::add_to_linker::<_, HasSelf<_>>(&mut linker, me)?;
    }
    if granted(|grant| matches!(grant, Grant::Read(_) | Grant::Write(_))) {
        words::content::add_to_linker::<_, HasSelf<_>>(&mut linker, me)?;
    }
    if granted(|grant| matches!(grant, Grant::Http(..))) {
        words::http::add_to_linker::<_, HasSelf<_>>(&mut linker, me)?;
    }
    Ok(linker)
}

// Lines do not count as calls: their rate is bounded, and a policy that cannot say why it failed
// cannot be repaired.
impl words::log::Host for GuestState {
    fn write(&mut self, level: words::log::Level, message: String) -> wasmtime::Result<()> {
        self.say(level, &message);
        Ok(())
    }
}

impl v0_1::interlock::policy::log::Host for GuestState {
    fn write(&mut self, level: v0_1::interlock::policy::log::Level, message: String) {
        use v0_1::interlock::policy::log::Level as Old;
        let level = match level {
            Old::Trace => words::log::Level::Trace,
            Old::Debug => words::log::Level::Debug,
            Old::Info => words::log::Level::Info,
            Old::Warn => words::log::Level::Warn,
            Old::Error => words::log::Level::Error,
        };
        self.say(level, &message);
    }
}

impl GuestState {
    fn say(&mut self, level: words::log::Level, message: &str) {
        self.reach.voice.write(level, self.call.request.as_ref(), message);
        if level == words::log::Level::Error {
            self.last_words = Some(self.reach.voice.presentable(message));
        }
    }
}

// The words that the phases share have no functions.
impl now::interlock::policy::types::Host for GuestState {}
impl v0_1::interlock::policy::types::Host for GuestState {}
