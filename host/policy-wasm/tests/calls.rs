//! Whatever a policy does in a call costs that decision: it has a name, and the next one is made.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use expect_test::expect;
use interlock_policy_api::{FailureKind, PlanProposal, Policy};
use interlock_policy_wasm::limits::CALLS_MAX;
use interlock_policy_wasm::{PolicyConfig, PolicyHost};

mod common;
use common::{admit, admitted, count, facts, load, misbehaves, rejected, summary, told};

/// With time enough to write its memory full.
fn patient() -> PolicyConfig {
    PolicyConfig { deadline: Duration::from_millis(100), ..misbehaves() }
}

/// Fails as said, and is none the worse for it.
fn check(model: &str, kind: FailureKind, says: &str) {
    let policy = load(&patient()).expect("it is fine so far");
    assert_eq!((count(&*policy), count(&*policy)), (1, 2), "warm instances are used again");
    let failure = admit(&*policy, model).expect_err("it misbehaves");
    assert_eq!(failure.kind, kind, "{failure}");
    assert!(failure.message.contains(says), "{failure}");
    assert_eq!(count(&*policy), 1, "the instance that failed was used again");
}

#[test]
fn an_endless_loop_is_stopped() {
    check("spin", FailureKind::Deadline, "stopped after");
}

#[test]
fn a_longer_deadline_is_a_longer_deadline() {
    let mut config = misbehaves();
    let spin = |config: &_| {
        let policy = load(config).expect("it is fine so far");
        let began = Instant::now();
        admit(&*policy, "spin").expect_err("it never ends");
        began.elapsed()
    };
    let longer = Duration::from_millis(200);
    // A busy machine makes a call of 5 ms longer, but not each of fifty.
    assert!((0..50).any(|_| spin(&config) < longer), "5ms always took {longer:?}");
    config.deadline = longer;
    assert!(spin(&config) >= longer, "{longer:?} were cut short");
}

#[test]
fn endless_memory_is_refused() {
    check("grow", FailureKind::Memory, "8388608 are allowed");
}

#[test]
fn deep_recursion_is_a_trap() {
    check("recurse", FailureKind::Trap, "call stack exhausted");
}

#[test]
fn a_panic_is_a_trap_that_says_what_and_where() {
    check("panic", FailureKind::Trap, r"this policy panics\nover two lines");
    check("panic", FailureKind::Trap, "misbehaves/src/lib.rs:");
    check("panic", FailureKind::Trap, "guest_misbehaves::misbehave");
}

#[test]
fn an_answer_without_end_is_no_decision() {
    check("giant detail", FailureKind::BadOutput, "too much data");
}

#[test]
fn a_log_line_without_end_is_refused_before_it_is_copied() {
    check("giant log", FailureKind::BadOutput, "too much data");
}

#[test]
fn a_plan_that_would_end_every_request_is_no_decision() {
    check("zero timeouts", FailureKind::BadOutput, "timeouts.first-token must exceed 0");
}

#[test]
fn a_policy_that_shouts_decides_all_the_same() {
    let mut config = misbehaves();
    config.deadline = Duration::from_secs(1);
    let policy = load(&config).expect("it is fine so far");
    assert_eq!(admitted(&*policy, "shout").proposal, PlanProposal::default());
}

#[test]
fn absurd_answers_are_cut_to_size() {
    let policy = load(&misbehaves()).expect("it is fine so far");
    let long = rejected(&*policy, "long detail");
    assert_eq!(&*long.reason.code.0, "long");
    assert_eq!(long.reason.detail.expect("there was one").len(), 512);
    assert_eq!(&*rejected(&*policy, "reject as a success").reason.code.0, "odd");
    let later = rejected(&*policy, "retry in 500000 years");
    assert_eq!(later.retry_after, Some(Duration::from_secs(24 * 60 * 60)));
    let plan = admitted(&*policy, "endless timeouts").proposal;
    // Wherever the plan goes, a sum with the clock is possible.
    assert!(Instant::now().checked_add(plan.deadlines.total.expect("it was set")).is_some());
}

#[test]
fn a_policy_sees_the_facts_as_they_are() {
    let policy = load(&misbehaves()).expect("it is fine so far");
    let detail = rejected(&*policy, "repeat the facts").reason.detail.expect("that is its detail");
    expect![[r#"RequestFacts { request-id: "r-1", arrived-at: 1700000000000000, endpoint: Endpoint::Chat, model: "repeat the facts", streaming: true, background: false, prompt-tokens: 100, max-tokens: 50, max-tokens-asked: true, body-bytes: 512, prefix-key: 42, tenant: "blue", attributes: [Attribute { name: "plan", value: "gold" }], headers: [], note: "" } Load { waiting: 1, max-waiting: 32, running: 2, max-running: 8, tenant-in-flight: 3 }"#]].assert_eq(&detail);
}

#[test]
fn failing_to_account_costs_nothing_but_that() {
    let policy = load(&patient()).expect("it is fine so far");
    for (model, kind) in [
        ("account:panic", FailureKind::Trap),
        ("account:spin", FailureKind::Deadline),
        ("account:grow", FailureKind::Memory),
    ] {
        let failure = policy.account(told(&facts(model)), &summary()).expect_err(model);
        assert_eq!(failure.kind, kind, "{failure}");
        policy.account(told(&facts("fine")), &summary()).expect("the next one is fine");
    }
}

#[test]
fn an_instance_is_replaced_in_time() {
    let policy = load(&misbehaves()).expect("it is fine so far");
    let longest = CALLS_MAX + CALLS_MAX / 4;
    let mut previous = 0;
    for _ in 0..=longest {
        let now = count(&*policy);
        if now < previous {
            assert!(previous >= u128::from(CALLS_MAX - CALLS_MAX / 4), "replaced after {previous}");
            return;
        }
        previous = now;
    }
    panic!("the same instance served {longest} calls");
}

#[test]
fn a_policy_outlives_its_host() {
    let host = PolicyHost::new().expect("WebAssembly works here");
    let policy = host.load(&misbehaves()).expect("it is fine so far");
    drop(host);
    // Its clock ticks on, or this would never end.
    assert_eq!(admit(&*policy, "spin").expect_err("it never ends").kind, FailureKind::Deadline);
}

/// Eight threads, one policy, and every seventh call fails in one way or another. On a machine
/// with fewer cores, threads are put aside in the middle of calls: that is nobody's deadline.
#[test]
fn calls_of_many_threads_do_not_touch_each_other() {
    let policy = load(&patient()).expect("it is fine so far");
    let (served, failed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let policy: &dyn Policy = &*policy;
    thread::scope(|scope| {
        for thread in 0..8 {
            let (served, failed) = (&served, &failed);
            scope.spawn(move || {
                for call in 0..700 {
                    let bad = ["panic", "grow", "recurse", "zero timeouts"];
                    if call % 7 == thread % 7 {
                        admit(policy, bad[call / 7 % 4]).expect_err("it misbehaves");
                        failed.fetch_add(1, Ordering::Relaxed);
                    } else {
                        admit(policy, "fine").expect("others' failures are not mine");
                        served.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    assert_eq!((served.into_inner(), failed.into_inner()), (4800, 800));
}
