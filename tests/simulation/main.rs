//! The real engine loop on a simulated model and a clock that only passes move.

mod books;
mod device;
mod outside;
mod scenario;
mod world;

use books::Counts;
use scenario::{Scenario, Theme};
use world::Lab;

/// Worlds of each theme.
const SEEDS: u64 = 1000;

fn number_from_environment(name: &str) -> Option<u64> {
    let value = std::env::var_os(name)?;
    Some(value.to_str().and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("{name} is a number, got {value:?}")))
}

fn run(theme: u64) -> Counts {
    let lab = Lab::new();
    let mut all = Counts::default();
    let seeds: Vec<u64> = match number_from_environment("SIMULATION_SEED") {
        Some(seed) => vec![seed],
        None => {
            let n = number_from_environment("SIMULATION_SEEDS").unwrap_or(SEEDS);
            (0..n).map(|n| n * Theme::COUNT + theme).collect()
        }
    };
    for seed in seeds.into_iter().filter(|seed| seed % Theme::COUNT == theme) {
        all.add(&lab.world(&Scenario::of(seed)).counts);
    }
    all
}

#[test]
fn general() { let c = run(0); assert!(c.turns == 0, "{c:?}"); }
#[test]
fn small() { let c = run(1); assert!(c.turns == 0, "{c:?}"); }
#[test]
fn failures() { let c = run(2); assert!(c.turns == 0, "{c:?}"); }
#[test]
fn storms() { let c = run(3); assert!(c.turns == 0, "{c:?}"); }
