//! The two clocks of a deadline: a thread that ticks, and the CPU time of the thread that calls.
//!
//! wasmtime compares a counter at every loop and every function, which costs next to nothing;
//! someone has to advance it. That wall clock alone would be unfair, though: on a machine that
//! is busy with a model, the system may put a caller aside for tens of milliseconds in the middle
//! of a call that takes five microseconds. So ticks only ask; the answer is in CPU time, which
//! only the policy itself can spend. A call that ends before the first tick, as nearly all do,
//! pays for neither.
//!
//! Nearly only: what an interrupt or a page fault takes stands in a thread's CPU time too, and on a
//! virtual machine so does what the machine below gives to others. That comes as one jump between
//! two ticks, where a loop uses all of them; hence no jump counts for more than half of a call's
//! time.
//!
//! A host that nobody calls should not wake a thousand times a second, so the thread sleeps when
//! no call is in flight and none has begun for a while; the next call wakes it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle, Thread};
use std::time::Duration;

use wasmtime::{Engine, UpdateDeadline};

use crate::limits::TICK;

/// Ticks without a call after which the thread sleeps: to wake it costs a caller microseconds,
/// so that it is not done between the requests of a host at work.
const IDLE_TICKS: u32 = 200;

/// Advances an engine's epoch every [`TICK`] while calls are made, until it is dropped.
#[derive(Debug)]
pub(crate) struct Ticker {
    calls: Arc<Calls>,
    // None only while being dropped.
    thread: Option<JoinHandle<()>>,
    handle: Thread,
}

/// What callers and the thread know of each other.
#[derive(Debug, Default)]
struct Calls {
    begun: AtomicU64,
    ended: AtomicU64,
    asleep: AtomicBool,
    stop: AtomicBool,
}

/// As long as it lives, the clock ticks.
#[derive(Debug)]
pub(crate) struct Ticking<'a>(&'a Calls);

impl Drop for Ticking<'_> {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::SeqCst);
    }
}

impl Ticker {
    pub(crate) fn start(engine: &Engine) -> io::Result<Self> {
        let calls = Arc::new(Calls::default());
        let (theirs, engine) = (Arc::clone(&calls), engine.clone());
        let thread = thread::Builder::new()
            .name("interlock-ticks".into())
            .spawn(move || tick(&theirs, || engine.increment_epoch()))?;
        let handle = thread.thread().clone();
        Ok(Self { calls, thread: Some(thread), handle })
    }

    /// A call begins.
    ///
    /// Of the two, the caller says that it is there and then looks whether the thread sleeps, the
    /// thread says that it sleeps and then looks whether someone is there: in any order of the
    /// four, one of them sees the other.
    pub(crate) fn call(&self) -> Ticking<'_> {
        self.calls.begun.fetch_add(1, Ordering::SeqCst);
        if self.calls.asleep.load(Ordering::SeqCst) {
            self.handle.unpark();
        }
        Ticking(&self.calls)
    }
}

fn tick(calls: &Calls, advance: impl Fn()) {
    let (mut seen, mut idle) = (0, 0);
    while !calls.stop.load(Ordering::SeqCst) {
        // Waking early only costs a deadline a tick of its wall time; see above.
        thread::park_timeout(TICK);
        advance();
        let ended = calls.ended.load(Ordering::SeqCst);
        let begun = calls.begun.load(Ordering::SeqCst);
        idle = if begun == seen && begun == ended { idle + 1 } else { 0 };
        seen = begun;
        if idle < IDLE_TICKS {
            continue;
        }
        calls.asleep.store(true, Ordering::SeqCst);
        while calls.begun.load(Ordering::SeqCst) == seen && !calls.stop.load(Ordering::SeqCst) {
            thread::park();
        }
        calls.asleep.store(false, Ordering::SeqCst);
        idle = 0;
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.calls.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It runs nothing that panics; and if it did, there would be nothing left to do.
            let _ = thread.join();
        }
    }
}

/// What one call may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Allowance {
    time: Duration,
    used: Duration,
    // The thread's CPU time at the last tick, if there was one.
    at: Option<Duration>,
}

impl Allowance {
    /// Ticks after which it is asked for the first time.
    pub(crate) const TICKS: u64 = 1;

    pub(crate) const fn new(time: Duration) -> Self {
        Self { time, used: Duration::ZERO, at: None }
    }

    /// A tick: is the time used up?
    ///
    /// It counts from the first tick, since to ask for the CPU time when the call begins would
    /// cost every call more than the rest of this. So a call that spins is stopped after its time
    /// and up to two ticks.
    pub(crate) fn overdue(&mut self) -> UpdateDeadline {
        self.overdue_at(thread_cpu_time())
    }

    fn overdue_at(&mut self, now: Duration) -> UpdateDeadline {
        let before = self.at.replace(now).unwrap_or(now);
        // See above: one jump is not the policy's doing.
        self.used += now.saturating_sub(before).min(self.time / 2);
        if self.used < self.time { UpdateDeadline::Continue(1) } else { UpdateDeadline::Interrupt }
    }
}

impl Allowance {
    /// Does what the host does for the call, on the host's account.
    pub(crate) fn excuse<T>(&mut self, run: impl FnOnce() -> T) -> T {
        // Before the first tick nothing is counted yet.
        let before = self.at.map(|_| thread_cpu_time());
        let done = run();
        if let (Some(at), Some(before)) = (&mut self.at, before) {
            *at += thread_cpu_time().saturating_sub(before);
        }
        done
    }
}

/// CPU time that the calling thread has used since it began.
pub(crate) fn thread_cpu_time() -> Duration {
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
    fn what_the_host_does_for_it_is_not_its_own_time() {
        let mut allowance = Allowance::new(Duration::from_millis(5));
        let busy = |time: Duration| {
            let began = thread_cpu_time();
            while thread_cpu_time() - began < time {
                std::hint::black_box(());
            }
        };
        assert!(matches!(allowance.overdue(), UpdateDeadline::Continue(1)));
        for _ in 0..2 {
            allowance.excuse(|| busy(Duration::from_millis(8)));
            assert!(matches!(allowance.overdue(), UpdateDeadline::Continue(1)));
        }
        busy(Duration::from_millis(8));
        assert!(matches!(allowance.overdue(), UpdateDeadline::Continue(1)));
        busy(Duration::from_millis(8));
        assert!(matches!(allowance.overdue(), UpdateDeadline::Interrupt));
    }

    /// A thousand swaps under load lost a request in 300 000: a call of microseconds, put aside for
    /// 96 ms, had used more than its 2 ms of CPU time when it came back.
    #[test]
    fn a_single_jump_of_the_clock_stops_nobody() {
        let mut allowance = Allowance::new(Duration::from_millis(2));
        let mut at = |micros| {
            matches!(allowance.overdue_at(Duration::from_micros(micros)), UpdateDeadline::Interrupt)
        };
        assert!(!at(100_000));
        assert!(!at(190_000), "a jump of 90 ms");
        assert!(!at(190_500));
        assert!(at(191_500), "1 + 0.5 + 1 ms");
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

    /// Ticks, and how many there were.
    fn ticker() -> (Arc<Calls>, Arc<AtomicU64>, JoinHandle<()>) {
        let (calls, ticks) = (Arc::new(Calls::default()), Arc::new(AtomicU64::new(0)));
        let (theirs, counted) = (Arc::clone(&calls), Arc::clone(&ticks));
        let thread = thread::spawn(move || {
            tick(&theirs, || {
                counted.fetch_add(1, Ordering::SeqCst);
            });
        });
        (calls, ticks, thread)
    }

    #[test]
    fn the_clock_stops_when_nobody_calls_and_goes_on_when_somebody_does() {
        let (calls, ticks, thread) = ticker();
        let ticker = Ticker { calls, handle: thread.thread().clone(), thread: Some(thread) };
        while !ticker.calls.asleep.load(Ordering::SeqCst) {
            thread::yield_now();
        }
        let stopped = ticks.load(Ordering::SeqCst);
        assert!(stopped >= u64::from(IDLE_TICKS));
        let call = ticker.call();
        // As long as the call goes on, so does the clock.
        while ticks.load(Ordering::SeqCst) < stopped + 2 * u64::from(IDLE_TICKS) {
            thread::yield_now();
        }
        drop(call);
        while !ticker.calls.asleep.load(Ordering::SeqCst) {
            thread::yield_now();
        }
    }
}
