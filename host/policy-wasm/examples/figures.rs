//! What policies cost: `cargo run --release -p interlock-policy-wasm --example figures`.
//!
//! Each line: wall time at the 50th, 99th and 99.9th of a hundred calls, and the thread's CPU time
//! per call on average, which is what is left when a busy machine is subtracted. At the end stand
//! the machine and its load. Guests are built
//! by `make guests`.

#![allow(clippy::print_stdout, reason = "printing figures is all it does")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use interlock_metrics::Registry;
use interlock_policy_api::{
    Body, Caller, Candidate, Event, Facts, Headers, Identity, Load, Policy, Progress,
    RequestContext, Summary, Window,
};
use interlock_policy_chain::{ChainShared, LimitsConfig, PolicyChain, PolicyMetrics};
use interlock_policy_wasm::{
    Grant, PolicyConfig, PolicyHost, PolicyManager, PolicySource, PolicyUpdate, Services,
    WasmPolicy,
};
use interlock_request::{Endpoint, Finish, ModelId, Outcome, RequestId, Usage};
use interlock_state::State;

const CALLS: usize = 50_000;

fn main() {
    let cached = std::env::temp_dir().join(format!("interlock-figures-{}", std::process::id()));
    let registry = Registry::new();
    let services =
        Services { state: State::memory(), registry: &registry, cache: Some(cached.clone()) };
    let (host, took) = timed(|| PolicyHost::with(services).expect("WebAssembly works here"));
    println!("engine                      {took:?}");
    let (plain, took) = timed(|| load(&host, "guest-plain"));
    println!("load guest-plain            {took:?}  (compile, link, init)");
    let (_, took) = timed(|| load(&host, "guest-plain"));
    println!("load it again               {took:?}  (compiled already)");

    calls(&plain, &host);
    threads(&host);
    mishaps(&host);
    contention(&plain);
    idle();
    swaps(&host, &registry);
    let _ = std::fs::remove_dir_all(cached);
    let cores = thread::available_parallelism().map_or(0, usize::from);
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!("{cores} cores, load average {}", load.trim());
}

fn calls(plain: &WasmPolicy, host: &PolicyHost) {
    let empty = empty_component();
    let config = config("empty", empty.clone());
    let nothing = host.load(&config).expect("it is a component");
    let _ = std::fs::remove_file(empty);
    let caller = caller();
    report("empty call", CALLS, || drop(nothing.identify(&caller)));
    // Without a reading of the clock for each, which is a twentieth of it.
    let (_, took) = timed(|| (0..CALLS).for_each(|_| drop(nothing.identify(&caller))));
    println!("empty call, on average      {:?}", took / u32::try_from(CALLS).unwrap_or(1));
    report("identify", CALLS, || drop(plain.identify(&caller)));
    let body = Body::new(br#"{"messages":[]}"#.to_vec());
    let (bare, full) = (facts(0), facts(6));
    report("admit, no headers", CALLS, || drop(plain.admit(&bare, &LOAD, 1, &body)));
    report("admit, 1 KB of facts", CALLS, || drop(plain.admit(&full, &LOAD, 1, &body)));
    for n in [1, 16, 64] {
        let all: Vec<_> = (0..n).map(candidate).collect();
        report(&format!("route, {n} candidates"), CALLS / 2, || {
            drop(plain.route(&bare, &all, &body));
        });
    }
    let request = RequestContext { facts: &bare, note: "" };
    let text = "a window of text as a model writes it, about thirty-two tokens of it, so that there \
                is something to look at, and then some more words until it is long enough.";
    let usage = Usage { prompt_tokens: 812, cached_tokens: 0, generated_tokens: 32 };
    let window = Window { index: 1, text, held: 0, finished: false, usage };
    report("window of 32 tokens", CALLS, || drop(plain.window(request, &window)));
    let progress = Progress {
        at_micros: 1_700_000_000_000_000,
        elapsed: Duration::from_secs(1),
        since_token: None,
        usage,
    };
    report("event", CALLS, || drop(plain.event(request, &Event::FirstToken, &progress)));
    let summary = Summary {
        closing: Outcome::Completed(Finish::Stop).into(),
        usage,
        queue_time: None,
        time_to_first_token: None,
        total: Duration::from_secs(2),
    };
    report("account", CALLS, || drop(plain.account(request, &summary)));
    println!(
        "memory of an instance       {:?} KiB",
        plain.instance_memory().first().map(|b| b >> 10)
    );
}

/// The same policy, asked by the chain in line and, since its deadline is longer, on threads of its
/// own: what the hand-over costs a request.
fn threads(host: &PolicyHost) {
    let shared = ChainShared::new(PolicyMetrics::register(&Registry::new()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let runtime = runtime.expect("a runtime");
    for (what, deadline) in [("chain, in line", 2), ("chain, own threads", 3)] {
        let file = guest("quota");
        let limits = r#"{"anonymous": "a", "limits": {"requests_per_minute": 4000000000}}"#;
        let config = PolicyConfig {
            grants: vec![Grant::State, Grant::Metrics],
            deadline: Duration::from_millis(deadline),
            settings: serde_json::from_str(limits).expect("settings"),
            ..PolicyConfig::new("quota", PolicySource::File(file))
        };
        let entries = vec![config.chain_entry(host.load(&config).expect("it is built"))];
        let ceilings = LimitsConfig::default().ceilings();
        let chain = Arc::new(PolicyChain::new(entries, ceilings, shared.clone()));
        let caller = caller();
        report(what, CALLS / 10, || {
            let mut review = chain.review(1, caller.request_id.clone());
            runtime.block_on(review.identify(&caller)).expect("it is known");
        });
    }
}

fn mishaps(host: &PolicyHost) {
    let guest = load(host, "guest-misbehaves");
    let body = Body::new(Vec::new());
    let (mut panics, mut fine, mut spins) = (facts(0), facts(0), facts(0));
    panics.model = ModelId::new("panic");
    fine.model = ModelId::new("fine");
    spins.model = ModelId::new("spin");
    report("trap", 1000, || drop(guest.admit(&panics, &LOAD, 0, &body)));
    // Every call after a trap makes an instance; taking turns keeps it from being warm.
    let mut fresh = Vec::new();
    for _ in 0..1000 {
        let _ = guest.admit(&panics, &LOAD, 0, &body);
        fresh.push(timed(|| drop(guest.admit(&fine, &LOAD, 0, &body))).1);
    }
    show("the call after a trap", fresh, None);
    report("stop an endless loop", 1000, || drop(guest.admit(&spins, &LOAD, 0, &body)));
}

/// The same policy from several threads: what they cost each other.
fn contention(plain: &Arc<WasmPolicy>) {
    for threads in [1, 2, 4, 8] {
        let (calls, over) = (AtomicU64::new(0), AtomicBool::new(false));
        let cpu = AtomicU64::new(0);
        thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    let (facts, body) = (facts(0), Body::new(Vec::new()));
                    let before = thread_cpu_time();
                    let mut mine = 0;
                    while !over.load(Ordering::Relaxed) {
                        let _ = plain.admit(&facts, &LOAD, 1, &body);
                        mine += 1;
                    }
                    calls.fetch_add(mine, Ordering::Relaxed);
                    let spent = (thread_cpu_time() - before).as_nanos();
                    cpu.fetch_add(u64::try_from(spent).unwrap_or(0), Ordering::Relaxed);
                });
            }
            thread::sleep(Duration::from_millis(700));
            over.store(true, Ordering::Relaxed);
        });
        let (calls, cpu) = (calls.into_inner(), cpu.into_inner());
        println!(
            "admit from {threads} threads        {calls} in 0.7 s, {} ns CPU each",
            cpu / calls
        );
    }
}

/// How often the clock wakes when nobody calls.
fn idle() {
    thread::sleep(Duration::from_millis(500));
    let before = process_cpu_time();
    thread::sleep(Duration::from_secs(2));
    println!("idle for 2 s                {:?} of CPU", process_cpu_time() - before);
}

fn swaps(host: &PolicyHost, registry: &Registry) {
    let configs = [config("swapped", guest("guest-plain"))];
    let metrics = PolicyMetrics::register(registry);
    let manager =
        PolicyManager::new(host.clone(), &configs, LimitsConfig::default().ceilings(), metrics)
            .expect("it loads");
    let over = AtomicBool::new(false);
    let (asked, failed) = (AtomicU64::new(0), AtomicU64::new(0));
    let mut times = Vec::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            let (facts, body) = (facts(0), Body::new(Vec::new()));
            while !over.load(Ordering::Relaxed) {
                let chain = manager.policies().current();
                let answer = chain.entries()[0].policy.admit(&facts, &LOAD, 1, &body);
                asked.fetch_add(1, Ordering::Relaxed);
                failed.fetch_add(u64::from(answer.is_err()), Ordering::Relaxed);
            }
        });
        for n in 0..1000 {
            let name = if n % 2 == 0 { "guest-misbehaves" } else { "guest-plain" };
            let source = Some(PolicySource::File(guest(name)));
            let change = PolicyUpdate { source, ..PolicyUpdate::default() };
            times.push(timed(|| manager.replace("swapped", change).expect("it loads")).1);
        }
        over.store(true, Ordering::Relaxed);
    });
    show("swap under load", times, None);
    println!("  calls meanwhile           {}, failed {}", asked.into_inner(), failed.into_inner());
}

fn load(host: &PolicyHost, name: &str) -> Arc<WasmPolicy> {
    host.load(&config(name, guest(name))).expect("run `make guests`")
}

fn config(name: &str, file: PathBuf) -> PolicyConfig {
    PolicyConfig {
        grants: (0..6).map(|n| Grant::Header(format!("x-header-{n}"))).collect(),
        crash_budget: 0,
        ..PolicyConfig::new(name, PolicySource::File(file))
    }
}

fn guest(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../target/guests/{name}.wasm"))
}

/// A policy in WebAssembly text that does nothing at all, so that what is left is the host's.
fn empty_component() -> PathBuf {
    let text = include_str!("empty.wat");
    let path = std::env::temp_dir().join(format!("interlock-empty-{}.wasm", std::process::id()));
    std::fs::write(&path, wat::parse_str(text).expect("it is text")).expect("there is room");
    path
}

const LOAD: Load = Load { waiting: 3, waiting_max: 32, running: 4, running_max: 16 };

/// With six headers it is 1 KB of text.
fn facts(headers: usize) -> Facts {
    Facts {
        serial: 1,
        request_id: RequestId::generate(),
        arrived_at_micros: 1_700_000_000_000_000,
        endpoint: Endpoint::Chat,
        model: ModelId::new("smollm2-135m-instruct"),
        streaming: true,
        background: false,
        prompt_tokens: 812,
        tokens_max: 256,
        tokens_max_asked: true,
        body_bytes: 4096,
        prefix_key: 0x1234_5678_9abc_def0,
        identity: Identity {
            tenant: "acme".into(),
            priority: None,
            attributes: vec![("plan".into(), "gold".into())],
        },
        headers: self::headers(headers),
    }
}

fn headers(many: usize) -> Headers {
    Headers((0..many).map(|n| (format!("x-header-{n}"), "v".repeat(140))).collect())
}

fn caller() -> Caller {
    Caller {
        serial: 1,
        request_id: RequestId::generate(),
        arrived_at_micros: 1_700_000_000_000_000,
        endpoint: Endpoint::Chat,
        credential: String::new(),
        address: String::new(),
        headers: Headers::default(),
        looks_up: false,
    }
}

fn candidate(id: u32) -> Candidate {
    Candidate {
        id,
        model: ModelId::new(format!("smollm2-135m-instruct-{id}")),
        asked: true,
        ready: true,
        context: 8192,
        load: LOAD,
        prefix_seen: id == 3,
        first_token: Some(Duration::from_millis(40)),
        inter_token: Some(Duration::from_millis(8)),
    }
}

fn timed<T>(run: impl FnOnce() -> T) -> (T, Duration) {
    let began = Instant::now();
    let made = run();
    (made, began.elapsed())
}

fn report(what: &str, calls: usize, mut call: impl FnMut()) {
    (0..calls / 20).for_each(|_| call());
    let before = thread_cpu_time();
    // From one reading of the clock to the next: to read it twice costs as much as an empty call.
    let mut at = Instant::now();
    let times = (0..calls)
        .map(|_| {
            call();
            let now = Instant::now();
            let took = now - at;
            at = now;
            took
        })
        .collect();
    let cpu = (thread_cpu_time() - before) / u32::try_from(calls).unwrap_or(1);
    show(what, times, Some(cpu));
}

fn show(what: &str, mut times: Vec<Duration>, cpu: Option<Duration>) {
    times.sort_unstable();
    let at = |thousandth: usize| times[(times.len() * thousandth / 1000).min(times.len() - 1)];
    let cpu = cpu.map_or(String::new(), |cpu| format!("  CPU {cpu:?}"));
    println!("{what:27} p50 {:?}  p99 {:?}  p99.9 {:?}{cpu}", at(500), at(990), at(999));
}

fn thread_cpu_time() -> Duration {
    cpu_time(libc::CLOCK_THREAD_CPUTIME_ID)
}

fn process_cpu_time() -> Duration {
    cpu_time(libc::CLOCK_PROCESS_CPUTIME_ID)
}

fn cpu_time(clock: libc::clockid_t) -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a timespec of ours, which lives across the call.
    let failed = unsafe { libc::clock_gettime(clock, &raw mut time) };
    assert_eq!(failed, 0, "every system that we run on has these clocks");
    Duration::new(time.tv_sec.try_into().unwrap_or(0), time.tv_nsec.try_into().unwrap_or(0))
}
