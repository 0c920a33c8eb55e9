//! The driver: one task per admitted request, from its submission to its settlement.
//!
//! It waits for four things: someone who wants the request stopped, the engine, the client's
//! connection and the request's timers. It turns tokens into text for the client and, when the
//! request has to stop early, tells the client at once and the engine before its next pass. It then
//! still waits for the engine's end of the request, so that what is counted is what was computed.
//!
//! It is also where policies hear of a request after its admission: of the events that they watch,
//! which may change its plan or end it, and of its text.
//!
//! # Invariants
//!
//! - Whoever wins [`Control::cancel`] decides what the client is told; the others change nothing.
//! - No client, however slow, delays the driver (see `chunks`). A policy may, for as long as its
//!   call may last; who asks for a stop does not wait for it, nor does a client that leaves or a
//!   time that is up, unless it is a policy that decides what follows (see `policy_wait`).
//! - A request that had to stop while a policy was asked has no answer, also when the engine had
//!   come to its end: not all of the text was let pass.
//! - The request is accounted for once, by [`RequestDriver::run`] or, if that panics, when
//!   [`RequestAccounting`] is dropped.
//!
//! # Not here
//!
//! No HTTP and no JSON: an end is a [`Done`] or a [`Failure`], and an endpoint's writer renders it.

mod output;
mod policy_wait;
mod text;
mod timers;

use std::sync::Arc;

use interlock_engine::{Control, Ended, Event, Events, RequestHandle};
use interlock_policy_api::{Event as Happened, EventSet, Progress, Reason};
use interlock_policy_chain::{CancelledByPolicy, EventOutcome, GuardEnd};
use interlock_request::{
    CancelCause, Deadline, DisconnectAction, DrainLimits, Drawn, Finish, Outcome, Usage,
};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use crate::accounting::RequestAccounting;
use crate::answer_state::AnswerState;
use crate::chunks::{ChunkSender, Done, EndKind};
use crate::failure::{Failure, Intervention};
use crate::in_flight::Registration;
use crate::result_store::{PendingResult, ResultStore, StoredRequest};
use crate::wall_clock::{WallClock, micros};
use output::OutputPipeline;
use policy_wait::PolicyWait;
pub(crate) use text::AnswerDecoder;
use timers::{RequestTimers, TimerEvent};

/// One admitted request and all that its driver needs.
pub(crate) struct RequestDriver {
    events: Events,
    control: Control,
    accounting: RequestAccounting,
    timers: RequestTimers,
    text: AnswerDecoder,
    out: OutputPipeline,
    wall: WallClock,
    watched: EventSet,
    followup: Followup,
    /// How often the request gave its pages to others, as far as the engine has said.
    preempted: u32,
    /// Number of tokens at which a policy ended the text.
    filtered_after: Option<u32>,
    /// Why the request was stopped, once its client and whoever asked have been told so. What the
    /// engine says after that does not change it.
    stopped_by: Option<CancelCause>,
    /// Dropped last: from then on there is nothing to cancel.
    registration: Registration,
}

/// For whom an answer is made.
pub(crate) enum Recipient {
    /// A client waits for it.
    Client(ChunkSender),
    /// Nobody waits: the answer is stored.
    Background(PendingResult, OwnedSemaphorePermit),
}

/// How a request goes on once its client has left.
struct Followup {
    results: Arc<ResultStore>,
    stored: Arc<StoredRequest>,
    /// When the client left, and how it goes on.
    left: Option<ClientDeparture>,
    /// A permit of those that `detached.requests_max` counts.
    place: Option<OwnedSemaphorePermit>,
}

/// What is known of a client that has left.
#[derive(Clone, Copy)]
struct ClientDeparture {
    at: Instant,
    /// How many tokens had been generated.
    tokens: u32,
    /// What the plan said of it.
    action: DisconnectAction,
    /// The number of tokens at which the request ends.
    tokens_end: u32,
}

/// What a driver waits for.
enum DriverEvent {
    CancelRequested(CancelCause),
    Engine(Option<Event>),
    ClientLeft,
    Timer(TimerEvent),
}

impl RequestDriver {
    pub(crate) fn new(
        running: RequestHandle,
        registration: Registration,
        accounting: RequestAccounting,
        text: AnswerDecoder,
        recipient: Recipient,
        (results, stored): (Arc<ResultStore>, Arc<StoredRequest>),
        wall: WallClock,
    ) -> Self {
        let RequestHandle { events, control } = running;
        let session = accounting.session();
        let (plan, watch) = (*session.plan(), session.watch());
        let (client, pending, place) = match recipient {
            Recipient::Client(client) => (Some(client), None, None),
            Recipient::Background(pending, place) => (None, Some(pending), Some(place)),
        };
        let activity = registration.activity();
        activity.admitted(accounting.admitted_at(), &accounting.info.model, plan.priority);
        if client.is_none() {
            activity.detached();
        }
        // Only who may detach has to keep what was said so far: by its plan, or when a policy hears
        // of something and decides so.
        let keeps = matches!(plan.on_disconnect, DisconnectAction::Detach(_))
            || watch.events != EventSet::default();
        Self {
            events,
            control,
            timers: RequestTimers::new(plan.deadlines, accounting.info.arrived_at),
            out: OutputPipeline::new(session.stream_filters(), client, pending, keeps),
            accounting,
            text,
            wall,
            watched: watch.events,
            followup: Followup { results, stored, left: None, place },
            preempted: 0,
            filtered_after: None,
            stopped_by: None,
            registration,
        }
    }

    /// Drives the request to its end. `before` requests wait before it.
    pub(crate) async fn run(mut self, before: u32) {
        if self.watched.queued {
            self.notify_policies(Happened::Queued(before)).await;
        }
        let ended = loop {
            let due_at = self.out.due_at();
            let stalled_after = self.accounting.stalled_after();
            let driver_event = tokio::select! {
                // What has happened goes before what is only due: a request whose last token
                // has come is not timed out. And a client that left goes before the tokens that
                // nobody will read, however many are here already.
                biased;
                cause = self.registration.cancel_requested() => DriverEvent::CancelRequested(cause),
                () = self.out.client.left() => DriverEvent::ClientLeft,
                event = self.events.next() => DriverEvent::Engine(event),
                due = self.timers.next_event(due_at, stalled_after) => DriverEvent::Timer(due),
            };
            match driver_event {
                DriverEvent::CancelRequested(cause) => self.cancel(cause),
                DriverEvent::Engine(Some(Event::Started)) => self.started().await,
                DriverEvent::Engine(Some(Event::Token(drawn))) => self.token(drawn).await,
                DriverEvent::Engine(Some(Event::Preempted)) => self.preempted().await,
                DriverEvent::Engine(Some(Event::Ended(ended))) => break Some(ended),
                DriverEvent::Engine(None) => break None,
                DriverEvent::ClientLeft => self.client_left().await,
                DriverEvent::Timer(TimerEvent::Deadline(deadline)) => {
                    self.timed_out(deadline).await;
                }
                DriverEvent::Timer(TimerEvent::DrainOver) => self.cancel(CancelCause::Disconnect),
                DriverEvent::Timer(TimerEvent::Stalled(time)) => {
                    self.notify_policies(Happened::Stalled(time)).await;
                }
                DriverEvent::Timer(TimerEvent::WindowDue) => {
                    let usage = self.accounting.usage_seen();
                    let (mut policy_wait, out, _) = self.policy_wait();
                    let end = out.due(usage, &mut policy_wait).await;
                    self.guarded(end);
                }
            }
        };
        self.end(ended).await;
    }

    async fn started(&mut self) {
        self.accounting.started();
        self.registration.activity().started();
        self.timers.started();
        self.out.started();
        if self.watched.dispatched {
            self.notify_policies(Happened::Dispatched).await;
        }
    }

    async fn preempted(&mut self) {
        self.preempted += 1;
        self.registration.activity().preempted();
        tracing::debug!(request = %self.accounting.info.id, times = self.preempted, "preempted");
        if self.watched.preempted {
            self.notify_policies(Happened::Preempted(self.preempted)).await;
        }
    }

    async fn token(&mut self, drawn: Drawn) {
        let now = Instant::now();
        let first = self.accounting.token(now);
        self.registration.activity().token();
        self.timers.token(now);
        if first && self.watched.first_token {
            self.notify_policies(Happened::FirstToken).await;
        }
        if self.text.stopped_after().is_none() && self.filtered_after.is_none() {
            let chunk = self.text.push(drawn);
            let usage = self.accounting.usage_seen();
            let (mut policy_wait, out, _) = self.policy_wait();
            let end = out.push(chunk, usage, &mut policy_wait).await;
            self.guarded(end);
            if self.text.stopped_after().is_some() {
                self.control.finish();
            }
        }
        let generated = self.accounting.usage_seen().generated_tokens;
        if self.followup.left.is_some_and(|left| generated >= left.tokens_end) {
            self.cancel(CancelCause::Disconnect);
        }
    }

    /// What may end the wait for a policy, and beside it what the wait needs to borrow.
    fn policy_wait(&mut self) -> (PolicyWait<'_>, &mut OutputPipeline, &mut RequestAccounting) {
        let Self { registration, timers, events, out, accounting, watched, .. } = self;
        let on_disconnect = accounting.session().plan().on_disconnect;
        (
            PolicyWait { registration, timers, events, watched: *watched, on_disconnect },
            out,
            accounting,
        )
    }

    /// Asks the policies that watch for this event, and does what they answer.
    async fn notify_policies(&mut self, event: Happened) {
        let progress = self.progress();
        let (mut policy_wait, out, accounting) = self.policy_wait();
        let asked = accounting.session_mut().event(event, progress);
        let EventOutcome { plan_changed, cancel, .. } =
            match policy_wait.wait(&mut out.client, asked).await {
                Ok(reacted) => reacted,
                Err(cause) => return self.fail(cause, Failure::Cancelled(cause)),
            };
        if let Some(CancelledByPolicy { policy, reason, failed }) = cancel {
            return self.intervene(Intervention { policy, reason, failed });
        }
        if plan_changed {
            let plan = *self.accounting.session().plan();
            self.timers.limit(plan.deadlines);
            if let Some(left) = self.followup.left.filter(|left| left.action != plan.on_disconnect)
            {
                self.goes_on(left.at, left.tokens, plan.on_disconnect);
            }
        }
    }

    fn progress(&self) -> Progress {
        Progress {
            at_micros: micros((self.wall)()),
            elapsed: self.accounting.admitted_at().elapsed(),
            since_token: self.timers.since_token(),
            usage: self.accounting.usage_seen(),
        }
    }

    /// A deadline has passed. A policy that watches for it may still put it off.
    async fn timed_out(&mut self, deadline: Deadline) {
        if self.watched.timed_out {
            self.notify_policies(Happened::TimedOut(deadline)).await;
            if !self.timers.is_over(deadline) {
                return;
            }
        }
        self.cancel(CancelCause::Deadline(deadline));
    }

    /// What a policy made of a window of text.
    fn guarded(&mut self, end: Result<Option<GuardEnd>, CancelCause>) {
        match end {
            Ok(None) => {}
            Ok(Some(GuardEnd::Stop { policy, reason })) => {
                self.filtered(&policy, &reason, self.accounting.usage_seen().generated_tokens);
                self.control.finish();
            }
            Ok(Some(GuardEnd::Abort { policy, reason, failed })) => {
                let failure = self.intervened(Intervention { policy, reason, failed });
                self.fail(CancelCause::Policy, failure);
            }
            Err(cause) => self.fail(cause, Failure::Cancelled(cause)),
        }
    }

    /// Stops the request, also when the engine had come to its end before: the rest of its text
    /// must not pass.
    fn fail(&mut self, cause: CancelCause, failure: Failure) {
        self.stop(cause);
        self.stopped(cause, failure);
    }

    /// A policy ends the request.
    fn intervene(&mut self, intervention: Intervention) {
        let failure = self.intervened(intervention);
        self.cancel_with(CancelCause::Policy, failure);
    }

    fn intervened(&self, intervention: Intervention) -> Failure {
        let (policy, code) = (&intervention.policy, &*intervention.reason.code.0);
        tracing::info!(request = %self.accounting.info.id, policy, code, "a policy ended the request");
        Failure::Intervened(Box::new(intervention))
    }

    fn filtered(&mut self, policy: &str, reason: &Reason, tokens: u32) {
        let code = &*reason.code.0;
        tracing::info!(request = %self.accounting.info.id, policy, code, "a policy ended the text");
        self.filtered_after = Some(tokens);
    }

    fn cancel(&mut self, cause: CancelCause) {
        self.cancel_with(cause, Failure::Cancelled(cause));
    }

    /// Stops the request: the engine before its next pass, the client at once.
    fn cancel_with(&mut self, cause: CancelCause, failure: Failure) {
        // When this is not the cancellation that counts, the one that does has told the client,
        // or the request has come to its own end and that is on its way here.
        if self.stop(cause) {
            self.stopped(cause, failure);
        }
    }

    /// Nothing is due any more, and the engine is asked to stop. Is this the cancellation that
    /// counts?
    fn stop(&mut self, cause: CancelCause) -> bool {
        self.timers.stop();
        self.followup.left = None;
        self.control.cancel(cause)
    }

    /// It is certain that the request ends so: everyone is told. A second call changes nothing.
    fn stopped(&mut self, cause: CancelCause, failure: Failure) {
        self.stopped_by.get_or_insert(cause);
        let end = Err(failure);
        let kind = EndKind::of(&end);
        // Before whoever asked hears of it: the kept answer says the same.
        self.out.end(end);
        self.registration.ends(kind);
    }

    async fn client_left(&mut self) {
        // Before anybody is asked about it: what happens meanwhile is not time that it was given.
        let at = self.out.client.forget();
        let tokens = self.accounting.usage_seen().generated_tokens;
        if self.watched.disconnected {
            self.notify_policies(Happened::Disconnected).await;
            if self.timers.is_stopped() {
                return;
            }
        }
        let action = self.accounting.session().plan().on_disconnect;
        self.goes_on(at, tokens, action);
        // When it is logged it is done: who waits for this line finds the request asked to stop.
        tracing::debug!(request = %self.accounting.info.id, on_disconnect = ?action, "client left");
    }

    /// Goes on without the client, which left at this moment and after so many tokens, or cancels.
    fn goes_on(&mut self, at: Instant, tokens: u32, action: DisconnectAction) {
        let (DrainLimits { time_max, tokens_max }, detach) = match action {
            DisconnectAction::Drain(limits) => (limits, false),
            DisconnectAction::Detach(limits) => (limits, true),
            DisconnectAction::Cancel => return self.cancel(CancelCause::Disconnect),
        };
        if detach && !self.out.can_be_kept() {
            // What was said so far is gone, so it goes on as it does.
            debug_assert!(self.followup.left.is_some(), "who may detach keeps what is said");
            return;
        }
        let tokens_end = tokens.saturating_add(tokens_max);
        if self.accounting.usage_seen().generated_tokens >= tokens_end {
            return self.cancel(CancelCause::Disconnect);
        }
        if self.followup.place.is_none() {
            self.followup.place = self.followup.results.place();
        }
        if self.followup.place.is_none() {
            let request = &self.accounting.info.id;
            tracing::info!(
                %request,
                "the request is cancelled: as many as detached.requests_max go on without a client"
            );
            return self.cancel(CancelCause::Disconnect);
        }
        let state =
            if self.accounting.has_started() { AnswerState::Running } else { AnswerState::Queued };
        let keep = || self.followup.results.keep(Arc::clone(&self.followup.stored), state);
        self.out.leave((detach && !self.out.is_kept()).then(keep));
        self.registration.activity().detached();
        self.timers.drain(at, time_max);
        self.followup.left = Some(ClientDeparture { at, tokens, action, tokens_end });
    }

    /// The engine has ended the request, or (`None`) its thread is gone without having done so.
    async fn end(mut self, ended: Option<Ended>) {
        let (mut outcome, mut usage) = match ended {
            Some(Ended { outcome, usage }) => (outcome, usage),
            None => {
                let why = "the engine stopped before the request had ended";
                (Outcome::Failed(why.into()), self.accounting.usage_seen())
            }
        };
        if let (Some(tokens), Outcome::Completed(_)) = (self.text.stopped_after(), &outcome) {
            // Tokens of the pass that was in flight when the text was complete belong to no
            // answer, and how many there are is chance.
            outcome = Outcome::Completed(Finish::Stop);
            usage = Usage { generated_tokens: tokens, ..usage };
        }
        if self.stopped_by.is_none() && matches!(outcome, Outcome::Completed(_)) {
            outcome = self.finish(outcome, &mut usage).await;
            if self.out.client.has_left() {
                // While its end was looked at. What was to be kept is.
                self.client_left().await;
            }
        }
        if let Some(cause) = self.stopped_by
            && !matches!(outcome, Outcome::Cancelled(_))
        {
            // That is what everyone was told. If a pass failed, or the thread has gone, the engine
            // has said so.
            outcome = Outcome::Cancelled(cause);
        }
        let Self { registration, accounting, mut out, .. } = self;
        accounting.end(outcome.clone(), usage);
        let how = match outcome {
            Outcome::Completed(finish) => Ok(Done { finish, usage }),
            Outcome::Cancelled(cause) => Err(Failure::Cancelled(cause)),
            Outcome::Failed(fault) => Err(Failure::Failed(fault.kind)),
        };
        // Before the client hears of the end: from then on there is nothing to cancel. And whoever
        // has asked finds what is kept.
        let kind = EndKind::of(&how);
        out.end_kept(&how);
        registration.ends(kind);
        drop(registration);
        out.end(how);
    }

    /// The text has come to its end; the policies that guard it have the last word.
    async fn finish(&mut self, outcome: Outcome, usage: &mut Usage) -> Outcome {
        if self.filtered_after.is_none() {
            let stopped = self.text.stopped_after().is_some();
            let rest = if stopped { Default::default() } else { self.text.flush() };
            let (mut policy_wait, out, _) = self.policy_wait();
            match out.finish(rest, *usage, &mut policy_wait).await {
                Ok(None) => return outcome,
                Ok(Some(GuardEnd::Stop { policy, reason })) => {
                    self.filtered(&policy, &reason, usage.generated_tokens);
                }
                Ok(Some(GuardEnd::Abort { policy, reason, failed })) => {
                    let failure = self.intervened(Intervention { policy, reason, failed });
                    self.stopped(CancelCause::Policy, failure);
                    return Outcome::Cancelled(CancelCause::Policy);
                }
                Err(cause) => {
                    self.stopped(cause, Failure::Cancelled(cause));
                    return Outcome::Cancelled(cause);
                }
            }
        }
        if let Some(tokens) = self.filtered_after {
            usage.generated_tokens = tokens;
        }
        Outcome::Completed(Finish::Filtered)
    }
}
