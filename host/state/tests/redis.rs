//! What holds of Redis alone: hosts that share it, and a server that dies, stalls and comes back.

mod rig;

use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use interlock_metrics::Registry;
use interlock_request::ByteSize;
use interlock_state::{
    Bucket, BudgetWindow, Entered, Reserved, Space, State, StateConfig, StateFault, StateMetrics,
    Taken,
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
    an_account_that_was_lost_in_part_is_made_anew,
    a_clock_that_was_set_back_neither_refuses_for_ever_nor_forgives,
    a_probe_says_why_a_store_cannot_be_used_without_its_login,
    a_slot_that_was_left_while_redis_stalled_is_free_when_it_goes_on,
    what_was_settled_while_redis_stalled_is_charged_when_it_goes_on,
    what_began_while_redis_stalled_and_nobody_heard_of_is_undone,
    what_began_nowhere_delays_no_other_ending,
    a_host_that_ends_tries_each_ending_once,
    a_policy_whose_renewal_is_refused_delays_nobodys_endings,
    what_is_extended_after_it_was_lost_is_renewed_again,
    what_a_killed_host_held_is_free_after_a_lease,
    what_was_reserved_by_a_host_that_slept_is_charged_as_it_was_used,
    what_a_request_holds_is_renewed_while_it_lives,
    a_host_that_slept_for_longer_than_its_lease_has_lost_its_slots_and_takes_nobody_elses,
    what_has_ended_is_over_before_the_host_is,
    what_is_held_is_renewed_and_given_back_by_a_server_without_memory,
    what_redis_refuses_is_said_in_its_words_once_and_counted_by_kind,
    a_login_that_is_refused_is_said_and_counted,
];

const STILL: Bucket = Bucket { capacity: 400.0, refill_per_second: 0.001 };
const HOUR: BudgetWindow = BudgetWindow { limit: 400.0, per: Duration::from_secs(3600) };

/// What a loaded machine may add to a time that is promised: less than many calls that wait in turn.
const SLACK: Duration = Duration::from_millis(2500);

/// Nothing here takes long, unless it hangs.
const LONG: Duration = Duration::from_secs(60);

/// What a counter or gauge says.
#[track_caller]
fn metric(registry: &Registry, name: &str) -> String {
    let text = registry.expose().unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("{name} is not in\n{text}")).to_owned()
}

/// What is logged on this thread meanwhile, from warnings on.
fn logged<T>(run: impl FnOnce() -> T) -> (T, String) {
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);
    impl std::io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let log = Log::default();
    let lines = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::WARN)
        .with_ansi(false)
        .with_writer(move || lines.clone())
        .finish();
    let done = tracing::subscriber::with_default(subscriber, run);
    let bytes = std::mem::take(&mut *log.0.lock().unwrap());
    (done, String::from_utf8(bytes).unwrap())
}

/// Waits for something that another thread does: by when is promised nowhere.
#[track_caller]
fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is() {
        assert!(started.elapsed() < LONG, "not within {LONG:?}: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

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
    let short = Duration::from_secs(50);
    let window = BudgetWindow { limit: 10.0, per: short };
    for key in ["a", "b", "c"] {
        let bucket = Bucket { capacity: 1.0, refill_per_second: 0.02 };
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
    server.age(short * 2);
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

/// Redis evicts whole keys, and people delete some. A sweep that could not find how large a lapsed
/// reservation was called itself until the stack was full, and each call that had to sweep failed.
fn an_account_that_was_lost_in_part_is_made_anew(server: RedisServer) {
    // Enough for what is there in the end, and not for what has ended beside it.
    let quota = StateConfig { keys_max: 8, bytes_max: ByteSize(1120), ..server.config() };
    for (policy, lost) in [("p", "sizes"), ("q", "ends")] {
        let space = State::open(&quota).unwrap().space(policy);
        for _ in 0..2 {
            let reserved = space.reserve("k", HOUR, 100.0).unwrap();
            assert!(matches!(reserved, Reserved::Ok(_)), "{reserved:?}");
        }
        assert!(slot(&space).is_some());
        space.set("value", b"1", Some(Duration::from_secs(40))).unwrap();
        server.told::<()>(&["DEL", &format!("interlock:{{{policy}}}:{lost}")]);
        server.age(server.config().lease * 2);
        // More than there would be room for beside what has ended.
        for nth in 0..3 {
            space.set(&nth.to_string(), b"1", None).unwrap();
        }
        assert!(slot(&space).is_some(), "{lost}");
        let reserved = space.reserve("k", HOUR, 1.0).unwrap();
        assert!(matches!(reserved, Reserved::Ok(_)), "{lost}: {reserved:?}");
    }
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
    server.age(Duration::from_millis(60));
    assert!(matches!(space.take("k", bucket, 5.0).unwrap(), Taken::Ok { .. }));
    let denied = space.reserve("k", HOUR, 2.0).unwrap();
    let Reserved::Denied { available_in } = denied else { panic!("forgiven: {denied:?}") };
    assert!(available_in <= HOUR.per, "{available_in:?}");
}

fn a_probe_says_why_a_store_cannot_be_used_without_its_login(server: RedisServer) {
    let probe = |login: &str| {
        let url = server.url().replace("redis://", &format!("redis://{login}"));
        let store = url.parse().expect("a URL");
        State::probe(&StateConfig { store, ..server.config() }).map_err(|error| error.to_string())
    };
    assert_eq!(probe(""), Ok(()));
    server.told::<()>(&["CONFIG", "SET", "requirepass", "right"]);
    assert_eq!(probe(":right@"), Ok(()));
    for login in [":s3cret@", "me:s3cret@", "s3cret@", ""] {
        let error = probe(login).expect_err("it is not let in");
        assert!(error.starts_with("state.store redis://"), "{error}");
        assert!(!error.contains("s3cret"), "{error}");
    }
    server.kill();
    let error = probe(":s3cret@").expect_err("nobody answers");
    assert!(error.contains("refused") && !error.contains("s3cret"), "{error}");
}

/// Hosts that have a short time for each call, and leases that no story outlives.
fn hasty(server: &RedisServer) -> State {
    let (timeout, lease) = (Duration::from_millis(300), Duration::from_secs(3600));
    State::open(&StateConfig { timeout, lease, ..server.config() }).unwrap()
}

/// It says nothing any more, and the host has found that: what is called now is not even sent.
fn stall(server: &RedisServer, space: &Space) {
    server.signal("STOP");
    for _ in 0..4 {
        unavailable(space.get("k"));
    }
}

fn slot(space: &Space) -> Option<u64> {
    match space.enter("k", 2, HOUR.per).ok()? {
        Entered::Ok { slot, .. } => Some(slot),
        Entered::Full => None,
    }
}

/// What is left of the window, by another host that has time.
fn left(server: &RedisServer) -> f64 {
    let space = server.open().space("p");
    match space.reserve("k", HOUR, 1e-6).unwrap() {
        Reserved::Ok(probe) => {
            assert!(space.settle(probe.id, 0.0).unwrap());
            probe.remaining.ceil()
        }
        Reserved::Denied { .. } => 0.0,
    }
}

/// Two of two slots stayed taken for an hour, since their requests had ended in a pause of 2 s.
fn a_slot_that_was_left_while_redis_stalled_is_free_when_it_goes_on(server: RedisServer) {
    let space = hasty(&server).space("p");
    let slots = [slot(&space).unwrap(), slot(&space).unwrap()];
    stall(&server, &space);
    unavailable(space.leave("k", slots[0]));
    space.vacate("k", slots[1]);
    server.signal("CONT");
    eventually("both slots are free", || slot(&space).is_some());
    eventually("both slots are free", || slot(&space).is_some());
    assert_eq!(slot(&space), None);
}

fn what_was_settled_while_redis_stalled_is_charged_when_it_goes_on(server: RedisServer) {
    let space = hasty(&server).space("p");
    let reserve = || match space.reserve("k", HOUR, 100.0).unwrap() {
        Reserved::Ok(reservation) => reservation.id,
        denied @ Reserved::Denied { .. } => panic!("there is room, but {denied:?}"),
    };
    let (used, came_to_nothing, ran) = (reserve(), reserve(), reserve());
    stall(&server, &space);
    unavailable(space.settle(used, 10.0));
    // The host knows no better than the policy that has said it.
    space.charge(used);
    space.abandon(came_to_nothing);
    space.charge(ran);
    server.signal("CONT");
    eventually("all are settled", || left(&server) == 290.0);
}

/// Redis reads what lay in its queue when it goes on, and carries it out for whoever has gone.
fn what_began_while_redis_stalled_and_nobody_heard_of_is_undone(server: RedisServer) {
    let space = hasty(&server).space("p");
    server.signal("STOP");
    unavailable(space.enter("k", 1, HOUR.per));
    unavailable(space.reserve("k", HOUR, 100.0));
    server.signal("CONT");
    eventually("the slot is free", || {
        matches!(space.enter("k", 1, HOUR.per), Ok(Entered::Ok { .. }))
    });
    eventually("nothing is charged", || left(&server) == 400.0);
}

/// A host with one of two slots. It asked for another one while Redis was silent; that was refused,
/// which nobody heard, so it is undone again and again for an hour and never found.
fn undoing(server: &RedisServer) -> (State, Space) {
    let state = hasty(server);
    let space = state.space("p");
    slot(&space).expect("there is room");
    server.signal("STOP");
    unavailable(space.enter("k", 1, HOUR.per));
    server.signal("CONT");
    recovers(&space);
    (state, space)
}

fn entered(space: &Space) -> u64 {
    let mut entered = None;
    eventually("there is room", || {
        entered = slot(space);
        entered.is_some()
    });
    entered.unwrap()
}

/// Each waited for up to a second, as the one did that can never be ended.
fn what_began_nowhere_delays_no_other_ending(server: RedisServer) {
    let (_state, space) = undoing(&server);
    let started = Instant::now();
    for _ in 0..100 {
        space.vacate("k", entered(&space));
    }
    assert!(started.elapsed() < LONG, "{:?}", started.elapsed());
}

fn a_host_that_ends_tries_each_ending_once(server: RedisServer) {
    for _ in 0..3 {
        let (state, space) = undoing(&server);
        space.vacate("k", entered(&space));
        drop((state, space));
        let held = || server.told::<u64>(&["ZCARD", "interlock:{p}:c:k"]);
        eventually("one is free, and the other held until its lease ends", || held() == 1);
        server.told::<()>(&["FLUSHALL"]);
    }
}

fn a_policy_whose_renewal_is_refused_delays_nobodys_endings(server: RedisServer) {
    let (state, registry) = renewing(&server);
    let (refused, space) = (state.space("q"), state.space("p"));
    slot(&refused).expect("there is room");
    let Reserved::Ok(ended) = space.reserve("k", HOUR, 1.0).unwrap() else { panic!("room") };
    // Not what a slot's key should be: no script can read it.
    server.told::<()>(&["SET", "interlock:{q}:c:k", "text"]);
    let refusals = "interlock_policy_state_failures_total{kind=\"refused\"}";
    eventually("the renewal is refused", || metric(&registry, refusals) != "0");
    space.charge(ended.id);
    let there = || server.told::<bool>(&["EXISTS", &format!("interlock:{{p}}:r:{}", ended.id)]);
    eventually("the other policy's is settled", || !there());
}

fn what_is_extended_after_it_was_lost_is_renewed_again(server: RedisServer) {
    let (state, registry) = renewing(&server);
    let space = state.space("p");
    let Reserved::Ok(held) = space.reserve("k", HOUR, 100.0).unwrap() else { panic!("room") };
    eventually("it is given back, since nobody renewed it", || {
        server.age(Duration::from_secs(9));
        left(&server) == 400.0
    });
    eventually("the host hears that", || {
        metric(&registry, "interlock_policy_state_leases_lost_total") == "1"
    });
    assert!(space.extend(held.id, 10.0).unwrap());
    let reservation = format!("r:{}", held.id);
    let ends = || server.told::<f64>(&["ZSCORE", "interlock:{p}:ends", &reservation]);
    let first = ends();
    eventually("it is renewed", || ends() > first);
}

fn what_a_killed_host_held_is_free_after_a_lease(server: RedisServer) {
    let (killed, other) = (server.open(), server.open().space("p"));
    let space = killed.space("p");
    assert!(slot(&space).is_some() && slot(&space).is_some());
    assert!(matches!(space.reserve("k", HOUR, 400.0).unwrap(), Reserved::Ok(_)));
    server.age(server.config().lease - Duration::from_secs(20));
    assert_eq!(slot(&other), None);
    assert!(matches!(other.reserve("k", HOUR, 1.0).unwrap(), Reserved::Denied { .. }));
    server.age(Duration::from_secs(20));
    assert!(slot(&other).is_some());
    assert!(matches!(other.reserve("k", HOUR, 400.0).unwrap(), Reserved::Ok(_)));
}

/// Its requests went on, and what they used is not forgiven.
fn what_was_reserved_by_a_host_that_slept_is_charged_as_it_was_used(server: RedisServer) {
    let slept = server.open().space("p");
    let reserve = || match slept.reserve("k", HOUR, 200.0).unwrap() {
        Reserved::Ok(reservation) => reservation.id,
        denied @ Reserved::Denied { .. } => panic!("there is room, but {denied:?}"),
    };
    let (settled, extended) = (reserve(), reserve());
    server.age(server.config().lease);
    assert_eq!(left(&server), 400.0);
    assert!(slept.settle(settled, 50.0).unwrap());
    assert!(slept.extend(extended, 10.0).unwrap());
    assert_eq!(left(&server), 340.0);
    assert!(slept.settle(extended, 30.0).unwrap());
    assert!(!slept.settle(settled, 50.0).unwrap(), "once");
    assert_eq!(left(&server), 320.0);
}

/// A state that renews soon.
fn renewing(server: &RedisServer) -> (State, Registry) {
    leasing(server, Duration::from_secs(9))
}

fn leasing(server: &RedisServer, lease: Duration) -> (State, Registry) {
    let registry = Registry::new();
    let state = State::open(&StateConfig { lease, ..server.config() });
    (state.unwrap().with_metrics(StateMetrics::register(&registry)), registry)
}

fn what_a_request_holds_is_renewed_while_it_lives(server: RedisServer) {
    let (state, _) = renewing(&server);
    let space = state.space("p");
    let slot = slot(&space).unwrap().to_string();
    let Reserved::Ok(reservation) = space.reserve("k", HOUR, 1.0).unwrap() else { panic!("room") };
    let reservation = format!("r:{}", reservation.id);
    let ends = |key: &str, member: &str| -> f64 {
        server.told(&["ZSCORE", &format!("interlock:{{p}}:{key}"), member])
    };
    let held = [("c:k", slot.as_str()), ("ends", "c:k"), ("ends", &reservation)];
    let first = held.map(|(key, member)| ends(key, member));
    eventually("all are renewed", || {
        held.iter().zip(first).all(|((key, member), first)| ends(key, member) > first)
    });
}

fn a_host_that_slept_for_longer_than_its_lease_has_lost_its_slots_and_takes_nobody_elses(
    server: RedisServer,
) {
    let (state, registry) = renewing(&server);
    let (slept, other) = (state.space("p"), server.open().space("p"));
    let lost = slot(&slept).unwrap();
    server.age(Duration::from_secs(3600));
    assert!(slot(&other).is_some() && slot(&other).is_some(), "it is nobody's any more");
    eventually("it hears that", || {
        metric(&registry, "interlock_policy_state_leases_lost_total") == "1"
    });
    slept.leave("k", lost).unwrap();
    assert_eq!(slot(&other), None, "both are still the other's");
}

fn what_has_ended_is_over_before_the_host_is(server: RedisServer) {
    let other = server.open().space("p");
    let state = server.open();
    let space = state.space("p");
    let slots = [slot(&space).unwrap(), slot(&space).unwrap()];
    slots.into_iter().for_each(|slot| space.vacate("k", slot));
    drop((state, space));
    assert!(slot(&other).is_some() && slot(&other).is_some());
}

fn what_is_held_is_renewed_and_given_back_by_a_server_without_memory(server: RedisServer) {
    // Renewed after 10 s, and lost only if the machine does nothing for 20 s more.
    let (state, registry) = leasing(&server, Duration::from_secs(30));
    let space = state.space("p");
    let slots = [slot(&space).unwrap(), slot(&space).unwrap()];
    let Reserved::Ok(reservation) = space.reserve("k", HOUR, 400.0).unwrap() else {
        panic!("room")
    };
    server.told::<()>(&["CONFIG", "SET", "maxmemory", "1"]);
    let score = || -> f64 { server.told(&["ZSCORE", "interlock:{p}:c:k", &slots[1].to_string()]) };
    let first = score();
    eventually("it is renewed", || score() > first);
    space.leave("k", slots[0]).unwrap();
    assert!(space.settle(reservation.id, 100.0).unwrap());
    assert_eq!(metric(&registry, "interlock_policy_state_leases_lost_total"), "0");
    server.told::<()>(&["CONFIG", "SET", "maxmemory", "0"]);
    assert_eq!(left(&server), 300.0);
}

/// It answered, so nobody heard of it: policies were told that there is no state, and clients 503.
fn what_redis_refuses_is_said_in_its_words_once_and_counted_by_kind(server: RedisServer) {
    let (state, registry) = renewing(&server);
    let space = state.space("p");
    let failures = |kind: &str| {
        metric(&registry, &format!("interlock_policy_state_failures_total{{kind=\"{kind}\"}}"))
    };
    server.told::<()>(&["CONFIG", "SET", "maxmemory", "1"]);
    let (_, log) = logged(|| {
        for _ in 0..100 {
            unavailable(space.set("k", b"1", None));
        }
    });
    assert_eq!(log.lines().count(), 1, "{log}");
    assert!(log.contains("OOM command not allowed") && log.contains("memory"), "{log}");
    assert_eq!(failures("memory"), "100");
    server.told::<()>(&["CONFIG", "SET", "maxmemory", "0"]);
    server.told::<()>(&["REPLICAOF", "127.0.0.1", "1"]);
    let (_, log) = logged(|| unavailable(space.set("k", b"1", None)));
    assert_eq!(log.lines().count(), 1, "{log}");
    assert!(log.contains("READONLY"), "{log}");
    assert_eq!(failures("read_only"), "1");
    server.told::<()>(&["REPLICAOF", "NO", "ONE"]);
    space.set("k", b"1", None).unwrap();
    assert_eq!(metric(&registry, "interlock_policy_state_available"), "1");
}

fn a_login_that_is_refused_is_said_and_counted(server: RedisServer) {
    server.told::<()>(&["CONFIG", "SET", "requirepass", "right"]);
    let registry = Registry::new();
    let (state, log) = logged(|| server.open());
    let state = state.with_metrics(StateMetrics::register(&registry));
    assert!(log.contains("NOAUTH") && log.contains("auth"), "{log}");
    assert_eq!(metric(&registry, "interlock_policy_state_available"), "0");
    unavailable(state.space("p").get("k"));
    let refused = "interlock_policy_state_failures_total{kind=\"auth\"}";
    assert_eq!(metric(&registry, refused), "1");
}
