//! What holds of every store. Each story runs in memory, on a clock that moves when told to, and
//! against the oldest and the newest server, where all that is kept gets older when told to. Times are
//! seconds and minutes, so that a loaded machine, on which some time really passes, changes nothing.

mod rig;

use std::thread;
use std::time::Duration;

use interlock_metrics::Registry;
use interlock_request::ByteSize;
use interlock_state::{
    Bucket, BudgetWindow, Entered, NEVER, Reservation, Reserved, Space, StateFault, StateMetrics,
    Taken,
};
use proptest::prelude::*;
use rig::{Version, World};

/// Runs each story against every store.
macro_rules! stories {
    ($($story:ident),* $(,)?) => {
        mod in_memory {
            $(#[test] fn $story() { super::$story(super::World::memory()); })*
        }
        mod in_redis_6_2 {
            use super::*;
            $(#[test] fn $story() { super::$story(World::redis(Version::Redis62)); })*
        }
        mod in_valkey_9_1 {
            use super::*;
            $(#[test] fn $story() { super::$story(World::redis(Version::Valkey91)); })*
        }
    };
}

stories![
    a_bucket_is_full_at_first_and_grants_no_more_than_it_holds,
    who_waits_as_long_as_told_is_granted,
    a_denial_costs_nothing_however_often,
    peeking_takes_nothing,
    what_a_bucket_or_window_never_holds_is_never_available,
    a_bucket_follows_its_settings,
    what_is_settled_is_charged_and_the_rest_goes_back,
    what_was_used_beyond_the_estimate_is_charged_too,
    a_reservation_ends_once,
    a_reservation_extends_while_there_is_room,
    a_window_ends_and_what_was_reserved_in_it_is_over,
    what_is_extended_in_the_next_window_goes_back_there,
    slots_are_counted_until_left,
    a_lease_that_ends_frees_its_slot,
    a_lowered_limit_waits_for_those_within,
    a_slot_that_its_request_left_behind_is_vacated,
    what_a_request_used_that_nobody_accounted_for_stays_charged,
    values_are_what_was_set,
    a_value_ends_with_its_ttl,
    compare_and_set_sets_what_it_expected,
    a_counter_counts_and_ends_when_it_was_made_to,
    a_counter_has_all_digits_of_64_bits,
    policies_and_kinds_are_apart,
    a_full_space_refuses_what_is_new_and_serves_what_is_there,
    what_has_ended_makes_room_before_anything_is_refused,
    bytes_are_bounded_as_keys_are,
    settling_works_in_a_full_space,
    keys_may_be_anything,
    numbers_without_meaning_are_named,
    threads_together_take_no_more_than_there_is,
    a_bucket_never_grants_more_than_it_held_and_gained,
    settling_extending_and_abandoning_conserve,
    what_is_asked_is_counted,
];

/// Nothing here takes long, unless it hangs.
const LONG: Duration = Duration::from_secs(60);

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Practically never gains anything: a whole bucket in 30 days.
fn still(capacity: f64) -> Bucket {
    Bucket { capacity, refill_per_second: capacity / (30.0 * 86_400.0) }
}

fn hour(limit: f64) -> BudgetWindow {
    BudgetWindow { limit, per: Duration::from_secs(3600) }
}

#[track_caller]
fn taken(answer: Result<Taken, StateFault>) -> Option<f64> {
    match answer.expect("the store answers") {
        Taken::Ok { remaining } => Some(remaining),
        Taken::Denied { .. } => None,
    }
}

#[track_caller]
fn reserved(answer: Result<Reserved, StateFault>) -> Reservation {
    match answer.expect("the store answers") {
        Reserved::Ok(reservation) => reservation,
        denied @ Reserved::Denied { .. } => panic!("there is room, but {denied:?}"),
    }
}

/// What is left of a window: the most that it would still let reserve.
#[track_caller]
fn left(space: &Space, key: &str, window: BudgetWindow) -> f64 {
    match space.reserve(key, window, 1e-6).expect("the store answers") {
        Reserved::Ok(probe) => {
            assert!(space.settle(probe.id, 0.0).expect("the store answers"));
            ((probe.remaining + 1e-6) * 1e4).round() / 1e4
        }
        Reserved::Denied { .. } => 0.0,
    }
}

#[track_caller]
fn entered(answer: Result<Entered, StateFault>) -> u64 {
    match answer.expect("the store answers") {
        Entered::Ok { slot, .. } => slot,
        denied @ Entered::Full => panic!("there is a slot, but {denied:?}"),
    }
}

fn a_bucket_is_full_at_first_and_grants_no_more_than_it_holds(world: World) {
    let space = world.state().space("p");
    let remaining = taken(space.take("k", still(10.0), 4.0)).unwrap();
    assert!((6.0..6.001).contains(&remaining), "{remaining}");
    assert!(taken(space.take("k", still(10.0), 6.0)).is_some());
    assert_eq!(taken(space.take("k", still(10.0), 1.0)), None);
    assert!(taken(space.take("another", still(10.0), 10.0)).is_some());
}

fn who_waits_as_long_as_told_is_granted(world: World) {
    let space = world.state().space("p");
    let bucket = Bucket { capacity: 3.0, refill_per_second: 7.0 };
    assert!(taken(space.take("k", bucket, 3.0)).is_some());
    for _ in 0..3 {
        let answer = space.take("k", bucket, 0.7).unwrap();
        let Taken::Denied { available_in } = answer else { panic!("empty, but {answer:?}") };
        assert!(available_in <= ms(101), "0.7 tokens at 7 a second: {available_in:?}");
        world.wait(available_in);
        assert!(taken(space.take("k", bucket, 0.7)).is_some());
    }
}

fn a_denial_costs_nothing_however_often(world: World) {
    let space = world.state().space("p");
    let bucket = Bucket { capacity: 1e9, refill_per_second: 1e4 };
    assert!(taken(space.take("k", bucket, 1e9)).is_some());
    // 1000 tokens come in 100 ms; asking all the time does not keep them from coming.
    for _ in 0..100 {
        let _ = space.take("k", bucket, 1000.0).unwrap();
        world.wait(ms(1));
    }
    world.wait(ms(2));
    let level = taken(space.peek("k", bucket, 0.0)).unwrap();
    let granted = taken(space.take("k", bucket, 1000.0)).is_some();
    assert!(granted || level < 1000.0, "{level} tokens, and 1000 were denied");
}

fn peeking_takes_nothing(world: World) {
    let space = world.state().space("p");
    for _ in 0..3 {
        assert_eq!(taken(space.peek("k", still(10.0), 0.0)), Some(10.0));
        assert_eq!(taken(space.peek("k", still(10.0), 10.0)), Some(0.0));
    }
    assert!(taken(space.take("k", still(10.0), 10.0)).is_some());
    assert_eq!(taken(space.peek("k", still(10.0), 1.0)), None);
    assert!(taken(space.peek("k", still(10.0), 0.0)).is_some());
}

fn what_a_bucket_or_window_never_holds_is_never_available(world: World) {
    let space = world.state().space("p");
    let answer = space.take("k", still(10.0), 11.0).unwrap();
    assert_eq!(answer, Taken::Denied { available_in: NEVER });
    let answer = space.reserve("k", hour(10.0), 11.0).unwrap();
    assert_eq!(answer, Reserved::Denied { available_in: NEVER });
}

fn a_bucket_follows_its_settings(world: World) {
    let space = world.state().space("p");
    assert!(taken(space.take("k", still(100.0), 1.0)).is_some());
    let lowered = taken(space.peek("k", still(10.0), 0.0)).unwrap();
    assert!(lowered <= 10.0, "{lowered}");
    assert!(taken(space.take("k", still(10.0), 10.0)).is_some());
    let raised = taken(space.peek("k", still(100.0), 0.0)).unwrap();
    assert!(raised < 0.1, "raising the capacity is no refill: {raised}");
}

fn what_is_settled_is_charged_and_the_rest_goes_back(world: World) {
    let state = world.state();
    let space = state.space("p");
    let reservation = reserved(space.reserve("k", hour(100.0), 60.0));
    assert!((reservation.remaining - 40.0).abs() < 1e-9);
    assert!(reservation.resets_in <= Duration::from_secs(3600));
    assert!(reservation.resets_in > Duration::from_secs(3590));
    let denied = space.reserve("k", hour(100.0), 41.0).unwrap();
    assert!(matches!(denied, Reserved::Denied { available_in } if available_in > ms(3_590_000)));
    assert!(space.settle(reservation.id, 15.0).unwrap());
    assert_eq!(left(&space, "k", hour(100.0)), 85.0);
    let another = reserved(space.reserve("k", hour(100.0), 85.0));
    space.abandon(another.id);
    assert!(state.flush(LONG));
    assert_eq!(left(&space, "k", hour(100.0)), 85.0);
}

fn what_was_used_beyond_the_estimate_is_charged_too(world: World) {
    let space = world.state().space("p");
    let reservation = reserved(space.reserve("k", hour(100.0), 10.0));
    assert!(space.settle(reservation.id, 130.0).unwrap());
    assert_eq!(left(&space, "k", hour(100.0)), 0.0);
}

fn a_reservation_ends_once(world: World) {
    let state = world.state();
    let space = state.space("p");
    let reservation = reserved(space.reserve("k", hour(100.0), 50.0));
    assert!(!state.space("q").settle(reservation.id, 0.0).unwrap(), "another policy's");
    // In another instance, perhaps on another thread: the number is all it takes.
    let again = state.space("p");
    assert!(again.settle(reservation.id, 20.0).unwrap());
    assert!(!again.settle(reservation.id, 0.0).unwrap());
    again.abandon(reservation.id);
    again.charge(reservation.id);
    assert!(state.flush(LONG));
    assert!(!again.extend(reservation.id, 1.0).unwrap());
    assert!(!again.settle(12_345, 1.0).unwrap());
    assert_eq!(left(&space, "k", hour(100.0)), 80.0);
}

fn a_reservation_extends_while_there_is_room(world: World) {
    let space = world.state().space("p");
    let reservation = reserved(space.reserve("k", hour(100.0), 50.0));
    assert!(space.extend(reservation.id, 30.0).unwrap());
    assert!(!space.extend(reservation.id, 21.0).unwrap());
    assert_eq!(left(&space, "k", hour(100.0)), 20.0);
    assert!(space.settle(reservation.id, 70.0).unwrap());
    assert_eq!(left(&space, "k", hour(100.0)), 30.0);
}

fn a_window_ends_and_what_was_reserved_in_it_is_over(world: World) {
    let space = world.state().space("p");
    let window = BudgetWindow { limit: 100.0, per: s(300) };
    let (refund, beyond) =
        (reserved(space.reserve("k", window, 50.0)), reserved(space.reserve("k", window, 50.0)));
    let denied = space.reserve("k", window, 1.0).unwrap();
    let Reserved::Denied { available_in } = denied else { panic!("full, but {denied:?}") };
    assert!(available_in <= s(300));
    world.wait(available_in + ms(1));
    let long = BudgetWindow { per: s(600), ..window };
    let next = reserved(space.reserve("k", long, 10.0));
    assert_eq!(next.remaining, 90.0);
    // Given back to a window that is gone; used beyond what that window was charged.
    assert!(space.settle(refund.id, 0.0).unwrap());
    assert_eq!(left(&space, "k", long), 90.0);
    assert!(space.settle(beyond.id, 55.0).unwrap());
    assert_eq!(left(&space, "k", long), 85.0);
}

fn what_is_extended_in_the_next_window_goes_back_there(world: World) {
    let space = world.state().space("p");
    let window = BudgetWindow { limit: 100.0, per: s(400) };
    let early = reserved(space.reserve("k", window, 60.0));
    world.wait(early.resets_in + ms(1));
    let late = reserved(space.reserve("k", window, 10.0));
    assert!(space.extend(early.id, 30.0).unwrap());
    // 90 were charged, 30 of them here: what comes back is at most those.
    assert!(space.settle(early.id, 5.0).unwrap());
    let probe = reserved(space.reserve("k", window, 90.0));
    assert!(probe.remaining.abs() < 1e-9, "{probe:?}, after {late:?}");
}

fn slots_are_counted_until_left(world: World) {
    let space = world.state().space("p");
    let lease = Duration::from_secs(60);
    let first = entered(space.enter("k", 2, lease));
    let answer = space.enter("k", 2, lease).unwrap();
    let Entered::Ok { slot: second, running: 2 } = answer else { panic!("{answer:?}") };
    assert_ne!(first, second);
    assert_eq!(space.enter("k", 2, lease).unwrap(), Entered::Full);
    space.leave("k", first).unwrap();
    let third = entered(space.enter("k", 2, lease));
    // Leaving twice, or with a slot of nobody, frees nobody else's.
    space.leave("k", first).unwrap();
    space.leave("k", 99).unwrap();
    assert_eq!(space.enter("k", 2, lease).unwrap(), Entered::Full);
    space.leave("k", second).unwrap();
    space.leave("k", third).unwrap();
    space.leave("k", third).unwrap();
    assert!(matches!(space.enter("k", 2, lease).unwrap(), Entered::Ok { running: 1, .. }));
}

fn a_lease_that_ends_frees_its_slot(world: World) {
    let space = world.state().space("p");
    entered(space.enter("k", 2, s(1800)));
    entered(space.enter("k", 2, s(300)));
    assert_eq!(space.enter("k", 2, s(300)).unwrap(), Entered::Full);
    world.wait(s(301));
    entered(space.enter("k", 2, s(300)));
    assert_eq!(space.enter("k", 2, s(300)).unwrap(), Entered::Full);
}

fn a_lowered_limit_waits_for_those_within(world: World) {
    let space = world.state().space("p");
    for lease in [100, 200, 300] {
        entered(space.enter("k", 3, s(lease)));
    }
    world.wait(s(101));
    assert_eq!(space.enter("k", 2, s(60)).unwrap(), Entered::Full, "two are in");
    world.wait(s(100));
    entered(space.enter("k", 2, s(60)));
}

fn a_slot_that_its_request_left_behind_is_vacated(world: World) {
    let state = world.state();
    let space = state.space("p");
    let slot = entered(space.enter("k", 1, s(1800)));
    space.vacate("k", slot);
    assert!(state.flush(LONG));
    entered(space.enter("k", 1, s(1800)));
}

fn what_a_request_used_that_nobody_accounted_for_stays_charged(world: World) {
    let state = world.state();
    let space = state.space("p");
    let reservation = reserved(space.reserve("k", hour(100.0), 60.0));
    space.charge(reservation.id);
    assert!(state.flush(LONG));
    assert!(!space.settle(reservation.id, 0.0).unwrap(), "it has ended");
    assert_eq!(left(&space, "k", hour(100.0)), 40.0);
}

fn values_are_what_was_set(world: World) {
    let space = world.state().space("p");
    assert_eq!(space.get("k").unwrap(), None);
    let every_byte: Vec<u8> = (0..=255).collect();
    space.set("k", &every_byte, None).unwrap();
    assert_eq!(space.get("k").unwrap(), Some(every_byte));
    space.set("k", b"", None).unwrap();
    assert_eq!(space.get("k").unwrap(), Some(Vec::new()));
    assert!(space.delete("k").unwrap());
    assert!(!space.delete("k").unwrap());
    assert_eq!(space.get("k").unwrap(), None);
}

fn a_value_ends_with_its_ttl(world: World) {
    let space = world.state().space("p");
    space.set("k", b"1", Some(s(100))).unwrap();
    space.set("longer", b"1", Some(s(100))).unwrap();
    space.set("longer", b"2", None).unwrap();
    space.set("shorter", b"1", None).unwrap();
    space.set("shorter", b"2", Some(s(100))).unwrap();
    world.wait(s(101));
    assert_eq!(space.get("k").unwrap(), None);
    assert!(!space.delete("k").unwrap());
    assert_eq!(space.get("longer").unwrap(), Some(b"2".into()));
    assert_eq!(space.get("shorter").unwrap(), None);
}

fn compare_and_set_sets_what_it_expected(world: World) {
    let space = world.state().space("p");
    assert!(!space.compare_and_set("k", Some(b""), b"x", None).unwrap(), "absent is not empty");
    assert!(space.compare_and_set("k", None, b"one", None).unwrap());
    assert!(!space.compare_and_set("k", None, b"two", None).unwrap());
    assert!(!space.compare_and_set("k", Some(b"on"), b"two", None).unwrap());
    assert!(space.compare_and_set("k", Some(b"one"), b"", Some(s(100))).unwrap());
    assert!(!space.compare_and_set("k", None, b"x", None).unwrap(), "empty is not absent");
    assert_eq!(space.get("k").unwrap(), Some(Vec::new()));
    world.wait(s(101));
    assert!(space.compare_and_set("k", None, b"anew", None).unwrap());
}

fn a_counter_counts_and_ends_when_it_was_made_to(world: World) {
    let space = world.state().space("p");
    assert_eq!(space.increment("k", 2, Some(s(400))).unwrap(), 2);
    world.wait(s(200));
    // Does not renew it.
    assert_eq!(space.increment("k", -5, Some(s(3600))).unwrap(), -3);
    assert_eq!(space.get("k").unwrap(), Some(b"-3".into()));
    world.wait(s(201));
    assert_eq!(space.increment("k", 1, None).unwrap(), 1);
    space.set("text", b"one", None).unwrap();
    for text in [&b"one"[..], b"", b"01", b"+1", b" 1", b"1.0"] {
        space.set("text", text, None).unwrap();
        let fault = space.increment("text", 1, None).unwrap_err();
        assert!(matches!(fault, StateFault::Invalid(_)), "{text:?}: {fault}");
        assert_eq!(space.get("text").unwrap().as_deref(), Some(text));
    }
}

fn a_counter_has_all_digits_of_64_bits(world: World) {
    let space = world.state().space("p");
    assert_eq!(space.increment("k", i64::MAX - 1, None).unwrap(), i64::MAX - 1);
    assert_eq!(space.increment("k", 1, None).unwrap(), i64::MAX);
    let fault = space.increment("k", 1, None).unwrap_err();
    assert!(matches!(fault, StateFault::Invalid(_)), "{fault}");
    assert_eq!(space.increment("k", 0, None).unwrap(), i64::MAX);
    assert_eq!(space.increment("low", i64::MIN, None).unwrap(), i64::MIN);
}

fn policies_and_kinds_are_apart(world: World) {
    let state = world.state();
    // Were names put together as they come, the third's `k` would be this key of the first.
    let spaces = ["a", "b", "a}:v:x{"].map(|policy| state.space(policy));
    spaces[0].set("x{}:v:k", b"mine", None).unwrap();
    for (at, space) in spaces.iter().enumerate() {
        assert_eq!(space.get("k").unwrap(), None);
        space.set("k", &[at as u8], None).unwrap();
        assert!(taken(space.take("k", still(1.0), 1.0)).is_some());
        assert_eq!(reserved(space.reserve("k", hour(1.0), 1.0)).remaining, 0.0);
        entered(space.enter("k", 1, ms(60_000)));
    }
    for (at, space) in spaces.iter().enumerate() {
        assert_eq!(space.get("k").unwrap(), Some(vec![at as u8]));
    }
    assert_eq!(state.space("a").get("k").unwrap(), Some(vec![0]));
}

fn a_full_space_refuses_what_is_new_and_serves_what_is_there(mut world: World) {
    world.config.keys_max = 4;
    let state = world.state();
    let space = state.space("p");
    assert!(taken(space.take("b", still(10.0), 1.0)).is_some());
    space.set("v", b"1", None).unwrap();
    let reservation = reserved(space.reserve("w", hour(10.0), 1.0)); // Two keys: itself, the window.
    assert_eq!(space.set("new", b"", None), Err(StateFault::Quota));
    assert_eq!(space.take("new", still(10.0), 1.0), Err(StateFault::Quota));
    assert_eq!(space.reserve("w", hour(10.0), 1.0), Err(StateFault::Quota));
    assert_eq!(space.enter("new", 1, ms(1000)), Err(StateFault::Quota));
    assert_eq!(space.increment("new", 1, None), Err(StateFault::Quota));
    assert_eq!(space.compare_and_set("new", None, b"", None), Err(StateFault::Quota));
    assert!(taken(space.peek("new", still(10.0), 1.0)).is_some(), "peeking needs no key");
    // What is there goes on, and another policy has its own.
    assert!(taken(space.take("b", still(10.0), 1.0)).is_some());
    space.set("v", b"2", None).unwrap();
    state.space("q").set("new", b"", None).unwrap();
    // And nothing was charged by what was refused.
    assert!(space.settle(reservation.id, 0.0).unwrap());
    assert_eq!(left(&space, "w", hour(10.0)), 10.0);
    space.set("new", b"", None).unwrap();
}

fn what_has_ended_makes_room_before_anything_is_refused(mut world: World) {
    world.config.keys_max = 5;
    let space = world.state().space("p");
    space.set("v", b"1", Some(s(200))).unwrap();
    assert!(
        taken(space.take("b", Bucket { capacity: 1.0, refill_per_second: 0.005 }, 1.0)).is_some()
    );
    entered(space.enter("s", 1, s(200)));
    space.set("long", b"1", Some(s(200))).unwrap();
    space.set("long", b"1", None).unwrap();
    space.set("last", b"", None).unwrap();
    assert_eq!(space.set("new", b"", None), Err(StateFault::Quota));
    world.wait(s(210));
    for key in ["one", "two", "three"] {
        space.set(key, b"", None).unwrap();
    }
    assert_eq!(space.set("four", b"", None), Err(StateFault::Quota));
    assert_eq!(space.get("long").unwrap(), Some(b"1".into()));
}

fn bytes_are_bounded_as_keys_are(mut world: World) {
    world.config.value_bytes_max = ByteSize(1000);
    world.config.bytes_max = ByteSize(3000);
    let space = world.state().space("p");
    let large = [7; 1000];
    assert_eq!(space.set("large", &[7; 1001], None), Err(StateFault::TooLarge));
    assert_eq!(space.compare_and_set("k", None, &[7; 1001], None), Err(StateFault::TooLarge));
    space.set("one", &large, None).unwrap();
    space.set("two", &large, Some(s(100))).unwrap();
    assert_eq!(space.set("three", &large, None), Err(StateFault::Quota));
    space.set("three", &large[..500], None).unwrap();
    assert_eq!(space.set("three", &large, None), Err(StateFault::Quota));
    assert_eq!(space.get("three").unwrap(), Some(large[..500].into()), "as it was");
    world.wait(s(101));
    space.set("three", &large, None).unwrap();
    assert_eq!(space.set("four", &large, None), Err(StateFault::Quota));
    // Written again and again, it is counted once; what becomes smaller gives back.
    for _ in 0..10 {
        space.set("one", &large, None).unwrap();
    }
    space.set("one", b"", None).unwrap();
    assert!(space.delete("three").unwrap());
    space.set("four", &large, None).unwrap();
    space.set("five", &large, None).unwrap();
}

fn settling_works_in_a_full_space(mut world: World) {
    world.config.keys_max = 2;
    let space = world.state().space("p");
    let window = BudgetWindow { limit: 10.0, per: s(100) };
    let reservation = reserved(space.reserve("w", window, 1.0));
    world.wait(s(101));
    space.set("fills", b"", None).unwrap(); // The window has ended and made room for it.
    assert_eq!(space.set("too much", b"", None), Err(StateFault::Quota));
    assert!(space.settle(reservation.id, 6.0).unwrap());
    assert_eq!(space.set("too much", b"", None), Err(StateFault::Quota));
}

fn keys_may_be_anything(world: World) {
    let space = world.state().space("p");
    let long = "x".repeat(512);
    for key in [" ", "a b", "1 2 3", "\n", "ü{}:*%s", "\0", &long] {
        space.set(key, key.as_bytes(), None).unwrap();
        assert_eq!(space.get(key).unwrap(), Some(key.as_bytes().into()), "{key:?}");
        assert!(taken(space.take(key, still(1.0), 1.0)).is_some(), "{key:?}");
        let reservation = reserved(space.reserve(key, hour(10.0), 5.0));
        assert!(space.extend(reservation.id, 5.0).unwrap(), "{key:?}");
        assert!(space.settle(reservation.id, 1.0).unwrap(), "{key:?}");
        assert_eq!(left(&space, key, hour(10.0)), 9.0, "{key:?}");
        let slot = entered(space.enter(key, 1, s(60)));
        space.leave(key, slot).unwrap();
    }
    assert_eq!(space.set(&"x".repeat(513), b"", None), Err(StateFault::TooLarge));
    assert!(matches!(space.set("", b"", None), Err(StateFault::Invalid(_))));
}

fn numbers_without_meaning_are_named(world: World) {
    let space = world.state().space("p");
    let good = still(10.0);
    let absurd = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1.0, -1e-9, 1e-300, 1e13];
    let invalid = |fault: Option<StateFault>, name: &str| match fault {
        Some(StateFault::Invalid(text)) => assert!(text.contains(name), "{name}: {text}"),
        other => panic!("{name}: {other:?}"),
    };
    for number in absurd {
        invalid(space.take("k", good, number).err(), "cost");
        invalid(space.peek("k", good, number).err(), "cost");
        invalid(space.take("k", Bucket { capacity: number, ..good }, 1.0).err(), "capacity");
        let bucket = Bucket { refill_per_second: number, ..good };
        invalid(space.take("k", bucket, 1.0).err(), "refill_per_second");
        invalid(space.reserve("k", hour(number), 1.0).err(), "limit");
        invalid(space.reserve("k", hour(10.0), number).err(), "estimate");
        invalid(space.extend(1, number).err(), "extra");
        invalid(space.settle(1, number).err(), "actual");
    }
    invalid(space.take("k", good, 0.0).err(), "cost");
    invalid(space.reserve("k", hour(10.0), 0.0).err(), "estimate");
    invalid(space.take("k", Bucket { refill_per_second: 0.0, ..good }, 1.0).err(), "refill");
    for per in [Duration::ZERO, Duration::from_micros(999), Duration::MAX] {
        invalid(space.reserve("k", BudgetWindow { limit: 1.0, per }, 1.0).err(), "per");
        invalid(space.enter("k", 1, per).err(), "lease");
        invalid(space.set("k", b"", Some(per)).err(), "ttl");
        invalid(space.increment("k", 1, Some(per)).err(), "ttl");
    }
    for limit in [0, u32::MAX] {
        invalid(space.enter("k", limit, ms(1000)).err(), "limit");
    }
    assert_eq!(taken(space.peek("k", good, 0.0)), Some(10.0), "none of it was done");
}

fn threads_together_take_no_more_than_there_is(world: World) {
    let state = world.state();
    let sums = thread::scope(|threads| {
        let all: Vec<_> = (0..8)
            .map(|_| {
                let space = state.space("p");
                threads.spawn(move || {
                    let (mut tokens, mut charged, mut slots, mut counted) = (0, 0, 0, 0);
                    for _ in 0..100 {
                        tokens += u32::from(taken(space.take("k", still(300.0), 1.0)).is_some());
                        match space.reserve("k", hour(300.0), 2.0).unwrap() {
                            // Half of what each reserves goes back while others reserve.
                            Reserved::Ok(one) if space.settle(one.id, 1.0).unwrap() => charged += 1,
                            Reserved::Ok(one) => panic!("{one:?} was settled by nobody"),
                            Reserved::Denied { .. } => {}
                        }
                        let slot = space.enter("k", 50, Duration::from_secs(60)).unwrap();
                        slots += u32::from(matches!(slot, Entered::Ok { .. }));
                        space.increment("k", 1, None).unwrap();
                        let now = space.get("cas").unwrap();
                        let next = [now.as_deref().unwrap_or_default(), b"x"].concat();
                        let set = space.compare_and_set("cas", now.as_deref(), &next, None);
                        counted += usize::from(set.unwrap());
                    }
                    (tokens, charged, slots, counted)
                })
            })
            .collect();
        all.into_iter().map(|thread| thread.join().unwrap()).fold((0, 0, 0, 0), |sum, one| {
            (sum.0 + one.0, sum.1 + one.1, sum.2 + one.2, sum.3 + one.3)
        })
    });
    let space = state.space("p");
    let (tokens, charged, slots, counted) = sums;
    assert_eq!(tokens, 300);
    // The last token of the window cannot be reserved two at a time.
    assert!((299..=300).contains(&charged), "{charged}");
    assert_eq!(slots, 50);
    assert_eq!(space.increment("k", 0, None).unwrap(), 800);
    assert_eq!(space.get("cas").unwrap().unwrap_or_default().len(), counted);
}

/// In any stretch of time, from any grant to any later one: no more than the capacity and what
/// was gained meanwhile. In Redis, where some time really passes beside the histories', that counts too.
fn a_bucket_never_grants_more_than_it_held_and_gained(world: World) {
    let real = world.config != rig::World::memory().config;
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: if real { 8 } else { 256 },
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let steps = proptest::collection::vec((0.1..1.5_f64, 0..3000_u64), 1..80);
    let settings = (1.0..1000.0_f64, 0.5..5000.0_f64);
    let state = world.state();
    let histories = std::cell::Cell::new(0);
    runner
        .run(&(settings, steps), |((capacity, refill_per_second), steps)| {
            let bucket = Bucket { capacity, refill_per_second };
            histories.set(histories.get() + 1);
            let key = format!("bucket {}", histories.get());
            let space = state.space("p");
            let start = std::time::Instant::now();
            let mut passed = 0.0;
            let mut grants: Vec<(f64, f64)> = Vec::new();
            for (share, micros) in steps {
                // In fractions of the bucket, so that each history runs into its end.
                let cost = (share * capacity / 4.0).max(1e-3);
                world.wait(Duration::from_micros(micros));
                passed += micros as f64 / 1e6;
                let granted = taken(space.take(&key, bucket, cost)).is_some();
                // Where time is real, the grant was made before now.
                let at = passed + if real { start.elapsed().as_secs_f64() } else { 0.0 };
                if granted {
                    grants.push((at, cost));
                }
            }
            for first in 0..grants.len() {
                let mut sum = 0.0;
                for &(at, cost) in &grants[first..] {
                    sum += cost;
                    // The first grant may have been made when its call began, and no earlier than
                    // the one before was seen.
                    let from = match first.checked_sub(1) {
                        Some(before) if real => grants[before].0,
                        None if real => 0.0,
                        _ => grants[first].0,
                    };
                    let most = capacity + refill_per_second * (at - from);
                    prop_assert!(sum <= most * (1.0 + 1e-9), "{sum} granted of {most}");
                }
            }
            Ok(())
        })
        .unwrap();
}

/// Whatever is reserved, extended, settled and abandoned in a window: what is left of it is the
/// limit less what is open and what was settled.
fn settling_extending_and_abandoning_conserve(world: World) {
    #[derive(Debug, Clone)]
    enum Step {
        Reserve(u32),
        Extend(usize, u32),
        Settle(usize, u32),
        Abandon(usize),
    }
    let step = prop_oneof![
        3 => (1..40_u32).prop_map(Step::Reserve),
        1 => (0..8_usize, 1..40_u32).prop_map(|(which, extra)| Step::Extend(which, extra)),
        2 => (0..8_usize, 0..60_u32).prop_map(|(which, actual)| Step::Settle(which, actual)),
        1 => (0..8_usize).prop_map(Step::Abandon),
    ];
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 64,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let state = world.state();
    let histories = std::cell::Cell::new(0);
    runner
        .run(&proptest::collection::vec(step, 1..40), |steps| {
            histories.set(histories.get() + 1);
            let key = format!("window {}", histories.get());
            let (space, window) = (state.space("p"), hour(100.0));
            let mut open: Vec<(u64, u32)> = Vec::new();
            let mut settled = 0;
            for step in steps {
                let used = settled + open.iter().map(|(_, held)| held).sum::<u32>();
                let which = |which: usize| which.checked_rem(open.len());
                match step {
                    Step::Reserve(estimate) => {
                        let answer = space.reserve(&key, window, estimate.into()).unwrap();
                        prop_assert_eq!(
                            matches!(answer, Reserved::Ok(_)),
                            used + estimate <= 100,
                            "{} used, {} asked",
                            used,
                            estimate
                        );
                        if let Reserved::Ok(one) = answer {
                            prop_assert_eq!(one.remaining, f64::from(100 - used - estimate));
                            open.push((one.id, estimate));
                        }
                    }
                    Step::Extend(at, extra) => {
                        let Some(at) = which(at) else { continue };
                        let extended = space.extend(open[at].0, extra.into()).unwrap();
                        prop_assert_eq!(extended, used + extra <= 100);
                        open[at].1 += if extended { extra } else { 0 };
                    }
                    Step::Settle(at, actual) => {
                        let Some(at) = which(at) else { continue };
                        prop_assert!(space.settle(open.swap_remove(at).0, actual.into()).unwrap());
                        settled += actual;
                    }
                    Step::Abandon(at) => {
                        let Some(at) = which(at) else { continue };
                        space.abandon(open.swap_remove(at).0);
                        prop_assert!(state.flush(LONG));
                    }
                }
            }
            let used = settled + open.iter().map(|(_, held)| held).sum::<u32>();
            prop_assert_eq!(left(&space, &key, window), f64::from(100_u32.saturating_sub(used)));
            Ok(())
        })
        .unwrap();
}

fn what_is_asked_is_counted(mut world: World) {
    world.config.keys_max = 2;
    let registry = Registry::new();
    let state = world.state().with_metrics(StateMetrics::register(&registry));
    let space = state.space("p");
    let _ = space.take("k", still(1.0), 1.0);
    let _ = space.take("k", still(1.0), 1.0);
    let _ = space.take("k", still(1.0), f64::NAN);
    let _ = space.settle(7, 1.0);
    let _ = space.set("v", b"", None);
    let _ = space.set("w", b"", None);
    let _ = space.set(&"w".repeat(1000), b"", None);
    let text = registry.expose().unwrap();
    for (op, result, count) in [
        ("take", "ok", 1),
        ("take", "denied", 1),
        ("take", "invalid", 1),
        ("settle", "unknown", 1),
        ("set", "ok", 1),
        ("set", "quota", 1),
        ("set", "too_large", 1),
        ("get", "ok", 0),
    ] {
        let line = format!(
            "interlock_policy_state_ops_total{{op=\"{op}\",policy=\"p\",result=\"{result}\"}} {count}"
        );
        assert!(text.lines().any(|one| one == line), "{line} is not in\n{text}");
    }
}
