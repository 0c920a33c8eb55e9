//! The driver: one task per admitted request, from its submission to its account.
//!
//! It hears four voices: someone who wants the request stopped, the engine, the client's
//! connection and the clock. It turns tokens into text for the client and, when the request has
//! to stop early, tells the client at once and the engine before its next pass. It then still
//! waits for the engine's last word, so that what is counted is what was computed.
//!
//! It is also where policies hear of a request after its admission: of the events that they watch,
//! which may change its plan or end it, and of its text.
//!
//! # Invariants
//!
//! - Whoever wins [`Control::cancel`] decides what the client is told; the others change nothing.
//! - No client, however slow, delays the driver (see `pieces`). A policy may, for as long as its
//!   call may last; who asks for a stop does not wait for it, nor does a client that leaves or a
//!   time that is up, unless it is a policy that decides what follows (see `asking`).
//! - A request that had to stop while a policy was asked has no answer, also when the engine had
//!   come to its end: not all of the text was let pass.
//! - The ledger is written once, by [`Life::run`] or, if it panics, by the ledger's own drop.
//!
//! # Not here
//!
//! No HTTP and no JSON: an end is a [`Done`] or a [`Failure`], and who renders it is not known.

mod asking;
mod clock;
mod outflow;
mod text;

use std::sync::Arc;

use interlock_engine::{Control, Ended, Event, Events, RequestHandle};
use interlock_policy_api::{Event as Happened, EventSet, Progress, Reason};
use interlock_policy_chain::{CancelledByPolicy, EventOutcome, GuardEnd};
use interlock_request::{
    CancelCause, Deadline, DisconnectAction, DrainLimits, Drawn, Finish, Outcome, Usage,
};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use crate::failure::{Failure, Intervention};
use crate::host::{Wall, micros};
use crate::ledger::Ledger;
use crate::live::Claim;
use crate::pieces::{Done, EndKind, Outlet};
use crate::results::{Keeping, Results, State, Title};
use asking::Asking;
use clock::{Clock, Strike};
use outflow::Outflow;
pub(crate) use text::Text;

/// One admitted request and all that its driver needs.
pub(crate) struct Life {
    events: Events,
    control: Control,
    ledger: Ledger,
    clock: Clock,
    text: Text,
    out: Outflow,
    wall: Wall,
    watched: EventSet,
    after: After,
    /// How often it gave its pages to others, as far as was told.
    preempted: u32,
    /// Tokens when a policy ended the text.
    filtered_after: Option<u32>,
    /// Why it was stopped, once its client and whoever asked have been told so. Whatever the engine
    /// says after that.
    stopped_by: Option<CancelCause>,
    /// Given back last: from then on there is nothing to cancel.
    claim: Claim,
}

/// For whom an answer is made.
pub(crate) enum Reader {
    /// Someone waits for it.
    Client(Outlet),
    /// Nobody waits; it is kept.
    Nobody(Keeping, OwnedSemaphorePermit),
}

/// What comes after the client.
struct After {
    results: Arc<Results>,
    title: Arc<Title>,
    /// When the client left, and how it goes on.
    left: Option<Left>,
    /// A place among those that go on.
    place: Option<OwnedSemaphorePermit>,
}

/// What is known of a client that has left.
#[derive(Clone, Copy)]
struct Left {
    at: Instant,
    /// How many tokens there were.
    tokens: u32,
    /// How it goes on.
    goes_on: DisconnectAction,
    /// With how many it ends.
    tokens_end: u32,
}

/// What a driver hears.
enum Heard {
    Asked(CancelCause),
    Engine(Option<Event>),
    ClientLeft,
    Struck(Strike),
}

impl Life {
    pub(crate) fn new(
        running: RequestHandle,
        claim: Claim,
        ledger: Ledger,
        text: Text,
        reader: Reader,
        (results, title): (Arc<Results>, Arc<Title>),
        wall: Wall,
    ) -> Self {
        let RequestHandle { events, control } = running;
        let oversight = ledger.oversight();
        let (plan, watch) = (*oversight.plan(), oversight.watch());
        let (client, keeping, place) = match reader {
            Reader::Client(client) => (Some(client), None, None),
            Reader::Nobody(keeping, place) => (None, Some(keeping), Some(place)),
        };
        let activity = claim.activity();
        activity.admitted(ledger.admitted_at(), &ledger.model, plan.priority);
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
            clock: Clock::new(plan.deadlines, ledger.arrived_at()),
            out: Outflow::new(oversight.stream_filters(), client, keeping, keeps),
            ledger,
            text,
            wall,
            watched: watch.events,
            after: After { results, title, left: None, place },
            preempted: 0,
            filtered_after: None,
            stopped_by: None,
            claim,
        }
    }

    /// Drives the request to its end. So many wait before it.
    pub(crate) async fn run(mut self, before: u32) {
        if self.watched.queued {
            self.happened(Happened::Queued(before)).await;
        }
        let ended = loop {
            let due_at = self.out.due_at();
            let stalled_after = self.ledger.stalled_after();
            let heard = tokio::select! {
                // What has happened goes before what is only due: a request whose last token
                // has come is not timed out. And a client that left goes before the tokens that
                // nobody will read, however many are here already.
                biased;
                cause = self.claim.asked() => Heard::Asked(cause),
                () = self.out.client.left() => Heard::ClientLeft,
                event = self.events.next() => Heard::Engine(event),
                strike = self.clock.struck(due_at, stalled_after) => Heard::Struck(strike),
            };
            match heard {
                Heard::Asked(cause) => self.cut(cause),
                Heard::Engine(Some(Event::Started)) => self.started().await,
                Heard::Engine(Some(Event::Token(drawn))) => self.token(drawn).await,
                Heard::Engine(Some(Event::Preempted)) => self.preempted().await,
                Heard::Engine(Some(Event::Ended(ended))) => break Some(ended),
                Heard::Engine(None) => break None,
                Heard::ClientLeft => self.client_left().await,
                Heard::Struck(Strike::Deadline(deadline)) => self.timed_out(deadline).await,
                Heard::Struck(Strike::DrainOver) => self.cut(CancelCause::Disconnect),
                Heard::Struck(Strike::Stalled(time)) => {
                    self.happened(Happened::Stalled(time)).await;
                }
                Heard::Struck(Strike::WindowDue) => {
                    let usage = self.ledger.usage_seen();
                    let (mut asking, out, _) = self.ask();
                    let end = out.due(usage, &mut asking).await;
                    self.guarded(end);
                }
            }
        };
        self.end(ended).await;
    }

    async fn started(&mut self) {
        self.ledger.started();
        self.claim.activity().started();
        self.clock.started();
        self.out.started();
        if self.watched.dispatched {
            self.happened(Happened::Dispatched).await;
        }
    }

    async fn preempted(&mut self) {
        self.preempted += 1;
        self.claim.activity().preempted();
        tracing::debug!(request = %self.ledger.id, times = self.preempted, "preempted");
        if self.watched.preempted {
            self.happened(Happened::Preempted(self.preempted)).await;
        }
    }

    async fn token(&mut self, drawn: Drawn) {
        let now = Instant::now();
        let first = self.ledger.token(now);
        self.claim.activity().token();
        self.clock.token(now);
        if first && self.watched.first_token {
            self.happened(Happened::FirstToken).await;
        }
        if self.text.stopped_after().is_none() && self.filtered_after.is_none() {
            let said = self.text.push(drawn);
            let usage = self.ledger.usage_seen();
            let (mut asking, out, _) = self.ask();
            let end = out.push(said, usage, &mut asking).await;
            self.guarded(end);
            if self.text.stopped_after().is_some() {
                self.control.finish();
            }
        }
        let generated = self.ledger.usage_seen().generated_tokens;
        if self.after.left.is_some_and(|left| generated >= left.tokens_end) {
            self.cut(CancelCause::Disconnect);
        }
    }

    /// What a policy's call is up against, who the policies that read text are, and the others.
    fn ask(&mut self) -> (Asking<'_>, &mut Outflow, &mut Ledger) {
        let Self { claim, clock, events, out, ledger, watched, .. } = self;
        let on_disconnect = ledger.oversight().plan().on_disconnect;
        (Asking { claim, clock, events, watched: *watched, on_disconnect }, out, ledger)
    }

    /// Asks the policies that watch for this.
    async fn happened(&mut self, event: Happened) {
        let progress = self.progress();
        let (mut asking, out, ledger) = self.ask();
        let asked = ledger.oversight_mut().event(event, progress);
        let EventOutcome { plan_changed, cancel, .. } =
            match asking.wait(&mut out.client, asked).await {
                Ok(reacted) => reacted,
                Err(cause) => return self.fail(cause, Failure::Cancelled(cause)),
            };
        if let Some(CancelledByPolicy { policy, reason, failed }) = cancel {
            return self.intervene(Intervention { policy, reason, failed });
        }
        if plan_changed {
            let plan = *self.ledger.oversight().plan();
            self.clock.limit(plan.deadlines);
            if let Some(left) = self.after.left.filter(|left| left.goes_on != plan.on_disconnect) {
                self.goes_on(left.at, left.tokens, plan.on_disconnect);
            }
        }
    }

    fn progress(&self) -> Progress {
        Progress {
            at_micros: micros((self.wall)()),
            elapsed: self.ledger.admitted_at().elapsed(),
            since_token: self.clock.since_token(),
            usage: self.ledger.usage_seen(),
        }
    }

    /// A deadline has struck. Whoever watches for it may still put it off.
    async fn timed_out(&mut self, deadline: Deadline) {
        if self.watched.timed_out {
            self.happened(Happened::TimedOut(deadline)).await;
            if !self.clock.is_over(deadline) {
                return;
            }
        }
        self.cut(CancelCause::Deadline(deadline));
    }

    /// What comes of a window.
    fn guarded(&mut self, end: Result<Option<GuardEnd>, CancelCause>) {
        match end {
            Ok(None) => {}
            Ok(Some(GuardEnd::Stop { policy, reason })) => {
                self.filtered(&policy, &reason, self.ledger.usage_seen().generated_tokens);
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
        self.cut_with(CancelCause::Policy, failure);
    }

    fn intervened(&self, intervention: Intervention) -> Failure {
        let (policy, code) = (&intervention.policy, &*intervention.reason.code.0);
        tracing::info!(request = %self.ledger.id, policy, code, "a policy ended the request");
        Failure::Intervened(Box::new(intervention))
    }

    fn filtered(&mut self, policy: &str, reason: &Reason, tokens: u32) {
        let code = &*reason.code.0;
        tracing::info!(request = %self.ledger.id, policy, code, "a policy ended the text");
        self.filtered_after = Some(tokens);
    }

    fn cut(&mut self, cause: CancelCause) {
        self.cut_with(cause, Failure::Cancelled(cause));
    }

    /// Stops the request: the engine before its next pass, the client at once.
    fn cut_with(&mut self, cause: CancelCause, failure: Failure) {
        // When this is not the cancellation that counts, the one that does has told the client,
        // or the request has come to its own end and that is on its way here.
        if self.stop(cause) {
            self.stopped(cause, failure);
        }
    }

    /// Nothing is due any more, and the engine is asked to stop. Is this the cancellation that counts?
    fn stop(&mut self, cause: CancelCause) -> bool {
        self.clock.stop();
        self.after.left = None;
        self.control.cancel(cause)
    }

    /// It is certain that it ends so: everyone is told. Again, nothing happens.
    fn stopped(&mut self, cause: CancelCause, failure: Failure) {
        self.stopped_by.get_or_insert(cause);
        let end = Err(failure);
        let kind = EndKind::of(&end);
        // Before whoever asked hears of it: the kept answer says the same.
        self.out.end(end);
        self.claim.ends(kind);
    }

    async fn client_left(&mut self) {
        // Before anybody is asked about it: what happens meanwhile is not time that it was given.
        let at = self.out.client.forget();
        let tokens = self.ledger.usage_seen().generated_tokens;
        if self.watched.disconnected {
            self.happened(Happened::Disconnected).await;
            if self.clock.is_stopped() {
                return;
            }
        }
        let action = self.ledger.oversight().plan().on_disconnect;
        self.goes_on(at, tokens, action);
        // When it is logged it is done: who waits for this line finds the request asked to stop.
        tracing::debug!(request = %self.ledger.id, on_disconnect = ?action, "client left");
    }

    /// Goes on without a client, which left then and after so many tokens; or does not.
    fn goes_on(&mut self, at: Instant, tokens: u32, action: DisconnectAction) {
        let (DrainLimits { time_max, tokens_max }, detach) = match action {
            DisconnectAction::Drain(limits) => (limits, false),
            DisconnectAction::Detach(limits) => (limits, true),
            DisconnectAction::Cancel => return self.cut(CancelCause::Disconnect),
        };
        if detach && !self.out.can_be_kept() {
            // What was said so far is gone, so it goes on as it does.
            debug_assert!(self.after.left.is_some(), "who may detach keeps what is said");
            return;
        }
        let tokens_end = tokens.saturating_add(tokens_max);
        if self.ledger.usage_seen().generated_tokens >= tokens_end {
            return self.cut(CancelCause::Disconnect);
        }
        if self.after.place.is_none() {
            self.after.place = self.after.results.place();
        }
        if self.after.place.is_none() {
            tracing::info!(request = %self.ledger.id, "too many go on without a client already");
            return self.cut(CancelCause::Disconnect);
        }
        let state = if self.ledger.has_started() { State::Running } else { State::Queued };
        let keep = || self.after.results.keep(Arc::clone(&self.after.title), state);
        self.out.leave((detach && !self.out.is_kept()).then(keep));
        self.claim.activity().detached();
        self.clock.drain(at, time_max);
        self.after.left = Some(Left { at, tokens, goes_on: action, tokens_end });
    }

    /// The engine has said its last word, or (`None`) its thread is gone without one.
    async fn end(mut self, ended: Option<Ended>) {
        let (mut outcome, mut usage) = match ended {
            Some(Ended { outcome, usage }) => (outcome, usage),
            None => {
                let why = "the engine stopped before the request had ended";
                (Outcome::Failed(why.into()), self.ledger.usage_seen())
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
        let Self { claim, ledger, mut out, .. } = self;
        ledger.end(outcome.clone(), usage);
        let how = match outcome {
            Outcome::Completed(finish) => Ok(Done { finish, usage }),
            Outcome::Cancelled(cause) => Err(Failure::Cancelled(cause)),
            Outcome::Failed(fault) => Err(Failure::Failed(fault.kind)),
        };
        // Before the client hears of the end: from then on there is nothing to cancel. And whoever
        // has asked finds what is kept.
        let kind = EndKind::of(&how);
        out.end_kept(&how);
        claim.ends(kind);
        drop(claim);
        out.end(how);
    }

    /// The text has come to its end; the policies that guard it have the last word.
    async fn finish(&mut self, outcome: Outcome, usage: &mut Usage) -> Outcome {
        if self.filtered_after.is_none() {
            let stopped = self.text.stopped_after().is_some();
            let rest = if stopped { Default::default() } else { self.text.flush() };
            let (mut asking, out, _) = self.ask();
            match out.finish(rest, *usage, &mut asking).await {
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
