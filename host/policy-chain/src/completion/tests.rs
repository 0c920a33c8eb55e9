use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use interlock_request::{Finish, Usage};
use proptest::prelude::*;

use super::*;
use crate::testing::{
    Fake, SERIAL, admit, body, chain, facts, failure, generation, id, let_in, prompt, summary,
};
use crate::{ChainEntry, FailureAction, OnFailure};
use interlock_policy_api::{
    Admission, Answer, Code, Decision, FailureKind, Load, Reason, Rejection,
};

fn yes() -> Answer<Decision> {
    let_in(Admission { note: "noted".into(), ..Admission::default() })
}

fn no() -> Answer<Decision> {
    Ok(Decision::Reject(Rejection {
        status: 429,
        reason: Reason { code: Code::from("no"), detail: None },
        retry_after: None,
        headers: vec![],
    }))
}

fn fakes(answers: Vec<Answer<Decision>>) -> (Vec<ChainEntry>, Vec<Arc<crate::testing::FakeLog>>) {
    answers
        .into_iter()
        .zip(["a", "b", "c", "d", "e"])
        .map(|(answer, name)| {
            let fake = Fake::admitting(name, answer);
            let told = Arc::clone(&fake.told);
            (fake.entry(), told)
        })
        .unzip()
}

#[test]
fn an_admitted_request_is_accounted_for_exactly_once_and_then_forgotten() {
    let (entries, told) = fakes(vec![yes()]);
    let (chain, _) = chain(entries);
    let outcome = admit(&chain, facts()).expect("it admits");
    let usage = Usage { generated_tokens: 3, ..Usage::default() };
    let end = Summary { usage, ..summary(Outcome::Completed(Finish::Stop)) };
    outcome.session.settle(&end);
    assert_eq!(*told[0].accounts.lock().unwrap(), [(SERIAL, "noted".to_owned(), end)]);
    assert_eq!(told[0].forgotten(), [SERIAL]);
}

#[test]
fn a_request_that_is_dropped_or_whose_driver_panics_is_accounted_for_as_failed_once() {
    let (entries, told) = fakes(vec![yes()]);
    let (chain, _) = chain(entries);
    drop(admit(&chain, facts()).expect("it admits"));
    let outcome = admit(&chain, Facts { serial: 8, ..facts() }).expect("it admits");
    let driver = catch_unwind(AssertUnwindSafe(move || {
        let _overseen = outcome.session;
        panic!("a bug in the driver");
    }));
    assert!(driver.is_err());
    assert_eq!(told[0].closings(), ["failed", "failed"]);
}

#[test]
fn who_let_a_request_pass_hears_that_a_later_policy_turned_it_away() {
    let (entries, told) = fakes(vec![yes(), no(), yes()]);
    let (chain, _) = chain(entries);
    let refused = admit(&chain, facts()).expect_err("b rejects");
    assert_eq!(&*refused.policy, "b");
    assert_eq!(told[0].closings(), ["rejected"]);
    assert_eq!(told[0].accounts.lock().unwrap()[0].1, "noted");
    assert_eq!(told[1].closings(), [""; 0], "it knows, since it did it itself");
    assert_eq!(told[2].closings(), [""; 0], "it was never asked");
    assert!(told.iter().all(|told| told.forgotten() == [SERIAL]));
}

#[test]
fn one_that_fails_was_asked_and_hears_the_end() {
    let (entries, told) = fakes(vec![Err(failure(FailureKind::Trap))]);
    let (chain, _) = chain(entries);
    admit(&chain, facts()).expect_err("it is closed");
    assert_eq!(told[0].closings(), ["rejected"]);
}

#[test]
fn a_request_that_ends_before_admission_is_forgotten_and_nobody_accounts() {
    let (entries, told) = fakes(vec![yes()]);
    let (chain, _) = chain(entries);
    drop(chain.review(SERIAL, id()));
    assert_eq!(told[0].closings(), [""; 0]);
    assert_eq!(told[0].forgotten(), [SERIAL]);
}

#[test]
fn a_future_that_is_dropped_while_a_policy_thinks_settles_with_those_who_were_asked() {
    let registry = interlock_metrics::Registry::new();
    let (first, second, third) =
        (Fake::admitting("a", yes()), Fake::admitting("b", yes()), Fake::admitting("c", yes()));
    let told = [&first, &second, &third].map(|fake| Arc::clone(&fake.told));
    let (go, gone) = std::sync::mpsc::sync_channel::<()>(1);
    let gone = std::sync::Mutex::new(gone);
    let wait = move |_| {
        let _ = gone.lock().unwrap().recv();
        yes()
    };
    let second = Fake { slow: true, admit: Some(Box::new(wait)), ..second };
    let entries = vec![first.entry(), second.entry(), third.entry()];
    let metrics = crate::PolicyMetrics::register(&registry);
    let chain =
        crate::PolicyChain::new(entries, crate::LimitsConfig::default().ceilings(), metrics);
    let chain = Arc::new(chain);
    {
        let review = chain.review(SERIAL, id());
        let (load, body) = (Load::default(), body());
        let mut asked = pin!(review.admit(facts(), &load, prompt(), generation(), &body));
        let polled = asked.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert!(matches!(polled, Poll::Pending));
    }
    drop(go);
    assert_eq!(told[0].closings(), ["rejected"]);
    assert_eq!(told[2].closings(), [""; 0]);
    assert_eq!(chain.shared.tenants.count("acme"), None);
    // The slow one hears it on its own threads.
    let patience = Instant::now() + Duration::from_secs(10);
    while told[1].closings().is_empty() || told[1].forgotten().is_empty() {
        assert!(Instant::now() < patience, "it was never told");
        std::thread::yield_now();
    }
    assert_eq!(told[1].closings(), ["rejected"]);
}

#[test]
fn the_tenants_place_is_taken_from_the_question_to_the_account() {
    let seen = Arc::new(std::sync::Mutex::new(vec![]));
    let sees = Arc::clone(&seen);
    let count = move |others| {
        sees.lock().unwrap().push(others);
        yes()
    };
    let fake = Fake { admit: Some(Box::new(count)), ..Fake::named("a") };
    let (chain, _) = chain(vec![fake.entry()]);
    let first = admit(&chain, facts()).expect("it admits");
    let second = admit(&chain, Facts { serial: 8, ..facts() }).expect("it admits");
    first.session.settle(&summary(Outcome::Completed(Finish::Stop)));
    drop(second);
    drop(admit(&chain, Facts { serial: 9, ..facts() }).expect("it admits"));
    assert_eq!(*seen.lock().unwrap(), [0, 1, 0]);
    assert_eq!(chain.shared.tenants.count("acme"), None);
}

/// An account that fails, or that does not settle, must not give back what the request has used.
#[test]
fn what_is_forgotten_is_known_to_have_run_or_not() {
    let (entries, told) = fakes(vec![yes()]);
    let (chain, _) = chain(entries);
    let ran = || {
        let ran = told[0].ran.lock().unwrap().clone();
        told[0].ran.lock().unwrap().clear();
        ran
    };
    drop(chain.review(SERIAL, id()));
    assert_eq!(ran(), [false], "it was never admitted");
    let cancelled = || summary(Outcome::Completed(Finish::Stop));
    admit(&chain, facts()).expect("it admits").session.settle(&cancelled());
    assert_eq!(ran(), [false], "it waited in vain");
    let begun = Summary { queue_time: Some(Duration::ZERO), ..cancelled() };
    admit(&chain, facts()).expect("it admits").session.settle(&begun);
    assert_eq!(ran(), [true]);
    drop(admit(&chain, facts()).expect("it admits"));
    assert_eq!(ran(), [true], "nobody knows");
}

/// Their service hangs, and requests keep ending: those that come are asked about all the same,
/// and every request is forgotten.
#[test]
fn accounts_that_hang_keep_no_thread_from_what_is_asked_and_those_that_find_no_room_are_counted() {
    use crate::policy_threads::{ACCOUNT_THREADS, ACCOUNTS_MAX};
    let registry = interlock_metrics::Registry::new();
    let shared = crate::ChainShared::new(crate::PolicyMetrics::register(&registry));
    let (go, gone) = std::sync::mpsc::sync_channel::<()>(1);
    let mut fake = Fake { slow: true, ..Fake::admitting("a", yes()) };
    fake.account = Some(std::sync::Mutex::new(gone));
    let told = Arc::clone(&fake.told);
    let ceilings = crate::LimitsConfig::default().ceilings();
    let chain = Arc::new(crate::PolicyChain::new(vec![fake.entry()], ceilings, shared.clone()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let all = ACCOUNT_THREADS + ACCOUNTS_MAX + 10;
    for serial in 0..u64::try_from(all).unwrap() {
        let review = chain.review(serial, id());
        let (load, body) = (Load::default(), body());
        let facts = Facts { serial, ..facts() };
        let asked = review.admit(facts, &load, prompt(), generation(), &body);
        runtime
            .block_on(asked)
            .expect("it admits")
            .session
            .settle(&summary(Outcome::Completed(Finish::Stop)));
    }
    // The last ones may still be on their way: they come behind the call that admitted them, on
    // that call's thread.
    let patience = Instant::now() + Duration::from_secs(60);
    while told.forgotten().len() < 10 {
        assert!(Instant::now() < patience, "{} found no room", told.forgotten().len());
        std::thread::yield_now();
    }
    drop(go);
    assert_eq!(shared.drain(Duration::from_secs(60)), 0);
    let lost = all - told.closings().len();
    assert!((10..=10 + ACCOUNT_THREADS).contains(&lost), "{lost} found no room");
    assert_eq!(told.forgotten().len(), all);
    let failed = format!(
        r#"interlock_policy_failures_total{{kind="busy",phase="account",policy="a"}} {lost}"#
    );
    let text = registry.expose().expect("encodes");
    assert!(text.contains(&failed), "{text}");
}

#[derive(Debug, Clone, Copy)]
enum Does {
    Admits,
    Rejects,
    Traps,
    Panics,
}

proptest! {
    #[test]
    fn whatever_happens_everyone_asked_accounts_once_and_everyone_forgets_once(
        policies in prop::collection::vec(
            (
                prop::sample::select(vec![Does::Admits, Does::Rejects, Does::Traps, Does::Panics]),
                prop::sample::select(vec![FailureAction::Open, FailureAction::UNAVAILABLE, FailureAction::Builtin]),
            ),
            0..5,
        ),
        settled in any::<bool>(),
    ) {
        let answer = |does| match does {
            Does::Rejects => no(),
            Does::Traps => Err(failure(FailureKind::Trap)),
            Does::Admits | Does::Panics => yes(),
        };
        let (entries, told): (Vec<_>, Vec<_>) = policies
            .iter()
            .zip(["a", "b", "c", "d", "e"])
            .map(|((does, on_failure), name)| {
                let mut fake = Fake::admitting(name, answer(*does));
                if matches!(does, Does::Panics) {
                    // Without the hook, which would write thousands of lines.
                    fake.admit = Some(Box::new(|_| std::panic::resume_unwind(Box::new("oh"))));
                }
                let told = Arc::clone(&fake.told);
                let on_failure = OnFailure { admit: *on_failure, ..OnFailure::default() };
                (ChainEntry::new(Arc::new(fake), on_failure), told)
            })
            .unzip();
        let (chain, _) = chain(entries);
        let outcome = admit(&chain, facts());
        let last = policies.iter().position(|(does, on_failure)| match does {
            Does::Admits => false,
            Does::Rejects => true,
            Does::Traps | Does::Panics => *on_failure == FailureAction::UNAVAILABLE,
        });
        prop_assert_eq!(outcome.is_err(), last.is_some());
        if let Ok(outcome) = outcome {
            prop_assert!(told.iter().all(|told| told.closings().is_empty()));
            if settled {
                outcome.session.settle(&summary(Outcome::Completed(Finish::Stop)));
            }
        }
        for (at, told) in told.iter().enumerate() {
            let rejects = matches!(policies[at].0, Does::Rejects);
            let hears = last.is_none_or(|last| at <= last) && !(rejects && last == Some(at));
            prop_assert_eq!(told.closings().len(), usize::from(hears));
            prop_assert_eq!(told.forgotten(), [SERIAL]);
        }
        prop_assert_eq!(chain.shared.tenants.count("acme"), None);
    }
}
