//! What is no file is refused, in words and without waiting.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use super::*;

/// A folder that is gone when the test is.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let name = format!("interlock-files-{}-{name}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).expect("there is room for a folder");
        Self(path)
    }

    fn put(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, bytes).expect("there is room for a file");
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn refused(path: &Path) -> String {
    read(path, 10).expect_err("it was read").to_string()
}

#[test]
fn only_regular_files_are_read_and_nobody_waits() {
    let scratch = Scratch::new("kinds");
    let pipe = scratch.0.join("pipe");
    let name = CString::new(pipe.as_os_str().as_bytes()).expect("no NUL in it");
    // SAFETY: reads a path that ends with NUL, and makes a file of it.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    let socket = scratch.0.join("socket");
    let _listener = UnixListener::bind(&socket).expect("a socket");
    let dangling = scratch.0.join("dangling");
    symlink("nowhere", &dangling).expect("a link");
    let link = scratch.0.join("link");
    symlink(&pipe, &link).expect("a link");
    for (path, says) in [
        (scratch.0.as_path(), "it is a folder and no regular file"),
        (&pipe, "it is a FIFO and no regular file"),
        (&link, "it is a FIFO and no regular file"),
        (&socket, "it is a socket and no regular file"),
        (Path::new("/dev/zero"), "it is a device and no regular file"),
        (&dangling, "No such file or directory (os error 2)"),
        (&scratch.0.join("a\0b"), "file name contained an unexpected NUL byte"),
    ] {
        assert_eq!(refused(path), says, "{}", path.display());
    }
}

#[test]
fn a_file_is_read_up_to_its_bound_and_a_longer_one_is_refused_with_both_numbers() {
    let scratch = Scratch::new("lengths");
    assert_eq!(read(&scratch.put("ten", &[7; 10]), 10).expect("it fits"), [7; 10]);
    let eleven = scratch.put("eleven", &[7; 11]);
    let error = read(&eleven, 10).expect_err("it does not fit");
    assert_eq!(error.to_string(), "11 bytes, the limit is 10");
    assert_eq!(TooLong::of(&error), Some(TooLong { bytes: 11, limit: 10 }));
    // Sparse: were it read, there would be no room for it.
    let huge = scratch.0.join("huge");
    File::create(&huge).and_then(|file| file.set_len(1 << 40)).expect("a sparse file");
    assert_eq!(refused(&huge), "1099511627776 bytes, the limit is 10");
}

/// Files of the system have no length until they are read, as one that grows has another one then.
#[cfg(target_os = "linux")]
#[test]
fn a_file_that_is_longer_than_it_said_is_read_up_to_the_bound() {
    assert_eq!(refused(Path::new("/proc/self/maps")), "11 bytes, the limit is 10");
}

#[test]
fn what_is_no_text_is_refused_with_the_byte_that_is_not() {
    let scratch = Scratch::new("text");
    let bad = scratch.put("bad", b"abc\xff");
    let error = read_text(&bad, 10).expect_err("it is no text");
    assert_eq!(error.to_string(), "it is no text: byte 0xff at 3 is not UTF-8");
    assert_eq!(read_text(&scratch.put("good", "ä".as_bytes()), 10).expect("text"), "ä");
}

#[test]
fn a_link_is_followed_unless_the_caller_says_otherwise() {
    let scratch = Scratch::new("links");
    let file = scratch.put("file", b"x");
    let link = scratch.0.join("link");
    symlink(&file, &link).expect("a link");
    open(&link).expect("it is followed");
    let error = open_no_link(&link).expect_err("it is a link");
    assert_eq!(error.to_string(), "it is a link and no regular file");
    open_no_link(&file).expect("it is a file");
}

#[test]
fn a_file_that_may_not_be_read_is_refused() {
    let scratch = Scratch::new("secret");
    let file = scratch.put("file", b"x");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o000)).expect("it is ours");
    // SAFETY: it only asks.
    if unsafe { libc::geteuid() } != 0 {
        assert_eq!(refused(&file), "Permission denied (os error 13)");
    }
}
