//! The driver: one task per admitted request, from its submission to its account.
//!
//! It hears four voices: someone who wants the request stopped, the engine, the client's
//! connection and the clock. It turns tokens into text for the client and, when the request has
//! to stop early, tells the client at once and the engine before its next pass. It then still
//! waits for the engine's last word, so that what is counted is what was computed.
//!
//! # Invariants
//!
//! - Whoever wins [`Control::cancel`] decides what the client is told; the others change nothing.
//! - No client, however slow, delays the driver (see `pieces`).
//! - The ledger is written once, by [`Life::run`] or, if it panics, by the ledger's own drop.
//!
//! # Not here
//!
//! No HTTP and no JSON: an end is a [`Done`] or a [`Failure`], and who renders it is not known.

mod clock;
mod text;

use interlock_admission::Plan;
use interlock_engine::{Control, Ended, Event, Events, Running};
use interlock_request::{CancelCause, DisconnectAction, Drawn, Finish, Outcome, Usage};

use crate::failure::Failure;
use crate::ledger::Ledger;
use crate::live::Claim;
use crate::pieces::{Done, Outlet};
use clock::{Clock, Strike};
pub(crate) use text::Text;

/// One admitted request and all that its driver needs.
pub(crate) struct Life {
    events: Events,
    control: Control,
    claim: Claim,
    ledger: Ledger,
    clock: Clock,
    on_disconnect: DisconnectAction,
    text: Text,
    /// None once the client has left or was told its end.
    client: Option<Outlet>,
    /// Tokens that a drain may still generate.
    drain_tokens: Option<u32>,
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
        plan: &Plan,
        claim: Claim,
        ledger: Ledger,
        text: Text,
        client: Outlet,
    ) -> Self {
        let Running { events, control } = running;
        Self {
            events,
            control,
            claim,
            clock: Clock::new(plan.deadlines, ledger.admitted_at()),
            ledger,
            on_disconnect: plan.on_disconnect,
            text,
            client: Some(client),
            drain_tokens: None,
        }
    }

    /// Drives the request to its end.
    pub(crate) async fn run(mut self) {
        let ended = loop {
            let heard = tokio::select! {
                // What has happened goes before what is only due: a request whose last token
                // has come is not timed out. And a client that left goes before the tokens that
                // nobody will read, however many are here already.
                biased;
                cause = self.claim.asked() => Heard::Asked(cause),
                () = left(&mut self.client) => Heard::ClientLeft,
                event = self.events.next() => Heard::Engine(event),
                strike = self.clock.struck() => Heard::Struck(strike),
            };
            match heard {
                Heard::Asked(cause) => self.cut(cause),
                Heard::Engine(Some(Event::Started)) => {
                    self.ledger.started();
                    self.clock.started();
                }
                Heard::Engine(Some(Event::Token(drawn))) => self.token(drawn),
                Heard::Engine(Some(Event::Preempted)) => {
                    tracing::debug!(request = %self.ledger.id, "preempted");
                }
                Heard::Engine(Some(Event::Ended(ended))) => break Some(ended),
                Heard::Engine(None) => break None,
                Heard::ClientLeft => self.client_left(),
                Heard::Struck(Strike::Deadline(deadline)) => {
                    self.cut(CancelCause::Deadline(deadline));
                }
                Heard::Struck(Strike::DrainOver) => self.cut(CancelCause::Disconnect),
            }
        };
        self.end(ended);
    }

    fn token(&mut self, drawn: Drawn) {
        self.ledger.token();
        self.clock.token();
        if self.text.stopped_after().is_none() {
            let said = self.text.push(drawn);
            if let Some(client) = &mut self.client {
                client.push(said);
            }
            if self.text.stopped_after().is_some() {
                self.control.finish();
            }
        }
        if let Some(left) = &mut self.drain_tokens {
            *left = left.saturating_sub(1);
            if *left == 0 {
                self.cut(CancelCause::Disconnect);
            }
        }
    }

    /// Stops the request: the engine before its next pass, the client at once.
    fn cut(&mut self, cause: CancelCause) {
        self.clock.stop();
        self.drain_tokens = None;
        // When this is not the cancellation that counts, the one that does has told the client,
        // or the request has come to its own end and that is on its way here.
        if self.control.cancel(cause)
            && let Some(client) = self.client.take()
        {
            client.end(Err(Failure::Cancelled(cause)));
        }
    }

    fn client_left(&mut self) {
        self.client = None;
        match self.on_disconnect {
            DisconnectAction::Cancel => self.cut(CancelCause::Disconnect),
            DisconnectAction::Drain(limits) if limits.tokens_max == 0 => {
                self.cut(CancelCause::Disconnect);
            }
            DisconnectAction::Drain(limits) => {
                self.clock.drain(limits.time_max);
                self.drain_tokens = Some(limits.tokens_max);
            }
        }
        tracing::debug!(request = %self.ledger.id, on_disconnect = ?self.on_disconnect, "client left");
    }

    /// The engine has said its last word, or (`None`) its thread is gone without one.
    fn end(self, ended: Option<Ended>) {
        let Self { claim, ledger, mut text, client, .. } = self;
        let (mut outcome, mut usage) = match ended {
            Some(Ended { outcome, usage }) => (outcome, usage),
            None => {
                let why = "the engine stopped before the request had ended";
                (Outcome::Failed(why.into()), ledger.usage_seen())
            }
        };
        if let (Some(tokens), Outcome::Completed(_)) = (text.stopped_after(), &outcome) {
            // Tokens of the pass that was in flight when the text was complete belong to no
            // answer, and how many there are is chance.
            outcome = Outcome::Completed(Finish::Stop);
            usage = Usage { generated_tokens: tokens, ..usage };
        }
        ledger.end(outcome.clone(), usage);
        // Before the client hears of the end: from then on there is nothing to cancel.
        drop(claim);
        let Some(mut client) = client else { return };
        match outcome {
            Outcome::Completed(finish) => {
                if text.stopped_after().is_none() {
                    client.push(text.flush());
                }
                client.end(Ok(Done { finish, usage }));
            }
            Outcome::Cancelled(cause) => client.end(Err(Failure::Cancelled(cause))),
            Outcome::Failed(_) => client.end(Err(Failure::Failed)),
        }
    }
}

async fn left(client: &mut Option<Outlet>) {
    match client {
        Some(client) => client.left().await,
        None => std::future::pending().await,
    }
}
