//! From a file to something that can be instantiated, or to the reason why not.

use std::fs;
use std::path::Path;

use interlock_admission::PolicyFailure;
use wasmtime::component::{Component, InstancePre};

use crate::host::{BUILTINS, Shared};
use crate::instance::GuestState;
use crate::limits::COMPONENT_BYTES_MAX;
use crate::wit::exports::interlock::policy as phases;
use crate::{PolicyConfig, PolicySource};

/// A policy could not be loaded; the host must not start without it.
#[derive(Debug, thiserror::Error)]
#[error("policy {policy:?} ({from}): {why}")]
pub struct LoadFailed {
    /// The operator's name for it.
    pub policy: String,
    /// Where it came from.
    pub from: PolicySource,
    /// What is wrong.
    pub why: Unfit,
}

/// What can be wrong with a policy at start.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// Its configuration has problems.
    #[error("{}", .0.join("; "))]
    Config(Vec<String>),
    /// The file cannot be read.
    #[error("cannot read the file: {0}")]
    Unreadable(#[from] std::io::Error),
    /// The file is too large.
    #[error("the file has {bytes} bytes, at most {COMPONENT_BYTES_MAX} are allowed")]
    TooLarge {
        /// Its size.
        bytes: u64,
    },
    /// It is something else.
    #[error("not a WebAssembly component: {0}")]
    NotAComponent(&'static str),
    /// It claims to be a component and wasmtime does not think so.
    #[error("not a valid component: {0}")]
    Invalid(String),
    /// It was made for another version of `interlock:policy`.
    #[error("it {what} {name}; this host speaks interlock:policy@0.1.0")]
    Version {
        /// `imports` or `exports`.
        what: &'static str,
        /// The interface, with its version.
        name: String,
    },
    /// It wants something that the host does not offer.
    #[error("it imports {}, which this host does not offer; a policy can import interlock:policy/log@0.1.0 and nothing else", .0.join(" and "))]
    Import(Vec<String>),
    /// It takes part in a phase that does not exist. To load it anyway would be to ignore it
    /// there without a word.
    #[error(
        "it exports {0}, a phase that this host does not have; it has lifecycle, admit and account"
    )]
    Phase(String),
    /// There is no way to begin.
    #[error("it does not export interlock:policy/lifecycle@0.1.0")]
    NoLifecycle,
    /// An interface has the right name and the wrong functions.
    #[error("an interface is not what interlock:policy@0.1.0 says: {0}")]
    Interface(String),
    /// It does not accept its settings.
    #[error("it does not accept its settings: {0}")]
    Settings(String),
    /// Its first instance did not come to life.
    #[error("it failed to start: {0}")]
    Start(PolicyFailure),
    /// What it says of itself is unusable.
    #[error("its {field} must be 1 to {max} bytes of printable ASCII, got {value:?}")]
    Descriptor {
        /// `name` or `version`.
        field: &'static str,
        /// How long it may be.
        max: usize,
        /// What it said, cut.
        value: String,
    },
}

/// A component that is linked and known to fit: all that an instance is made from.
pub(crate) struct Fit {
    pub(crate) pre: InstancePre<GuestState>,
    pub(crate) lifecycle: phases::lifecycle::GuestIndices,
    pub(crate) admit: Option<phases::admit::GuestIndices>,
    pub(crate) account: Option<phases::account::GuestIndices>,
}

const PACKAGE: &str = "interlock:policy/";
/// Versions that differ in their last number only are compatible, in both directions, as long as
/// the interfaces in question exist.
const SERIES: &str = "0.1.";
const PHASES: [&str; 3] = ["lifecycle", "admit", "account"];
/// `types` has no functions; a component that uses its words imports it all the same.
const OFFERED: [&str; 2] = ["types", "log"];

impl Fit {
    pub(crate) fn new(shared: &Shared, config: &PolicyConfig) -> Result<Self, Unfit> {
        let problems = config.problems();
        if !problems.is_empty() {
            return Err(Unfit::Config(problems));
        }
        let read;
        let bytes = match &config.source {
            PolicySource::Builtin(name) => BUILTINS
                .iter()
                .find_map(|(builtin, bytes)| (builtin == name).then_some(*bytes))
                .expect("an unknown one is a problem of the configuration, checked above"),
            PolicySource::File(path) => {
                read = file(path)?;
                &read
            }
        };
        has_a_components_head(bytes)?;
        let component =
            Component::new(&shared.engine, bytes).map_err(|e| Unfit::Invalid(format!("{e:#}")))?;
        let phases = wanted_phases(shared, &component)?;

        let pre = shared.linker.instantiate_pre(&component);
        let pre = pre.map_err(|e| Unfit::Interface(format!("{e:#}")))?;
        let has = |phase: &str| phases.iter().any(|p| p == phase);
        let mismatch = |e: wasmtime::Error| Unfit::Interface(format!("{e:#}"));
        Ok(Self {
            lifecycle: phases::lifecycle::GuestIndices::new(&pre).map_err(mismatch)?,
            admit: has("admit")
                .then(|| phases::admit::GuestIndices::new(&pre).map_err(mismatch))
                .transpose()?,
            account: has("account")
                .then(|| phases::account::GuestIndices::new(&pre).map_err(mismatch))
                .transpose()?,
            pre,
        })
    }
}

fn file(path: &Path) -> Result<Vec<u8>, Unfit> {
    let bytes = fs::metadata(path)?.len();
    if bytes > COMPONENT_BYTES_MAX {
        return Err(Unfit::TooLarge { bytes });
    }
    Ok(fs::read(path)?)
}

/// Says what the file is instead of a component, which wasmtime's parser would say in terms of
/// bytes.
fn has_a_components_head(bytes: &[u8]) -> Result<(), Unfit> {
    match bytes {
        [0, b'a', b's', b'm', 0x0d, 0, 1, 0, ..] => Ok(()),
        [0, b'a', b's', b'm', 1, 0, 0, 0, ..] => Err(Unfit::NotAComponent(
            "it is a core module, as a compiler makes without wasm-component-ld; wit/README.md says how to build one",
        )),
        [0, b'a', b's', b'm', ..] => {
            Err(Unfit::NotAComponent("it is in a version of the format that is unknown here"))
        }
        _ => Err(Unfit::NotAComponent("it is not WebAssembly at all")),
    }
}

/// The phases that a component takes part in, once all its names are understood.
fn wanted_phases(shared: &Shared, component: &Component) -> Result<Vec<String>, Unfit> {
    let ty = component.component_type();
    let mut unknown = Vec::new();
    for (name, _) in ty.imports(&shared.engine) {
        match ours(name) {
            Some((_, false)) => return Err(Unfit::Version { what: "imports", name: name.into() }),
            Some((interface, true)) if OFFERED.contains(&interface) => {}
            _ => unknown.push(name.to_owned()),
        }
    }
    if !unknown.is_empty() {
        return Err(Unfit::Import(unknown));
    }
    let mut phases = Vec::new();
    for (name, _) in ty.exports(&shared.engine) {
        match ours(name) {
            Some((_, false)) => return Err(Unfit::Version { what: "exports", name: name.into() }),
            Some((phase, true)) if PHASES.contains(&phase) => phases.push(phase.to_owned()),
            Some(_) => return Err(Unfit::Phase(name.into())),
            // Exports of other packages are the component's own affair.
            None => {}
        }
    }
    if !phases.iter().any(|phase| phase == "lifecycle") {
        return Err(Unfit::NoLifecycle);
    }
    Ok(phases)
}

/// For a name of our package: the interface, and whether we speak its version.
fn ours(name: &str) -> Option<(&str, bool)> {
    let name = name.strip_prefix(PACKAGE)?;
    let (interface, version) = name.split_once('@').unwrap_or((name, ""));
    Some((interface, version.starts_with(SERIES)))
}
