//! The thread that looks after the policies of a host.

use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Weak};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use super::PolicyManager;

/// How often a policy on probation is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// A thread that looks after policies, until this is dropped.
#[derive(Debug)]
pub struct ManagerThread {
    stop: Arc<AtomicBool>,
    handle: Thread,
    // Nothing comes from there; it is closed when the thread ends.
    ended: Receiver<Infallible>,
}

impl ManagerThread {
    /// Starts the thread.
    pub(super) fn start(
        manager: Weak<PolicyManager>,
        every: Option<Duration>,
    ) -> std::io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let (running, ended) = sync_channel(0);
        let thread = thread::Builder::new().name("interlock-policies".into()).spawn(move || {
            let _running: SyncSender<Infallible> = running;
            run(&manager, every, &stopped);
        })?;
        Ok(Self { stop, handle: thread.thread().clone(), ended })
    }
}

/// Longest wait for that thread. It may be reading a file on a disk that does not answer.
const END_MAX: Duration = Duration::from_secs(1);

impl Drop for ManagerThread {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.handle.unpark();
        let _ = self.ended.recv_timeout(END_MAX);
    }
}

fn run(manager: &Weak<PolicyManager>, every: Option<Duration>, stop: &AtomicBool) {
    let mut looked = Instant::now();
    // A change may put a generation on probation at any time, so it is asked about each second.
    let pause = every.map_or(LOOK, |every| every.min(LOOK));
    while !stop.load(Ordering::SeqCst) {
        thread::park_timeout(pause);
        let Some(manager) = manager.upgrade() else { return };
        go_on(|| manager.check_probation());
        if every.is_some_and(|every| looked.elapsed() >= every) {
            go_on(|| manager.load_changed_files());
            looked = Instant::now();
        }
    }
}

/// A panic, over one strange component, must not end the looking after all others.
fn go_on(look: impl FnOnce()) {
    // What it had changed until then is whole: a swap is the last step.
    if catch_unwind(AssertUnwindSafe(look)).is_err() {
        tracing::error!("looking after the policies panicked; it is tried again");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_that_panics_is_not_the_last() {
        go_on(|| std::panic::resume_unwind(Box::new("oh")));
        let mut looked = false;
        go_on(|| looked = true);
        assert!(looked);
    }
}
