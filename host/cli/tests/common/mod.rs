//! The program itself, as these tests run it.
#![allow(dead_code, reason = "each test is a crate of its own and takes what it needs")]
#![allow(unreachable_pub, reason = "as above: nobody outside names it")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

/// A program that runs ours, or ours itself, without what the environment of whoever runs the tests
/// says of a host.
pub fn program(name: &str) -> Command {
    let mut command = Command::new(name);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("INTERLOCK_") {
            command.env_remove(&name);
        }
    }
    command
}

/// Our own, in the folder of all tests.
pub fn interlock() -> Command {
    let mut command = program(env!("CARGO_BIN_EXE_interlock"));
    command.current_dir(env!("CARGO_TARGET_TMPDIR"));
    command
}

/// A folder that is gone when the test is.
pub struct Folder(pub PathBuf);

impl Folder {
    /// An empty one, of this name among those of all tests.
    pub fn new(name: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).expect("there is room");
        Self(path)
    }

    /// Writes a file into it.
    pub fn put(&self, name: &str, text: &str) {
        fs::write(self.0.join(name), text).expect("there is room");
    }

    /// The program, run in it.
    pub fn interlock(&self) -> Command {
        let mut command = interlock();
        command.current_dir(&self.0);
        command
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A process that ends with the test, if it has not ended as it should.
pub struct Running(pub Child);

impl Running {
    /// Starts it. Its stdout must be piped.
    pub fn start(command: &mut Command) -> Self {
        Self(command.spawn().expect("our own binary runs"))
    }

    /// Where it says on stdout that it listens.
    pub fn address(&mut self) -> String {
        let mut line = String::new();
        let stdout = self.0.stdout.as_mut().expect("it is piped");
        BufReader::new(stdout).read_line(&mut line).expect("it says where it listens");
        let address = line.split_once("http://").expect("an address").1;
        address.split_once(',').expect("more is said").0.to_owned()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
