//! A policy with its warm instances.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use interlock_policy_api::{
    Answer, Body, CallTime, Caller, Candidate, Choice, Decision, Event, Facts, FailureKind,
    Identified, Load, Phase, Policy, PolicyFailure, Progress, Reaction, RequestContext, Summary,
    Transformed, Verdict, Watch, Window,
};
use interlock_policy_chain::PolicyMode;
use wasmtime::Store;

use crate::answers::Codes;
use crate::clock::thread_cpu_time;
use crate::describe::Description;
use crate::fit::{Fit, Version};
use crate::grants::{Grant, missing};
use crate::host::{Compiled, Shared};
use crate::instance::{Guests, Instance, OldPhases, Phases, Stillborn};
use crate::lend::{self, LentFacts};
use crate::limits::{
    CALLS_MAX, IN_LINE_INIT_TIME_MAX, IN_LINE_TIME_MAX, INIT_TIME_MAX, SLOW_CALLS_MAX,
};
use crate::metrics::{PolicyMeters, Recycled};
use crate::old;
use crate::profile::{Profile, within};
use crate::quarantine::Quarantine;
use crate::reach::{Call, GuestState, Reach, Shown, Voice};
use crate::{LoadFailed, PolicyConfig, Unfit};

/// A loaded policy. Any number of threads may call it at once; each call owns an instance.
pub struct WasmPolicy {
    name: String,
    // What its log, state and metrics go by.
    own: String,
    deadline: Duration,
    recipe: Recipe,
    codes: Codes,
    headers: Vec<String>,
    watch: Watch,
    profile: Profile,
    description: Description,
    quarantine: Quarantine,
    meters: Arc<PolicyMeters>,
    reads: bool,
    writes: bool,
    // A stack, so that a quiet host keeps using the one instance whose memory is in the cache.
    // Held for a push or a pop, never during a call.
    #[allow(clippy::vec_box, reason = "an instance goes through several hands in each call")]
    warm: Mutex<Vec<Box<Kept>>>,
    warm_max: usize,
    // Requests that began with it may still call it, and it may come back.
    retired: AtomicBool,
}

/// An instance, as the metrics know it.
struct Kept {
    instance: Instance,
    memory: usize,
    meters: Arc<PolicyMeters>,
}

impl Kept {
    fn new(instance: Instance, meters: &Arc<PolicyMeters>) -> Box<Self> {
        let memory = instance.memory();
        meters.live.inc();
        meters.memory.add(signed(memory));
        Box::new(Self { instance, memory, meters: Arc::clone(meters) })
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.meters.live.dec();
        self.meters.memory.sub(signed(self.memory));
    }
}

/// An instance that is in a call, also if the call panics.
struct Busy<'a>(&'a PolicyMeters);

impl<'a> Busy<'a> {
    fn with(meters: &'a PolicyMeters) -> Self {
        meters.busy.inc();
        Self(meters)
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.busy.dec();
    }
}

/// Why there is no instance to call.
struct Absent {
    failure: PolicyFailure,
    /// Or that of the others, who left no room.
    its_fault: bool,
}

/// All that another instance is made from.
struct Recipe {
    shared: Arc<Shared>,
    fit: Fit,
    version: Version,
    reach: Arc<Reach>,
    memory_max: usize,
    settings: String,
    // One second at first; then what the first one took, or what one may take where everyone is
    // served, and the deadline on top.
    init_time_max: Duration,
}

impl WasmPolicy {
    pub(crate) fn new(
        shared: &Arc<Shared>,
        config: &PolicyConfig,
        compiled: &Compiled,
    ) -> Result<Self, LoadFailed> {
        let unfit =
            |why| LoadFailed { policy: config.name.clone(), from: config.source.clone(), why };
        let problems = config.problems();
        if !problems.is_empty() {
            return Err(unfit(Unfit::Config(problems)));
        }
        let Compiled { shape, component, .. } = compiled;
        let ungranted = shape.missing(&config.grants);
        let own = own_name(config);
        let reach = Reach::new(
            Voice::new(&own, &config.settings),
            config.grants.clone(),
            shared.state.space(&own),
            Arc::clone(&shared.web),
            config.calls_max,
        );
        let mut recipe = Recipe {
            shared: Arc::clone(shared),
            fit: Fit::new(shared, component, shape, &config.grants).map_err(unfit)?,
            version: shape.version,
            reach: Arc::new(reach),
            memory_max: usize::try_from(config.memory_max.0).unwrap_or(usize::MAX),
            settings: serde_json::Value::Object(config.settings.clone()).to_string(),
            init_time_max: INIT_TIME_MAX,
        };
        let (began, before) = (Instant::now(), thread_cpu_time());
        let (first, profile) = recipe.make().map_err(|stillborn| {
            unfit(match stillborn {
                // What it was not granted is likely why.
                Stillborn::Failed(_) if !ungranted.is_empty() => {
                    Unfit::grants(ungranted.clone(), &config.grants)
                }
                Stillborn::Failed(failure) => Unfit::Start(failure),
                Stillborn::Refused(message) => {
                    Unfit::Settings(recipe.reach.voice.presentable(&message))
                }
                Stillborn::Misfit(why) => Unfit::Interface(shape.version.as_str(), why),
            })
        })?;
        let (started, cost) = (began.elapsed(), thread_cpu_time().saturating_sub(before));
        let call_time = call_time(config, compiled, cost, shared.state.waits());
        recipe.init_time_max = match call_time {
            CallTime::AtOnce => IN_LINE_INIT_TIME_MAX + config.deadline,
            CallTime::Computes | CallTime::Waits => started + config.deadline,
        };
        let needs = profile.check().map_err(unfit)?;
        let ungranted = all_missing(ungranted, &needs, &config.grants);
        if !ungranted.is_empty() {
            return Err(unfit(Unfit::grants(ungranted, &config.grants)));
        }
        // Nobody set it before: the first instance has only just begun.
        let _ = recipe.reach.meters.set(shared.metrics.plugins.prepare(&own, &profile.metrics));
        let takes = |phase: Phase| shape.phases.contains(&phase);
        let meters = Arc::new(shared.metrics.policy(&own));
        let cores = thread::available_parallelism().map_or(2, usize::from);
        let content = |kind: fn(&Grant) -> bool| {
            shape.capabilities.contains(&"content") && config.grants.iter().any(kind)
        };
        let quarantine = Quarantine::new(&own, config.crash_budget, meters.quarantined.clone());
        let policy = Self {
            name: config.name.clone(),
            own,
            deadline: config.deadline,
            codes: Codes::new(&profile.reasons),
            headers: shown(shape.version, &needs, &config.grants),
            watch: profile.watched(takes),
            description: Description::new(
                compiled,
                Some((&profile, needs)),
                &config.grants,
                call_time,
            ),
            profile,
            quarantine,
            meters,
            reads: content(|grant| matches!(grant, Grant::Read(_) | Grant::Write(_))),
            writes: content(|grant| matches!(grant, Grant::Write(_))),
            recipe,
            warm: Mutex::default(),
            // As many as can run at once: the rest would only be memory.
            warm_max: if call_time == CallTime::Waits { SLOW_CALLS_MAX } else { cores },
            retired: AtomicBool::new(false),
        };
        tracing::info!(
            policy = policy.name, from = %config.source, digest = %compiled.digest,
            itself = policy.profile.name, version = policy.profile.version,
            wit = shape.version.as_str(), phases = policy.description.phases_text(),
            compiled = ?compiled.took, ?started, calls = ?call_time, "policy loaded"
        );
        if shape.phases.is_empty() {
            tracing::warn!(policy = policy.name, "this policy takes part in no phase");
        }
        policy.give_back(Kept::new(first, &policy.meters));
        Ok(policy)
    }

    /// Describes a component that is not loaded, or cannot be: it begins if it can, and everything
    /// that it was not granted is a trap.
    pub(crate) fn describe_unloaded(
        shared: &Arc<Shared>,
        config: &PolicyConfig,
        compiled: &Compiled,
    ) -> Description {
        let Compiled { shape, component, .. } = compiled;
        let said = || {
            let reach = Reach::new(
                Voice::new(&config.name, &config.settings),
                Vec::new(),
                shared.state.space(&config.name),
                Arc::clone(&shared.web),
                config.calls_max,
            );
            let recipe = Recipe {
                shared: Arc::clone(shared),
                fit: Fit::new(shared, component, shape, &[]).ok()?,
                version: shape.version,
                reach: Arc::new(reach),
                memory_max: usize::try_from(config.memory_max.0).unwrap_or(usize::MAX),
                settings: serde_json::Value::Object(config.settings.clone()).to_string(),
                init_time_max: INIT_TIME_MAX,
            };
            let (_, profile) = recipe.make().ok()?;
            let needs = profile.check().ok()?;
            Some((profile, needs))
        };
        let said = said();
        let said = said.as_ref().map(|(profile, needs)| (profile, needs.clone()));
        // What making an instance takes nobody knows, if it cannot begin.
        let call_time = call_time(config, compiled, Duration::ZERO, shared.state.waits());
        Description::new(compiled, said, &config.grants, call_time)
    }

    /// What it is: for people, and for `interlock policy inspect`.
    pub fn describe(&self) -> &Description {
        &self.description
    }

    /// How often it was quarantined.
    pub fn quarantines(&self) -> u64 {
        self.quarantine.times()
    }

    /// It is in place from now on, for the first time or again. `shown`: the gauge that it shares
    /// with its other generations speaks of it.
    pub(crate) fn serve(&self, shown: bool) {
        self.retired.store(false, Ordering::Relaxed);
        self.quarantine.show(shown);
    }

    /// Another one is in its place. What it keeps warm is given up, but for one instance at a time:
    /// there is room for so many instances, and those that are in place need it.
    pub(crate) fn retire(&self) {
        self.quarantine.show(false);
        let mut warm = self.warm();
        self.retired.store(true, Ordering::Relaxed);
        let given_up = std::mem::take(&mut *warm);
        drop(warm);
        drop(given_up);
    }

    /// Why the metrics of this policy and of another one cannot be shown together.
    pub fn contradicts(&self, other: &Self) -> Option<String> {
        self.shown()?.contradicts(&other.shown()?)
    }

    /// Its metrics, for whoever shows them.
    pub(crate) fn shown(&self) -> Option<Shown<'_>> {
        let (policy, metrics) = (self.own.as_str(), self.profile.metrics.as_slice());
        self.recipe.reach.meters.get().map(|meters| Shown { policy, metrics, meters })
    }

    /// What its log, state and metrics go by: of two generations with one name, one is shown.
    pub(crate) fn own(&self) -> &str {
        &self.own
    }

    /// A call of it fails.
    #[cfg(test)]
    pub(crate) fn fail(&self) {
        if let Ok(pass) = self.quarantine.pass() {
            pass.failed();
        }
    }

    /// Memory of each warm instance, in bytes.
    pub fn instance_memory(&self) -> Vec<usize> {
        self.warm().iter().map(|kept| kept.memory).collect()
    }

    /// Calls an instance and makes sense of what it says. One that makes none has failed as much as
    /// one that trapped.
    fn ask<T, U>(
        &self,
        call: Call,
        ask: impl FnOnce(&Guests, &mut Store<GuestState>) -> wasmtime::Result<T>,
        understand: impl FnOnce(T) -> Answer<U>,
    ) -> Answer<U> {
        let pass = self.quarantine.pass()?;
        let mut kept = match self.take() {
            Ok(kept) => kept,
            Err(Absent { failure, its_fault }) => {
                if its_fault {
                    pass.failed();
                }
                return Err(failure);
            }
        };
        let _busy = Busy::with(&self.meters);
        let answer = {
            let _ticking = self.recipe.shared.ticker.call();
            kept.instance.call(call, self.deadline, ask)
        };
        let answer = answer.and_then(understand);
        if answer.is_ok() {
            pass.answered();
            self.give_back(kept);
        } else {
            pass.failed();
            // What failed is dropped, and that is all there is to never using it again.
            self.drop_one(kept, Recycled::Failure);
        }
        answer
    }

    /// Takes a warm instance, or makes one.
    fn take(&self) -> Result<Box<Kept>, Absent> {
        let warm = self.warm().pop();
        if let Some(kept) = warm {
            return Ok(kept);
        }
        let absent = |message, its_fault| {
            let failure = PolicyFailure { kind: FailureKind::Instantiate, message };
            Err(Absent { failure, its_fault })
        };
        match self.recipe.make() {
            Ok((instance, profile)) if self.profile.agrees(&profile) => {
                Ok(Kept::new(instance, &self.meters))
            }
            Ok(_) => {
                absent("an instance says other things of itself than the first one".into(), true)
            }
            // There was no room: others took it.
            Err(Stillborn::Failed(failure)) if failure.kind == FailureKind::Instantiate => {
                absent(failure.to_string(), false)
            }
            Err(Stillborn::Failed(failure)) => absent(failure.to_string(), true),
            Err(Stillborn::Misfit(why)) => absent(why, true),
            Err(Stillborn::Refused(message)) => absent(
                format!(
                    "an instance refused settings that the first one accepted: {}",
                    self.recipe.reach.voice.presentable(&message)
                ),
                true,
            ),
        }
    }

    /// Keeps an instance for the next call, unless it has had its share of them or has grown.
    fn give_back(&self, mut kept: Box<Kept>) {
        let instance = &mut kept.instance;
        instance.calls_left = instance.calls_left.saturating_sub(1);
        if instance.calls_left == 0 {
            return self.drop_one(kept, Recycled::Age);
        }
        let memory = instance.memory();
        if memory != kept.memory {
            // WebAssembly memory never shrinks; what a policy once needed it would keep.
            let spare = self.recipe.memory_max.saturating_sub(instance.born_with);
            if memory > instance.born_with + spare / 4 * 3 {
                return self.drop_one(kept, Recycled::Memory);
            }
            self.meters.memory.add(signed(memory) - signed(kept.memory));
            kept.memory = memory;
        }
        let mut warm = self.warm();
        let most = if self.retired.load(Ordering::Relaxed) { 1 } else { self.warm_max };
        if warm.len() < most {
            warm.push(kept);
        } else {
            drop(warm);
            self.drop_one(kept, Recycled::Surplus);
        }
    }

    fn drop_one(&self, kept: Box<Kept>, why: Recycled) {
        self.meters.recycled(why);
        drop(kept);
    }

    #[allow(clippy::vec_box, reason = "as above")]
    fn warm(&self) -> MutexGuard<'_, Vec<Box<Kept>>> {
        // Whoever panicked held it for a push or a pop: the stack is whole.
        self.warm.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn call(&self, facts: &Facts, body: Option<&Body>, writable: bool) -> Call {
        Call {
            request: Some(facts.request_id.clone()),
            serial: facts.serial,
            body: body.filter(|_| self.reads).cloned(),
            writable: writable && self.writes,
            looks_up: false,
        }
    }

    /// A watch without what this policy would not be called for.
    fn heeded(&self, watch: Watch) -> Watch {
        within(watch, |phase| self.takes(phase))
    }
}

impl std::fmt::Debug for WasmPolicy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WasmPolicy").field("name", &self.name).finish_non_exhaustive()
    }
}

const NOT_ASKED: &str = "only asked when it takes this phase";

/// The phases of today; those that 0.1 did not have are not asked of it.
fn phases(guests: &Guests) -> &Phases {
    match guests {
        Guests::Now(phases) => phases,
        Guests::V0_1(_) => panic!("{NOT_ASKED}"),
    }
}

impl Policy for WasmPolicy {
    fn name(&self) -> &str {
        &self.name
    }

    fn version(&self) -> &str {
        &self.profile.version
    }

    fn takes(&self, phase: Phase) -> bool {
        self.description.phases.contains(&phase)
    }

    fn call_time(&self) -> CallTime {
        self.description.call_time
    }

    fn wants_content(&self) -> bool {
        self.reads
    }

    fn headers(&self) -> &[String] {
        &self.headers
    }

    fn watch(&self) -> Watch {
        self.watch
    }

    fn reasons(&self) -> &[String] {
        &self.profile.reasons
    }

    fn identify(&self, caller: &Caller) -> Answer<Identified> {
        let headers = lend::headers(&caller.headers, &self.headers);
        let call = Call {
            request: Some(caller.request_id.clone()),
            serial: caller.serial,
            looks_up: caller.looks_up,
            ..Call::default()
        };
        let ask = |guests: &Guests, store: &mut Store<GuestState>| {
            let guest = phases(guests).identify.as_ref().expect(NOT_ASKED);
            guest.call_identify(store, lend::caller(caller, &headers))
        };
        self.ask(call, ask, |answer| self.codes.identified(answer))
    }

    fn transform(&self, facts: &Facts, body: &Body) -> Answer<Transformed> {
        let lent = LentFacts::new(facts, &self.headers, "");
        let call = self.call(facts, Some(body), true);
        let ask = |guests: &Guests, store: &mut Store<GuestState>| {
            let guest = phases(guests).transform.as_ref().expect(NOT_ASKED);
            guest.call_transform(store, lent.as_wit())
        };
        self.ask(call, ask, |answer| self.codes.transformed(answer))
    }

    fn route(&self, facts: &Facts, candidates: &[Candidate], body: &Body) -> Answer<Choice> {
        let lent = LentFacts::new(facts, &self.headers, "");
        let shown: Vec<_> = candidates.iter().map(lend::candidate).collect();
        let call = self.call(facts, Some(body), false);
        let ask = |guests: &Guests, store: &mut Store<GuestState>| {
            let guest = phases(guests).route.as_ref().expect(NOT_ASKED);
            guest.call_route(store, lent.as_wit(), &shown)
        };
        self.ask(call, ask, |answer| self.codes.choice(answer, candidates))
    }

    fn admit(
        &self,
        facts: &Facts,
        load: &Load,
        tenant_in_flight: u32,
        body: &Body,
    ) -> Answer<Decision> {
        if self.recipe.version == Version::V0_1 {
            let lent = old::LentFacts::new(facts, &self.headers);
            let ask = |guests: &Guests, store: &mut Store<GuestState>| {
                let guest = old_phases(guests).admit.as_ref().expect(NOT_ASKED);
                guest.call_admit(store, lent.as_wit(), old::load(load))
            };
            return self.ask(self.call(facts, None, false), ask, old::decision);
        }
        let lent = LentFacts::new(facts, &self.headers, "");
        let ask = |guests: &Guests, store: &mut Store<GuestState>| {
            let guest = phases(guests).admit.as_ref().expect(NOT_ASKED);
            guest.call_admit(store, lent.as_wit(), lend::load(load, tenant_in_flight))
        };
        self.ask(self.call(facts, Some(body), false), ask, |answer| {
            let mut decision = self.codes.decision(answer)?;
            if let Decision::Admit(admission) = &mut decision {
                admission.watch = admission.watch.map(|watch| self.heeded(watch));
            }
            Ok(decision)
        })
    }

    fn window(&self, request: RequestContext<'_>, window: &Window<'_>) -> Answer<Verdict> {
        let lent = LentFacts::new(request.facts, &self.headers, request.note);
        let call = self.call(request.facts, None, false);
        let ask = |guests: &Guests, store: &mut Store<GuestState>| {
            let guest = phases(guests).stream_guard.as_ref().expect(NOT_ASKED);
            guest.call_on_window(store, lent.as_wit(), lend::window(window))
        };
        self.ask(call, ask, |answer| self.codes.verdict(answer))
    }

    fn event(
        &self,
        request: RequestContext<'_>,
        event: &Event,
        progress: &Progress,
    ) -> Answer<Reaction> {
        let lent = LentFacts::new(request.facts, &self.headers, request.note);
        let call = self.call(request.facts, None, false);
        let ask = |guests: &Guests, store: &mut Store<GuestState>| {
            let guest = phases(guests).events.as_ref().expect(NOT_ASKED);
            guest.call_on_event(store, lent.as_wit(), lend::event(event), lend::progress(progress))
        };
        self.ask(call, ask, |answer| self.codes.reaction(answer))
    }

    fn account(&self, request: RequestContext<'_>, summary: &Summary) -> Answer<()> {
        let call = self.call(request.facts, None, false);
        if self.recipe.version == Version::V0_1 {
            let Some(summary) = old::summary(summary) else { return Ok(()) };
            let lent = old::LentFacts::new(request.facts, &self.headers);
            let ask = |guests: &Guests, store: &mut Store<GuestState>| {
                let guest = old_phases(guests).account.as_ref().expect(NOT_ASKED);
                guest.call_account(store, lent.as_wit(), summary)
            };
            return self.ask(call, ask, Ok);
        }
        let lent = LentFacts::new(request.facts, &self.headers, request.note);
        let ask = |guests: &Guests, store: &mut Store<GuestState>| {
            let guest = phases(guests).account.as_ref().expect(NOT_ASKED);
            guest.call_account(store, lent.as_wit(), lend::summary(summary, now_micros()))
        };
        self.ask(call, ask, Ok)
    }

    fn forget(&self, serial: u64, ran: bool) {
        self.recipe.reach.forget(serial, ran);
    }
}

fn old_phases(guests: &Guests) -> &OldPhases {
    match guests {
        Guests::V0_1(phases) => phases,
        Guests::Now(_) => panic!("{NOT_ASKED}"),
    }
}

impl Recipe {
    fn make(&self) -> Result<(Instance, Profile), Stillborn> {
        let (mut instance, profile) = Instance::new(
            &self.shared,
            &self.fit,
            &self.reach,
            self.memory_max,
            &self.settings,
            self.init_time_max,
        )?;
        instance.calls_left = calls_max();
        Ok((instance, profile))
    }
}

/// How long its calls may take, if making an instance of it costs so much. By what bounds them, not
/// by what they took: a policy that could hold up everyone is not called where that would.
fn call_time(
    config: &PolicyConfig,
    compiled: &Compiled,
    cost: Duration,
    state_waits: bool,
) -> CallTime {
    if compiled.shape.waits(state_waits) {
        CallTime::Waits
    } else if config.deadline > IN_LINE_TIME_MAX || cost > IN_LINE_INIT_TIME_MAX {
        CallTime::Computes
    } else {
        CallTime::AtOnce
    }
}

/// What a policy's log, state and metrics go by. In shadow it is asked beside the one that decides:
/// what the two take from the same bucket would be taken twice, so it has its own.
fn own_name(config: &PolicyConfig) -> String {
    let shadow = if config.mode == PolicyMode::Shadow { ".shadow" } else { "" };
    format!("{}{shadow}", config.name)
}

/// What is missing of what it imports and of what it says that it needs.
pub(crate) fn all_missing(imported: Vec<Grant>, needs: &[Grant], grants: &[Grant]) -> Vec<Grant> {
    let mut all = missing(needs, grants);
    // Where it says which part of a capability it needs, that is the better answer.
    all.extend(imported.into_iter().filter(|grant| {
        !needs.iter().any(|need| {
            matches!(
                (grant, need),
                (Grant::Read(_), Grant::Read(_) | Grant::Write(_))
                    | (Grant::Http(..), Grant::Http(..))
            )
        })
    }));
    all.sort();
    all.dedup();
    all
}

/// The headers that it sees: what it needs and was granted. 0.1 could not say what it needs, so
/// it sees all that it was granted.
fn shown(version: Version, needs: &[Grant], grants: &[Grant]) -> Vec<String> {
    let seen = grants.iter().filter(|grant| version == Version::V0_1 || needs.contains(grant));
    let mut names: Vec<String> = seen
        .filter_map(|grant| match grant {
            Grant::Header(name) => Some(name.clone()),
            _ => None,
        })
        .collect();
    names.sort();
    names.dedup();
    names
}

/// [`CALLS_MAX`] give or take a quarter, so that instances made together do not end together.
fn calls_max() -> u32 {
    // A fresh hasher's keys are the standard library's only randomness, and enough for this.
    let random = RandomState::new().hash_one(0_u8);
    let spread = CALLS_MAX / 2;
    CALLS_MAX - spread / 2 + u32::try_from(random % u64::from(spread)).unwrap_or(0)
}

fn signed(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

fn now_micros() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    lend::micros(since)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_live_a_quarter_more_or_less() {
        let lives: Vec<_> = (0..200).map(|_| calls_max()).collect();
        let (least, most) = (CALLS_MAX - CALLS_MAX / 4, CALLS_MAX + CALLS_MAX / 4);
        assert!(lives.iter().all(|life| (least..=most).contains(life)), "{lives:?}");
        assert!(lives.iter().any(|life| life != &lives[0]), "all live equally long");
    }
}
