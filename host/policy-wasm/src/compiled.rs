//! A component, compiled.

use std::time::{Duration, Instant};

use wasmtime::component::Component;

use crate::interfaces::ComponentInterfaces;
use crate::load::{ComponentBytes, Digest};
use crate::runtime::Runtime;

/// A component, compiled, and what its names say.
pub(crate) struct Compiled {
    pub(crate) component: Component,
    pub(crate) interfaces: ComponentInterfaces,
    pub(crate) digest: Digest,
    pub(crate) bytes: usize,
    pub(crate) took: Duration,
}

impl Compiled {
    /// Compiles a component, or takes it from the cache, and reads its names.
    pub(crate) fn new(
        runtime: &Runtime,
        bytes: &ComponentBytes,
    ) -> Result<Self, crate::LoadProblem> {
        let began = Instant::now();
        let compile = || {
            Component::new(&runtime.engine, &bytes.bytes)
                .map_err(|e| crate::LoadProblem::Invalid(format!("{e:#}")))
        };
        let component = match &runtime.cache {
            Some(cache) => cache.component(&runtime.engine, &bytes.digest, compile)?,
            None => compile()?,
        };
        let took = began.elapsed();
        let interfaces = ComponentInterfaces::of(&runtime.engine, &component)?;
        let (digest, bytes) = (bytes.digest.clone(), bytes.bytes.len());
        Ok(Self { component, interfaces, digest, bytes, took })
    }
}
