//! Records in a file, one line each.

use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::time::Duration;

use interlock_log::{LineWriter, Losses};
use serde::Serialize;
use serde::ser::Error as _;

use super::rotation::{self, Rotation};
use super::{Record, RecordSink};
use crate::{PolicyMetrics, RecordBounds};

/// Records that wait to be written: a second or two of a busy host.
const WAITING_BYTES_MAX: usize = 8 << 20;

/// Longest wait for the last records to be written. A disk that works has them by then, on a busy
/// machine too.
const FLUSH_MAX: Duration = Duration::from_secs(5);

/// A file that records are appended to, by a thread of its own. Nobody waits for the file. When it
/// is full, or no longer at its path, a new one is begun.
///
/// When it is dropped, what waits is written first, if that takes no longer than 5 s.
#[derive(Debug)]
pub struct RecordFile {
    path: PathBuf,
    lines: LineWriter,
    file: SharedRotation,
}

impl RecordFile {
    /// Opens or makes the file.
    ///
    /// # Errors
    ///
    /// When it cannot be opened for appending, or there is no thread to write it.
    pub fn open(path: &Path, bounds: RecordBounds, metrics: &PolicyMetrics) -> io::Result<Self> {
        let file = SharedRotation(Arc::new(Mutex::new(Rotation::open(path, bounds)?)));
        let losses = LossLog { path: path.to_owned() };
        let lines = LineWriter::start("policy-records", file.clone(), WAITING_BYTES_MAX, losses)?;
        lines.count_in(metrics.records_dropped.clone());
        Ok(Self { path: path.to_owned(), lines, file })
    }

    /// Looks whether it could be opened, without making or changing anything.
    ///
    /// # Errors
    ///
    /// Why it could not: also when its folder cannot take the earlier files.
    pub fn check(path: &Path) -> io::Result<()> {
        rotation::check(path)
    }

    /// Lets go of a file that was moved or deleted, and begins the one that belongs at the path, as
    /// SIGHUP asks for; the next record would do so as well. Waits for the disk.
    pub fn reopen(&self) {
        let settled = match self.file.0.try_lock() {
            Ok(mut file) => file.settle_between_lines(),
            // It is being written to, and looked at before the next record.
            Err(TryLockError::WouldBlock) => Ok(()),
            Err(TryLockError::Poisoned(file)) => file.into_inner().settle_between_lines(),
        };
        if let Err(why) = settled {
            let path = self.path.display();
            tracing::error!(%path, %why, "policies.record cannot be opened again");
        }
    }
}

/// The file of the thread that writes, and of whoever looks after it.
#[derive(Clone)]
struct SharedRotation(Arc<Mutex<Rotation>>);

impl std::fmt::Debug for SharedRotation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SharedRotation").finish_non_exhaustive()
    }
}

impl Write for SharedRotation {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
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
                tracing::error!(%error, "a record of policies cannot be written as JSON");
                self.lines.skip();
            }
        }
    }
}

impl RecordFile {
    /// Waits until what was taken is written; whether it was.
    pub(super) fn flush(&self) -> bool {
        self.lines.flush(FLUSH_MAX)
    }
}

impl Drop for RecordFile {
    fn drop(&mut self) {
        if !self.flush() {
            let path = self.path.display();
            tracing::warn!(%path, waited = ?FLUSH_MAX, "the last records of policies are not written");
        }
    }
}

struct LossLog {
    path: PathBuf,
}

impl Losses for LossLog {
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

/// A record that cannot be written as JSON, for whatever reason, is lost alone and whole.
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
    fn a_record_that_cannot_be_written_as_json_is_an_error_and_no_panic() {
        assert_eq!(line(1).expect("it is JSON"), b"1\n");
        line(Panics).expect_err("it cannot");
    }
}
