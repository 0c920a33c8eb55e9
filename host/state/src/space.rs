//! What a policy can ask of its state, with every number and size checked before a store sees it.

use std::sync::Arc;
use std::time::Duration;

use crate::config::StateConfig;
use crate::metrics::{Counts, Op, Said};
use crate::{LIFE_MAX, State};

/// Said of what cannot become available by waiting: more than the bucket or the window ever holds.
pub const NEVER: Duration = Duration::MAX;

/// What an entry costs beside its key and value, in the accounts of `state.bytes_max`: about what
/// maps and indices take for it.
pub(crate) const ENTRY_BYTES: u64 = 128;

/// What an entry of this key costs without its value.
pub(crate) fn entry_bytes(key: &str) -> u64 {
    key.len() as u64 + ENTRY_BYTES
}

/// What one counted slot adds to its entry.
pub(crate) const SLOT_BYTES: u64 = 16;

/// A token bucket: holds at most `capacity` tokens, is full at first, and gains
/// `refill_per_second` all the time.
///
/// The meter of RFC 2697 with one bucket: in any stretch of `t` seconds, however it is cut, no more
/// than `capacity + refill_per_second * t` is granted. (GCRA, ITU-T I.371, decides the same from a
/// single time; a level and a time are kept here instead, since a double that holds the time of day
/// has no digits left for fast buckets, and since the settings may change between two calls.)
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bucket {
    /// Most tokens that it holds, 1e-6 to 1e12.
    pub capacity: f64,
    /// Tokens gained in a second. It must fill the bucket within [`LIFE_MAX`].
    pub refill_per_second: f64,
}

/// What came of [`Space::take`] and [`Space::peek`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Taken {
    /// The tokens are (or would be) taken.
    Ok {
        /// Tokens left in the bucket.
        remaining: f64,
    },
    /// There are not enough, and the bucket is as it was.
    Denied {
        /// When there will be, if nobody else takes any; [`NEVER`] if the bucket is too small.
        available_in: Duration,
    },
}

/// A budget: at most `limit` in each window of `per`.
///
/// A window begins with the first reservation after the one before ended, so up to twice the limit
/// can fall within `per` around a border. Where that matters, a [`Bucket`] has no borders. A
/// changed `limit` holds at once, a changed `per` from the next window on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Window {
    /// Most that is charged in one window, 1e-6 to 1e12.
    pub limit: f64,
    /// How long a window is, 1ms to [`LIFE_MAX`].
    pub per: Duration,
}

/// What came of [`Space::reserve`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Reserved {
    /// The estimate is charged.
    Ok(Reservation),
    /// The window has no room for it, and nothing was charged.
    Denied {
        /// When the window ends, at the latest: what others give back may make room before.
        /// [`NEVER`] if the estimate is above the limit.
        available_in: Duration,
    },
}

/// A charge that waits to be settled.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reservation {
    /// Names it, in this policy's space alone. Not used again.
    pub id: u64,
    /// What is left of the window.
    pub remaining: f64,
    /// When the window ends.
    pub resets_in: Duration,
}

/// What came of [`Space::enter`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entered {
    /// There was room.
    Ok {
        /// Names the slot; give it to [`Space::leave`].
        slot: u64,
        /// How many are in now, this one included.
        running: u32,
    },
    /// As many as may are in. When one of them leaves nobody knows.
    Full,
}

/// Why an operation was not carried out. Nothing has changed then, except where
/// [`StateFault::Unavailable`] leaves that open.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateFault {
    /// The policy's keys or bytes are used up by what still counts. Retrying helps once some of it
    /// has ended.
    #[error("the policy's state is full (state.keys_max or state.bytes_max)")]
    Quota,
    /// A key or a value is longer than may be. Retrying cannot help.
    #[error("the key or the value is too large (512 bytes, state.value_bytes_max)")]
    TooLarge,
    /// Redis did not answer in time, or not at all. Whether it did what was asked is unknown if
    /// this was the call that found out. Retrying helps later.
    #[error("the state is unavailable: {0}")]
    Unavailable(String),
    /// The policy asked for something that has no meaning. Retrying cannot help.
    #[error("{0}")]
    Invalid(String),
}

/// How something ends that a request held. To end it twice changes nothing.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Ending {
    /// A reservation, of which so much was used; `None`: all that it holds.
    Settle {
        /// Which.
        reservation: u64,
        /// How much.
        actual: Option<f64>,
    },
    /// A slot.
    Leave {
        /// Among whom it counts.
        key: String,
        /// Which.
        slot: u64,
    },
}

/// What came of extending, for the counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extended {
    Ok,
    Denied,
    Unknown,
}

/// How much one policy may keep.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Quota {
    pub(crate) keys_max: u64,
    pub(crate) bytes_max: u64,
    value_bytes_max: usize,
}

impl Quota {
    pub(crate) fn of(config: &StateConfig) -> Self {
        Self {
            keys_max: config.keys_max as u64,
            bytes_max: config.bytes_max.0,
            value_bytes_max: config.value_bytes_max.in_memory(),
        }
    }
}

/// One policy's part of a store. What arrives has been checked; each call is atomic.
pub(crate) trait Shelf: Send + Sync {
    /// With `take` false the answer is the same, and the bucket stays as it is.
    fn take(&self, key: &str, bucket: Bucket, cost: f64, take: bool) -> Result<Taken, StateFault>;
    fn reserve(&self, key: &str, window: Window, estimate: f64) -> Result<Reserved, StateFault>;
    fn extend(&self, reservation: u64, extra: f64) -> Result<Extended, StateFault>;
    fn enter(&self, key: &str, limit: u32, lease: Duration) -> Result<Entered, StateFault>;
    /// Whether there was such a reservation or slot. Where the store does not answer, it is ended
    /// as soon as it does.
    fn end(&self, ending: Ending) -> Result<bool, StateFault>;
    /// The same without waiting for another process.
    fn end_soon(&self, ending: Ending);
    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StateFault>;
    fn set(&self, key: &str, value: &[u8], ttl: Duration) -> Result<(), StateFault>;
    fn delete(&self, key: &str) -> Result<bool, StateFault>;
    fn compare_and_set(
        &self,
        key: &str,
        old: Option<&[u8]>,
        new: &[u8],
        ttl: Duration,
    ) -> Result<bool, StateFault>;
    fn increment(&self, key: &str, by: i64, ttl: Duration) -> Result<i64, StateFault>;
}

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
    shelf: Arc<dyn Shelf>,
    quota: Quota,
    counts: Option<Arc<Counts>>,
}

impl Space {
    const KEY_BYTES_MAX: usize = 512;
    const AMOUNT_MIN: f64 = 1e-6;
    const AMOUNT_MAX: f64 = 1e12;
    const TIME_MIN: Duration = Duration::from_millis(1);
    const SLOTS_MAX: u32 = 100_000;

    pub(crate) fn new(shelf: Arc<dyn Shelf>, quota: Quota, counts: Option<Arc<Counts>>) -> Self {
        Self { shelf, quota, counts }
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
        self.shelf.take(key, bucket, cost, take)
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
        window: Window,
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
            self.shelf.reserve(key, window, estimate)
        });
        self.count(Op::Reserve, &answer, |reserved| match reserved {
            Reserved::Ok(_) => Said::Ok,
            Reserved::Denied { .. } => Said::Denied,
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
            Self::amount("extra", extra).and_then(|()| self.shelf.extend(reservation, extra));
        self.count(Op::Extend, &answer, |extended| match extended {
            Extended::Ok => Said::Ok,
            Extended::Denied => Said::Denied,
            Extended::Unknown => Said::Unknown,
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
            .and_then(|()| self.shelf.end(Ending::Settle { reservation, actual: Some(actual) }));
        self.count(Op::Settle, &answer, known);
        answer
    }

    /// Ends a reservation whose request came to nothing: all that it held in the window as it is
    /// now goes back. What the host does for those that nobody settled.
    ///
    /// Never waits: where another process keeps the state, it is told soon, and until it has heard.
    pub fn abandon(&self, reservation: u64) {
        self.count(Op::Abandon, &Ok(true), known);
        self.shelf.end_soon(Ending::Settle { reservation, actual: Some(0.0) });
    }

    /// Ends a reservation whose request ran, while nobody said what it used: all that it holds stays
    /// charged. Never waits, as [`Space::abandon`] does not.
    pub fn charge(&self, reservation: u64) {
        self.count(Op::Settle, &Ok(true), known);
        self.shelf.end_soon(Ending::Settle { reservation, actual: None });
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
        let answer = checked.and_then(|()| self.shelf.enter(key, limit, lease));
        self.count(Op::Enter, &answer, |entered| match entered {
            Entered::Ok { .. } => Said::Ok,
            Entered::Full => Said::Denied,
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
        let ending = Ending::Leave { key: key.to_owned(), slot };
        let answer = Self::key(key).and_then(|()| self.shelf.end(ending));
        self.count(Op::Leave, &answer, known);
        answer.map(|_| ())
    }

    /// Gives a slot back that a request left behind. Never waits, as [`Space::abandon`] does not.
    pub fn vacate(&self, key: &str, slot: u64) {
        self.count(Op::Leave, &Ok(true), known);
        self.shelf.end_soon(Ending::Leave { key: key.to_owned(), slot });
    }

    /// The value of a key.
    ///
    /// # Errors
    ///
    /// See [`Space`].
    pub fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StateFault> {
        let answer = Self::key(key).and_then(|()| self.shelf.get(key));
        self.count(Op::Get, &answer, |_| Said::Ok);
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
            .and_then(|ttl| self.shelf.set(key, value, ttl));
        self.count(Op::Set, &answer, |()| Said::Ok);
        answer
    }

    /// Removes a value; whether there was one.
    ///
    /// # Errors
    ///
    /// See [`Space`].
    pub fn delete(&self, key: &str) -> Result<bool, StateFault> {
        let answer = Self::key(key).and_then(|()| self.shelf.delete(key));
        self.count(Op::Delete, &answer, |_| Said::Ok);
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
            .and_then(|ttl| self.shelf.compare_and_set(key, old, new, ttl));
        self.count(Op::CompareAndSet, &answer, |&set| if set { Said::Ok } else { Said::Denied });
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
            .and_then(|ttl| self.shelf.increment(key, by, ttl));
        self.count(Op::Increment, &answer, |_| Said::Ok);
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

    fn count<T>(&self, op: Op, answer: &Result<T, StateFault>, said: impl FnOnce(&T) -> Said) {
        if let Some(counts) = &self.counts {
            counts.count(op, answer.as_ref().map_or_else(Said::from, said));
        }
    }
}

impl Taken {
    fn said(&self) -> Said {
        match self {
            Self::Ok { .. } => Said::Ok,
            Self::Denied { .. } => Said::Denied,
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
fn known(found: &bool) -> Said {
    if *found { Said::Ok } else { Said::Unknown }
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
