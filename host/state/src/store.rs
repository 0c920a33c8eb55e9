//! What a store is asked for, and its answers; and the rules by which it counts what a policy keeps.

use std::time::Duration;

/// The wait for what cannot become available by waiting: more than the bucket or the window ever holds.
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
    /// Tokens gained in a second. It must fill the bucket within [`LIFE_MAX`](crate::LIFE_MAX).
    pub refill_per_second: f64,
}

/// The result of [`Space::take`](crate::Space::take) and [`Space::peek`](crate::Space::peek).
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Taken {
    /// The tokens are (or would be) taken.
    Ok {
        /// Tokens left in the bucket.
        remaining: f64,
    },
    /// There are not enough, and the bucket is as it was.
    Denied {
        /// The time until there are enough, if nobody else takes any; [`NEVER`] if the bucket is too
        /// small.
        available_in: Duration,
    },
}

/// A budget: at most `limit` in each window of `per`.
///
/// A window begins with the first reservation after the one before ended, so up to twice the limit
/// can fall within `per` around a border. Where that matters, a [`Bucket`] has no borders. A
/// changed `limit` holds at once, a changed `per` from the next window on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BudgetWindow {
    /// Most that is charged in one window, 1e-6 to 1e12.
    pub limit: f64,
    /// How long a window is, 1ms to [`LIFE_MAX`](crate::LIFE_MAX).
    pub per: Duration,
}

/// The result of [`Space::reserve`](crate::Space::reserve).
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Reserved {
    /// The estimate is charged.
    Ok(Reservation),
    /// The window has no room for the estimate, and nothing was charged.
    Denied {
        /// When the window ends, at the latest: what others give back may make room before.
        /// [`NEVER`] if the estimate is above the limit.
        available_in: Duration,
    },
}

/// A charge that waits to be settled.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reservation {
    /// The number of the reservation, in this policy's space. No number is used twice.
    pub id: u64,
    /// How much of the window's limit is left.
    pub remaining: f64,
    /// When the window ends.
    pub resets_in: Duration,
}

/// The result of [`Space::enter`](crate::Space::enter).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entered {
    /// There was a free slot, which is now taken.
    Ok {
        /// Names the slot; give it to [`Space::leave`](crate::Space::leave).
        slot: u64,
        /// The number of slots that are taken now, this one included.
        running: u32,
    },
    /// All slots are taken, and it is not known when one will be free.
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

/// How a lease of a request ends. Ending it twice changes nothing.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum LeaseEnd {
    /// A reservation, of which so much was used; `None`: all that it holds.
    Settle {
        /// The number of the reservation.
        reservation: u64,
        /// How much of the reservation was used; `None` charges all that it holds.
        actual: Option<f64>,
    },
    /// Give a slot back.
    Leave {
        /// The key whose slots are counted.
        key: String,
        /// The number of the slot.
        slot: u64,
    },
}

/// The result of extending a reservation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extended {
    Ok,
    Denied,
    Unknown,
}

/// The limits on what one policy may keep.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Quota {
    pub(crate) keys_max: u64,
    pub(crate) bytes_max: u64,
    pub(crate) value_bytes_max: usize,
}

/// One policy's part of a store. What arrives has been checked; each call is atomic.
pub(crate) trait PolicyStore: Send + Sync {
    /// With `take` false the answer is the same, and the bucket stays as it is.
    fn take(&self, key: &str, bucket: Bucket, cost: f64, take: bool) -> Result<Taken, StateFault>;
    fn reserve(
        &self,
        key: &str,
        window: BudgetWindow,
        estimate: f64,
    ) -> Result<Reserved, StateFault>;
    fn extend(&self, reservation: u64, extra: f64) -> Result<Extended, StateFault>;
    fn enter(&self, key: &str, limit: u32, lease: Duration) -> Result<Entered, StateFault>;
    /// Whether there was such a reservation or slot. Where the store does not answer, it is ended
    /// as soon as it does.
    fn end(&self, ending: LeaseEnd) -> Result<bool, StateFault>;
    /// Does what `end` does, later and without waiting for another process.
    fn end_soon(&self, ending: LeaseEnd);
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
