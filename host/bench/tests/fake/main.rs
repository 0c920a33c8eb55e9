//! Whole runs against a server of a few lines, which knows what it was asked and who left.

mod server;

use std::num::NonZeroU32;
use std::sync::atomic::Ordering;
use std::time::Duration;

use interlock_bench::{
    Api, BenchPlan, BenchReport, ProgressDisplay, Storming, Target, Unusable, WorkloadKind,
    room_for_connections, run,
};

use crate::server::{FIRST, Fake, Manner, NEXT};

fn nonzero(n: u32) -> NonZeroU32 {
    NonZeroU32::new(n).expect("not zero")
}

fn plan() -> BenchPlan {
    BenchPlan {
        workloads: vec![WorkloadKind::Short],
        concurrency: vec![nonzero(2)],
        iterations: nonzero(1),
        warmup: 0,
        max_tokens: nonzero(8),
        prompt_tokens: nonzero(64),
        api: Api::Chat,
        stream: true,
        ignore_eos: true,
        timeout: Duration::from_secs(60),
        seed: 1,
        storm: Storming {
            rounds: nonzero(5),
            leave_percent: 100,
            time: None,
            settle: Duration::from_secs(60),
        },
    }
}

async fn target(url: &str) -> Target {
    let address = url.parse().expect("an address");
    Target::meet(address, None, &[]).await.expect("it lists its model")
}

async fn measured(plan: BenchPlan, url: &str) -> BenchReport {
    run(plan, vec![target(url).await], ProgressDisplay::Silent).await.expect("it can be measured")
}

#[tokio::test]
async fn figures_are_those_of_the_server() {
    // It answers nobody before both are there: they are sent at once.
    let (fake, url) = Fake::start(Manner::OneByOne(2)).await;
    let report = measured(plan(), &url).await;
    assert_eq!(report.failures(), 0, "{report}");
    let batch = &report.cells[0].batches[0];
    assert_eq!((batch.requests, batch.answered, batch.short), (2, 2, 0));
    assert_eq!((batch.chunks, batch.tokens, batch.counted_by_server), (16, 32, 2));
    // A request takes the server this long, and the second waits for the first.
    let (first, whole) = (FIRST.as_secs_f64(), (FIRST + NEXT * 8).as_secs_f64());
    assert!(batch.wall_s >= 2.0 * whole, "{report}");
    assert!(batch.first_token_ms_least >= Some(first * 1e3), "{report}");
    assert!(batch.first_token_ms_most >= Some((whole + first) * 1e3), "{report}");
    assert!(batch.first_token_ms_least < batch.first_token_ms_most, "{report}");
    assert!(batch.inter_token_ms_p50.is_some(), "{report}");
    // The two, and the one that finds out whether it answers at all.
    assert_eq!(fake.asked.load(Ordering::Relaxed), 3);
    assert_eq!(*fake.left.borrow(), 0, "nobody left");
}

#[tokio::test]
async fn hundreds_of_streams_flow_at_the_same_time() {
    const MANY: u32 = 300;
    // Both ends are in this process.
    room_for_connections(2 * u64::from(MANY)).expect("the system allows a few hundred files");
    let (_fake, url) = Fake::start(Manner::Together(MANY as usize)).await;
    let report = measured(BenchPlan { concurrency: vec![nonzero(MANY)], ..plan() }, &url).await;
    assert_eq!(report.failures(), 0, "{report}");
    assert_eq!(report.cells[0].batches[0].chunks, 8 * u64::from(MANY));
}

#[tokio::test]
async fn every_target_is_asked_the_same_in_turn() {
    let (one, one_url) = Fake::start(Manner::Prompt).await;
    let (two, two_url) = Fake::start(Manner::Prompt).await;
    let targets = vec![target(&one_url.replace("it=", "one=")).await, target(&two_url).await];
    // With an odd number of rounds, a wrong order would have come right again.
    let plan = BenchPlan { iterations: nonzero(3), warmup: 1, ..plan() };
    let report = run(plan, targets, ProgressDisplay::Silent).await.expect("both answer");
    let names: Vec<&str> = report.cells.iter().map(|cell| cell.target.as_str()).collect();
    assert_eq!(names, ["one", "it"]);
    assert!(report.cells.iter().all(|cell| cell.batches.len() == 3), "the warm-up is no figure");
    let sorted = async |fake: &Fake| {
        let mut prompts = fake.prompts.lock().await.clone();
        prompts.sort();
        prompts.dedup();
        prompts
    };
    let (one, two) = (sorted(&one).await, sorted(&two).await);
    assert_eq!(one.len(), 1 + 4 * 2, "no prompt is asked twice");
    assert_eq!(one, two);
}

#[tokio::test]
async fn two_targets_of_one_name_are_refused() {
    let (_fake, url) = Fake::start(Manner::Prompt).await;
    let targets = vec![target(&url).await, target(&url).await];
    let refused = run(plan(), targets, ProgressDisplay::Silent).await.expect_err("both are `it`");
    assert!(matches!(refused, Unusable::SameName(name) if name == "it"));
}

#[tokio::test]
async fn a_status_that_is_not_200_is_reported() {
    let (_fake, url) = Fake::start(Manner::Failing).await;
    let report = measured(plan(), &url).await;
    assert_eq!(report.failures(), 2);
    assert_eq!(report.cells[0].batches[0].tokens_per_s, None);
    let text = report.to_string();
    let line = "short, 2 at once, it: 2 × status 500; the first: status 500: I would not";
    assert!(text.contains(line), "{text}");
}

#[tokio::test]
async fn an_answer_that_is_cut_off_is_no_answer() {
    let (_fake, url) = Fake::start(Manner::Cutting).await;
    let text = measured(plan(), &url).await.to_string();
    assert!(text.contains("2 × cut off"), "{text}");
}

#[tokio::test]
async fn a_server_that_says_nothing_times_out_and_sees_us_leave() {
    let (fake, url) = Fake::start(Manner::Silent).await;
    // The first request is answered in this time, or this test fails at it.
    let plan = BenchPlan { timeout: Duration::from_secs(2), ..plan() };
    let text = measured(plan, &url).await.to_string();
    assert!(text.contains("2 × timed out"), "{text}");
    everyone_is_seen_to_leave(&fake, 2).await;
}

#[tokio::test]
async fn who_refuses_the_first_request_is_not_measured() {
    let (fake, url) = Fake::start(Manner::Strict).await;
    let refused = run(plan(), vec![target(&url).await], ProgressDisplay::Silent).await;
    let refused = refused.expect_err("it answers 400");
    assert!(refused.to_string().ends_with("status 400: I would not"), "{refused}");
    assert!(refused.may_be_for_extensions());
    assert_eq!(fake.asked.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn answers_in_one_piece_have_no_first_token() {
    for api in Api::ALL {
        let (_fake, url) = Fake::start(Manner::Prompt).await;
        let report = measured(BenchPlan { api, stream: false, ..plan() }, &url).await;
        assert_eq!(report.failures(), 0, "{report}");
        let batch = &report.cells[0].batches[0];
        assert_eq!((batch.answered, batch.tokens, batch.prompt_tokens), (2, 16, 6), "{api}");
        assert_eq!((batch.chunks, batch.counted_by_server), (2, 2), "{api}");
        assert_eq!((batch.first_token_ms_least, batch.inter_token_ms_p50), (None, None), "{api}");
        assert!(!report.to_string().contains("Time to first token"));
    }
}

#[tokio::test]
async fn every_endpoint_streams_and_counts() {
    for api in Api::ALL {
        let (fake, url) = Fake::start(Manner::Prompt).await;
        let report = measured(BenchPlan { api, ..plan() }, &url).await;
        assert_eq!(report.failures(), 0, "{report}");
        let batch = &report.cells[0].batches[0];
        assert_eq!((batch.answered, batch.chunks, batch.tokens), (2, 16, 32), "{api}");
        assert_eq!((batch.short, batch.counted_by_server), (0, 2), "{api}");
        assert!(batch.first_token_ms_least >= Some(FIRST.as_secs_f64() * 1e3), "{report}");
        let rates = report.cells[0].request_tokens_per_s.expect("two answers have a rate each");
        assert!(rates.least <= rates.mean && rates.mean <= rates.most && rates.least > 0.0);
        assert_eq!(*fake.left.borrow(), 0, "nobody left");
    }
}

#[tokio::test]
async fn a_response_that_is_cut_off_is_no_answer() {
    let (_fake, url) = Fake::start(Manner::Cutting).await;
    let text = measured(BenchPlan { api: Api::Responses, ..plan() }, &url).await.to_string();
    assert!(text.contains("2 × cut off"), "{text}");
}

async fn everyone_is_seen_to_leave(fake: &Fake, many: u64) {
    let mut left = fake.left.subscribe();
    let seen = tokio::time::timeout(Duration::from_secs(60), left.wait_for(|left| *left == many));
    let seen = seen.await.map(|seen| seen.is_ok());
    assert_eq!(seen, Ok(true), "{} of {many} were seen to leave", *fake.left.borrow());
}

/// Long answers, which this server ends only when the client does.
fn storm() -> BenchPlan {
    BenchPlan {
        workloads: vec![WorkloadKind::Storm],
        concurrency: vec![nonzero(8)],
        max_tokens: nonzero(16),
        ..plan()
    }
}

#[tokio::test]
async fn a_server_sees_every_client_of_a_storm_leave() {
    let (fake, url) = Fake::start(Manner::Endless(u64::MAX)).await;
    // What comes after the storm wants a whole answer, which this one never gives.
    let plan = BenchPlan { timeout: Duration::from_secs(5), ..storm() };
    let report = measured(plan, &url).await;
    let storm = &report.storms[0];
    assert_eq!((storm.requests, storm.served, storm.failures.count()), (40, 0, 0), "{report}");
    assert_eq!(storm.left_before_text + storm.left_midway, 40, "{report}");
    assert!(storm.left_before_text > 0 && storm.left_midway > 0, "{report}");
    assert!(storm.after.idle_after_s.is_some(), "{report}");
    assert_eq!(storm.after.failure.as_deref(), Some("timed out after 5s"));
    assert_eq!(report.failures(), 1);
    // The forty, and the one afterwards that gave up.
    everyone_is_seen_to_leave(&fake, 41).await;
}

#[tokio::test]
async fn clients_leave_every_endpoint_whole_and_streamed() {
    for (api, stream) in Api::ALL.into_iter().flat_map(|api| [(api, false), (api, true)]) {
        let (fake, url) = Fake::start(Manner::Endless(40)).await;
        let report = measured(BenchPlan { api, stream, ..storm() }, &url).await;
        let storm = &report.storms[0];
        assert_eq!((storm.requests, storm.failures.count()), (40, 0), "{api}: {report}");
        assert_eq!(storm.left_before_text + storm.left_midway, 40, "{api}: {report}");
        assert_eq!(storm.left_midway > 0, stream, "{api}: {report}");
        assert_eq!((report.failures(), &storm.after.failure), (0, &None), "{api}: {report}");
        everyone_is_seen_to_leave(&fake, 40).await;
    }
}

#[tokio::test]
async fn a_storm_whose_time_is_over_has_sent_one_round() {
    let (fake, url) = Fake::start(Manner::Prompt).await;
    let storming = Storming { time: Some(Duration::ZERO), ..plan().storm };
    let report = measured(BenchPlan { storm: storming, ..storm() }, &url).await;
    assert_eq!(report.storms[0].requests, 8, "{report}");
    // With the one that finds out whether it answers at all, and the one afterwards.
    assert!(fake.asked.load(Ordering::Relaxed) <= 10);
}

#[tokio::test]
async fn a_storm_by_time_goes_on_beyond_its_rounds() {
    let (fake, url) = Fake::start(Manner::Prompt).await;
    let storming = Storming { time: Some(Duration::from_secs(3600)), ..plan().storm };
    let storm = measured(BenchPlan { storm: storming, ..storm() }, &url);
    let mut running = fake.running.subscribe();
    // Five rounds of eight would be 40, and two beside them.
    let beyond = running.wait_for(|_| fake.asked.load(Ordering::Relaxed) > 60);
    tokio::select! {
        report = storm => panic!("it ended before its time: {report}"),
        seen = tokio::time::timeout(Duration::from_secs(60), beyond) => {
            seen.expect("it goes on").expect("the server is there");
        }
    }
}

#[tokio::test]
async fn passes_that_overlap_or_fail_are_found_out() {
    let (fake, url) = Fake::start(Manner::Prompt).await;
    fake.device.store(2, Ordering::Relaxed);
    let report = measured(storm(), &url).await;
    let after = &report.storms[0].after;
    assert_eq!((after.passes_in_flight_max, after.failed_passes), (Some(2.0), Some(0.0)));
    assert!(report.to_string().contains("2 passes were in the device at once"), "{report}");
    assert_eq!(report.failures(), 1);

    let (fake, url) = Fake::start(Manner::Prompt).await;
    fake.failing.store(true, Ordering::Relaxed);
    let report = measured(storm(), &url).await;
    // What had failed before the storm is no fault of the storm's.
    assert_eq!(report.storms[0].after.failed_passes, Some(3.0), "{report}");
    assert!(report.to_string().contains("3 passes failed"), "{report}");
    assert_eq!(report.failures(), 3);
}

#[tokio::test]
async fn who_stays_in_a_storm_is_served() {
    let (fake, url) = Fake::start(Manner::Prompt).await;
    let storming = Storming { leave_percent: 50, ..plan().storm };
    let report = measured(BenchPlan { storm: storming, ..storm() }, &url).await;
    let storm = &report.storms[0];
    assert!(storm.served > 0 && storm.left_before_text + storm.left_midway > 0, "{report}");
    assert_eq!(storm.served + storm.left_before_text + storm.left_midway, 40, "{report}");
    assert_eq!((report.failures(), &storm.after.failure), (0, &None), "{report}");
    assert_eq!(fake.asked.load(Ordering::Relaxed), 42);
}

#[tokio::test]
async fn a_server_that_keeps_requests_after_a_storm_is_found_out() {
    let (fake, url) = Fake::start(Manner::Prompt).await;
    fake.running.send_modify(|running| *running += 1);
    let storming = Storming { settle: Duration::from_millis(100), ..plan().storm };
    let report = measured(BenchPlan { storm: storming, ..storm() }, &url).await;
    assert_eq!(report.storms[0].after.still.as_deref(), Some("1 running, 0 waiting"));
    assert!(report.to_string().contains("its metrics still show 1 running"), "{report}");
    assert_eq!(report.failures(), 1);
}
