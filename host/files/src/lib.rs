//! Regular files, opened without waiting and read with a bound: whoever reads a file that a person
//! names does it here.
//!
//! # Invariants
//!
//! - Only regular files are opened, and opening waits for nobody: a folder, a FIFO, a device or a
//!   socket is refused by name. Links are followed, unless the caller says otherwise.
//! - Nothing is read without a bound, also when the file grows meanwhile.
//!
//! # Not here
//!
//! Which file it is: an error says what is wrong with the file, and the caller knows its path and
//! the setting that named it. Writing, but for whether it could be done. Files of the system's own
//! (`/proc`), which have no length.

use std::ffi::{CStr, CString};
use std::fs::{self, File, FileType, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// A file is longer than any of its kind. It lies inside the [`io::Error`], whose kind is
/// [`ErrorKind::FileTooLarge`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{bytes} bytes, the limit is {limit}")]
pub struct TooLong {
    /// The file's length, or as much of it as was read.
    pub bytes: u64,
    /// Most bytes that are read of such a file.
    pub limit: u64,
}

impl TooLong {
    /// The length that an error is about, if that is what it is about.
    pub fn of(error: &io::Error) -> Option<Self> {
        error.get_ref()?.downcast_ref().copied()
    }
}

/// Whether files can be made and renamed in a folder; nothing is made to find out.
///
/// # Errors
///
/// As the system says, when they cannot.
pub fn can_write_in(folder: &Path) -> io::Result<()> {
    let name = CString::new(folder.as_os_str().as_bytes())?;
    // SAFETY: it reads a path that ends with NUL.
    match unsafe { libc::access(name.as_ptr(), libc::W_OK | libc::X_OK) } {
        0 if is_of_the_system(&name) => {
            Err(io::Error::other("it is the system's own (as /proc and /sys), and takes no files"))
        }
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether the kernel makes up what a folder holds. The rights there look as everywhere, and nobody
/// can make a file.
#[cfg(target_os = "linux")]
fn is_of_the_system(folder: &CStr) -> bool {
    const KINDS: [i64; 7] = [
        libc::PROC_SUPER_MAGIC,
        libc::SYSFS_MAGIC,
        libc::CGROUP_SUPER_MAGIC,
        libc::CGROUP2_SUPER_MAGIC,
        libc::DEBUGFS_MAGIC,
        libc::SECURITYFS_MAGIC,
        libc::DEVPTS_SUPER_MAGIC,
    ];
    // SAFETY: all of its fields are numbers, which may be 0.
    let mut found: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: it reads a path that ends with NUL, and fills what it is given.
    let read = unsafe { libc::statfs(folder.as_ptr(), &raw mut found) };
    read == 0 && KINDS.contains(&(found.f_type as i64))
}

#[cfg(not(target_os = "linux"))]
fn is_of_the_system(_: &CStr) -> bool {
    false
}

/// Opens a regular file for reading; links are followed.
///
/// # Errors
///
/// As the system says; and when it is something else: opening a FIFO would wait for whoever writes
/// to it, and reading a device might never end.
pub fn open(path: &Path) -> io::Result<File> {
    // Looked at before it is opened, since opening a device may do something to it.
    regular(fs::metadata(path)?.file_type())?;
    open_with(path, 0)
}

/// As [`open`]; a link is refused.
///
/// # Errors
///
/// As for [`open`].
pub fn open_no_link(path: &Path) -> io::Result<File> {
    regular(fs::symlink_metadata(path)?.file_type())?;
    open_with(path, libc::O_NOFOLLOW)
}

fn open_with(path: &Path, flags: libc::c_int) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let file = options.read(true).custom_flags(libc::O_NONBLOCK | flags).open(path)?;
    // Again, behind the open file: in between, another one may have taken its place.
    regular(file.metadata()?.file_type())?;
    Ok(file)
}

/// Reads a whole regular file of at most so many bytes.
///
/// # Errors
///
/// As for [`open`]; and when it is longer, with both numbers ([`TooLong`]).
pub fn read(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    read_open(&mut open(path)?, bytes_max)
}

/// Reads an open file from its present position, as [`read`] does.
///
/// # Errors
///
/// As for [`read`].
pub fn read_open(file: &mut File, bytes_max: u64) -> io::Result<Vec<u8>> {
    let length = file.metadata()?.len();
    if length > bytes_max {
        return Err(too_long(length, bytes_max));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
    // It may grow meanwhile.
    file.take(bytes_max.saturating_add(1)).read_to_end(&mut bytes)?;
    match bytes.len() as u64 {
        length if length > bytes_max => Err(too_long(length, bytes_max)),
        _ => Ok(bytes),
    }
}

fn too_long(bytes: u64, limit: u64) -> io::Error {
    io::Error::new(ErrorKind::FileTooLarge, TooLong { bytes, limit })
}

/// As [`read`]; none if there is no such file.
///
/// # Errors
///
/// As for [`read`], but for a file that is not there.
pub fn read_if_there(path: &Path, bytes_max: u64) -> io::Result<Option<Vec<u8>>> {
    match read(path, bytes_max) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        read => read.map(Some),
    }
}

/// Reads a whole regular file of at most so many bytes of text.
///
/// # Errors
///
/// As for [`read`]; and when it is not UTF-8, with the place of the first byte that is not.
pub fn read_text(path: &Path, bytes_max: u64) -> io::Result<String> {
    String::from_utf8(read(path, bytes_max)?).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let byte = error.as_bytes()[at];
        let why = format!("it is no text: byte {byte:#04x} at {at} is not UTF-8");
        io::Error::new(ErrorKind::InvalidData, why)
    })
}

fn regular(kind: FileType) -> io::Result<()> {
    let what = if kind.is_file() {
        return Ok(());
    } else if kind.is_dir() {
        "a folder"
    } else if kind.is_fifo() {
        "a FIFO"
    } else if kind.is_socket() {
        "a socket"
    } else if kind.is_symlink() {
        "a link"
    } else {
        "a device"
    };
    Err(io::Error::new(ErrorKind::InvalidInput, format!("it is {what} and no regular file")))
}

#[cfg(test)]
mod tests;
