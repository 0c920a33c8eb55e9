//! Compiled components, kept for the next start.
//!
//! A compiled component is machine code: to load one is to trust whoever wrote it as much as this
//! program. So only what this host compiled itself is kept, in a folder that nobody else may write
//! to nor put another in the place of, under a name made of the component's digest and of what it
//! was compiled for; a sum at its end tells what a crash or a full disk left of it.
//!
//! ```text
//! FOLDER/0123456789abcdef/0123…64 digits…cdef
//!        what it is for   which component
//! ```
//!
//! Whatever is called otherwise in there is not ours, and is left alone.

use std::env;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, OpenOptions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use sha2::{Digest as _, Sha256};
use wasmtime::Engine;
use wasmtime::component::Component;

use crate::LoadProblem;
use crate::load::Digest;

const SUM: usize = 32;

/// Longest compiled component that is read back; of the largest component's size it is many times.
const COMPILED_BYTES_MAX: u64 = 1 << 30;

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

/// Why compiled policies could not be kept in this folder; it is not made to find out.
pub fn unusable_cache(folder: &Path) -> Option<String> {
    let exists = |folder: &&Path| folder.symlink_metadata().is_ok();
    let there = folder.ancestors().find(exists).unwrap_or(Path::new("."));
    let looked = match there == folder {
        true => private(folder).map(drop),
        false => can_hold(there),
    };
    looked.err().map(|why| why.to_string())
}

/// A folder of ours can be made in there.
fn can_hold(folder: &Path) -> io::Result<()> {
    let real = fs::canonicalize(folder)?;
    if !real.is_dir() {
        return Err(io::Error::other(format!("{} is no folder", folder.display())));
    }
    interlock_files::can_write_in(&real)
        .map_err(|why| io::Error::new(why.kind(), format!("{}: {why}", folder.display())))?;
    real.ancestors().try_for_each(|above| guarded(above, &fs::symlink_metadata(above)?))
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
        let opened = private(&folder).and_then(|root| {
            sweep(&root);
            private(&root.join(format!("{:016x}", hasher.finish())))
        });
        match opened {
            Ok(folder) => Some(Self { folder }),
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
        compile: impl FnOnce() -> Result<Component, LoadProblem>,
    ) -> Result<Component, LoadProblem> {
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
        // What is checked is what is read: one file, opened once, and no link to another.
        let mut file = interlock_files::open_no_link(path)?;
        ours_alone(&file.metadata()?)?;
        // It was used: see `sweep`.
        let _ = file.set_modified(SystemTime::now());
        let mut bytes = interlock_files::read_open(&mut file, COMPILED_BYTES_MAX)?;
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
            // What another process of this number left.
            let _ = fs::remove_file(&draft);
            let mut file =
                OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
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

/// Deletes what nobody used for long, of other versions of this program too. Someone may have set
/// the cache to a folder that holds other things: those stay.
fn sweep(folder: &Path) {
    for engine in entries(folder) {
        let found = fs::symlink_metadata(&engine);
        let ours = found.is_ok_and(|found| found.is_dir() && ours_alone(&found).is_ok());
        if !ours || !is_hex(&engine, 16) {
            continue;
        }
        entries(&engine).filter(|file| is_kept(file) && is_old(file)).for_each(|file| {
            let _ = fs::remove_file(file);
        });
        // It stays unless it is empty.
        let _ = fs::remove_dir(engine);
    }
}

fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path())
}

fn is_hex(path: &Path, digits: usize) -> bool {
    let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    let name = path.file_stem().map(OsStr::as_bytes).unwrap_or_default();
    name.len() == digits && name.iter().all(|byte| hex(*byte)) && path.extension().is_none()
}

/// A compiled component, or a draft of one.
fn is_kept(path: &Path) -> bool {
    let number = |of: &OsStr| !of.is_empty() && of.as_bytes().iter().all(u8::is_ascii_digit);
    path.extension().is_none_or(number) && is_hex(&path.with_extension(""), 64)
}

fn is_old(path: &Path) -> bool {
    let Ok(found) = fs::symlink_metadata(path) else { return false };
    let age = found.modified().ok().and_then(|at| at.elapsed().ok());
    found.is_file() && age.is_some_and(|age| age > KEPT_FOR)
}

/// Makes the folder if need be, and sees to it that nobody else may write to it, nor to any above
/// it; its path without links.
fn private(folder: &Path) -> io::Result<PathBuf> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let found = fs::symlink_metadata(folder)?;
    if !found.is_dir() {
        return Err(io::Error::other("it is no folder"));
    }
    ours_alone(&found)?;
    // Links on the way to it were followed once and for all.
    let folder = fs::canonicalize(folder)?;
    for above in folder.ancestors().skip(1) {
        guarded(above, &fs::symlink_metadata(above)?)?;
    }
    Ok(folder)
}

/// Whoever may write to a folder may put another in the place of what is in it, unless the folder
/// is sticky, as those for temporary files are.
fn guarded(folder: &Path, found: &fs::Metadata) -> io::Result<()> {
    let (owners, others) = (found.uid() == 0 || found.uid() == me(), found.mode() & 0o022 != 0);
    if owners && (!others || found.mode() & 0o1000 != 0) {
        return Ok(());
    }
    let folder = folder.display();
    Err(io::Error::other(format!(
        "others may put another in its place: they may write to {folder}"
    )))
}

fn ours_alone(found: &fs::Metadata) -> io::Result<()> {
    if found.uid() != me() || found.mode() & 0o022 != 0 {
        return Err(io::Error::other("it is not ours alone: others may write to it"));
    }
    Ok(())
}

fn me() -> u32 {
    // SAFETY: it only asks, and cannot fail.
    unsafe { libc::geteuid() }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    /// A folder that is gone when the test is.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let name = format!("interlock-cache-{}-{name}", std::process::id());
            let path = fs::canonicalize(env::temp_dir()).unwrap().join(name);
            DirBuilder::new().mode(0o700).create(&path).expect("there is room for a folder");
            Self(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn allow(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_folder_in_one_that_others_may_write_to_is_not_used() {
        let scratch = Scratch::new("above");
        let folder = scratch.0.join("caches/policies");
        assert_eq!(private(&folder).unwrap(), folder);
        allow(&scratch.0, 0o777);
        let why = private(&folder).unwrap_err().to_string();
        assert!(why.contains("others may put another in its place"), "{why}");
        // As everyone's folder for temporary files is.
        allow(&scratch.0, 0o1777);
        private(&folder).unwrap();
    }

    #[test]
    fn a_folder_that_could_not_be_used_is_told_of_and_none_is_made_to_find_out() {
        let scratch = Scratch::new("looked");
        let folder = scratch.0.join("caches/policies");
        assert_eq!(unusable_cache(&folder), None);
        assert!(!scratch.0.join("caches").exists());
        File::create(scratch.0.join("caches")).unwrap();
        let why = unusable_cache(&folder).expect("a file is in its place");
        assert!(why.ends_with("caches is no folder"), "{why}");
        fs::remove_file(scratch.0.join("caches")).unwrap();
        allow(&scratch.0, 0o777);
        let why = unusable_cache(&folder).expect("others may write there");
        assert!(why.contains("others may put another in its place"), "{why}");
    }

    #[test]
    fn only_what_is_old_and_ours_is_swept() {
        let scratch = Scratch::new("sweep");
        let long_ago = SystemTime::now() - KEPT_FOR - Duration::from_secs(60);
        let (digest, engine) = ("0123456789abcdef".repeat(4), "00000000000000aa");
        let put = |path: &str, at: SystemTime| {
            let path = scratch.0.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            allow(path.parent().unwrap(), 0o700);
            File::create(&path).unwrap().set_modified(at).unwrap();
            path
        };
        let swept = [
            put(&format!("{engine}/{digest}"), long_ago),
            put(&format!("{engine}/{digest}.4711"), long_ago),
        ];
        let kept = [
            put(&format!("{engine}/{}", digest.replace('0', "1")), SystemTime::now()),
            put(&format!("{engine}/notes"), long_ago),
            put(&format!("{engine}/{digest}.txt"), long_ago),
            put(&format!("photos/{digest}"), long_ago),
            put("letter", long_ago),
        ];
        symlink(scratch.0.join("photos"), scratch.0.join("00000000000000bb")).unwrap();
        sweep(&scratch.0);
        assert!(swept.iter().all(|path| !path.exists()));
        for path in kept {
            assert!(path.exists(), "{} was deleted", path.display());
        }
    }
}
