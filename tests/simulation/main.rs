//! The real engine loop on a simulated model and a clock that only passes move.
//!
//! A world is made from one seed: when each request arrives, what it asks for, its priority, how its
//! client leaves or cancels it, what the policy decides, how small the cache is, and which forward passes
//! fail. Arrivals and cancellations happen between steps and while a pass is in the device. After every
//! step the [`checker`] compares what the engine did with its own record. At the end each request's tokens
//! are compared with those that it gets alone.
//!
//! A failure prints its seed. `SIMULATION_SEED=123 cargo test -p interlock-tests --test simulation`
//! runs that world and no other; `SIMULATION_SEEDS=100000` runs so many of each theme.
//!
//! # Not here
//!
//! No threads and no real time: `tests/cancelling` has the engine's thread, `host/server/tests` the
//! server and its driver, whose deadlines are enforced here by [`outside`].

mod checker;
mod device;
mod outside;
mod scenario;
mod sharing;
mod stories;
mod two_models;
mod world;

use checker::EventCounts;
use scenario::{Scenario, Theme};
use world::Lab;

/// Worlds of each theme, unless the environment says otherwise.
const SEEDS: u64 = 1000;

fn number(name: &str) -> Option<u64> {
    let value = std::env::var_os(name)?;
    let number = value.to_str().and_then(|value| value.parse().ok());
    Some(number.unwrap_or_else(|| panic!("{name} is a number, got {value:?}")))
}

/// Runs the worlds of this theme. `least`: what must have happened in them how often, or the test
/// has not seen what it is about.
fn run(theme: Theme, least: &[(&str, usize)]) {
    let lab = Lab::new();
    if let Some(seed) = number("SIMULATION_SEED") {
        if Theme::of(seed) == theme {
            lab.world(&Scenario::of(seed));
        }
        return;
    }
    let mut counts = EventCounts::default();
    let seeds = number("SIMULATION_SEEDS").unwrap_or(SEEDS);
    for seed in (0..seeds * Theme::COUNT).filter(|&seed| Theme::of(seed) == theme) {
        counts.add(&lab.world(&Scenario::of(seed)).counts);
    }
    for (what, least) in least {
        let times = counts.of(what);
        let least = least * usize::try_from(seeds).expect("a number of seeds") / SEEDS as usize;
        assert!(times >= least, "{what} happened {times} times, not {least}: {counts:?}");
    }
}

#[test]
fn whatever_happens_the_checker_agrees() {
    let least = [
        ("completed", 3000),
        ("cancelled", 500),
        ("left", 200),
        ("in_flight", 150),
        ("full", 200),
        ("prefix_hits", 1000),
        ("read_of_its_tenants", 1000),
        ("read_of_others", 500),
        ("too_long", 1),
    ];
    run(Theme::General, &least);
}

#[test]
fn whoever_gives_way_for_want_of_cache_goes_on_as_if_nothing_had_been() {
    let least = [("preempted", 300), ("displaced", 10), ("prefix_hits", 1000), ("too_long", 30)];
    run(Theme::SmallCache, &least);
}

#[test]
fn a_pass_that_fails_ends_only_whom_it_must() {
    let least = [("isolated", 1000), ("caches_lost", 300), ("failed", 500), ("completed", 1500)];
    run(Theme::Failures, &least);
}

#[test]
fn a_pass_that_is_too_large_gets_smaller_and_nobody_is_tried_for_ever() {
    let least = [
        ("too_large", 2000),
        ("shrunk", 1000),
        ("grown", 500),
        ("tried", 100),
        ("caches_lost", 1000),
        ("isolated", 300),
        ("postponed", 100),
        ("device_failed", 30),
        ("refused", 200),
        ("preempted", 800),
        ("completed", 4000),
    ];
    run(Theme::Memory, &least);
}

#[test]
fn storms_leave_nothing_behind() {
    let least = [("left", 2000), ("cancelled", 2000), ("in_flight", 1000), ("displaced", 50)];
    run(Theme::Storm, &least);
}

#[test]
fn what_passes_cost_changes_who_waits_and_nothing_else() {
    let least = [("completed", 3000), ("cancelled", 500), ("held_up", 1000), ("prefix_hits", 800)];
    run(Theme::Costs, &least);
}

#[test]
fn the_same_seed_gives_the_same_world() {
    let lab = Lab::new();
    for seed in 0..40 {
        let once = || lab.world(&Scenario::of(seed)).trace;
        assert_eq!(once(), once(), "seed {seed}");
    }
}
