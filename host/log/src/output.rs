//! Where lines go.

use std::fs::{File, Metadata};
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};

/// A file, pipe or terminal that is waited for, whoever opened it.
///
/// stderr is shared with other processes, and one of them may have made it non-blocking: then
/// "not now" is no reason to lose a line.
#[derive(Debug)]
pub struct Output(File);

impl Output {
    /// An output that writes to this descriptor.
    pub fn new(to: OwnedFd) -> Self {
        Self(File::from(to))
    }

    /// Writes to the same file as this one.
    ///
    /// # Errors
    ///
    /// When the process has no descriptor left.
    pub fn same_as(other: &impl AsFd) -> io::Result<Self> {
        Ok(Self::new(other.as_fd().try_clone_to_owned()?))
    }

    /// The metadata of the file: its type and length.
    ///
    /// # Errors
    ///
    /// As the system says.
    pub fn metadata(&self) -> io::Result<Metadata> {
        self.0.metadata()
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.0.write(bytes) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    poll(&mut [PollFd::new(&self.0, PollFlags::OUT)], None)?;
                }
                answer => return answer,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
