//! What a policy can ask of its state, with every number and size checked before a store sees it.

use std::sync::Arc;
use std::time::Duration;

use crate::metrics::{Counts, Op, OpResult};
use crate::store::{
    Bucket, BudgetWindow, Entered, Extended, LeaseEnd, NEVER, PolicyStore, Quota, Reserved,
    StateFault, Taken,
};
use crate::{LIFE_MAX, State};

/// A policy's own state, from [`State::space`]. Cheap to clone; every clone is the same space.
///
/// Buckets, windows, slots and values are told apart by kind: a bucket `a` and a value `a` have
/// nothing to do with each other. Keys are 1 to 512 bytes.
///
/// # Errors
///
/// Every operation fails with [`StateFault::Unavailable`] when the store does not answer, with
/// [`StateFault::Invalid`] when a number has no meaning (the text names it), with
/// [`StateFault::TooLarge`] for a key or value that is too long, and with [`StateFault::Quota`]
/// when it would need more room than the policy has.
#[derive(Clone)]
pub struct Space {
    store: Arc<dyn PolicyStore>,
    quota: Quota,
    counts: Option<Arc<Counts>>,
}

impl Space {
    const KEY_BYTES_MAX: usize = 512;
    const AMOUNT_MIN: f64 = 1e-6;
    const AMOUNT_MAX: f64 = 1e12;
    const TIME_MIN: Duration = Duration::from_millis(1);
    const SLOTS_MAX: u32 = 100_000;

    pub(crate) fn new(
        store: Arc<dyn PolicyStore>,
        quota: Quota,
        counts: Option<Arc<Counts>>,
    ) -> Self {
        Self { store, quota, counts }
    }

    /// Takes `cost` tokens from a bucket, or none.
    ///
    /// # Errors
    ///
    /// See [`Space`].
    pub fn take(&self, key: &str, bucket: Bucket, cost: f64) -> Result<Taken, StateFault> {
        let answer = Self::amount("cost", cost).and_then(|()| self.ask(key, bucket, cost, true));
        self.count(Op::Take, &answer, Taken::said);
        answer
    }

    /// What [`Space::take`] would answer, without taking. A cost of 0 reads the level.
    ///
    /// # Errors
    ///
    /// See [`Space`].
    pub fn peek(&self, key: &str, bucket: Bucket, cost: f64) -> Result<Taken, StateFault> {
        let answer =
            Self::amount_or_zero("cost", cost).and_then(|()| self.ask(key, bucket, cost, false));
        self.count(Op::Peek, &answer, Taken::said);
        answer
    }

    fn ask(&self, key: &str, bucket: Bucket, cost: f64, take: bool) -> Result<Taken, StateFault> {
        Self::key(key)?;
        Self::amount("capacity", bucket.capacity)?;
        let refill = bucket.refill_per_second;
        if !(refill > 0.0 && refill <= Self::AMOUNT_MAX)
            || bucket.capacity / refill > LIFE_MAX.as_secs_f64()
        {
            return Err(StateFault::Invalid(format!(
                "refill_per_second must fill the capacity of {} within 31 days and be at most \
                 {:e}, got {refill}",
                bucket.capacity,
                Self::AMOUNT_MAX,
            )));
        }
        if cost > bucket.capacity {
            return Ok(Taken::Denied { available_in: NEVER });
        }
        self.store.take(key, bucket, cost, take)
    }

    /// Charges an estimate to a window, to be settled when the actual amount is known.
    ///
    /// It stays charged until it is settled, charged or abandoned, as long as this host lives. When
    /// the host has died, it is given back within `state.lease`; should it come back and settle after
    /// that, what was used is charged then.
    ///
    /// # Errors
    ///
    /// See [`Space`].
    pub fn reserve(
        &self,
        key: &str,
        window: BudgetWindow,
        estimate: f64,
    ) -> Result<Reserved, StateFault> {
        let checked = Self::key(key)
            .and_then(|()| Self::amount("limit", window.limit))
            .and_then(|()| Self::time("per", window.per))
            .and_then(|()| Self::amount("estimate", estimate));
        let answer = checked.and_then(|()| {
            if estimate > window.limit {
                return Ok(Reserved::Denied { available_in: NEVER });
            }
            self.store.reserve(key, window, estimate)
        });
        self.count(Op::Reserve, &answer, |reserved| match reserved {
            Reserved::Ok(_) => OpResult::Ok,
            Reserved::Denied { .. } => OpResult::Denied,
        });
        answer
    }

    /// Charges `extra` on top, to the window as it is now. False, and nothing is charged, if there
    /// is no room for it or the reservation is over.
    ///
    /// # Errors
    ///
    /// See [`Space`].
    pub fn extend(&self, reservation: u64, extra: f64) -> Result<bool, StateFault> {
        let answer =
            Self::amount("extra", extra).and_then(|()| self.store.extend(reservation, extra));
        self.count(Op::Extend, &answer, |extended| match extended {
            Extended::Ok => OpResult::Ok,
            Extended::Denied => OpResult::Denied,
            Extended::Unknown => OpResult::Unknown,
        });
        Ok(answer? == Extended::Ok)
    }

    /// Ends a reservation: `actual` is charged in place of what was reserved, and may be more.
    ///
    /// What was reserved too much goes back to the window that it was charged to, if that has not
    /// ended. What was used beyond the reservation is charged to the window as it is now, even
    /// above the limit: it has been used.
    ///
    /// False if there is no such reservation: it was settled or abandoned before, is not this
    /// policy's, or was forgotten ([`RESERVATION_LIFE`](crate::RESERVATION_LIFE)). Nothing changes
    /// then, so settling twice charges once.
    ///
    /// # Errors
    ///
    /// See [`Space`]; never [`StateFault::Quota`]. After [`StateFault::Unavailable`] this host
    /// settles as soon as the store answers: there is no need to try again.
    pub fn settle(&self, reservation: u64, actual: f64) -> Result<bool, StateFault> {
        let answer = Self::amount_or_zero("actual", actual)
            .and_then(|()| self.store.end(LeaseEnd::Settle { reservation, actual: Some(actual) }));
        self.count(Op::Settle, &answer, known);
        answer
    }

    /// Ends a reservation whose request came to nothing: all that it held in the window as it is
    /// now goes back. What the host does for those that nobody settled.
    ///
    /// Never waits: where another process keeps the state, it is told soon, and until it has heard.
    pub fn abandon(&self, reservation: u64) {
        self.count(Op::Abandon, &Ok(true), known);
        self.store.end_soon(LeaseEnd::Settle { reservation, actual: Some(0.0) });
    }

    /// Ends a reservation whose request ran, while nobody said what it used: all that it holds stays
    /// charged. Never waits, as [`Space::abandon`] does not.
    pub fn charge(&self, reservation: u64) {
        self.count(Op::Settle, &Ok(true), known);
        self.store.end_soon(LeaseEnd::Settle { reservation, actual: None });
    }

    /// Takes one of `limit` slots, until it is left, or for `lease`: make that the longest that the
    /// work may take. A host that dies holds it no longer than `state.lease`.
    ///
    /// # Errors
    ///
    /// See [`Space`].
    pub fn enter(&self, key: &str, limit: u32, lease: Duration) -> Result<Entered, StateFault> {
        let checked = Self::key(key).and_then(|()| Self::time("lease", lease)).and_then(|()| {
            let holds = (1..=Self::SLOTS_MAX).contains(&limit);
            let text = || format!("limit must be 1 to {}, got {limit}", Self::SLOTS_MAX);
            if holds { Ok(()) } else { Err(StateFault::Invalid(text())) }
        });
        let answer = checked.and_then(|()| self.store.enter(key, limit, lease));
        self.count(Op::Enter, &answer, |entered| match entered {
            Entered::Ok { .. } => OpResult::Ok,
            Entered::Full => OpResult::Denied,
        });
        answer
    }

    /// Gives a slot back. One that was given back before, or whose lease has ended, is no fault.
    ///
    /// # Errors
    ///
    /// See [`Space`]; never [`StateFault::Quota`]. After [`StateFault::Unavailable`] this host gives
    /// it back as soon as the store answers: there is no need to try again.
    pub fn leave(&self, key: &str, slot: u64) -> Result<(), StateFault> {
        let ending = LeaseEnd::Leave { key: key.to_owned(), slot };
        let answer = Self::key(key).and_then(|()| self.store.end(ending));
        self.count(Op::Leave, &answer, known);
        answer.map(|_| ())
    }

    /// Gives a slot back that a request left behind. Never waits, as [`Space::abandon`] does not.
    pub fn vacate(&self, key: &str, slot: u64) {
        self.count(Op::Leave, &Ok(true), known);
        self.store.end_soon(LeaseEnd::Leave { key: key.to_owned(), slot });
    }

    /// The value of a key.
    ///
    /// # Errors
    ///
    /// See [`Space`].
    pub fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StateFault> {
        let answer = Self::key(key).and_then(|()| self.store.get(key));
        self.count(Op::Get, &answer, |_| OpResult::Ok);
        answer
    }

    /// Sets a value, for `ttl` or else for [`LIFE_MAX`].
    ///
    /// # Errors
    ///
    /// See [`Space`].
    pub fn set(&self, key: &str, value: &[u8], ttl: Option<Duration>) -> Result<(), StateFault> {
        let answer = Self::key(key)
            .and_then(|()| self.value(value))
            .and_then(|()| Self::ttl(ttl))
            .and_then(|ttl| self.store.set(key, value, ttl));
        self.count(Op::Set, &answer, |()| OpResult::Ok);
        answer
    }

    /// Removes a value; whether there was one.
    ///
    /// # Errors
    ///
    /// See [`Space`].
    pub fn delete(&self, key: &str) -> Result<bool, StateFault> {
        let answer = Self::key(key).and_then(|()| self.store.delete(key));
        self.count(Op::Delete, &answer, |_| OpResult::Ok);
        answer
    }

    /// Sets a value if it is `old` now (`None`: if there is none), for `ttl` or else for
    /// [`LIFE_MAX`]. Whether it was.
    ///
    /// # Errors
    ///
    /// See [`Space`].
    pub fn compare_and_set(
        &self,
        key: &str,
        old: Option<&[u8]>,
        new: &[u8],
        ttl: Option<Duration>,
    ) -> Result<bool, StateFault> {
        let answer = Self::key(key)
            .and_then(|()| self.value(old.unwrap_or_default()))
            .and_then(|()| self.value(new))
            .and_then(|()| Self::ttl(ttl))
            .and_then(|ttl| self.store.compare_and_set(key, old, new, ttl));
        self.count(
            Op::CompareAndSet,
            &answer,
            |&set| if set { OpResult::Ok } else { OpResult::Denied },
        );
        answer
    }

    /// Adds to a value that is a whole number in decimal digits, and says what it is now. One that
    /// is not there is 0, and then begins its `ttl` (or else [`LIFE_MAX`]); later increments do
    /// not renew it, so that a counter per minute ends after a minute however busy it is.
    ///
    /// # Errors
    ///
    /// See [`Space`]. [`StateFault::Invalid`] also when the value is no such number, or would
    /// leave the range of an `i64`.
    pub fn increment(&self, key: &str, by: i64, ttl: Option<Duration>) -> Result<i64, StateFault> {
        let answer = Self::key(key)
            .and_then(|()| Self::ttl(ttl))
            .and_then(|ttl| self.store.increment(key, by, ttl));
        self.count(Op::Increment, &answer, |_| OpResult::Ok);
        answer
    }

    fn key(key: &str) -> Result<(), StateFault> {
        match key.len() {
            0 => Err(StateFault::Invalid("a key must not be empty".into())),
            1..=Self::KEY_BYTES_MAX => Ok(()),
            _ => Err(StateFault::TooLarge),
        }
    }

    fn value(&self, value: &[u8]) -> Result<(), StateFault> {
        if value.len() > self.quota.value_bytes_max { Err(StateFault::TooLarge) } else { Ok(()) }
    }

    /// NaN is in no range, so it is refused here too.
    fn amount(name: &str, amount: f64) -> Result<(), StateFault> {
        let (least, most) = (Self::AMOUNT_MIN, Self::AMOUNT_MAX);
        if (least..=most).contains(&amount) {
            return Ok(());
        }
        Err(StateFault::Invalid(format!("{name} must be {least:e} to {most:e}, got {amount}")))
    }

    fn amount_or_zero(name: &str, amount: f64) -> Result<(), StateFault> {
        if amount == 0.0 { Ok(()) } else { Self::amount(name, amount) }
    }

    fn time(name: &str, time: Duration) -> Result<(), StateFault> {
        if (Self::TIME_MIN..=LIFE_MAX).contains(&time) {
            return Ok(());
        }
        Err(StateFault::Invalid(format!("{name} must be 1ms to 31 days, got {time:?}")))
    }

    fn ttl(ttl: Option<Duration>) -> Result<Duration, StateFault> {
        let ttl = ttl.unwrap_or(LIFE_MAX);
        Self::time("ttl", ttl).map(|()| ttl)
    }

    fn count<T>(&self, op: Op, answer: &Result<T, StateFault>, said: impl FnOnce(&T) -> OpResult) {
        if let Some(counts) = &self.counts {
            counts.count(op, answer.as_ref().map_or_else(OpResult::from, said));
        }
    }
}

impl Taken {
    fn said(&self) -> OpResult {
        match self {
            Self::Ok { .. } => OpResult::Ok,
            Self::Denied { .. } => OpResult::Denied,
        }
    }

    /// Denied for want of this many tokens. A microsecond more than the division says: a caller
    /// that waits exactly that long must find them, whatever was rounded on the way.
    pub(crate) fn denied(missing: f64, refill_per_second: f64) -> Self {
        let seconds = missing / refill_per_second;
        Self::Denied { available_in: Duration::from_secs_f64(seconds) + Duration::from_micros(1) }
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "the shape that Space::count calls")]
fn known(found: &bool) -> OpResult {
    if *found { OpResult::Ok } else { OpResult::Unknown }
}

impl std::fmt::Debug for Space {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Space").field("quota", &self.quota).finish_non_exhaustive()
    }
}

// Spaces are handed to every thread that serves requests.
const _: () = {
    const fn shared<T: Send + Sync + Clone>() {}
    shared::<Space>();
    shared::<State>();
};
