//! Wakes the engine thread when it sleeps.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// Wakes the thread of all engines that share it. Waking it several times before it looks counts once:
/// the work itself lies in the inboxes.
///
/// The lock guards one bit and is held only to change it. No wakeup is lost: a thread that was woken
/// after it looked into the inboxes, and before it sleeps, does not sleep.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wakeup(Arc<Signal>);

#[derive(Debug, Default)]
struct Signal {
    woken: Mutex<bool>,
    changed: Condvar,
}

impl Wakeup {
    /// Wakes the thread, or keeps it from falling asleep. Call it after the work is in the inbox.
    pub(crate) fn wake(&self) {
        let Signal { woken, changed } = &*self.0;
        *woken.lock().unwrap_or_else(PoisonError::into_inner) = true;
        changed.notify_one();
    }

    /// Sleeps until the thread was woken since the last wait.
    pub(crate) fn wait(&self) {
        let Signal { woken, changed } = &*self.0;
        let woken = woken.lock().unwrap_or_else(PoisonError::into_inner);
        let asleep = |woken: &mut bool| !*woken;
        let mut woken = changed.wait_while(woken, asleep).unwrap_or_else(PoisonError::into_inner);
        *woken = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wakeup_before_the_wait_ends_it_and_two_count_once() {
        let wakeup = Wakeup::default();
        wakeup.wake();
        wakeup.wake();
        wakeup.wait();
        let waker = wakeup.clone();
        let waited = std::thread::spawn(move || wakeup.wait());
        waker.wake();
        waited.join().expect("the thread was woken");
    }
}
