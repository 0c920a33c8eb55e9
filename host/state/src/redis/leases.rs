//! What this host holds in Redis for its requests, and the thread that sees to it.
//!
//! A slot or a reservation is held by a lease of `state.lease`. One thread renews all of them each
//! third of that, in one call for each policy and some hundred of them, and it ends what could not be
//! ended at once, until the server has heard. So a stall of Redis costs nothing that outlives it, and
//! a host that was killed holds nothing for longer than a lease.
//!
//! # Invariants
//!
//! - What is being ended is not renewed.
//! - No request waits for this thread, and no lock is held while it talks to the server.
//! - What has ended is not begun again: a host that slept for longer than its leases has lost what it
//!   held, and somebody else may have it by now. It is counted and said.
//!
//! # Not here
//!
//! Which request holds what, which is the caller's to know.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use interlock_metrics::IntCounter;

use super::failure::Failure;
use super::server::{Hold, Server};
use crate::space::Ending;

/// What the host holds. Cheap to ask; nothing here waits for the server.
pub(super) struct Leases {
    shared: Arc<Shared>,
}

struct Shared {
    server: Arc<Server>,
    book: Mutex<Book>,
    /// There is something for the thread to do, or it is to end.
    wanted: Condvar,
    /// Something was ended.
    ended: Condvar,
    lost: OnceLock<IntCounter>,
}

#[derive(Default)]
struct Book {
    /// Until when each may be held at most.
    held: HashMap<Hold, Instant>,
    /// What is to be ended, and how.
    ending: HashMap<Hold, Due>,
    closing: bool,
}

#[derive(Clone)]
struct Due {
    ending: Ending,
    /// When there is no use in it any more.
    until: Instant,
    /// It had begun. Where nobody knows that, since the call that began it may still lie in the
    /// server's queue, it is ended again and again until it was there.
    begun: bool,
}

/// Renewed in one call. The server does nothing else meanwhile: about a millisecond.
const BATCH: usize = 500;

/// More are not kept: their leases end them.
const ENDINGS_MAX: usize = 100_000;

/// How long it is worth to charge what a request used, after its lease is over.
const SETTLE_MAX: Duration = Duration::from_secs(3600);

/// Between attempts while the server does not do what it is asked.
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Longest that the end of the host waits until what has ended is ended.
const FAREWELL: Duration = Duration::from_secs(1);

impl Leases {
    pub(super) fn start(server: Arc<Server>) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            server,
            book: Mutex::default(),
            wanted: Condvar::new(),
            ended: Condvar::new(),
            lost: OnceLock::new(),
        });
        let kept = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("interlock-leases".into());
        thread.spawn(move || Keeper::new(&kept).run())?;
        Ok(Self { shared })
    }

    /// Counts what is lost there.
    pub(super) fn count_in(&self, lost: IntCounter) {
        let _first = self.shared.lost.set(lost);
    }

    /// It has begun, and may be held for so long.
    pub(super) fn hold(&self, hold: Hold, most: Duration) {
        let now = Instant::now();
        let until = now.checked_add(most).unwrap_or(now + crate::LIFE_MAX);
        self.shared.book().held.insert(hold, until);
    }

    /// It is being ended: it is not renewed any more.
    pub(super) fn release(&self, hold: &Hold) {
        let mut book = self.shared.book();
        book.held.remove(hold);
        book.ending.remove(hold);
    }

    /// Ends it as soon as the server can. What is being ended already is ended as was said first.
    pub(super) fn end_soon(&self, hold: Hold, ending: Ending) {
        let lease = self.shared.server.lease;
        let keep = match ending {
            // When its lease is over, so is it.
            Ending::Leave { .. } => lease,
            Ending::Settle { .. } => SETTLE_MAX.max(lease),
        };
        self.enter(hold, Due { ending, until: Instant::now() + keep, begun: true });
    }

    /// Ends what may have begun.
    pub(super) fn undo(&self, hold: Hold) {
        let ending = hold.undo();
        let until = Instant::now() + self.shared.server.lease;
        self.enter(hold, Due { ending, until, begun: false });
    }

    /// Waits until what has ended is ended, or for so long; whether it is.
    pub(super) fn flush(&self, wait_max: Duration) -> bool {
        let waits = |book: &mut Book| book.ending.values().any(|due| due.begun);
        let waited = self.shared.ended.wait_timeout_while(self.shared.book(), wait_max, waits);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    fn enter(&self, hold: Hold, due: Due) {
        let mut book = self.shared.book();
        book.held.remove(&hold);
        if book.ending.len() < ENDINGS_MAX {
            book.ending.entry(hold).or_insert(due);
            self.shared.wanted.notify_all();
        }
    }
}

impl Drop for Leases {
    /// Waits a little for what has ended to be ended; leases do the rest.
    fn drop(&mut self) {
        self.shared.book().closing = true;
        self.shared.wanted.notify_all();
        if self.shared.server.link.down().is_none() {
            self.flush(FAREWELL);
        }
    }
}

impl Shared {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread's side.
struct Keeper<'a> {
    shared: &'a Shared,
    renew_at: Instant,
    pause: Duration,
    /// Not before this, since something failed.
    retry_at: Option<Instant>,
}

impl<'a> Keeper<'a> {
    fn new(shared: &'a Shared) -> Self {
        let renew_at = Instant::now() + shared.server.lease / 3;
        Self { shared, renew_at, pause: PAUSE_MIN, retry_at: None }
    }

    fn run(mut self) {
        loop {
            match catch_unwind(AssertUnwindSafe(|| self.round())) {
                Ok(ControlFlow::Continue(())) => {}
                Ok(ControlFlow::Break(())) => return,
                Err(_) => {
                    tracing::error!("renewing what requests hold in redis panicked; it goes on");
                    self.failed();
                }
            }
        }
    }

    /// Waits until there is something to do, and does it.
    fn round(&mut self) -> ControlFlow<()> {
        let (endings, renew) = match self.wait() {
            Some(work) => work,
            None => return ControlFlow::Break(()),
        };
        let renewed = if renew { self.renew() } else { Ok(()) };
        match renewed.and_then(|()| self.end(endings)) {
            Ok(true) => (self.pause, self.retry_at) = (PAUSE_MIN, None),
            // Of what failed, the link has said why.
            Ok(false) | Err(_) => self.failed(),
        }
        ControlFlow::Continue(())
    }

    fn failed(&mut self) {
        self.retry_at = Some(Instant::now() + self.pause);
        // Twice at least before a lease ends, or what is held is lost.
        self.pause = PAUSE_MAX.min(self.pause * 2).min(self.shared.server.lease / 6);
    }

    /// What is to be ended, and whether it is time to renew; nothing when the host ends.
    fn wait(&self) -> Option<(Vec<(Hold, Due)>, bool)> {
        let mut book = self.shared.book();
        loop {
            let now = Instant::now();
            let rests = self.retry_at.filter(|at| *at > now);
            let due = !book.ending.is_empty();
            if book.closing && (!due || rests.is_some()) {
                return None;
            }
            if rests.is_none() && (due || self.renew_at <= now) {
                let endings = book.ending.iter().map(|(hold, due)| (hold.clone(), due.clone()));
                return Some((endings.collect(), self.renew_at <= now));
            }
            let until = rests.unwrap_or(self.renew_at);
            let left = until.saturating_duration_since(now);
            let waited = self.shared.wanted.wait_timeout(book, left);
            book = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Ends what it can; whether that was all.
    fn end(&self, endings: Vec<(Hold, Due)>) -> Result<bool, Failure> {
        let mut all = true;
        for (hold, due) in endings {
            let answer = self.shared.server.end_patiently(&hold.prefix, &due.ending);
            // Refused is this one; silent is the server, to all.
            if let Err(failure) = answer.as_ref()
                && failure.is_silence()
            {
                return Err(failure.clone());
            }
            let known = answer.is_ok_and(|answer| due.begun || answer.known().unwrap_or(true));
            if known || due.until <= Instant::now() {
                self.shared.book().ending.remove(&hold);
                self.shared.ended.notify_all();
            } else {
                all = false;
            }
        }
        Ok(all)
    }

    fn renew(&mut self) -> Result<(), Failure> {
        let now = Instant::now();
        let mut by_policy: HashMap<Arc<str>, Vec<(Hold, Duration)>> = HashMap::new();
        {
            let mut book = self.shared.book();
            // What may be held no longer ends with its lease.
            book.held.retain(|_, until| *until > now);
            for (hold, until) in &book.held {
                let all = by_policy.entry(Arc::clone(&hold.prefix)).or_default();
                all.push((hold.clone(), until.saturating_duration_since(now)));
            }
        }
        for (prefix, held) in &by_policy {
            for batch in held.chunks(BATCH) {
                let lost = self.shared.server.renew(prefix, batch)?;
                self.lost(&lost);
            }
        }
        self.renew_at = now + self.shared.server.lease / 3;
        Ok(())
    }

    fn lost(&self, lost: &[Hold]) {
        let mut book = self.shared.book();
        // Some may have been ended since.
        let lost = lost.iter().filter(|hold| book.held.remove(hold).is_some()).count() as u64;
        drop(book);
        if lost == 0 {
            return;
        }
        if let Some(counter) = self.shared.lost.get() {
            counter.inc_by(lost);
        }
        tracing::warn!(
            lost, lease = ?self.shared.server.lease,
            "requests lost their slots or reservations: they were not renewed in time, or redis has \
             forgotten them; these requests go on, and are not counted"
        );
    }
}
