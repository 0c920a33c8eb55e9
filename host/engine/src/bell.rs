//! Wakes the engine thread when it sleeps.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// One for all engines of a thread. Ringing it any number of times before the thread looks is
/// ringing it once: what there is to do lies in the inboxes.
///
/// A lock around one bit, held for no longer than to change it, so that no ringing is missed: who
/// rings after the thread has looked into the inboxes finds it about to wait, and it does not.
#[derive(Debug, Clone, Default)]
pub(crate) struct Bell(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    rung: Mutex<bool>,
    changed: Condvar,
}

impl Bell {
    /// Wakes the thread, or keeps it from falling asleep. Ring after what is to be found is there.
    pub(crate) fn ring(&self) {
        let Inner { rung, changed } = &*self.0;
        *rung.lock().unwrap_or_else(PoisonError::into_inner) = true;
        changed.notify_one();
    }

    /// Returns when it was rung since the last wait.
    pub(crate) fn wait(&self) {
        let Inner { rung, changed } = &*self.0;
        let rung = rung.lock().unwrap_or_else(PoisonError::into_inner);
        let silent = |rung: &mut bool| !*rung;
        let mut rung = changed.wait_while(rung, silent).unwrap_or_else(PoisonError::into_inner);
        *rung = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bell_that_rang_before_the_wait_is_heard_once() {
        let bell = Bell::default();
        bell.ring();
        bell.ring();
        bell.wait();
        let ringer = bell.clone();
        let waited = std::thread::spawn(move || bell.wait());
        ringer.ring();
        waited.join().expect("it was heard");
    }
}
