//! A policy with its warm instances.

mod factory;
mod phases;
mod warm;

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use interlock_policy_api::{Answer, CallTime, FailureKind, Phase, PolicyFailure, Watch};
use interlock_policy_chain::PolicyMode;
use wasmtime::Store;

use crate::clock::thread_cpu_time;
use crate::compiled::Compiled;
use crate::description::PolicyDescription;
use crate::descriptor::Descriptor;
use crate::from_wit::Codes;
use crate::grants::{Grant, all_missing};
use crate::host_functions::{Call, ExposedMetrics, GuestLog, GuestState, HostFunctions};
use crate::instance::InstantiateError;
use crate::interfaces::Version;
use crate::limits::{IN_LINE_INIT_TIME_MAX, IN_LINE_TIME_MAX, INIT_TIME_MAX, SLOW_CALLS_MAX};
use crate::linked::{GuestFunctions, LinkedComponent};
use crate::metrics::{PolicyMeters, Recycled};
use crate::quarantine::Quarantine;
use crate::runtime::Runtime;
use crate::{LoadFailed, LoadProblem, PolicyConfig};
use factory::InstanceFactory;
use warm::{BusyInstance, WarmInstance, WarmInstances};

/// A loaded policy. Any number of threads may call it at once; each call owns an instance.
pub struct WasmPolicy {
    name: String,
    // What its log, state and metrics go by.
    own: String,
    deadline: Duration,
    factory: InstanceFactory,
    codes: Codes,
    headers: Vec<String>,
    watch: Watch,
    descriptor: Descriptor,
    description: PolicyDescription,
    quarantine: Quarantine,
    meters: Arc<PolicyMeters>,
    reads: bool,
    writes: bool,
    warm: WarmInstances,
}

/// Why there is no instance to call.
struct NoInstance {
    failure: PolicyFailure,
    /// Or that of the others, who left no room.
    its_fault: bool,
}

impl WasmPolicy {
    pub(crate) fn new(
        shared: &Arc<Runtime>,
        config: &PolicyConfig,
        compiled: &Compiled,
    ) -> Result<Self, LoadFailed> {
        let unfit =
            |why| LoadFailed { policy: config.name.clone(), from: config.source.clone(), why };
        let problems = config.problems();
        if !problems.is_empty() {
            return Err(unfit(LoadProblem::Config(problems)));
        }
        let Compiled { interfaces, component, .. } = compiled;
        let ungranted = interfaces.missing(&config.grants);
        let own = own_name(config);
        let functions = HostFunctions::new(
            GuestLog::new(&own, &config.settings),
            config.grants.clone(),
            shared.state.space(&own),
            Arc::clone(&shared.http),
            config.calls_max,
        );
        let mut factory = InstanceFactory {
            shared: Arc::clone(shared),
            linked: LinkedComponent::new(shared, component, interfaces, &config.grants)
                .map_err(unfit)?,
            version: interfaces.version,
            functions: Arc::new(functions),
            memory_max: usize::try_from(config.memory_max.0).unwrap_or(usize::MAX),
            settings: serde_json::Value::Object(config.settings.clone()).to_string(),
            init_time_max: INIT_TIME_MAX,
        };
        let (began, before) = (Instant::now(), thread_cpu_time());
        let (first, descriptor) = factory.make().map_err(|error| {
            unfit(match error {
                // What it was not granted is likely why.
                InstantiateError::Failed(_) if !ungranted.is_empty() => {
                    LoadProblem::grants(ungranted.clone(), &config.grants)
                }
                InstantiateError::Failed(failure) => LoadProblem::Start(failure),
                InstantiateError::Refused(message) => {
                    LoadProblem::Settings(factory.functions.log.presentable(&message))
                }
                InstantiateError::Misfit(why) => {
                    LoadProblem::Interface(interfaces.version.as_str(), why)
                }
            })
        })?;
        let (started, cost) = (began.elapsed(), thread_cpu_time().saturating_sub(before));
        let call_time = call_time(config, compiled, cost, shared.state.waits());
        factory.init_time_max = match call_time {
            CallTime::AtOnce => IN_LINE_INIT_TIME_MAX + config.deadline,
            CallTime::Computes | CallTime::Waits => started + config.deadline,
        };
        let needs = descriptor.check().map_err(unfit)?;
        let ungranted = all_missing(ungranted, &needs, &config.grants);
        if !ungranted.is_empty() {
            return Err(unfit(LoadProblem::grants(ungranted, &config.grants)));
        }
        // Nobody set it before: the first instance has only just begun.
        let _ =
            factory.functions.meters.set(shared.metrics.plugins.prepare(&own, &descriptor.metrics));
        let takes = |phase: Phase| interfaces.phases.contains(&phase);
        let meters = Arc::new(shared.metrics.policy(&own));
        let cores = thread::available_parallelism().map_or(2, usize::from);
        let content = |kind: fn(&Grant) -> bool| {
            interfaces.capabilities.contains(&"content") && config.grants.iter().any(kind)
        };
        let quarantine = Quarantine::new(&own, config.crash_budget, meters.quarantined.clone());
        // As many as can run at once: the rest would only be memory.
        let most = if call_time == CallTime::Waits { SLOW_CALLS_MAX } else { cores };
        let warm = WarmInstances::new(most, factory.memory_max, Arc::clone(&meters));
        let policy = Self {
            name: config.name.clone(),
            own,
            deadline: config.deadline,
            codes: Codes::new(&descriptor.reasons),
            headers: shown(interfaces.version, &needs, &config.grants),
            watch: descriptor.watched(takes),
            description: PolicyDescription::new(
                compiled,
                Some((&descriptor, needs)),
                &config.grants,
                call_time,
            ),
            descriptor,
            quarantine,
            meters,
            reads: content(|grant| matches!(grant, Grant::Read(_) | Grant::Write(_))),
            writes: content(|grant| matches!(grant, Grant::Write(_))),
            factory,
            warm,
        };
        tracing::info!(
            policy = policy.name, from = %config.source, digest = %compiled.digest,
            itself = policy.descriptor.name, version = policy.descriptor.version,
            wit = interfaces.version.as_str(), phases = policy.description.phases_text(),
            compiled = ?compiled.took, ?started, calls = ?call_time, "policy loaded"
        );
        if interfaces.phases.is_empty() {
            tracing::warn!(policy = policy.name, "this policy takes part in no phase");
        }
        policy.warm.give_back(WarmInstance::new(first, &policy.meters));
        Ok(policy)
    }

    /// Describes a component that is not loaded, or cannot be: it begins if it can, and everything
    /// that it was not granted is a trap.
    pub(crate) fn describe_unloaded(
        shared: &Arc<Runtime>,
        config: &PolicyConfig,
        compiled: &Compiled,
    ) -> PolicyDescription {
        let Compiled { interfaces, component, .. } = compiled;
        let said = || {
            let functions = HostFunctions::new(
                GuestLog::new(&config.name, &config.settings),
                Vec::new(),
                shared.state.space(&config.name),
                Arc::clone(&shared.http),
                config.calls_max,
            );
            let factory = InstanceFactory {
                shared: Arc::clone(shared),
                linked: LinkedComponent::new(shared, component, interfaces, &[]).ok()?,
                version: interfaces.version,
                functions: Arc::new(functions),
                memory_max: usize::try_from(config.memory_max.0).unwrap_or(usize::MAX),
                settings: serde_json::Value::Object(config.settings.clone()).to_string(),
                init_time_max: INIT_TIME_MAX,
            };
            let (_, descriptor) = factory.make().ok()?;
            let needs = descriptor.check().ok()?;
            Some((descriptor, needs))
        };
        let said = said();
        let said = said.as_ref().map(|(descriptor, needs)| (descriptor, needs.clone()));
        // What making an instance takes nobody knows, if it cannot begin.
        let call_time = call_time(config, compiled, Duration::ZERO, shared.state.waits());
        PolicyDescription::new(compiled, said, &config.grants, call_time)
    }

    /// What it is: for people, and for `interlock policy inspect`.
    pub fn describe(&self) -> &PolicyDescription {
        &self.description
    }

    /// How often it was quarantined.
    pub fn quarantines(&self) -> u64 {
        self.quarantine.times()
    }

    /// It is in place from now on, for the first time or again. `shown`: the gauge that it shares
    /// with its other generations speaks of it.
    pub(crate) fn serve(&self, shown: bool) {
        self.warm.serve();
        self.quarantine.show(shown);
    }

    /// Another one is in its place. What it keeps warm is given up, but for one instance at a time:
    /// there is room for so many instances, and those that are in place need it.
    pub(crate) fn retire(&self) {
        self.quarantine.show(false);
        self.warm.retire();
    }

    /// Why the metrics of this policy and of another one cannot be shown together.
    pub fn contradicts(&self, other: &Self) -> Option<String> {
        self.shown()?.contradicts(&other.shown()?)
    }

    /// Its metrics, for whoever shows them.
    pub(crate) fn shown(&self) -> Option<ExposedMetrics<'_>> {
        let (policy, metrics) = (self.own.as_str(), self.descriptor.metrics.as_slice());
        self.factory.functions.meters.get().map(|meters| ExposedMetrics { policy, metrics, meters })
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
        self.warm.memory()
    }

    /// Calls an instance and makes sense of what it says. One that makes none has failed as much as
    /// one that trapped.
    fn ask<T, U>(
        &self,
        call: Call,
        ask: impl FnOnce(&GuestFunctions, &mut Store<GuestState>) -> wasmtime::Result<T>,
        understand: impl FnOnce(T) -> Answer<U>,
    ) -> Answer<U> {
        let pass = self.quarantine.pass()?;
        let mut kept = match self.take() {
            Ok(kept) => kept,
            Err(NoInstance { failure, its_fault }) => {
                if its_fault {
                    pass.failed();
                }
                return Err(failure);
            }
        };
        let _busy = BusyInstance::with(&self.meters);
        let answer = {
            let _ticking = self.factory.shared.ticker.call();
            kept.instance.call(call, self.deadline, ask)
        };
        let answer = answer.and_then(understand);
        if answer.is_ok() {
            pass.answered();
            self.warm.give_back(kept);
        } else {
            pass.failed();
            // What failed is dropped, and that is all there is to never using it again.
            self.warm.drop_one(kept, Recycled::Failure);
        }
        answer
    }

    /// Takes a warm instance, or makes one.
    fn take(&self) -> Result<Box<WarmInstance>, NoInstance> {
        if let Some(kept) = self.warm.take() {
            return Ok(kept);
        }
        let absent = |message, its_fault| {
            let failure = PolicyFailure { kind: FailureKind::Instantiate, message };
            Err(NoInstance { failure, its_fault })
        };
        match self.factory.make() {
            Ok((instance, descriptor)) if self.descriptor.agrees(&descriptor) => {
                Ok(WarmInstance::new(instance, &self.meters))
            }
            Ok(_) => {
                absent("an instance says other things of itself than the first one".into(), true)
            }
            // There was no room: others took it.
            Err(InstantiateError::Failed(failure)) if failure.kind == FailureKind::Instantiate => {
                absent(failure.to_string(), false)
            }
            Err(InstantiateError::Failed(failure)) => absent(failure.to_string(), true),
            Err(InstantiateError::Misfit(why)) => absent(why, true),
            Err(InstantiateError::Refused(message)) => absent(
                format!(
                    "an instance refused settings that the first one accepted: {}",
                    self.factory.functions.log.presentable(&message)
                ),
                true,
            ),
        }
    }
}

impl std::fmt::Debug for WasmPolicy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WasmPolicy").field("name", &self.name).finish_non_exhaustive()
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
    if compiled.interfaces.waits(state_waits) {
        CallTime::Waits
    } else if config.deadline > IN_LINE_TIME_MAX || cost > IN_LINE_INIT_TIME_MAX {
        CallTime::Computes
    } else {
        CallTime::AtOnce
    }
}

/// What a policy's log, state and metrics go by. In shadow mode it is asked besides the one that
/// decides: what the two take from the same bucket would be taken twice, so it has its own.
fn own_name(config: &PolicyConfig) -> String {
    let shadow = if config.mode == PolicyMode::Shadow { ".shadow" } else { "" };
    format!("{}{shadow}", config.name)
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
