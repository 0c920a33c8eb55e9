//! Records in a file, one line each.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::{self, JoinHandle};

use interlock_metrics::IntCounter;
use serde::Serialize;
use serde::ser::Error as _;

use super::{Record, RecordSink};
use crate::PolicyMetrics;

/// Records that wait to be written: a second or two of a busy host, some megabytes.
const WAITING_MAX: usize = 4096;

/// A file that records are appended to, by a thread of its own.
///
/// When it is dropped, what waits is written first.
#[derive(Debug)]
pub struct RecordFile {
    records: Option<SyncSender<Record>>,
    writer: Option<JoinHandle<()>>,
    dropped: IntCounter,
}

impl RecordFile {
    /// Opens or makes the file.
    ///
    /// # Errors
    ///
    /// When it cannot be opened for appending, or there is no thread to write it.
    pub fn open(path: &Path, metrics: &PolicyMetrics) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.create(true).append(true);
        // Whoever may read it learns who asked for what: nobody else on this machine should.
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let file = options.open(path)?;
        let (records, waiting) = sync_channel(WAITING_MAX);
        let dropped = metrics.records_dropped.clone();
        let writer = Writer { path: path.to_owned(), file, dropped: dropped.clone() };
        let thread = thread::Builder::new().name("policy-records".into());
        let writer = thread.spawn(move || writer.run(&waiting))?;
        Ok(Self { records: Some(records), writer: Some(writer), dropped })
    }
}

impl RecordSink for RecordFile {
    fn take(&self, record: Record) {
        let Some(records) = &self.records else { return };
        match records.try_send(record) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => self.dropped.inc(),
        }
    }
}

impl Drop for RecordFile {
    fn drop(&mut self) {
        self.records = None;
        if let Some(writer) = self.writer.take() {
            // A writer that panicked has said so.
            let _ = writer.join();
        }
    }
}

struct Writer {
    path: PathBuf,
    file: File,
    dropped: IntCounter,
}

impl Writer {
    fn run(self, waiting: &Receiver<Record>) {
        let Self { path, file, dropped } = self;
        let mut file = BufWriter::new(file);
        let mut failed = false;
        while let Ok(first) = waiting.recv() {
            // Whatever is there goes in one write; then it can be read.
            let batch = std::iter::once(first).chain(waiting.try_iter());
            let written = batch.map(|record| line(&mut file, record)).filter(Result::is_err);
            let lost = written.count();
            let result = file.flush();
            if lost > 0 || result.is_err() {
                dropped.inc_by(u64::try_from(lost).unwrap_or(u64::MAX).max(1));
                // Once: a full disk would otherwise fill the log as well.
                if !std::mem::replace(&mut failed, true) {
                    let path = path.display();
                    tracing::error!(%path, ?result, "records of policies cannot be written");
                }
            } else {
                failed = false;
            }
        }
    }
}

/// One that cannot be written, for whatever reason, is lost alone.
fn line(file: &mut impl Write, record: impl Serialize) -> io::Result<()> {
    let text = catch_unwind(AssertUnwindSafe(|| serde_json::to_vec(&record)))
        .unwrap_or_else(|_| Err(serde_json::Error::custom("writing it as JSON panicked")))?;
    file.write_all(&text)?;
    file.write_all(b"\n")
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
    fn a_record_that_cannot_be_written_is_lost_alone_and_whole() {
        let mut file = Vec::new();
        line(&mut file, 1).expect("there is room");
        line(&mut file, Panics).expect_err("it is none");
        line(&mut file, 2).expect("there is room");
        assert_eq!(String::from_utf8(file).as_deref(), Ok("1\n2\n"));
    }
}
