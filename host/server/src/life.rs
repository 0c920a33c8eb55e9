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
//!   call may last; who asks for a stop does not wait for it.
//! - The ledger is written once, by [`Life::run`] or, if it panics, by the ledger's own drop.
//!
//! # Not here
//!
//! No HTTP and no JSON: an end is a [`Done`] or a [`Failure`], and who renders it is not known.

mod clock;
mod outflow;
mod text;

use std::sync::Arc;

use interlock_admission::{
    Cancelled, Event as Happened, EventSet, GuardEnd, Progress, Reacted, Reason,
};
use interlock_engine::{Control, Ended, Event, Events, Running};
use interlock_request::{
    CancelCause, Deadline, DisconnectAction, DrainLimits, Drawn, Finish, Outcome, Usage,
};
use tokio::sync::OwnedSemaphorePermit;

use crate::failure::{Failure, Intervention};
use crate::host::{Wall, micros};
use crate::ledger::Ledger;
use crate::live::Claim;
use crate::pieces::{Done, Outlet};
use crate::results::{Keeping, Results, State, Title};
use clock::{Clock, Strike};
use outflow::Outflow;
pub(crate) use text::Text;

/// One admitted request and all that its driver needs.
pub(crate) struct Life {
    events: Events,
    control: Control,
    claim: Claim,
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
    /// Has a policy that reads the text failed the request? Whatever the engine says after that.
    aborted: bool,
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
    title: Title,
    /// How it goes on, once the client has left.
    goes_on: Option<DisconnectAction>,
    /// Tokens that it may still generate.
    tokens: Option<u32>,
    /// A place among those that go on.
    place: Option<OwnedSemaphorePermit>,
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
        running: Running,
        claim: Claim,
        ledger: Ledger,
        text: Text,
        reader: Reader,
        (results, title): (Arc<Results>, Title),
        wall: Wall,
    ) -> Self {
        let Running { events, control } = running;
        let oversight = ledger.oversight();
        let (plan, watch) = (*oversight.plan(), oversight.watch());
        let (client, keeping, place) = match reader {
            Reader::Client(client) => (Some(client), None, None),
            Reader::Nobody(keeping, place) => (None, Some(keeping), Some(place)),
        };
        // Only who may detach has to keep what was said so far: by its plan, or when a policy hears
        // of something and decides so.
        let keeps = matches!(plan.on_disconnect, DisconnectAction::Detach(_))
            || watch.events != EventSet::default();
        Self {
            events,
            control,
            claim,
            clock: Clock::new(plan.deadlines, oversight.admitted_at()),
            out: Outflow::new(oversight.guards(), client, keeping, keeps),
            ledger,
            text,
            wall,
            watched: watch.events,
            after: After { results, title, goes_on: None, tokens: None, place },
            preempted: 0,
            filtered_after: None,
            aborted: false,
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
                () = self.out.left() => Heard::ClientLeft,
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
                    self.happened(Happened::Stalled(time)).await
                }
                Heard::Struck(Strike::WindowDue) => {
                    let end = self.out.due(self.ledger.usage_seen()).await;
                    self.guarded(end);
                }
            }
        };
        self.end(ended).await;
    }

    async fn started(&mut self) {
        self.ledger.started();
        self.clock.started();
        self.out.started();
        if self.watched.dispatched {
            self.happened(Happened::Dispatched).await;
        }
    }

    async fn preempted(&mut self) {
        self.preempted += 1;
        tracing::debug!(request = %self.ledger.id, times = self.preempted, "preempted");
        if self.watched.preempted {
            self.happened(Happened::Preempted(self.preempted)).await;
        }
    }

    async fn token(&mut self, drawn: Drawn) {
        let first = self.ledger.token();
        self.clock.token();
        if first && self.watched.first_token {
            self.happened(Happened::FirstToken).await;
        }
        if self.text.stopped_after().is_none() && self.filtered_after.is_none() {
            let said = self.text.push(drawn);
            let usage = self.ledger.usage_seen();
            let end = tokio::select! {
                biased;
                // Whoever wants it stopped does not wait for a policy.
                cause = self.claim.asked() => return self.cut(cause),
                end = self.out.push(said, usage) => end,
            };
            self.guarded(end);
            if self.text.stopped_after().is_some() {
                self.control.finish();
            }
        }
        if let Some(left) = &mut self.after.tokens {
            *left = left.saturating_sub(1);
            if *left == 0 {
                self.cut(CancelCause::Disconnect);
            }
        }
    }

    /// Asks the policies that watch for this.
    async fn happened(&mut self, event: Happened) {
        let progress = self.progress();
        let reacted = tokio::select! {
            biased;
            // Whoever wants it stopped does not wait for a policy.
            cause = self.claim.asked() => return self.cut(cause),
            reacted = self.ledger.oversight_mut().event(event, progress) => reacted,
        };
        let Reacted { plan_changed, cancel, .. } = reacted;
        if let Some(Cancelled { policy, reason }) = cancel {
            return self.intervene(policy, reason);
        }
        if plan_changed {
            let plan = *self.ledger.oversight().plan();
            self.clock.limit(plan.deadlines);
            if self.after.goes_on.is_some_and(|now| now != plan.on_disconnect) {
                self.goes_on(plan.on_disconnect);
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
    fn guarded(&mut self, end: Option<GuardEnd>) {
        match end {
            None => {}
            Some(GuardEnd::Stop { policy, reason }) => {
                self.filtered(&policy, &reason, self.ledger.usage_seen().generated_tokens);
                self.control.finish();
            }
            Some(GuardEnd::Abort { policy, reason }) => {
                self.aborted = true;
                let failure = self.intervened(policy, reason);
                self.clock.stop();
                self.control.cancel(CancelCause::Policy);
                // Also when the engine had come to its end before: its text must not pass.
                self.out.end(Err(failure));
            }
        }
    }

    /// A policy ends the request.
    fn intervene(&mut self, policy: String, reason: Reason) {
        let failure = self.intervened(policy, reason);
        self.cut_with(CancelCause::Policy, failure);
    }

    fn intervened(&self, policy: String, reason: Reason) -> Failure {
        let code = &*reason.code.0;
        tracing::info!(request = %self.ledger.id, policy, code, "a policy ended the request");
        Failure::Intervened(Box::new(Intervention { policy, reason }))
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
        self.clock.stop();
        self.after.tokens = None;
        // When this is not the cancellation that counts, the one that does has told the client,
        // or the request has come to its own end and that is on its way here.
        if self.control.cancel(cause) {
            self.out.end(Err(failure));
        }
    }

    async fn client_left(&mut self) {
        self.out.forget_client();
        if self.watched.disconnected {
            self.happened(Happened::Disconnected).await;
            if self.clock.is_stopped() {
                return;
            }
        }
        let action = self.ledger.oversight().plan().on_disconnect;
        self.goes_on(action);
        // When it is logged it is done: who waits for this line finds the request asked to stop.
        tracing::debug!(request = %self.ledger.id, on_disconnect = ?action, "client left");
    }

    /// Goes on without a client, or does not.
    fn goes_on(&mut self, action: DisconnectAction) {
        self.after.goes_on = Some(action);
        let (limits, detach) = match action {
            DisconnectAction::Drain(limits) => (limits, false),
            DisconnectAction::Detach(limits) => (limits, self.out.can_be_kept()),
            DisconnectAction::Cancel => return self.cut(CancelCause::Disconnect),
        };
        let DrainLimits { time_max, tokens_max } = limits;
        if tokens_max == 0 {
            return self.cut(CancelCause::Disconnect);
        }
        if detach && self.after.place.is_none() {
            self.after.place = self.after.results.place();
        }
        // Where as many are kept as may be, it goes on all the same, so that its usage is whole.
        let detach = detach && self.after.place.is_some();
        let state = if self.ledger.has_started() { State::Running } else { State::Queued };
        let keep = || self.after.results.keep(self.after.title.clone(), state);
        self.out.leave(detach.then(keep));
        self.clock.drain(time_max);
        self.after.tokens = Some(tokens_max);
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
        if self.aborted && matches!(outcome, Outcome::Completed(_)) {
            outcome = Outcome::Cancelled(CancelCause::Policy);
        }
        if let Outcome::Completed(_) = outcome {
            outcome = self.finish(outcome, &mut usage).await;
        }
        let Self { claim, ledger, mut out, .. } = self;
        ledger.end(outcome.clone(), usage);
        // Before the client hears of the end: from then on there is nothing to cancel.
        drop(claim);
        out.end(match outcome {
            Outcome::Completed(finish) => Ok(Done { finish, usage }),
            Outcome::Cancelled(cause) => Err(Failure::Cancelled(cause)),
            Outcome::Failed(_) => Err(Failure::Failed),
        });
    }

    /// The text has come to its end; the policies that guard it have the last word.
    async fn finish(&mut self, outcome: Outcome, usage: &mut Usage) -> Outcome {
        if self.filtered_after.is_none() {
            let stopped = self.text.stopped_after().is_some();
            let rest = if stopped { Default::default() } else { self.text.flush() };
            match self.out.finish(rest, *usage).await {
                None => return outcome,
                Some(GuardEnd::Stop { policy, reason }) => {
                    self.filtered(&policy, &reason, usage.generated_tokens);
                }
                Some(GuardEnd::Abort { policy, reason }) => {
                    let failure = self.intervened(policy, reason);
                    self.out.end(Err(failure));
                    return Outcome::Cancelled(CancelCause::Policy);
                }
            }
        }
        if let Some(tokens) = self.filtered_after {
            usage.generated_tokens = tokens;
        }
        Outcome::Completed(Finish::Filtered)
    }
}
