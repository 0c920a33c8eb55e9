//! What a component takes part in and what it wants, found out by its names; and whether this
//! host can give it that.

use interlock_policy_api::Phase;
use wasmtime::component::{Component, InstancePre};

use crate::Unfit;
use crate::grants::Grant;
use crate::host::Shared;
use crate::reach::{GuestState, linker};
use crate::wit::now::exports::interlock::policy as now;
use crate::wit::v0_1::exports::interlock::policy as v0_1;

/// A component that is linked and known to fit: all that an instance is made from.
pub(crate) struct Fit {
    pub(crate) pre: InstancePre<GuestState>,
    pub(crate) dialect: Dialect,
}

/// Where its functions are, in the version that it was made for.
pub(crate) enum Dialect {
    Now(Box<Exports>),
    V0_1(OldExports),
}

/// The interfaces of today that it exports.
pub(crate) struct Exports {
    pub(crate) lifecycle: now::lifecycle::GuestIndices,
    pub(crate) identify: Option<now::identify::GuestIndices>,
    pub(crate) transform: Option<now::transform::GuestIndices>,
    pub(crate) route: Option<now::route::GuestIndices>,
    pub(crate) admit: Option<now::admit::GuestIndices>,
    pub(crate) stream_guard: Option<now::stream_guard::GuestIndices>,
    pub(crate) events: Option<now::events::GuestIndices>,
    pub(crate) account: Option<now::account::GuestIndices>,
}

/// Those of 0.1.
pub(crate) struct OldExports {
    pub(crate) lifecycle: v0_1::lifecycle::GuestIndices,
    pub(crate) admit: Option<v0_1::admit::GuestIndices>,
    pub(crate) account: Option<v0_1::account::GuestIndices>,
}

/// A version of `interlock:policy`. Versions that differ in their last number only are compatible,
/// in both directions, as long as the interfaces in question exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    V0_1,
    V0_2,
}

/// What a component's names say.
#[derive(Debug)]
pub(crate) struct Shape {
    pub(crate) version: Version,
    pub(crate) phases: Vec<Phase>,
    /// Names of its imports, as they are.
    pub(crate) imports: Vec<String>,
    /// Those of them that must be granted, by interface.
    pub(crate) capabilities: Vec<&'static str>,
}

const PACKAGE: &str = "interlock:policy/";
/// `types` has no functions; a component that uses its words imports it all the same.
const FREE: [&str; 2] = ["types", "log"];
const CAPABILITIES: [&str; 4] = ["metrics", "state", "content", "http"];

impl Version {
    const ALL: [Self; 2] = [Self::V0_1, Self::V0_2];

    const fn series(self) -> &'static str {
        match self {
            Self::V0_1 => "0.1.",
            Self::V0_2 => "0.2.",
        }
    }

    /// The release that this host was written against.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::V0_1 => "0.1.0",
            Self::V0_2 => "0.2.0",
        }
    }

    fn phase(self, interface: &str) -> Option<Phase> {
        let phase = Phase::ALL.into_iter().find(|phase| interface_of(*phase) == interface)?;
        let old = matches!(phase, Phase::Admit | Phase::Account);
        (self == Self::V0_2 || old).then_some(phase)
    }

    fn offers(self, interface: &str) -> bool {
        FREE.contains(&interface) || self == Self::V0_2 && CAPABILITIES.contains(&interface)
    }
}

/// What the WIT calls a phase.
pub(crate) fn interface_of(phase: Phase) -> &'static str {
    match phase {
        Phase::StreamGuard => "stream-guard",
        phase => phase.as_str(),
    }
}

impl Shape {
    /// Reads a component's names.
    ///
    /// # Errors
    ///
    /// When one of them is of another version than those that this host speaks, of two versions at
    /// once, or of nothing that this host has.
    pub(crate) fn of(shared: &Shared, component: &Component) -> Result<Self, Unfit> {
        let ty = component.component_type();
        let imports: Vec<String> =
            ty.imports(&shared.engine).map(|(name, _)| name.to_owned()).collect();
        let exports: Vec<String> =
            ty.exports(&shared.engine).map(|(name, _)| name.to_owned()).collect();
        let version = version(&imports, &exports)?;
        let unknown: Vec<String> = imports
            .iter()
            .filter(|name| !ours(name).is_some_and(|(interface, _)| version.offers(interface)))
            .cloned()
            .collect();
        if !unknown.is_empty() {
            return Err(Unfit::Import(unknown));
        }
        let mut phases = Vec::new();
        let mut begins = false;
        for name in &exports {
            match ours(name) {
                Some(("lifecycle", _)) => begins = true,
                Some((interface, _)) => match version.phase(interface) {
                    Some(phase) => phases.push(phase),
                    None => return Err(Unfit::Phase(name.clone())),
                },
                // Exports of other packages are the component's own affair.
                None => {}
            }
        }
        if !begins {
            return Err(Unfit::NoLifecycle(version.as_str()));
        }
        phases.sort();
        let capabilities = CAPABILITIES
            .into_iter()
            .filter(|capability| {
                imports.iter().any(|name| ours(name).is_some_and(|(i, _)| i == *capability))
            })
            .collect();
        Ok(Self { version, phases, imports, capabilities })
    }

    /// Can it wait for others in a call? With state that waits, whoever imports state can.
    pub(crate) fn waits(&self, state_waits: bool) -> bool {
        self.capabilities.contains(&"http") || state_waits && self.capabilities.contains(&"state")
    }

    /// What its imports alone need, where the grants have nothing of the kind.
    pub(crate) fn missing(&self, grants: &[Grant]) -> Vec<Grant> {
        let mut missing = Vec::new();
        for capability in &self.capabilities {
            let has = |kind: fn(&Grant) -> bool| grants.iter().any(kind);
            match *capability {
                "state" if !has(|grant| *grant == Grant::State) => missing.push(Grant::State),
                "metrics" if !has(|grant| *grant == Grant::Metrics) => missing.push(Grant::Metrics),
                "content" if !has(|grant| matches!(grant, Grant::Read(_) | Grant::Write(_))) => {
                    missing.push(Grant::Read(String::new()));
                }
                "http" if !has(|grant| matches!(grant, Grant::Http(..))) => {
                    missing.push(Grant::Http("HOST".into(), 443));
                }
                _ => {}
            }
        }
        missing
    }
}

impl Fit {
    /// Links a component with what it was granted. What is missing is a trap when it is called,
    /// for those who want to hear what it says of itself all the same.
    pub(crate) fn new(
        shared: &Shared,
        component: &Component,
        shape: &Shape,
        grants: &[Grant],
    ) -> Result<Self, Unfit> {
        let mismatch =
            |e: wasmtime::Error| Unfit::Interface(shape.version.as_str(), format!("{e:#}"));
        let mut linker = linker(&shared.engine, grants).map_err(mismatch)?;
        if !shape.missing(grants).is_empty() {
            linker.define_unknown_imports_as_traps(component).map_err(mismatch)?;
        }
        let pre = linker.instantiate_pre(component).map_err(mismatch)?;
        let has = |phase: Phase| shape.phases.contains(&phase);
        macro_rules! exports {
            ($version:ident, $interface:ident, $phase:ident) => {
                has(Phase::$phase)
                    .then(|| $version::$interface::GuestIndices::new(&pre).map_err(mismatch))
                    .transpose()?
            };
        }
        let dialect = match shape.version {
            Version::V0_2 => Dialect::Now(Box::new(Exports {
                lifecycle: now::lifecycle::GuestIndices::new(&pre).map_err(mismatch)?,
                identify: exports!(now, identify, Identify),
                transform: exports!(now, transform, Transform),
                route: exports!(now, route, Route),
                admit: exports!(now, admit, Admit),
                stream_guard: exports!(now, stream_guard, StreamGuard),
                events: exports!(now, events, Events),
                account: exports!(now, account, Account),
            })),
            Version::V0_1 => Dialect::V0_1(OldExports {
                lifecycle: v0_1::lifecycle::GuestIndices::new(&pre).map_err(mismatch)?,
                admit: exports!(v0_1, admit, Admit),
                account: exports!(v0_1, account, Account),
            }),
        };
        Ok(Self { pre, dialect })
    }
}

/// The one version that all names of our package are of.
fn version(imports: &[String], exports: &[String]) -> Result<Version, Unfit> {
    let mut found: Option<(Version, &String)> = None;
    let names = imports.iter().map(|name| ("imports", name));
    for (what, name) in names.chain(exports.iter().map(|name| ("exports", name))) {
        let Some((_, version)) = ours(name) else { continue };
        let Some(version) = Version::ALL.into_iter().find(|v| version.starts_with(v.series()))
        else {
            return Err(Unfit::Version { what, name: name.clone() });
        };
        match found {
            Some((first, other)) if first != version => {
                return Err(Unfit::TwoVersions(other.clone(), name.clone()));
            }
            _ => found = Some((version, name)),
        }
    }
    // One that speaks of nothing of ours has no lifecycle either, which is said of it then.
    Ok(found.map_or(Version::V0_2, |(version, _)| version))
}

/// For a name of our package: the interface, and its version.
fn ours(name: &str) -> Option<(&str, &str)> {
    let name = name.strip_prefix(PACKAGE)?;
    Some(name.split_once('@').unwrap_or((name, "")))
}
