//! Regular files, opened without waiting and read with a bound.

use std::fs::{self, File, FileType, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// Opens a regular file for reading; links are followed.
///
/// # Errors
///
/// As the system says; and when it is something else: opening a FIFO would wait for whoever writes
/// to it, and reading a device might never end.
pub fn open(path: &Path) -> io::Result<File> {
    // Looked at before it is opened, since opening a device may do something to it.
    regular(fs::metadata(path)?.file_type())?;
    // And again behind the open file: in between, another one may have taken its place.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    regular(file.metadata()?.file_type())?;
    Ok(file)
}

/// Reads a whole regular file of at most so many bytes.
///
/// # Errors
///
/// As for [`open`]; and when it is longer, with both numbers.
pub fn read(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut file = open(path)?;
    let length = file.metadata()?.len();
    let too_long = |length| io::Error::other(format!("{length} bytes, the limit is {bytes_max}"));
    if length > bytes_max {
        return Err(too_long(length));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
    // It may grow meanwhile.
    file.by_ref().take(bytes_max.saturating_add(1)).read_to_end(&mut bytes)?;
    match bytes.len() as u64 {
        length if length > bytes_max => Err(too_long(length)),
        _ => Ok(bytes),
    }
}

/// As [`read`]; none if there is no such file.
///
/// # Errors
///
/// As for [`read`], but for a file that is not there.
pub fn read_if_there(path: &Path, bytes_max: u64) -> io::Result<Option<Vec<u8>>> {
    match read(path, bytes_max) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        read => read.map(Some),
    }
}

/// Fills `start` with a file's first bytes, and says how many there were.
pub(crate) fn beginning(path: &Path, start: &mut [u8]) -> io::Result<usize> {
    let mut file = open(path)?;
    let mut length = 0;
    while length < start.len() {
        match file.read(&mut start[length..])? {
            0 => break,
            more => length += more,
        }
    }
    Ok(length)
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
    } else {
        "a device"
    };
    Err(io::Error::new(io::ErrorKind::InvalidInput, format!("it is {what} and no regular file")))
}
