//! What the names of a component's imports and exports say: its version, its phases, its needs.

use interlock_policy_api::Phase;
use wasmtime::Engine;
use wasmtime::component::Component;

use crate::LoadProblem;
use crate::grants::Grant;

/// A version of `interlock:policy`. Versions that differ in their last number only are compatible,
/// in both directions, as long as the interfaces in question exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    V0_1,
    V0_2,
}

/// What a component's names say.
#[derive(Debug)]
pub(crate) struct ComponentInterfaces {
    pub(crate) version: Version,
    pub(crate) phases: Vec<Phase>,
    /// Names of its imports, as they are.
    pub(crate) imports: Vec<String>,
    /// Those of them that must be granted, by interface.
    pub(crate) capabilities: Vec<&'static str>,
}

const PACKAGE: &str = "interlock:policy/";
/// `types` has no functions; a component that uses them imports it all the same.
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

impl ComponentInterfaces {
    /// Reads a component's names.
    ///
    /// # Errors
    ///
    /// When one of them is of another version than those that this host speaks, of two versions at
    /// once, or of nothing that this host has.
    pub(crate) fn of(engine: &Engine, component: &Component) -> Result<Self, LoadProblem> {
        let ty = component.component_type();
        let imports: Vec<String> = ty.imports(engine).map(|(name, _)| name.to_owned()).collect();
        let exports: Vec<String> = ty.exports(engine).map(|(name, _)| name.to_owned()).collect();
        let version = version(&imports, &exports)?;
        let unknown: Vec<String> = imports
            .iter()
            .filter(|name| !ours(name).is_some_and(|(interface, _)| version.offers(interface)))
            .cloned()
            .collect();
        if !unknown.is_empty() {
            return Err(LoadProblem::Import(unknown));
        }
        let mut phases = Vec::new();
        let mut begins = false;
        for name in &exports {
            match ours(name) {
                Some(("lifecycle", _)) => begins = true,
                Some((interface, _)) => match version.phase(interface) {
                    Some(phase) => phases.push(phase),
                    None => return Err(LoadProblem::Phase(name.clone())),
                },
                // Exports of other packages are the component's own affair.
                None => {}
            }
        }
        if !begins {
            return Err(LoadProblem::NoLifecycle(version.as_str()));
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

/// The one version that all names of our package are of.
fn version(imports: &[String], exports: &[String]) -> Result<Version, LoadProblem> {
    let mut found: Option<(Version, &String)> = None;
    let names = imports.iter().map(|name| ("imports", name));
    for (what, name) in names.chain(exports.iter().map(|name| ("exports", name))) {
        let Some((_, version)) = ours(name) else { continue };
        let Some(version) = Version::ALL.into_iter().find(|v| version.starts_with(v.series()))
        else {
            return Err(LoadProblem::Version { what, name: name.clone() });
        };
        match found {
            Some((first, other)) if first != version => {
                return Err(LoadProblem::TwoVersions(other.clone(), name.clone()));
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
