//! A store in memory, with the test's clock.

use std::collections::BTreeMap;

use super::world;
use crate::state::{Bucket, Budget, Entered, Fault, Reservation, Reserved, Taken};

/// All that a policy's state can hold.
#[derive(Default)]
pub(crate) struct Store {
    /// What every call answers, if it is set.
    pub(crate) fault: Option<Fault>,
    buckets: BTreeMap<String, (f64, u64)>,
    /// Used and held in the window with this number.
    budgets: BTreeMap<String, (u64, f64)>,
    reservations: BTreeMap<u64, Held>,
    rooms: BTreeMap<String, BTreeMap<u64, u64>>,
    values: BTreeMap<String, (Vec<u8>, Option<u64>)>,
    given: u64,
}

struct Held {
    key: String,
    window: u64,
    limit: f64,
    much: f64,
}

/// Takes from a bucket, all or nothing. A cost of 0 looks and takes nothing.
///
/// # Errors
///
/// The store did nothing; [`Fault`] says why.
pub fn take(key: &str, bucket: Bucket, cost: f64) -> Result<Taken, Fault> {
    numbers(&[bucket.capacity, bucket.refill_per_second, cost])?;
    with_store(key, |store, now| {
        let (level, at) = store.buckets.get(key).copied().unwrap_or((bucket.capacity, now));
        let flowed = (now - at) as f64 / 1e6 * bucket.refill_per_second;
        let level = (level + flowed).min(bucket.capacity);
        let left = level - cost;
        store.buckets.insert(key.into(), (if left < 0.0 { level } else { left }, now));
        if left >= 0.0 {
            return Ok(Taken::Ok(left));
        }
        let never = cost > bucket.capacity || bucket.refill_per_second == 0.0;
        let wait = (-left / bucket.refill_per_second * 1e6).ceil() as u64;
        Ok(Taken::Denied((!never).then_some(wait)))
    })
}

/// Holds an estimate. What is not settled when the request has ended, the host releases; this
/// host knows no requests and keeps it.
///
/// # Errors
///
/// The store did nothing; [`Fault`] says why.
pub fn reserve(key: &str, budget: Budget, estimate: f64) -> Result<Reserved, Fault> {
    numbers(&[budget.limit, estimate])?;
    if budget.window < 1_000_000 {
        return Err(Fault::Invalid("window is shorter than a second".into()));
    }
    with_store(key, |store, now| {
        let window = now / budget.window;
        let resets_in = (window + 1) * budget.window - now;
        let used = store.budgets.entry(key.into()).or_insert((window, 0.0));
        if used.0 != window {
            *used = (window, 0.0);
        }
        if used.1 + estimate > budget.limit {
            return Ok(Reserved::Denied(resets_in));
        }
        used.1 += estimate;
        let remaining = budget.limit - used.1;
        store.given += 1;
        let held = Held { key: key.into(), window, limit: budget.limit, much: estimate };
        store.reservations.insert(store.given, held);
        Ok(Reserved::Ok(Reservation { id: store.given, remaining, resets_in }))
    })
}

/// Holds more. False when there is not enough left: nothing changed.
///
/// # Errors
///
/// The store did nothing; [`Fault`] says why.
pub fn extend(reservation: u64, extra: f64) -> Result<bool, Fault> {
    numbers(&[extra])?;
    with_store("-", |store, _| {
        let Some(held) = store.reservations.get_mut(&reservation) else { return Ok(false) };
        let used = store.budgets.entry(held.key.clone()).or_insert((held.window, 0.0));
        if used.0 == held.window {
            if used.1 + extra > held.limit {
                return Ok(false);
            }
            used.1 += extra;
        }
        held.much += extra;
        Ok(true)
    })
}

/// Replaces what is held by what was used, which may be more. False when there is no such
/// reservation (any more).
///
/// # Errors
///
/// The store did nothing; [`Fault`] says why.
pub fn settle(reservation: u64, actual: f64) -> Result<bool, Fault> {
    numbers(&[actual])?;
    with_store("-", |store, _| {
        let Some(held) = store.reservations.remove(&reservation) else { return Ok(false) };
        if let Some(used) = store.budgets.get_mut(&held.key).filter(|used| used.0 == held.window) {
            used.1 += actual - held.much;
        }
        Ok(true)
    })
}

/// Counts one in among at most `limit` at the same time, until [`leave`] or the lease's end.
///
/// # Errors
///
/// The store did nothing; [`Fault`] says why.
pub fn enter(key: &str, limit: u32, lease: u64) -> Result<Entered, Fault> {
    with_store(key, |store, now| {
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
    with_store(key, |store, _| {
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
    with_store(key, |store, now| Ok(store.value(key, now)))
}

/// Writes a value; for this long, or until it is deleted.
///
/// # Errors
///
/// The store did nothing; [`Fault`] says why.
pub fn set(key: &str, value: &[u8], lasts: Option<u64>) -> Result<(), Fault> {
    with_store(key, |store, now| {
        store.values.insert(key.into(), (value.to_vec(), lasts.map(|lasts| now + lasts)));
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
    let same = with_store(key, |store, now| Ok(store.value(key, now).as_deref() == old))?;
    if same {
        set(key, new, lasts)?;
    }
    Ok(same)
}

/// Adds to a whole number, which begins at 0; the sum.
///
/// # Errors
///
/// The store did nothing; [`Fault`] says why.
pub fn increment(key: &str, by: i64, lasts: Option<u64>) -> Result<i64, Fault> {
    let value = get(key)?.unwrap_or_else(|| b"0".to_vec());
    let number = String::from_utf8(value).ok().and_then(|digits| digits.parse::<i64>().ok());
    let number = number.ok_or_else(|| Fault::Invalid("the value is no whole number".into()))? + by;
    set(key, number.to_string().as_bytes(), lasts)?;
    Ok(number)
}

/// Forgets a value or a number.
///
/// # Errors
///
/// The store did nothing; [`Fault`] says why.
pub fn delete(key: &str) -> Result<(), Fault> {
    with_store(key, |store, _| {
        store.values.remove(key);
        Ok(())
    })
}

impl Store {
    fn value(&self, key: &str, now: u64) -> Option<Vec<u8>> {
        let (value, ends) = self.values.get(key)?;
        ends.is_none_or(|ends| now < ends).then(|| value.clone())
    }
}

fn with_store<T>(
    key: &str,
    with: impl FnOnce(&mut Store, u64) -> Result<T, Fault>,
) -> Result<T, Fault> {
    if key.is_empty() || key.len() > 256 {
        return Err(Fault::TooLarge);
    }
    world(|world| {
        let now = world.now;
        match &world.store.fault {
            Some(fault) => Err(fault.clone()),
            None => with(&mut world.store, now),
        }
    })
}

fn numbers(all: &[f64]) -> Result<(), Fault> {
    let wrong = all.iter().find(|number| !number.is_finite() || **number < 0.0);
    wrong.map_or(Ok(()), |number| Err(Fault::Invalid(format!("{number} is no amount"))))
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
        assert_eq!(take("b", bucket, 1.0), Ok(Taken::Denied(Some(2_000_000))));
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
        assert_eq!(settle(second.id, 500.0), Ok(true), "it was another window's");
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
        assert_eq!(compare_and_set("v", None, b"1", None), Ok(true));
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
        assert_eq!(get(""), Err(Fault::TooLarge));
        assert!(matches!(settle(1, f64::NAN), Err(Fault::Invalid(_))));
    }
}
