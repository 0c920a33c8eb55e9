//! Records in a file, one line each.

use std::fs::{File, OpenOptions};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use interlock_log::{LineWriter, Losses, Output};
use serde::Serialize;
use serde::ser::Error as _;

use super::{Record, RecordSink};
use crate::PolicyMetrics;

/// Records that wait to be written: a second or two of a busy host.
const WAITING_BYTES_MAX: usize = 8 << 20;

/// Longest wait for the last records to be written. A disk that works has them by then, on a busy
/// machine too.
const FLUSH_MAX: Duration = Duration::from_secs(5);

/// A file that records are appended to, by a thread of its own. Nobody waits for the file.
///
/// When it is dropped, what waits is written first, if that takes no longer than 5 s.
#[derive(Debug)]
pub struct RecordFile {
    path: PathBuf,
    lines: LineWriter,
}

impl RecordFile {
    /// Opens or makes the file.
    ///
    /// # Errors
    ///
    /// When it cannot be opened for appending, or there is no thread to write it.
    pub fn open(path: &Path, metrics: &PolicyMetrics) -> io::Result<Self> {
        let out = Output::new(open(path)?.into());
        let losses = NotRecorded { path: path.to_owned() };
        let lines = LineWriter::start("policy-records", out, WAITING_BYTES_MAX, losses)?;
        lines.count_in(metrics.records_dropped.clone());
        Ok(Self { path: path.to_owned(), lines })
    }
}

/// Opens it without waiting for anybody: a named pipe that nobody reads would have us wait.
fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.create(true).append(true);
    // Whoever may read it learns who asked for what: nobody else on this machine should.
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt as _;
        options.mode(0o600).custom_flags(libc::O_NONBLOCK);
    }
    options.open(path).map_err(|error| match error.raw_os_error() {
        Some(libc::ENXIO) => io::Error::other("it is a pipe that nobody reads"),
        _ => error,
    })
}

impl RecordSink for RecordFile {
    fn take(&self, record: Record) {
        if self.lines.is_full() {
            return self.lines.skip();
        }
        match line(&record) {
            Ok(line) => self.lines.push(&line),
            // A bug, which the next such record will show as well.
            Err(error) => {
                tracing::error!(%error, "a record of policies cannot be spelled");
                self.lines.skip();
            }
        }
    }
}

impl Drop for RecordFile {
    fn drop(&mut self) {
        if !self.lines.flush(FLUSH_MAX) {
            let path = self.path.display();
            tracing::warn!(%path, waited = ?FLUSH_MAX, "the last records of policies are not written");
        }
    }
}

struct NotRecorded {
    path: PathBuf,
}

impl Losses for NotRecorded {
    // Once: a full disk would otherwise fill the log as well.
    fn began(&self, why: &str) {
        let path = self.path.display();
        tracing::error!(%path, why, "records of policies are lost");
    }

    fn ended(&self, lost: u64) {
        let path = self.path.display();
        tracing::warn!(%path, lost, "records of policies are written again");
    }
}

/// One that cannot be spelled, for whatever reason, is lost alone and whole.
fn line(record: impl Serialize) -> serde_json::Result<Vec<u8>> {
    let text = catch_unwind(AssertUnwindSafe(|| serde_json::to_vec(&record)));
    let mut line =
        text.unwrap_or_else(|_| Err(serde_json::Error::custom("writing it as JSON panicked")))?;
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
mod tests {
    use serde::Serializer;

    use super::*;

    struct Panics;

    impl Serialize for Panics {
        fn serialize<S: Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            std::panic::resume_unwind(Box::new("oh"))
        }
    }

    #[test]
    fn a_record_that_cannot_be_spelled_is_an_error_and_no_panic() {
        assert_eq!(line(1).expect("it can be spelled"), b"1\n");
        line(Panics).expect_err("it cannot");
    }
}
