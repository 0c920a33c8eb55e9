use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, mpsc};
use std::thread::ThreadId;

use interlock_metrics::Registry;
use interlock_request::{Finish, Outcome, Usage};

use super::*;
use crate::testing::{Fake, SERIAL, body, caller, facts, generation, id, let_in, prompt, summary};
use crate::{
    AdmissionOutcome, ChainEntry, ChainShared, FailureAction, LimitsConfig, OnFailure, Policies,
    PolicyChain, PolicyMode, PolicyRefusal,
};
use interlock_policy_api::{
    Admission, Body, Candidate, Choice, Code, Event, EventSet, FailureKind, Guarding, Identified,
    Identity, Load, Phase, Progress, Reaction, Transformed, Verdict, Watch, WindowSize,
};

/// What a policy waits in until the test lets it go.
#[derive(Clone, Default)]
struct Door(Arc<(Mutex<bool>, Condvar)>);

impl Door {
    fn wait(&self) {
        let (open, opened) = &*self.0;
        drop(opened.wait_while(open.lock().unwrap(), |open| !*open).unwrap());
    }

    fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }
}

/// Opens when the test ends, however it does: no thread hangs for good.
impl Drop for Door {
    fn drop(&mut self) {
        if Arc::strong_count(&self.0) == 1 || std::thread::panicking() {
            self.open();
        }
    }
}

fn yes() -> interlock_policy_api::Answer<interlock_policy_api::Decision> {
    let_in(Admission { note: "noted".into(), ..Admission::default() })
}

/// One that hangs in `admit`, and how many of its calls do.
fn hanging(name: &'static str, door: &Door) -> (Fake, Arc<AtomicUsize>) {
    let (door, inside) = (door.clone(), Arc::<AtomicUsize>::default());
    let hang = {
        let inside = Arc::clone(&inside);
        move |_| {
            inside.fetch_add(1, Ordering::SeqCst);
            door.wait();
            yes()
        }
    };
    (Fake { slow: true, admit: Some(Box::new(hang)), ..Fake::named(name) }, inside)
}

fn slow(name: &'static str) -> Fake {
    Fake { slow: true, ..Fake::admitting(name, yes()) }
}

fn shared() -> (ChainShared, Registry) {
    let registry = Registry::new();
    (ChainShared::new(PolicyMetrics::register(&registry)), registry)
}

fn chain_of(entries: Vec<ChainEntry>, shared: &ChainShared) -> Arc<PolicyChain> {
    Arc::new(PolicyChain::new(entries, LimitsConfig::default().ceilings(), shared.clone()))
}

async fn admit(chain: Arc<PolicyChain>, serial: u64) -> Result<AdmissionOutcome, PolicyRefusal> {
    let review = chain.review(serial, id());
    let facts = interlock_policy_api::Facts { serial, ..facts() };
    review.admit(facts, &Load::default(), prompt(), generation(), &body()).await
}

async fn until(what: impl Fn() -> bool) {
    let patience = Instant::now() + Duration::from_secs(60);
    while !what() {
        assert!(Instant::now() < patience, "it does not happen");
        tokio::task::yield_now().await;
    }
}

fn value(registry: &Registry, series: &str) -> i64 {
    let text = registry.expose().expect("encodes");
    let line = text.lines().find(|line| line.starts_with(series));
    let line = line.unwrap_or_else(|| panic!("no {series} in\n{text}"));
    line.rsplit(' ').next().and_then(|value| value.parse().ok()).expect("a number")
}

const WAITING: &str = r#"interlock_policy_slow_calls_waiting{policy="a"}"#;
const RUNNING: &str = r#"interlock_policy_slow_calls_running{policy="a"}"#;

/// Everyone waits for the one that hangs, and nobody for that one but its own.
#[tokio::test]
async fn a_policy_that_hangs_takes_no_thread_from_another() {
    let (shared, registry) = shared();
    let door = Door::default();
    let (a, inside) = hanging("a", &door);
    let hangs = chain_of(vec![a.entry()], &shared);
    let fine = chain_of(vec![slow("b").entry()], &shared);
    let many = u64::try_from(4 * CALLS_MAX).unwrap();
    let asked: Vec<_> =
        (0..many).map(|serial| tokio::spawn(admit(Arc::clone(&hangs), serial))).collect();
    until(|| inside.load(Ordering::SeqCst) == CALLS_MAX).await;
    until(|| value(&registry, WAITING) == i64::try_from(3 * CALLS_MAX).unwrap()).await;
    for serial in 0..many {
        let outcome = admit(Arc::clone(&fine), serial).await.expect("b answers");
        outcome.session.settle(&summary(Outcome::Completed(Finish::Stop)));
    }
    assert_eq!(inside.load(Ordering::SeqCst), CALLS_MAX, "a still hangs");
    door.open();
    for asked in asked {
        drop(asked.await.expect("no panic"));
    }
    assert_eq!(shared.drain(Duration::from_secs(60)), 0);
    assert_eq!((value(&registry, WAITING), value(&registry, RUNNING)), (0, 0));
}

/// The reason to replace it is that it hangs.
#[tokio::test]
async fn who_replaces_a_policy_that_hangs_does_not_wait_for_it() {
    let (shared, _) = shared();
    let door = Door::default();
    let (old, inside) = hanging("a", &door);
    let ceilings = LimitsConfig::default().ceilings();
    let policies = Policies::new(vec![old.entry()], ceilings, shared.clone());
    for serial in 0..u64::try_from(CALLS_MAX).unwrap() {
        tokio::spawn(admit(policies.current(), serial));
    }
    until(|| inside.load(Ordering::SeqCst) == CALLS_MAX).await;
    policies.swap(vec![slow("a").entry()]);
    admit(policies.current(), 99).await.expect("the new one answers");
    assert_eq!(inside.load(Ordering::SeqCst), CALLS_MAX, "the old one still hangs");
    door.open();
}

/// With a clock that moves when nothing else does.
#[tokio::test(start_paused = true)]
async fn who_gets_no_thread_in_time_fails_as_busy_and_the_next_one_is_served() {
    let (shared, registry) = shared();
    let door = Door::default();
    let (a, inside) = hanging("a", &door);
    let chain = chain_of(vec![a.entry()], &shared);
    let mut asked = Vec::new();
    for serial in 0..u64::try_from(CALLS_MAX).unwrap() {
        asked.push(tokio::spawn(admit(Arc::clone(&chain), serial)));
    }
    until(|| inside.load(Ordering::SeqCst) == CALLS_MAX).await;
    let began = tokio::time::Instant::now();
    let refused = admit(Arc::clone(&chain), 98).await.expect_err("there is no thread");
    assert_eq!(began.elapsed().as_secs(), PATIENCE.as_secs());
    let failure = refused.failure.expect("it did not decide");
    assert_eq!((refused.rejection.status, failure.kind), (503, FailureKind::Busy));
    let busy = r#"interlock_policy_failures_total{kind="busy",phase="admit",policy="a"}"#;
    assert_eq!((value(&registry, busy), value(&registry, WAITING)), (1, 0));
    door.open();
    for asked in asked {
        asked.await.expect("no panic").expect("it admits");
    }
    admit(chain, 99).await.expect("it admits");
}

#[tokio::test(start_paused = true)]
async fn who_finds_too_many_in_line_is_told_at_once() {
    let (shared, registry) = shared();
    let door = Door::default();
    let (a, inside) = hanging("a", &door);
    let on_failure = OnFailure { admit: FailureAction::Open, ..OnFailure::default() };
    let chain = chain_of(vec![ChainEntry::new(Arc::new(a), on_failure)], &shared);
    let most = CALLS_MAX + CALLS_WAITING_MAX;
    let asked: Vec<_> = (0..u64::try_from(most).unwrap())
        .map(|serial| tokio::spawn(admit(Arc::clone(&chain), serial)))
        .collect();
    until(|| inside.load(Ordering::SeqCst) == CALLS_MAX).await;
    until(|| value(&registry, WAITING) == i64::try_from(CALLS_WAITING_MAX).unwrap()).await;
    let began = tokio::time::Instant::now();
    admit(chain, 5000).await.expect("it is open");
    assert_eq!(began.elapsed(), Duration::ZERO);
    let busy = r#"interlock_policy_failures_total{kind="busy",phase="admit",policy="a"}"#;
    assert_eq!(value(&registry, busy), 1);
    assert_eq!(inside.load(Ordering::SeqCst), CALLS_MAX, "none of them got a thread");
    door.open();
    for asked in asked {
        asked.await.expect("no panic").expect("it is open, or admits");
    }
}

/// The client leaves while it is asked. What it holds for the request it gives back by its note,
/// which nobody waited for; and it hears of the end behind that call, not before it.
#[tokio::test]
async fn one_that_was_left_alone_accounts_after_its_answer_and_with_its_note() {
    let (shared, _) = shared();
    let door = Door::default();
    let (a, inside) = hanging("a", &door);
    let told = Arc::clone(&a.told);
    let chain = chain_of(vec![a.entry()], &shared);
    let asked = tokio::spawn(admit(Arc::clone(&chain), SERIAL));
    until(|| inside.load(Ordering::SeqCst) == 1).await;
    asked.abort();
    assert!(asked.await.is_err_and(|ended| ended.is_cancelled()));
    assert_eq!((told.closings(), told.forgotten()), (vec![], vec![]), "it is still asked");
    door.open();
    assert_eq!(shared.drain(Duration::from_secs(60)), 0);
    let accounts = told.accounts.lock().unwrap().clone();
    let accounts: Vec<_> =
        accounts.iter().map(|(_, note, end)| (note.as_str(), end.closing.as_str())).collect();
    assert_eq!(accounts, [("noted", "rejected")]);
    assert_eq!(told.forgotten(), [SERIAL]);
}

const EVERY: WindowSize = WindowSize { tokens: 1, delay_max: Duration::from_secs(60) };

/// A policy that takes part in everything and tells on which thread.
fn everywhere(name: &'static str, seen: &mpsc::SyncSender<(Phase, ThreadId)>) -> Fake {
    let tell = |phase| {
        let seen = seen.clone();
        move || seen.send((phase, thread::current().id())).expect("the test listens")
    };
    let (identify, transform, route) =
        (tell(Phase::Identify), tell(Phase::Transform), tell(Phase::Route));
    let (admit, window, event) =
        (tell(Phase::Admit), tell(Phase::StreamGuard), tell(Phase::Events));
    let watch = Watch {
        events: EventSet { first_token: true, ..EventSet::default() },
        guarding: Guarding::Gate(EVERY),
        ..Watch::default()
    };
    Fake {
        watch,
        identify: Some(Box::new(move |_| {
            identify();
            let acme = Identity { tenant: "acme".into(), ..Identity::default() };
            Ok(Identified::Known(acme, Code::from("known")))
        })),
        transform: Some(Box::new(move |_, body| {
            transform();
            body.set("/seen", "true").expect("it is an object");
            Ok(Transformed::Keep)
        })),
        route: Some(Box::new(move |_| {
            route();
            Ok(Choice::Abstain)
        })),
        admit: Some(Box::new(move |_| {
            admit();
            yes()
        })),
        window: Some(Box::new(move |_| {
            window();
            Ok(Verdict::Pass)
        })),
        event: Some(Box::new(move |_| {
            event();
            Ok(Reaction::Keep)
        })),
        ..Fake::named(name)
    }
}

/// Brings a request with a body of so many bytes before all phases.
async fn through(chain: &Arc<PolicyChain>, bytes: usize) {
    let body = Arc::new(Body::new(format!("{{\"text\":\"{}\"}}", "a".repeat(bytes)).into_bytes()));
    let serial = bytes as u64;
    let mut review = chain.review(serial, id());
    review.identify(&caller()).await.expect("known");
    let mut facts = interlock_policy_api::Facts { serial, ..facts() };
    review.transform(&mut facts, &body).await.expect("kept");
    let none: [Candidate; 0] = [];
    review.route(&facts, &none, &body).await.expect("nobody objects");
    let outcome = review.admit(facts, &Load::default(), prompt(), generation(), &body).await;
    let mut session = outcome.expect("it admits").session;
    let usage = Usage { generated_tokens: 1, ..Usage::default() };
    let progress = Progress { at_micros: 0, elapsed: Duration::ZERO, since_token: None, usage };
    session.event(Event::FirstToken, progress).await;
    if let Some(mut stream_filters) = session.stream_filters() {
        assert_eq!(stream_filters.push("a ", usage, Instant::now()).await.text, "a ");
    }
    session.settle(&summary(Outcome::Completed(Finish::Stop)));
}

/// Phases in which it was called on this thread, and on others.
fn here_and_there(seen: &mpsc::Receiver<(Phase, ThreadId)>) -> (Vec<Phase>, Vec<Phase>) {
    let (here, there): (Vec<_>, Vec<_>) =
        seen.try_iter().partition(|(_, thread)| *thread == thread::current().id());
    let phases = |calls: Vec<(Phase, _)>| calls.into_iter().map(|(phase, _)| phase).collect();
    (phases(here), phases(there))
}

const ASKED: [Phase; 6] = [
    Phase::Identify,
    Phase::Transform,
    Phase::Route,
    Phase::Admit,
    Phase::Events,
    Phase::StreamGuard,
];

#[tokio::test]
async fn a_slow_policy_is_called_on_no_thread_that_serves_in_any_phase() {
    let (shared, _) = shared();
    let (sees, seen) = mpsc::sync_channel(64);
    let chain = chain_of(vec![Fake { slow: true, ..everywhere("a", &sees) }.entry()], &shared);
    through(&chain, 0).await;
    assert_eq!(here_and_there(&seen), (vec![], ASKED.to_vec()));

    let shadow = Fake { slow: true, ..everywhere("a", &sees) }.entry();
    let chain = chain_of(vec![ChainEntry { mode: PolicyMode::Shadow, ..shadow }], &shared);
    through(&chain, 0).await;
    assert_eq!(shared.drain(Duration::from_secs(60)), 0);
    assert_eq!(here_and_there(&seen), (vec![], ASKED.to_vec()));
}

#[tokio::test]
async fn one_that_decides_at_once_reads_large_bodies_on_other_threads() {
    let (shared, _) = shared();
    let (sees, seen) = mpsc::sync_channel(64);
    let chain = chain_of(vec![everywhere("a", &sees).entry()], &shared);
    through(&chain, 0).await;
    assert_eq!(here_and_there(&seen), (ASKED.to_vec(), vec![]));
    through(&chain, Body::IN_LINE_BYTES_MAX).await;
    let with_body = [Phase::Transform, Phase::Route, Phase::Admit];
    let without = [Phase::Identify, Phase::Events, Phase::StreamGuard];
    assert_eq!(here_and_there(&seen), (without.to_vec(), with_body.to_vec()));
    assert_eq!(shared.drain(Duration::from_secs(60)), 0);
}

/// A driver may give a call up and go on. The next one waits for it, so that no policy sees two of
/// one request at once, or the later one first.
#[tokio::test]
async fn calls_about_one_request_stay_in_order_behind_one_that_nobody_waits_for() {
    let (shared, _) = shared();
    let (door, begun) = (Door::default(), Arc::<Mutex<Vec<u32>>>::default());
    let hang = {
        let (door, begun) = (door.clone(), Arc::clone(&begun));
        move |window: &interlock_policy_api::Window<'_>| {
            begun.lock().unwrap().push(window.index);
            door.wait();
            begun.lock().unwrap().push(100 + window.index);
            Ok(Verdict::Pass)
        }
    };
    let watch = Watch { guarding: Guarding::Gate(EVERY), ..Watch::default() };
    let fake = Fake { slow: true, watch, window: Some(Box::new(hang)), ..Fake::named("a") };
    let told = Arc::clone(&fake.told);
    let chain = chain_of(vec![fake.entry()], &shared);
    let session = admit(chain, SERIAL).await.expect("nobody objects").session;
    let mut stream_filters = session.stream_filters().expect("it reads");
    let usage = |generated_tokens| Usage { generated_tokens, ..Usage::default() };
    {
        let mut first = Box::pin(stream_filters.push("a ", usage(1), Instant::now()));
        until_pending(&mut first).await;
        until(|| begun.lock().unwrap().len() == 1).await;
    }
    {
        let mut second = Box::pin(stream_filters.push("b ", usage(2), Instant::now()));
        until_pending(&mut second).await;
        assert_eq!(*begun.lock().unwrap(), [0], "the first is still asked");
        session.settle(&summary(Outcome::Completed(Finish::Stop)));
        assert_eq!(told.forgotten(), [0_u64; 0]);
        door.open();
        assert_eq!(second.await.text, "a b ");
    }
    assert_eq!(shared.drain(Duration::from_secs(60)), 0);
    assert_eq!(*begun.lock().unwrap(), [0, 100, 0, 100]);
    assert_eq!(told.forgotten(), [SERIAL]);
}

/// Polls it until it has gone as far as it can.
async fn until_pending<T>(future: &mut std::pin::Pin<Box<impl Future<Output = T>>>) {
    for _ in 0..10 {
        let waits = std::future::poll_fn(|context| {
            std::task::Poll::Ready(future.as_mut().poll(context).is_pending())
        });
        assert!(waits.await, "it hangs");
        tokio::task::yield_now().await;
    }
}

/// Panics once more when what it panicked with is dropped.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        std::panic::resume_unwind(Box::new("once more"));
    }
}

/// It closed its own queue for good: nothing came after it, not even the account.
#[tokio::test]
async fn a_policy_that_panics_whatever_with_fails_and_the_next_call_is_made() {
    let (shared, registry) = shared();
    let calls = Arc::<AtomicUsize>::default();
    let panics = {
        let calls = Arc::clone(&calls);
        move |_: &interlock_policy_api::Window<'_>| {
            calls.fetch_add(1, Ordering::SeqCst);
            std::panic::resume_unwind(Box::new(Bomb))
        }
    };
    let watch = Watch { guarding: Guarding::Observe(EVERY), ..Watch::default() };
    let observer = Fake { watch, window: Some(Box::new(panics.clone())), ..Fake::named("o") };
    let gate = Watch { guarding: Guarding::Gate(EVERY), ..Watch::default() };
    let gate = Fake { slow: true, watch: gate, window: Some(Box::new(panics)), ..Fake::named("g") };
    let told = [Arc::clone(&observer.told), Arc::clone(&gate.told)];
    let open = OnFailure { stream_guard: Some(FailureAction::Open), ..OnFailure::default() };
    let entries = [gate, observer].map(|fake| ChainEntry::new(Arc::new(fake), open));
    let chain = chain_of(entries.into(), &shared);
    let session = admit(chain, SERIAL).await.expect("nobody objects").session;
    let mut stream_filters = session.stream_filters().expect("they read");
    for generated_tokens in 1..=3 {
        let usage = Usage { generated_tokens, ..Usage::default() };
        let passed = stream_filters.push("a ", usage, Instant::now()).await;
        assert_eq!((passed.text.as_str(), passed.end), ("a ", None));
    }
    session.settle(&summary(Outcome::Completed(Finish::Stop)));
    assert_eq!(shared.drain(Duration::from_secs(60)), 0);
    assert_eq!(calls.load(Ordering::SeqCst), 6);
    for (told, name) in told.iter().zip(["o", "g"]) {
        assert_eq!(told.closings(), ["completed"]);
        assert_eq!(told.forgotten(), [SERIAL]);
        let trap = format!(
            r#"interlock_policy_failures_total{{kind="trap",phase="stream_guard",policy="{name}"}}"#
        );
        assert_eq!(value(&registry, &trap), 3);
    }
}
