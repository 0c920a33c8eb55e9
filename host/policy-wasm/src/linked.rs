//! A component that is linked with what it was granted, and the functions that it exports.

use interlock_policy_api::Phase;
use wasmtime::Store;
use wasmtime::component::{Component, InstancePre};

use crate::LoadProblem;
use crate::grants::Grant;
use crate::host_functions::{GuestState, linker};
use crate::interfaces::{ComponentInterfaces, Version};
use crate::runtime::Runtime;
use crate::wit::v0_1::exports::interlock::policy as v0_1;
use crate::wit::v0_2::exports::interlock::policy as v0_2;

/// A component that is linked and known to fit: all that an instance is made from.
pub(crate) struct LinkedComponent {
    pub(crate) pre: InstancePre<GuestState>,
    pub(crate) exports: ExportIndices,
}

/// Where its functions are, in the version that it was made for.
pub(crate) enum ExportIndices {
    V0_2(Box<Exports>),
    V0_1(OldExports),
}

/// The interfaces of today that it exports.
pub(crate) struct Exports {
    pub(crate) lifecycle: v0_2::lifecycle::GuestIndices,
    pub(crate) identify: Option<v0_2::identify::GuestIndices>,
    pub(crate) transform: Option<v0_2::transform::GuestIndices>,
    pub(crate) route: Option<v0_2::route::GuestIndices>,
    pub(crate) admit: Option<v0_2::admit::GuestIndices>,
    pub(crate) stream_guard: Option<v0_2::stream_guard::GuestIndices>,
    pub(crate) events: Option<v0_2::events::GuestIndices>,
    pub(crate) account: Option<v0_2::account::GuestIndices>,
}

/// Those of 0.1.
pub(crate) struct OldExports {
    pub(crate) lifecycle: v0_1::lifecycle::GuestIndices,
    pub(crate) admit: Option<v0_1::admit::GuestIndices>,
    pub(crate) account: Option<v0_1::account::GuestIndices>,
}

/// The functions that it exports, in the version that it was made for.
pub(crate) enum GuestFunctions {
    V0_2(PhaseFunctions),
    V0_1(OldPhaseFunctions),
}

/// The phases of today.
pub(crate) struct PhaseFunctions {
    pub(crate) identify: Option<v0_2::identify::Guest>,
    pub(crate) transform: Option<v0_2::transform::Guest>,
    pub(crate) route: Option<v0_2::route::Guest>,
    pub(crate) admit: Option<v0_2::admit::Guest>,
    pub(crate) stream_guard: Option<v0_2::stream_guard::Guest>,
    pub(crate) events: Option<v0_2::events::Guest>,
    pub(crate) account: Option<v0_2::account::Guest>,
}

/// The phases of 0.1.
pub(crate) struct OldPhaseFunctions {
    pub(crate) admit: Option<v0_1::admit::Guest>,
    pub(crate) account: Option<v0_1::account::Guest>,
}

impl LinkedComponent {
    /// Links a component with what it was granted. What is missing is a trap when it is called,
    /// for those who want to hear what it says of itself all the same.
    pub(crate) fn new(
        shared: &Runtime,
        component: &Component,
        interfaces: &ComponentInterfaces,
        grants: &[Grant],
    ) -> Result<Self, LoadProblem> {
        let mismatch = |e: wasmtime::Error| {
            LoadProblem::Interface(interfaces.version.as_str(), format!("{e:#}"))
        };
        let mut linker = linker(&shared.engine, grants).map_err(mismatch)?;
        if !interfaces.missing(grants).is_empty() {
            linker.define_unknown_imports_as_traps(component).map_err(mismatch)?;
        }
        let pre = linker.instantiate_pre(component).map_err(mismatch)?;
        let has = |phase: Phase| interfaces.phases.contains(&phase);
        macro_rules! exports {
            ($version:ident, $interface:ident, $phase:ident) => {
                has(Phase::$phase)
                    .then(|| $version::$interface::GuestIndices::new(&pre).map_err(mismatch))
                    .transpose()?
            };
        }
        let exports = match interfaces.version {
            Version::V0_2 => ExportIndices::V0_2(Box::new(Exports {
                lifecycle: v0_2::lifecycle::GuestIndices::new(&pre).map_err(mismatch)?,
                identify: exports!(v0_2, identify, Identify),
                transform: exports!(v0_2, transform, Transform),
                route: exports!(v0_2, route, Route),
                admit: exports!(v0_2, admit, Admit),
                stream_guard: exports!(v0_2, stream_guard, StreamGuard),
                events: exports!(v0_2, events, Events),
                account: exports!(v0_2, account, Account),
            })),
            Version::V0_1 => ExportIndices::V0_1(OldExports {
                lifecycle: v0_1::lifecycle::GuestIndices::new(&pre).map_err(mismatch)?,
                admit: exports!(v0_1, admit, Admit),
                account: exports!(v0_1, account, Account),
            }),
        };
        Ok(Self { pre, exports })
    }
}

/// `init` of either version.
pub(crate) enum Init {
    V0_2(v0_2::lifecycle::Guest),
    V0_1(v0_1::lifecycle::Guest),
}

impl LinkedComponent {
    /// Finds the functions of an instance.
    pub(crate) fn load(
        &self,
        store: &mut Store<GuestState>,
        instance: &wasmtime::component::Instance,
    ) -> wasmtime::Result<(GuestFunctions, Init)> {
        macro_rules! load {
            ($indices:expr) => {
                $indices.as_ref().map(|i| i.load(&mut *store, instance)).transpose()?
            };
        }
        Ok(match &self.exports {
            ExportIndices::V0_2(has) => (
                GuestFunctions::V0_2(PhaseFunctions {
                    identify: load!(has.identify),
                    transform: load!(has.transform),
                    route: load!(has.route),
                    admit: load!(has.admit),
                    stream_guard: load!(has.stream_guard),
                    events: load!(has.events),
                    account: load!(has.account),
                }),
                Init::V0_2(has.lifecycle.load(&mut *store, instance)?),
            ),
            ExportIndices::V0_1(has) => (
                GuestFunctions::V0_1(OldPhaseFunctions {
                    admit: load!(has.admit),
                    account: load!(has.account),
                }),
                Init::V0_1(has.lifecycle.load(&mut *store, instance)?),
            ),
        })
    }
}
