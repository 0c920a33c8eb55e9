//! What an operation costs: p50 and p99, alone and with every core asking.
//!
//! `cargo run --release -p interlock-state --example cost [redis://host:port]`, against the memory
//! of this process and, if one is named, a Redis.

#![allow(clippy::print_stdout, reason = "a report for a person")]

use std::hint::black_box;
use std::thread;
use std::time::{Duration, Instant};

use interlock_state::{Bucket, BudgetWindow, Reserved, Space, State, StateConfig};

const BUCKET: Bucket = Bucket { capacity: 1e9, refill_per_second: 1e6 };
const WINDOW: BudgetWindow = BudgetWindow { limit: 1e12, per: Duration::from_secs(3600) };

fn main() -> Result<(), Box<dyn std::error::Error>> {
    report("memory", &State::memory(), 200_000);
    if let Some(url) = std::env::args().nth(1) {
        let timeout = Duration::from_secs(1);
        let config = StateConfig { store: url.parse()?, timeout, ..StateConfig::default() };
        report("redis", &State::open(&config)?, 10_000);
    }
    Ok(())
}

fn report(store: &str, state: &State, calls: usize) {
    let space = state.space("cost");
    let users: Vec<String> = (0..1000).map(|user| format!("tenant-7/user-{user}")).collect();
    let keys = ["one", "two", "three"];
    let threads = thread::available_parallelism().map_or(1, usize::from);
    for asking in [1, threads] {
        println!("{store}, {asking} thread(s) asking, keys of 1000 users");
        line("take", calls, asking, &space, |space, at| {
            black_box(space.take(&users[at % users.len()], BUCKET, 1.0))
                .expect("the store answers");
        });
        line("take, denied", calls, asking, &space, |space, at| {
            let bucket = Bucket { capacity: 1.0, refill_per_second: 1e-6 };
            black_box(space.take(keys[at % keys.len()], bucket, 1.0)).expect("the store answers");
        });
        line("reserve and settle", calls, asking, &space, |space, at| {
            let answer = space.reserve(&users[at % users.len()], WINDOW, 100.0);
            let Reserved::Ok(one) = answer.expect("the store answers") else { return };
            black_box(space.settle(one.id, 60.0)).expect("the store answers");
        });
        line("enter and leave", calls, asking, &space, |space, at| {
            let key = &users[at % users.len()];
            let entered = space.enter(key, 1000, Duration::from_secs(60));
            if let interlock_state::Entered::Ok { slot, .. } = entered.expect("the store answers") {
                black_box(space.leave(key, slot)).expect("the store answers");
            }
        });
        line("get", calls, asking, &space, |space, at| {
            black_box(space.get(keys[at % keys.len()])).expect("the store answers");
        });
    }
}

fn line(
    what: &str,
    calls: usize,
    asking: usize,
    space: &Space,
    call: impl Fn(&Space, usize) + Sync,
) {
    let started = Instant::now();
    let mut times: Vec<Duration> = thread::scope(|scope| {
        let all: Vec<_> = (0..asking)
            .map(|thread| {
                let (space, call) = (space.clone(), &call);
                scope.spawn(move || {
                    let mut times = Vec::with_capacity(calls);
                    for at in 0..calls {
                        let began = Instant::now();
                        call(&space, at + thread);
                        times.push(began.elapsed());
                    }
                    times
                })
            })
            .collect();
        all.into_iter().flat_map(|one| one.join().expect("no thread fails")).collect()
    });
    let rate = times.len() as f64 / started.elapsed().as_secs_f64();
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e6;
    println!("  {what:<20} p50 {:>8.2} us   p99 {:>8.2} us   {:>9.0} /s", at(0.5), at(0.99), rate);
}
