//! State in this process.
//!
//! A policy's keys are spread over shards, each behind a mutex that is held for one operation and
//! never while another is locked. What all shards share is the policy's account of keys and bytes
//! ([`QuotaUse`]): atomics, charged before an entry is made and paid back when it goes.
//!
//! # Invariants
//!
//! - The clock is read with the shard locked, so within a shard time never runs backwards.
//! - An operation that fails for want of room has changed nothing: it is tried once more after all
//!   shards were swept.
//! - A reservation lies in the shard of its window, so that both change under one lock; its number
//!   says which shard that is.
//!
//! # Not here
//!
//! A cache. The well-kept concurrent maps with expiry (moka, quick_cache) make room by dropping
//! what was least used; here that would forgive somebody's limit, so a full store refuses instead.

mod table;

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use self::table::{ExpiringMap, QuotaUse};
use crate::clock::StateClock;
use crate::metrics::StateMetrics;
use crate::store::{
    Bucket, BudgetWindow, Entered, Extended, LeaseEnd, PolicyStore, Quota, Reservation, Reserved,
    SLOT_BYTES, StateFault, Taken, entry_bytes,
};
use crate::{RESERVATION_LIFE, Store};

/// The store in this process, for all policies.
pub(crate) struct MemoryStore {
    clock: Arc<dyn StateClock>,
    quota: Quota,
    // As many entries as the configuration has policies.
    policy_stores: Mutex<HashMap<Box<str>, Arc<MemoryPolicyStore>>>,
}

/// The state of one policy.
struct MemoryPolicyStore {
    clock: Arc<dyn StateClock>,
    usage: QuotaUse,
    shards: [Mutex<Shard>; SHARDS],
    /// Numbers for reservations and slots: counted, so that a simulation repeats.
    serial: AtomicU64,
}

/// Enough that the threads of a large machine seldom meet, few enough to sweep at once.
const SHARDS: usize = 16;

#[derive(Default)]
struct Shard {
    buckets: ExpiringMap<String, BucketLevel>,
    windows: ExpiringMap<String, WindowUse>,
    reservations: ExpiringMap<u64, HeldReservation>,
    slots: ExpiringMap<String, Vec<Slot>>,
    values: ExpiringMap<String, Vec<u8>>,
}

/// A bucket: what it held when it was last taken from. Ends when it is full, which is what a bucket
/// that is not there is.
#[derive(Clone, Copy)]
struct BucketLevel {
    tokens: f64,
    at: Duration,
}

/// A window: when it began and ends, and what is charged to it. Its end stays when the settings
/// change; they hold from the next window on.
#[derive(Clone, Copy)]
struct WindowUse {
    began: Duration,
    ends: Duration,
    used: f64,
}

/// A reservation that is not settled.
#[derive(Clone)]
struct HeldReservation {
    key: String,
    window: BudgetWindow,
    /// All that it was charged.
    total: f64,
    /// The part of it that was charged to the window that began then; the rest fell into windows
    /// that are over.
    here: f64,
    began: Duration,
}

#[derive(Clone, Copy)]
struct Slot {
    id: u64,
    ends: Duration,
}

impl MemoryStore {
    pub(crate) fn new(clock: Arc<dyn StateClock>, quota: Quota) -> Self {
        Self { clock, quota, policy_stores: Mutex::default() }
    }
}

impl Store for MemoryStore {
    fn waits(&self) -> bool {
        false
    }

    fn count_in(&self, metrics: &StateMetrics) {
        metrics.available.set(1);
    }

    fn flush(&self, _: Duration) -> bool {
        true
    }

    fn policy_store(&self, policy: &str) -> Arc<dyn PolicyStore> {
        let mut policy_stores = self.policy_stores.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || {
            Arc::new(MemoryPolicyStore {
                clock: Arc::clone(&self.clock),
                usage: QuotaUse::new(self.quota),
                shards: Default::default(),
                serial: AtomicU64::new(1),
            })
        };
        Arc::clone(policy_stores.entry(policy.into()).or_insert_with(new)) as Arc<dyn PolicyStore>
    }
}

impl MemoryPolicyStore {
    fn shard_of(key: &str) -> usize {
        // The same in each run, as the numbers of reservations are.
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        hasher.finish() as usize % SHARDS
    }

    fn number(&self, shard: usize) -> u64 {
        self.serial.fetch_add(1, Ordering::Relaxed) * SHARDS as u64 + shard as u64
    }

    fn shard_of_number(number: u64) -> usize {
        (number % SHARDS as u64) as usize
    }

    fn lock(&self, shard: usize) -> MutexGuard<'_, Shard> {
        // A panic in here is a bug that ends one request; the shard's numbers are plain data.
        self.shards[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs an operation on a shard; once more after sweeping, if there was no room for it.
    fn on<T>(
        &self,
        shard: usize,
        mut operation: impl FnMut(&mut Shard, Duration) -> Result<T, StateFault>,
    ) -> Result<T, StateFault> {
        let mut once = || {
            let mut shard = self.lock(shard);
            let now = self.clock.now();
            operation(&mut shard, now)
        };
        match once() {
            Err(StateFault::Quota) if self.sweep() => once(),
            answer => answer,
        }
    }

    /// Drops all that has ended; whether there was any.
    fn sweep(&self) -> bool {
        let mut any = false;
        for shard in 0..SHARDS {
            let mut shard = self.lock(shard);
            let now = self.clock.now();
            any |= shard.buckets.sweep(now, &self.usage);
            any |= shard.windows.sweep(now, &self.usage);
            any |= shard.reservations.sweep(now, &self.usage);
            any |= shard.slots.sweep(now, &self.usage);
            any |= shard.values.sweep(now, &self.usage);
        }
        any
    }
}

impl Shard {
    /// A window as it is now: one that has ended, or is not there, begins now with nothing used.
    fn window(&self, key: &str, per: Duration, now: Duration) -> WindowUse {
        let new = WindowUse { began: now, ends: now + per, used: 0.0 };
        self.windows.get(key, now).copied().unwrap_or(new)
    }
}

impl MemoryPolicyStore {
    fn settle(&self, reservation: u64, actual: Option<f64>) -> Result<bool, StateFault> {
        self.on(Self::shard_of_number(reservation), |shard, now| {
            if shard.reservations.get(&reservation, now).is_none() {
                return Ok(false);
            }
            // The reservation goes first: its key and bytes are what a window that has to be made
            // again needs at most, so settling works however full the store is.
            let held = shard.reservations.remove(&reservation, &self.usage);
            let Some(held) = held else { return Ok(false) };
            let mut spent = shard.window(&held.key, held.window.per, now);
            let beyond = actual.map_or(0.0, |actual| actual - held.total);
            if beyond > 0.0 {
                spent.used += beyond;
            } else if held.began == spent.began {
                spent.used = (spent.used + beyond.max(-held.here)).max(0.0);
            } else {
                return Ok(true);
            }
            let (size, until) = (entry_bytes(&held.key), (now, spent.ends));
            shard.windows.put_anyhow(held.key.as_str(), spent, size, until, &self.usage);
            Ok(true)
        })
    }

    fn leave(&self, key: &str, slot: u64) -> Result<bool, StateFault> {
        self.on(Self::shard_of(key), |shard, now| {
            let Some(slots) = shard.slots.get(key, now) else { return Ok(false) };
            let running = slots.iter().filter(|one| one.ends > now);
            let left: Vec<Slot> = running.clone().filter(|one| one.id != slot).copied().collect();
            let found = left.len() < running.count();
            match left.iter().map(|slot| slot.ends).max() {
                Some(ends) => {
                    let size = entry_bytes(key) + SLOT_BYTES * left.len() as u64;
                    shard.slots.put(key, left, size, (now, ends), &self.usage)?;
                }
                None => drop(shard.slots.remove(key, &self.usage)),
            }
            Ok(found)
        })
    }
}

impl PolicyStore for MemoryPolicyStore {
    fn take(&self, key: &str, bucket: Bucket, cost: f64, take: bool) -> Result<Taken, StateFault> {
        let Bucket { capacity, refill_per_second } = bucket;
        self.on(Self::shard_of(key), |shard, now| {
            let tokens = shard.buckets.get(key, now).map_or(capacity, |level| {
                let gained = now.saturating_sub(level.at).as_secs_f64() * refill_per_second;
                capacity.min(level.tokens + gained)
            });
            if tokens < cost {
                // Nothing is written: what a slow bucket gains between two calls would be rounded
                // away if each denial added it up.
                return Ok(Taken::denied(cost - tokens, refill_per_second));
            }
            let remaining = tokens - cost;
            if take {
                let full_in = Duration::from_secs_f64((capacity - remaining) / refill_per_second);
                let level = BucketLevel { tokens: remaining, at: now };
                shard.buckets.put(
                    key,
                    level,
                    entry_bytes(key),
                    (now, now + full_in),
                    &self.usage,
                )?;
            }
            Ok(Taken::Ok { remaining })
        })
    }

    fn reserve(
        &self,
        key: &str,
        window: BudgetWindow,
        estimate: f64,
    ) -> Result<Reserved, StateFault> {
        let place = Self::shard_of(key);
        self.on(place, |shard, now| {
            let mut spent = shard.window(key, window.per, now);
            let resets_in = spent.ends - now;
            if spent.used + estimate > window.limit {
                return Ok(Reserved::Denied { available_in: resets_in });
            }
            spent.used += estimate;
            let id = self.number(place);
            let held = HeldReservation {
                key: key.to_owned(),
                window,
                total: estimate,
                here: estimate,
                began: spent.began,
            };
            let life = now + RESERVATION_LIFE;
            shard.reservations.put(&id, held, entry_bytes(key), (now, life), &self.usage)?;
            let until = (now, spent.ends);
            if let Err(full) = shard.windows.put(key, spent, entry_bytes(key), until, &self.usage) {
                shard.reservations.remove(&id, &self.usage);
                return Err(full);
            }
            let remaining = window.limit - spent.used;
            Ok(Reserved::Ok(Reservation { id, remaining, resets_in }))
        })
    }

    fn extend(&self, reservation: u64, extra: f64) -> Result<Extended, StateFault> {
        self.on(Self::shard_of_number(reservation), |shard, now| {
            let Some(mut held) = shard.reservations.get(&reservation, now).cloned() else {
                return Ok(Extended::Unknown);
            };
            let mut spent = shard.window(&held.key, held.window.per, now);
            if spent.used + extra > held.window.limit {
                return Ok(Extended::Denied);
            }
            spent.used += extra;
            held.here = if held.began == spent.began { held.here + extra } else { extra };
            held.began = spent.began;
            held.total += extra;
            let (key, size) = (held.key.clone(), entry_bytes(&held.key));
            shard.windows.put(key.as_str(), spent, size, (now, spent.ends), &self.usage)?;
            let life = now + RESERVATION_LIFE;
            shard.reservations.put(&reservation, held, size, (now, life), &self.usage)?;
            Ok(Extended::Ok)
        })
    }

    fn enter(&self, key: &str, limit: u32, lease: Duration) -> Result<Entered, StateFault> {
        let place = Self::shard_of(key);
        self.on(place, |shard, now| {
            let mut slots = shard.slots.get(key, now).cloned().unwrap_or_default();
            slots.retain(|slot| slot.ends > now);
            if slots.len() >= limit as usize {
                return Ok(Entered::Full);
            }
            let id = self.number(place);
            slots.push(Slot { id, ends: now + lease });
            let running = u32::try_from(slots.len()).unwrap_or(u32::MAX);
            let ends = slots.iter().map(|slot| slot.ends).max().unwrap_or(now);
            let size = entry_bytes(key) + SLOT_BYTES * slots.len() as u64;
            shard.slots.put(key, slots, size, (now, ends), &self.usage)?;
            Ok(Entered::Ok { slot: id, running })
        })
    }

    fn end(&self, ending: LeaseEnd) -> Result<bool, StateFault> {
        match ending {
            LeaseEnd::Settle { reservation, actual } => self.settle(reservation, actual),
            LeaseEnd::Leave { key, slot } => self.leave(&key, slot),
        }
    }

    fn end_soon(&self, ending: LeaseEnd) {
        // It always answers, and there is room for an ending.
        let _known = self.end(ending);
    }

    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StateFault> {
        self.on(Self::shard_of(key), |shard, now| Ok(shard.values.get(key, now).cloned()))
    }

    fn set(&self, key: &str, value: &[u8], ttl: Duration) -> Result<(), StateFault> {
        self.on(Self::shard_of(key), |shard, now| {
            let size = entry_bytes(key) + value.len() as u64;
            shard.values.put(key, value.to_vec(), size, (now, now + ttl), &self.usage)
        })
    }

    fn delete(&self, key: &str) -> Result<bool, StateFault> {
        self.on(Self::shard_of(key), |shard, now| {
            let found = shard.values.get(key, now).is_some();
            shard.values.remove(key, &self.usage);
            Ok(found)
        })
    }

    fn compare_and_set(
        &self,
        key: &str,
        old: Option<&[u8]>,
        new: &[u8],
        ttl: Duration,
    ) -> Result<bool, StateFault> {
        self.on(Self::shard_of(key), |shard, now| {
            if shard.values.get(key, now).map(Vec::as_slice) != old {
                return Ok(false);
            }
            let size = entry_bytes(key) + new.len() as u64;
            shard.values.put(key, new.to_vec(), size, (now, now + ttl), &self.usage)?;
            Ok(true)
        })
    }

    fn increment(&self, key: &str, by: i64, ttl: Duration) -> Result<i64, StateFault> {
        self.on(Self::shard_of(key), |shard, now| {
            let (value, ends) = match shard.values.get(key, now) {
                Some(text) => (whole_number(text)?, shard.values.ends(key).unwrap_or(now + ttl)),
                None => (0, now + ttl),
            };
            let value = value.checked_add(by).ok_or_else(|| {
                StateFault::Invalid(format!("{value} + {by} leaves the range of a 64-bit number"))
            })?;
            let text = value.to_string().into_bytes();
            let size = entry_bytes(key) + text.len() as u64;
            shard.values.put(key, text, size, (now, ends), &self.usage)?;
            Ok(value)
        })
    }
}

/// As strict as Redis: what is read is what would be written.
fn whole_number(text: &[u8]) -> Result<i64, StateFault> {
    let number = std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse::<i64>().ok().filter(|number| number.to_string() == text));
    number.ok_or_else(|| StateFault::Invalid("the value to increment is no whole number".into()))
}
