//! Stops the process on SIGTERM and SIGINT.
//!
//! # Invariants
//!
//! - Signals are received on a thread of their own: whatever other threads are stuck in, the process
//!   ends at the second signal, and a bounded time after the first.
//! - From [`Stop::listen`] on, neither signal ends the process without a line in the log.

use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::log;

/// Tells when SIGTERM or SIGINT has come.
pub(crate) struct Stop(watch::Receiver<bool>);

impl Stop {
    /// Begins to receive signals. A process that has not ended `time_max` after the first is ended.
    pub(crate) fn listen(time_max: Duration) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (tell, told) = watch::channel(false);
        let signals = {
            // They belong to the runtime that hears them.
            let _inside = runtime.enter();
            Signals {
                terminate: signal(SignalKind::terminate())?,
                interrupt: signal(SignalKind::interrupt())?,
            }
        };
        std::thread::Builder::new()
            .name("signals".into())
            .spawn(move || runtime.block_on(signals.obey(tell, time_max)))
            .context("cannot start the thread that receives signals")?;
        Ok(Self(told))
    }

    /// Returns when the process is told to stop.
    pub(crate) async fn told(&mut self) {
        if self.0.wait_for(|told| *told).await.is_err() {
            // The thread that receives signals ends only with the process.
            std::future::pending::<()>().await;
        }
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    async fn obey(mut self, tell: watch::Sender<bool>, time_max: Duration) {
        self.next().await;
        tell.send_replace(true);
        tokio::select! {
            () = self.next() => tracing::warn!("a second signal came; stopping at once"),
            () = tokio::time::sleep(time_max) => {
                tracing::error!(waited = ?time_max, "the host did not stop in time; ending the process");
            }
        }
        leave(1)
    }
}

/// Ends the process while others of its threads are at work.
///
/// Not by `exit`, which takes the C++ libraries' globals apart: under the feet of the thread that
/// uses them, or after waiting for the very device that is stuck.
pub(crate) fn leave(status: i32) -> ! {
    log::flush();
    // SAFETY: ends the process and returns to nobody. What was to be said has been, or nobody reads it.
    unsafe { libc::_exit(status) }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// Set in the process that a test starts of itself.
    const CHILD: &str = "INTERLOCK_TEST_STOP_AFTER_MS";

    /// A process all of whose threads are stuck, but the one that hears signals.
    #[test]
    fn stuck_if_told_so() {
        let Some(time_max) = std::env::var_os(CHILD) else { return };
        let time_max = time_max.to_str().and_then(|ms| ms.parse().ok()).expect("milliseconds");
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).enable_all().build().expect("a runtime");
        let _stop = Stop::listen(Duration::from_millis(time_max)).expect("a thread");
        let forever = || loop {
            std::thread::park();
        };
        runtime.block_on(async {
            let (stuck, is_stuck) = tokio::sync::oneshot::channel();
            tokio::spawn(async move {
                let _ = stuck.send(());
                forever();
            });
            let _ = is_stuck.await;
            eprintln!("stuck");
            forever();
        });
    }

    fn child(time_max: Duration) -> Child {
        let mut child = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "stop::tests::stuck_if_told_so", "--nocapture"])
            .env(CHILD, time_max.as_millis().to_string())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts");
        let mut lines = BufReader::new(child.stderr.take().expect("it is piped")).lines();
        assert!(lines.any(|line| line.is_ok_and(|line| line == "stuck")), "it is stuck");
        child
    }

    fn terminate(child: &Child) {
        let pid = i32::try_from(child.id()).expect("a process id");
        // SAFETY: a signal to a child that was not waited for, so the id is still its own.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGTERM) }, 0);
    }

    /// Waits until the child has ended, and returns its exit status.
    fn ended(mut child: Child) -> Option<i32> {
        let until = std::time::Instant::now() + Duration::from_secs(60);
        while std::time::Instant::now() < until {
            if let Some(status) = child.try_wait().expect("it is ours") {
                return status.code();
            }
            std::thread::yield_now();
        }
        child.kill().expect("it is ours");
        panic!("it did not end");
    }

    #[test]
    fn the_process_ends_some_time_after_it_was_told_to_whatever_is_stuck() {
        let child = child(Duration::from_millis(10));
        terminate(&child);
        assert_eq!(ended(child), Some(1));
    }

    #[test]
    fn the_process_ends_when_it_is_told_twice_whatever_is_stuck() {
        let child = child(Duration::from_secs(3600));
        terminate(&child);
        // Two signals that come at once may be one, so it is told until it hears.
        let mut told = child;
        let until = std::time::Instant::now() + Duration::from_secs(60);
        while told.try_wait().expect("it is ours").is_none() {
            assert!(std::time::Instant::now() < until, "it did not end");
            terminate(&told);
            std::thread::yield_now();
        }
        assert_eq!(ended(told), Some(1));
    }
}
