//! Entries that end.

use std::borrow::Borrow;
use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::store::{Quota, StateFault};

/// A map whose entries end, which knows the order in which they do.
///
/// That order is kept lazily: an entry that is put again with a later end stays listed under the
/// earlier one until a sweep comes by there. So what is written all the time, a busy bucket, costs
/// a map's write and no more.
pub(super) struct ExpiringMap<K, V> {
    entries: HashMap<K, TableEntry<V>>,
    ends: BTreeSet<(Duration, K)>,
}

struct TableEntry<V> {
    value: V,
    bytes: u64,
    ends: Duration,
    /// The end it is listed under: never after `ends`.
    listed: Duration,
}

/// The keys and bytes that one policy's tables hold together, and the limits on them.
pub(super) struct QuotaUse {
    quota: Quota,
    keys: AtomicU64,
    bytes: AtomicU64,
}

impl<K, V> Default for ExpiringMap<K, V> {
    fn default() -> Self {
        Self { entries: HashMap::new(), ends: BTreeSet::new() }
    }
}

impl<K: Hash + Ord + Clone, V> ExpiringMap<K, V> {
    /// Entries that have ended and are dropped whenever a new one comes: more than come, so that
    /// what is over does not pile up behind what is refused to nobody.
    const SWEPT_PER_ENTRY: usize = 2;

    /// An entry that has not ended.
    pub(super) fn get<Q>(&self, key: &Q, now: Duration) -> Option<&V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.entries.get(key).filter(|entry| now < entry.ends).map(|entry| &entry.value)
    }

    /// The time at which an entry ends.
    pub(super) fn ends<Q>(&self, key: &Q) -> Option<Duration>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        self.entries.get(key).map(|entry| entry.ends)
    }

    /// Puts an entry from now on, in place of the one with the same key, or finds no room and
    /// changes nothing.
    pub(super) fn put<Q>(
        &mut self,
        key: &Q,
        value: V,
        bytes: u64,
        (now, ends): (Duration, Duration),
        usage: &QuotaUse,
    ) -> Result<(), StateFault>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        let (keys, old) = self.entries.get(key).map_or((1, 0), |entry| (0, entry.bytes));
        usage.lease(keys, bytes.saturating_sub(old))?;
        usage.release(0, old.saturating_sub(bytes));
        self.write(key, value, bytes, ends);
        if keys > 0 {
            self.sweep_some(now, usage, Self::SWEPT_PER_ENTRY);
        }
        Ok(())
    }

    /// Puts an entry without asking for room, where room has just been made.
    pub(super) fn put_anyhow<Q>(
        &mut self,
        key: &Q,
        value: V,
        bytes: u64,
        (now, ends): (Duration, Duration),
        usage: &QuotaUse,
    ) where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        let (keys, old) = self.entries.get(key).map_or((1, 0), |entry| (0, entry.bytes));
        usage.charge(keys, bytes.saturating_sub(old));
        usage.release(0, old.saturating_sub(bytes));
        self.write(key, value, bytes, ends);
        if keys > 0 {
            self.sweep_some(now, usage, Self::SWEPT_PER_ENTRY);
        }
    }

    fn write<Q>(&mut self, key: &Q, value: V, bytes: u64, ends: Duration)
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        if let Some(entry) = self.entries.get_mut(key) {
            if ends < entry.listed {
                let key = key.to_owned();
                self.ends.remove(&(entry.listed, key.clone()));
                self.ends.insert((ends, key));
                entry.listed = ends;
            }
            (entry.value, entry.bytes, entry.ends) = (value, bytes, ends);
            return;
        }
        let key = key.to_owned();
        self.ends.insert((ends, key.clone()));
        self.entries.insert(key, TableEntry { value, bytes, ends, listed: ends });
    }

    /// Removes an entry, ended or not.
    pub(super) fn remove<Q>(&mut self, key: &Q, usage: &QuotaUse) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let (key, entry) = self.entries.remove_entry(key)?;
        self.ends.remove(&(entry.listed, key));
        usage.release(1, entry.bytes);
        Some(entry.value)
    }

    /// Drops what has ended; whether there was any.
    pub(super) fn sweep(&mut self, now: Duration, usage: &QuotaUse) -> bool {
        self.sweep_some(now, usage, usize::MAX)
    }

    fn sweep_some(&mut self, now: Duration, usage: &QuotaUse, most: usize) -> bool {
        let mut any = false;
        for _ in 0..most {
            let due = self.ends.first().is_some_and(|(ends, _)| *ends <= now);
            let Some((_, key)) = due.then(|| self.ends.pop_first()).flatten() else { break };
            let Some(entry) = self.entries.get_mut(&key) else { continue };
            if entry.ends <= now {
                usage.release(1, entry.bytes);
                self.entries.remove(&key);
                any = true;
            } else {
                entry.listed = entry.ends;
                self.ends.insert((entry.ends, key));
            }
        }
        any
    }
}

impl QuotaUse {
    pub(super) fn new(quota: Quota) -> Self {
        Self { quota, keys: AtomicU64::new(0), bytes: AtomicU64::new(0) }
    }

    fn lease(&self, keys: u64, bytes: u64) -> Result<(), StateFault> {
        lease(&self.keys, keys, self.quota.keys_max)?;
        lease(&self.bytes, bytes, self.quota.bytes_max).inspect_err(|_| self.release(keys, 0))
    }

    fn charge(&self, keys: u64, bytes: u64) {
        self.keys.fetch_add(keys, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn release(&self, keys: u64, bytes: u64) {
        self.keys.fetch_sub(keys, Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

fn lease(of: &AtomicU64, more: u64, most: u64) -> Result<(), StateFault> {
    if more == 0 {
        return Ok(());
    }
    let add = |now: u64| now.checked_add(more).filter(|&then| then <= most);
    // Relaxed: a count guards nothing but itself; entries are guarded by their shard's mutex.
    of.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add)
        .map(|_| ())
        .map_err(|_| StateFault::Quota)
}
