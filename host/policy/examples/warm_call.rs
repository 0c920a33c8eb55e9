//! What a policy call costs: `cargo run --release -p interlock-policy --example warm_call`.

#![allow(clippy::print_stdout, reason = "printing figures is all it does")]

use std::path::Path;
use std::time::{Duration, Instant};

use interlock_admission::{Facts, Load};
use interlock_policy::{PolicyConfig, PolicyHost, PolicySource, default_policies};
use interlock_request::{Endpoint, ModelId, RequestId};

const CALLS: usize = 100_000;

fn main() {
    let began = Instant::now();
    let host = PolicyHost::new().expect("WebAssembly works here");
    println!("engine                {:?}", began.elapsed());

    let began = Instant::now();
    let guard = host.load(&default_policies()[0]).expect("guard loads");
    println!("load guard            {:?}  (compile, link, init)", began.elapsed());

    let facts = facts("smollm2-135m-instruct", 0);
    report("guard admit", &times(CALLS, || drop(guard.admit(&facts, &LOAD))));
    let with_headers = self::facts("smollm2-135m-instruct", 8);
    report("  with 1 KB headers", &times(CALLS, || drop(guard.admit(&with_headers, &LOAD))));

    let guests = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/guests");
    let file = PolicySource::File(guests.join("guest-misbehaves.wasm"));
    let guest = host.load(&PolicyConfig::new("guest", file)).expect("run `make setup`");
    let (panics, fine) = (self::facts("panic", 0), self::facts("fine", 0));
    report("trap", &times(300, || drop(guest.admit(&panics, &LOAD))));
    // Every call after a trap makes an instance; taking turns keeps it from being warm.
    let mut fresh = Vec::new();
    for _ in 0..300 {
        let _ = guest.admit(&panics, &LOAD);
        fresh.extend(times(1, || drop(guest.admit(&fine, &LOAD))));
    }
    report("the call after a trap", &fresh);
    let spins = self::facts("spin", 0);
    report("stop an endless loop", &times(40, || drop(guest.admit(&spins, &LOAD))));

    let before = resident();
    let (mut policies, mut loads) = (Vec::new(), Vec::new());
    for n in 0..50 {
        let file = PolicySource::File(guests.join("guard.wasm"));
        let began = Instant::now();
        policies.push(host.load(&PolicyConfig::new(format!("g{n}"), file)).expect("guard loads"));
        loads.push(began.elapsed());
    }
    let best = loads.iter().min().expect("there are fifty");
    println!("load guard again      best {best:?}  (what it takes when nobody else computes)");
    println!(
        "per loaded policy     {} KiB resident, its code and one instance",
        (resident() - before) / policies.len() as u64
    );
}

const LOAD: Load = Load { waiting: 3, waiting_max: 32, running: 4 };

fn facts(model: &str, headers: usize) -> Facts {
    Facts {
        request_id: RequestId::generate(),
        arrived_at_micros: 1_700_000_000_000_000,
        endpoint: Endpoint::Chat,
        model: ModelId::new(model),
        streaming: true,
        prompt_tokens: 812,
        tokens_max: 256,
        tokens_max_asked: true,
        body_bytes: 4096,
        headers: (0..headers).map(|n| (format!("x-header-{n}"), "v".repeat(116))).collect(),
    }
}

fn times(calls: usize, mut call: impl FnMut()) -> Vec<Duration> {
    (0..calls)
        .map(|_| {
            let began = Instant::now();
            call();
            began.elapsed()
        })
        .collect()
}

fn report(what: &str, times: &[Duration]) {
    let mut times = times.to_vec();
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)];
    println!("{what:21} p50 {:?}  p99 {:?}  max {:?}", at(50), at(99), at(100));
}

/// KiB of this process in memory; 0 where there is no /proc.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|l| l.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}
