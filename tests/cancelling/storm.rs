//! A thousand requests, most of whose clients leave, over real connections: nothing is left behind.

use std::time::Duration;

use interlock_engine::Mode;
use interlock_sim::SimSettings;
use interlock_tests::{Leaving, Rig, Served, within};
use tokio::task::JoinSet;

const REQUESTS: usize = 1000;
const AT_ONCE: usize = 100;
const TOKENS: usize = 60;

/// What a client does with its answer.
#[derive(Debug, Clone, Copy, PartialEq)]
enum StormClient {
    Stays,
    LeavesAtOnce,
    /// After so many bytes of it.
    LeavesAfter(usize),
}

impl StormClient {
    fn any(rng: &mut fastrand::Rng) -> Self {
        match rng.u8(0..10) {
            0 | 1 => Self::Stays,
            2..=4 => Self::LeavesAtOnce,
            _ => Self::LeavesAfter(rng.usize(1..6000)),
        }
    }
}

/// Sends `count` requests, so many at once; how many got all that they wanted.
async fn storm(served: &'static Served, count: usize, rng: &mut fastrand::Rng) -> usize {
    let mut clients = JoinSet::new();
    let mut served_whole = 0;
    for number in 0..count {
        if clients.len() >= AT_ONCE {
            served_whole +=
                usize::from(within(clients.join_next()).await.expect("one").expect("ends"));
        }
        let client = StormClient::any(rng);
        let stream = rng.bool();
        let body = format!(
            r#"{{"model":"sim","prompt":"request {number}: {}","max_tokens":{TOKENS},"stream":{stream}}}"#,
            "x".repeat(rng.usize(0..200)),
        );
        clients.spawn(async move {
            let id = format!("storm-{number}");
            let mut call = served.post("/v1/completions", &id, &body).await;
            match client {
                StormClient::LeavesAtOnce => {
                    call.leave();
                    false
                }
                StormClient::LeavesAfter(bytes) => {
                    call.read(bytes).await;
                    call.leave();
                    false
                }
                StormClient::Stays => {
                    let answer = call.answer().await;
                    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
                    true
                }
            }
        });
    }
    while let Some(ended) = within(clients.join_next()).await {
        served_whole += usize::from(ended.expect("ends"));
    }
    served_whole
}

/// Everything that counts something that a request holds.
const HELD: [&str; 5] = [
    "requests_waiting",
    "requests_running",
    "http_connections",
    "cache_pages_used",
    "engine_passes_in_flight",
];

/// Returns when nothing is held, and no more tasks live than before.
async fn settled(served: &Served, tasks: impl Fn() -> usize, before: usize) {
    within(async {
        // A task that has told its end has still to be taken down.
        while HELD.iter().any(|gauge| served.rig.metric(gauge) != 0.0) || tasks() > before {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_clients_that_leave_leaves_nothing_behind() {
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    // For the tasks that ask it; it ends with the process.
    // Its passes take time: on a busy machine an instant model would be done before anybody left.
    let settings =
        SimSettings { decode: Duration::from_micros(200), stop: 0, ..SimSettings::default() };
    let rig = Rig::start_with(Mode::Batched, 1000, settings).await;
    let served: &'static Served = Box::leak(Box::new(Served::of(rig).await));
    served.rig.gate.open();
    let mut rng = fastrand::Rng::with_seed(7);
    // Nobody has connected yet.
    let before = tasks();
    storm(served, AT_ONCE, &mut rng).await;
    settled(served, tasks, before).await;
    let admitted_before = ended(served);

    let whole = storm(served, REQUESTS, &mut rng).await;
    settled(served, tasks, before).await;
    assert!(whole > REQUESTS / 10, "some stayed: {whole}");
    let left = r#"requests_total{endpoint="completions",model="sim",outcome="disconnected"}"#;
    assert!(served.rig.metric(left) > 100.0, "many left in time to be noticed");
    let all = ended(served) - admitted_before;
    assert!(all <= REQUESTS as f64, "each ended once: {all} of {REQUESTS}");
    assert!(all >= whole as f64);
    assert_eq!(served.rig.metric("engine_passes_in_flight_max"), 1.0);
    assert_eq!(served.rig.engine.view().waiting, 0, "all permits are back");
    assert!(served.rig.engine.queue_permit().is_ok());
}

/// Clients whose end lies behind something else, in whatever stage their requests are.
#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_that_leave_something_in_their_sockets_leave_nothing_behind() {
    const CLIENTS: usize = 200;
    // Nobody waits long enough to see one of these end by itself.
    const NEVER: u32 = 900_000;

    let next = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\n\r\n{}";
    let megabyte = format!("{next}{}", "x".repeat(1 << 20));
    let behind = ["", "\r\n", next, "GET /met", &megabyte];
    let decode = Duration::from_millis(1);
    let settings = SimSettings { decode, stop: 0, context: 1_000_000, ..SimSettings::default() };
    let rig = Rig::start_with(Mode::Batched, CLIENTS, settings).await;
    let served = Served::of(rig).await;
    let mut calls = vec![];
    for number in 0..CLIENTS {
        let stream = number % 2 == 0;
        let body = format!(
            r#"{{"model":"sim","prompt":"{number}","max_tokens":{NEVER},"stream":{stream}}}"#
        );
        let id = format!("behind-{number}");
        calls.push(served.post("/v1/completions", &id, &body).await);
    }
    served.rig.gate.open();
    within(async {
        let held = || HELD[..2].iter().map(|gauge| served.rig.metric(gauge)).sum::<f64>();
        while held() < CLIENTS as f64 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert!(served.rig.metric("requests_waiting") > 0.0, "some wait");
    let mut leaving = JoinSet::new();
    for (number, mut call) in calls.into_iter().enumerate() {
        let (by, bytes) = (Leaving::ALL[number % 3], behind[number % behind.len()].to_owned());
        leaving.spawn(async move {
            call.send(bytes.as_bytes()).await;
            call.leave_by(by).await
        });
    }
    // Who closed only its sending half is still there.
    let halves = within(leaving.join_all()).await;
    assert!(halves.iter().flatten().count() > CLIENTS / 4);
    settled(&served, || 0, 0).await;
    // A request is counted by its driver, which the gauges of the engine do not wait for.
    within(async {
        while ended(&served) < CLIENTS as f64 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let left = r#"requests_total{endpoint="completions",model="sim",outcome="disconnected"}"#;
    assert_eq!(served.rig.metric(left), CLIENTS as f64);
    assert_eq!(served.rig.engine.view().waiting, 0, "all permits are back");
}

/// Requests that have ended, however.
fn ended(served: &Served) -> f64 {
    ["completed", "disconnected", "cancelled", "timed_out", "failed"]
        .iter()
        .map(|outcome| {
            let labels = format!(r#"endpoint="completions",model="sim",outcome="{outcome}""#);
            served.rig.metric(&format!("requests_total{{{labels}}}"))
        })
        .sum()
}
