//! The two clocks of a deadline: a thread that ticks, and the CPU time of the thread that calls.
//!
//! wasmtime compares a counter at every loop and every function, which costs next to nothing;
//! someone has to advance it. That wall clock alone would be unfair, though: on a machine that
//! is busy with a model, the system may put a caller aside for tens of milliseconds in the middle
//! of a call that takes five microseconds. So when the ticks are used up, the call gets its
//! deadline once more in CPU time, which only the policy itself can spend.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use wasmtime::{Engine, UpdateDeadline};

use crate::limits::TICK;

/// Advances an engine's epoch every [`TICK`] until it is dropped.
#[derive(Debug)]
pub(crate) struct Ticker {
    stop: Arc<AtomicBool>,
    // None only while being dropped.
    thread: Option<JoinHandle<()>>,
}

impl Ticker {
    pub(crate) fn start(engine: &Engine) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, engine) = (Arc::clone(&stop), engine.clone());
        let thread = thread::Builder::new().name("interlock-ticks".into()).spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                // Waking early only costs a deadline a tick of its wall time; see above.
                thread::park_timeout(TICK);
                engine.increment_epoch();
            }
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It runs nothing that panics; and if it did, there would be nothing left to do.
            let _ = thread.join();
        }
    }
}

/// What one call may take.
#[derive(Debug)]
pub(crate) struct Allowance {
    time: Duration,
    // The thread's CPU time when the ticks were used up.
    overdue_since: Option<Duration>,
}

impl Allowance {
    pub(crate) const fn new(time: Duration) -> Self {
        Self { time, overdue_since: None }
    }

    /// Ticks that surely cover the time: the first one may come at once.
    pub(crate) fn ticks(&self) -> u64 {
        u64::try_from(self.time.as_nanos().div_ceil(TICK.as_nanos())).unwrap_or(u64::MAX / 2) + 1
    }

    /// The ticks are used up: is the time?
    pub(crate) fn overdue(&mut self) -> UpdateDeadline {
        let now = thread_cpu_time();
        let since = *self.overdue_since.get_or_insert(now);
        if now.saturating_sub(since) < self.time {
            UpdateDeadline::Continue(1)
        } else {
            UpdateDeadline::Interrupt
        }
    }
}

/// CPU time that the calling thread has used since it began.
fn thread_cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a timespec of ours, which lives across the call.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert_eq!(failed, 0, "every system that we run on has a clock per thread");
    Duration::new(time.tv_sec.try_into().unwrap_or(0), time.tv_nsec.try_into().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_that_was_put_aside_is_not_overdue() {
        let mut allowance = Allowance::new(Duration::from_millis(5));
        for _ in 0..3 {
            assert!(matches!(allowance.overdue(), UpdateDeadline::Continue(1)));
            thread::sleep(Duration::from_millis(6));
        }
    }

    #[test]
    fn a_caller_that_works_is() {
        let mut allowance = Allowance::new(Duration::from_millis(5));
        let began = thread_cpu_time();
        while matches!(allowance.overdue(), UpdateDeadline::Continue(_)) {
            std::hint::black_box(());
        }
        assert!(thread_cpu_time() - began >= Duration::from_millis(5));
    }

    #[test]
    fn ticks_cover_the_time() {
        assert_eq!(Allowance::new(Duration::from_millis(5)).ticks(), 6);
        assert_eq!(Allowance::new(Duration::from_micros(1)).ticks(), 2);
    }
}
