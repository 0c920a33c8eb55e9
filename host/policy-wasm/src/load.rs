//! From a file to a component, or to the reason why not.

use std::path::Path;

use interlock_files::TooLong;
use interlock_policy_api::PolicyFailure;
use interlock_request::without_logins;
use sha2::{Digest as _, Sha256};

use crate::PolicySource;
use crate::builtin::BUILTINS;
use crate::grants::{Grant, line};
use crate::limits::COMPONENT_BYTES_MAX;

/// A policy could not be loaded. At start the host must not go on without it; later the one that
/// was there stays.
#[derive(Debug, thiserror::Error)]
#[error("policy {policy:?} ({}): {why}", without_logins(&from.to_string()))]
pub struct LoadFailed {
    /// The operator's name for it.
    pub policy: String,
    /// Where it came from.
    pub from: PolicySource,
    /// What is wrong.
    pub why: LoadProblem,
}

/// What can be wrong with a policy when it is loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadProblem {
    /// Its configuration has problems.
    #[error("{}", .0.join("; "))]
    Config(Vec<String>),
    /// The file cannot be read.
    #[error("cannot read the file: {0}")]
    Unreadable(#[from] std::io::Error),
    /// The file is too large.
    #[error("the file has {bytes} bytes, at most {COMPONENT_BYTES_MAX} are allowed")]
    TooLarge {
        /// The size of the file.
        bytes: u64,
    },
    /// It is something else.
    #[error("not a WebAssembly component: {0}")]
    NotAComponent(&'static str),
    /// It claims to be a component and wasmtime does not think so.
    #[error("not a valid component: {0}")]
    Invalid(String),
    /// It was made for another version of `interlock:policy`.
    #[error(
        "it {what} {name}; this host speaks interlock:policy@0.2.0 and 0.1.0: build it against one \
         of them, or use the host that it was made for"
    )]
    Version {
        /// `imports` or `exports`.
        what: &'static str,
        /// The interface, with its version.
        name: String,
    },
    /// It was made for two versions at once.
    #[error("it speaks two versions of interlock:policy, {0} and {1}: build it against one")]
    TwoVersions(String, String),
    /// It wants something that the host does not offer.
    #[error(
        "it imports {}, which this host does not offer; a policy of interlock:policy@0.2.0 can \
         import log, metrics, state, content and http, and nothing of WASI: build it for \
         wasm32-unknown-unknown, or stub WASI out",
        .0.join(" and ")
    )]
    Import(Vec<String>),
    /// It takes part in a phase that does not exist. To load it anyway would be to ignore it
    /// there without a word.
    #[error(
        "it exports {0}, a phase that this host does not have; those of 0.2 are lifecycle, identify, \
         transform, route, admit, stream-guard, events and account, those of 0.1 lifecycle, admit and \
         account"
    )]
    Phase(String),
    /// There is no way to begin.
    #[error("it does not export interlock:policy/lifecycle@{0}")]
    NoLifecycle(&'static str),
    /// An interface has the right name and the wrong functions.
    #[error("an interface is not what interlock:policy@{0} says: {1}")]
    Interface(&'static str, String),
    /// The operator did not grant what it needs.
    #[error("it needs {}, which it was not granted; if it may have that, write {line}", names(.missing))]
    Grants {
        /// What is missing.
        missing: Vec<Grant>,
        /// What its table in the configuration would say.
        line: String,
    },
    /// It does not accept its settings.
    #[error("it does not accept its settings: {0}")]
    Settings(String),
    /// Its first instance did not come to life.
    #[error("it failed to start: {0}")]
    Start(PolicyFailure),
    /// What it says of itself is unusable.
    #[error("its descriptor: {0}")]
    Descriptor(String),
}

impl LoadProblem {
    pub(crate) fn grants(missing: Vec<Grant>, grants: &[Grant]) -> Self {
        let line = line(grants, &missing);
        Self::Grants { missing, line }
    }

    /// May the same file do next time? There was no room for it, or no time: the machine was busy.
    pub(crate) fn passes(&self) -> bool {
        use interlock_policy_api::FailureKind::{Deadline, Instantiate};
        matches!(self, Self::Start(failure) if matches!(failure.kind, Deadline | Instantiate))
    }
}

fn names(grants: &[Grant]) -> String {
    grants.iter().map(Grant::to_string).collect::<Vec<_>>().join(" and ")
}

/// The bytes of a component, and the name that their content gives them.
pub(crate) struct ComponentBytes {
    pub(crate) bytes: std::borrow::Cow<'static, [u8]>,
    pub(crate) digest: Digest,
}

/// SHA-256 of a component, in lower-case hex.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
pub struct Digest(String);

impl Digest {
    /// Of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// All 64 digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// As many as a person needs.
    pub fn short(&self) -> &str {
        &self.0[..12]
    }
}

impl std::fmt::Display for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.short())
    }
}

impl ComponentBytes {
    pub(crate) fn read(source: &PolicySource) -> Result<Self, LoadProblem> {
        match source {
            PolicySource::Builtin(name) => {
                let builtin = BUILTINS.iter().find(|(builtin, _)| builtin == name);
                let (_, bytes) = builtin.ok_or_else(|| {
                    LoadProblem::Config(vec![format!("there is no policy builtin:{name}")])
                })?;
                Self::new(std::borrow::Cow::Borrowed(*bytes))
            }
            PolicySource::File(path) => Self::new(file(path)?.into()),
        }
    }

    pub(crate) fn new(bytes: std::borrow::Cow<'static, [u8]>) -> Result<Self, LoadProblem> {
        let size = bytes.len() as u64;
        if size > COMPONENT_BYTES_MAX {
            return Err(LoadProblem::TooLarge { bytes: size });
        }
        has_a_components_head(&bytes)?;
        let digest = Digest::of(&bytes);
        Ok(Self { bytes, digest })
    }
}

fn file(path: &Path) -> Result<Vec<u8>, LoadProblem> {
    interlock_files::read(path, COMPONENT_BYTES_MAX).map_err(|error| match TooLong::of(&error) {
        Some(TooLong { bytes, .. }) => LoadProblem::TooLarge { bytes },
        None => error.into(),
    })
}

/// Says what the file is instead of a component, which wasmtime's parser would say in terms of
/// bytes.
fn has_a_components_head(bytes: &[u8]) -> Result<(), LoadProblem> {
    match bytes {
        [0, b'a', b's', b'm', 0x0d, 0, 1, 0, ..] => Ok(()),
        [0, b'a', b's', b'm', 1, 0, 0, 0, ..] => Err(LoadProblem::NotAComponent(
            "it is a core module, as a compiler makes without wasm-component-ld; wit/README.md says how to build one",
        )),
        [0, b'a', b's', b'm', ..] => {
            Err(LoadProblem::NotAComponent("it is in a version of the format that is unknown here"))
        }
        _ => Err(LoadProblem::NotAComponent("it is not WebAssembly at all")),
    }
}
