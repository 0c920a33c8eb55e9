//! Policies that hear of a request while it runs, and what they may do about it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use interlock_policy_api::{
    Admission, Code, Event, EventSet, PlanProposal, Reaction, Reason, Watch,
};
use interlock_request::{
    CancelCause, Deadline, Deadlines, DisconnectAction, DrainLimits, Finish, Outcome,
};
use interlock_sim::SimSettings;

use crate::rig::{Latch, Rig, Script, Setup, within};

const STREAM: &str = r#"{"model":"sim","prompt":"hello","max_tokens":40,"stream":true}"#;

const ALL: EventSet = EventSet {
    queued: true,
    dispatched: true,
    first_token: true,
    stalled: true,
    timed_out: true,
    disconnected: true,
    preempted: true,
};

/// What was heard, in order.
#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Vec<Event>>>);

impl Heard {
    fn all(&self) -> Vec<Event> {
        self.0.lock().expect("no panic").clone()
    }

    async fn until(&self, wanted: impl Fn(&Event) -> bool) {
        within(async {
            while !self.all().iter().any(&wanted) {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}

/// Watches everything, writes it down, and reacts like this.
fn watcher(
    proposal: PlanProposal,
    stalled_after: Option<Duration>,
    react: impl Fn(Event) -> Reaction + Send + Sync + 'static,
) -> (Setup, Heard) {
    let heard = Heard::default();
    let heard_in = heard.clone();
    let event = move |event| {
        heard_in.0.lock().expect("no panic").push(event);
        react(event)
    };
    let watch = Watch { events: ALL, stalled_after, ..Watch::default() };
    let admit = move |_: &interlock_policy_api::Facts| Admission {
        proposal,
        watch: Some(watch),
        ..Admission::default()
    };
    let script =
        Script { admit: Some(Box::new(admit)), event: Some(Box::new(event)), ..Script::default() };
    (Setup { gated: true, ..Setup::scripted(script) }, heard)
}

fn keep(_: Event) -> Reaction {
    Reaction::Keep
}

fn reason(code: &str) -> Reason {
    Reason { code: code.into(), detail: None }
}

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn drain() -> DrainLimits {
    DrainLimits { time_max: Duration::from_secs(20), tokens_max: 1000 }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_goes_well_is_queued_dispatched_and_has_a_first_token() {
    let (setup, heard) = watcher(PlanProposal::default(), None, keep);
    let rig = Rig::with(setup).await;
    rig.gate.open();
    assert_eq!(rig.post("/v1/completions", STREAM).await.status, 200);
    assert_eq!(heard.all(), [Event::Queued(0), Event::Dispatched, Event::FirstToken]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_is_a_stall_once_and_a_policy_may_end_it_there() {
    let stalls = |event| match event {
        Event::Stalled(_) => Reaction::Cancel(reason("too_slow")),
        _ => Reaction::Keep,
    };
    let (setup, heard) = watcher(PlanProposal::default(), Some(ms(20)), stalls);
    let mut rig = Rig::with(setup).await;
    let mut stream = rig.begin("/v1/completions", "slow", STREAM).await;
    rig.gate.let_through(2);
    stream.until("data: ").await;
    let rest = stream.rest().await;
    assert!(rest.contains("too_slow") && rest.contains("[DONE]"), "{rest}");
    assert_eq!(heard.all().last(), Some(&Event::Stalled(ms(20))));
    rig.gate.open();
    let (_, account) = rig.ended().await;
    assert_eq!(account.outcome, Outcome::Cancelled(CancelCause::Policy));
    let line = r#"cancellations_total{cause="policy",stage="decoding"}"#;
    rig.metric_is(line, 1.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_that_a_policy_puts_off_does_not_end_the_request() {
    let deadlines = |total| Deadlines { total: Some(total), ..Deadlines::default() };
    let proposal = PlanProposal { deadlines: deadlines(ms(50)), ..PlanProposal::default() };
    let longer =
        PlanProposal { deadlines: deadlines(Duration::from_secs(600)), ..PlanProposal::default() };
    let put_off = move |event| match event {
        Event::TimedOut(Deadline::Total) => Reaction::Amend(longer, Code::default()),
        _ => Reaction::Keep,
    };
    let (setup, heard) = watcher(proposal, None, put_off);
    let mut rig = Rig::with(setup).await;
    let mut stream = rig.begin("/v1/completions", "long", STREAM).await;
    rig.gate.let_through(2);
    heard.until(|event| matches!(event, Event::TimedOut(Deadline::Total))).await;
    rig.gate.open();
    assert!(stream.rest().await.contains("[DONE]"));
    assert_eq!(rig.ended().await.1.outcome, Outcome::Completed(Finish::Length));

    let (setup, _) = watcher(proposal, None, keep);
    let mut rig = Rig::with(setup).await;
    let mut stream = rig.begin("/v1/completions", "long", STREAM).await;
    let rest = stream.rest().await;
    assert!(rest.contains("deadline_total"), "{rest}");
    rig.gate.open();
    let outcome = rig.ended().await.1.outcome;
    assert_eq!(outcome, Outcome::Cancelled(CancelCause::Deadline(Deadline::Total)));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_to_do_about_a_client_that_left_may_be_decided_when_it_leaves() {
    let leaves = |event| match event {
        Event::Disconnected => {
            Reaction::Disconnect(DisconnectAction::Drain(drain()), Code::default())
        }
        _ => Reaction::Keep,
    };
    let (setup, heard) = watcher(PlanProposal::default(), None, leaves);
    let mut rig = Rig::with(setup).await;
    let connection = rig.begin("/v1/completions", "leaver", STREAM).await;
    rig.gate.wait_begun(1);
    drop(connection);
    heard.until(|event| *event == Event::Disconnected).await;
    rig.gate.open();
    assert_eq!(rig.ended().await.1.outcome, Outcome::Completed(Finish::Length));
    let kept = rig.get("/v1/requests/leaver").await;
    assert_eq!(kept.code(), "request_not_found", "a drained answer is dropped");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_gives_way_is_told_of_and_goes_on() {
    // Room for one long request, and a second that is more urgent.
    let model = SimSettings {
        stop: 0,
        cache: 64,
        page: 16.try_into().expect("16"),
        ..SimSettings::default()
    };
    let heard = Heard::default();
    let heard_in = heard.clone();
    let admit = |facts: &interlock_policy_api::Facts| {
        let urgent = facts.request_id.as_str() == "urgent";
        let priority = if urgent {
            interlock_request::Priority::Critical
        } else {
            interlock_request::Priority::Batch
        };
        Admission {
            proposal: PlanProposal { priority: Some(priority), ..PlanProposal::default() },
            watch: Some(Watch {
                events: EventSet { preempted: true, ..EventSet::default() },
                ..Watch::default()
            }),
            ..Admission::default()
        }
    };
    let event = move |event| {
        heard_in.0.lock().expect("no panic").push(event);
        Reaction::Keep
    };
    let script =
        Script { admit: Some(Box::new(admit)), event: Some(Box::new(event)), ..Script::default() };
    let rig = Rig::with(Setup { model, gated: true, ..Setup::scripted(script) }).await;
    let mut patient = rig.begin("/v1/completions", "patient", STREAM).await;
    rig.gate.let_through(1);
    patient.until("data: ").await;
    let long = format!(r#"{{"model":"sim","prompt":"{}","max_tokens":5}}"#, "x".repeat(40));
    let mut urgent = rig.begin("/v1/completions", "urgent", &long).await;
    rig.metric_is("requests_waiting", 1.0).await;
    rig.gate.open();
    assert_eq!(urgent.answer().await.status, 200);
    assert!(patient.rest().await.contains("[DONE]"));
    assert_eq!(heard.all(), [Event::Preempted(1)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_wants_the_answer_kept_again_does_not_lose_it() {
    let detach = |seconds| {
        let time_max = Duration::from_secs(seconds);
        Reaction::Disconnect(
            DisconnectAction::Detach(DrainLimits { time_max, ..drain() }),
            Code::default(),
        )
    };
    let reacts = move |event| match event {
        Event::Disconnected => detach(20),
        Event::Stalled(_) => detach(19),
        _ => Reaction::Keep,
    };
    let (setup, heard) = watcher(PlanProposal::default(), Some(ms(20)), reacts);
    let mut rig = Rig::with(setup).await;
    let mut connection = rig.begin("/v1/completions", "leaver", STREAM).await;
    rig.gate.let_through(2);
    connection.until("data: ").await;
    drop(connection);
    heard.until(|event| *event == Event::Disconnected).await;
    // A pause of its own, so that it changes its mind after the client has left.
    rig.gate.let_through(2);
    let stalls = || heard.all().iter().rev().position(|event| *event == Event::Disconnected);
    within(async {
        while stalls() == Some(0) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    rig.gate.open();
    assert_eq!(rig.ended().await.1.outcome, Outcome::Completed(Finish::Length));
    let kept = within(async {
        loop {
            let kept = rig.get("/v1/requests/leaver").await.json();
            if kept["status"] != "running" {
                return kept;
            }
        }
    })
    .await;
    assert_eq!(kept["status"], "completed", "{kept}");
}

#[tokio::test(flavor = "multi_thread")]
async fn how_far_it_goes_on_counts_from_when_the_client_left_however_often_it_is_said() {
    let react_to_stalls = Arc::new(AtomicBool::new(false));
    let armed = Arc::clone(&react_to_stalls);
    let within_tokens = |tokens_max| {
        Reaction::Disconnect(
            DisconnectAction::Drain(DrainLimits { tokens_max, ..drain() }),
            Code::default(),
        )
    };
    let reacts = move |event| match event {
        Event::Disconnected => within_tokens(1000),
        Event::Stalled(_) if armed.load(Ordering::SeqCst) => within_tokens(12),
        _ => Reaction::Keep,
    };
    let (setup, heard) = watcher(PlanProposal::default(), Some(ms(20)), reacts);
    // Slow enough for the driver to end it before the answer is whole.
    let model = SimSettings { decode: ms(10), ..setup.model.clone() };
    let mut rig = Rig::with(Setup { model, ..setup }).await;
    let body = STREAM.replace("40", "20");
    let connection = rig.begin("/v1/completions", "leaver", &body).await;
    rig.gate.wait_begun(1);
    drop(connection);
    heard.until(|event| *event == Event::Disconnected).await;
    react_to_stalls.store(true, Ordering::SeqCst);
    rig.gate.let_through(10);
    rig.gate.wait_ended(10);
    let before = heard.all().len();
    within(async {
        while heard.all().len() == before {
            tokio::task::yield_now().await;
        }
    })
    .await;
    rig.gate.open();
    // Ten and twelve would be more than the whole answer.
    let outcome = rig.ended().await.1.outcome;
    assert_eq!(outcome, Outcome::Cancelled(CancelCause::Disconnect));
}

/// A policy that hears that a request waits, and thinks about it until the test lets it go on.
fn thinker(proposal: PlanProposal) -> (Setup, Heard, Latch) {
    let latch = Latch::default();
    let waits = latch.clone();
    let thinks = move |event| {
        if let Event::Queued(_) = event {
            waits.wait();
        }
        Reaction::Keep
    };
    let (mut setup, heard) = watcher(proposal, None, thinks);
    setup.script.slow = true;
    let watch =
        Watch { events: EventSet { queued: true, ..EventSet::default() }, ..Watch::default() };
    let admit = move |_: &interlock_policy_api::Facts| Admission {
        proposal,
        watch: Some(watch),
        ..Admission::default()
    };
    setup.script.admit = Some(Box::new(admit));
    (setup, heard, latch)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_that_is_up_does_not_wait_for_a_policy() {
    let deadlines = Deadlines { total: Some(ms(50)), ..Deadlines::default() };
    let (setup, _, latch) = thinker(PlanProposal { deadlines, ..PlanProposal::default() });
    let mut rig = Rig::with(setup).await;
    let rest = rig.begin("/v1/completions", "late", STREAM).await.rest().await;
    assert!(rest.contains("deadline_total"), "{rest}");
    rig.gate.open();
    let outcome = rig.ended().await.1.outcome;
    assert_eq!(outcome, Outcome::Cancelled(CancelCause::Deadline(Deadline::Total)));
    latch.open();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_does_not_wait_for_a_policy() {
    let (setup, heard, latch) = thinker(PlanProposal::default());
    let mut rig = Rig::with(setup).await;
    let connection = rig.begin("/v1/completions", "leaver", &STREAM.replace("40", "4000")).await;
    heard.until(|event| *event == Event::Queued(0)).await;
    rig.gate.wait_begun(1);
    drop(connection);
    rig.metric_is("http_connections", 0.0).await;
    rig.gate.open();
    let outcome = rig.ended().await.1.outcome;
    assert_eq!(outcome, Outcome::Cancelled(CancelCause::Disconnect));
    latch.open();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_while_a_policy_is_asked_is_drained_from_then_on() {
    let on_disconnect = Some(DisconnectAction::Drain(drain()));
    let (setup, heard, latch) = thinker(PlanProposal { on_disconnect, ..PlanProposal::default() });
    let mut rig = Rig::with(setup).await;
    let connection = rig.begin("/v1/completions", "leaver", STREAM).await;
    heard.until(|event| *event == Event::Queued(0)).await;
    drop(connection);
    rig.metric_is("http_connections", 0.0).await;
    rig.gate.open();
    latch.open();
    assert_eq!(rig.ended().await.1.outcome, Outcome::Completed(Finish::Length));
}
