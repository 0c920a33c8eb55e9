//! The policies of a running host: loads them with the state, cache and records that they use, and
//! carries out an operator's changes.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use interlock_config::{Effective, Problems};
use interlock_metrics::Registry;
use interlock_policy_chain::{ChainShared, PolicyMetrics, RecordFile, RollbackTarget};
use interlock_policy_wasm::{
    ChangeReport, LoadFailed, LoadProblem, NotChanged, PolicyConfig, PolicyHost, PolicyManager,
    PolicySource, PolicyUpdate, Services, default_cache,
};
use interlock_request::without_logins;
use interlock_server::{PolicyAdmin, Replacement, SwapError, SwapFuture};
use interlock_state::{State, StateMetrics};
use serde_json::Value;

/// The policies of a host, and the file that they are recorded in.
pub(crate) struct LoadedPolicies {
    pub(crate) manager: Arc<PolicyManager>,
    pub(crate) record: Option<Arc<RecordFile>>,
}

/// The problem with a policy: the key that is at fault, and the message.
pub(crate) fn problem(at: usize, policy: &PolicyConfig, why: &LoadProblem) -> (String, String) {
    let PolicyConfig { name, source, .. } = policy;
    let key = match why {
        LoadProblem::Settings(_) => "settings",
        LoadProblem::Grants { .. } => "grants",
        _ => "source",
    };
    (
        format!("policy.{at}.{key}"),
        format!("policy[{at}] {name:?} ({}): {why}", without_logins(&source.to_string())),
    )
}

/// The problem with `policies.record`, if records could not be written there.
pub(crate) fn record_problem(path: &Path) -> Option<String> {
    let why = RecordFile::check(path).err()?;
    Some(format!(
        "policies.record must be a file that can be written, renamed and made anew, got {path:?}: {why}"
    ))
}

/// Loads every policy.
///
/// # Errors
///
/// When a policy cannot be loaded (the error names all such policies), the state cannot be opened, or
/// the record file cannot be written.
pub(crate) fn load(effective: &Effective, registry: &Registry) -> anyhow::Result<LoadedPolicies> {
    let config = &effective.config;
    let state = State::open(&config.state)?.with_metrics(StateMetrics::register(registry));
    let cache = config.policies.cache_or(default_cache());
    let host = PolicyHost::with(Services { state, registry, cache })
        .context("WebAssembly cannot be run on this machine, so no policy can be")?;
    let metrics = PolicyMetrics::register(registry);
    let record = record(effective, &metrics)?;
    let shared = match &record {
        Some(file) => ChainShared::new(metrics).recording(Arc::clone(file) as _),
        None => ChainShared::new(metrics),
    };
    match PolicyManager::new(host, &config.policy, config.limits.ceilings(), shared) {
        Ok(manager) => Ok(LoadedPolicies { manager, record }),
        Err(failed) => {
            let problem = |failed: &LoadFailed| {
                let named = |(_, policy): &(usize, &PolicyConfig)| policy.name == failed.policy;
                let (at, policy) = config.policy.iter().enumerate().find(named)?;
                let (key, text) = problem(at, policy, &failed.why);
                Some(effective.problem(&key, text))
            };
            bail!(Problems(failed.iter().filter_map(problem).collect()))
        }
    }
}

fn record(
    effective: &Effective,
    metrics: &PolicyMetrics,
) -> anyhow::Result<Option<Arc<RecordFile>>> {
    let policies = &effective.config.policies;
    let Some(path) = &policies.record else { return Ok(None) };
    if let Some(problem) = record_problem(path) {
        bail!(Problems(vec![effective.problem("policies.record", problem)]))
    }
    let file = RecordFile::open(path, policies.record_bounds(), metrics);
    let file = file.with_context(|| format!("policies.record {path:?} cannot be written"))?;
    Ok(Some(Arc::new(file)))
}

/// Reads the files of all policies again, and begins the file of records anew where it was moved.
/// The manager logs the result.
pub(crate) async fn reload(manager: &Arc<PolicyManager>, record: Option<&Arc<RecordFile>>) {
    let (manager, record) = (Arc::clone(manager), record.cloned());
    let reload = move || {
        if let Some(record) = record {
            record.reopen();
        }
        let _logged = manager.reload();
    };
    if let Err(error) = aside(reload).await {
        tracing::error!(error, "reloading policies failed");
    }
}

/// Runs work that takes long, such as compiling, off the threads that serve.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    #[expect(clippy::disallowed_methods, reason = "compiles WebAssembly, touches no MLX")]
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|panic| panic.to_string())
}

/// Carries out an operator's requests on the policies of this process.
pub(crate) struct LocalPolicyAdmin(pub(crate) Arc<PolicyManager>);

impl PolicyAdmin for LocalPolicyAdmin {
    fn list(&self) -> Value {
        self.0.list()
    }

    fn replace(&self, name: String, with: Replacement) -> SwapFuture<'_> {
        let manager = Arc::clone(&self.0);
        Box::pin(async move {
            let change = change(with).map_err(SwapError::Unfit)?;
            let replaced = aside(move || manager.replace(&name, change)).await;
            let replaced = replaced.map_err(SwapError::Unfit)?.map_err(|why| match why {
                NotChanged::Unknown(name) => SwapError::Unknown(name),
                NotChanged::Load(failed) => SwapError::Unfit(failed.to_string()),
            });
            replaced.map(|changed| told(&changed))
        })
    }

    fn rollback(&self, to: RollbackTarget) -> SwapFuture<'_> {
        let manager = Arc::clone(&self.0);
        Box::pin(async move {
            // A rollback waits for a swap that is being tried out.
            let back = aside(move || manager.rollback(to)).await;
            Ok(told(&back.map_err(SwapError::Unfit)??))
        })
    }
}

/// The result of a change, as the admin listener answers it.
fn told(changed: &ChangeReport) -> Value {
    serde_json::to_value(changed).expect("texts and numbers are JSON")
}

/// Translates an operator's replacement into a change.
fn change(with: Replacement) -> Result<PolicyUpdate, String> {
    let Replacement { component, source, settings, mode } = with;
    let source = source.map(PolicySource::try_from).transpose().map_err(|bad| bad.to_string())?;
    Ok(PolicyUpdate { component: component.map(|bytes| bytes.to_vec()), source, settings, mode })
}
