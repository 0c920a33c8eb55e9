//! The policies of a running host: puts together what they work with, and takes an operator's wish
//! to who keeps them.

use std::sync::Arc;

use anyhow::{Context, bail};
use interlock_admission::{Commons, Earlier, PolicyMetrics, RecordFile};
use interlock_config::Config;
use interlock_metrics::Registry;
use interlock_policy::{
    Change, Changed, Keeper, NotChanged, PolicyHost, PolicySource, Services, default_cache,
};
use interlock_server::{NotSwapped, PolicyAdmin, Replacement, Swapping};
use interlock_state::{State, StateMetrics};
use serde_json::Value;

/// Loads every policy.
///
/// # Errors
///
/// Every policy that cannot be loaded; or the state that they were to share, or the file that was
/// to record them.
pub(crate) fn load(config: &Config, registry: &Registry) -> anyhow::Result<Arc<Keeper>> {
    let state = State::open(&config.state)?.with_metrics(StateMetrics::register(registry));
    let cache = config.policies.cache_or(default_cache());
    let host = PolicyHost::with(Services { state, registry, cache })?;
    let metrics = PolicyMetrics::register(registry);
    let commons = match &config.policies.record {
        Some(path) => {
            let sink = RecordFile::open(path, &metrics)
                .with_context(|| format!("cannot write to policies.record {}", path.display()))?;
            Commons::new(metrics).recording(Arc::new(sink))
        }
        None => Commons::new(metrics),
    };
    match Keeper::new(host, &config.policy, config.limits.ceilings(), commons) {
        Ok(keeper) => Ok(keeper),
        Err(failed) => {
            let failed: Vec<String> = failed.iter().map(|failed| format!("\n  {failed}")).collect();
            bail!("not all policies can be loaded:{}", failed.concat())
        }
    }
}

/// Reads the files of all policies again. The keeper logs what comes of it.
pub(crate) async fn reload(keeper: &Arc<Keeper>) {
    let keeper = Arc::clone(keeper);
    let reload = move || {
        let _logged = keeper.reload();
    };
    if let Err(error) = aside(reload).await {
        tracing::error!(error, "reloading policies failed");
    }
}

/// Compiling takes long; it is done off the threads that serve.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    #[expect(clippy::disallowed_methods, reason = "compiles WebAssembly, touches no MLX")]
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|panic| panic.to_string())
}

/// The operator's desk in front of the keeper.
pub(crate) struct Desk(pub(crate) Arc<Keeper>);

impl PolicyAdmin for Desk {
    fn list(&self) -> Value {
        self.0.list()
    }

    fn replace(&self, name: String, with: Replacement) -> Swapping<'_> {
        let keeper = Arc::clone(&self.0);
        Box::pin(async move {
            let change = change(with).map_err(NotSwapped::Unfit)?;
            let replaced = aside(move || keeper.replace(&name, change)).await;
            let replaced = replaced.map_err(NotSwapped::Unfit)?.map_err(|why| match why {
                NotChanged::Unknown(name) => NotSwapped::Unknown(name),
                NotChanged::Load(failed) => NotSwapped::Unfit(failed.to_string()),
            });
            replaced.map(|changed| told(&changed))
        })
    }

    fn rollback(&self, to: Earlier) -> Swapping<'_> {
        let keeper = Arc::clone(&self.0);
        Box::pin(async move {
            // Waits for a swap that is being tried out.
            let back = aside(move || keeper.rollback(to)).await;
            Ok(told(&back.map_err(NotSwapped::Unfit)??))
        })
    }
}

/// What a change came to, as the admin listener answers it.
fn told(changed: &Changed) -> Value {
    serde_json::to_value(changed).expect("texts and numbers are JSON")
}

/// The same in the keeper's words.
fn change(with: Replacement) -> Result<Change, String> {
    let Replacement { component, source, settings, mode } = with;
    let source = source.map(PolicySource::try_from).transpose().map_err(|bad| bad.to_string())?;
    Ok(Change { component: component.map(|bytes| bytes.to_vec()), source, settings, mode })
}
