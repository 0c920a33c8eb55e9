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
//! - What one ending or one policy's renewal meets, no other waits for: an ending that is refused, or
//!   that does not find what it is to undo, waits alone. Only silence, which all would meet, is waited
//!   out by all.
//! - Renewals do not wait for a backlog of endings.
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

use super::failure::CallFailure;
use super::server::{LeaseKey, RedisServer};
use crate::store::LeaseEnd;

/// What the host holds. Cheap to ask; nothing here waits for the server.
pub(super) struct Leases {
    shared: Arc<LeasesShared>,
}

struct LeasesShared {
    server: Arc<RedisServer>,
    table: Mutex<LeaseTable>,
    /// There is something for the thread to do, or it is to end.
    wanted: Condvar,
    /// Woken when a lease was ended.
    ended: Condvar,
    lost: OnceLock<IntCounter>,
}

#[derive(Default)]
struct LeaseTable {
    /// The leases to renew, and the time until which each may be held at most.
    held: HashMap<LeaseKey, Instant>,
    /// The leases to end, and how.
    ending: HashMap<LeaseKey, PendingEnd>,
    closing: bool,
}

#[derive(Clone)]
struct PendingEnd {
    ending: LeaseEnd,
    /// The time from which ending it is of no use.
    until: Instant,
    /// Whether the lease had begun. Where that is not known, because the call that began the lease may
    /// still be in the server's queue, the lease is ended again and again until the server had it.
    begun: bool,
    /// The earliest time of the next attempt.
    again_at: Instant,
    /// The pause before the next attempt, if this one fails.
    pause: Duration,
}

impl PendingEnd {
    fn new(ending: LeaseEnd, keep: Duration, begun: bool) -> Self {
        let now = Instant::now();
        Self { ending, until: now + keep, begun, again_at: now, pause: PAUSE_MIN }
    }

    /// Whether another attempt is of no use. What may have begun is tried once more: the server may have been
    /// silent for all that time, and begin it now.
    fn is_over(&self) -> bool {
        self.begun && self.until <= Instant::now()
    }

    /// Puts the next attempt off, and returns whether it will be of any use then.
    fn put_off(&mut self) -> bool {
        self.again_at = Instant::now() + self.pause;
        self.pause = PAUSE_MAX.min(self.pause * 2);
        self.again_at < self.until
    }
}

/// Leases that are renewed in one call, during which the server does nothing else: about a
/// millisecond.
const BATCH: usize = 500;

/// Ends beyond this number are not remembered: those leases end by themselves.
const ENDINGS_MAX: usize = 100_000;

/// How long after the end of its lease a reservation is still settled.
const SETTLE_MAX: Duration = Duration::from_secs(3600);

/// The pauses between attempts while the server refuses.
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Longest that the end of the host waits until what has ended is ended.
const CLOSE_WAIT_MAX: Duration = Duration::from_secs(1);

impl LeaseTable {
    /// The ends that are due by `by`; all of them if that is none.
    fn endings(&self, by: Option<Instant>) -> Vec<(LeaseKey, PendingEnd)> {
        let due = |due: &PendingEnd| by.is_none_or(|by| due.again_at <= by);
        let all = self.ending.iter().filter(|ending| due(ending.1));
        all.map(|(hold, due)| (hold.clone(), due.clone())).collect()
    }

    /// The time of the next attempt to end a lease; far from `now` if there is none.
    fn next_ending(&self, now: Instant) -> Instant {
        let next = self.ending.values().map(|due| due.again_at).min();
        next.unwrap_or(now + SETTLE_MAX)
    }
}

impl Leases {
    pub(super) fn start(server: Arc<RedisServer>) -> std::io::Result<Self> {
        let shared = Arc::new(LeasesShared {
            server,
            table: Mutex::default(),
            wanted: Condvar::new(),
            ended: Condvar::new(),
            lost: OnceLock::new(),
        });
        let kept = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("interlock-leases".into());
        thread.spawn(move || LeaseRenewer::new(&kept).run())?;
        Ok(Self { shared })
    }

    /// Counts lost leases in `lost`, from now on.
    pub(super) fn count_in(&self, lost: IntCounter) {
        let _first = self.shared.lost.set(lost);
    }

    /// Takes a lease that has begun, to be renewed for `most` at most.
    pub(super) fn hold(&self, hold: LeaseKey, most: Duration) {
        let now = Instant::now();
        let until = now.checked_add(most).unwrap_or(now + crate::LIFE_MAX);
        let mut table = self.shared.table();
        if !table.ending.contains_key(&hold) {
            table.held.insert(hold, until);
        }
    }

    /// Stops renewing a lease, because the caller is ending it.
    pub(super) fn release(&self, hold: &LeaseKey) {
        let mut table = self.shared.table();
        table.held.remove(hold);
        table.ending.remove(hold);
    }

    /// Ends it as soon as the server can. What is being ended already is ended as was said first.
    pub(super) fn end_soon(&self, hold: LeaseKey, ending: LeaseEnd) {
        let lease = self.shared.server.lease;
        let keep = match ending {
            // When its lease is over, so is it.
            LeaseEnd::Leave { .. } => lease,
            LeaseEnd::Settle { .. } => SETTLE_MAX.max(lease),
        };
        self.enter(hold, PendingEnd::new(ending, keep, true));
    }

    /// Ends a lease that may have begun.
    pub(super) fn undo(&self, hold: LeaseKey) {
        let ending = hold.undo();
        self.enter(hold, PendingEnd::new(ending, self.shared.server.lease, false));
    }

    /// Waits until what has ended is ended, or for so long; whether it is.
    pub(super) fn flush(&self, wait_max: Duration) -> bool {
        let waits = |table: &mut LeaseTable| table.ending.values().any(|due| due.begun);
        let waited = self.shared.ended.wait_timeout_while(self.shared.table(), wait_max, waits);
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    fn enter(&self, hold: LeaseKey, due: PendingEnd) {
        let mut table = self.shared.table();
        table.held.remove(&hold);
        if table.ending.len() < ENDINGS_MAX {
            table.ending.entry(hold).or_insert(due);
            self.shared.wanted.notify_all();
        }
    }
}

impl Drop for Leases {
    /// Waits a little for what has ended to be ended; leases do the rest.
    fn drop(&mut self) {
        self.shared.table().closing = true;
        self.shared.wanted.notify_all();
        if self.shared.server.pool.down().is_none() {
            self.flush(CLOSE_WAIT_MAX);
        }
    }
}

impl LeasesShared {
    fn table(&self) -> MutexGuard<'_, LeaseTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the renewing thread works with.
struct LeaseRenewer<'a> {
    shared: &'a LeasesShared,
    renew_at: Instant,
    /// The pause before renewing again what was refused.
    renew_pause: Duration,
    /// The pause between attempts while the server is silent.
    pause: Duration,
    /// The earliest time of the next attempt, after the server was silent.
    retry_at: Option<Instant>,
    /// The host ends, and everything is tried once more.
    last: bool,
}

/// What one round renews and ends.
struct Round {
    endings: Vec<(LeaseKey, PendingEnd)>,
    renew: bool,
}

impl<'a> LeaseRenewer<'a> {
    fn new(shared: &'a LeasesShared) -> Self {
        let renew_at = Instant::now() + shared.server.lease / 3;
        let (renew_pause, pause) = (PAUSE_MIN, PAUSE_MIN);
        Self { shared, renew_at, renew_pause, pause, retry_at: None, last: false }
    }

    fn run(mut self) {
        loop {
            match catch_unwind(AssertUnwindSafe(|| self.round())) {
                Ok(ControlFlow::Continue(())) => {}
                Ok(ControlFlow::Break(())) => return,
                Err(_) => {
                    tracing::error!(
                        "renewing the slots and reservations in redis panicked; it is tried again"
                    );
                    self.rest();
                }
            }
        }
    }

    /// Waits until there is something to do, and does it.
    fn round(&mut self) -> ControlFlow<()> {
        let Some(work) = self.wait() else { return ControlFlow::Break(()) };
        let renewed = if work.renew { self.renew() } else { Ok(()) };
        match renewed.and_then(|()| self.end(work.endings)) {
            Ok(()) => (self.pause, self.retry_at) = (PAUSE_MIN, None),
            // Of what failed, the connection pool has said why.
            Err(_silence) => self.rest(),
        }
        ControlFlow::Continue(())
    }

    fn rest(&mut self) {
        self.retry_at = Some(Instant::now() + self.pause);
        self.pause = self.longer(self.pause);
    }

    /// The next pause: twice at least it is over before a lease ends, or what is held is lost.
    fn longer(&self, pause: Duration) -> Duration {
        PAUSE_MAX.min(pause * 2).min(self.shared.server.lease / 6)
    }

    /// Waits for work; there is none any more when the host ends.
    fn wait(&mut self) -> Option<Round> {
        let mut table = self.shared.table();
        loop {
            let now = Instant::now();
            if table.closing {
                let last = std::mem::replace(&mut self.last, true);
                let endings = table.endings(None);
                return (!last && !endings.is_empty()).then_some(Round { endings, renew: false });
            }
            let rests = self.retry_at.filter(|at| *at > now);
            let until = rests.unwrap_or_else(|| self.renew_at.min(table.next_ending(now)));
            if until <= now {
                return Some(Round {
                    endings: table.endings(Some(now)),
                    renew: self.renew_at <= now,
                });
            }
            let waited = self.shared.wanted.wait_timeout(table, until - now);
            table = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Ends what it can, until it is time to renew; fails when the server is silent.
    fn end(&self, endings: Vec<(LeaseKey, PendingEnd)>) -> Result<(), CallFailure> {
        for (hold, due) in endings {
            if self.renew_at <= Instant::now() && !self.last {
                break;
            }
            if due.is_over() || self.try_to_end(&hold, &due)? {
                self.forget(&hold);
            } else {
                self.put_off(&hold);
            }
        }
        Ok(())
    }

    /// Tries to end a lease, and returns whether it is over, as far as that can be known.
    fn try_to_end(&self, hold: &LeaseKey, due: &PendingEnd) -> Result<bool, CallFailure> {
        match self.shared.server.end_without_request(&hold.prefix, &due.ending) {
            Ok(answer) => Ok(due.begun || answer.known().unwrap_or(true)),
            // Silent is the server, to all; refused is this one.
            Err(failure) if failure.is_silence() => Err(failure),
            Err(_refused) => Ok(false),
        }
    }

    fn forget(&self, hold: &LeaseKey) {
        self.shared.table().ending.remove(hold);
        self.shared.ended.notify_all();
    }

    fn put_off(&self, hold: &LeaseKey) {
        let mut table = self.shared.table();
        if !table.ending.get_mut(hold).is_some_and(PendingEnd::put_off) {
            drop(table);
            self.forget(hold);
        }
    }

    /// Renews all that is held. What one policy is refused, the others are not.
    fn renew(&mut self) -> Result<(), CallFailure> {
        let now = Instant::now();
        let mut refused = false;
        for (prefix, held) in &self.held(now) {
            for batch in held.chunks(BATCH) {
                match self.shared.server.renew(prefix, batch) {
                    Ok(lost) => self.lost(&lost),
                    Err(failure) if failure.is_silence() => return Err(failure),
                    Err(_refused) => refused = true,
                }
            }
        }
        // Where renewing takes longer than that, there is still time for endings.
        let soonest = Instant::now() + PAUSE_MIN;
        if refused {
            self.renew_at = soonest.max(now + self.renew_pause);
            self.renew_pause = self.longer(self.renew_pause);
        } else {
            self.renew_at = soonest.max(now + self.shared.server.lease / 3);
            self.renew_pause = PAUSE_MIN;
        }
        Ok(())
    }

    /// What is held, and for how long it may be, by policy.
    fn held(&self, now: Instant) -> HashMap<Arc<str>, Vec<(LeaseKey, Duration)>> {
        let mut by_policy: HashMap<Arc<str>, Vec<(LeaseKey, Duration)>> = HashMap::new();
        let mut table = self.shared.table();
        // What may be held no longer ends with its lease.
        table.held.retain(|_, until| *until > now);
        for (hold, until) in &table.held {
            let all = by_policy.entry(Arc::clone(&hold.prefix)).or_default();
            all.push((hold.clone(), until.saturating_duration_since(now)));
        }
        by_policy
    }

    fn lost(&self, lost: &[LeaseKey]) {
        let mut table = self.shared.table();
        // Some may have been ended since.
        let lost = lost.iter().filter(|hold| table.held.remove(hold).is_some()).count() as u64;
        drop(table);
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
