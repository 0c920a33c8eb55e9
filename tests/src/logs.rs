//! Captures what this process logs, so that a test can say what must be in it.

use std::io::Write;
use std::sync::{Arc, Condvar, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

/// Everything logged by this process since the first call of [`Logs::captured`].
#[derive(Debug, Clone, Default)]
pub struct Logs(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    written: Mutex<Vec<u8>>,
    more: Condvar,
}

static LOGS: LazyLock<Logs> = LazyLock::new(|| {
    let logs = Logs::default();
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_ansi(false)
        .with_writer(logs.clone())
        .init();
    logs
});

impl Logs {
    /// Starts capturing, if that has not happened yet. Tests in one process share the log, so
    /// they look for their own request ids.
    pub fn captured() -> Self {
        LOGS.clone()
    }

    /// The lines that contain all of `parts`.
    pub fn lines_with(&self, parts: &[&str]) -> Vec<String> {
        let written = self.0.written.lock().unwrap_or_else(PoisonError::into_inner);
        lines_with(&written, parts)
    }

    /// Waits for a line that contains all of `parts`.
    ///
    /// # Panics
    ///
    /// When none comes.
    pub fn wait_for(&self, parts: &[&str]) {
        const PATIENCE: Duration = Duration::from_secs(20);
        let written = self.0.written.lock().unwrap_or_else(PoisonError::into_inner);
        let absent = |written: &mut Vec<u8>| lines_with(written, parts).is_empty();
        let (_written, waited) = self
            .0
            .more
            .wait_timeout_while(written, PATIENCE, absent)
            .unwrap_or_else(PoisonError::into_inner);
        assert!(!waited.timed_out(), "nothing with {parts:?} was logged within {PATIENCE:?}");
    }
}

fn lines_with(written: &[u8], parts: &[&str]) -> Vec<String> {
    String::from_utf8_lossy(written)
        .lines()
        .filter(|line| parts.iter().all(|part| line.contains(part)))
        .map(str::to_owned)
        .collect()
}

impl Write for Logs {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.0.written.lock().unwrap_or_else(PoisonError::into_inner).write(bytes);
        self.0.more.notify_all();
        written
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Logs {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}
