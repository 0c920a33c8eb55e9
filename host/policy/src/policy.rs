//! A policy with its warm instances.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use interlock_admission::{
    Decision, Facts, FailureKind, Load, Phase, Policy, PolicyFailure, Summary,
};

use crate::host::Shared;
use crate::instance::{Instance, Stillborn};
use crate::limits::{CALLS_MAX, INIT_TIME_MAX};
use crate::load::Fit;
use crate::voice::Voice;
use crate::wit::exports::interlock::policy::lifecycle::Descriptor;
use crate::{LoadFailed, PolicyConfig, Unfit};

/// A loaded policy. Any number of threads may call it at once; each call owns an instance.
pub(crate) struct WasmPolicy {
    name: String,
    version: String,
    deadline: Duration,
    recipe: Recipe,
    // A stack, so that a quiet host keeps using the one instance whose memory is in the cache.
    // Held for a push or a pop, never during a call.
    warm: Mutex<Vec<Instance>>,
    warm_max: usize,
}

/// All that another instance is made from.
struct Recipe {
    shared: Arc<Shared>,
    fit: Fit,
    voice: Arc<Voice>,
    memory_max: usize,
    settings: String,
    // One second at first; then what the first one took, and the deadline on top.
    init_time_max: Duration,
}

impl WasmPolicy {
    pub(crate) fn load(shared: &Arc<Shared>, config: &PolicyConfig) -> Result<Self, LoadFailed> {
        let unfit =
            |why| LoadFailed { policy: config.name.clone(), from: config.source.clone(), why };
        let began = Instant::now();
        let mut recipe = Recipe {
            shared: Arc::clone(shared),
            fit: Fit::new(shared, config).map_err(unfit)?,
            voice: Arc::new(Voice::new(&config.name)),
            memory_max: usize::try_from(config.memory_max.0).unwrap_or(usize::MAX),
            settings: serde_json::Value::Object(config.settings.clone()).to_string(),
            init_time_max: INIT_TIME_MAX,
        };
        let compiled = began.elapsed();
        let (first, descriptor) = recipe.make().map_err(|stillborn| {
            unfit(match stillborn {
                Stillborn::Failed(failure) => Unfit::Start(failure),
                Stillborn::Refused(message) => Unfit::Settings(recipe.voice.presentable(&message)),
            })
        })?;
        let started = began.elapsed() - compiled;
        recipe.init_time_max = started + config.deadline;
        let Descriptor { name, version } = descriptor;
        plain("name", &name, 64).map_err(unfit)?;
        plain("version", &version, 32).map_err(unfit)?;
        let policy = Self {
            name: config.name.clone(),
            version,
            deadline: config.deadline,
            recipe,
            warm: Mutex::default(),
            // As many as can run at once: the rest would only be memory.
            warm_max: thread::available_parallelism().map_or(2, usize::from),
        };
        tracing::info!(
            policy = policy.name, from = %config.source, itself = name, version = policy.version,
            admit = policy.takes(Phase::Admit), account = policy.takes(Phase::Account),
            ?compiled, ?started, "policy loaded"
        );
        if !policy.takes(Phase::Admit) && !policy.takes(Phase::Account) {
            tracing::warn!(policy = policy.name, "this policy takes part in no phase");
        }
        policy.give_back(first);
        Ok(policy)
    }

    /// Takes a warm instance, or makes one.
    fn take(&self) -> Result<Instance, PolicyFailure> {
        let warm = self.warm().pop();
        if let Some(instance) = warm {
            return Ok(instance);
        }
        match self.recipe.make() {
            Ok((instance, _)) => Ok(instance),
            Err(Stillborn::Failed(failure)) => {
                Err(PolicyFailure { kind: FailureKind::Instantiate, message: failure.to_string() })
            }
            Err(Stillborn::Refused(message)) => Err(PolicyFailure {
                kind: FailureKind::Instantiate,
                message: format!(
                    "an instance refused settings that the first one accepted: {}",
                    self.recipe.voice.presentable(&message)
                ),
            }),
        }
    }

    /// Keeps an instance for the next call, unless it has had its share of them.
    fn give_back(&self, mut instance: Instance) {
        instance.calls_left = instance.calls_left.saturating_sub(1);
        if instance.calls_left == 0 {
            return;
        }
        let mut warm = self.warm();
        if warm.len() < self.warm_max {
            warm.push(instance);
        }
    }

    fn warm(&self) -> MutexGuard<'_, Vec<Instance>> {
        // Whoever panicked held it for a push or a pop: the stack is whole.
        self.warm.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Policy for WasmPolicy {
    fn name(&self) -> &str {
        &self.name
    }

    fn version(&self) -> &str {
        &self.version
    }

    fn takes(&self, phase: Phase) -> bool {
        match phase {
            Phase::Admit => self.recipe.fit.admit.is_some(),
            Phase::Account => self.recipe.fit.account.is_some(),
        }
    }

    fn admit(&self, facts: &Facts, load: &Load) -> Result<Decision, PolicyFailure> {
        let mut instance = self.take()?;
        // On an error `?` drops the instance, and that is all there is to never reusing it.
        let decision = instance.admit(facts, load, self.deadline)?;
        self.give_back(instance);
        Ok(decision)
    }

    fn account(&self, facts: &Facts, summary: &Summary) -> Result<(), PolicyFailure> {
        let mut instance = self.take()?;
        instance.account(facts, summary, self.deadline)?;
        self.give_back(instance);
        Ok(())
    }
}

impl Recipe {
    fn make(&self) -> Result<(Instance, Descriptor), Stillborn> {
        let (mut instance, descriptor) = Instance::new(
            &self.shared,
            &self.fit,
            &self.voice,
            self.memory_max,
            &self.settings,
            self.init_time_max,
        )?;
        instance.calls_left = calls_max();
        Ok((instance, descriptor))
    }
}

/// [`CALLS_MAX`] give or take a quarter, so that instances made together do not end together.
fn calls_max() -> u32 {
    // A fresh hasher's keys are the standard library's only randomness, and enough for this.
    let random = RandomState::new().hash_one(0_u8);
    let spread = CALLS_MAX / 2;
    CALLS_MAX - spread / 2 + u32::try_from(random % u64::from(spread)).unwrap_or(0)
}

fn plain(field: &'static str, value: &str, max: usize) -> Result<(), Unfit> {
    let printable = |c: char| c.is_ascii_graphic() || c == ' ';
    if (1..=max).contains(&value.len()) && value.chars().all(printable) {
        return Ok(());
    }
    Err(Unfit::Descriptor { field, max, value: value.chars().take(max).collect() })
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
