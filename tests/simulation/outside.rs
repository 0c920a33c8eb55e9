//! Everything outside the engine: clients, operators, the policy, and the enforcement of its deadlines.

use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use interlock_engine::{
    Clock, Control, Ended, EngineExit, EngineHandle, Event, InboxGuard, NotStarted, RequestHandle,
};
use interlock_policy_api::{
    Admission, Admitted, Answer, Body, Ceilings, Decision, Facts, FailureKind, Load, Phase,
    PlanProposal, Policy, PolicyFailure, Reason, Rejection, RequestContext, Summary,
};
use interlock_policy_chain::{
    ChainEntry, ChainShared, FailureAction, LimitsConfig, OnFailure, PolicyChain, PolicyMetrics,
    PolicySession,
};
use interlock_request::{
    CancelCause, Deadline, Deadlines, Drawn, Finish, Outcome, Priority, RequestId, Usage,
};

use crate::device::VirtualClock;
use crate::scenario::{PolicyVerdict, SimRequest, StopAttempt, StopTime, StopWay};

/// The outside of the engine.
pub(crate) struct Outside {
    handle: EngineHandle,
    inbox: Option<InboxGuard>,
    pub closes_at: Option<Duration>,
    clock: VirtualClock,
    requests: Rc<[SimRequest]>,
    chain: Arc<PolicyChain>,
    policy: Arc<Seeded>,
    /// The next to arrive.
    next: usize,
    pub clients: Vec<ClientRecord>,
    live: Vec<usize>,
    /// What clients have heard since the last look.
    pub heard: Vec<(usize, Event)>,
}

/// What became of a request, as its client sees it.
#[derive(Debug, Default)]
pub(crate) struct ClientRecord {
    pub fate: ClientFate,
    running: Option<RequestHandle>,
    account: Option<PolicySession>,
    stops: Vec<StopAttempt>,
    deadlines: Deadlines,
    pub priority: Option<Priority>,
    submitted_at: Duration,
    /// When the last token came.
    last_at: Duration,
    /// The outcome that the first stop decided.
    pub asked: Option<Outcome>,
    pub started: bool,
    pub tokens: Vec<Drawn>,
    pub ended: Option<Ended>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClientFate {
    /// It has not arrived.
    #[default]
    ToCome,
    /// The queue was full.
    Full,
    /// The policy said no.
    Rejected,
    /// The device had failed.
    Refused,
    /// The engine had stopped.
    TooLate,
    /// The engine has it, or had.
    Submitted,
    /// Its client left before the end.
    Left,
}

/// The policy: each request has its verdict.
struct Seeded {
    requests: Vec<PolicyVerdict>,
    accounted: Vec<AtomicU32>,
}

impl Policy for Seeded {
    fn name(&self) -> &'static str {
        "seeded"
    }

    fn version(&self) -> &'static str {
        "1"
    }

    fn takes(&self, phase: Phase) -> bool {
        matches!(phase, Phase::Admit | Phase::Account)
    }

    fn admit(&self, facts: &Facts, _: &Load, _: u32, _: &Body) -> Answer<Decision> {
        match self.requests[number(&facts.request_id)] {
            PolicyVerdict::Admit(priority, deadlines) => {
                let priority = Some(priority);
                let proposal = PlanProposal { priority, deadlines, ..PlanProposal::default() };
                Ok(Decision::Admit(Admission { proposal, ..Admission::default() }))
            }
            PolicyVerdict::Reject => Ok(Decision::Reject(Rejection {
                status: 429,
                reason: Reason { code: "seeded".into(), detail: None },
                retry_after: None,
                headers: vec![],
            })),
            PolicyVerdict::Trap => {
                Err(PolicyFailure { kind: FailureKind::Trap, message: "seeded".into() })
            }
        }
    }

    fn account(&self, told: RequestContext<'_>, _: &Summary) -> Answer<()> {
        self.accounted[number(&told.facts.request_id)].fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// Which request this is the id of.
fn number(id: &RequestId) -> usize {
    id.as_str().parse().expect("a number")
}

/// What the chain makes of a request.
pub(crate) fn admit(
    chain: &Arc<PolicyChain>,
    who: usize,
    request: &SimRequest,
) -> Option<(Admitted, PolicySession)> {
    let (prompt, generation) = (request.prompt.clone(), request.generation.clone());
    let (id, tenant) = (who.to_string(), request.tenant);
    let outcome =
        interlock_tests::admit_of(tenant, chain, who as u64, &id, prompt, generation).ok()?;
    Some((outcome.admitted, outcome.session))
}

/// Nothing is forbidden, and every deadline far beyond a world's end.
pub(crate) fn ceilings() -> Ceilings {
    let limits = LimitsConfig {
        queue_max: NEVER,
        first_token_max: NEVER,
        inter_token_max: NEVER,
        total_max: NEVER,
        ..LimitsConfig::default()
    };
    limits.ceilings()
}

/// A deadline that is far beyond every world's end.
const NEVER: Duration = Duration::from_secs(1 << 30);

impl Outside {
    pub(crate) fn new(
        handle: EngineHandle,
        inbox: InboxGuard,
        closes_at: Option<Duration>,
        clock: VirtualClock,
        requests: Rc<[SimRequest]>,
        metrics: PolicyMetrics,
    ) -> Self {
        let policy = Arc::new(Seeded {
            requests: requests.iter().map(|request| request.verdict).collect(),
            accounted: requests.iter().map(|_| AtomicU32::new(0)).collect(),
        });
        let open = OnFailure { admit: FailureAction::Open, ..OnFailure::default() };
        let entry = ChainEntry::new(Arc::clone(&policy) as Arc<dyn Policy>, open);
        let shared = ChainShared::in_line(metrics);
        Self {
            handle,
            inbox: Some(inbox),
            closes_at,
            clock,
            chain: Arc::new(PolicyChain::new(vec![entry], ceilings(), shared)),
            policy,
            next: 0,
            clients: requests.iter().map(|_| ClientRecord::default()).collect(),
            live: vec![],
            heard: vec![],
            requests,
        }
    }

    /// All that is due by now happens.
    pub(crate) fn deliver(&mut self) {
        let now = self.clock.now();
        if self.closes_at.is_some_and(|at| at <= now) {
            self.inbox = None;
        }
        while self.requests.get(self.next).is_some_and(|request| request.at <= now) {
            self.arrive(self.next, now);
            self.next += 1;
        }
        for who in self.live.clone() {
            self.clients[who].stop_what_is_due(now);
        }
        self.live.retain(|&who| self.clients[who].running.is_some());
    }

    /// When something will be due next.
    pub(crate) fn next_due(&self) -> Option<Duration> {
        let arrival = self.requests.get(self.next).map(|request| request.at);
        let closing = self.inbox.as_ref().and(self.closes_at);
        let others = self.live.iter().filter_map(|&who| self.clients[who].next_due());
        arrival.into_iter().chain(closing).chain(others).min()
    }

    pub(crate) fn is_open(&self) -> bool {
        self.inbox.is_some()
    }

    /// Nobody is left who could want something of the engine, or comes.
    pub(crate) fn is_quiet(&self) -> bool {
        self.live.is_empty() && self.next == self.requests.len()
    }

    pub(crate) fn close(&mut self) {
        self.inbox = None;
    }

    fn arrive(&mut self, who: usize, now: Duration) {
        let client = &mut self.clients[who];
        let request = &self.requests[who];
        let permit = match self.handle.queue_permit() {
            Ok(permit) => permit,
            Err(NotStarted::Full { waiting, limit }) => {
                assert_eq!(waiting, limit, "the queue was not full");
                client.fate = ClientFate::Full;
                return;
            }
            Err(NotStarted::Stopped(EngineExit::DeviceFailed(_))) => {
                client.fate = ClientFate::Refused;
                return;
            }
            Err(other) => panic!("{other}"),
        };
        let Some((admitted, account)) = admit(&self.chain, who, request) else {
            assert_eq!(request.verdict, PolicyVerdict::Reject);
            client.fate = ClientFate::Rejected;
            return;
        };
        client.deadlines = admitted.plan().deadlines;
        client.priority = Some(admitted.plan().priority);
        client.submitted_at = now;
        client.last_at = now;
        client.account = Some(account);
        client.stops.clone_from(&request.stops);
        client.running = Some(permit.submit(admitted));
        client.fate =
            if self.inbox.is_some() { ClientFate::Submitted } else { ClientFate::TooLate };
        self.live.push(who);
    }

    /// Clients listen to what the engine has told them.
    pub(crate) fn listen(&mut self) {
        let now = self.clock.now();
        for &who in &self.live {
            let client = &mut self.clients[who];
            while let Some(event) = client.hear(now) {
                self.heard.push((who, event));
            }
        }
        self.live.retain(|&who| self.clients[who].running.is_some());
    }

    /// Everyone that was admitted was accounted for, once.
    pub(crate) fn accounts_are_settled(&self) {
        for (who, client) in self.clients.iter().enumerate() {
            let admitted = matches!(
                client.fate,
                ClientFate::Submitted | ClientFate::Left | ClientFate::TooLate
            );
            let times = self.policy.accounted[who].load(Ordering::Relaxed);
            assert_eq!(times, u32::from(admitted), "accounts of {who}, {:?}", client.fate);
        }
    }
}

impl ClientRecord {
    /// The next event, if there is one. All the rules of what may follow what are here.
    fn hear(&mut self, now: Duration) -> Option<Event> {
        let running = self.running.as_mut()?;
        let mut context = Context::from_waker(Waker::noop());
        let polled = pin!(running.events.next()).poll(&mut context);
        let event = match polled {
            Poll::Pending => return None,
            Poll::Ready(None) => {
                let told = self.ended.is_some() || self.fate == ClientFate::TooLate;
                assert!(told, "the events ended without an end");
                self.running = None;
                self.settle(Outcome::Cancelled(CancelCause::Shutdown));
                return None;
            }
            Poll::Ready(Some(event)) => event,
        };
        assert_eq!(self.ended, None, "something came after the end: {event:?}");
        match &event {
            Event::Started => {
                assert!(!self.started && self.tokens.is_empty(), "it started twice, or late");
                self.started = true;
            }
            Event::Token(drawn) => {
                assert!(self.started, "a token before the start");
                self.tokens.push(drawn.clone());
                self.last_at = now;
            }
            Event::Preempted => assert!(self.started, "preempted before the start"),
            Event::Ended(ended) => {
                self.ended = Some(ended.clone());
                self.settle(ended.outcome.clone());
            }
        }
        Some(event)
    }

    fn settle(&mut self, outcome: Outcome) {
        let Some(account) = self.account.take() else { return };
        account.settle(&Summary {
            closing: outcome.into(),
            usage: Usage::default(),
            queue_time: None,
            time_to_first_token: None,
            total: Duration::ZERO,
        });
    }

    fn due_deadlines(&self) -> [(Option<Duration>, Deadline); 4] {
        let Deadlines { queue, first_token, inter_token, total } = self.deadlines;
        let first = self.tokens.is_empty();
        let since = |from: Duration, limit: Option<Duration>| Some(from + limit?);
        [
            (since(self.submitted_at, queue.filter(|_| !self.started)), Deadline::Queue),
            (since(self.submitted_at, first_token.filter(|_| first)), Deadline::FirstToken),
            (since(self.last_at, inter_token.filter(|_| !first)), Deadline::InterToken),
            (since(self.submitted_at, total), Deadline::Total),
        ]
    }

    fn next_due(&self) -> Option<Duration> {
        let stops = self.stops.iter().filter_map(|attempt| match attempt.when {
            StopTime::After(time) => Some(self.submitted_at + time),
            StopTime::Tokens(_) => None,
        });
        self.due_deadlines().into_iter().filter_map(|(at, _)| at).chain(stops).min()
    }

    fn stop_what_is_due(&mut self, now: Duration) {
        for (at, deadline) in self.due_deadlines() {
            if at.is_some_and(|at| at <= now) {
                self.cancel(CancelCause::Deadline(deadline));
            }
        }
        let is_due = |attempt: &StopAttempt| match attempt.when {
            StopTime::After(time) => self.submitted_at + time <= now,
            StopTime::Tokens(count) => self.tokens.len() >= count,
        };
        let (due, later): (Vec<_>, _) = self.stops.iter().copied().partition(is_due);
        self.stops = later;
        for attempt in due {
            match attempt.how {
                StopWay::Leave => self.leave(),
                StopWay::Operator => self.cancel(CancelCause::Operator),
                StopWay::Finish => {
                    let counts = self.control().is_some_and(|control| control.finish());
                    self.asked_if(counts, Outcome::Completed(Finish::Stop));
                }
            }
        }
    }

    fn control(&self) -> Option<&Control> {
        self.running.as_ref().map(|running| &running.control)
    }

    fn cancel(&mut self, cause: CancelCause) {
        let counts = self.control().is_some_and(|control| control.cancel(cause));
        self.asked_if(counts, Outcome::Cancelled(cause));
    }

    fn asked_if(&mut self, counts: bool, outcome: Outcome) {
        if counts {
            assert_eq!(self.asked, None, "two were told that they were the first to ask");
            self.asked = Some(outcome);
        }
    }

    fn leave(&mut self) {
        if self.running.take().is_none() || self.ended.is_some() {
            return;
        }
        if self.fate == ClientFate::Submitted {
            self.fate = ClientFate::Left;
        }
        let left = Outcome::Cancelled(CancelCause::Disconnect);
        self.asked.get_or_insert(left.clone());
        self.settle(left);
    }
}
