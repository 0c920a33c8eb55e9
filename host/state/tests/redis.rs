//! What holds of Redis alone: hosts that share it, and a server that dies, stalls and comes back.

mod rig;

use std::thread;
use std::time::{Duration, Instant};

use interlock_state::{
    Bucket, Entered, Reserved, Space, State, StateConfig, StateFault, StoreUrl, Taken, Window,
};
use rig::{RedisServer, Version};

/// Runs each story against the oldest and the newest server.
macro_rules! stories {
    ($($story:ident),* $(,)?) => {
        mod in_redis_6_2 {
            use super::*;
            $(#[test] fn $story() { super::$story(RedisServer::start(Version::Redis62)); })*
        }
        mod in_valkey_9_1 {
            use super::*;
            $(#[test] fn $story() { super::$story(RedisServer::start(Version::Valkey91)); })*
        }
    };
}

stories![
    hosts_that_share_a_redis_share_their_limits,
    what_one_host_reserved_another_may_settle_for_the_same_policy_alone,
    a_redis_that_is_killed_fails_calls_at_once_and_is_found_again_when_it_is_back,
    one_late_answer_is_a_fault_of_that_call_alone,
    a_redis_that_says_nothing_costs_three_timeouts_and_then_nothing,
    calls_in_flight_when_redis_stalls_all_end_in_time,
    connections_that_the_server_closed_are_made_anew,
    what_the_server_refuses_is_a_fault_of_that_call_alone,
    a_refusal_in_words_that_the_client_does_not_know_costs_no_connection,
    scripts_that_the_server_forgot_are_told_again,
    everything_has_an_expiry_and_is_written_under_the_policys_prefix,
    the_account_is_empty_when_all_has_ended,
    a_clock_that_was_set_back_neither_refuses_for_ever_nor_forgives,
    a_store_that_does_not_answer_is_found_at_the_start,
    a_wrong_password_is_found_at_the_start,
];

const STILL: Bucket = Bucket { capacity: 400.0, refill_per_second: 0.001 };
const HOUR: Window = Window { limit: 400.0, per: Duration::from_secs(3600) };

/// What a loaded machine may add to a time that is promised: less than many calls that wait in turn.
const SLACK: Duration = Duration::from_millis(2500);

/// Nothing here takes long, unless it hangs.
const LONG: Duration = Duration::from_secs(60);

fn unavailable<T: std::fmt::Debug>(answer: Result<T, StateFault>) -> String {
    match answer {
        Err(StateFault::Unavailable(why)) => why,
        other => panic!("redis is not there, but {other:?}"),
    }
}

/// Until redis is back: the only thing here that is waited for and not promised by when.
#[track_caller]
fn recovers(space: &Space) {
    let started = Instant::now();
    while started.elapsed() < LONG {
        if space.get("k").is_ok() {
            return;
        }
        thread::sleep(Duration::from_millis(1));
    }
    panic!("redis is back, and not found in {LONG:?}");
}

fn hosts_that_share_a_redis_share_their_limits(server: RedisServer) {
    let hosts = [server.open(), server.open()];
    let granted = thread::scope(|threads| {
        let all: Vec<_> = (0..8)
            .map(|at| {
                let space = hosts[at % 2].space("p");
                threads.spawn(move || {
                    let (mut tokens, mut charged, mut slots) = (0, 0, 0);
                    for _ in 0..100 {
                        let took = space.take("k", STILL, 1.0).unwrap();
                        tokens += u32::from(matches!(took, Taken::Ok { .. }));
                        let reserved = space.reserve("k", HOUR, 1.0).unwrap();
                        charged += u32::from(matches!(reserved, Reserved::Ok(_)));
                        let slot = space.enter("k", 40, Duration::from_secs(60)).unwrap();
                        slots += u32::from(matches!(slot, Entered::Ok { .. }));
                    }
                    (tokens, charged, slots)
                })
            })
            .collect();
        let sums = all.into_iter().map(|thread| thread.join().unwrap());
        sums.fold((0, 0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1, sum.2 + one.2))
    });
    assert_eq!(granted, (400, 400, 40));
}

fn what_one_host_reserved_another_may_settle_for_the_same_policy_alone(server: RedisServer) {
    let (one, other) = (server.open(), server.open());
    let Reserved::Ok(reservation) = one.space("p").reserve("k", HOUR, 400.0).unwrap() else {
        panic!("there is room");
    };
    assert!(!other.space("q").settle(reservation.id, 0.0).unwrap());
    assert!(other.space("p").settle(reservation.id, 100.0).unwrap());
    let again = one.space("p").reserve("k", HOUR, 300.0).unwrap();
    assert!(matches!(again, Reserved::Ok(_)), "{again:?}");
}

fn a_redis_that_is_killed_fails_calls_at_once_and_is_found_again_when_it_is_back(
    server: RedisServer,
) {
    let space = server.open().space("p");
    space.set("k", b"1", None).unwrap();
    server.kill();
    let started = Instant::now();
    let why = unavailable(space.get("k"));
    assert!(started.elapsed() < server.config().timeout + SLACK);
    // Nobody tries again: all are told what the first one found.
    for _ in 0..1000 {
        assert_eq!(unavailable(space.take("k", STILL, 1.0)), why);
        assert_eq!(unavailable(space.settle(1, 1.0)), why);
    }
    server.restart();
    recovers(&space);
    // It has forgotten the scripts with everything else, and is told again.
    assert!(matches!(space.take("k", STILL, 400.0).unwrap(), Taken::Ok { .. }));
}

/// One slow script of somebody else's, or a fork: every call that waits meanwhile is too late, and
/// nothing is wrong with the server.
fn one_late_answer_is_a_fault_of_that_call_alone(server: RedisServer) {
    let timeout = Duration::from_secs(3);
    let state = State::open(&StateConfig { timeout, ..server.config() }).unwrap();
    let space = state.space("p");
    // Until told otherwise the server answers nobody who wants to write. It has said so when this
    // returns, and goes on to answer who connects.
    let pause = || server.told::<()>(&["CLIENT", "PAUSE", "600000", "WRITE"]);
    let go_on = || server.told::<()>(&["CLIENT", "UNPAUSE"]);
    // As many late ones as there are connections, and more than would do in a row: each is
    // replaced, and an answer in between begins the count anew.
    for _ in 0..4 {
        pause();
        let why = unavailable(space.take("k", STILL, 1.0));
        assert!(why.contains("did not answer within 3s"), "{why}");
        go_on();
        assert!(matches!(space.take("k", STILL, 1.0).unwrap(), Taken::Ok { .. }));
    }
}

fn a_redis_that_says_nothing_costs_three_timeouts_and_then_nothing(server: RedisServer) {
    let timeout = Duration::from_millis(500);
    let state = State::open(&StateConfig { timeout, ..server.config() }).unwrap();
    let space = state.space("p");
    server.signal("STOP");
    for nth in 0..3 {
        let started = Instant::now();
        let why = unavailable(space.take("k", STILL, 1.0));
        assert!(started.elapsed() < timeout + SLACK, "{:?}", started.elapsed());
        // Later ones may be told what who connects anew has found meanwhile.
        assert!(nth > 0 || why == "redis did not answer within 500ms", "{why}");
    }
    let started = Instant::now();
    for _ in 0..1000 {
        unavailable(space.take("k", STILL, 1.0));
    }
    // Did only some of them wait, they would take minutes.
    assert!(started.elapsed() < LONG, "{:?}", started.elapsed());
    server.signal("CONT");
    recovers(&space);
    // The answer that came too late was read by nobody.
    assert_eq!(space.get("k").unwrap(), None);
    assert_eq!(space.increment("n", 5, None).unwrap(), 5);
}

fn calls_in_flight_when_redis_stalls_all_end_in_time(server: RedisServer) {
    let timeout = Duration::from_secs(1);
    let state = State::open(&StateConfig { timeout, ..server.config() }).unwrap();
    server.signal("STOP");
    // More callers than there are connections: those who wait for one are told as well.
    thread::scope(|threads| {
        for _ in 0..40 {
            let space = state.space("p");
            threads.spawn(move || {
                let started = Instant::now();
                unavailable(space.take("k", STILL, 1.0));
                assert!(started.elapsed() < timeout + SLACK, "{:?}", started.elapsed());
            });
        }
    });
}

fn connections_that_the_server_closed_are_made_anew(server: RedisServer) {
    let space = server.open().space("p");
    space.set("k", b"1", None).unwrap();
    let closed: u32 = server.told(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    assert!(closed > 0);
    unavailable(space.get("k"));
    recovers(&space);
    assert_eq!(space.get("k").unwrap(), Some(b"1".into()));
}

fn what_the_server_refuses_is_a_fault_of_that_call_alone(server: RedisServer) {
    let space = server.open().space("p");
    let configure = |key: &str, value: &str| server.told::<()>(&["CONFIG", "SET", key, value]);
    configure("maxmemory", "1");
    let why = unavailable(space.set("k", b"1", None));
    assert!(why.contains("OOM"), "{why}");
    assert_eq!(space.get("k").unwrap(), None, "reading goes on");
    configure("maxmemory", "0");
    space.set("k", b"1", None).unwrap();
}

/// BUSY is a code that the client does not know by name, as are MISCONF and, from a script on newer
/// servers, OOM.
fn a_refusal_in_words_that_the_client_does_not_know_costs_no_connection(server: RedisServer) {
    let space = server.open().space("p");
    server.told::<()>(&["CONFIG", "SET", "lua-time-limit", "1"]);
    let (mut busy, mut other) = (server.raw(), server.raw());
    let ending = thread::spawn(move || {
        redis::cmd("EVAL").arg("while true do end").arg(0).query::<()>(&mut busy)
    });
    let started = Instant::now();
    while let Ok(pong) = redis::cmd("PING").query::<String>(&mut other) {
        assert!(started.elapsed() < LONG, "{pong}, and no script runs");
    }
    let why = unavailable(space.get("k"));
    assert!(why.contains("BUSY"), "{why}");
    redis::cmd("SCRIPT").arg("KILL").query::<()>(&mut other).unwrap();
    // The end of the script, which is a little later.
    let killed = ending.join().expect("no panic").expect_err("it would not end by itself");
    assert!(killed.to_string().contains("killed"), "{killed}");
    assert_eq!(space.get("k").unwrap(), None);
}

fn scripts_that_the_server_forgot_are_told_again(server: RedisServer) {
    let space = server.open().space("p");
    server.told::<()>(&["SCRIPT", "FLUSH"]);
    assert!(matches!(space.take("k", STILL, 1.0).unwrap(), Taken::Ok { .. }));
}

fn everything_has_an_expiry_and_is_written_under_the_policys_prefix(server: RedisServer) {
    let space = server.open().space("p");
    space.take("k", STILL, 1.0).unwrap();
    space.reserve("k", HOUR, 1.0).unwrap();
    let Reserved::Ok(open) = space.reserve("k", HOUR, 1.0).unwrap() else { panic!("room") };
    space.extend(open.id, 1.0).unwrap();
    space.settle(open.id, 1.0).unwrap();
    space.enter("k", 3, Duration::from_secs(60)).unwrap();
    space.set("set", b"1", None).unwrap();
    space.set("set", b"2", None).unwrap();
    space.increment("counter", 1, None).unwrap();
    space.increment("counter", 1, None).unwrap();
    space.compare_and_set("set", Some(b"2"), b"3", None).unwrap();
    let mut raw = server.raw();
    let mut keys: Vec<String> = redis::cmd("KEYS").arg("*").query(&mut raw).unwrap();
    keys.sort();
    assert_eq!(keys.len(), 8, "{keys:?}");
    for key in keys {
        assert!(key.starts_with("interlock:{p}:"), "{key}");
        let life: i64 = redis::cmd("PTTL").arg(&key).query(&mut raw).unwrap();
        let month = 31 * 24 * 3600 * 1000 + 1; // Ends are rounded up to milliseconds.
        assert!((1..=month).contains(&life), "{key} lives for {life} ms");
    }
}

/// The account is what quotas are checked against: where it drifts, a policy is refused for ever
/// or never.
fn the_account_is_empty_when_all_has_ended(server: RedisServer) {
    let space = server.open().space("p");
    let short = Duration::from_millis(50);
    let window = Window { limit: 10.0, per: short };
    for key in ["a", "b", "c"] {
        let bucket = Bucket { capacity: 1.0, refill_per_second: 20.0 };
        space.take(key, bucket, 1.0).unwrap();
        let Reserved::Ok(open) = space.reserve(key, window, 1.0).unwrap() else { panic!("room") };
        space.extend(open.id, 1.0).unwrap();
        space.settle(open.id, 5.0).unwrap();
        let Entered::Ok { slot, .. } = space.enter(key, 2, short).unwrap() else { panic!("slot") };
        space.enter(key, 2, short).unwrap();
        space.leave(key, slot).unwrap();
        space.set(key, b"long", Some(short)).unwrap();
        space.set(key, b"1", Some(short)).unwrap();
        space.increment(key, 1000, None).unwrap();
    }
    thread::sleep(short * 2);
    // Each new entry sweeps two that have ended; what is deleted is gone at once.
    for at in 0..20 {
        space.set(&at.to_string(), b"", None).unwrap();
    }
    for at in 0..20 {
        assert!(space.delete(&at.to_string()).unwrap());
    }
    let mut raw = server.raw();
    let left: Vec<(String, i64)> =
        redis::cmd("HGETALL").arg("interlock:{p}:sizes").query(&mut raw).unwrap();
    assert_eq!(left, [(String::new(), 0)]);
    let ends: u64 = redis::cmd("ZCARD").arg("interlock:{p}:ends").query(&mut raw).unwrap();
    assert_eq!(ends, 0);
}

/// Somebody set the server's clock back: what was written then is in the future now. Nobody is to
/// be refused until that future comes, nor is anything forgiven.
fn a_clock_that_was_set_back_neither_refuses_for_ever_nor_forgives(server: RedisServer) {
    let space = server.open().space("p");
    let mut raw = server.raw();
    let (seconds, _): (u64, u64) = redis::cmd("TIME").query(&mut raw).unwrap();
    let future = (seconds + 86_400) * 1_000_000;
    let mut write = |key: &str, value: String| {
        redis::cmd("SET").arg(&[key, &value, "EX", "100000"]).query::<()>(&mut raw).unwrap();
    };
    write("interlock:{p}:b:k", format!("0 {future}"));
    write("interlock:{p}:w:k", format!("{future} {} 399", future + 1_000_000));
    let bucket = Bucket { capacity: 10.0, refill_per_second: 100.0 };
    assert!(matches!(space.take("k", bucket, 5.0).unwrap(), Taken::Denied { .. }));
    thread::sleep(Duration::from_millis(60));
    assert!(matches!(space.take("k", bucket, 5.0).unwrap(), Taken::Ok { .. }));
    let denied = space.reserve("k", HOUR, 2.0).unwrap();
    let Reserved::Denied { available_in } = denied else { panic!("forgiven: {denied:?}") };
    assert!(available_in <= HOUR.per, "{available_in:?}");
}

fn a_store_that_does_not_answer_is_found_at_the_start(server: RedisServer) {
    server.kill();
    let error = State::open(&server.config()).unwrap_err().to_string();
    assert!(error.starts_with(&format!("state.store {} cannot be used", server.url())), "{error}");

    let secret = format!("redis://me:secret@{}", server.url().trim_start_matches("redis://"));
    let store = StoreUrl::Redis(secret);
    let error = State::open(&StateConfig { store, ..server.config() }).unwrap_err().to_string();
    assert!(!error.contains("secret"), "{error}");
}

fn a_wrong_password_is_found_at_the_start(server: RedisServer) {
    server.told::<()>(&["CONFIG", "SET", "requirepass", "right"]);
    let with = |login: &str| {
        let url = server.url().replace("redis://", &format!("redis://{login}"));
        State::open(&StateConfig { store: StoreUrl::Redis(url), ..server.config() })
    };
    assert!(with(":right@").is_ok());
    for wrong in [":wrong@", ""] {
        let error = with(wrong).unwrap_err().to_string();
        assert!(!error.contains("wrong"), "{error}");
    }
}
