//! The file that records go to: which one that is, and when it begins anew.
//!
//! # Invariants
//!
//! - A record lies in the file that is at the path when it is written: one that was moved or
//!   deleted (by logrotate, by hand) gets nothing any more.
//! - The file at the path, and each that is kept of the earlier ones, has no more than `bytes_max`
//!   bytes, unless a single record is longer. They are called like it with `.1`, `.2` and so on.
//! - A record is never in two files.

use std::ffi::OsString;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use interlock_log::Output;

use crate::RecordBounds;

/// Writes to the file at a path.
pub(super) struct Rotation {
    path: PathBuf,
    bounds: RecordBounds,
    /// Nothing while the one there was is gone and another could not be opened.
    open: Option<OpenFile>,
    /// The last thing written ended a line.
    between_lines: bool,
}

struct OpenFile {
    out: Output,
    /// Device and inode.
    identity: (u64, u64),
    /// A pipe or a device has no length and is not renamed.
    is_regular: bool,
}

impl Rotation {
    pub(super) fn open(path: &Path, bounds: RecordBounds) -> io::Result<Self> {
        let open = Some(OpenFile::at(path)?);
        Ok(Self { path: path.to_owned(), bounds, open, between_lines: true })
    }

    /// Sees to it that the open file is the one at the path and has room for so many bytes more.
    pub(super) fn settle(&mut self, more: u64) -> io::Result<()> {
        let moved = self.open.as_ref().is_some_and(|open| !open.is_at(&self.path));
        if moved {
            self.open = None;
            tracing::info!(
                path = %self.path.display(),
                "policies.record was moved or deleted; a new file is begun"
            );
        }
        if let Some(open) = &self.open
            && open.is_regular
            && let length @ 1.. = open.out.metadata()?.len()
            && length.saturating_add(more) > self.bounds.bytes_max
        {
            self.rotate(length)?;
        }
        if self.open.is_none() {
            self.open = Some(OpenFile::at(&self.path)?);
        }
        Ok(())
    }

    /// The same, unless a line is half written.
    pub(super) fn settle_between_lines(&mut self) -> io::Result<()> {
        if self.between_lines { self.settle(0) } else { Ok(()) }
    }

    /// Gives the file the first number, and each earlier one the next.
    fn rotate(&mut self, length: u64) -> io::Result<()> {
        // Where the path is a link, what it leads to is renamed, so that the link stays.
        let file = fs::canonicalize(&self.path)?;
        let kept = self.bounds.kept;
        if kept == 0 {
            fs::remove_file(&file)?;
        }
        // Up to a number that is free: where this is tried again and again, nothing is pushed out.
        let is_free = |number: &u32| numbered(&file, *number).symlink_metadata().is_err();
        let last = (1..kept).find(is_free).unwrap_or(kept);
        for number in (0..last).rev() {
            let (from, to) = (numbered(&file, number), numbered(&file, number + 1));
            fs::rename(&from, &to).map_err(|error| {
                let (from, to) = (from.display(), to.display());
                let why = format!("{from} is full and cannot be renamed to {to}: {error}");
                io::Error::new(error.kind(), why)
            })?;
        }
        self.open = None;
        tracing::info!(
            path = %self.path.display(), length, kept,
            "policies.record is full; a new file is begun"
        );
        Ok(())
    }
}

impl Write for Rotation {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // The rest of a line belongs to its beginning.
        if self.between_lines {
            self.settle(bytes.len() as u64)?;
        }
        let Some(open) = &mut self.open else { return Err(ErrorKind::NotFound.into()) };
        let written = open.out.write(bytes)?;
        self.between_lines = written == 0 || bytes[written - 1] == b'\n';
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// `policies.jsonl.2`; without a number it is the file itself.
fn numbered(file: &Path, number: u32) -> PathBuf {
    let mut name = OsString::from(file);
    if number > 0 {
        name.push(format!(".{number}"));
    }
    name.into()
}

impl OpenFile {
    fn at(path: &Path) -> io::Result<Self> {
        let file = open(path)?;
        let found = file.metadata()?;
        let (identity, is_regular) = (identity(&found), found.is_file());
        Ok(Self { out: Output::new(file.into()), identity, is_regular })
    }

    fn is_at(&self, path: &Path) -> bool {
        fs::metadata(path).is_ok_and(|found| identity(&found) == self.identity)
    }
}

fn identity(found: &Metadata) -> (u64, u64) {
    (found.dev(), found.ino())
}

/// Opens or makes it, without waiting for anybody: a named pipe that nobody reads would have us
/// wait.
fn open(path: &Path) -> io::Result<File> {
    let mut options = to_append();
    // Whoever may read it learns who asked for what: nobody else on this machine should.
    in_words(options.create(true).mode(0o600).open(path))
}

fn to_append() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.append(true).custom_flags(libc::O_NONBLOCK);
    options
}

fn in_words(opened: io::Result<File>) -> io::Result<File> {
    opened.map_err(|error| match error.raw_os_error() {
        Some(libc::ENXIO) => io::Error::other("it is a pipe that nobody reads, or a socket"),
        Some(libc::EISDIR) => io::Error::other("it is a folder"),
        _ => error,
    })
}

/// Looks whether records could be written there, and leaves everything as it is.
pub(super) fn check(path: &Path) -> io::Result<()> {
    match fs::metadata(path) {
        Ok(found) => {
            in_words(to_append().open(path))?;
            let kind = found.file_type();
            // Neither is renamed.
            if kind.is_fifo() || kind.is_char_device() {
                return Ok(());
            }
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    // A link leads to the folder in which the file is, or will be.
    let target = match fs::read_link(path) {
        Ok(target) => path.parent().unwrap_or(Path::new("")).join(target),
        Err(_) => path.to_owned(),
    };
    let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty());
    writable(folder.unwrap_or(Path::new(".")))
}

/// A file can be made and renamed in it.
fn writable(folder: &Path) -> io::Result<()> {
    let of = |what: &dyn std::fmt::Display| format!("its folder {}: {what}", folder.display());
    match fs::metadata(folder) {
        Ok(found) if found.is_dir() => {}
        Ok(_) => return Err(io::Error::other(of(&"it is no folder"))),
        Err(error) => return Err(io::Error::new(error.kind(), of(&error))),
    }
    interlock_files::can_write_in(folder).map_err(|error| io::Error::new(error.kind(), of(&error)))
}

#[cfg(test)]
mod tests;
