//! The queue of lines and the thread that writes them.

use std::io::{self, ErrorKind, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use interlock_metrics::IntCounter;

/// What the owner of the lines does about those that are lost. Called without a lock.
pub trait Losses: Send + Sync + 'static {
    /// A line was lost, the first since all went well. On whichever thread it was lost.
    fn began(&self, _why: &str) {}

    /// What to write where lines are missing; nothing, if only lines of its own may stand there.
    fn mark(&self, _lines: u64, _why: &str) -> Vec<u8> {
        Vec::new()
    }

    /// Lines are written again. On the writer's thread.
    fn ended(&self, _lines: u64) {}
}

/// Takes lines from any thread and writes them on one of its own.
///
/// When it is dropped, what waits is still written if it can be, but nobody waits for that: see
/// [`LineWriter::flush`].
#[derive(Debug)]
pub struct LineWriter {
    shared: Arc<WriterShared>,
}

struct WriterShared {
    queue: Mutex<LineQueue>,
    /// There is something to write, or no more will come.
    filled: Condvar,
    /// Something was written, or given up.
    emptied: Condvar,
    /// How many lines were lost.
    dropped: OnceLock<IntCounter>,
    losses: Box<dyn Losses>,
}

#[derive(Debug)]
struct LineQueue {
    bytes: Vec<u8>,
    bytes_max: usize,
    /// Bytes that the thread has taken and not yet written.
    writing: usize,
    /// Lines that were dropped behind what lies in `bytes`.
    dropped: u64,
    /// Lost before anybody said where to count it.
    uncounted: u64,
    /// From the first line that is lost to the next one that is written.
    losing: bool,
    closing: bool,
}

/// What is written at once. A write to a pipe of no more than this is not mixed with another
/// process's, so whole lines of both stay whole.
const PIECE: usize = 4096;

/// What a queue keeps of its memory when it is empty.
const KEPT: usize = 64 * 1024;

const UNREAD: &str = "nobody read them in time";

impl LineWriter {
    /// Begins to write, with a thread of this name.
    ///
    /// # Errors
    ///
    /// When there is no room for a thread.
    pub fn start(
        name: &str,
        out: impl Write + Send + 'static,
        bytes_max: usize,
        losses: impl Losses,
    ) -> io::Result<Self> {
        let queue = LineQueue {
            bytes: Vec::new(),
            bytes_max,
            writing: 0,
            dropped: 0,
            uncounted: 0,
            losing: false,
            closing: false,
        };
        let shared = Arc::new(WriterShared {
            queue: Mutex::new(queue),
            filled: Condvar::new(),
            emptied: Condvar::new(),
            dropped: OnceLock::new(),
            losses: Box::new(losses),
        });
        let writer =
            Writer { shared: Arc::clone(&shared), out, unsaid: 0, why: String::new(), torn: false };
        // Not joined by anybody: it may wait for a reader until the process ends.
        thread::Builder::new().name(name.to_owned()).spawn(move || writer.run())?;
        Ok(Self { shared })
    }

    /// Counts lost lines in this counter, those that were lost already included.
    pub fn count_in(&self, dropped: IntCounter) {
        let mut queue = self.shared.queue();
        if let Ok(()) = self.shared.dropped.set(dropped) {
            let before = std::mem::take(&mut queue.uncounted);
            self.shared.count(&mut queue, before);
        }
    }

    /// Changes the bound of the queue.
    pub fn set_bytes_max(&self, bytes_max: usize) {
        self.shared.queue().bytes_max = bytes_max;
    }

    /// Queues one line, or several; its end is part of it. Never waits.
    pub fn push(&self, line: &[u8]) {
        let mut queue = self.shared.queue();
        let room = queue.bytes_max.saturating_sub(queue.bytes.len() + queue.writing);
        if queue.dropped == 0 && line.len() <= room {
            let wake = queue.bytes.is_empty();
            queue.bytes.extend_from_slice(line);
            drop(queue);
            if wake {
                self.shared.filled.notify_one();
            }
            return;
        }
        self.drop_lines(queue, lines(line));
    }

    /// Whether a line would be dropped now, for whoever can save itself the making of one: it is to
    /// say so with [`LineWriter::skip`].
    pub fn is_full(&self) -> bool {
        let queue = self.shared.queue();
        queue.dropped > 0 || queue.bytes.len() + queue.writing >= queue.bytes_max
    }

    /// A line was not made, since there is no room for it.
    pub fn skip(&self) {
        self.drop_lines(self.shared.queue(), 1);
    }

    fn drop_lines(&self, mut queue: MutexGuard<'_, LineQueue>, lines: u64) {
        let wake = queue.dropped == 0;
        queue.dropped += lines;
        let first = self.shared.lose(&mut queue, lines);
        drop(queue);
        // The thread may sleep: a line that is longer than the bound is dropped from an empty queue.
        if wake {
            self.shared.filled.notify_one();
        }
        if first {
            self.shared.losses.began(UNREAD);
        }
    }

    /// Waits until all is written, or given up, or for so long; whether there is nothing left.
    pub fn flush(&self, most: Duration) -> bool {
        let until = Instant::now() + most;
        let mut queue = self.shared.queue();
        while !queue.is_idle() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.shared.emptied.wait_timeout(queue, left);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

impl Drop for LineWriter {
    fn drop(&mut self) {
        self.shared.queue().closing = true;
        self.shared.filled.notify_one();
    }
}

impl LineQueue {
    fn is_idle(&self) -> bool {
        self.bytes.is_empty() && self.writing == 0 && self.dropped == 0
    }
}

impl WriterShared {
    fn queue(&self) -> MutexGuard<'_, LineQueue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts lost lines; whether they are the first since all went well.
    fn lose(&self, queue: &mut LineQueue, lines: u64) -> bool {
        self.count(queue, lines);
        !std::mem::replace(&mut queue.losing, true)
    }

    fn count(&self, queue: &mut LineQueue, lines: u64) {
        match self.dropped.get() {
            Some(dropped) => dropped.inc_by(lines),
            None => queue.uncounted += lines,
        }
    }
}

impl std::fmt::Debug for WriterShared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("queue", &self.queue).finish_non_exhaustive()
    }
}

/// The thread's side.
struct Writer<W> {
    shared: Arc<WriterShared>,
    out: W,
    /// Lines that were lost and are not marked yet, and why.
    unsaid: u64,
    why: String,
    /// The last thing written is half a line.
    torn: bool,
}

impl<W: Write> Writer<W> {
    fn run(mut self) {
        let mut batch = Vec::new();
        loop {
            let mut queue = self.shared.queue();
            queue.writing = 0;
            self.shared.emptied.notify_all();
            while queue.bytes.is_empty() && queue.dropped == 0 {
                if queue.closing {
                    return;
                }
                queue = self.shared.filled.wait(queue).unwrap_or_else(PoisonError::into_inner);
            }
            batch.clear();
            batch.shrink_to(KEPT);
            std::mem::swap(&mut batch, &mut queue.bytes);
            let dropped = std::mem::take(&mut queue.dropped);
            // Not 0 for a mark alone, or it would look as if there were nothing to wait for.
            queue.writing = batch.len().max(1);
            drop(queue);
            self.write(&batch);
            if dropped > 0 {
                self.mark(dropped);
            }
        }
    }

    fn write(&mut self, batch: &[u8]) {
        // A mark alone says what is missing by itself.
        if batch.is_empty() {
            return;
        }
        if self.unsaid > 0 && !self.say() {
            return self.fail(lines(batch));
        }
        if let Err((error, rest)) = self.put(batch) {
            self.why = error.to_string();
            self.fail(lines(&batch[batch.len() - rest..]));
        } else {
            self.recovered();
        }
    }

    /// Behind what was written last, so many were dropped; what lies in the queue came later.
    fn mark(&mut self, dropped: u64) {
        if self.unsaid == 0 {
            UNREAD.clone_into(&mut self.why);
        }
        self.unsaid += dropped;
        if self.say() {
            self.recovered();
        }
    }

    /// Marks the place of lines that are missing; whether it could.
    fn say(&mut self) -> bool {
        let mark = self.shared.losses.mark(self.unsaid, &self.why);
        self.put(&mark).inspect_err(|(error, _)| self.why = error.to_string()).is_ok()
    }

    fn fail(&mut self, lost: u64) {
        self.unsaid += lost;
        let first = self.shared.lose(&mut self.shared.queue(), lost);
        if first {
            self.shared.losses.began(&self.why);
        }
    }

    fn recovered(&mut self) {
        let unsaid = std::mem::take(&mut self.unsaid);
        if unsaid > 0 {
            self.shared.queue().losing = false;
            self.shared.losses.ended(unsaid);
        }
    }

    /// Writes all, or says how many bytes at its end were not.
    fn put(&mut self, mut bytes: &[u8]) -> Result<(), (io::Error, usize)> {
        if !bytes.is_empty() && self.torn {
            self.out.write_all(b"\n").map_err(|error| (error, bytes.len()))?;
            self.torn = false;
        }
        while !bytes.is_empty() {
            let piece = piece(bytes);
            match self.out.write(&bytes[..piece]) {
                Ok(0) => return Err((ErrorKind::WriteZero.into(), bytes.len())),
                Ok(written) => {
                    self.torn = bytes[written - 1] != b'\n';
                    bytes = &bytes[written..];
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err((error, bytes.len())),
            }
        }
        Ok(())
    }
}

/// How much to write at once: lines that are whole, no more than [`PIECE`] unless one is longer.
fn piece(bytes: &[u8]) -> usize {
    if bytes.len() <= PIECE {
        return bytes.len();
    }
    let end = |at: usize| at + 1;
    match bytes[..PIECE].iter().rposition(|&byte| byte == b'\n') {
        Some(at) => end(at),
        None => bytes.iter().position(|&byte| byte == b'\n').map_or(bytes.len(), end),
    }
}

fn lines(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |lines, &byte| lines + u64::from(byte == b'\n'))
}

#[cfg(test)]
mod tests;
