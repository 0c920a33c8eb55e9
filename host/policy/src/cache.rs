//! Compiled components, kept for the next start.
//!
//! A compiled component is machine code: to load one is to trust whoever wrote it as much as this
//! program. So only what this host compiled itself is kept, in a folder that nobody else may write
//! to, under a name made of the component's digest and of what it was compiled for; a sum at its
//! end tells what a crash or a full disk left of it.

use std::env;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use sha2::{Digest as _, Sha256};
use wasmtime::Engine;
use wasmtime::component::Component;

use crate::Unfit;
use crate::load::Digest;

const SUM: usize = 32;

/// What was not used for so long is deleted.
const KEPT_FOR: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Where compiled policies are kept when nobody says otherwise: a folder of the user's own.
/// `None`: the system does not say where such folders are.
pub fn default_cache() -> Option<PathBuf> {
    let absolute = |name: &str| env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let home = || absolute("HOME");
    let caches = match absolute("XDG_CACHE_HOME") {
        Some(caches) => caches,
        None if cfg!(target_os = "macos") => home()?.join("Library/Caches"),
        None => home()?.join(".cache"),
    };
    Some(caches.join("interlock/policies"))
}

/// A folder of compiled components.
pub(crate) struct Cache {
    folder: PathBuf,
}

impl Cache {
    /// Opens the folder, or says why there is no cache: a host without one only starts slower.
    pub(crate) fn open(folder: PathBuf, engine: &Engine) -> Option<Self> {
        let mut hasher = DefaultHasher::new();
        engine.precompile_compatibility_hash().hash(&mut hasher);
        env!("CARGO_PKG_VERSION").hash(&mut hasher);
        sweep(&folder);
        let folder = folder.join(format!("{:016x}", hasher.finish()));
        match private(&folder) {
            Ok(()) => Some(Self { folder }),
            Err(why) => {
                tracing::warn!(
                    folder = %folder.display(), %why,
                    "compiled policies are not kept: the folder cannot be used"
                );
                None
            }
        }
    }

    /// The component of this digest, from here or else compiled.
    pub(crate) fn component(
        &self,
        engine: &Engine,
        digest: &Digest,
        compile: impl FnOnce() -> Result<Component, Unfit>,
    ) -> Result<Component, Unfit> {
        let path = self.folder.join(digest.as_str());
        match self.read(engine, &path) {
            Ok(component) => return Ok(component),
            Err(why) if why.kind() == io::ErrorKind::NotFound => {}
            Err(why) => tracing::warn!(
                file = %path.display(), %why, "a compiled policy is unusable; compiling it again"
            ),
        }
        let component = compile()?;
        if let Err(why) = self.write(&component, &path) {
            tracing::warn!(file = %path.display(), %why, "a compiled policy is not kept");
        }
        Ok(component)
    }

    fn read(&self, engine: &Engine, path: &Path) -> io::Result<Component> {
        let file = File::open(path)?;
        ours_alone(&file.metadata()?)?;
        // It was used: see `sweep`.
        let _ = file.set_modified(SystemTime::now());
        let mut bytes = fs::read(path)?;
        let bad = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
        let at = bytes.len().checked_sub(SUM).ok_or_else(|| bad("it is too short".into()))?;
        let sum = bytes.split_off(at);
        if *Sha256::digest(&bytes) != *sum {
            return Err(bad("its sum is wrong".into()));
        }
        // SAFETY: these bytes are what `Component::serialize` gave this program: the folder and the
        // file belong to our user and nobody else may write to them (`private`, `ours_alone`), and
        // the sum says that they are whole. Another engine's or version's are in another folder,
        // and wasmtime checks that once more.
        unsafe { Component::deserialize(engine, &bytes) }.map_err(|e| bad(format!("{e:#}")))
    }

    fn write(&self, component: &Component, path: &Path) -> io::Result<()> {
        let bytes = component.serialize().map_err(|e| io::Error::other(format!("{e:#}")))?;
        // Two steps, so that nobody ever reads half of it.
        let draft = path.with_extension(format!("{}", std::process::id()));
        let written = (|| {
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&draft)?;
            file.write_all(&bytes)?;
            file.write_all(&Sha256::digest(&bytes))?;
            fs::rename(&draft, path)
        })();
        if written.is_err() {
            let _ = fs::remove_file(&draft);
        }
        written
    }
}

/// Deletes what nobody used for long, of other versions of this program too.
fn sweep(folder: &Path) {
    let old = |path: &Path| {
        let modified = fs::symlink_metadata(path).and_then(|found| found.modified());
        modified.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > KEPT_FOR))
    };
    for engine in fs::read_dir(folder).into_iter().flatten().flatten() {
        for file in fs::read_dir(engine.path()).into_iter().flatten().flatten() {
            if old(&file.path()) {
                let _ = fs::remove_file(file.path());
            }
        }
        // It stays unless it is empty.
        let _ = fs::remove_dir(engine.path());
    }
}

/// Makes the folder if need be, and sees to it that nobody else may write to it.
fn private(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let found = fs::symlink_metadata(folder)?;
    if !found.is_dir() {
        return Err(io::Error::other("it is no folder"));
    }
    ours_alone(&found)
}

fn ours_alone(found: &fs::Metadata) -> io::Result<()> {
    // SAFETY: it only asks, and cannot fail.
    let me = unsafe { libc::geteuid() };
    if found.uid() != me || found.mode() & 0o022 != 0 {
        return Err(io::Error::other("it is not ours alone: others may write to it"));
    }
    Ok(())
}
