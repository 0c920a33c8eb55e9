//! How much memory requests may hold before they are admitted, all together.
//!
//! A request's body takes memory as it arrives, then more when it is read and rendered. Each asks
//! before it takes, and waits where there is none.
//!
//! # Invariants
//!
//! - What is held is never more than the limit.
//! - Nobody waits for ever: half of the memory is for all, and when that is gone, the other half
//!   is for one request at a time, of whose tenant holds the least. One request never takes more
//!   than a half, so that one comes to its end and lets go of everything.
//! - A part of it is only for small requests, so that large ones never keep them out.
//! - Of those that wait, the next is whose tenant holds the least.
//! - A request that goes away, wherever it is, lets go of all that it holds, once what it set going
//!   has ended too.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use interlock_metrics::IntGauge;
use tokio::sync::oneshot;

use super::WorkError;

/// The memory and who holds it.
pub(super) struct MemoryBudget {
    state: Mutex<BudgetState>,
    held: IntGauge,
    waiting: IntGauge,
}

struct BudgetState {
    /// Bytes for all requests.
    general: usize,
    /// That part of it which is only for small requests.
    for_small: usize,
    /// A request that holds no more than this is small.
    small_max: usize,
    /// For one at a time.
    reserve: usize,
    waiting_max: usize,
    held: usize,
    /// The holder of the reserve, and how much of it is held.
    borrowed: Option<(u64, usize)>,
    /// Requests that hold memory or wait for it, oldest first.
    holders: BTreeMap<u64, Holder>,
    by_tenant: BTreeMap<String, usize>,
    numbers: u64,
}

struct Holder {
    tenant: String,
    /// Of what is for all.
    held: usize,
    waits: Option<(usize, oneshot::Sender<Result<(), WorkError>>)>,
}

/// What one request holds. Dropping it gives all back, unless work that it set going still holds it.
pub(crate) struct MemoryLease {
    hold: Hold,
    total: usize,
}

/// Keeps what a request holds in the books while work for it is under way: that goes on when the
/// request has gone.
#[derive(Clone)]
pub(crate) struct Hold(Arc<Holding>);

struct Holding {
    memory: Arc<MemoryBudget>,
    number: u64,
}

impl MemoryBudget {
    /// `waiting_max` requests may wait for memory.
    pub(super) fn new(
        bytes: usize,
        waiting_max: usize,
        held: IntGauge,
        waiting: IntGauge,
    ) -> Arc<Self> {
        /// Bodies of chats that people write. Larger ones arrive slowly as well.
        const SMALL_MAX: usize = 256 << 10;

        let general = bytes / 2;
        Arc::new(Self {
            state: Mutex::new(BudgetState {
                general,
                for_small: general / 8,
                small_max: (general / 32).min(SMALL_MAX),
                reserve: bytes - general,
                waiting_max,
                held: 0,
                borrowed: None,
                holders: BTreeMap::new(),
                by_tenant: BTreeMap::new(),
                numbers: 0,
            }),
            held,
            waiting,
        })
    }

    /// A lease that holds nothing yet.
    pub(super) fn lease(self: &Arc<Self>, tenant: &str) -> MemoryLease {
        let mut state = self.state();
        state.numbers += 1;
        let number = state.numbers;
        let holder = Holder { tenant: tenant.to_owned(), held: 0, waits: None };
        state.holders.insert(number, holder);
        MemoryLease { hold: Hold(Arc::new(Holding { memory: Arc::clone(self), number })), total: 0 }
    }

    fn state(&self) -> MutexGuard<'_, BudgetState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, state: &BudgetState) {
        let all = state.held + state.borrowed.map_or(0, |(_, bytes)| bytes);
        self.held.set(i64::try_from(all).unwrap_or(i64::MAX));
        let waiting = state.waiting().count();
        self.waiting.set(i64::try_from(waiting).unwrap_or(i64::MAX));
    }
}

impl MemoryLease {
    /// Takes so much more, once there is room.
    ///
    /// # Errors
    ///
    /// When it is more than one request may hold, or too many wait for room.
    pub(crate) async fn grow(&mut self, bytes: usize) -> Result<(), WorkError> {
        if bytes == 0 {
            return Ok(());
        }
        let told = {
            let Holding { memory, number } = &*self.hold.0;
            let mut state = memory.state();
            let told = state.ask(*number, self.total, bytes)?;
            memory.tell(&state);
            told
        };
        if let Some(told) = told {
            // The books outlive whoever waits, and let go of nobody without a word.
            told.await.unwrap_or(Err(WorkError::Panicked))?;
        }
        self.total += bytes;
        Ok(())
    }

    /// As [`Self::grow`], for an upper bound: takes at most what one request may hold.
    ///
    /// # Errors
    ///
    /// When too many wait for room.
    pub(crate) async fn grow_for_a_while(&mut self, bytes_max: usize) -> Result<(), WorkError> {
        let room = self.hold.0.memory.state().reserve - self.total;
        self.grow(bytes_max.min(room)).await
    }

    /// The work, which holds all this until it is done: what has begun goes on when its client has
    /// left, and takes its memory all the same.
    pub(crate) fn held_by<T, W: FnOnce() -> T>(&self, work: W) -> impl FnOnce() -> T + use<T, W> {
        let hold = self.hold.clone();
        move || {
            let _until_it_is_done = hold;
            work()
        }
    }

    /// Gives all back that it holds so far.
    pub(crate) fn let_go(&mut self) {
        let Holding { memory, number } = &*self.hold.0;
        let mut state = memory.state();
        state.let_go_but_stay(*number);
        memory.tell(&state);
        drop(state);
        self.total = 0;
    }

    /// How much it holds.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        self.total
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        let mut state = self.memory.state();
        state.let_go(self.number);
        self.memory.tell(&state);
    }
}

impl BudgetState {
    fn waiting(&self) -> impl Iterator<Item = (&u64, &Holder)> {
        self.holders.iter().filter(|(_, holder)| holder.waits.is_some())
    }

    fn ask(
        &mut self,
        number: u64,
        total: usize,
        bytes: usize,
    ) -> Result<Option<oneshot::Receiver<Result<(), WorkError>>>, WorkError> {
        if total.saturating_add(bytes) > self.reserve {
            return Err(WorkError::TooMuch {
                bytes: total.saturating_add(bytes),
                limit: self.reserve,
            });
        }
        // Where somebody waits for what this one could take, it waits as well.
        let small = total + bytes <= self.small_max;
        let goes_first = small || self.waiting().next().is_none();
        if self.borrows(number) || (goes_first && self.fits(small, bytes)) {
            self.give(number, bytes);
            return Ok(None);
        }
        if self.waiting().count() >= self.waiting_max && !self.displace(number) {
            return Err(WorkError::Full { limit: self.waiting_max });
        }
        let (tell, told) = oneshot::channel();
        self.holders.get_mut(&number).expect("a lease is in the books").waits = Some((bytes, tell));
        self.hand_out();
        Ok(Some(told))
    }

    fn borrows(&self, number: u64) -> bool {
        self.borrowed.is_some_and(|(borrower, _)| borrower == number)
    }

    fn fits(&self, small: bool, bytes: usize) -> bool {
        let room = if small { self.general } else { self.general - self.for_small };
        self.held + bytes <= room
    }

    fn give(&mut self, number: u64, bytes: usize) {
        if let Some((borrower, borrowed)) = &mut self.borrowed
            && *borrower == number
        {
            *borrowed += bytes;
            return;
        }
        let holder = self.holders.get_mut(&number).expect("a lease is in the books");
        holder.held += bytes;
        self.held += bytes;
        *self.by_tenant.entry(holder.tenant.clone()).or_default() += bytes;
    }

    /// Tells all that wait for what there is; when there is nothing, the reserve goes to the one whose
    /// tenant holds the least, or has not: whoever holds much and stalls does not get that as well.
    fn hand_out(&mut self) {
        loop {
            let next = self.waiting().map(|(number, holder)| {
                let bytes = holder.waits.as_ref().map_or(0, |(bytes, _)| *bytes);
                let small = holder.held + bytes <= self.small_max;
                let theirs = self.by_tenant.get(&holder.tenant).copied().unwrap_or(0);
                ((!small, theirs, *number), bytes)
            });
            let Some(((large, _, number), bytes)) = next.min() else { return };
            if self.fits(!large, bytes) {
                self.wake(number, bytes);
            } else if self.borrowed.is_none() {
                let theirs =
                    |holder: &Holder| self.by_tenant.get(&holder.tenant).copied().unwrap_or(0);
                let least =
                    self.waiting().min_by_key(|(number, holder)| (theirs(holder), **number));
                let Some((&least, holder)) = least else { return };
                let bytes = holder.waits.as_ref().map_or(0, |(bytes, _)| *bytes);
                self.borrowed = Some((least, 0));
                self.wake(least, bytes);
            } else {
                return;
            }
        }
    }

    fn wake(&mut self, number: u64, bytes: usize) {
        self.give(number, bytes);
        let holder = self.holders.get_mut(&number).expect("it waits");
        if let Some((_, tell)) = holder.waits.take() {
            // Who has left meanwhile lets go of it all the same.
            let _ = tell.send(Ok(()));
        }
    }

    /// Refuses the last that came of the tenant that has the most waiting, if that is more than this
    /// one's would have.
    fn displace(&mut self, number: u64) -> bool {
        let mut waiting = BTreeMap::<&str, (usize, u64)>::new();
        for (number, holder) in self.waiting() {
            let (count, last) = waiting.entry(&holder.tenant).or_default();
            (*count, *last) = (*count + 1, *number);
        }
        let own = waiting.get(&*self.holders[&number].tenant).map_or(0, |(count, _)| *count);
        let Some(&(most, last)) = waiting.values().max_by_key(|(count, _)| *count) else {
            return false;
        };
        if most <= own + 1 {
            return false;
        }
        let limit = self.waiting_max;
        let refused = self.holders.get_mut(&last).and_then(|holder| holder.waits.take());
        if let Some((_, tell)) = refused {
            let _ = tell.send(Err(WorkError::Full { limit }));
        }
        true
    }

    fn let_go_but_stay(&mut self, number: u64) {
        let Some(holder) = self.holders.get(&number) else { return };
        let stays = Holder { tenant: holder.tenant.clone(), held: 0, waits: None };
        self.let_go(number);
        self.holders.insert(number, stays);
    }

    fn let_go(&mut self, number: u64) {
        let Some(holder) = self.holders.remove(&number) else { return };
        self.held -= holder.held;
        if let Some(theirs) = self.by_tenant.get_mut(&holder.tenant) {
            *theirs -= holder.held;
            if *theirs == 0 {
                self.by_tenant.remove(&holder.tenant);
            }
        }
        if self.borrows(number) {
            self.borrowed = None;
        }
        self.hand_out();
    }
}

#[cfg(test)]
mod tests;
