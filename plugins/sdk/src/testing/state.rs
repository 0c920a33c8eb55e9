//! A store in memory, with the test's clock. It refuses what a host refuses, but for want of room:
//! that is the operator's, and no test knows it.

use std::collections::BTreeMap;

use super::world;
use crate::state::{Bucket, Budget, Entered, Fault, Reservation, Reserved, Taken};

/// All that a policy's state can hold.
#[derive(Default)]
pub(crate) struct Store {
    /// What every call answers, if it is set.
    pub(crate) fault: Option<Fault>,
    buckets: BTreeMap<String, (f64, u64)>,
    budgets: BTreeMap<String, Spent>,
    reservations: BTreeMap<u64, Held>,
    rooms: BTreeMap<String, BTreeMap<u64, u64>>,
    values: BTreeMap<String, (Vec<u8>, u64)>,
    given: u64,
}

/// A window, which begins with its first reservation, and what is charged to it.
#[derive(Clone, Copy)]
struct Spent {
    began: u64,
    ends: u64,
    used: f64,
}

/// A reservation that is not settled.
struct Held {
    key: String,
    budget: Budget,
    total: f64,
    /// The part that was charged to the window that began then.
    here: f64,
    began: u64,
    ends: u64,
}

const MILLISECOND: u64 = 1_000;
const SECOND: u64 = 1_000_000;
const HOUR: u64 = 3600 * SECOND;
/// Nothing lasts longer.
const LIFE_MAX: u64 = 31 * 24 * HOUR;
/// Nor does a reservation.
const RESERVATION_LIFE: u64 = 24 * HOUR;
const KEY_BYTES_MAX: usize = 256;
const VALUE_BYTES_MAX: usize = 64 << 10;
const AMOUNT_MAX: f64 = 1e12;

/// Takes from a bucket, all or nothing. A cost of 0 looks and takes nothing.
///
/// # Errors
///
/// The store did nothing; [`Fault`] says why.
pub fn take(key: &str, bucket: Bucket, cost: f64) -> Result<Taken, Fault> {
    let Bucket { capacity, refill_per_second: refill } = bucket;
    key_is_one(key)?;
    amount_or_zero("cost", cost)?;
    amount("capacity", capacity)?;
    let fills = refill > 0.0 && refill <= AMOUNT_MAX;
    if !fills || capacity / refill > LIFE_MAX as f64 / 1e6 {
        return Err(Fault::Invalid(format!(
            "refill_per_second must fill the capacity of {capacity} within 31 days and be at most \
             {AMOUNT_MAX:e}, got {refill}"
        )));
    }
    with_store(|store, now| {
        if cost > capacity {
            return Ok(Taken::Denied(None));
        }
        let (level, at) = store.buckets.get(key).copied().unwrap_or((capacity, now));
        let level = (level + (now - at) as f64 / 1e6 * refill).min(capacity);
        if level < cost {
            // A microsecond more: who waits so long must find them, whatever was rounded.
            return Ok(Taken::Denied(Some(((cost - level) / refill * 1e6) as u64 + 1)));
        }
        if cost > 0.0 {
            store.buckets.insert(key.into(), (level - cost, now));
        }
        Ok(Taken::Ok(level - cost))
    })
}

/// Holds an estimate. What is not settled when the request has ended is given back if it never ran;
/// this host knows no requests and keeps it.
///
/// # Errors
///
/// The store did nothing; [`Fault`] says why.
pub fn reserve(key: &str, budget: Budget, estimate: f64) -> Result<Reserved, Fault> {
    key_is_one(key)?;
    amount("limit", budget.limit)?;
    if !(SECOND..=LIFE_MAX).contains(&budget.window) {
        let window = budget.window;
        return Err(Fault::Invalid(format!(
            "window must be 1s to 31 days, got {window} microseconds"
        )));
    }
    amount("estimate", estimate)?;
    with_store(|store, now| {
        if estimate > budget.limit {
            return Ok(Reserved::Denied(u64::MAX));
        }
        let mut spent = store.window(key, budget.window, now);
        let resets_in = spent.ends - now;
        if spent.used + estimate > budget.limit {
            return Ok(Reserved::Denied(resets_in));
        }
        spent.used += estimate;
        store.budgets.insert(key.into(), spent);
        store.given += 1;
        let (began, ends) = (spent.began, now + RESERVATION_LIFE);
        let held = Held { key: key.into(), budget, total: estimate, here: estimate, began, ends };
        store.reservations.insert(store.given, held);
        let remaining = budget.limit - spent.used;
        Ok(Reserved::Ok(Reservation { id: store.given, remaining, resets_in }))
    })
}

/// Holds more. False when there is not enough left: nothing changed.
///
/// # Errors
///
/// The store did nothing; [`Fault`] says why.
pub fn extend(reservation: u64, extra: f64) -> Result<bool, Fault> {
    amount("extra", extra)?;
    with_store(|store, now| {
        let Some(mut held) = store.held(reservation, now) else { return Ok(false) };
        let mut spent = store.window(&held.key, held.budget.window, now);
        let fits = spent.used + extra <= held.budget.limit;
        if fits {
            spent.used += extra;
            held.here = if held.began == spent.began { held.here + extra } else { extra };
            held.began = spent.began;
            held.total += extra;
            held.ends = now + RESERVATION_LIFE;
            store.budgets.insert(held.key.clone(), spent);
        }
        store.reservations.insert(reservation, held);
        Ok(fits)
    })
}

/// Replaces what is held by what was used, which may be more. False when there is no such
/// reservation (any more).
///
/// # Errors
///
/// The store did nothing; [`Fault`] says why.
pub fn settle(reservation: u64, actual: f64) -> Result<bool, Fault> {
    amount_or_zero("actual", actual)?;
    with_store(|store, now| {
        let Some(held) = store.held(reservation, now) else { return Ok(false) };
        let mut spent = store.window(&held.key, held.budget.window, now);
        let beyond = actual - held.total;
        if beyond > 0.0 {
            spent.used += beyond;
        } else if held.began == spent.began {
            spent.used = (spent.used + beyond.max(-held.here)).max(0.0);
        } else {
            return Ok(true);
        }
        store.budgets.insert(held.key, spent);
        Ok(true)
    })
}

/// Counts one in among at most `limit` at the same time, until [`leave`] or the end of the lease, in
/// microseconds: longer than a request may take (the operator's `limits.total_max`, 1 h by default).
///
/// # Errors
///
/// The store did nothing; [`Fault`] says why.
pub fn enter(key: &str, limit: u32, lease: u64) -> Result<Entered, Fault> {
    key_is_one(key)?;
    time("lease", lease)?;
    if !(1..=100_000).contains(&limit) {
        return Err(Fault::Invalid(format!("limit must be 1 to 100000, got {limit}")));
    }
    with_store(|store, now| {
        let room = store.rooms.entry(key.into()).or_default();
        room.retain(|_, ends| *ends > now);
        if room.len() >= limit as usize {
            return Ok(Entered::Full);
        }
        store.given += 1;
        room.insert(store.given, now + lease);
        Ok(Entered::Ok(store.given))
    })
}

/// Counts it out.
///
/// # Errors
///
/// The store did nothing; [`Fault`] says why.
pub fn leave(key: &str, number: u64) -> Result<(), Fault> {
    key_is_one(key)?;
    with_store(|store, _| {
        if let Some(room) = store.rooms.get_mut(key) {
            room.remove(&number);
        }
        Ok(())
    })
}

/// Reads a value.
///
/// # Errors
///
/// The store did nothing; [`Fault`] says why.
pub fn get(key: &str) -> Result<Option<Vec<u8>>, Fault> {
    key_is_one(key)?;
    with_store(|store, now| Ok(store.value(key, now)))
}

/// Writes a value; for this long, or for 31 days, which is the longest.
///
/// # Errors
///
/// The store did nothing; [`Fault`] says why.
pub fn set(key: &str, value: &[u8], lasts: Option<u64>) -> Result<(), Fault> {
    key_is_one(key)?;
    small(value)?;
    let lasts = life(lasts)?;
    with_store(|store, now| {
        store.values.insert(key.into(), (value.to_vec(), now + lasts));
        Ok(())
    })
}

/// Writes a value if the present one is `old` (`None`: there is none). Whether it did.
///
/// # Errors
///
/// The store did nothing; [`Fault`] says why.
pub fn compare_and_set(
    key: &str,
    old: Option<&[u8]>,
    new: &[u8],
    lasts: Option<u64>,
) -> Result<bool, Fault> {
    key_is_one(key)?;
    small(old.unwrap_or_default())?;
    small(new)?;
    let lasts = life(lasts)?;
    with_store(|store, now| {
        let same = store.value(key, now).as_deref() == old;
        if same {
            store.values.insert(key.into(), (new.to_vec(), now + lasts));
        }
        Ok(same)
    })
}

/// Adds to a whole number, which begins at 0 and then lasts so long; the sum. Later increments do
/// not make it last longer.
///
/// # Errors
///
/// The store did nothing; [`Fault`] says why.
pub fn increment(key: &str, by: i64, lasts: Option<u64>) -> Result<i64, Fault> {
    key_is_one(key)?;
    let lasts = life(lasts)?;
    with_store(|store, now| {
        let (value, ends) = match store.values.get(key).filter(|(_, ends)| now < *ends) {
            Some((value, ends)) => (whole_number(value)?, *ends),
            None => (0, now + lasts),
        };
        let sum = value.checked_add(by).ok_or_else(|| {
            Fault::Invalid(format!("{value} + {by} leaves the range of a 64-bit number"))
        })?;
        store.values.insert(key.into(), (sum.to_string().into_bytes(), ends));
        Ok(sum)
    })
}

/// Forgets a value or a number.
///
/// # Errors
///
/// The store did nothing; [`Fault`] says why.
pub fn delete(key: &str) -> Result<(), Fault> {
    key_is_one(key)?;
    with_store(|store, _| {
        store.values.remove(key);
        Ok(())
    })
}

impl Store {
    fn value(&self, key: &str, now: u64) -> Option<Vec<u8>> {
        let (value, ends) = self.values.get(key)?;
        (now < *ends).then(|| value.clone())
    }

    /// A window as it is now: one that has ended, or is not there, begins now with nothing used.
    fn window(&self, key: &str, window: u64, now: u64) -> Spent {
        let new = Spent { began: now, ends: now + window, used: 0.0 };
        self.budgets.get(key).copied().filter(|spent| now < spent.ends).unwrap_or(new)
    }

    /// Takes a reservation out, if it is there.
    fn held(&mut self, reservation: u64, now: u64) -> Option<Held> {
        self.reservations.remove(&reservation).filter(|held| now < held.ends)
    }
}

fn with_store<T>(with: impl FnOnce(&mut Store, u64) -> Result<T, Fault>) -> Result<T, Fault> {
    world(|world| {
        let now = world.now;
        match &world.store.fault {
            Some(fault) => Err(fault.clone()),
            None => with(&mut world.store, now),
        }
    })
}

fn key_is_one(key: &str) -> Result<(), Fault> {
    match key.len() {
        0 => Err(Fault::Invalid("a key must not be empty".into())),
        1..=KEY_BYTES_MAX => Ok(()),
        _ => Err(Fault::TooLarge),
    }
}

fn small(value: &[u8]) -> Result<(), Fault> {
    if value.len() > VALUE_BYTES_MAX { Err(Fault::TooLarge) } else { Ok(()) }
}

/// NaN is in no range, so it is refused here too.
fn amount(name: &str, amount: f64) -> Result<(), Fault> {
    if (1e-6..=AMOUNT_MAX).contains(&amount) {
        return Ok(());
    }
    Err(Fault::Invalid(format!("{name} must be 1e-6 to {AMOUNT_MAX:e}, got {amount}")))
}

fn amount_or_zero(name: &str, value: f64) -> Result<(), Fault> {
    if value == 0.0 { Ok(()) } else { amount(name, value) }
}

fn time(name: &str, micros: u64) -> Result<(), Fault> {
    if (MILLISECOND..=LIFE_MAX).contains(&micros) {
        return Ok(());
    }
    Err(Fault::Invalid(format!("{name} must be 1ms to 31 days, got {micros} microseconds")))
}

fn life(lasts: Option<u64>) -> Result<u64, Fault> {
    let lasts = lasts.unwrap_or(LIFE_MAX);
    time("ttl", lasts).map(|()| lasts)
}

/// What is read is what would be written.
fn whole_number(text: &[u8]) -> Result<i64, Fault> {
    let number = std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse::<i64>().ok().filter(|number| number.to_string() == text));
    number.ok_or_else(|| Fault::Invalid("the value to increment is no whole number".into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Span;
    use crate::testing::Host;

    #[test]
    fn a_bucket_fills_up_again_and_never_over() {
        let host = Host::new();
        let bucket = Bucket { capacity: 4.0, refill_per_second: 0.5 };
        assert_eq!(take("b", bucket, 4.0), Ok(Taken::Ok(0.0)));
        assert_eq!(take("b", bucket, 1.0), Ok(Taken::Denied(Some(2_000_001))));
        host.pass(Span::from_secs(3));
        assert_eq!(take("b", bucket, 1.0), Ok(Taken::Ok(0.5)));
        host.pass(Span::from_secs(3600));
        assert_eq!(take("b", bucket, 0.0), Ok(Taken::Ok(4.0)));
        assert_eq!(take("b", bucket, 5.0), Ok(Taken::Denied(None)));
    }

    #[test]
    fn a_budget_is_held_then_settled_and_new_in_each_window() {
        let host = Host::new();
        let budget = Budget::each(Span::from_secs(10), 100);
        let Ok(Reserved::Ok(first)) = reserve("b", budget, 80.0) else { panic!("there is room") };
        assert_eq!((first.remaining, first.resets_in), (20.0, 10_000_000));
        assert_eq!(reserve("b", budget, 30.0), Ok(Reserved::Denied(10_000_000)));
        assert_eq!(extend(first.id, 30.0), Ok(false));
        assert_eq!(extend(first.id, 20.0), Ok(true));
        assert_eq!(settle(first.id, 10.0), Ok(true));
        assert_eq!(settle(first.id, 10.0), Ok(false));
        let Ok(Reserved::Ok(second)) = reserve("b", budget, 30.0) else { panic!("there is room") };
        assert_eq!(second.remaining, 60.0);
        host.pass(Span::from_secs(10));
        assert_eq!(settle(second.id, 500.0), Ok(true));
        // What was used beyond the estimate is charged to the window as it is now.
        assert_eq!(reserve("b", budget, 1.0), Ok(Reserved::Denied(10_000_000)));
        host.pass(Span::from_secs(10));
        let Ok(Reserved::Ok(third)) = reserve("b", budget, 100.0) else { panic!("it is new") };
        assert_eq!(third.remaining, 0.0);
    }

    #[test]
    fn a_place_is_left_or_its_lease_ends() {
        let host = Host::new();
        let Ok(Entered::Ok(first)) = enter("r", 1, 60_000_000) else { panic!("it is empty") };
        assert_eq!(enter("r", 1, 60_000_000), Ok(Entered::Full));
        leave("r", first).expect("it is there");
        assert!(matches!(enter("r", 1, 60_000_000), Ok(Entered::Ok(_))));
        assert_eq!(enter("r", 1, 60_000_000), Ok(Entered::Full));
        host.pass(Span::from_secs(60));
        assert!(matches!(enter("r", 1, 60_000_000), Ok(Entered::Ok(_))));
    }

    #[test]
    fn a_value_is_set_by_whoever_knows_the_old_one_and_ends() {
        let host = Host::new();
        assert_eq!(compare_and_set("v", None, b"1", Some(1_000_000)), Ok(true));
        assert_eq!(compare_and_set("v", None, b"2", None), Ok(false));
        assert_eq!(increment("v", 4, Some(1_000_000)), Ok(5));
        assert_eq!(get("v"), Ok(Some(b"5".to_vec())));
        host.pass(Span::from_secs(1));
        assert_eq!(get("v"), Ok(None));
        assert_eq!(increment("v", -2, None), Ok(-2));
        delete("v").expect("it is there");
        assert_eq!(get("v"), Ok(None));
    }

    #[test]
    fn a_fault_is_every_calls_until_it_is_over() {
        let host = Host::new();
        host.state_fails(Some(Fault::Unavailable));
        assert_eq!(get("v"), Err(Fault::Unavailable));
        host.state_fails(None);
        assert_eq!(get("v"), Ok(None));
        assert_eq!(get(&"k".repeat(257)), Err(Fault::TooLarge));
        assert!(matches!(get(""), Err(Fault::Invalid(_))));
        assert!(matches!(settle(1, f64::NAN), Err(Fault::Invalid(_))));
    }

    /// It was aligned to the clock once, so that a test saw a budget renewed that no host renews.
    #[test]
    fn a_window_begins_with_its_first_reservation() {
        let host = Host::new();
        let budget = Budget::each(Span::from_secs(10), 100);
        host.pass(Span::from_secs(7));
        let Ok(Reserved::Ok(first)) = reserve("b", budget, 100.0) else { panic!("there is room") };
        assert_eq!(first.resets_in, 10_000_000);
        host.pass(Span::from_secs(9));
        assert_eq!(reserve("b", budget, 1.0), Ok(Reserved::Denied(1_000_000)));
        host.pass(Span::from_secs(1));
        assert!(matches!(reserve("b", budget, 100.0), Ok(Reserved::Ok(_))));
        assert_eq!(reserve("b", budget, 101.0), Ok(Reserved::Denied(u64::MAX)), "it never fits");
    }

    #[test]
    fn a_counter_lasts_as_long_as_it_said_at_first() {
        let host = Host::new();
        assert_eq!(increment("n", 1, Some(2_000_000)), Ok(1));
        host.pass(Span::from_secs(1));
        assert_eq!(increment("n", 1, Some(2_000_000)), Ok(2));
        host.pass(Span::from_secs(1));
        assert_eq!(get("n"), Ok(None));
        assert_eq!(increment("n", i64::MAX, None), Ok(i64::MAX));
        assert!(matches!(increment("n", 1, None), Err(Fault::Invalid(_))));
        set("n", b"+1", None).expect("it is a value");
        assert!(matches!(increment("n", 1, None), Err(Fault::Invalid(_))));
    }

    #[test]
    fn what_a_host_refuses_is_refused() {
        let _host = Host::new();
        let bucket = |capacity, refill_per_second| Bucket { capacity, refill_per_second };
        let budget = |limit, window| Budget { limit, window };
        let invalid = |fault: Option<Fault>| matches!(fault, Some(Fault::Invalid(_)));
        assert!(invalid(take("k", bucket(1.0, 0.0), 1.0).err()), "it never fills");
        assert!(invalid(take("k", bucket(1e9, 1.0), 1.0).err()), "it fills in years");
        assert!(invalid(take("k", bucket(0.0, 1.0), 0.0).err()), "it holds nothing");
        assert!(invalid(reserve("k", budget(1.0, 999_999), 1.0).err()));
        assert!(invalid(reserve("k", budget(1.0, SECOND), 0.0).err()), "an estimate of nothing");
        assert!(invalid(enter("k", 0, SECOND).err()));
        assert!(invalid(enter("k", 1, 0).err()), "a lease of nothing");
        assert!(invalid(set("k", b"", Some(LIFE_MAX + 1)).err()));
        assert_eq!(set("k", &[0; VALUE_BYTES_MAX + 1], None), Err(Fault::TooLarge));
    }
}
