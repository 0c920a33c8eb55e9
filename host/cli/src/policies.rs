//! The policies of a running host: loads them, and swaps them while it serves.
//!
//! # Invariants
//!
//! - A policy is tried out before it counts: compiled, linked with what it was granted, and it has
//!   read its settings. What cannot be loaded changes nothing.
//! - One swap at a time. Requests never wait for one: they read the current chain.
//! - What is loaded of each generation is known for as long as the generation can come back.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::bail;
use bytes::Bytes;
use interlock_admission::{Commons, Link, Policies, PolicyMetrics, PolicyMode};
use interlock_config::Config;
use interlock_metrics::Registry;
use interlock_policy::{PolicyConfig, PolicyHost, PolicySource, Services, WasmPolicy};
use interlock_server::{NotSwapped, PolicyAdmin, Replacement, Swapping};
use interlock_state::{State, StateMetrics};
use serde_json::{Value, json};

/// Whoever knows how the policies were loaded.
pub(crate) struct Keeper {
    host: PolicyHost,
    policies: Arc<Policies>,
    // Read and written by whoever swaps, of whom there is rarely one; never by a request.
    generations: Mutex<BTreeMap<u64, Vec<Kept>>>,
    swapping: tokio::sync::Mutex<()>,
}

/// A policy in its place.
#[derive(Clone)]
struct Kept {
    config: PolicyConfig,
    policy: Arc<WasmPolicy>,
    /// What it takes the place of, as long as it does not decide for everyone.
    previous: Option<Arc<WasmPolicy>>,
}

/// Generations whose policies are kept: the current one, and those that `Policies` can go back to.
const GENERATIONS_MAX: usize = 4;

impl Keeper {
    /// Loads every policy.
    ///
    /// # Errors
    ///
    /// Every policy that cannot be loaded, or the state that they were to share.
    pub(crate) fn load(config: &Config, registry: &Registry) -> anyhow::Result<Arc<Self>> {
        let state = State::open(&config.state)?.with_metrics(StateMetrics::register(registry));
        let host = PolicyHost::with(Services { state, registry, cache: None })?;
        let mut kept = Vec::new();
        let mut failures = Vec::new();
        for config in &config.policy {
            match host.load(config) {
                Ok(policy) => kept.push(Kept { config: config.clone(), policy, previous: None }),
                Err(failure) => failures.push(format!("\n  {failure}")),
            }
        }
        if !failures.is_empty() {
            bail!("not all policies can be loaded:{}", failures.concat());
        }
        let commons = Commons::new(PolicyMetrics::register(registry));
        let policies = Policies::new(links(&kept), config.limits.ceilings(), commons);
        let generations = BTreeMap::from([(policies.current().generation(), kept)]);
        Ok(Arc::new(Self {
            host,
            policies: Arc::new(policies),
            generations: Mutex::new(generations),
            swapping: tokio::sync::Mutex::default(),
        }))
    }

    pub(crate) fn policies(&self) -> &Arc<Policies> {
        &self.policies
    }

    /// Loads every policy that comes from a file again. What cannot be loaded stays as it is.
    pub(crate) async fn reload(&self) {
        let files = self.current().into_iter().filter_map(|kept| match kept.config.source {
            PolicySource::File(_) => Some(kept.config.name),
            PolicySource::Builtin(_) => None,
        });
        for name in files {
            let with = Replacement::default();
            if let Err(why) = self.replace_now(&name, with).await {
                tracing::error!(policy = name, %why, "the policy was not reloaded");
            }
        }
    }

    fn current(&self) -> Vec<Kept> {
        let generation = self.policies.current().generation();
        self.generations().get(&generation).cloned().unwrap_or_default()
    }

    async fn replace_now(&self, name: &str, with: Replacement) -> Result<u64, NotSwapped> {
        let _one_at_a_time = self.swapping.lock().await;
        let mut kept = self.current();
        let place = kept.iter().position(|kept| kept.config.name == name);
        let place = place.ok_or_else(|| NotSwapped::Unknown(name.to_owned()))?;
        let before = kept[place].clone();
        let config = changed(&before.config, &with)?;
        let policy = self.try_out(config.clone(), with.component).await.inspect_err(|_| {
            self.policies.swap_failed();
        })?;
        let decides = config.mode == PolicyMode::Enforce;
        // Who decided before goes on to do so until the new one does.
        let decided = before.previous.unwrap_or(before.policy);
        kept[place] = Kept { config, policy, previous: (!decides).then_some(decided) };
        let generation = self.policies.swap(links(&kept));
        let mut generations = self.generations();
        generations.insert(generation, kept);
        while generations.len() > GENERATIONS_MAX {
            generations.pop_first();
        }
        Ok(generation)
    }

    /// Compiles, off the threads that serve.
    async fn try_out(
        &self,
        config: PolicyConfig,
        component: Option<Bytes>,
    ) -> Result<Arc<WasmPolicy>, NotSwapped> {
        let host = self.host.clone();
        let load = move || match component {
            Some(component) => host.load_bytes(&config, component.to_vec()),
            None => host.load(&config),
        };
        #[expect(clippy::disallowed_methods, reason = "compiles WebAssembly, touches no MLX")]
        let loaded = tokio::task::spawn_blocking(load).await;
        match loaded {
            Ok(Ok(policy)) => Ok(policy),
            Ok(Err(failed)) => Err(NotSwapped::Unfit(failed.to_string())),
            Err(panic) => Err(NotSwapped::Unfit(format!("loading it failed: {panic}"))),
        }
    }

    fn generations(&self) -> MutexGuard<'_, BTreeMap<u64, Vec<Kept>>> {
        self.generations.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A policy's configuration with what is said to be different.
fn changed(before: &PolicyConfig, with: &Replacement) -> Result<PolicyConfig, NotSwapped> {
    let mut config = before.clone();
    if let Some(source) = &with.source {
        let source = PolicySource::try_from(source.clone());
        config.source = source.map_err(|bad| NotSwapped::Unfit(bad.to_string()))?;
    }
    if let Some(settings) = &with.settings {
        config.settings = settings.clone();
    }
    if let Some(mode) = &with.mode {
        config.mode = mode.parse().map_err(|bad| NotSwapped::Unfit(format!("{bad}")))?;
    }
    match &config.problems()[..] {
        [] => Ok(config),
        problems => Err(NotSwapped::Unfit(problems.join("; "))),
    }
}

fn links(kept: &[Kept]) -> Vec<Link> {
    let link = |kept: &Kept| {
        let policy = Arc::clone(&kept.policy);
        let previous = kept.previous.clone().map(|previous| previous as _);
        Link { previous, ..kept.config.link(policy) }
    };
    kept.iter().map(link).collect()
}

impl PolicyAdmin for Keeper {
    fn list(&self) -> Value {
        use interlock_admission::Policy;
        let chain = self.policies.current();
        let policies: Vec<Value> = self
            .current()
            .iter()
            .map(|Kept { config, policy, previous }| {
                json!({
                    "name": config.name,
                    "source": config.source,
                    "mode": config.mode,
                    "version": policy.version(),
                    "previous_version": previous.as_ref().map(|previous| previous.version()),
                })
            })
            .collect();
        json!({ "generation": chain.generation(), "policies": policies })
    }

    fn replace(&self, name: String, with: Replacement) -> Swapping<'_> {
        Box::pin(async move { self.replace_now(&name, with).await })
    }

    fn rollback(&self) -> Result<u64, NotSwapped> {
        self.policies.rollback().ok_or(NotSwapped::Nothing)
    }
}
