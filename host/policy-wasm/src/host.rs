//! Loads policies.

use std::sync::Arc;

use interlock_metrics::Registry;
use interlock_state::State;

use crate::compiled::Compiled;
use crate::description::PolicyDescription;
use crate::load::ComponentBytes;
use crate::policy::WasmPolicy;
use crate::runtime::{PolicyHostFailed, Runtime, Services};
use crate::{LoadFailed, LoadProblem, PolicyConfig};

/// Loads policies and keeps what they share. Cheap to clone; policies may outlive it.
#[derive(Clone)]
pub struct PolicyHost {
    shared: Arc<Runtime>,
}

impl PolicyHost {
    /// A host on its own: state in memory, metrics that nobody reads, nothing kept on disk.
    ///
    /// # Errors
    ///
    /// As [`PolicyHost::with`].
    pub fn new() -> Result<Self, PolicyHostFailed> {
        Self::with(Services { state: State::memory(), registry: &Registry::new(), cache: None })
    }

    /// Sets up the engine and starts its clock, a thread called `interlock-ticks`. The thread
    /// ends, and is waited for, when the host and all its policies are gone.
    ///
    /// # Errors
    ///
    /// When the platform has no WebAssembly compiler, or there is no room for the address space
    /// of the most instances at once (reserved and not used), or for a thread.
    pub fn with(services: Services<'_>) -> Result<Self, PolicyHostFailed> {
        Ok(Self { shared: Arc::new(Runtime::start(services)?) })
    }

    /// Compiles a policy, links it, and has its first instance read its settings.
    ///
    /// # Errors
    ///
    /// When anything is wrong with it, in a sentence that names the policy, its file and the
    /// reason; see [`LoadProblem`].
    pub fn load(&self, config: &PolicyConfig) -> Result<Arc<WasmPolicy>, LoadFailed> {
        self.load_read(config, ComponentBytes::read(&config.source))
    }

    /// The same with a component that is at hand; `source` is only what messages call it.
    ///
    /// # Errors
    ///
    /// As [`PolicyHost::load`].
    pub fn load_bytes(
        &self,
        config: &PolicyConfig,
        component: Vec<u8>,
    ) -> Result<Arc<WasmPolicy>, LoadFailed> {
        self.load_read(config, ComponentBytes::new(component.into()))
    }

    /// Says what a component is and needs, whether or not it could be loaded with these grants:
    /// it is compiled and reads its settings, but what it was not granted it cannot call.
    ///
    /// # Errors
    ///
    /// When it is no component of ours; a policy that did not begin is described without what it
    /// says of itself.
    pub fn describe(&self, config: &PolicyConfig) -> Result<PolicyDescription, LoadFailed> {
        let failed =
            |why| LoadFailed { policy: config.name.clone(), from: config.source.clone(), why };
        match self.load(config) {
            Ok(policy) => return Ok(policy.describe().clone()),
            Err(LoadFailed { why: LoadProblem::Config(problems), .. }) => {
                return Err(failed(LoadProblem::Config(problems)));
            }
            Err(_) => {}
        }
        let bytes = ComponentBytes::read(&config.source).map_err(failed)?;
        let compiled = Compiled::new(&self.shared, &bytes).map_err(failed)?;
        Ok(WasmPolicy::describe_unloaded(&self.shared, config, &compiled))
    }

    pub(crate) fn shared(&self) -> &Arc<Runtime> {
        &self.shared
    }

    /// Checks the configuration and compiles the component.
    pub(crate) fn compile(
        &self,
        config: &PolicyConfig,
        bytes: Result<ComponentBytes, LoadProblem>,
    ) -> Result<Compiled, LoadFailed> {
        let failed =
            |why| LoadFailed { policy: config.name.clone(), from: config.source.clone(), why };
        let problems = config.problems();
        if !problems.is_empty() {
            return Err(failed(LoadProblem::Config(problems)));
        }
        bytes.and_then(|bytes| Compiled::new(&self.shared, &bytes)).map_err(failed)
    }

    /// Makes a policy of a component that is compiled already. The policy decides nothing yet.
    pub(crate) fn load_compiled(
        &self,
        config: &PolicyConfig,
        compiled: &Compiled,
    ) -> Result<Arc<WasmPolicy>, LoadFailed> {
        Ok(Arc::new(WasmPolicy::new(&self.shared, config, compiled)?))
    }

    fn load_read(
        &self,
        config: &PolicyConfig,
        bytes: Result<ComponentBytes, LoadProblem>,
    ) -> Result<Arc<WasmPolicy>, LoadFailed> {
        let compiled = self.compile(config, bytes)?;
        let policy = self.load_compiled(config, &compiled)?;
        policy.serve(true);
        if let Some(shown) = policy.shown() {
            self.shared.metrics.plugins.show(shown);
        }
        Ok(policy)
    }
}
