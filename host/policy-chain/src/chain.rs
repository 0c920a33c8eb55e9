//! The policies of one generation, in the operator's order.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use interlock_request::RequestId;

use crate::last_good::LastGood;
use crate::metrics::Meters;
use crate::policy_threads::{BESIDE_MAX, PolicyThreads, ThreadsByPolicy};
use crate::slow::SlowPool;
use crate::tenants::Tenants;
use crate::{Hearing, OnFailure, PolicyMetrics, PolicyMode, RecordSink};
use interlock_policy_api::CallTime;
use interlock_policy_api::{Ceilings, Phase, Policy};

/// A policy in its place in the chain.
#[derive(Clone)]
pub struct Link {
    /// Who decides.
    pub policy: Arc<dyn Policy>,
    /// What its silence means.
    pub on_failure: OnFailure,
    /// Whether it decides.
    pub mode: PolicyMode,
    /// While it is in shadow, or in canary for others: who decides in its place.
    pub previous: Option<Arc<dyn Policy>>,
    /// What its scores count for.
    pub weight: f32,
    /// A call that takes longer is counted; nothing else happens.
    pub soft_deadline: Option<Duration>,
}

impl Link {
    /// One that decides, with everything else at its default.
    pub fn new(policy: Arc<dyn Policy>, on_failure: OnFailure) -> Self {
        let mode = PolicyMode::Enforce;
        Self { policy, on_failure, mode, previous: None, weight: 1.0, soft_deadline: None }
    }

    fn policies(&self) -> impl Iterator<Item = &Arc<dyn Policy>> {
        std::iter::once(&self.policy).chain(&self.previous)
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("policy", &self.policy.name())
            .field("version", &self.policy.version())
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
}

/// Streams that are looked at at once. A look takes microseconds and must not take the cores from
/// what the client waits for.
const BESIDE_THREADS: usize = 2;

/// What all generations of the chain share. Cheap to clone.
#[derive(Clone)]
pub struct Commons {
    pub(crate) metrics: PolicyMetrics,
    pub(crate) tenants: Tenants,
    pub(crate) last_good: LastGood,
    /// For policies that observe a stream and take no time for it.
    pub(crate) beside: SlowPool,
    /// For those whose calls may take long.
    threads: ThreadsByPolicy,
    pub(crate) records: Option<Arc<dyn RecordSink>>,
}

impl Commons {
    /// For one host.
    pub fn new(metrics: PolicyMetrics) -> Self {
        let beside = metrics.beside_running.clone();
        Self {
            beside: SlowPool::new("observing-policy", BESIDE_THREADS, BESIDE_MAX, beside),
            threads: ThreadsByPolicy::new(),
            ..Self::in_line(metrics)
        }
    }

    /// The same with records of what policies decide.
    #[must_use]
    pub fn recording(self, sink: Arc<dyn RecordSink>) -> Self {
        Self { records: Some(sink), ..self }
    }

    /// The same without threads of its own: every policy is called in line, on the thread of
    /// whoever asks. For simulations, which must come out the same each time.
    pub fn in_line(metrics: PolicyMetrics) -> Self {
        Self {
            metrics,
            tenants: Tenants::default(),
            last_good: LastGood::default(),
            beside: SlowPool::in_line(),
            threads: ThreadsByPolicy::in_line(),
            records: None,
        }
    }

    /// Waits, at most this long, until policies have heard of the end of every request that has
    /// ended; how many calls are not over. For a host that stops. Blocks.
    pub fn drain(&self, most: Duration) -> usize {
        self.threads.drain(&self.beside, Instant::now() + most)
    }
}

impl From<PolicyMetrics> for Commons {
    fn from(metrics: PolicyMetrics) -> Self {
        Self::new(metrics)
    }
}

/// One that is asked about a request: a link's policy, or its previous generation.
#[derive(Clone)]
pub(crate) struct Member {
    pub(crate) policy: Arc<dyn Policy>,
    pub(crate) name: Arc<str>,
    pub(crate) version: Arc<str>,
    pub(crate) on_failure: OnFailure,
    pub(crate) weight: f32,
    pub(crate) shadow: bool,
    call_time: CallTime,
    /// There if a call may take long: always, or with a large body.
    pub(crate) threads: Option<Arc<PolicyThreads>>,
    pub(crate) meters: Arc<Meters>,
}

impl Member {
    /// May every call take long?
    pub(crate) fn slow(&self) -> bool {
        self.call_time != CallTime::AtOnce
    }

    /// Nothing waits for what it says: it is in shadow, and it would take long.
    pub(crate) fn looks_on(&self) -> bool {
        self.shadow && self.slow()
    }
}

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.version)
    }
}

/// The members that one request has, in order. Stays the same for its whole life.
pub(crate) type Panel = Arc<[Member]>;

/// A link whose members are made.
struct Place {
    mode: PolicyMode,
    now: Member,
    previous: Option<Member>,
}

/// The policies, in the operator's order.
pub struct PolicyChain {
    generation: u64,
    links: Vec<Link>,
    places: Vec<Place>,
    /// Everyone's, when no canary makes a difference.
    panel: Option<Panel>,
    headers_seen: BTreeSet<String>,
    takes: [bool; Phase::ALL.len()],
    pub(crate) ceilings: Ceilings,
    pub(crate) commons: Commons,
}

impl fmt::Debug for PolicyChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.links).finish()
    }
}

impl PolicyChain {
    /// A chain of these links. An empty one admits everything under the ceilings.
    pub fn new(links: Vec<Link>, ceilings: Ceilings, commons: impl Into<Commons>) -> Self {
        Self::of_generation(1, links, ceilings, commons.into())
    }

    pub(crate) fn of_generation(
        generation: u64,
        links: Vec<Link>,
        ceilings: Ceilings,
        commons: Commons,
    ) -> Self {
        let member = |link: &Link, policy: &Arc<dyn Policy>, shadow| Member {
            policy: Arc::clone(policy),
            name: policy.name().into(),
            version: policy.version().into(),
            on_failure: link.on_failure,
            weight: link.weight,
            shadow,
            call_time: policy.call_time(),
            threads: (policy.call_time() != CallTime::AtOnce || policy.wants_content())
                .then(|| commons.threads.of(policy, &commons.metrics)),
            meters: Arc::new(commons.metrics.of(policy.as_ref(), link.soft_deadline)),
        };
        let places: Vec<Place> = links
            .iter()
            .map(|link| Place {
                mode: link.mode,
                now: member(link, &link.policy, link.mode == PolicyMode::Shadow),
                previous: link.previous.as_ref().map(|policy| member(link, policy, false)),
            })
            .collect();
        let policies = || links.iter().flat_map(Link::policies);
        let takes = Phase::ALL.map(|phase| policies().any(|policy| policy.takes(phase)));
        let headers_seen = policies().flat_map(|policy| policy.headers()).cloned().collect();
        let mut chain =
            Self { generation, links, places, panel: None, headers_seen, takes, ceilings, commons };
        if !chain.links.iter().any(|link| matches!(link.mode, PolicyMode::Canary(_))) {
            chain.panel = Some(chain.panel(0));
        }
        chain
    }

    /// Counts the chains that a host has had; the first is 1.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The policies and their places, as they were given.
    pub fn links(&self) -> &[Link] {
        &self.links
    }

    /// The policies' names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.links.iter().map(|link| link.policy.name())
    }

    /// Does any policy take part in this phase?
    pub fn takes(&self, phase: Phase) -> bool {
        self.takes[phase as usize]
    }

    /// Could a policy want to read a body? If not, an empty one will do.
    pub fn wants_content(&self) -> bool {
        self.links.iter().flat_map(Link::policies).any(|policy| policy.wants_content())
    }

    /// The most that any of them may grant.
    pub fn ceilings(&self) -> &Ceilings {
        &self.ceilings
    }

    /// Names, in lower case, of the headers that some policy is shown.
    pub fn headers_seen(&self) -> &BTreeSet<String> {
        &self.headers_seen
    }

    /// Brings a request before the policies. `serial` tells it apart from all others of this
    /// process, as [`interlock_policy_api::Facts::serial`].
    pub fn hear(self: &Arc<Self>, serial: u64, id: RequestId) -> Hearing {
        Hearing::new(Arc::clone(self), serial, id)
    }

    /// Who decides about the request of this serial, and who only looks on.
    pub(crate) fn panel(&self, serial: u64) -> Panel {
        if let Some(panel) = &self.panel {
            return Arc::clone(panel);
        }
        let asked = |place: &Place| -> [Option<Member>; 2] {
            match place.mode {
                PolicyMode::Enforce => [Some(place.now.clone()), None],
                // It looks on behind the one that decides: what that made of the request is there.
                PolicyMode::Shadow => [place.previous.clone(), Some(place.now.clone())],
                PolicyMode::Canary(percent) if chosen(serial, percent) => {
                    [Some(place.now.clone()), None]
                }
                PolicyMode::Canary(_) => [place.previous.clone(), None],
            }
        };
        self.places.iter().flat_map(asked).flatten().collect()
    }
}

/// Is it one of the so many of a hundred? Serials count up, so they are mixed first (the
/// finalizer of SplitMix64): a client that sends every tenth request must not get it always.
fn chosen(serial: u64, percent: u8) -> bool {
    let mut mixed = serial.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (mixed ^ (mixed >> 31)) % 100 < u64::from(percent)
}

#[cfg(test)]
mod tests;
